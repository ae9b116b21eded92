"""Verification finds what is wrong, and names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medret.cli import main
from medret.embeddings.parquet import parquet_bytes, read_parquet, read_vectors
from medret.errors import UsageError
from medret.snapshot import verify_store
from medret.snapshot.names import say_strangers
from medret.storage import Location
from tests.search.forging import forge_file, forge_manifest, forge_rows, forge_table
from tests.snapshot import conftest


def test_a_fresh_store_is_sound(published: tuple[Location, str]) -> None:
    assert verify_store(published[0]) == []


def test_any_changed_byte_is_found_and_its_file_named(published: tuple[Location, str]) -> None:
    store, _ = published
    paths = store.files()
    assert len(paths) == 7  # CURRENT, manifest, ledger, files, slices, volumes, previews
    for path in paths:
        sound = store.read(path)
        for place in {0, len(sound) // 2, len(sound) - 1}:
            damaged = bytearray(sound)
            damaged[place] ^= 1
            store.write(path, bytes(damaged))
            assert path in {finding.path for finding in verify_store(store)}, f"byte {place} of {path}"
        store.write(path, sound)
    assert verify_store(store) == []


def test_any_missing_file_is_found(published: tuple[Location, str]) -> None:
    store, _ = published
    for path in store.files():
        sound = store.read(path)
        Path(store.path(path)).unlink()
        findings = verify_store(store)
        assert findings, path
        if not path.endswith("manifest.json"):  # without it, it is CURRENT that names what is not there
            assert path in {finding.path for finding in findings}
        store.write(path, sound)


def test_a_swapped_file_is_found(published: tuple[Location, str]) -> None:
    """A sound file that the snapshot does not name, in the place of one that it names."""
    store, _ = published
    slices = next(path for path in store.files() if "/slices-" in path)
    Path(store.path(slices)).unlink()
    store.write_content_addressed(slices.rpartition("/")[0], "slices", ".parquet", b"something else")
    assert [(finding.path, finding.problem) for finding in verify_store(store)] == [(slices, "is missing")]


@pytest.mark.parametrize(
    ("forged", "problem"),
    [
        ({"volume_id": "stranger.nii.gz"}, "are of no slice of the shard, or twice: stranger.nii.gz"),
        ({"position": 99}, "are of no slice of the shard, or twice: v0.nii.gz, axial 99"),
        ({"plane": "sagittal"}, "are of no slice"),
        ({"volume_id": "v1.nii.gz"}, "1 previews are of no slice of the shard, or twice: v1.nii.gz"),
        ({"image": b"<script>"}, "1 previews cannot be shown"),
    ],
)
def test_previews_of_other_slices_are_found(
    forged: dict[str, Any], problem: str, tmp_path: Path, makers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def previews(embedded: list[Any]) -> list[dict[str, Any]]:
        first, *others = makers.previews(embedded)
        return [{**first, **forged}, *others]

    monkeypatch.setattr(conftest, "previews_of", previews)
    store = Location(tmp_path / "store")
    makers.publish(store, *makers.rows(2, 2))
    [finding] = verify_store(store)
    assert "/previews-" in finding.path
    assert problem in finding.problem


def test_foreign_files_are_named_and_leftovers_of_a_killed_writer_are_not(published: tuple[Location, str]) -> None:
    """B6, A23: by full name pattern."""
    store, _ = published
    mine = ["journal/2025.md", "notes.txt", "runs/events-0123456789abcdef.json"]
    for path in mine:
        store.write(path, b"mine")
    said: list[str] = []
    say_strangers(store, said.append)
    assert "holds 3 files that are not medret's, such as journal/2025.md" in said[0]
    store.write(f"embeddings/{'0' * 16}/.slices-{'0' * 16}.parquet.0123ab12.tmp", b"half")
    assert [finding.path for finding in verify_store(store)] == mine


def test_litter_is_passed_over_and_counted(published: tuple[Location, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A17."""
    store, snapshot_id = published
    litter = [".DS_Store", "@eaDir/CURRENT@SynoEAStream", "._CURRENT", "Thumbs.db", "desktop.ini", ".nfs00000a0012"]
    for number, name in enumerate(litter):
        store.write(f"{('', 'runs/', f'snapshots/{snapshot_id}/')[number % 3]}{name}", b"litter")
    assert verify_store(store) == []
    assert main(["verify", store.uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["litter"] == len(litter)
    assert main(["verify", store.uri]) == 0
    assert f"ignored {len(litter)} files" in capsys.readouterr().out


def test_no_store_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no store is there"):
        verify_store(Location(tmp_path / "nowhere"))


def test_a_file_that_goes_while_the_store_is_read_is_no_fault(
    published: tuple[Location, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = published
    files, gone = Location.files, f"runs/20260131T094500Z-{'0' * 16}.json"
    monkeypatch.setattr(Location, "files", lambda self, *below: [*files(self, *below), *([] if below else [gone])])
    assert verify_store(store) == []


def halved(data: bytes) -> bytes:
    table = read_parquet(data)
    at = table.schema.get_field_index("vector")
    half = pa.array((read_vectors(table) / 2).astype(np.float16).ravel())
    column = pa.FixedSizeListArray.from_arrays(half, type=table.schema.field(at).type)
    return parquet_bytes(table.set_column(at, "vector", column))


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda s: forge_rows(s, "ledger", lambda rows: rows[0].update(slices=4)), "do not match the ledger"),
        (lambda s: forge_manifest(s, lambda content: content["indices"][0].update(rows=7)), "an index has 7 rows"),
        (lambda s: forge_table(s, "tombstones", lambda table: table.slice(1)), "rows of an index can be found"),
        (
            lambda s: forge_rows(s, "files", lambda r: r.remove(next(x for x in r if x["kind"] == "volumes"))),
            "lacks files",
        ),
        (lambda s: forge_file(s, "volumes", halved), "not finite or not of unit length"),
    ],
)
def test_contents_that_disagree_are_found(
    history: SimpleNamespace, forge: Callable[[Location], Any], said: str
) -> None:
    forge(history.store)
    assert any(said in one.problem for one in verify_store(history.store)), verify_store(history.store)
