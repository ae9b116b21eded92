"""Tables that name series, not paths: that of idc-index, and any with columns named as DICOM names them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medret.archive import LabelJoin, Listing, read_labels
from medret.errors import UsageError
from medret.schemas import OBJECTS
from medret.vocabularies import LABEL_OF, body_region, labels_of_tags

UUIDS = ("085e85b3-3780-47f6-8538-585bcca95336", "391211d4-0a2b-409b-ac92-8102137f4453")
UIDS = ("1.3.6.1.4.1.14519.5.2.1.6834.5010.1", "1.3.6.1.4.1.14519.5.2.1.6834.5010.2")


def index(folder: Path, **more: list[object]) -> str:
    """A few columns of the table of idc-index, as it gives them."""
    large = pa.large_string()
    columns = {
        "collection_id": pa.array(["4d_lung", "nlst"], large),
        "PatientID": pa.array(["100_HM10395", "7"], large),
        "SeriesInstanceUID": pa.array(UIDS, large),
        "BodyPartExamined": pa.array(["LUNG", None], large),
        "Modality": pa.array(["CT", "PT"], large),
        "instanceCount": pa.array([50, 60], pa.int64()),
        "crdc_series_uuid": pa.array(UUIDS, large),
        "series_aws_url": pa.array([f"s3://idc-open-data/{uuid}/*" for uuid in UUIDS], large),
    } | {name: pa.array(values) for name, values in more.items()}
    pq.write_table(pa.table({name: column for name, column in columns.items() if len(column)}), folder / "idc.parquet")
    return str(folder / "idc.parquet")


def joined(table: str, *volume_ids: str) -> LabelJoin:
    objects = [{"volume_id": name, "size_bytes": 1, "parts": 50} for name in sorted(volume_ids)]
    return read_labels(table, Listing("s3://idc-open-data", pa.Table.from_pylist(objects, OBJECTS), {}))


@pytest.mark.parametrize(
    "names",
    [
        UUIDS,  # the bucket
        tuple(f"4d_lung/100/1.2.840.1/CT_{uid}" for uid in UIDS),  # as idc-index downloads
        UIDS,
        tuple(f"study/{uid}" for uid in UIDS),  # several series in a folder
        tuple(f"{uid}.nii.gz" for uid in UIDS),
        tuple(f"zips/{uuid}.zip" for uuid in UUIDS),
    ],
)
def test_the_table_of_idc_index_is_taken_as_it_is(tmp_path: Path, names: tuple[str, ...]) -> None:
    join = joined(index(tmp_path), *names, "another/1.2.3.4.5")
    assert (join.unmatched_rows, join.unlabelled_volumes, join.mismatch) == (0, 1, None)
    one, other = (next(row for row in join.labels.to_pylist() if row["volume_id"] == name) for name in names)
    assert (one["subject"], one["modality"], one["body_region"]) == ("100_HM10395", "CT", "Chest")
    assert (other["subject"], other["modality"], other["body_region"]) == ("7", "PET", None)
    assert dict(one["metadata"])["collection_id"] == "4d_lung"
    assert dict(one["metadata"])["instanceCount"] == "50"
    assert dict(one["metadata"])["SeriesInstanceUID"] == UIDS[0]
    assert set(dict(one["origins"]).values()) == {"table"}


def test_any_of_the_columns_names_a_series(tmp_path: Path) -> None:
    without: dict[str, list[object]] = {"crdc_series_uuid": [], "series_aws_url": []}
    assert joined(index(tmp_path, **without), f"x/{UIDS[1]}", UUIDS[0]).labels["subject"].to_pylist() == ["7"]
    assert joined(index(tmp_path, crdc_series_uuid=[], SeriesInstanceUID=[]), *UUIDS).labels.num_rows == 2


def test_series_that_are_not_there(tmp_path: Path) -> None:
    join = joined(index(tmp_path), UUIDS[1])
    assert (join.labels.num_rows, join.unmatched_rows, join.unmatched_example) == (1, 1, UUIDS[0])
    assert "none of its 2 rows names one volume" in (joined(index(tmp_path), "a/b").mismatch or "")


def test_a_path_counts_before_a_series_and_plain_names_before_those_of_dicom(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,SeriesInstanceUID,patientid,subject,BodyPartExamined\na,1.2.3.4,x,y,ABDOMENPELVIS\n")
    row = joined(str(table), "a", "1.2.3.4").labels.to_pylist()
    assert [(each["volume_id"], each["subject"], each["body_region"]) for each in row] == [("a", "y", "Abdomen;Pelvis")]
    assert dict(row[0]["metadata"]) == {"SeriesInstanceUID": "1.2.3.4", "patientid": "x"}


def test_words_of_body_regions() -> None:
    assert [body_region(word) for word in ("CHEST", "lung", "CHESTABDPELVIS", "Left knee", "unheard of")] == [
        "Chest", "Chest", "Chest;Abdomen;Pelvis", "Extremity", "",
    ]  # fmt: skip


def test_tags_to_labels() -> None:
    assert labels_of_tags(["PatientID, studydate", "SequenceName"]) == {"subject", "StudyDate", "sequence"}
    assert labels_of_tags(["all"]) == set(LABEL_OF.values())
    assert labels_of_tags([]) == frozenset()
    with pytest.raises(UsageError, match=r"no label is taken from a tag 'PatientName'; there are PatientID, "):
        labels_of_tags(["PatientName"])


def test_rows_of_one_series_must_agree_and_rows_of_none_are_of_none(tmp_path: Path) -> None:
    twice: dict[str, list[object]] = {"SeriesInstanceUID": [UIDS[0]] * 2, "crdc_series_uuid": [], "series_aws_url": []}
    with pytest.raises(UsageError, match=f"two rows for x/{UIDS[0]} disagree"):
        joined(index(tmp_path, **twice), f"x/{UIDS[0]}")
    urls: list[object] = [f"s3://own/{uid}/*" for uid in UIDS]  # they end in no UUID: not the same one
    nothing: list[object] = [None, None]
    for more in ({"series_aws_url": urls}, {"crdc_series_uuid": nothing, "series_aws_url": urls}):
        join = joined(index(tmp_path, **more), f"x/{UIDS[0]}", "y/none")
        assert (join.labels["volume_id"].to_pylist(), join.unmatched_rows) == ([f"x/{UIDS[0]}"], 1)


def test_equal_rows_of_a_series_are_one(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("SeriesInstanceUID,organ\n" + f"{UIDS[0]},Lung\n" * 3)
    join = joined(str(table), f"x/{UIDS[0]}", f"y/{UIDS[0]}")
    assert (join.labels["organ"].to_pylist(), join.unmatched_rows) == (["Lung", "Lung"], 0)
