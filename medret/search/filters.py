"""Filters on labels: a small SQL-like condition to a pyarrow expression, and an expression to the volumes it keeps.

    modality = 'CT' and (body_region in ('Chest', 'Abdomen') or not organ is null)
    "slice thickness" <= 2.5 and dataset <> 'A' and subject like 'P0%'

Parsed by hand (recursive descent) and computed by pyarrow; nothing is evaluated as code. As in SQL, a comparison with
a missing value is unknown, and unknown is not kept. A number is compared as a number, a quoted text as text.
"""

from __future__ import annotations

import operator
import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import acero

from medret.errors import UsageError
from medret.search.ledger import mask_of
from medret.storage import is_text
from medret.visible import visible

LENGTH_MAX = 20_000
DEPTH_MAX = 50
KEYWORDS = frozenset(("and", "or", "not", "in", "is", "null", "like"))
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")+")|(?P<op><=|>=|<>|!=|=|<|>)|(?P<mark>[(),])"""
    r"""|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<word>[^\W\d][\w.\-/]*))"""
)
_COMPARE = {
    "=": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_UNKNOWN = re.compile(r"No match for FieldRef\.Name\((?P<column>.*)\) in ")


class _Token(NamedTuple):
    kind: str  # text | column | number | op | mark | word | end
    text: str
    at: int


def parse_filter(text: str, labels: pa.Table) -> pc.Expression:
    """A condition as an expression over the columns of `labels`.

    Raises UsageError that says where the text is not understood, or which column is missing or holds no numbers.
    """
    if len(text) > LENGTH_MAX:
        raise UsageError(f"filter has {len(text)} characters, the limit is {LENGTH_MAX}")
    if not is_text(text):
        raise UsageError(f"filter {visible(text)} is not UTF-8 text")
    parser = _Parser(text)
    condition = parser.disjunction(0)
    parser.expect_end()
    for column in parser.columns:
        if column not in labels.column_names:
            raise _no_column(column, labels)
    for column in parser.numbers:
        try:
            pc.cast(labels[column], pa.float64())
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"filter: column '{column}' is compared with a number, but not all its values are numbers ({error}); "
                "put the number in quotes to compare it as text"
            ) from error
    return condition


def kept_rows(condition: pc.Expression, labels: pa.Table) -> NDArray[np.bool_]:
    """(rows,) whether a condition keeps each row of `labels`; raises UsageError if it does not fit the columns."""
    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(labels))
    project = acero.Declaration("project", acero.ProjectNodeOptions([condition], ["kept"]))
    try:
        kept = acero.Declaration.from_sequence([source, project]).to_table(use_threads=False)["kept"]
    except pa.ArrowException as error:
        if missing := _UNKNOWN.match(str(error)):
            raise _no_column(missing["column"], labels) from error
        problem = str(error).partition("\n")[0]
        raise UsageError(f"filter {condition}: {problem}; all columns of labels are text") from error
    if not pa.types.is_boolean(kept.type):
        raise UsageError(f"filter {condition} is {kept.type}, expected a condition such as field('organ') == 'lung'")
    return mask_of(kept)


def _no_column(column: str, labels: pa.Table) -> UsageError:
    columns = ", ".join(name for name in labels.column_names if name != "uri")
    return UsageError(f"filter: there is no column '{column}'; the snapshot has {columns}")


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            unclosed = text[start] in "'\""
            raise _error(text, start, "this quote is not closed" if unclosed else "this is not understood")
        kind = str(match.lastgroup)
        token, start, at = match[kind], match.start(kind), match.end()
        match kind:
            case "text":
                tokens.append(_Token("text", token[1:-1].replace("''", "'"), start))
            case "quoted":
                tokens.append(_Token("column", token[1:-1].replace('""', '"'), start))
            case "word" if token.lower() not in KEYWORDS:
                tokens.append(_Token("column", token, start))
            case "word":
                tokens.append(_Token("word", token.lower(), start))
            case _:
                tokens.append(_Token(kind, token, start))
    return [*tokens, _Token("end", "", len(text))]


def _error(text: str, at: int, problem: str) -> UsageError:
    there = f"at character {at + 1}, before {text[at : at + 20]!r}" if text[at:].strip() else "at its end"
    return UsageError(
        f"filter {text!r}: {problem} ({there}); expected such as \"modality = 'CT' and organ in ('liver', 'lung')\""
    )


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self.columns: dict[str, None] = {}  # in the order of the text
        self.numbers: dict[str, None] = {}  # those compared with a number

    def _take(self, kind: str, *texts: str) -> _Token | None:
        token = self._tokens[self._next]
        if token.kind != kind or (texts and token.text not in texts):
            return None
        self._next += 1
        return token

    def _fail(self, problem: str) -> UsageError:
        return _error(self._text, self._tokens[self._next].at, problem)

    def _need(self, kind: str, text: str) -> None:
        if self._take(kind, text) is None:
            raise self._fail(f"{text} is missing")

    def expect_end(self) -> None:
        if self._tokens[self._next].kind != "end":
            raise self._fail("'and', 'or' or the end is missing")

    def disjunction(self, depth: int) -> pc.Expression:
        conditions = [self._conjunction(depth)]
        while self._take("word", "or"):
            conditions.append(self._conjunction(depth))
        return _joined(operator.or_, conditions)

    def _conjunction(self, depth: int) -> pc.Expression:
        conditions = [self._negation(depth)]
        while self._take("word", "and"):
            conditions.append(self._negation(depth))
        return _joined(operator.and_, conditions)

    def _negation(self, depth: int) -> pc.Expression:
        if depth > DEPTH_MAX:
            raise self._fail(f"more than {DEPTH_MAX} parentheses or 'not' lie within each other")
        if self._take("word", "not"):
            return ~self._negation(depth + 1)
        if self._take("mark", "("):
            condition = self.disjunction(depth + 1)
            self._need("mark", ")")
            return condition
        return self._predicate()

    def _predicate(self) -> pc.Expression:
        column = self._take("column")
        if column is None:
            raise self._fail("the name of a column is missing")
        if symbol := self._take("op"):
            return self._comparison(column.text, symbol.text, self._literal())
        if self._take("word", "is"):
            inverted = self._take("word", "not")
            self._need("word", "null")
            missing = self._field(column.text).is_null()
            return ~missing if inverted else missing
        inverted = self._take("word", "not")
        if self._take("word", "in"):
            self._need("mark", "(")
            conditions = [self._comparison(column.text, "=", self._literal())]
            while self._take("mark", ","):
                conditions.append(self._comparison(column.text, "=", self._literal()))
            self._need("mark", ")")
            condition = _joined(operator.or_, conditions)
        elif self._take("word", "like"):
            pattern = self._take("text")
            if pattern is None:
                raise self._fail("a quoted pattern is missing after 'like'")
            condition = pc.match_like(self._field(column.text), pattern.text)
        else:
            raise self._fail("=, <>, <, <=, >, >=, in, like or is is missing")
        return ~condition if inverted else condition

    def _literal(self) -> str | float:
        if token := self._take("text"):
            return token.text
        if token := self._take("number"):
            return float(token.text)
        raise self._fail("a quoted text or a number is missing")

    def _field(self, column: str) -> pc.Expression:
        self.columns[column] = None
        return pc.field(column)

    def _comparison(self, column: str, symbol: str, literal: str | float) -> pc.Expression:
        values = self._field(column)
        if isinstance(literal, float):
            self.numbers[column] = None
            values = values.cast(pa.float64())
        return _COMPARE[symbol](values, literal)


def _joined(join: Any, conditions: list[pc.Expression]) -> pc.Expression:
    """All conditions, halved again and again: pyarrow walks a nested expression by recursion."""
    if len(conditions) == 1:
        return conditions[0]
    middle = len(conditions) // 2
    return join(_joined(join, conditions[:middle]), _joined(join, conditions[middle:]))
