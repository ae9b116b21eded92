"""What runs do with DICOM series: the table "Again and again" of docs/operations.md, on a tree of 300 series."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medret.archive import list_archive
from medret.demo.phantoms import write_phantom
from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.pipeline.content_hashes import equal_samples, hash_all, resolve, sample_all, twins, with_checks
from medret.pipeline.plan import ACTIONS, Plan, make_plan
from medret.pipeline.read_stage import Content, _with_contents
from medret.pipeline.store_state import BaseSnapshot, StoreState, Target, known_rows, store_state
from medret.pipeline.stream import source_of
from medret.schemas import FILES, LEDGER, TOMBSTONES, VOLUME_LABELS
from medret.snapshot import Journal
from medret.storage import Location, StoredObject
from medret.volume import Limits, Part, VolumeSource, content_sha256, fetch_volume
from medret.volume.open import open_volume
from tests.dicom_bytes import instance, write_series
from tests.series_tree import write_phantom_series, write_tree

RECIPE = "aaaaaaaaaaaaaaaa"
SERIES = 300


class Runs:
    """Runs over an archive that embed nothing, but know what they would have embedded."""

    def __init__(self, archive: str | Path) -> None:
        self.archive, self.rows = str(archive), LEDGER.empty_table()

    def plan(self, **options: Any) -> Plan:
        """Plan a run, with all contents compared."""
        known = self.rows.select(["volume_id", "size_bytes", "etag", "mtime", "code"])
        listing = list_archive(self.archive, known=lambda: known, **options)
        base = BaseSnapshot("id", None, known_rows(self.rows), FILES.empty_table(), TOMBSTONES.empty_table())
        state: StoreState = store_state(base, Journal(LEDGER.empty_table(), FILES.empty_table(), ()))
        plan = make_plan(listing, VOLUME_LABELS.empty_table(), state, Target((RECIPE,), "judge"))
        plan = with_checks(plan, equal_samples(twins(plan), listing.items, sample_all))
        return resolve(plan, hash_all([step.item for step in plan.of("check")]))

    def run(self, **options: Any) -> Counter[str]:
        """Plan a run and keep what it would publish; returns the number of volumes per cause, and of those gone."""
        plan = self.plan(**options)
        rows = []
        for step in plan.of(*ACTIONS):
            item = step.item
            sha256 = step.content_sha256 or VolumeSource(item.uri, item.parts, item.names).sha256()
            rows.append(
                {"volume_id": item.volume_id, "uri": item.uri, "size_bytes": item.size_bytes, "etag": item.etag,
                 "mtime": item.mtime, "content_sha256": sha256, "status": "embedded", "slices": 1,
                 "shards": [(RECIPE, "one")], "judged_by": "judge"}
            )  # fmt: skip
        self.rows = pa.Table.from_pylist(rows, LEDGER)
        return Counter(plan.causes()) + Counter(gone=len(plan.gone))

    def ids(self) -> set[str]:
        return set(self.rows["volume_id"].to_pylist())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Path]]]:
    """300 series with NIfTI beside them."""
    pytest.importorskip("pydicom")
    root = tmp_path_factory.mktemp("tree")
    written = write_tree(root, SERIES)
    for number in range(10):
        write_phantom(root / f"p{number:03}/t1.nii.gz", "head_mri", number, (16, 16, 8))
    return root, written


def test_a_tree_of_300_series_changes(tree: tuple[Path, dict[str, list[Path]]]) -> None:
    root, written = tree
    runs = Runs(root)
    assert runs.run() == {"new": SERIES + 10}
    assert runs.ids() == written.keys() | {f"p{number:03}/t1.nii.gz" for number in range(10)}
    plan = runs.plan()
    assert (plan.idle, plan.causes(), plan.listing.series.num_rows) == (True, {"unchanged": SERIES + 10}, 0)

    series = iter(sorted(written))
    for path in written[next(series)]:  # touched
        os.utime(path, (1_600_000_000, 1_600_000_000))
    moved = root / next(series)  # renamed
    moved.rename(moved.with_name("another name"))
    copied = root / next(series)  # copied, with other times
    shutil.copytree(copied, root / "copies/one", copy_function=shutil.copy)
    removed = written[next(series)][3]  # one instance removed
    removed.unlink()
    last = written[next(series)][-1]  # one instance added
    last.with_name(f"z{last.name}").write_bytes(last.read_bytes())
    replaced = written[next(series)][0]  # one instance replaced by one of the same size
    data = bytearray(replaced.read_bytes())
    data[-1] ^= 1
    replaced.write_bytes(bytes(data))
    renamed = written[next(series)][0]  # one file of a series renamed
    renamed.rename(renamed.with_name("other" + renamed.name))
    gone = root / next(series)
    shutil.rmtree(gone)
    write_phantom_series(root / "p999/new", 999)
    assert runs.run() == {
        "unchanged": SERIES + 10 - 7, "touched": 2, "renamed": 2, "changed": 3, "new": 1, "gone": 2,
    }  # fmt: skip
    assert runs.run() == {"unchanged": SERIES + 10 + 1}


def test_a_folder_that_gets_a_second_series_keeps_the_vectors_of_the_first(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", "1.2.3", 5)
    write_series(tmp_path / "mr", "1.2.4", 5)
    runs = Runs(tmp_path)
    assert runs.run() == {"new": 2}
    write_series(tmp_path / "ct", "1.2.5", 2, first=6)
    assert runs.run() == {"unchanged": 1, "renamed": 1, "new": 1, "gone": 1}
    assert runs.ids() == {"ct/1.2.3", "ct/1.2.5", "mr"}
    assert runs.run() == {"unchanged": 3}
    write_series(tmp_path / "ct", "1.2.5", 1, first=8)  # to one of the two
    assert runs.run() == {"unchanged": 2, "changed": 1}
    for number in (6, 7, 8):
        (tmp_path / f"ct/{number:03}.dcm").unlink()
    assert runs.run() == {"unchanged": 1, "renamed": 1, "gone": 2}
    assert runs.ids() == {"ct", "mr"}


def test_series_that_are_equal_are_embedded_once(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.2.3", 5)
    write_series(tmp_path / "other", "1.2.9", 5)  # of the same size, with the same names
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    plan = Runs(tmp_path).plan()
    steps = {step.item.volume_id: (step.action, step.leader) for step in plan.of(*ACTIONS)}
    assert steps == {"a": ("embed", None), "b": ("copy", "a"), "other": ("embed", None)}


def read_all(plan: Plan) -> dict[str, Content]:
    """What the read stage gets of each volume."""
    rows = source_of(plan, plan.places([step.item.volume_id for step in plan.of("embed")]), plan.places([])).to_pylist()
    return {row["volume_id"]: content for row, content in _with_contents(rows, Limits())}


def test_the_read_stage_gets_the_parts_of_each_series_and_nothing_else(tmp_path: Path) -> None:
    write_series(tmp_path / "alone", "1.2.3", 3)
    write_series(tmp_path / "study", "1.2.4", 2)
    write_series(tmp_path / "study", "1.2.5", 2, first=3)
    (tmp_path / "study/notes.xyz").write_bytes(b"no DICOM")
    write_series(tmp_path, "1.2.6", 2, "root{}")
    plan = Runs(tmp_path).plan()
    found = {name: [part.name for part in parts] for name, parts in read_all(plan).items() if isinstance(parts, tuple)}
    assert found == {
        "alone": ["001.dcm", "002.dcm", "003.dcm"], "study/1.2.4": ["001.dcm", "002.dcm"],
        "study/1.2.5": ["003.dcm", "004.dcm"], "1.2.6": ["root1", "root2"],
    }  # fmt: skip
    hashes = {name: content_sha256(one) for name, one in read_all(plan).items() if isinstance(one, tuple)}
    assert hashes == hash_all([step.item for step in plan.of("embed")])


def refusal(content: Content) -> VolumeError:
    assert isinstance(content, VolumeError)
    return content


def test_a_folder_that_proves_mixed_when_read_is_refused_and_divided_by_the_next_run(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", "1.2.3", 5)
    write_series(tmp_path / "ct", "1.2.4", 1, "003x.dcm")
    runs = Runs(tmp_path)
    [(volume_id, content)] = read_all(runs.plan()).items()
    assert volume_id == "ct"
    assert isinstance(content, tuple)
    pytest.importorskip("pydicom")
    with pytest.raises(VolumeError, match=r"1\.2\.3.*1\.2\.4.*index again") as refused:
        open_volume(content, Limits())
    assert refused.value.code == QuarantineCode.MIXED_SERIES
    runs.run()
    code = pa.array([str(QuarantineCode.MIXED_SERIES)])
    runs.rows = runs.rows.set_column(LEDGER.get_field_index("code"), LEDGER.field("code"), code)
    assert set(read_all(runs.plan())) == {"ct/1.2.3", "ct/1.2.4"}


def test_a_series_is_the_one_that_it_was_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "ct", "1.2.3", 3)
    plan = Runs(tmp_path).plan()
    write_series(tmp_path / "ct", "1.2.3", 1, first=4)
    [content] = read_all(plan).values()
    assert isinstance(content, tuple)
    assert len(content) == 4  # as it is now
    (tmp_path / "ct/002.dcm").unlink()
    [content] = read_all(plan).values()
    assert isinstance(content, tuple)
    assert len(content) == 3
    whole, extra = StoredObject.read, iter(range(5, 100))

    def written_meanwhile(self: StoredObject, start: int | None = None, end: int | None = None) -> bytes:
        data = whole(self, start, end)
        (tmp_path / f"ct/{next(extra):03}.dcm").write_bytes(data)
        return data

    monkeypatch.setattr(StoredObject, "read", written_meanwhile)
    [content] = read_all(plan).values()
    assert refusal(content).code == QuarantineCode.CHANGED_WHILE_READING


def test_what_cannot_be_read_of_a_series_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", "1.2.3", 3)
    (tmp_path / "ct/002a.dcm").symlink_to("nowhere")
    [content] = read_all(Runs(tmp_path).plan()).values()
    assert refusal(content).code == QuarantineCode.UNREADABLE
    assert refusal(content).reason.startswith("002a.dcm: FileNotFoundError")
    shutil.rmtree(tmp_path / "ct")
    write_series(tmp_path / "ct", "1.2.3", 3)
    plan = Runs(tmp_path).plan()
    shutil.rmtree(tmp_path / "ct")
    [content] = read_all(plan).values()
    assert refusal(content).code == QuarantineCode.UNREADABLE


def test_a_series_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "ct", "1.2.3", 3)
    os.truncate(tmp_path / "ct/002.dcm", 5 * 2**30)
    plan = Runs(tmp_path).plan()
    monkeypatch.setattr(StoredObject, "read", lambda *_: pytest.fail("read"))
    [content] = read_all(plan).values()
    assert refusal(content).code == QuarantineCode.TOO_LARGE
    assert "its 3 objects have 53687" in refusal(content).reason


@pytest.mark.s3
def test_series_on_s3(s3: Callable[[str], str]) -> None:
    """Etags are those of the objects: a copy has the same identity, and the content is compared all the same."""
    archive = s3("series")
    store = Location(f"{archive}/data")
    for number in range(5):
        for folder, uid in (("p1/ct", "1.2.3"), ("p2/mixed", ["1.2.4", "1.2.5"][number > 2])):
            store.write(f"{folder}/{number:03}.dcm", instance(uid, number))
    store.write("p1/t1.nii", b"nifti")
    runs = Runs(store.uri)
    plan = runs.plan()
    parts = read_all(plan)
    assert {name: len(content) for name, content in parts.items() if isinstance(content, tuple)} == {
        "p1/ct": 5, "p2/mixed/1.2.4": 3, "p2/mixed/1.2.5": 2,
    }  # fmt: skip
    assert isinstance(parts["p1/ct"], tuple)
    assert parts["p1/ct"][1] == Part("001.dcm", instance("1.2.3", 1))
    for volume_id, content in parts.items():  # the URI alone says what to read
        assert fetch_volume(f"{store.uri}/{volume_id}", Limits()) == content
    with pytest.raises(UsageError, match="holds 2 DICOM series"):
        fetch_volume(f"{store.uri}/p2/mixed", Limits())
    for nothing in ("p2/mixed/1.2.9", "p2", "p9", "p9/1.2.4"):
        with pytest.raises(FileNotFoundError):
            fetch_volume(f"{store.uri}/{nothing}", Limits())
    assert runs.run() == {"new": 4}
    assert runs.run() == {"unchanged": 4}
    for number in range(5):
        store.write(f"p3/copy/{number:03}.dcm", instance("1.2.3", number))
    store.write("p2/mixed/005.dcm", instance("1.2.5", 9))
    store.write("p1/ct/004.dcm", instance("1.2.3", 4))  # written again, as it was
    assert runs.run() == {"unchanged": 3, "renamed": 1, "changed": 1}
    etags = dict(zip(runs.rows["volume_id"].to_pylist(), runs.rows["etag"].to_pylist(), strict=True))
    assert etags["p1/ct"] == etags["p3/copy"]
    assert etags["p1/ct"].startswith("5-")
