"""Labels that are already there: in the paths and files of BIDS, MSD, nnU-Net, KiTS, BraTS and TotalSegmentator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medret.archive import Listing, list_archive, read_labels

Tree = Mapping[str, Any]


def written(folder: Path, tree: Tree) -> Listing:
    """Write a tree of files and list it: text, a JSON value, or None for a volume."""
    for path, content in tree.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("x" if content is None else content if isinstance(content, str) else json.dumps(content))
    return list_archive(str(folder))


def volumes(*paths: str) -> dict[str, None]:
    return dict.fromkeys(paths)


def known(listing: Listing) -> dict[str, dict[str, str]]:
    """volume_id -> its labels and metadata, without those that are not known."""
    rows = read_labels(None, listing).labels.to_pylist()
    named = {row.pop("volume_id"): row | dict(row.pop("metadata")) for row in rows}
    return {
        name: {key: value for key, value in row.items() if value and key != "origins"} for name, row in named.items()
    }


def subjects(listing: Listing) -> dict[str, str | None]:
    found = {row["volume_id"]: row["subject"] for row in read_labels(None, listing).labels.to_pylist()}
    return {volume_id: found.get(volume_id) for volume_id in listing.objects["volume_id"].to_pylist()}


BIDS = volumes(
    *(
        f"sub-{subject}/ses-{session}/{datatype}/sub-{subject}_ses-{session}_{name}.nii.gz"
        for subject in ("01", "02", "03")
        for session in ("1", "2")
        for datatype, name in (("anat", "T1w"), ("func", "task-rest_run-1_bold"), ("pet", "trc-FDG_pet"), ("ct", "ct"))
    )
) | {
    "dataset_description.json": {"Name": "x", "BIDSVersion": "1.10.0"},
    "participants.tsv": "participant_id\tage\tsex\nsub-01\t61\tF\nsub-02\tn/a\tM\nsub-04\t7\tM\n",
    "sub-01/ses-1/anat/sub-01_ses-1_T1w.json": {},
    **volumes(
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "derivatives/manual/sub-02/anat/sub-02_label-lesion_roi.nii.gz",
    ),
}


@pytest.mark.parametrize("folder", ["", "ds000001/"])
def test_bids(tmp_path: Path, folder: str) -> None:
    listing = written(tmp_path, {folder + path: content for path, content in BIDS.items()})
    assert listing.skipped == {"derivatives": 2, "label_mask": 1, "not_a_volume": 3}
    found = {name.removeprefix(folder): row for name, row in known(listing).items()}
    assert len(found) == listing.objects.num_rows == 24
    assert found["sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"] == {
        "subject": "01", "modality": "MRI", "session": "2", "datatype": "anat", "suffix": "T1w", "age": "61",
        "sex": "F",
    }  # fmt: skip
    assert found["sub-02/ses-1/func/sub-02_ses-1_task-rest_run-1_bold.nii.gz"] == {
        "subject": "02", "modality": "MRI", "session": "1", "datatype": "func", "suffix": "bold", "task": "rest",
        "run": "1", "sex": "M",
    }  # fmt: skip
    assert found["sub-03/ses-1/pet/sub-03_ses-1_trc-FDG_pet.nii.gz"]["modality"] == "PET"
    assert found["sub-03/ses-1/ct/sub-03_ses-1_ct.nii.gz"]["modality"] == "CT"


def test_bids_is_read_with_care(tmp_path: Path) -> None:
    """A wrong subject is worse than none; what lies beside a dataset_description.json is a subject's all the same."""
    tree = volumes(
        "one/sub-01/anat/sub-01_T1w.nii.gz",
        "one/sub-01/anat/sub-02_T1w.nii.gz",
        "one/sub-01/xnat/resources/scan.nii.gz",
        "one/rawdata/sub-01/dwi/sub-01_dir-AP_dwi.nii.gz",
        "two/sub-01/sub-01.nii.gz",
        "two/sub-03/sub-03_part-mag_unknown.nii.gz",
        "two/sub-acute/head.nii.gz",
        "two/sub-acute_1.nii.gz",
    )
    described = {"one/dataset_description.json": {}, "three/participants.tsv": "id\tage\n1\t2\n"}
    listing = written(tmp_path, {**tree, **described})
    assert subjects(listing) == {
        "one/rawdata/sub-01/dwi/sub-01_dir-AP_dwi.nii.gz": "one/01",  # the same person as below
        "one/sub-01/anat/sub-01_T1w.nii.gz": "one/01",
        "one/sub-01/anat/sub-02_T1w.nii.gz": None,
        "one/sub-01/xnat/resources/scan.nii.gz": "one/01",
        "two/sub-01/sub-01.nii.gz": "two/01",  # another person
        "two/sub-03/sub-03_part-mag_unknown.nii.gz": "03",
        "two/sub-acute/head.nii.gz": None,
        "two/sub-acute_1.nii.gz": None,
    }
    assert known(listing)["two/sub-03/sub-03_part-mag_unknown.nii.gz"] == {
        "subject": "03", "suffix": "unknown", "part": "mag",
    }  # fmt: skip
    assert known(listing)["one/rawdata/sub-01/dwi/sub-01_dir-AP_dwi.nii.gz"]["dir"] == "AP"
    assert "no column participant_id" in read_labels(None, listing).ignored["three/participants.tsv"]


