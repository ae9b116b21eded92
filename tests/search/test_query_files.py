"""Queries that are DICOM: folders, series in folders, zips, lists of files; and what is said where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medret.cli import main
from medret.errors import NotFoundError, UsageError
from medret.search import open_snapshot
from medret.search.query_files import is_file, read_files, read_volume_query
from medret.volume import Part
from tests.dicom_bytes import MR, instance, write_series

UID = "1.2.840.113619.2"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_series(tmp_path / "alone", f"{UID}.1", 3)
    write_series(tmp_path / "mixed", f"{UID}.2", 2)
    (tmp_path / "mixed/mr").write_bytes(instance(f"{UID}.3", sop_class=MR))
    (tmp_path / "nifti").mkdir()
    for name in ("a.nii.gz", "b.nii"):
        (tmp_path / "nifti" / name).write_bytes(b"volume")
    (tmp_path / "study").mkdir()
    write_series(tmp_path / "study/1", f"{UID}.4", 2)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    return tmp_path


def names(content: Any) -> list[str]:
    assert isinstance(content, tuple)
    assert all(isinstance(part, Part) for part in content)
    return sorted(part.name for part in content)


def test_a_folder_and_a_series_in_a_folder_are_read(tree: Path) -> None:
    assert names(read_volume_query(str(tree / "alone"))) == ["001.dcm", "002.dcm", "003.dcm"]
    assert names(read_volume_query(f"{tree}/mixed/{UID}.2")) == ["001.dcm", "002.dcm"]
    assert names(read_volume_query(f"{tree}/mixed/{UID}.3")) == ["mr"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "mixed",
            rf"holds 2 volumes; give one of them: \S*/mixed/{UID}\.2 \(CT, 2 instances\), \S*/mixed/{UID}\.3 \(MR",
        ),
        ("nifti", r"holds 2 volumes; give one of them: \S*/nifti/a\.nii\.gz, \S*/nifti/b\.nii$"),
        ("study", r"holds 1 volume; give it: \S*/study/1 \(CT, 2 instances\)$"),
        ("text", r"holds no DICOM series and no NIfTI file \(not_a_volume 1\)"),
        ("empty", r"the folder is empty"),
        (f"mixed/{UID}.9", r"no such file, folder or series"),
        ("nowhere", r"no such file, folder or series"),
    ],
)
def test_what_is_not_one_series_is_explained(tree: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        read_volume_query(str(tree / name))
    assert str(raised.value).startswith(f"query {tree}/{name}")
    assert "\n" not in str(raised.value)


def test_a_list_of_files_is_one_series(tree: Path) -> None:
    files = sorted((tree / "alone").iterdir(), reverse=True)
    assert names(read_files(files)) == ["001.dcm", "002.dcm", "003.dcm"]
    assert read_files([tree / "nifti/a.nii.gz"][:1]) == b"volume"
    for wrong in ([], [files[0], 3], [None]):
        with pytest.raises(UsageError, match="does not hold paths or URIs alone"):
            read_files(wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match=re.escape(f"query {tree}/gone: no such file")):
        read_files([files[0], tree / "gone"])


def test_files_folders_and_series_are_told_from_volumes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for text in ("alone", f"mixed/{UID}.2", f"mixed/{UID}.9", "s3://bucket/folder", f"{UID}.7"):
        assert is_file(text)
    assert not is_file("patient7/ct")
    assert not is_file(f"patient7/{UID}.2")


def test_a_uid_that_the_snapshot_has_is_its_volume(
    store_maker: Callable[..., Any], volume_maker: Callable[..., Any], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not a series that the folder on this machine does not have."""
    monkeypatch.chdir(tree)
    first, *others = volume_maker(3)
    series = replace(first, volume_id=f"synthetic/{UID}")
    made = open_snapshot(store_maker(tree / "store", (series, *others)).uri)
    (tree / "synthetic").mkdir()
    assert made.search(f"synthetic/{UID}", 1)[0].volume_id == f"synthetic/{UID}"
    with pytest.raises(UsageError, match="no such file, folder or series"):
        made.search(f"synthetic/{UID}.8", 1)


def test_several_instances_are_no_several_queries(
    tree: Path, capsys: pytest.CaptureFixture[str], made_store: Any
) -> None:
    files = [str(path) for path in sorted((tree / "alone").iterdir())]
    assert main(["search", made_store.uri, *files]) == 2
    error = capsys.readouterr().err
    assert f"3 of the queries, such as {files[0]}, are instances of one DICOM series" in error
    assert f"give their folder, {tree}/alone" in error
