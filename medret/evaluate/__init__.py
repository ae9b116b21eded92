"""Evaluation of a snapshot: how often a search finds volumes of the same modality, body region and organ.

Imports neither ray nor torch, unless queries are files.
"""

from __future__ import annotations

from medret.evaluate.configs import SearchConfig, Selection
from medret.evaluate.evaluation import evaluate
from medret.evaluate.figures import Evaluation, Row
from medret.evaluate.levels import Options
from medret.evaluate.metrics import Bootstrap
from medret.evaluate.query_sets import QuerySet, archive_queries
