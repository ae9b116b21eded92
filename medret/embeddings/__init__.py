"""Slice vectors to volume vectors, and Parquet shards of both."""

from medret.embeddings.parquet import read_vectors, slice_table, volume_table
from medret.embeddings.slices import Aggregation, Slices, parse_aggregation, plane_codes, reducible, unit_slices
