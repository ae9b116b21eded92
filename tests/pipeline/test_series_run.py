"""One job over a mixed archive: NIfTI, series, a folder with several, a damaged instance, a report; then it changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import medret
from medret.cli import main
from medret.demo.phantoms import write_phantom
from medret.pipeline.store_state import listed_before
from medret.snapshot import verify_store
from medret.storage import Location
from tests.dicom_bytes import SR, instance
from tests.series_tree import series_uid, write_phantom_series

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
MODEL = "timm:test_vit"
OPTIONS = ("--model", MODEL, "--weights", f"{MODEL}=random", "--slices", "uniform:2", "--actors", "1", "--json")


def index(capsys: pytest.CaptureFixture[str], archive: Path, *more: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["index", str(archive), str(archive.with_name("store")), *OPTIONS, *more])
    return code, json.loads(capsys.readouterr().out)


def test_a_mixed_archive_is_indexed_and_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pydicom")
    archive, store = tmp_path / "archive", Location(tmp_path / "store")
    hidden = write_phantom_series(archive / "p8/mixed", 8)  # the first and the last are of one series
    write_phantom_series(archive / "p8/mixed", 9, name="004-{number}.dcm")
    assert main(["index", str(archive), store.uri, *OPTIONS]) == 3  # nothing could be embedded
    assert listed_before(store)["code"].to_pylist() == ["mixed_series"]

    write_phantom(archive / "p0/t1.nii.gz", "head_mri", 0, (24, 22, 16))
    for number in range(6):
        write_phantom_series(archive / f"p{number}/s{number}", number, slices=9)
    for number, name in ((6, "a{number}"), (7, "b{number}")):
        write_phantom_series(archive / "p6/study", number, name=name)
    shutil.make_archive(str(archive / "p7"), "zip", archive / "p5/s5")
    damaged = write_phantom_series(archive / "p9/damaged", 10)[4]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    (archive / "p1/s1/report.dcm").write_bytes(instance("1.2.3", sop_class=SR))
    (archive / "p0/notes.txt").write_text("a note")

    code, found = index(capsys, archive)
    codes = {row["volume_id"]: (row["code"], row["reason"]) for row in found["quarantine"]}
    assert code == 4
    assert {volume_id: code for volume_id, (code, _) in codes.items()} == {"p9/damaged": "instance_damaged"}
    assert damaged.name in codes["p9/damaged"][1]
    assert found["counts"] | {"listed": 15, "skipped": 2, "quarantined": 1, "embedded": 12} == found["counts"]
    snapshot = medret.open_snapshot(store.uri)
    rows = {row["volume_id"]: row for row in snapshot.labels().to_pylist()}
    several = {f"p6/study/{series_uid(number)}" for number in (6, 7)}
    divided = {f"p8/mixed/{series_uid(number)}" for number in (8, 9)}  # as the first run found out
    assert rows.keys() == {"p0/t1.nii.gz", "p7.zip", *several, *divided, *(f"p{n}/s{n}" for n in range(6))}
    assert all(row["uri"] == f"{archive}/{volume_id}" for volume_id, row in rows.items())
    for query in ("p2/s2", min(several), "p7.zip"):
        first = snapshot.search(archive / query, k=2)[0]
        assert first.volume_id in (query, "p5/s5")  # the series in the zip
        assert first.score > 0.999
    assert verify_store(store) == []

    snapshot_id = found["snapshot"]
    code, found = index(capsys, archive)
    assert (code, found["snapshot"], found["counts"]["unchanged"]) == (0, snapshot_id, 12)

    # A folder is renamed, an instance is added, the damaged one comes whole, and one of two series goes.
    (archive / "p2/s2").rename(archive / "p2/renamed")
    more = write_phantom_series(tmp_path / "more", 3, slices=10)[9]
    shutil.copy(more, archive / "p3/s3/more.dcm")
    shutil.rmtree(archive / "p9/damaged")
    write_phantom_series(archive / "p9/damaged", 10)
    for path in hidden:
        path.unlink()
    code, found = index(capsys, archive)
    counts = found["counts"]
    assert (code, counts["renamed"], counts["changed"], counts["new"], counts["gone"]) == (0, 2, 1, 1, 1)
    assert counts["embedded"] == 2

    # A patient withdraws.
    assert main(["forget", store.uri, "p2/renamed", "--copies"]) == 0
    assert verify_store(store) == []
    assert not {"p2/renamed", "p2/s2"} & set(medret.open_snapshot(store.uri).labels()["volume_id"].to_pylist())
