from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medret.schemas import LEDGER
from medret.search.ledger import Ledger, _File


def _ledger(*base: Path, changes: Sequence[Path] = ()) -> Ledger:
    return Ledger([partial(Path, path) for path in base], [partial(Path, path) for path in changes])


def _write(path: Path, ids: list[str], *, statistics: bool = True) -> Path:
    rows: list[dict[str, Any]] = []
    for volume_id in ids:
        row: dict[str, Any] = dict.fromkeys(LEDGER.names)
        quarantined = volume_id.endswith("bad")
        row.update(volume_id=volume_id, uri=f"/a/{volume_id}", size_bytes=1, slices=0, organ="Liver")
        row.update(status="quarantined" if quarantined else "embedded", content_sha256=volume_id[0] * 64)
        row.update(code="empty" if quarantined else None, reason="0 bytes" if quarantined else None)
        row.update(metadata=[("sequence", "T1"), ("organ", "shadowed")])
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema=LEDGER)
    pq.write_table(table, path, row_group_size=3, write_statistics=statistics)
    return path


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_are_found_in_any_group_of_any_file(tmp_path: Path, statistics: bool) -> None:
    ids = [f"{letter}/{number:02d}" for letter in "aé" for number in range(7)]
    paths = [
        _write(tmp_path / "0", ids[:8], statistics=statistics),
        _write(tmp_path / "1", ids[8:], statistics=statistics),
    ]
    ledger = _ledger(*paths)
    found = ledger.rows([*ids, "", "a/03x", "zz", "é/99"])
    assert list(found) == ids
    assert all(row.volume_id == volume_id and row.uri == f"/a/{volume_id}" for volume_id, row in found.items())


def test_only_the_groups_that_are_asked_for_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = _ledger(_write(tmp_path / "0", [f"{number:03d}" for number in range(60)]))
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    ledger.rows(["000", "001", "059", "002"])
    assert read == [0, 19]


def test_only_the_files_on_the_way_to_a_row_are_opened(tmp_path: Path) -> None:
    paths = [_write(tmp_path / f"{first:02d}", [f"{first:02d}", f"{first + 1:02d}"]) for first in range(0, 32, 2)]
    opened = []

    def open_file(path: Path) -> Path:
        opened.append(path.name)
        return path

    ledger = Ledger([partial(open_file, path) for path in paths])
    assert ledger.rows(["11"]).keys() == {"11"}
    assert "10" in opened
    assert len(opened) <= 5, "bisection over 16 files"


def test_a_row_is_one_group_of_the_changes_or_one_more_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _write(tmp_path / "0", [f"{number:03d}" for number in range(60)])
    changes = _write(tmp_path / "1", [f"{number:03d}" for number in range(0, 90, 5)])
    ledger, read = _ledger(base, changes=[changes]), []
    original = _File.read

    def counted(self: _File, columns: list[str], group: int | None = None) -> pa.Table:
        read.append((self._name, group))
        return original(self, columns, group)

    monkeypatch.setattr(_File, "read", counted)
    for volume_id, groups in (("020", [(str(changes), 1)]), ("021", [(str(base), 7)]), ("085", [(str(changes), 5)])):
        assert ledger.rows([volume_id]).keys() == {volume_id}
        assert read == groups, volume_id
        read.clear()


def test_labels_and_problems(tmp_path: Path) -> None:
    ledger = _ledger(_write(tmp_path / "0", ["a/bad", "b/good"]))
    good, bad = ledger.row("b/good"), ledger.row("a/bad")
    assert good is not None
    assert bad is not None
    assert good.labels == {
        "subject": None, "modality": None, "body_region": None, "organ": "Liver", "sequence": "T1"
    }  # fmt: skip
    assert (good.embedded, good.problem) == (True, None)
    assert (bad.embedded, bad.problem) == (False, "empty: 0 bytes")


def test_content_is_found_among_embedded_volumes(tmp_path: Path) -> None:
    ledger = _ledger(_write(tmp_path / "0", ["a/1", "a/2", "a/bad"]), _write(tmp_path / "1", ["b/1"]))
    assert ledger.ids_with_content("a" * 64) == ["a/1", "a/2"]
    assert ledger.ids_with_content("c" * 64) == []
    assert ledger.ids_with_content("a" * 64, "b" * 64) == ["a/1", "a/2", "b/1"]


def test_row_groups_without_rows_are_passed_over(tmp_path: Path) -> None:
    whole = pq.read_table(_write(tmp_path / "0", ["a/1", "b/1"]))
    with pq.ParquetWriter(tmp_path / "1", whole.schema) as writer:
        for part in (whole.slice(0, 0), whole.slice(0, 1), whole.slice(0, 0), whole.slice(1)):
            writer.write_table(part)
    assert pq.read_metadata(tmp_path / "1").num_row_groups == 4
    assert _ledger(tmp_path / "1").rows(["a/1", "b/1", "", "c"]).keys() == {"a/1", "b/1"}
