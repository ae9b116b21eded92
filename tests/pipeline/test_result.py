"""What a run says of its failure: row A19 of the faults."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from medret.errors import MedretError, StorageError
from medret.pipeline.result import begin, failure_of

FULL = "OSError: [Errno 28] No space left on device: '/store/embeddings/x'"


def _fail(batch: Any) -> Any:
    if batch["id"][0] == 0:
        raise OSError(errno.ENOSPC, "No space left on device", "/store/embeddings/x")
    if batch["id"][0] == 1:
        raise MemoryError("Unable to allocate 6 GiB")
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise StorageError("/store/embeddings/x: cannot be written: No space left on device") from error


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, f"a worker failed and its work could not be repeated: {FULL}"),
        (1, "a worker failed and its work could not be repeated: MemoryError: Unable to allocate 6 GiB"),
        (2, "/store/embeddings/x: cannot be written: No space left on device"),
    ],
)
def test_a_failure_in_a_worker_is_told_by_its_cause(number: int, told: str) -> None:
    """A19: Ray's advice on retries was told in place of the cause."""
    import ray

    source = ray.data.from_items([{"id": number}])
    with pytest.raises((MedretError, ray.exceptions.RayError)) as caught:
        source.map_batches(_fail).materialize()
    assert str(failure_of(caught.value)) == told


def test_what_is_published_stays_so_without_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> str:
        raise StorageError("full")

    said: list[str] = []
    monkeypatch.setattr("medret.pipeline.result.Log.write", write)
    nowhere: Any = None
    assert begin().written(nowhere, said.append) is None
    assert said == ["published, but without a report of the run: full"]
