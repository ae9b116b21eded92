"""What the benchmarks read: real volumes where they lie beside the checkout, phantoms where they do not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medret.demo.phantoms import write_corpus

REAL = Path(__file__).parents[2] / "shared" / "data" / "volumes"


@contextmanager
def corpus(folder: Path | None, *, tiny: bool = False) -> Iterator[tuple[Path, str]]:
    """A folder of NIfTI volumes and what to call them: `folder` if given, the real ones, or phantoms made here."""
    if folder is None and REAL.is_dir() and not tiny:
        folder = REAL
    if folder is not None:
        yield folder, "real volumes" if folder == REAL else str(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "archive"
        write_corpus(made, volumes_per_kind=1 if tiny else 2)
        yield made, "phantoms"
