"""The previews of a volume, from the file of its embedding shard: each is checked before it is handed out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from medret.embeddings.parquet import as_corrupt, check_required, open_parquet, spelt_out
from medret.schemas import PREVIEWS
from medret.volume.previews import PREVIEWS_MAX, Preview, check_preview


def read_previews(path: Path, volume_id: str) -> tuple[Preview, ...]:
    """Read the previews of a volume, in the order of the file; only the row groups that may hold it are decoded.

    Raises CorruptError for a file or a picture that medret does not write: whoever made a store chose its bytes, and
    browsers may be shown them.
    """
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    file = open_parquet(path, str(path), list(PREVIEWS))
    with as_corrupt(str(path)):
        groups = [group for group in range(file.num_row_groups) if _may_hold(file.metadata.row_group(group), volume_id)]
        table = file.read_row_groups(groups, PREVIEWS.names)
        found = spelt_out(table.filter(pc.equal(table["volume_id"], volume_id)), path.stat().st_size)
        check_required(found, PREVIEWS)
        if found.num_rows > PREVIEWS_MAX:
            raise ValueError(f"{found.num_rows} previews of one volume, expected at most {PREVIEWS_MAX}")
        columns = (found[name].to_pylist() for name in ("plane", "position", "image"))
        previews = tuple(Preview(*row) for row in zip(*columns, strict=True))
        for preview in previews:
            check_preview(preview)
    return previews


def _may_hold(group: pa.parquet.RowGroupMetaData, volume_id: str) -> bool:
    """Whether a row group can have rows of the volume, by its smallest and largest volume_id."""
    columns = (group.column(at) for at in range(group.num_columns))
    statistics = next(column for column in columns if column.path_in_schema == "volume_id").statistics
    return statistics is None or not statistics.has_min_max or bool(statistics.min <= volume_id <= statistics.max)
