"""Labels of several origins are merged by column as dictionaries would be, one volume after the other."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from medret.archive import label_origins
from medret.archive.label_origins import DICOM, ORIGINS, TABLE
from medret.schemas import LABELS, LEDGER, VOLUME_LABELS

IDS = ("a", "b", "c", "d")
NAMES = ("modality", "subject", "age", "session", "StudyDate")
Texts = dict[str, dict[str, str]]  # volume_id -> name -> text

TEXTS = st.dictionaries(
    st.sampled_from(IDS), st.dictionaries(st.sampled_from(NAMES), st.sampled_from("12"), min_size=1)
)
GIVEN = st.fixed_dictionaries({origin: TEXTS for origin in ORIGINS if origin != DICOM})
FOUND = st.fixed_dictionaries(dict.fromkeys(IDS, st.dictionaries(st.sampled_from(NAMES), st.sampled_from("34"))))


def tables(given: dict[str, Texts]) -> list[pa.Table]:
    """VOLUME_LABELS per origin, in any order of the origins."""
    made = []
    for origin in reversed(given):
        rows = sorted(given[origin].items())
        names = sorted({name for _, texts in rows for name in texts})
        columns = {name: pa.array([texts.get(name) for _, texts in rows], pa.string()) for name in names}
        made.append(label_origins.from_columns(pa.array([row for row, _ in rows], pa.string()), columns, origin))
    return made


def read(labels: pa.Table) -> dict[str, dict[str, tuple[str, str]]]:
    """volume_id -> name -> text and origin."""
    found = {}
    for row in labels.to_pylist():
        texts: dict[str, Any] = {name: row[name] for name in LABELS if row[name] is not None} | dict(row["metadata"])
        assert texts.keys() == dict(row["origins"]).keys()
        found[row["volume_id"]] = {name: (text, dict(row["origins"])[name]) for name, text in texts.items()}
    return found


def expected(given: dict[str, Texts], found: Texts) -> dict[str, dict[str, tuple[str, str]]]:
    merged: dict[str, dict[str, tuple[str, str]]] = {one: {} for one in IDS}
    for origin in ORIGINS:
        for volume_id, texts in (found if origin == DICOM else given[origin]).items():
            merged[volume_id] = {name: (text, origin) for name, text in texts.items()} | merged[volume_id]
    return merged


@settings(max_examples=20, deadline=None)
@given(GIVEN, FOUND)
def test_the_first_origin_counts(given: dict[str, Texts], found: Texts) -> None:
    ids = pa.chunked_array([list(IDS)])
    maps = pa.chunked_array([pa.array([list(found[one].items()) for one in IDS], LEDGER.field("found").type)])
    labels = label_origins.merged(ids, tables(given))
    assert set(read(labels)) == {one for texts in given.values() for one in texts}
    assert read(labels) == {name: row for name, row in expected(given, {}).items() if row}
    whole = pa.concat_tables([labels, *(empty(one) for one in IDS if one not in read(labels))]).sort_by("volume_id")
    merged = label_origins.with_found(whole, maps)
    assert read(merged) == expected(given, found)
    names = label_origins.names_of(maps)
    before, now = (read(label_origins.own(each, names)) for each in (merged, whole))
    assert before == now  # of a ledger's row, and of what it is made from
    assert all(origin != DICOM for row in now.values() for _, origin in row.values())
    assert all(name not in found[one] or row[name][1] == TABLE for one, row in now.items() for name in row)
    hidden = label_origins.without(maps, {"subject", "StudyDate"})
    assert [dict(row) for row in hidden.to_pylist()] == [
        {name: text for name, text in found[one].items() if name not in ("subject", "StudyDate")} for one in IDS
    ]


def empty(volume_id: str) -> pa.Table:
    return pa.Table.from_pylist([{"volume_id": volume_id, "metadata": [], "origins": []}], VOLUME_LABELS)


def test_labels_without_origins_are_those_that_the_reader_was_given() -> None:
    """Rows of a journal: what the volumes' own tags say is not yet joined to them."""
    given = pa.Table.from_pylist([{"volume_id": one, "modality": "CT", "metadata": []} for one in "ab"], VOLUME_LABELS)
    own = label_origins.own(given, pa.array(["StudyDate,modality", None]))
    assert own["modality"].to_pylist() == ["CT", "CT"]


def test_large_tables_are_merged_in_parts(monkeypatch: Any) -> None:
    monkeypatch.setattr(label_origins, "PART_ROWS", 2)
    given = {"table": {"a": {"age": "1"}, "c": {"subject": "x"}}, "path": {"b": {"age": "2"}, "c": {"age": "3"}}}
    labels = label_origins.merged(pa.chunked_array([list(IDS)]), tables(given))
    assert read(labels) == {
        "a": {"age": ("1", "table")},
        "b": {"age": ("2", "path")},
        "c": {"subject": ("x", "table"), "age": ("3", "path")},
    }
    assert label_origins.counts(labels) == {
        "table": {"volumes": 2, "subject": 1, "metadata": 1},
        "path": {"volumes": 2, "metadata": 2},
    }
