from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medret.demo.phantoms import KINDS, LABEL_COLUMNS, phantom, write_corpus, write_phantom

SHAPE = (64, 56, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_arguments_give_equal_bytes_and_another_seed_another_subject(kind: str, tmp_path: Path) -> None:
    first, again, other = (
        write_phantom(tmp_path / name, kind, seed, SHAPE).read_bytes()
        for name, seed in (("a/x.nii.gz", 3), ("b/x.nii.gz", 3), ("c/x.nii.gz", 4))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", KINDS)
def test_file_is_a_sound_nifti_of_its_kind(kind: str, tmp_path: Path) -> None:
    image = nib.Nifti1Image.from_filename(write_phantom(tmp_path / "x.nii.gz", kind, 0, SHAPE))
    voxels = np.asanyarray(image.dataobj)
    assert voxels.dtype == np.int16
    assert sorted(voxels.shape) == sorted(SHAPE)
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    field_mm = np.array(image.header.get_zooms()) * voxels.shape
    assert np.allclose(field_mm, KINDS[kind].field_mm, rtol=0.1)
    is_ct = KINDS[kind].modality == "CT"
    assert (voxels.min() < -900) == is_ct, "only CT has air at -1000 HU"


def test_kinds_keep_their_shape_within_a_scanner_s_range(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in list(KINDS):
        monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], paint=lambda _: None))  # its shape is asked for alone
        voxels, spacing_mm, _ = phantom(kind, 11)
        assert all(64 <= n <= 128 for n in voxels.shape)
        assert all(0.5 < step < 5 for step in spacing_mm)


def test_organs_lie_where_anatomy_has_them() -> None:
    chest, _, _ = phantom("chest_ct", 5)
    air = (chest > -950) & (chest < -700)  # lung, not the air around the body
    right, left = air[chest.shape[0] // 2 :].sum(), air[: chest.shape[0] // 2].sum()
    assert right > left, "the heart takes room from the left lung"
    abdomen, _, _ = phantom("abdomen_ct", 5)
    liver = (abdomen > 90) & (abdomen < 125)
    top = slice(abdomen.shape[2] // 2, None)
    middle = abdomen.shape[0] // 2
    assert liver[middle:, :, top].sum() > 2 * liver[:middle, :, top].sum(), "the liver is on the right"
    head, _, _ = phantom("head_mri", 5)
    middle_slice = head[:, :, head.shape[2] // 2]
    assert middle_slice[:2].mean() < 0.2 * middle_slice.mean(), "air surrounds the head"


def test_corpus_has_a_label_for_every_volume_and_nothing_else(tmp_path: Path) -> None:
    labels = write_corpus(tmp_path / "archive", volumes_per_kind=1, seed=2, shape=(24, 22, 16))
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    written = {path.relative_to(tmp_path / "archive").as_posix() for path in (tmp_path / "archive").rglob("*.*")}
    assert tuple(rows[0]) == LABEL_COLUMNS
    assert {row["path"] for row in rows} == written
    assert len(rows) == len(KINDS) == len({row["subject"] for row in rows})
    assert {row["organ"] for row in rows} == {"Brain", "Lung", "Liver", "Prostate", "Leg", "Heart"}
