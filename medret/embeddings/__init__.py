"""Slice vectors to volume vectors, and Parquet shards of both."""

from medret.embeddings.aggregate import Aggregation, parse_aggregation
from medret.embeddings.shards import read_vectors, reducible, slice_table, unit_slices, volume_table
from medret.embeddings.slices import Slices, plane_codes