def test_derivatives_alone_are_an_archive(tmp_path: Path) -> None:
    paths = ("derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "derivatives/sub-02/anat/x.nii.gz")
    listing = written(tmp_path, volumes(*paths))
    assert (listing.objects.num_rows, listing.skipped) == (2, {})
    below = list_archive(str(tmp_path / "derivatives"))
    assert subjects(below) == {
        "fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz": "01",
        "sub-02/anat/x.nii.gz": None,
    }
    beside = written(tmp_path, volumes("raw/sub-01/anat/sub-01_T1w.nii.gz"))
    assert (beside.objects.num_rows, beside.skipped) == (1, {"derivatives": 2})
    everything = list_archive(str(tmp_path), include_masks=True)
    assert list(subjects(everything).values()) == ["01", None, "01"]  # one person


def test_msd(tmp_path: Path) -> None:
    listed = {
        "modality": {"0": "CT"},
        "training": [{"image": "./imagesTr/liver_0001.nii.gz", "label": "./labelsTr/liver_0001.nii.gz"}],
        "test": ["./imagesTs/liver_0002.nii.gz"],
    }
    task, paths = (
        "Task03_Liver/",
        ("imagesTr/liver_0001.nii.gz", "imagesTs/liver_0002.nii.gz", "labelsTr/liver_0001.nii.gz"),
    )
    other = {
        "Task09_Spleen/dataset.json": {"modality": {"0": "CT"}},
        **volumes("Task09_Spleen/imagesTr/spleen_2.nii.gz"),
    }
    listing = written(tmp_path, {task + "dataset.json": listed, **volumes(*(task + path for path in paths)), **other})
    liver = {"modality": "CT", "body_region": "Abdomen", "organ": "Liver", "task": "Liver"}
    assert known(listing) == {
        "Task03_Liver/imagesTr/liver_0001.nii.gz": liver | {"subject": "liver_0001", "split": "training"},
        "Task03_Liver/imagesTs/liver_0002.nii.gz": liver | {"subject": "liver_0002", "split": "test"},
        "Task09_Spleen/imagesTr/spleen_2.nii.gz": {
            "modality": "CT", "body_region": "Abdomen", "organ": "Spleen", "task": "Spleen", "subject": "spleen_2",
            "split": "training",
        },
    }  # fmt: skip


NNUNET_2 = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {}, "numTraining": 1, "file_ending": ".nii.gz"}
NNUNET_1 = {"modality": {"0": "T2", "1": "ADC"}, "training": [{"image": "./imagesTr/case_1.nii.gz"}], "numTraining": 1}


