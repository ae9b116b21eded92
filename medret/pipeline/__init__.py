"""The job: Ray Data from an archive's objects to Parquet shards, Ray tasks from shards to indices, then publication.

Only this folder imports ray. Everything that it computes with is a pure function of another folder.
"""

from medret.pipeline.request import IndexRequest
from medret.pipeline.run import IndexOutcome, run_index

__all__ = ["IndexOutcome", "IndexRequest", "run_index"]
