"""Files that ask a store; a stub stands for the network, so that no weights are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.cli import main
from medret.demo.phantoms import write_phantom
from medret.errors import StorageError, UsageError
from medret.evaluate import Options, Selection, evaluate
from medret.evaluate.query_sets import file_queries
from medret.search import Snapshot

KINDS = {"Lung": "chest_ct", "Liver": "abdomen_ct", "Brain": "head_mri"}


class _Encoder:
    """Vectors made of the mean intensity in each of 32 bands of a slice."""

    def embed(self, slices: NDArray[np.uint8]) -> NDArray[np.float32]:
        bands = slices.reshape(len(slices), 32, -1).mean(axis=2)
        vectors: NDArray[np.float32] = (bands + 1).astype(np.float32)
        return vectors


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medret.search.encoders.load_encoder", lambda *_: _Encoder())


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """Nine phantoms, one broken file, and their labels."""
    rows = ["path,subject,organ,modality"]
    for number, (organ, kind) in enumerate(list(KINDS.items()) * 3):
        write_phantom(tmp_path / "cases" / f"{number}.nii.gz", kind, number, shape=(36, 32, 18))
        rows.append(f"{number}.nii.gz,q{number // 2},{organ},CT")
    (tmp_path / "cases" / "broken.nii").write_bytes(b"no volume")
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_files_ask_and_what_cannot_be_read_is_listed(snapshot: Snapshot, queries: Path) -> None:
    selection = Selection(models=[snapshot.models[0]], indices=["exact"])
    panel = file_queries(snapshot, str(queries / "cases"), str(queries / "cases.csv"), selection, {})
    assert panel.queries.num_rows == 9
    assert panel.candidates.num_rows == 48
    (failure,) = panel.failures
    assert failure.query == "broken.nii"
    assert "not_nifti" in failure.reason
    found = evaluate(snapshot, panel, Options(selection=selection, levels=["organ"]))
    row = found.figure(found.leading, "subject", "organ", "micro", "recall@1")
    assert row is not None
    assert (row.n, row.subjects) == (9, 5)
    assert found.to_json()["failed_queries"][0]["query"] == "broken.nii"


def test_the_exit_code_tells_of_files_that_could_not_be_used(
    labelled_store: Any, queries: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", labelled_store.uri, "--index", "exact", "--mode", "volume", "--model", "synthetic-model"]
    arguments += ["--queries", str(queries / "cases"), "--labels", str(queries / "cases.csv"), "--json"]
    assert main(arguments) == 4
    assert "broken.nii" in capsys.readouterr().err
    (queries / "cases" / "broken.nii").unlink()
    assert main(arguments) == 0


def test_a_query_that_is_in_the_store_does_not_find_itself(stores: Any, tmp_path: Path, queries: Path) -> None:
    import hashlib

    from medret.search import open_snapshot

    data = (queries / "cases" / "0.nii.gz").read_bytes()
    volumes = stores.synthetic_volumes(8)
    rows = [
        stores.ledger_row(v.volume_id, organ="Lung", content_sha256=hashlib.sha256(data).hexdigest() if n == 3 else "0")
        for n, v in enumerate(volumes)
    ]
    snapshot = open_snapshot(stores.make_store(tmp_path / "store", volumes, ledger=rows).uri)
    panel = file_queries(snapshot, str(queries / "cases"), str(queries / "cases.csv"), Selection(), {})
    assert panel.self_candidates[0] == (3,)
    assert set(panel.self_candidates[1:]) == {()}
    options = Options(selection=Selection(aggregations=["mean"], modes=["volume"]), min_relevant=7)
    found = evaluate(snapshot, panel, options)
    hits = found.details["subject" if "subject" in found.details else "self"].hits
    assert 3 not in hits[0]
    assert 3 in hits[1]


def test_an_archive_of_nothing_usable(snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "x.nii").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="none of its 1 files can be used as a query"):
        file_queries(snapshot, str(tmp_path), None, Selection(), {})


def test_an_archive_of_no_volumes_says_what_was_skipped(snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"holds no volumes to ask with \(not_a_volume \d\)"):
        file_queries(snapshot, str(tmp_path), None, Selection(), {})


def test_a_file_out_of_reach_is_a_failure_among_others(
    snapshot: Snapshot, queries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = Snapshot.resolve

    def flaky(self: Snapshot, query: Any, **options: Any) -> Any:
        if str(query).endswith("/3.nii.gz"):
            raise StorageError("no way to it")
        return resolve(self, query, **options)

    monkeypatch.setattr(Snapshot, "resolve", flaky)
    panel = file_queries(snapshot, str(queries / "cases"), str(queries / "cases.csv"), Selection(), {})
    assert {failure.query for failure in panel.failures} == {"3.nii.gz", "broken.nii"}
