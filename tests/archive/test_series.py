"""Series in folders: what is a volume, what is skipped, and how many objects are looked at to find out."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medret.archive import Listing, grouping, list_archive, looks
from medret.archive.looks import find_series
from medret.archive.series import Whole, is_candidate, suffix_of
from medret.errors import QuarantineCode, UnreachableError, UsageError
from medret.storage import Identity, StoredObject
from tests.dicom_bytes import SR, instance, write_series

A, B, C = "1.2.3.1", "1.2.3.2", "1.2.3.3"


def series_of(listing: Listing) -> dict[str, tuple[int | None, list[str] | None]]:
    columns = (listing.objects[name].to_pylist() for name in ("volume_id", "parts", "names"))
    return {volume_id: (parts, names) for volume_id, parts, names in zip(*columns, strict=True)}


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that are looked at."""
    uris: list[str] = []
    look = looks.head_at

    def spied(uri: str) -> Any:
        uris.append(uri)
        return look(uri)

    monkeypatch.setattr(looks, "head_at", spied)
    monkeypatch.setattr(grouping, "head_at", spied)
    return uris


def known_from(listing: Listing, **codes: str) -> Callable[[], pa.Table]:
    objects = listing.objects.select(["volume_id", "size_bytes", "etag", "mtime"])
    code = pa.array([codes.get(volume_id) for volume_id in objects["volume_id"].to_pylist()], pa.string())
    return lambda: objects.append_column("code", code)


def test_a_folder_with_one_series_is_that_volume_and_two_looks_tell(tmp_path: Path, looked: list[str]) -> None:
    write_series(tmp_path / "p1/ct", A, 20)
    write_series(tmp_path / "p1/mr", B, 10, "IM{:04}")
    (tmp_path / "p1/t1.nii.gz").write_bytes(b"nifti")
    listing = list_archive(str(tmp_path))
    assert series_of(listing) == {"p1/ct": (20, None), "p1/mr": (10, None), "p1/t1.nii.gz": (None, None)}
    assert (len(looked), listing.skipped, listing.listed) == (4, {}, 3)
    assert listing.series.select(["volume_id", "modality", "instances"]).to_pylist() == [
        {"volume_id": "p1/ct", "modality": "CT", "instances": 20},
        {"volume_id": "p1/mr", "modality": "CT", "instances": 10},
    ]
    first, *_ = listing.items()
    assert (first.uri, first.size_bytes) == (
        f"{tmp_path}/p1/ct",
        sum(p.stat().st_size for p in tmp_path.glob("p1/ct/*")),
    )


