"""Slice vectors to volume vectors, and Parquet shards of both."""

from medret.embeddings.aggregate import Aggregation, parse_aggregation
from medret.embeddings.shards import EmbeddedVolume, read_vectors, reducible, slice_table, unit_slices, volume_table

__all__ = [
    "Aggregation",
    "EmbeddedVolume",
    "parse_aggregation",
    "read_vectors",
    "reducible",
    "slice_table",
    "unit_slices",
    "volume_table",
]
