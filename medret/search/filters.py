"""Filters on labels: a small SQL-like condition to the volumes that it keeps.

    modality = 'CT' and (body_region in ('Chest', 'Abdomen') or not organ is null)
    "slice thickness" <= 2.5 and dataset <> 'A' and subject like 'P0%'

Parsed by hand (recursive descent) and computed by pyarrow; nothing is evaluated as code. As in SQL, a comparison with
an absent value is unknown, and unknown is not kept. A number is compared as a number, a quoted text as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from medret.errors import UsageError

Condition = Callable[[pa.Table], pa.BooleanArray]

LENGTH_MAX = 20_000
DEPTH_MAX = 50
KEYWORDS = frozenset(("and", "or", "not", "in", "is", "null", "like"))
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")+")|(?P<op><=|>=|<>|!=|=|<|>)|(?P<mark>[(),])"""
    r"""|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<word>[^\W\d][\w.\-/]*))"""
)
_COMPARE: dict[str, Any] = {
    "=": pc.equal, "!=": pc.not_equal, "<>": pc.not_equal,
    "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


class _Token(NamedTuple):
    kind: str  # text | column | number | op | mark | word | end
    text: str
    at: int


def parse_filter(text: str) -> Condition:
    """A condition as a function of the label table; raises UsageError saying where it is not understood."""
    if len(text) > LENGTH_MAX:
        raise UsageError(f"filter has {len(text)} characters, the limit is {LENGTH_MAX}")
    parser = _Parser(text)
    condition = parser.disjunction(0)
    parser.expect_end()
    return condition


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            unclosed = text[start] in "'\""
            raise _error(text, start, "this quote is not closed" if unclosed else "this is not understood")
        kind = str(match.lastgroup)
        found, start, at = match[kind], match.start(kind), match.end()
        match kind:
            case "text":
                tokens.append(_Token("text", found[1:-1].replace("''", "'"), start))
            case "quoted":
                tokens.append(_Token("column", found[1:-1].replace('""', '"'), start))
            case "word" if found.lower() not in KEYWORDS:
                tokens.append(_Token("column", found, start))
            case "word":
                tokens.append(_Token("word", found.lower(), start))
            case _:
                tokens.append(_Token(kind, found, start))
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

    def disjunction(self, depth: int) -> Condition:
        condition = self._conjunction(depth)
        while self._take("word", "or"):
            condition = _both(pc.or_kleene, condition, self._conjunction(depth))
        return condition

    def _conjunction(self, depth: int) -> Condition:
        condition = self._negation(depth)
        while self._take("word", "and"):
            condition = _both(pc.and_kleene, condition, self._negation(depth))
        return condition

    def _negation(self, depth: int) -> Condition:
        if depth > DEPTH_MAX:
            raise self._fail(f"more than {DEPTH_MAX} parentheses or 'not' lie within each other")
        if self._take("word", "not"):
            return _inverse(self._negation(depth + 1))
        if self._take("mark", "("):
            condition = self.disjunction(depth + 1)
            self._need("mark", ")")
            return condition
        return self._predicate()

    def _predicate(self) -> Condition:
        column = self._take("column")
        if column is None:
            raise self._fail("the name of a column is missing")
        if operator := self._take("op"):
            return _comparison(column.text, operator.text, self._literal())
        if self._take("word", "is"):
            inverted = self._take("word", "not")
            self._need("word", "null")
            return _inverse(_absent(column.text)) if inverted else _absent(column.text)
        inverted = self._take("word", "not")
        if self._take("word", "in"):
            self._need("mark", "(")
            condition = _comparison(column.text, "=", self._literal())
            while self._take("mark", ","):
                condition = _both(pc.or_kleene, condition, _comparison(column.text, "=", self._literal()))
            self._need("mark", ")")
        elif self._take("word", "like"):
            pattern = self._take("text")
            if pattern is None:
                raise self._fail("a quoted pattern is missing after 'like'")
            condition = _like(column.text, pattern.text)
        else:
            raise self._fail("=, <>, <, <=, >, >=, in, like or is is missing")
        return _inverse(condition) if inverted else condition

    def _literal(self) -> str | float:
        if token := self._take("text"):
            return token.text
        if token := self._take("number"):
            return float(token.text)
        raise self._fail("a quoted text or a number is missing")


def _both(join: Any, first: Condition, second: Condition) -> Condition:
    return lambda table: join(first(table), second(table))


def _inverse(condition: Condition) -> Condition:
    return lambda table: pc.invert(condition(table))


def _absent(column: str) -> Condition:
    return lambda table: pc.is_null(_values(table, column))


def _like(column: str, pattern: str) -> Condition:
    return lambda table: pc.match_like(_values(table, column), pattern)


def _comparison(column: str, operator: str, literal: str | float) -> Condition:
    compare = _COMPARE[operator]
    if isinstance(literal, str):
        return lambda table: compare(_values(table, column), literal)
    return lambda table: compare(_numbers(table, column), literal)


def _values(table: pa.Table, column: str) -> pa.Array:
    if column not in table.column_names:
        there = ", ".join(name for name in table.column_names if name != "uri")
        raise UsageError(f"filter: there is no column '{column}'; the snapshot has {there}")
    return table[column].combine_chunks()


def _numbers(table: pa.Table, column: str) -> pa.Array:
    values = _values(table, column)
    try:
        return pc.cast(values, pa.float64())
    except pa.ArrowInvalid as error:
        raise UsageError(
            f"filter: column '{column}' is compared with a number, but not all of its values are numbers ({error}); "
            "put the number in quotes to compare it as text"
        ) from error
