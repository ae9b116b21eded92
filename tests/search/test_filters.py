from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from medret.errors import UsageError
from medret.search.filters import kept_rows, parse_filter
from medret.search.options import SearchOptions

TABLE = pa.table(
    {
        "volume_id": ["a", "b", "c", "d", "e"],
        "uri": ["1", "2", "3", "4", "5"],
        "modality": ["CT", "CT", "MRI", None, "PET"],
        "organ": ["liver", "lung", "liver", "brain", None],
        "kV": ["80", "120", None, "1e2", None],
        "slice thickness": ["0.5", "5", "2.50", None, "-1"],
        "note": ["it's", "50%", "x_y", "xzy", ""],
        'odd"name': ["1", "2", "3", "4", "5"],
    }
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("modality = 'CT'", "ab"),
        ("modality='CT'and organ='liver'", "a"),
        ("modality <> 'CT'", "ce"),
        ("modality != 'CT'", "ce"),
        ("not modality = 'CT'", "ce"),
        ("modality = 'CT' or organ = 'liver' and kV is null", "abc"),
        ("(modality = 'CT' or organ = 'liver') and kV is null", "c"),
        ("modality is null", "d"),
        ("modality is not null and not organ is null", "abc"),
        ("modality in ('CT', 'PET')", "abe"),
        ("modality not in ('CT', 'PET')", "c"),
        ("kV = 100", "d"),
        ("kV >= 100", "bd"),
        ("kV < 1.2e2", "ad"),
        ("kV in (80, 120.0)", "ab"),
        ("kV = '1e2'", "d"),
        ('"slice thickness" <= .5', "ae"),
        ('"slice thickness" = 2.5', "c"),
        ('"slice thickness" > -2', "abce"),
        ("note = 'it''s'", "a"),
        ("note like 'x_y'", "cd"),
        ("note like '50\\%'", "b"),
        ("note not like 'x%'", "abe"),
        ("note = ''", "e"),
        ('"odd""name" = \'3\'', "c"),
        ("NOT (modality IS NULL) AND Kv is null".replace("Kv", "kV"), "ce"),
        ("modality > 'CT'", "ce"),
        ("volume_id >= 'd'", "de"),
        (" ( ( modality = 'nothing' ) ) ", ""),
        ("organ = 'liver' or organ is null", "ace"),
    ],
)
def test_what_is_kept(text: str, kept: str) -> None:
    assert _kept(parse_filter(text, TABLE)) == kept


def _kept(condition: pc.Expression) -> str:
    return "".join(value for value, own in zip("abcde", kept_rows(condition, TABLE), strict=True) if own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the name of a column is missing \(at its end\)"),
        ("modality", r"=, <>, <, <=, >, >=, in, like or is is missing \(at its end\)"),
        ("modality = CT", r"a quoted text or a number is missing \(at character 12, before 'CT'\)"),
        ("modality = 'CT", r"this quote is not closed \(at character 12, "),
        ("modality = 'CT' organ = 'x'", r"'and', 'or' or the end is missing \(at character 17, "),
        ("(modality = 'CT'", r"\) is missing \(at its end\)"),
        ("modality = 'CT')", r"the end is missing \(at character 16"),
        ("modality in 'CT'", r"\( is missing"),
        ("modality in ()", "a quoted text or a number is missing"),
        ("modality is 'CT'", "null is missing"),
        ("modality like 3", "a quoted pattern is missing"),
        ("modality; drop table", r"this is not understood \(at character 9"),
        ("__import__('os')", "=, <>, .* is missing"),
        ("modality = 1 = 2", "the end is missing"),
        ("kV = 12abc", "a quoted text or a number is missing|not understood"),
        ("(" * 60 + "modality = 'CT'" + ")" * 60, "more than 50 parentheses"),
        ("not " * 60 + "modality = 'CT'", "more than 50 parentheses or 'not'"),
        ("a" * 20_001, "filter has 20001 characters"),
    ],
)
def test_what_is_not_understood(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        parse_filter(text, TABLE)
    assert "\n" not in str(raised.value)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(
        UsageError, match=r"no column 'Organ'; the snapshot has volume_id, modality, organ, kV, slice th"
    ):
        parse_filter("Organ = 'liver'", TABLE)


def test_text_is_not_compared_with_numbers() -> None:
    with pytest.raises(UsageError, match=r"column 'organ' is compared with a number, .*put the number in quotes"):
        parse_filter("organ > 3", TABLE)


def test_an_empty_table() -> None:
    empty = TABLE.slice(0, 0)
    assert kept_rows(parse_filter("modality = 'CT' or kV > 3", empty), empty).tolist() == []


def test_a_filter_as_long_as_may_be() -> None:
    many = " or ".join(["organ = 'x'"] * 1300 + ["organ = 'lung'"])
    assert _kept(parse_filter(many, TABLE)) == "b"
    assert _kept(parse_filter("organ in (" + "'x', " * 3000 + "'lung')", TABLE)) == "b"


def test_an_expression_of_pyarrow() -> None:
    assert _kept(pc.field("modality") == "CT") == "ab"
    assert _kept(~(pc.field("modality") == "CT")) == "ce"
    assert _kept(pc.scalar(True)) == "abcde"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (pc.field("Organ") == "liver", "there is no column 'Organ'; the snapshot has volume_id, modality, organ"),
        (pc.field("organ") == 3, r"filter \(organ == 3\): .*; all columns of labels are text"),
        (pc.field("organ").cast(pa.float64()) > 3, "filter .*; all columns of labels are text"),
        (pc.field("organ"), "filter organ is string, expected a condition"),
    ],
)
def test_an_expression_that_does_not_fit(condition: pc.Expression, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        kept_rows(condition, TABLE)
    assert "\n" not in str(raised.value)


def test_a_filter_is_a_text_or_an_expression() -> None:
    with pytest.raises(UsageError, match="where is a dict, expected a text or a pyarrow expression"):
        SearchOptions.of({"where": {"modality": "CT"}})


def test_a_filter_is_text() -> None:
    with pytest.raises(UsageError, match=r"filter organ = '\\udcff' is not UTF-8 text"):
        parse_filter("organ = '\udcff'", TABLE)
