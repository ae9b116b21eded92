"""Labels that do not match: counted everywhere, and refused where they would be lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pytest

from medret.archive import LabelJoin, Listing
from medret.cli import main
from medret.errors import GateError, UsageError
from medret.pipeline.gates import check_labels
from medret.pipeline.request import GateLimits
from medret.pipeline.store_state import known_rows, without_hu
from medret.recipe import SliceRecipe
from medret.schemas import LEDGER, OBJECTS, VOLUME_LABELS
from medret.volume import read_volume

NAMES = [f"{number}.nii" for number in range(10)]
LISTING = Listing("/a", pa.Table.from_pylist([{"volume_id": name, "size_bytes": 1} for name in NAMES], OBJECTS), {})


def ledger(*labelled: str) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"volume_id": name, "organ": "Heart" if name in labelled else None, "metadata": []} for name in NAMES
    ]
    return pa.Table.from_pylist(rows, LEDGER)


def joined(*labelled: str, table: str | None = "labels.csv", unmatched: int = 0) -> LabelJoin:
    rows: list[dict[str, Any]] = [{"volume_id": name, "metadata": [("site", "A")]} for name in labelled]
    labels = pa.Table.from_pylist(rows, VOLUME_LABELS)
    return LabelJoin(labels, unmatched, 10 - len(labelled), table, 0, "x.nii" if unmatched else None, NAMES[0])


@pytest.mark.parametrize(
    ("had", "now", "refused"),
    [(0, 0, False), (0, 10, False), (4, 4, False), (4, 2, False), (4, 1, True), (4, 0, True), (1, 0, True)],
)
def test_a_store_does_not_lose_its_labels_unasked(had: int, now: int, refused: bool) -> None:
    """C16: exit 3 where fewer than half of the labelled volumes that stay would keep labels, whoever took them."""
    gone = pa.Table.from_pylist([{"volume_id": "gone", "organ": "x"}], LEDGER)
    before = known_rows(pa.concat_tables([ledger(*NAMES[:had]), gone]))
    for table in ("labels.csv", None):
        join = joined(*NAMES[:now], table=table, unmatched=10 - now if table else 0)
        if refused:
            with pytest.raises(GateError, match=f"labels for {now} of the {had} volumes.*--min-labelled.*"):
                check_labels(before, LISTING, join, GateLimits())
        elif now or table is None:
            check_labels(before, LISTING, join, GateLimits())
        if now or table is None:
            check_labels(before, LISTING, join, GateLimits(min_labelled=0.0))


def test_a_table_that_matches_nothing_is_wrong_usage_in_a_store_without_labels() -> None:
    """C16: the message has both sides."""
    with pytest.raises(UsageError, match=r"none of its 3 rows.*'x\.nii'.*'0\.nii'"):
        check_labels(known_rows(ledger()), LISTING, joined(unmatched=3), GateLimits())


def test_plan_and_index_refuse_and_count(
    store: Path, phantom_archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C16: in JSON, in lines, and as an exit code; `plan` says what `index` does."""
    good, bad = phantom_archive.parent / "labels.csv", tmp_path / "bad.csv"
    bad.write_text("path,organ\nD:\\x\\1.nii,Heart\nD:\\x\\2.nii,Lung\n")
    half = tmp_path / "half.csv"
    half.write_text(good.read_text() + "elsewhere.nii,s,CT,Head,Brain\n")

    def run(command: str, target: Path, *options: object) -> tuple[int, str, str]:
        arguments = [command, phantom_archive, target, "--slices", "uniform:8", *options]
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    for options, told in (((), "no table was given"), (("--labels", bad), "none of its 2 rows")):
        code, out, err = run("index", store, *options, "--json")
        assert (code, out) == (3, "")
        code, out, _ = run("plan", store, *options, "--json")
        assert code == 0
        [refusal] = json.loads(out)["refusals"]
        assert refusal in err
        assert told in refusal
        assert "labels for 0 of the 12 volumes" in refusal
    for command in ("plan", "index"):
        code, out, err = run(command, tmp_path / "new", "--labels", bad)
        assert (code, out) == (2, "")
        assert repr("D:\\x\\1.nii") in err
        assert len(err.splitlines()) == (1 if command == "plan" else 3)
        assert not (tmp_path / "new" / "CURRENT").exists()
    code, out, _ = run("plan", store, "--labels", half, "--json")
    assert code == 0
    assert json.loads(out)["labels"] == {
        "source": str(half), "matched": 12, "unmatched_rows": 1, "ambiguous_rows": 0, "unlabelled_volumes": 0,
        "ignored_files": 0, "ct_without_hu": 0,
    }  # fmt: skip
    code, out, _ = run("plan", tmp_path / "new", "--labels", half)
    assert "12 volumes matched, 0 have none; 1 rows match no volume, such as 'elsewhere.nii'" in out
    _, out, _ = run("plan", tmp_path / "new")
    assert "no labels: 12 volumes have none" in out
    aggregations = ("--aggregation", "mean", "--aggregation", "gaussian:0.5,0.25")
    _, out, _ = run("index", store, "--labels", good, *aggregations, "--json")  # up to date
    assert json.loads(out)["labels"]["matched"] == 12


def test_the_report_of_a_run_counts_labels_and_names_none(store: Path) -> None:
    """C16, B10: names of a table may be those of patients."""
    [report] = (store / "runs").glob("*.json")
    content = json.loads(report.read_text())["labels"]
    assert (content["matched"], content["unmatched_rows"], content["unlabelled_volumes"]) == (12, 0, 0)
    assert all(isinstance(value, int) for name, value in content.items() if name != "source")


def test_labelled_ct_without_hounsfield_units_is_counted(phantom_archive: Path) -> None:
    """C5: a lost rescale, seen in the facts that the reader gives."""
    image: Any = nib.load(phantom_archive / "chest_ct/chest_ct_0.nii.gz")
    facts: list[Any] = [None]
    for scale, modality in ((1.0, "CT"), (1 / 4000, "CT"), (1 / 4000, "HRCT"), (1 / 4000, "MRI"), (1 / 4000, None)):
        scaled = nib.Nifti1Image((image.get_fdata() * scale).astype(np.float32), image.affine)
        volume = read_volume(scaled.to_bytes(), "x", SliceRecipe(), [32], modality=modality)
        facts.append(json.dumps(volume.facts.to_json()))
    assert without_hu(pa.chunked_array([facts])).to_pylist().count(True) == 2
