"""FAISS files: checked field by field, then opened read-only and memory-mapped.

FAISS trusts the sizes and links in a file. A forged file of a few bytes can ask for any amount of memory, and a link
that leads out of its graph ends the process. The few fields of the three kinds that medret writes are therefore read
here first: every length must lie within the file, nothing may be left over, and every link of a graph must lead to one
of its vectors. The caller has checked the sha256, but whoever made the store chose that too.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.errors import CorruptError, first_line
from medret.index.approximate import ApproximateIndex, Distinct, Walked
from medret.index.exact import ExactIndex, Searchable
from medret.index.hnsw import HnswIndex
from medret.index.lsh import LshIndex
from medret.index.settings import EXACT, HNSW, KINDS, LSH, RABITQ_BITS, IndexSettings

INNER_PRODUCT, L2 = 0, 1
QT_FP16 = 4  # faiss.ScalarQuantizer.QT_fp16
QUERY_BITS = 4  # of FAISS's RaBitQ
DIM_MAX, BITS_MAX = 1 << 16, 1 << 14
LEVELS_MAX = 64  # of a graph; the highest of 2^31 nodes is about 10
NO_LINK = -1


class _Fields:
    """Reads the fields of a file in order; raises ValueError for impossible ones."""

    def __init__(self, data: Any) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Read numbers, little-endian and without padding."""
        size = struct.calcsize(f"<{form}")
        return struct.unpack(f"<{form}", self._bytes(size))

    def vector(self, dtype: str) -> NDArray[Any]:
        """View an array that its length precedes."""
        (count,) = self.take("Q")
        return np.frombuffer(self._bytes(count * np.dtype(dtype).itemsize), dtype)

    def _bytes(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise ValueError(f"it ends at byte {len(self._data)}, within a field of {size} bytes at {self._at}")
        self._at += size
        return self._data[self._at - size : self._at]

    def end(self) -> None:
        """Raise ValueError if bytes follow."""
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes follow its last field")


def _judge_of(kind: str) -> Callable[[Path], None]:
    """A function that raises CorruptError, naming the file, unless it is a sound index of that kind."""

    def judge(path: Path) -> None:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise CorruptError(f"{path} is empty, expected a FAISS index")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                problem = _problem(mapped, kind)
        if problem:  # raised here, because a traceback would hold views of the map, which then cannot be closed
            raise CorruptError(f"{path} is not an index that medret writes: {problem}")

    judge.__qualname__ = f"judge_{kind}"  # by which search/cache.py knows what a file was checked for
    return judge


JUDGES = {kind: _judge_of(kind) for kind in KINDS}


def _problem(data: Any, kind: str) -> str | None:
    fields = _Fields(data)
    try:
        {EXACT: _exact, HNSW: _hnsw, LSH: _lsh}[kind](fields)
        fields.end()
    except ValueError as error:
        return str(error)
    return None


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _header(fields: _Fields, metrics: dict[bytes, int]) -> tuple[bytes, int, int]:
    """Mark, vectors and dimensions. metrics: mark -> the metric of such an index."""
    mark, dim, rows, _, _, trained, metric = fields.take("4siqqq?i")
    _expect(mark in metrics, f"it begins with {mark!r}, expected {' or '.join(map(repr, metrics))}")
    _expect(0 < dim <= DIM_MAX and 0 <= rows < 2**31, f"it declares {rows} vectors of {dim} dimensions")
    _expect(trained and metric == metrics[mark], f"its metric is {metric}, expected {metrics[mark]}")
    return mark, rows, dim


def _exact(fields: _Fields) -> tuple[int, int]:
    _, rows, dim = _header(fields, {b"IxSQ": INNER_PRODUCT})
    *form, code_dim, code_bytes = fields.take("iifQQ")
    layout = (*form, code_dim, code_bytes, len(fields.vector("<f4")))
    _expect(
        layout == (QT_FP16, 0, 0.0, dim, 2 * dim, 0), f"its vectors are stored as {layout}, expected float16 of {dim}"
    )
    size = len(fields.vector("u1"))
    _expect(size == rows * code_bytes, f"it holds {size} bytes of vectors, expected {rows} x {code_bytes}")
    return rows, dim


def _rabitq(fields: _Fields) -> tuple[int, int]:
    _, rows, dim = _header(fields, {b"Ixrr": L2})
    layout = fields.take("QQiQ")
    size, code_bytes = len(fields.vector("u1")), layout[1]
    expected = (dim, rabitq_bytes(dim), L2, RABITQ_BITS)
    _expect(layout == expected, f"its codes are laid out as {layout}, expected {expected}")
    _expect(size == rows * code_bytes, f"it holds {size} bytes of codes, expected {rows} x {code_bytes}")
    centre, ending = fields.vector("<f4"), fields.take("BB")
    _expect(len(centre) == dim and bool(np.isfinite(centre).all()), f"its centre has not {dim} finite numbers")
    _expect(ending == (QUERY_BITS, 1), f"it ends with {ending}, expected {(QUERY_BITS, 1)}")
    return rows, dim


def rabitq_bytes(dim: int) -> int:
    """Size of a code of RABITQ_BITS per dimension: signs, further bits, and 20 bytes of factors."""
    return (dim + 7) // 8 + (dim * (RABITQ_BITS - 1) + 7) // 8 + 20


_STORED = {b"IHNs": _exact, b"IHNr": _rabitq}  # HNSW's marks, and what the nodes of each are stored as


def _hnsw(fields: _Fields) -> None:
    mark, rows, dim = _header(fields, {b"IHNs": INNER_PRODUCT, b"IHNr": L2})
    chances, ends, levels = fields.vector("<f8"), fields.vector("<i4"), fields.vector("<i4")
    starts, links = fields.vector("<u8"), fields.vector("<i4")
    entry, top, *_ = fields.take("5i")
    _expect(len(ends) <= LEVELS_MAX and len(chances) < LEVELS_MAX, f"its graph has {len(ends)} levels")
    _expect(len(ends) > 0 and ends[0] == 0 and bool((np.diff(ends) >= 0).all()), "its levels are out of order")
    _expect(len(levels) == rows and len(starts) == rows + 1, f"its graph has {len(levels)} nodes, expected {rows}")
    _expect(rows == 0 or bool(levels.min() >= 1 and levels.max() < len(ends)), "a node has a level that does not exist")
    steps = np.diff(starts.astype(np.int64))
    _expect(starts[0] == 0 and bool((steps == ends[levels]).all()), "the places of its links are out of order")
    _expect(int(starts[-1]) == len(links), f"it holds {len(links)} links, expected {int(starts[-1])}")
    _expect(rows == 0 or (0 <= entry < rows and 0 <= top < levels[entry]), "its graph has no valid entry point")
    _expect(not len(links) or bool(links.min() >= NO_LINK and links.max() < rows), "a link leads out of its graph")
    _expect(_leads_down(levels, starts, links, ends, top), "a link leads to a node that is not on its level")
    _expect(_STORED[mark](fields) == (rows, dim), f"its vectors are not {rows} of {dim} dimensions")


def _leads_down(levels: NDArray[Any], starts: NDArray[Any], links: NDArray[Any], ends: NDArray[Any], top: int) -> bool:
    """Whether each link above the lowest level leads to a node of that level, whose links a walk would follow next."""
    if len(levels) and levels.max() > top + 1:
        return False
    for node in np.flatnonzero(levels > 1).tolist():
        for level in range(1, int(levels[node])):
            linked = links[int(starts[node]) + int(ends[level]) : int(starts[node]) + int(ends[level + 1])]
            if (levels[linked[linked != NO_LINK]] <= level).any():
                return False
    return True


def _lsh(fields: _Fields) -> None:
    _, rows, dim = _header(fields, {b"IxHe": L2})
    bits, rotated, thresholds = fields.take("i??")
    _expect(0 < bits <= BITS_MAX and thresholds, f"it has {bits} bits, expected at most {BITS_MAX}")
    _expect(rotated or dim == bits, f"it has {bits} bits of {dim} rotated dimensions, expected as many")
    count = len(fields.vector("<f4"))
    code_bytes, mark, has_bias = fields.take("i4s?")
    _expect(count == bits and code_bytes == (bits + 7) // 8, f"it has {count} thresholds of {bits} bits")
    matrix, bias = len(fields.vector("<f4")), len(fields.vector("<f4"))
    shape = fields.take("ii?")
    _expect(
        (mark, has_bias, matrix, bias, *shape) == (b"rrot", False, bits * dim * rotated, 0, dim, bits, rotated),
        f"its rotation has {matrix} numbers, expected {f'{bits} x {dim}' if rotated else 'none'}",
    )
    codes = len(fields.vector("u1"))
    _expect(codes == rows * code_bytes, f"it holds {codes} bytes of codes, expected {rows} x {code_bytes}")


_faiss: Any = faiss  # its type stubs lack RaBitQ
_CLASSES: dict[str, Any] = {
    HNSW: (faiss.IndexHNSWSQ, _faiss.IndexHNSWRaBitQ),
    LSH: faiss.IndexLSH,
    EXACT: faiss.IndexScalarQuantizer,
}


def approximate_index(
    kind: str,
    index: Any,
    exact: ExactIndex,
    distinct: Distinct,
    settings: IndexSettings,
    walked: Walked | None = None,
) -> ApproximateIndex:
    """An HNSW or LSH index of FAISS, over the distinct vectors of `exact`. walked: see `ApproximateIndex`."""
    if kind == HNSW:
        return HnswIndex(index, exact, distinct, settings.hnsw_ef_search, walked)
    return LshIndex(index, exact, distinct, settings.lsh_candidates, walked)


def open_exact(path: Path, *, rows: int, dim: int, use_gpu: bool = False) -> ExactIndex:
    """Map an exact index of `rows` x `dim`; raises CorruptError if the file is something else."""
    return ExactIndex(_read(path, EXACT, rows, dim), use_gpu=use_gpu)


def open_approximate(
    path: Path,
    kind: str,
    exact: ExactIndex,
    distinct: Distinct,
    settings: IndexSettings,
    walked: Walked | None = None,
) -> Searchable:
    """Map an HNSW or LSH index over the distinct vectors of `exact`; raises CorruptError if the file is another.

    walked: see `ApproximateIndex`.
    """
    index = _read(path, kind, len(distinct.rows), exact.dim)
    return approximate_index(kind, index, exact, distinct, settings, walked)


def exact_vectors(data: bytes) -> NDArray[np.float16]:
    """All vectors of an exact index, (n, dim), from its file's bytes; raises CorruptError if it is something else."""
    if problem := _problem(data, EXACT):
        raise CorruptError(f"not an index that medret writes: {problem}")
    index: Any = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    return ExactIndex(index).vectors(slice(0, index.ntotal)).copy()


def _read(path: Path, kind: str, rows: int, dim: int) -> Any:
    try:
        # Maps the codes and links of all three kinds; the rotation matrix of an older LSH file is read into memory.
        index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise CorruptError(f"{path} cannot be read as a FAISS index: {first_line(error)}") from error
    fits = isinstance(index, _CLASSES[kind])
    width = index.nbits if fits and kind == LSH and not index.rotate_data else dim
    if not fits or (index.ntotal, index.d) != (rows, width):
        raise CorruptError(
            f"{path} is a {type(index).__name__} of {index.ntotal} x {index.d}, expected {kind} of {rows} x {dim}"
        )
    return index