@pytest.mark.parametrize("description", [NNUNET_2, NNUNET_1, {"modality": ["T2", "ADC"]}])
@pytest.mark.parametrize("folder", ["", "Dataset005_Prostate/", "nnUNet_raw/Dataset005_Prostate/"])
def test_nnunet(tmp_path: Path, folder: str, description: Any) -> None:
    names = ("imagesTr/case_1_0000.nii.gz", "imagesTr/case_1_0001.nii.gz", "imagesTs/case_9_0000.nii.gz")
    paths = (*names, "labelsTr/case_1.nii.gz", "imagesTr_small/case_1_0000.nii.gz")
    listing = written(tmp_path, {folder + "dataset.json": description, **volumes(*(folder + path for path in paths))})
    found = known(listing)
    rows = [found[folder + name] for name in names]
    assert [row["subject"] for row in rows] == ["case_1", "case_1", "case_9"]
    assert [(row["channel"], row["channel_name"]) for row in rows] == [("0000", "T2"), ("0001", "ADC"), ("0000", "T2")]
    assert [row["split"] for row in rows] == ["training", "training", "test"]
    assert {row["modality"] for row in rows} == {"MRI"}
    assert len(found) == 4
    assert "subject" not in found[folder + "imagesTr_small/case_1_0000.nii.gz"]


def test_numbers_of_four_digits_are_not_always_channels(tmp_path: Path) -> None:
    """In MSD's form they number the cases; in nnU-Net's, each channel may be of another modality."""
    plain = {"Dataset1_A/dataset.json": {"modality": {"0": "CT"}}}
    both = {"Dataset2_B/dataset.json": {"channel_names": {"0": "CT", "1": "PET"}}}
    paths = (
        "Dataset1_A/imagesTr/a_0000.nii.gz",
        "Dataset1_A/imagesTr/a_0001.nii.gz",
        "Dataset2_B/imagesTr/a_0000.nii.gz",
    )
    odd = ("Dataset2_B/imagesTr/a_0001.nii.gz", "Dataset2_B/imagesTr/a_0002.nii.gz")
    listing = written(tmp_path, {**plain, **both, **volumes(*paths, *odd)})
    assert list(subjects(listing).values()) == ["a_0000", "a_0001", "a", "a", None]
    assert [row.get("modality") for row in known(listing).values()] == ["CT", "CT", "CT", "PET", None]


def test_cases_of_several_data_sets_are_told_apart(tmp_path: Path) -> None:
    paths = [
        f"Dataset00{number}_X/imagesTr/{case}_0000.nii.gz" for number in (1, 2) for case in ("case", f"own{number}")
    ]
    described = {f"Dataset00{number}_X/dataset.json": {"channel_names": {"0": "CT"}} for number in (1, 2)}
    listing = written(tmp_path, {**volumes(*paths), **described})
    assert list(subjects(listing).values()) == ["Dataset001_X/case", "own1", "Dataset002_X/case", "own2"]


@pytest.mark.parametrize("folder", ["", "kits23/dataset/"])
def test_kits(tmp_path: Path, folder: str) -> None:
    paths = ("imaging.nii.gz", "segmentation.nii.gz", "instances/kidney_instance-1_annotation-1.nii.gz")
    listing = written(tmp_path, volumes(*(f"{folder}case_0000{case}/{path}" for case in (0, 1) for path in paths)))
    kidney = {"modality": "CT", "body_region": "Abdomen", "organ": "Kidney"}
    assert known(listing) == {
        f"{folder}case_00000/imaging.nii.gz": kidney | {"subject": "case_00000"},
        f"{folder}case_00001/imaging.nii.gz": kidney | {"subject": "case_00001"},
    }
    assert listing.skipped == {"label_mask": 4}


