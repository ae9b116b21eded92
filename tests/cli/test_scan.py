"""`medret scan`: the first thing that a newcomer runs on an archive."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from medret.cli import main
from medret.cli.main import _parser
from medret.cli.scan import size_text
from tests.dicom_bytes import CT, MR, SR, instance, write_series

UID = "1.2.840.113619.2"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of everything: NIfTI, masks, DICOM of several kinds, a zip, and what lies about."""
    root = tmp_path / "archive"
    for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz", "labelsTr/liver_0.nii.gz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not read by a scan")
    write_series(root / "ct/a", f"{UID}.1", 4)
    write_series(root / "ct/b", f"{UID}.2", 3, "IM{:06}")
    write_series(root / "mixed", f"{UID}.3", 2)
    (root / "mixed/mr.dcm").write_bytes(instance(f"{UID}.4", sop_class=MR))
    (root / "mixed/report.dcm").write_bytes(instance(f"{UID}.5", sop_class=SR))
    (root / "scout").mkdir()
    (root / "scout/1.dcm").write_bytes(instance(f"{UID}.6", image_type="ORIGINAL\\PRIMARY\\LOCALIZER"))
    with zipfile.ZipFile(root / "packed.zip", "w") as file:
        file.writestr("in/1.dcm", instance(f"{UID}.7", sop_class=CT))
    for name in ("notes.TXT", "more/notes.txt", "table.csv", "README", ".DS_Store"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"text")
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    return root


def scan(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert main(["scan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_that_is_there_is_counted_once(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scan(capsys, archive)
    kinds = {(kind["kind"], kind["modality"]): (kind["volumes"], kind["objects"]) for kind in found["kinds"]}
    assert kinds == {
        ("nifti", None): (2, 2),
        ("dicom", "CT"): (3, 9),
        ("dicom", "MR"): (1, 1),
        ("packed", None): (1, 1),
    }
    left_out = {each["rule"]: each["objects"] for each in found["left_out"]}
    assert left_out == {"label_mask": 1, "not_an_image": 1, "localizer": 1, "hidden": 1, "not_a_volume": 5}
    assert found["suffixes"] == {".txt": 2, ".csv": 1, ".json": 1, "": 1}
    assert found["volumes"] == 7
    assert found["objects"] == sum(path.is_file() for path in archive.rglob("*"))
    examples = {each["rule"]: each["examples"] for each in found["left_out"]}
    assert examples["label_mask"] == ["labelsTr/liver_0.nii.gz"]
    assert examples["localizer"] == ["scout"]
    assert all(each["why"] != each["rule"] for each in found["left_out"])


def test_labels_say_where_they_come_from(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (archive.parent / "labels.csv").write_text("path,organ,site\nct/a,Liver,north\nct/b,Lung,north\nnowhere,Lung,x\n")
    found = scan(capsys, archive, "--labels", archive.parent / "labels.csv")
    labels = {label["name"]: label for label in found["labels"]}
    assert labels["organ"] == {
        "name": "organ", "volumes": 2, "values": 2, "frequent": {"Liver": 1, "Lung": 1}, "origins": {"table": 2},
    }  # fmt: skip
    assert labels["subject"]["origins"] == {"bids": 2}
    assert labels["subject"]["frequent"] == {}, "subjects may be names of patients"
    assert found["metadata"]["site"] == 2
    assert found["join"]["unmatched_rows"] == 1


def test_labels_in_tags_are_seen_already(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, patient in (("one", "P-7"), ("two", "P-7"), ("three", "ANONYMOUS")):
        (archive / name).mkdir()
        (archive / name / "1").write_bytes(instance(f"{UID}.{len(name)}{ord(name[0])}", patient=patient))
    labels = {label["name"]: label for label in scan(capsys, archive)["labels"]}
    assert (labels["subject"]["volumes"], labels["subject"]["values"]) == (4, 3)
    assert labels["subject"]["origins"] == {"dicom": 2, "bids": 2}
    assert labels["modality"]["frequent"]["CT"] == 6
    hidden = scan(capsys, archive, "--no-dicom-labels", "PatientID")
    assert {label["name"]: label for label in hidden["labels"]}["subject"]["origins"] == {"bids": 2}
    assert "--no-dicom-labels PatientID" in hidden["next"]


def test_the_next_command_takes_the_same_choice(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = ["--exclude", "ct/**", "--include-masks", "--storage-option", "anon=true", "--glob", "**"]
    found = scan(capsys, archive, *choice)
    assert found["volumes"] == 6
    command = shlex.split(found["next"])
    assert command[:4] == ["medret", "index", str(archive), "STORE"]
    given = _parser().parse_args(command[1:])
    assert (given.exclude, given.include_masks, given.pattern) == (["ct/**"], True, "**")
    assert given.storage_options == ["anon=true"]


def test_people_read_it_in_80_columns(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = archive / "/".join(["a folder with a rather long name"] * 4)
    deep.mkdir(parents=True)
    (deep / "case_seg.nii.gz").write_bytes(b"mask")
    monkeypatch.chdir(archive)
    assert main(["scan", "."]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert [line for line in lines[1:-1] if len(line) > 80] == []
    for words in ("DICOM series, CT", "NIfTI files", "localizer: ", ".txt 2, ", "subject, from bids 2"):
        assert words in out
    assert lines[-1] == "next: medret index . STORE"


def test_nothing_to_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert main(["scan", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "nothing that medret indexes" in out
    assert "next:" not in out
    assert scan(capsys, tmp_path)["next"] is None
    assert main(["scan", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_scan_needs_neither_models_nor_ray_nor_indices(archive: Path) -> None:
    code = (
        "import sys; from medret.cli import main; main(['scan', sys.argv[1], '--json']); "
        "print(*{'torch', 'ray', 'faiss', 'duckdb', 'pydicom'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(archive)], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def test_real_series(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scan(capsys, shared_data / "dicom")
    kinds = {(kind["kind"], kind["modality"]): kind["volumes"] for kind in found["kinds"]}
    assert kinds == {("dicom", "MR"): 6, ("dicom", "CT"): 1}


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB")]
)
def test_sizes_are_for_people(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text
