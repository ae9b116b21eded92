"""Scores of a snapshot: how often a search finds volumes of the same modality, body region and organ.

Imports neither ray nor torch, unless queries are files.
"""

from __future__ import annotations

from medret.evaluate.arms import Arm, Selection
from medret.evaluate.averages import Bootstrap
from medret.evaluate.panel import Panel, archive_panel
from medret.evaluate.plan import Options
from medret.evaluate.result import Evaluation, Row
from medret.evaluate.run import evaluate

__all__ = ["Arm", "Bootstrap", "Evaluation", "Options", "Panel", "Row", "Selection", "archive_panel", "evaluate"]
