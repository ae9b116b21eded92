"""The HTTP API and the page over the live snapshots of stores. Imports no ray, and torch only to encode queries."""

from medret.serve.app import create_app
from medret.serve.live import LiveStores
from medret.serve.service import ServeSettings, Service

__all__ = ["LiveStores", "ServeSettings", "Service", "create_app"]