@pytest.mark.parametrize(
    ("case", "mark", "sequences", "subject", "time_point"),
    [
        ("BraTS20_Training_001", "_", ("t1", "t1ce", "t2", "flair"), "BraTS20_Training_001", None),
        ("BraTS2021_00495", "_", ("t1", "t1ce", "t2", "flair"), "BraTS2021_00495", None),
        ("Brats18_TCIA01_147_1", "_", ("t1", "t1ce", "t2", "flair"), "Brats18_TCIA01_147", "1"),
        ("BraTS-GLI-00005-001", "-", ("t1n", "t1c", "t2w", "t2f"), "BraTS-GLI-00005", "001"),
        ("BraTS-MEN-RT-0103-1", "_", ("t1c",), "BraTS-MEN-RT-0103", "1"),
        ("BraTS-GoAT-00012", "-", ("t1n", "t2f"), "BraTS-GoAT-00012", None),
    ],
)
def test_brats(
    tmp_path: Path, case: str, mark: str, sequences: tuple[str, ...], subject: str, time_point: str | None
) -> None:
    names = (*sequences, "seg")
    listing = written(tmp_path, volumes(*(f"train/{case}/{case}{mark}{name}.nii.gz" for name in names)))
    head = {"subject": subject, "modality": "MRI", "body_region": "Head", "organ": "Brain"}
    head |= {"time_point": time_point} if time_point else {}
    assert known(listing) == {
        f"train/{case}/{case}{mark}{name}.nii.gz": head | {"sequence": name} for name in sequences
    }
    assert listing.skipped == {"label_mask": 1}


def test_totalsegmentator(tmp_path: Path) -> None:
    listing = written(
        tmp_path, volumes("s0000/ct.nii.gz", "s0000/segmentations/liver.nii.gz", "mr/s0001/mri.nii.gz", "x/ct.nii.gz")
    )
    assert known(listing) == {
        "s0000/ct.nii.gz": {"subject": "s0000", "modality": "CT"},
        "mr/s0001/mri.nii.gz": {"subject": "s0001", "modality": "MRI"},
    }


def test_other_trees_get_no_labels(tmp_path: Path) -> None:
    paths = (
        "bert/mri/T1.nii.gz", "case_1/imaging.nii.gz", "brats/a/a_t1.nii.gz", "imagesTr/liver_1.nii.gz",
        "BraTS20_Training_001/other_t1.nii.gz", "subject-01/T1w.nii.gz", "sub01/sub01_T1w.nii.gz", "s0000/pet.nii.gz",
    )  # fmt: skip
    listing = written(tmp_path, volumes(*paths))
    join = read_labels(None, listing)
    assert (join.labels.num_rows, join.source, join.origins) == (0, None, {})
    assert join.unlabelled_volumes == 8


def test_a_table_counts_before_paths_label_by_label(tmp_path: Path) -> None:
    path = "sub-01/anat/sub-01_T1w.nii.gz"
    listing = written(tmp_path / "archive", volumes(path, "sub-02/anat/sub-02_T1w.nii.gz", "own.nii.gz"))
    table = tmp_path / "labels.csv"
    table.write_text(f"path,subject,organ,suffix,modality\n{path},anna,Brain,mine,\n")
    join = read_labels(str(table), listing)
    ours = join.labels.to_pylist()[0]
    assert (ours["subject"], ours["modality"], ours["organ"]) == ("anna", "MRI", "Brain")
    assert dict(ours["metadata"]) == {"datatype": "anat", "suffix": "mine"}
    assert dict(ours["origins"]) == {
        "subject": "table", "modality": "bids", "organ": "table", "datatype": "bids", "suffix": "table",
    }  # fmt: skip
    assert join.origins == {
        "table": {"volumes": 1, "subject": 1, "organ": 1, "metadata": 1},
        "bids": {"volumes": 2, "subject": 1, "modality": 2, "metadata": 2},
    }
    assert (join.unlabelled_volumes, join.mismatch) == (1, None)
    table.write_text("path,organ\nelsewhere.nii.gz,Brain\n")
    assert "none of its 1 rows" in (read_labels(str(table), listing).mismatch or "")


def test_columns_of_participants_that_are_called_like_ours_are_left_out(tmp_path: Path) -> None:
    name = "sub-01/anat/sub-01_T1w.nii.gz"
    people = "participant_id\tvolume_id\tData_Set\tage\nsub-01\tx\ty\t61\n"
    described = {"dataset_description.json": {"Name": "x", "BIDSVersion": "1"}, "participants.tsv": people}
    assert known(written(tmp_path, volumes(name) | described))[name]["age"] == "61"
