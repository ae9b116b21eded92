"""Which embedding files go into which index shard."""

from __future__ import annotations

from collections.abc import Sequence

from medret.errors import UsageError


def plan_shards(files: Sequence[tuple[str, int]], shard_rows: int) -> tuple[tuple[str, ...], ...]:
    """Groups of whole embedding files, in the order given: (key, rows) pairs -> keys of each shard.

    A group is closed when the next file would take it beyond `shard_rows`; a file larger than that is a group of its
    own. Only the last group changes when files are appended, so all other shards are kept. Files without
    rows are left out. Raises UsageError for a negative count, a repeated key or shard_rows below 1.
    """
    if shard_rows < 1:
        raise UsageError(f"shard_rows is {shard_rows}, expected at least 1")
    groups: list[tuple[str, ...]] = []
    open_keys: list[str] = []
    open_rows = 0
    seen: set[str] = set()
    for key, rows in files:
        if rows < 0 or key in seen:
            problem = "appears twice" if key in seen else f"has {rows} rows"
            raise UsageError(f"embedding file '{key}' {problem}: each file is planned once, with its row count")
        seen.add(key)
        if not rows:
            continue
        if open_keys and open_rows + rows > shard_rows:
            groups.append(tuple(open_keys))
            open_keys, open_rows = [], 0
        open_keys.append(key)
        open_rows += rows
    if open_keys:
        groups.append(tuple(open_keys))
    return tuple(groups)
