"""The settings that indices are built and searched with, and how embedding files are grouped into index shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from medret.errors import UsageError

HNSW, LSH, EXACT = "hnsw", "lsh", "exact"
KINDS = (HNSW, LSH, EXACT)
AUTO, FP16, RABITQ = "auto", "fp16", "rabitq2"
HNSW_CODES = (AUTO, FP16, RABITQ)
RABITQ_BITS = 2  # per dimension, of `rabitq2`
CODES_RECALL = 0.99  # recall@10 of a shard below which `auto` holds float16

# Increase when the same vectors and settings would give other index files.
INDEX_VERSION = 1
VERSION_KEY = "index_version"

# LSH: with two bits per dimension the candidates still contain the true neighbours. The cap bounds the codes: 256 bytes
# per vector.
LSH_BITS_PER_DIM = 2
LSH_BITS_MAX = 2048


@dataclass(frozen=True)
class IndexSettings:
    """Settings of all three kinds of index.

    hnsw_m: links per node (twice as many on the lowest level).
    hnsw_ef_construction, hnsw_ef_search: length of the candidate list while building and while searching.
    hnsw_codes: what a node holds of its vector: fp16; rabitq2, a code of two bits per dimension; or auto, which is
        rabitq2 but in shards where that finds less than 0.99 of the neighbours (`CODES_RECALL`).
    lsh_bits: bits per vector, a multiple of 8; None applies `bits_for`'s rule.
    lsh_candidates: how many candidates, best by Hamming distance, are re-scored with the exact cosine.
    shard_rows: maximum number of vectors per shard.
    kinds: the indices to build. `exact` is required: LSH candidates are re-scored and stored vectors read from it.
    centred: compare vectors as directions from their mean (medret.index.centre).

    Raises UsageError for impossible values.
    """

    hnsw_m: int = 32
    hnsw_ef_construction: int = 200
    hnsw_ef_search: int = 64
    hnsw_codes: str = AUTO
    lsh_bits: int | None = None
    lsh_candidates: int = 200
    shard_rows: int = 262_144
    kinds: tuple[str, ...] = KINDS
    centred: bool = True

    def __post_init__(self) -> None:
        _within("hnsw_m", self.hnsw_m, 2, 512)
        _within("hnsw_ef_construction", self.hnsw_ef_construction, 1, 100_000)
        _within("hnsw_ef_search", self.hnsw_ef_search, 1, 100_000)
        if self.hnsw_codes not in HNSW_CODES:
            raise UsageError(
                f"index setting hnsw_codes is {self.hnsw_codes!r}, expected one of {', '.join(HNSW_CODES)}"
            )
        _within("lsh_candidates", self.lsh_candidates, 1, 1_000_000)
        _within("shard_rows", self.shard_rows, 1, 2**31 - 1)
        if self.lsh_bits is not None:
            _within("lsh_bits", self.lsh_bits, 8, 16_384)
            if self.lsh_bits % 8:
                raise UsageError(f"index setting lsh_bits is {self.lsh_bits}, expected a multiple of 8")
        wrong = [kind for kind in self.kinds if kind not in KINDS]
        if wrong or len(set(self.kinds)) != len(self.kinds):
            raise UsageError(f"index kinds {list(self.kinds)} are not distinct names out of {', '.join(KINDS)}")
        if EXACT not in self.kinds:
            raise UsageError(
                f"index kinds {list(self.kinds)} leave out 'exact': the other kinds and searching by volume_id read "
                "their vectors from it, so add it"
            )

    def bits_for(self, dim: int) -> int:
        """LSH bits per vector: `lsh_bits`, else 2 per dimension, rounded up to a multiple of 64, at most 2048."""
        if self.lsh_bits is not None:
            return self.lsh_bits
        bits = -(-LSH_BITS_PER_DIM * dim // 64) * 64
        return min(bits, LSH_BITS_MAX)

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the index files and their measured recall, as a JSON object.

        It goes into the digest of an index folder, and into the manifest, for the next run to compare.
        """
        content = {VERSION_KEY: INDEX_VERSION, **asdict(self), "kinds": list(self.kinds)}
        if self.hnsw_codes == FP16:  # as before there was a choice: the files are the same
            del content["hnsw_codes"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> IndexSettings:
        """Settings from a result of `to_json`; raises UsageError for unknown keys and bad values."""
        values = {"hnsw_codes": FP16} | {name: value for name, value in content.items() if name != VERSION_KEY}
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"index settings have unknown keys {unknown}, expected some of {sorted(known)}")
        if "kinds" in values:
            values["kinds"] = tuple(values["kinds"])
        return cls(**values)


def _within(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"index setting {name} is {value!r}, expected a whole number from {low} to {high}")


def plan_shards(files: Sequence[tuple[str, int]], shard_rows: int) -> tuple[tuple[str, ...], ...]:
    """Group whole embedding files into shards, in order: (key, rows) pairs -> keys of each shard.

    A group ends when the next file would take it beyond `shard_rows`; a larger file forms its own group. Appending
    files changes only the last group, so all other shards are kept. Files without rows are left out. Raises UsageError
    for a negative count, a repeated key or shard_rows below 1.
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
