"""An archive that brings its labels is indexed and evaluated by subject, without a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medret.cli import main
from medret.demo.phantoms import write_phantom
from tests.series_tree import write_phantom_series

pytestmark = pytest.mark.ray

OPTIONS = (
    "--model", "timm:test_vit", "--weights", "timm:test_vit=random", "--slices", "uniform:2", "--device", "cpu",
    "--precision", "fp32", "--actors", "1",
)  # fmt: skip
KINDS = {"anat": ("T1w", "head_mri"), "ct": ("ct", "chest_ct")}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BIDS data set of three subjects and two sessions, with derivatives, and a DICOM series beside it."""
    folder = tmp_path_factory.mktemp("bids") / "archive"
    for subject in ("01", "02", "03"):
        for session in ("1", "2"):
            for datatype, (suffix, kind) in KINDS.items():
                start = f"sub-{subject}/ses-{session}/{datatype}/sub-{subject}_ses-{session}"
                seed = 10 * int(subject) + int(session)
                write_phantom(folder / f"{start}_{suffix}.nii.gz", kind, seed, (16, 14, 10))
    write_phantom(folder / "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "head_mri", 1, (16, 14, 10))
    (folder / "dataset_description.json").write_text('{"Name": "phantoms", "BIDSVersion": "1.10.0"}')
    (folder / "participants.tsv").write_text("participant_id\tage\nsub-01\t61\nsub-02\t44\nsub-03\tn/a\n")
    write_phantom_series(folder / "dicom" / "s1", 1)
    return folder


@pytest.fixture(scope="module")
def run(archive: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`run(command, *options)`: what a command on the archive and its store prints as JSON."""
    store = tmp_path_factory.mktemp("store")
    places = {"index": (archive, store), "plan": (archive, store), "evaluate": (store,)}

    def call(command: str, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
        own = OPTIONS if command in ("index", "plan") else ()
        assert main([command, *map(str, places[command]), *own, *options, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    call.store = store  # type: ignore[attr-defined]
    return call


def test_bids_and_dicom_bring_their_labels(
    run: Callable[..., Any], opened: Callable[..., SimpleNamespace], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run("index", capsys)
    assert (outcome["counts"]["embedded"], outcome["skipped"]["derivatives"]) == (13, 1)
    labels = outcome["labels"]
    assert (labels["matched"], labels["from_bids"], labels["from_dicom"], labels["unlabelled_volumes"]) == (
        13,
        12,
        1,
        0,
    )
    rows = opened(run.store).ledger  # type: ignore[attr-defined]
    scan = rows["sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"]
    assert (scan["subject"], scan["modality"], scan["found"]) == ("01", "MRI", [])
    assert dict(scan["metadata"]) == {"session": "2", "datatype": "anat", "suffix": "T1w", "age": "61"}
    series = rows["dicom/s1"]
    assert (series["subject"], series["modality"], series["body_region"]) == ("P000", "CT", "Chest")
    assert dict(series["metadata"])["StudyDate"] == "20200102"
    assert set(dict(series["origins"]).values()) == {"dicom"}
    assert run("index", capsys)["published"] is False


def test_evaluation_by_subject_without_a_table(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = run("evaluate", capsys, "--exclude", "subject", "--index", "exact", "--mode", "volume")
    rows = [row for row in found["rows"] if (row["exclude"], row["level"]) == ("subject", "modality")]
    assert {row["n"] for row in rows if row["class"] == "micro"} == {13}


def test_tags_that_are_hidden_vanish_without_embedding_again(
    run: Callable[..., Any], opened: Callable[..., SimpleNamespace], capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = ("--no-dicom-labels", "PatientID,StudyDate")
    assert run("plan", capsys, *hidden)["up_to_date"] is False
    outcome = run("index", capsys, *hidden)
    assert (outcome["published"], outcome["counts"]["embedded"], outcome["counts"]["unchanged"]) == (True, 0, 13)
    series = opened(run.store).ledger["dicom/s1"]  # type: ignore[attr-defined]
    assert (series["subject"], series["modality"]) == (None, "CT")
    assert not {"subject", "StudyDate"} & {*dict(series["found"]), *dict(series["origins"]), *dict(series["metadata"])}
    assert run("index", capsys, *hidden)["published"] is False
