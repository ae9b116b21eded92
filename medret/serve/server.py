"""Run the application in uvicorn."""

from __future__ import annotations

import uvicorn

from medret.serve.app import create_app
from medret.serve.service import Service
from medret.visible import say

WATCH_SECONDS = 2.0  # between looks at CURRENT


def run_server(service: Service, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished."""
    service.live.watch(WATCH_SECONDS)
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
    )
    say(f"medret serves {', '.join(service.live.current.ids)} at http://{host}:{port}/", error=True)
    try:
        uvicorn.Server(config).run()
    finally:
        service.live.close()
