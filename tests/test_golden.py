"""A store that an earlier medret wrote: it is read as before, and written as before (tests/golden/make.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medret import open_snapshot
from medret.cli import main
from medret.pipeline.gates import lowest_cosine
from medret.snapshot import current_id, snapshot_ids
from medret.storage import Location
from tests.golden.make import FIRST, QUERIES, SECOND, answers, files, index, machine
from tests.pipeline.conftest import read_store

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the archive and its store."""
    return shutil.copytree(GOLDEN, tmp_path / "golden")


def test_it_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(GOLDEN / "store")]) == 0
    assert len(snapshot_ids(Location(GOLDEN / "store"))) == 2
    assert open_snapshot(GOLDEN / "store").manifest.tables_of("tombstones"), "the second snapshot has some"


def test_it_gives_the_same_hits() -> None:
    for name, hits in answers(GOLDEN / "store").items():
        expected = EXPECTED["answers"][name]
        assert [volume_id for volume_id, _ in hits] == [volume_id for volume_id, _ in expected], name
        assert [score for _, score in hits] == pytest.approx([score for _, score in expected], abs=1e-4), name


def test_a_volume_is_forgotten_and_graphs_keep_what_their_nodes_hold(golden: Path) -> None:
    """They are built again by the settings of their snapshot, which name no codes: float16."""
    store, gone = golden / "store", "chest_ct/1.nii.gz"
    before = answers(store)
    assert main(["forget", str(store), gone]) == 0
    assert main(["verify", str(store)]) == 0
    marks = {path.read_bytes()[:4] for path in store.rglob("hnsw-*.faiss")}
    assert marks == {b"IHNs"}
    after = open_snapshot(store).search(QUERIES[0], 5, index="hnsw")
    kept = [name for name, _ in before[f"{QUERIES[0]} volume hnsw"] if name != gone]
    assert [hit.volume_id for hit in after][: len(kept)] == kept


@pytest.mark.ray
def test_a_run_over_a_copy_embeds_nothing_and_the_next_is_idle(golden: Path, ray_session: None) -> None:
    """The copy has other times and another address: it is compared by content, and published once."""
    store, before = Location(golden / "store"), files(golden / "store")
    assert index(golden, golden / "store", *SECOND) == 4, "one is in quarantine"
    counts = open_snapshot(golden / "store").manifest.counts
    assert (counts.embedded, counts.unchanged, counts.quarantined) == (0, 7, 1)
    assert files(golden / "store") == before
    published = current_id(store)
    assert index(golden, golden / "store", *SECOND) == 0
    assert current_id(store) == published


@pytest.mark.ray
def test_the_same_archive_gives_the_same_files(golden: Path, ray_session: None) -> None:
    """Where another processor or library rounds otherwise, the same vectors but for that."""
    for options in (FIRST, SECOND):
        index(golden, golden / "new", *options)
    old, new = (read_store(golden / name).vectors("timm:test_vit") for name in ("store", "new"))
    assert old.keys() == new.keys()
    assert min(lowest_cosine(new[volume_id], old[volume_id]) for volume_id in old) > 0.999
    if machine() != EXPECTED["machine"]:
        pytest.skip("another processor, or another version of a library, gives other bits")
    assert _comparable(golden / "new") == _comparable(golden / "store")


def _comparable(store: Path) -> set[str]:
    """The files of a store but those of LSH, which held their rotation when it was written, and previews, new since."""
    kept = {name for name in files(store) if "/lsh-" not in name and "/previews-" not in name}
    assert 0 < len(kept) < len(files(store))
    return kept
