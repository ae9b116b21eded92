"""Vectors to index files: HNSW, LSH and exact, sharded, deterministic, their recall measured.

All vectors here have unit length after the centre of their index was subtracted. They are float16 on disk and compared
by inner product, so scores are cosines.
"""

from __future__ import annotations

from medret.index.approximate import Distinct
from medret.index.build import ROWS_KIND, IndexShard, build_shard, building_bytes, threads
from medret.index.centre import CENTRE_KIND, centre_of, centred, fit_centre, pooled_centre, refit_needed, uncentred
from medret.index.exact import MISSING, ExactIndex, Neighbours, Searchable, gpu_available
from medret.index.index_files import JUDGES, open_approximate, open_exact
from medret.index.rows import RowTable, read_rows
from medret.index.settings import EXACT, HNSW, KINDS, LSH, IndexSettings, plan_shards
