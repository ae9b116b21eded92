"""Labels from tables and from dataset.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medret.archive import LabelJoin, Listing, list_archive, read_labels
from medret.archive.msd import ORGANS, msd_task
from medret.errors import UsageError
from medret.schemas import OBJECTS

ARCHIVE = "s3://bucket/volumes"


def listing(*volume_ids: str, archive: str = ARCHIVE) -> Listing:
    objects = [{"volume_id": name, "size_bytes": 1} for name in sorted(volume_ids)]
    return Listing(archive, pa.Table.from_pylist(objects, OBJECTS), {})


def labels(
    subject: str | None = None,
    modality: str | None = None,
    body_region: str | None = None,
    organ: str | None = None,
    metadata: dict[str, str] | None = None,
) -> dict[str, Any]:
    known = {"subject": subject, "modality": modality, "body_region": body_region, "organ": organ}
    return known | {"metadata": metadata or {}}


def by_id(join: LabelJoin) -> dict[str, dict[str, Any]]:
    """volume_id -> its labels."""
    columns = join.labels.drop_columns("origins")
    rows = [row | {"metadata": dict(row["metadata"])} for row in columns.to_pylist()]
    return {row.pop("volume_id"): row for row in rows}


def table(folder: Path, text: str | bytes, name: str = "labels.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_known_columns_are_labels_and_the_others_metadata(tmp_path: Path) -> None:
    text = (
        'volume_id,subject,modality,body_region,organ,scanner,note\na.nii,s1,ct,Chest,Lung,X,\nb.nii,s2,MR,,,Y,"a, b"\n'
    )
    join = read_labels(table(tmp_path, text), listing("a.nii", "b.nii", "c.nii"))
    assert by_id(join) == {
        "a.nii": labels("s1", "CT", "Chest", "Lung", {"scanner": "X"}),
        "b.nii": labels("s2", "MRI", None, None, {"scanner": "Y", "note": "a, b"}),
    }
    assert (join.unmatched_rows, join.unlabelled_volumes) == (0, 1)


@pytest.mark.parametrize(
    "name",
    [
        "sub/a.nii.gz",
        "./sub/a.nii.gz",
        "sub//a.nii.gz",
        "volumes/sub/a.nii.gz",
        "s3://bucket/volumes/sub/a.nii.gz",
        "a.nii.gz",
        "../volumes/sub/a.nii.gz",
        "sub/a",
        "a",
        "s3://bucket/volumes/sub/a",
        "sub\\a.nii.gz",
        r".\volumes\sub\a",
        r"C:\data\sub\a.nii.gz",
        "d:/sub/a",
        "file:///C:/data/sub/a.nii.gz",
        r"\\server\share\sub\a.nii.gz",
        "/mnt/other/sub/a.nii.gz",
    ],
)
@pytest.mark.parametrize("column", ["volume_id", "path", " Path "])
def test_a_row_may_name_its_volume_in_several_ways(tmp_path: Path, column: str, name: str) -> None:
    """C16: Windows paths, ids without suffix and paths of another machine are understood."""
    join = read_labels(table(tmp_path, f"{column},organ\n {name} ,Heart\n"), listing("sub/a.nii.gz", "b.nii"))
    assert by_id(join)["sub/a.nii.gz"]["organ"] == "Heart"


@pytest.mark.parametrize("name", ["a.nii", "other/x/a.nii", "s3://else/volumes/x/a.nii", "A.nii", "i", "x", ".", ""])
def test_a_name_of_no_or_of_several_volumes_matches_none(tmp_path: Path, name: str) -> None:
    join = read_labels(table(tmp_path, f"path,organ\n{name},Heart\n"), listing("x/a.nii", "y/a.nii"))
    assert (by_id(join), join.unmatched_rows, join.unlabelled_volumes) == ({}, 1, 2)


def test_absolute_local_paths_and_file_uris(tmp_path: Path) -> None:
    archive = str(tmp_path / "volumes")
    for name in (f"{archive}/a.nii", f"file://{archive}/a.nii"):
        join = read_labels(table(tmp_path, f"path,organ\n{name},Heart\n"), listing("a.nii", "b/a.nii", archive=archive))
        assert list(by_id(join)) == ["a.nii"]


def test_volume_id_counts_before_path(tmp_path: Path) -> None:
    text = "path,volume_id,organ\nb.nii,a.nii,Heart\nb.nii,,Lung\n"
    join = read_labels(table(tmp_path, text), listing("a.nii", "b.nii"))
    assert {name: label["organ"] for name, label in by_id(join).items()} == {"a.nii": "Heart", "b.nii": "Lung"}


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffvolume_id;organ\r\na.nii;Heart\r\n\r\n",
        "volume_id\torgan\na.nii\tHeart",
        '"volume_id","organ"\n"a.nii","Heart"\n,\n',
    ],
)
def test_csv_as_spreadsheets_write_it(tmp_path: Path, text: str) -> None:
    assert by_id(read_labels(table(tmp_path, text), listing("a.nii")))["a.nii"]["organ"] == "Heart"


def test_parquet_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    content = pa.table(
        {
            "volume_id": ["a.nii", "b.nii"],
            "organ": ["Heart", None],
            "age": pa.array([61, None], pa.int32()),
            "dose": [1.5, float("nan")],
            "contrast": [True, False],
        }
    )
    path = tmp_path / "labels.csv"
    pq.write_table(content, path)
    join = read_labels(str(path), listing("a.nii", "b.nii"))
    assert by_id(join)["a.nii"] == labels(organ="Heart", metadata={"age": "61", "dose": "1.5", "contrast": "True"})
    assert by_id(join)["b.nii"] == labels(metadata={"contrast": "False"})


def test_equal_rows_are_one_and_unequal_ones_are_refused(tmp_path: Path) -> None:
    volumes = listing("a.nii")
    same = table(tmp_path, "volume_id,organ\na.nii,Heart\n./a.nii,Heart\n")
    assert by_id(read_labels(same, volumes))["a.nii"]["organ"] == "Heart"
    with pytest.raises(UsageError, match=r"labels\.csv.*a\.nii.*organ is 'Heart' and 'Lung'"):
        read_labels(table(tmp_path, "volume_id,organ\na.nii,Heart\na.nii,Lung\n"), volumes)
    with pytest.raises(UsageError, match="scanner is 'X' and None"):
        read_labels(table(tmp_path, "volume_id,scanner\na.nii,X\na.nii,\n"), volumes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("name,organ\na,b\n", "no column volume_id or path.*name, organ"),
        ("path,organ,organ\na,b,c\n", "organ appears twice"),
        ("path,Organ,organ\na,b,c\n", "organ appears twice"),
        ("path,,organ\na,b,c\n", "column 2 has values but no name"),
        ("path,organ\na,b,c\n", "line 2: 3 cells"),
        ('path,organ\n"a"x,b\n', "line 2"),
        (b"path,organ\n\xff\xfe,b\n", "UTF-8"),
        (b"PAR1 and then nothing", "Parquet"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read_labels(table(tmp_path, text), listing("a"))
    assert "labels.csv" in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent.csv"), "memory://nowhere/absent.csv"):
        with pytest.raises(UsageError, match=r"absent\.csv does not exist"):
            read_labels(name, listing("a"))
    with pytest.raises(UsageError, match="is a folder, expected a file"):
        read_labels(str(tmp_path), listing("a"))


# --- dataset.json ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name", "channels", "expected"),
    [
        ("Task01_BrainTumour", "BRATS", {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, ("MRI", "Head", "Brain")),
        ("Task02_Heart", "LeftAtrium", {"0": "MRI"}, ("MRI", "Chest", "Heart")),
        ("Task03_Liver", "LITS", {"0": "CT"}, ("CT", "Abdomen", "Liver")),
        ("Task04_Hippocampus", "Hippocampus", {"0": "MRI"}, ("MRI", "Head", "Hippocampus")),
        ("Task05_Prostate", "PROSTATE", {"0": "T2", "1": "ADC"}, ("MRI", "Pelvis", "Prostate")),
        ("Task06_Lung", "Lung", {"0": "CT"}, ("CT", "Chest", "Lung")),
        ("Task07_Pancreas", "NCI", {"0": "CT"}, ("CT", "Abdomen", "Pancreas")),
        ("Task08_HepaticVessel", "MSV", {"0": "CT"}, ("CT", "Abdomen", "HepaticVessel")),
        ("data", "Spleen", {"0": "CT"}, ("CT", "Abdomen", "Spleen")),
        ("Task10_Colon", None, None, ("CT", "Abdomen", "Colon")),
        ("colon cancer", None, {"0": "?"}, ("CT", "Abdomen", "Colon")),
        ("KiTS", "Kidneys and tumours", {"0": "CT"}, ("CT", None, None)),
        ("KiTS", 7, {"0": "CT", "1": "PET"}, (None, None, None)),
        ("Dataset001_X", "X", "nonsense", (None, None, None)),
    ],
)
def test_tasks(folder: str, name: Any, channels: Any, expected: tuple[str | None, ...]) -> None:
    content = {key: value for key, value in (("name", name), ("modality", channels)) if value is not None}
    task = msd_task(content, folder)
    assert (task.modality, task.body_region, task.organ) == expected
    assert task.organ is None or ORGANS[task.organ] == (task.modality, task.body_region)


def msd(folder: Path, task: str, name: str, modality: str) -> None:
    (folder / task / "imagesTr").mkdir(parents=True)
    (folder / task / "labelsTr").mkdir()
    (folder / task / "dataset.json").write_text(json.dumps({"name": name, "modality": {"0": modality}}))
    for part in ("imagesTr", "labelsTr"):
        (folder / task / part / f"{name.lower()}_1.nii.gz").write_bytes(b"x")


def test_an_msd_archive_labels_itself(tmp_path: Path) -> None:
    msd(tmp_path, "Task09_Spleen", "Spleen", "CT")
    msd(tmp_path, "Task02_Heart", "LeftAtrium", "MRI")
    (tmp_path / "own.nii.gz").write_bytes(b"x")
    join = read_labels(None, list_archive(str(tmp_path)))
    assert by_id(join) == {
        "Task02_Heart/imagesTr/leftatrium_1.nii.gz": labels(
            "leftatrium_1", "MRI", "Chest", "Heart", {"task": "Heart", "split": "training"}
        ),
        "Task09_Spleen/imagesTr/spleen_1.nii.gz": labels(
            "spleen_1", "CT", "Abdomen", "Spleen", {"task": "Spleen", "split": "training"}
        ),
    }
    assert (join.unmatched_rows, join.unlabelled_volumes) == (0, 1)


def test_one_task_as_an_archive(tmp_path: Path) -> None:
    msd(tmp_path, "Task09_Spleen", "Spleen", "CT")
    join = read_labels(None, list_archive(str(tmp_path / "Task09_Spleen")))
    assert by_id(join)["imagesTr/spleen_1.nii.gz"]["organ"] == "Spleen"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "JSON"),
        (b'{"modality": {"0": "CT"},}', "JSON"),
        (b"", "JSON"),
        (b"\xff\xfe\xff", "JSON"),
        (b'{"name": "M\xfcnster"}', "JSON"),
        (b"[" * 200_000, "JSON"),
        (b" " * ((64 << 20) + 1), "larger than 64 MiB"),
        (b"[1]", "not MSD's or nnU-Net's"),
        (b"null", "not MSD's or nnU-Net's"),
        (b'{"name": "Lung", "rows": 3}', "not MSD's or nnU-Net's"),
    ],
    ids=["cut", "comma", "empty", "utf16", "latin1", "deep", "large", "list", "null", "other"],
)
@pytest.mark.parametrize("place", [".", "part"])
def test_a_dataset_json_of_another_kind_is_said_and_ignored(
    tmp_path: Path, place: str, data: bytes, reason: str
) -> None:
    """A17: it is no fault of the archive, and hides no other dataset.json."""
    msd(tmp_path, "Task09_Spleen", "Spleen", "CT")
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "a.nii").write_bytes(b"x")
    (tmp_path / place / "dataset.json").write_bytes(data)
    join = read_labels(None, list_archive(str(tmp_path)))
    assert {name: label["organ"] for name, label in by_id(join).items()} == {
        "Task09_Spleen/imagesTr/spleen_1.nii.gz": "Spleen"
    }
    ((path, found),) = join.ignored.items()
    assert path == str(Path(place) / "dataset.json")
    assert reason in found


def test_a_dataset_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"x")
    (tmp_path / "dataset.json").write_bytes(b'\xef\xbb\xbf{"name": "Spleen", "modality": {"0": "CT"}}')
    join = read_labels(None, list_archive(str(tmp_path)))
    assert (by_id(join)["a.nii"]["organ"], dict(join.ignored)) == ("Spleen", {})


def test_no_labels_at_all() -> None:
    join = read_labels(None, listing("a.nii"))
    assert (by_id(join), join.unmatched_rows, join.unlabelled_volumes) == ({}, 0, 1)


# --- what does not match ---------------------------------------------------------------------------------------


def test_nfc_and_nfd_are_one_name(tmp_path: Path) -> None:
    """C16: macOS stores names decomposed."""
    for stored, written in (("Mu\u0308ller.nii", "M\u00fcller.nii"), ("M\u00fcller.nii", "Mu\u0308ller")):
        join = read_labels(table(tmp_path, f"path,organ\n{written},Heart\n"), listing(stored))
        assert list(by_id(join)) == [stored]
    both = listing("M\u00fcller.nii", "Mu\u0308ller.nii")
    assert list(by_id(read_labels(table(tmp_path, "path\nM\u00fcller.nii\n"), both))) == ["M\u00fcller.nii"]
    assert read_labels(table(tmp_path, "path\nM\u00fcller\n"), both).ambiguous_rows == 1


def test_the_file_name_as_written_goes_before_another_suffix(tmp_path: Path) -> None:
    volumes = listing("x/a.nii", "x/a.nii.gz", "y/b.nii")
    join = read_labels(table(tmp_path, "path,organ\nx/a.nii,Heart\na.nii.gz,Lung\nb.nii.gz,Liver\n"), volumes)
    assert [by_id(join)[one.volume_id]["organ"] for one in volumes.items()] == ["Heart", "Lung", "Liver"]
    assert read_labels(table(tmp_path, "path\nx/a\n"), volumes).ambiguous_rows == 1


@pytest.mark.parametrize(
    ("rows", "labelled"),
    [
        (["/data/one/a.nii", "/data/one/b.nii"], {"a.nii", "b.nii"}),  # a mount of another name
        (["/data/one/a.nii", "/data/two/b.nii"], set()),  # two archives, neither of them known to be this one
        (["/archive/a.nii", "/data/two/b.nii"], {"a.nii"}),  # this archive, and another
        (["archive/a.nii", "/data/two/b.nii"], {"a.nii"}),
        (["a.nii", "/data/two/a.nii", "/data/two/b.nii"], {"a.nii", "b.nii"}),
    ],
)
def test_paths_of_other_machines_label_no_volume_of_another_archive(
    tmp_path: Path, rows: list[str], labelled: set[str]
) -> None:
    """C16: where the same names stand below several roots, none of them is taken."""
    lines = "\n".join(f"{name},{number}" for number, name in enumerate(rows))
    join = read_labels(table(tmp_path, f"path,number\n{lines}\n"), listing("a.nii", "b.nii", archive="/archive"))
    assert set(by_id(join)) == labelled
    assert by_id(join).get("a.nii", labels())["metadata"].get("number") in ("0", None)
    assert join.root == (rows[-1].rpartition("/")[0] if "b.nii" in labelled else None)
    assert join.unmatched_rows + len(labelled) == len(rows)


def test_a_table_that_matches_nothing_says_both_sides(tmp_path: Path) -> None:
    """C16: how many rows, what they name and what the volumes are called."""
    volumes = listing("sub/a.nii")
    mismatch = read_labels(table(tmp_path, "path,organ\nx/1.nii,Heart\nx/2.nii,Lung\n"), volumes).mismatch
    assert mismatch is not None
    for told in ("labels.csv", "none of its 2 rows", "'x/1.nii'", "'sub/a.nii'", "path or volume_id"):
        assert told in mismatch
    assert "has no rows" in (read_labels(table(tmp_path, "path,organ\n"), volumes).mismatch or "")
    assert "1 fit several" in (read_labels(table(tmp_path, "path\na\n"), listing("x/a.nii", "y/a.nii")).mismatch or "")
    for join in (read_labels(None, volumes), read_labels(table(tmp_path, "path\na\nb\n"), volumes)):
        assert join.mismatch is None


@pytest.mark.parametrize("name", ["bids_na.tsv", "excel_empty_columns.csv", "pandas_index.csv", "windows_paths.csv"])
def test_tables_that_were_misread(shared_data: Path, name: str) -> None:
    """C16, C23: both rows match, and say what they say."""
    folder = shared_data / "faults" / "tables"
    join = read_labels(str(folder / name), list_archive(str(folder / "archive")))
    known = [by_id(join).get(f"sub-{number}/anat/{file}.nii.gz") for number, file in (("01", "a"), ("02", "b"))]
    bids = [labels(), labels(None, "MRI", None, "Brain", {"age": "31"})]
    assert known == (bids if name == "bids_na.tsv" else [labels(organ="Heart"), labels(organ="Lung")])
    assert join.unmatched_rows == 0


def test_real_labels_join_every_real_volume(shared_data: Path) -> None:
    volumes = list_archive(str(shared_data / "volumes"))
    join = read_labels(str(shared_data / "labels.csv"), volumes)
    assert (len(by_id(join)), join.unmatched_rows, join.unlabelled_volumes) == (169, 0, 0)
    everything = list_archive(str(shared_data))
    assert everything.skipped["label_mask"] == 71
    join = read_labels(str(shared_data / "labels.csv"), everything)
    assert (join.origins["table"]["modality"], join.unmatched_rows) == (169, 0)
    assert by_id(join)["volumes/sts_006_pet.nii.gz"]["modality"] == "PET"