def test_without_a_candidate_nothing_is_looked_at_and_the_ledger_is_not_asked_for(
    tmp_path: Path, looked: list[str]
) -> None:
    for name in (
        "a.nii.gz",
        "a.json",
        "README",
        "dataset_description.json",
        "participants.tsv",
        "sub-1/x.bval",
        "CHANGES",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = list_archive(str(tmp_path), known=lambda: pytest.fail("asked"))
    assert (list(series_of(listing)), looked, listing.skipped) == (["a.nii.gz"], [], {"not_a_volume": 6})


def test_a_folder_with_several_series_gives_each_by_its_uid(tmp_path: Path, looked: list[str]) -> None:
    for number in range(12):
        (tmp_path / "study").mkdir(exist_ok=True)
        (tmp_path / f"study/{number:02}").write_bytes(instance([A, B, C][number % 3], number))
    listing = list_archive(str(tmp_path))
    assert series_of(listing) == {
        f"study/{A}": (4, ["00", "03", "06", "09"]),
        f"study/{B}": (4, ["01", "04", "07", "10"]),
        f"study/{C}": (4, ["02", "05", "08", "11"]),
    }
    assert len(looked) == 14
    for volume_id, (_, names) in series_of(listing).items():
        assert find_series(f"{tmp_path}/{volume_id}")[0] == f"{tmp_path}/study"
        assert list(find_series(f"{tmp_path}/{volume_id}")[1]) == names
    with pytest.raises(UsageError, match=rf"holds 3 DICOM series; name one of them: .*study/{A}"):
        find_series(f"{tmp_path}/study")
    with pytest.raises(FileNotFoundError):
        find_series(f"{tmp_path}/study/1.2.3.9")


def test_series_in_the_root_are_named_by_their_uids(tmp_path: Path) -> None:
    write_series(tmp_path, A, 3)
    assert series_of(list_archive(str(tmp_path))) == {A: (3, ["001.dcm", "002.dcm", "003.dcm"])}
    assert list(find_series(f"{tmp_path}/{A}")[1]) == ["001.dcm", "002.dcm", "003.dcm"]
    write_series(tmp_path, B, 1, "x")
    assert series_of(list_archive(str(tmp_path))) == {A: (3, ["001.dcm", "002.dcm", "003.dcm"]), B: (1, ["x"])}


def test_what_is_no_image_of_a_volume_is_counted_object_by_object(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", A, 4)
    (tmp_path / "ct/000.dcm").write_bytes(instance(B, image_type="ORIGINAL\\PRIMARY\\LOCALIZER"))
    (tmp_path / "ct/report").write_bytes(instance(C, sop_class=SR))
    (tmp_path / "ct/DICOMDIR").write_bytes(b"not read")
    (tmp_path / "ct/notes.xyz").write_bytes(b"no DICOM")
    (tmp_path / "reports").mkdir()
    for number in range(5):
        (tmp_path / f"reports/{number}.dcm").write_bytes(instance(C, number, sop_class=SR))
    listing = list_archive(str(tmp_path))
    assert series_of(listing) == {"ct": (4, ["001.dcm", "002.dcm", "003.dcm", "004.dcm"])}
    assert listing.skipped == {"localizer": 1, "not_an_image": 7, "not_a_volume": 1}
    assert listing.listed == 1 + 9
    assert list(find_series(f"{tmp_path}/ct")[1]) == ["001.dcm", "002.dcm", "003.dcm", "004.dcm"]


def test_a_series_does_not_take_the_name_of_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "study", A, 3)
    write_series(tmp_path / "study", B, 2, first=4)
    write_series(tmp_path / "study" / A, A, 4)
    listing = list_archive(str(tmp_path))
    assert series_of(listing) == {f"study/{A}": (4, None), f"study/{B}": (2, ["004.dcm", "005.dcm"])}
    assert (listing.skipped, listing.listed) == ({"name_taken": 3}, 5)


def test_what_is_skipped_hides_nothing(tmp_path: Path) -> None:
    """A study in one folder, whose first and last objects are reports."""
    write_series(tmp_path / "study", A, 4)
    for name in ("000.dcm", "999.dcm"):
        (tmp_path / "study" / name).write_bytes(instance(C, sop_class=SR))
    listing = list_archive(str(tmp_path))
    assert series_of(listing) == {"study": (4, ["001.dcm", "002.dcm", "003.dcm", "004.dcm"])}
    assert listing.skipped == {"not_an_image": 2}


def test_other_files_beside_a_series_cost_two_looks_per_suffix(tmp_path: Path, looked: list[str]) -> None:
    write_series(tmp_path / "ct", A, 30)
    for number in range(30):
        (tmp_path / f"ct/{number}.preview").write_bytes(b"other")
    listing = list_archive(str(tmp_path))
    assert (listing.skipped, len(looked)) == ({"not_a_volume": 30}, 4)
    assert series_of(listing)["ct"] == (30, [f"{number:03}.dcm" for number in range(1, 31)])


def test_damaged_objects_stay_with_the_series_of_their_folder_and_stand_alone_among_several(tmp_path: Path) -> None:
    write_series(tmp_path / "one", A, 3)
    (tmp_path / "one/000.dcm").write_bytes(instance(A)[:140])
    write_series(tmp_path / "two", A, 2)
    write_series(tmp_path / "two", B, 2, first=3)
    (tmp_path / "two/000.dcm").write_bytes(instance(A)[:140])
    (tmp_path / "two/nothing.dcm").symlink_to("nowhere")
    names = {name: names for name, (_, names) in series_of(list_archive(str(tmp_path))).items()}
    assert names == {
        "one": None, f"two/{A}": ["001.dcm", "002.dcm"], f"two/{B}": ["003.dcm", "004.dcm"],
        "two/000.dcm": None, "two/nothing.dcm": None,
    }  # fmt: skip


def test_what_was_meant_to_be_an_instance_is_a_part_and_a_text_is_not(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", A, 3, "IM{}")
    (tmp_path / "ct/IM0").write_bytes(b"")  # a copy that broke off
    (tmp_path / "ct/IM9").write_bytes(bytes(200))
    (tmp_path / "ct/ZZ").write_bytes(b"written by the export tool")
    (tmp_path / "ct/thumbnail.cache").write_bytes(bytes(100))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/1.dcm").write_bytes(b"")
    (tmp_path / "empty/core").write_bytes(bytes(100))
    listing = list_archive(str(tmp_path))
    assert series_of(listing) == {"ct": (5, ["IM0", "IM1", "IM2", "IM3", "IM9"]), "empty": (1, ["1.dcm"])}
    assert listing.skipped == {"not_a_volume": 3}


def test_a_folder_of_the_live_snapshot_is_not_looked_at_again(tmp_path: Path, looked: list[str]) -> None:
    write_series(tmp_path / "one", A, 5)
    write_series(tmp_path / "mixed", A, 5)
    write_series(tmp_path / "mixed", B, 5, first=6)
    write_series(tmp_path / "changes", C, 5)
    before = list_archive(str(tmp_path))
    looked.clear()
    again = list_archive(str(tmp_path), known=known_from(before))
    assert again.objects.drop(["names"]).equals(before.objects.drop(["names"]))
    assert (looked, again.series.num_rows) == ([], 0)
    write_series(tmp_path / "changes", C, 1, first=6)
    assert series_of(list_archive(str(tmp_path), known=known_from(before)))["changes"] == (6, None)
    assert len(looked) == 2


def test_a_folder_that_proved_to_be_mixed_is_divided_in_the_next_run(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", A, 5)
    write_series(tmp_path / "ct", B, 1, "003x.dcm")
    before = list_archive(str(tmp_path))
    assert series_of(before) == {"ct": (6, None)}  # the first and the last are of one series
    assert list(find_series(f"{tmp_path}/ct/{B}")[1]) == ["003x.dcm"]
    after = list_archive(str(tmp_path), known=known_from(before, ct=QuarantineCode.MIXED_SERIES))
    assert {name: parts for name, (parts, _) in series_of(after).items()} == {f"ct/{A}": 5, f"ct/{B}": 1}


def test_globs_match_instances_and_their_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "p1/ct", A, 3)
    write_series(tmp_path / "p1/mr", B, 2, "IM{}")
    write_series(tmp_path / "p2/ct", C, 2)
    write_series(tmp_path / "p2/ct", B, 2, first=3)
    for pattern, exclude, expected in (
        ("*.dcm", [], ["p1/ct", f"p2/ct/{B}", f"p2/ct/{C}"]),
        ("p1/*", [], ["p1/ct", "p1/mr"]),
        ("p1/**", [], ["p1/ct", "p1/mr"]),
        ("*.nii.gz", [], []),
        (None, ["p2/ct", "p1/mr"], ["p1/ct"]),
        (None, ["ct"], ["p1/mr"]),
        (None, [f"p2/ct/{B}"], ["p1/ct", "p1/mr", f"p2/ct/{C}"]),
        (None, ["00[34].dcm"], ["p1/ct", "p1/mr", "p2/ct"]),
    ):
        listing = list_archive(str(tmp_path), pattern, exclude=exclude)
        assert sorted(series_of(listing)) == expected, (pattern, exclude)
        parts = [parts or 1 for parts, _ in series_of(listing).values()]
        assert sum(parts) + sum(listing.skipped.values()) == 9
    assert series_of(list_archive(str(tmp_path), exclude=["003.dcm"]))["p1/ct"] == (2, ["001.dcm", "002.dcm"])


def test_zips_and_tars_are_volumes_if_their_first_members_are_images(tmp_path: Path, looked: list[str]) -> None:
    members = {"README": b"hello", "s/1": instance(A, 1), "s/2": instance(A, 2)}
    for name, content in {"ct": members, "other": {"a.txt": b"x"}, "sr": {"1": instance(B, sop_class=SR)}}.items():
        for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(tmp_path / f"{name}{compression}.zip", "w", compression) as packed:
                for path, data in content.items():
                    packed.writestr(path, data)
        for suffix, mode in {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz"}.items():
            with tarfile.open(tmp_path / f"{name}{suffix}", mode) as tar:  # type: ignore[call-overload]
                for path, data in content.items():
                    source = tmp_path / "source"
                    source.write_bytes(data)
                    tar.add(source, path)
                    source.unlink()
    (tmp_path / "damaged.zip").write_bytes((tmp_path / "ct8.zip").read_bytes()[:-40])
    (tmp_path / "empty.tar").write_bytes(b"")
    listing = list_archive(str(tmp_path))
    assert series_of(listing) == dict.fromkeys(["ct.tar", "ct.tar.gz", "ct.tgz", "ct0.zip", "ct8.zip"], (None, None))
    assert listing.skipped == {"not_a_volume": 7, "not_an_image": 5}
    looked.clear()
    assert series_of(list_archive(str(tmp_path), known=known_from(listing))) == series_of(listing)
    assert len(looked) == 0


def test_a_large_zip_is_read_in_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as packed:
        for number in range(50):
            packed.writestr(str(number), instance(A, number) + random.Random(number).randbytes(200_000))
    read = []
    original = StoredObject.read

    def spied(self: Any, start: int | None = None, end: int | None = None) -> bytes:
        data: bytes = original(self, start, end)
        read.append(len(data))
        return data

    monkeypatch.setattr(StoredObject, "read", spied)
    assert list(series_of(list_archive(str(tmp_path)))) == ["ct.zip"]
    assert (len(read) < 8, sum(read) < 500_000) == (True, True)


def test_a_single_dicom_file_is_an_archive_of_one(tmp_path: Path) -> None:
    (tmp_path / "enhanced").write_bytes(instance(A))
    assert series_of(list_archive(str(tmp_path / "enhanced"))) == {"enhanced": (None, None)}


def test_objects_that_cannot_be_read_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: list[str]
) -> None:
    write_series(tmp_path / "ct", A, 3)
    write_series(tmp_path / "im", A, 3, "IM{}")
    for error in (PermissionError(13, "no"), FileNotFoundError(2, "gone"), OSError(5, "I/O error")):

        def refuse(*_: object, error: OSError = error) -> bytes:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(StoredObject, "read", refuse)
            listing = list_archive(str(tmp_path))
        assert series_of(listing) == {"ct": (3, None)}
        assert listing.skipped == {"not_a_volume": 3}


def test_a_store_that_stops_answering_ends_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"memory://archive-{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    for number in range(3):
        fs.pipe_file(f"{root}/ct/{number}", instance(A, number))
    assert series_of(list_archive(root)) == {"ct": (3, None)}
    monkeypatch.setattr(StoredObject, "read", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer")))
    with pytest.raises(UnreachableError, match="no answer"):
        list_archive(root)


def test_the_identity_follows_names_and_versions_of_the_parts_and_nothing_else(tmp_path: Path) -> None:
    write_series(tmp_path / "a/ct", A, 4)
    before = list_archive(str(tmp_path)).objects.to_pylist()[0]
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "a/ct", tmp_path / "b/ct2")
    moved = list_archive(str(tmp_path)).objects.to_pylist()[0]
    assert (moved["volume_id"], moved["etag"], moved["mtime"]) == ("b/ct2", before["etag"], before["mtime"])
    os.utime(tmp_path / "b/ct2/002.dcm", (1, 1))
    assert list_archive(str(tmp_path)).objects["etag"][0].as_py() != before["etag"]
    assert before["etag"].startswith("W/4-")


parts_ = st.dictionaries(
    st.text("abc.0", min_size=1, max_size=4),
    st.builds(Identity, st.integers(0, 9), st.sampled_from([None, "x", "y"]), st.sampled_from([None, "2020", "2021"])),
    min_size=1,
)


@given(parts_, st.data())
def test_wholes_do_not_depend_on_order_add_up_and_survive_a_ledger(
    parts: dict[str, Identity], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(list(parts)))
    cut = data.draw(st.integers(0, len(shuffled)))
    whole = Whole.of(parts)
    assert Whole.of(parts, shuffled) == whole
    assert Whole.of(parts, shuffled[:cut]) + Whole.of(parts, shuffled[cut:]) == whole
    assert Whole.parse(whole.identity()) == whole
    assert Whole.parse(Identity(1, "9b2cf535f27731c974343645a3985328-2", None)) is None
    name = shuffled[0]
    changed = parts | {name: Identity(parts[name].size_bytes + 1, parts[name].etag, parts[name].mtime)}
    assert not Whole.of(changed).is_same(whole)
    assert not Whole.of(parts, shuffled[1:]).is_same(whole)


CANDIDATES = (
    "IM0001",
    "1.dcm",
    "1.2.840.113619.2.1",
    "MR.1.2.3",
    "a.IMA",
    "i1.MRDCM.1",
    "x.dicom",
    "a b.dcm",
    "00000001",
    "x.v2",
)
OTHERS = (".x", "._1.dcm", "a.nii", "a.nii.gz", "x.json", "x.TXT", "a.tar.gz", "a.zip", "README", "LICENSE", "DICOMDIR",
          "x.csv", "Thumbs.db", "x.dcm~", "x.png", "", "a.bval", "VERSION", "x.dcm.gz", "x.dcm.md5",
          "x.dcm.part", "viewer.exe")  # fmt: skip


def test_names_that_may_be_those_of_instances() -> None:
    assert [name for name in CANDIDATES if not is_candidate(name)] == []
    assert [name for name in OTHERS if name and is_candidate(name)] == []
    assert [suffix_of(name) for name in ("a.DCM", "1.2.3", "IM1", "x.IMA", "a.b.c1")] == [".dcm", "", "", ".ima", ".c1"]


def test_a_listing_and_a_folder_agree_on_names(tmp_path: Path) -> None:
    for name in (*CANDIDATES, *OTHERS):
        if name:
            (tmp_path / "f").mkdir(exist_ok=True)
            (tmp_path / "f" / name).write_bytes(instance(A))
    (tmp_path / "f/one.more").write_bytes(b"no DICOM")  # so that the names are listed
    names = series_of(list_archive(str(tmp_path)))["f"][1]
    assert names == sorted(CANDIDATES) == list(find_series(f"{tmp_path}/f")[1])


def test_a_folder_of_several_series_is_looked_at_whole_when_it_changes(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", A, 5)
    write_series(tmp_path / "ct", B, 1, "003x.dcm")  # the ends of the folder do not show it
    mixed = list_archive(str(tmp_path))
    divided = list_archive(str(tmp_path), known=known_from(mixed, ct=QuarantineCode.MIXED_SERIES))
    write_series(tmp_path / "ct", A, 1, first=6)
    after = series_of(list_archive(str(tmp_path), known=known_from(divided)))
    assert {name: parts for name, (parts, _) in after.items()} == {f"ct/{A}": 6, f"ct/{B}": 1}


def test_a_zip_is_what_its_images_are_and_stays_while_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as packed:
        packed.writestr("0", instance(B, image_type="ORIGINAL\\PRIMARY\\LOCALIZER"))
        packed.writestr("1", instance(C, sop_class=SR))
        packed.writestr("2", instance(A))
    assert series_of(list_archive(str(tmp_path))) == {"ct.zip": (None, None)}

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "no")

    monkeypatch.setattr(StoredObject, "read", refuse)
    assert series_of(list_archive(str(tmp_path))) == {"ct.zip": (None, None)}
