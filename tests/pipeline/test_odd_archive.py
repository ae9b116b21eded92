"""One archive with everything that once stopped a run: names, links, pipes, giants, pointers, pages, masks."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medret
from medret.cli import main
from medret.demo.phantoms import KINDS, write_phantom
from medret.snapshot import verify_store
from medret.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

GIANT_SHAPE = (2048, 2048, 1408)  # int16: 11 GiB
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9437184\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head><body>Sign in</body></html>\n"
SPM = "spm/wsub-01_T1.nii"
REFUSED = {
    "odd/giant.nii": "too_large",
    "odd/itself.nii.gz": "unreadable",
    "odd/pointer.nii.gz": "not_nifti",
    "odd/page.nii.gz": "not_nifti",
}
TELLING = {
    "odd/pointer.nii.gz": "git-lfs",
    "odd/page.nii.gz": "HTML",
    "odd/giant.nii": "the limit is",
    "odd/itself.nii.gz": "symbolic links",
}
MASKS = (
    "case_00000/segmentation.nii.gz",
    "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
    "derivatives/fmriprep/sub-01/anat/sub-01_dseg.nii.gz",
)


def _write_mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros((40, 36, 20), np.uint8)
    labels[10:30, 8:28, 4:16] = 1
    labels[14:20, 12:20, 6:12] = 2
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1.0, 2.0, 1.0])), path)


def _write_spm(path: Path) -> None:
    """As SPM writes a normalised image: float32, NaN wherever no brain is, here in three quarters of the voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = [np.linspace(-1.28, 1.28, n) for n in (44, 52, 40)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    brain = 300 + 200 * np.cos(4 * radius) + 40 * np.sin(9 * x) * np.sin(7 * y) * np.cos(5 * z)
    voxels = np.where(radius < 1, brain, np.nan).astype(np.float32)
    assert np.isnan(voxels).mean() > 0.7
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), path)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The archive, its good volumes, the store and what the run printed."""
    folder = tmp_path_factory.mktemp("odd")
    archive = folder / "archive"
    good = []
    for number, kind in enumerate(list(KINDS)[:4] * 2):
        path = "case_00000/imaging.nii.gz" if number == 0 else f"good/{kind}_{number}.nii.gz"
        write_phantom(archive / path, kind, number, shape=(40, 36, 20))
        good.append(path)
    _write_spm(archive / SPM)
    for mask in MASKS:
        _write_mask(archive / mask)
    strange = archive / "odd"
    strange.mkdir()
    os.mkfifo(strange / "pipe.nii")
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(strange):  # a socket's name is short
        listener.bind("socket.nii.gz")
    (strange / "itself.nii.gz").symlink_to("itself.nii.gz")
    (strange / "zero.nii").symlink_to("/dev/zero")
    write_phantom(strange / "latin.nii.gz", "leg_mri", 9, shape=(40, 36, 20))
    (strange / "latin.nii.gz").rename(os.fsdecode(os.fsencode(strange) + "/Müller.nii.gz".encode("latin-1")))
    with (strange / "giant.nii").open("wb") as file:
        header = nib.Nifti1Image(np.broadcast_to(np.int16(0), GIANT_SHAPE), np.eye(4)).header
        header["vox_offset"] = 352
        file.write(header.binaryblock)
        file.truncate(352 + 2 * math.prod(GIANT_SHAPE))
    (strange / "pointer.nii.gz").write_text(POINTER)
    (strange / "page.nii.gz").write_text(PAGE)
    store = folder / "store"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["index", str(archive), str(store), "--slices", "uniform:4", "--actors", "1", "--json"])
    listener.close()
    return SimpleNamespace(archive=archive, store=store, good=good, code=code, found=json.loads(printed.getvalue()))


def test_the_run_publishes_what_is_good_and_says_the_rest(odd: SimpleNamespace) -> None:
    """A1 to A3, C9, C10 and C15 in one archive: exit code 4, and every object ends in exactly one outcome."""
    assert odd.code == 4
    counts: dict[str, Any] = odd.found["counts"]
    assert counts["listed"] == counts["embedded"] + counts["quarantined"] + counts["skipped"]
    snapshot = medret.open_snapshot(odd.store)
    embedded = {row["volume_id"] for row in snapshot.labels().to_pylist()}
    assert {*odd.good, SPM} <= embedded
    assert not embedded & {*MASKS, *REFUSED}
    assert {row["volume_id"]: row["code"] for row in odd.found["quarantine"]} == REFUSED
    assert verify_store(Location(odd.store)) == []


@pytest.mark.parametrize("volume_id", REFUSED)
def test_a_reason_tells_what_the_object_is(odd: SimpleNamespace, volume_id: str) -> None:
    """C15 and A3: a person who reads the reason knows what lies there."""
    reason = next(row["reason"] for row in odd.found["quarantine"] if row["volume_id"] == volume_id)
    assert TELLING[volume_id] in reason


def test_each_good_volume_finds_itself(odd: SimpleNamespace) -> None:
    snapshot = medret.open_snapshot(odd.store)
    for volume_id in (*odd.good, SPM):
        hits = snapshot.search(odd.archive / volume_id, k=2)
        assert hits[0].volume_id == volume_id
        assert hits[0].score > 0.99
