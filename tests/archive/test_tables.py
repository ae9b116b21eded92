"""Tables of labels as pandas, R, Excel and BIDS write them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from medret.archive.label_table import MISSING, Table, read_table
from medret.errors import UsageError

FRAME = pd.DataFrame(
    {
        "path": ["a, b.nii", "Müller;2.nii", "c.nii"],
        "organ": ["Heart", None, 'a "b"\nc'],
        "age": [61.5, float("nan"), 7.0],
    }
)
EXPECTED = (("a, b.nii", "Heart", "61.5"), ("Müller;2.nii", None, None), ("c.nii", 'a "b"\nc', "7.0"))


def bytes_of(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def rows(table: Table) -> list[tuple[str | None, ...]]:
    return list(zip(*(column.to_pylist() for column in table.cells.columns), strict=True))


WRITERS: dict[str, bytes] = {
    "pandas": FRAME.to_csv().encode(),
    "without index": FRAME.to_csv(index=False).encode(),
    "read and written again": pd.read_csv(io.StringIO(FRAME.to_csv())).to_csv().encode(),
    "semicolons": FRAME.to_csv(sep=";", index=False).encode(),
    "tabs, n/a": FRAME.to_csv(sep="\t", na_rep="n/a").encode(),
    "bars": FRAME.to_csv(sep="|").encode(),
    "Excel, CSV UTF-8": FRAME.to_csv(index=False, lineterminator="\r\n").encode("utf-8-sig"),
    "Excel, Unicode text": FRAME.to_csv(index=False, sep="\t").encode("utf-16"),
    "Excel, sep line": ("\ufeffsep=;\r\n" + FRAME.to_csv(sep=";", index=False)).encode(),
    "empty columns and rows": FRAME.assign(x=None, y=None).to_csv(index=False).replace(",x,y\n", ",,\n,,,,\n").encode(),
    "a comma more in every line": FRAME.assign(x=None).to_csv(index=False).replace(",x\n", "\n").encode(),
    "R, write.csv": FRAME.rename(index=lambda row: str(row + 1)).to_csv(na_rep="NA", quoting=2).encode(),
    "R, write.table": (
        '"path" "organ" "age"\n"1" "a, b.nii" "Heart" 61.5\n"2" "Müller;2.nii" NA NA\n"3" "c.nii" "a ""b""\nc" 7.0\n'
    ).encode(),
    "Parquet": bytes_of(FRAME.to_parquet),
    "Parquet with an index": bytes_of(lambda file: FRAME.iloc[[2, 0, 1]].sort_values("path").to_parquet(file)),
    "names with delimiters": FRAME.rename(columns={"organ": "a;b;c;d"}).to_csv().encode(),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_what_common_programs_write(tmp_path: Path, writer: str) -> None:
    """C23: index columns, empty columns, `sep=;`, delimiters inside quotes, UTF-16, R's row names."""
    (tmp_path / "labels").write_bytes(WRITERS[writer])
    found = read_table(str(tmp_path / "labels"))
    organ = "a;b;c;d" if writer == "names with delimiters" else "organ"
    assert found.cells.column_names == ["path", organ, "age"]
    assert sorted(rows(found)) == sorted(EXPECTED)


@pytest.mark.parametrize("word", [*sorted(MISSING), "N/A", "NaN", "NA", "None", "NULL", "#N/A", "<NA>", " n/a "])
def test_words_for_nothing_are_no_value(tmp_path: Path, word: str) -> None:
    """C23: no subject and no organ is called n/a, in text or in Parquet."""
    frame = pd.DataFrame({"path": ["a.nii", "b.nii"], "organ": [word, "no"], "subject": ["x", word]})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    frame.to_parquet(tmp_path / "labels.parquet")
    for name in ("labels.csv", "labels.parquet"):
        assert rows(read_table(str(tmp_path / name))) == [("a.nii", None, "x"), ("b.nii", "no", None)]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("path,organ\na.nii,Heart\nMüller.nii,Milz\n".encode("latin-1"), "0xfc in line 3.*Müller.*UTF-8"),
        (b"PK\x03\x04 and so on", "Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1", "Excel workbook"),
        (gzip.compress(b"path\na\n", mtime=0), "gzip: unpack it"),
        ("path\na\n".encode("utf-16-le"), "zero bytes"),
        (b"\xff\xfep\x00\x00\xd8", "UTF-16 byte order mark"),
        (b"sep=;\n", "empty"),
        (b"path,organ\nx,a.nii,Heart\n", "line 2: 3 cells"),
        (b"sep=;\npath;organ\na;b;c\n", "line 3: 3 cells"),
    ],
)
def test_other_files_are_named_in_one_line(tmp_path: Path, data: bytes, told: str) -> None:
    """C23: what is no table says what it is, and what to do."""
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(UsageError, match=told) as caught:
        read_table(str(tmp_path / "labels"))
    assert len(str(caught.value).splitlines()) == 1


def test_the_sep_line_of_the_shared_table(shared_data: Path) -> None:
    found = read_table(str(shared_data / "faults" / "tables" / "sep_line.csv"))
    assert found.cells.to_pydict() == {"path": ["sub-01/anat/a.nii.gz"], "organ": ["Heart"]}
