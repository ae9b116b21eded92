"""The tree of errors is as it is drawn, and there is no other."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from medret import errors
from medret.errors import CorruptError, MedretError, NotFoundError, UnreachableError, UsageError, VersionError

ROOT = Path(errors.__file__).parent
_LINE = re.compile(r"    ([│├└─ ]*)(\w+Error) +(?:exit (\d)|\(a value, not an exit\)) ", re.ASCII)


def drawn() -> Iterator[tuple[str, str, int | None]]:
    """(name, name of the parent, exit code) of each class in the drawing."""
    above: list[str] = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if found := _LINE.match(line):
            depth = len(found[1]) // 4
            del above[depth + 1 :]
            yield found[2], above[-1], int(found[3]) if found[3] else None
            above.append(found[2])


def test_the_drawing_is_the_tree_of_classes() -> None:
    """Names, parents and exit codes."""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]
    picture = list(drawn())
    assert {(name, parent) for name, parent, _ in picture} == {
        (one.__name__, one.__bases__[0].__name__) for one in classes
    }
    assert len(picture) == len(classes)
    for name, _, exit_code in picture:
        if exit_code is not None:
            assert getattr(errors, name).exit_code == exit_code, name


def test_what_is_to_be_told_apart_can_be() -> None:
    """Not found, unreachable, damaged, of another version, and wrong usage: none is caught for another."""
    kinds = (NotFoundError, UnreachableError, CorruptError, VersionError)
    for one, other in combinations(kinds, 2):
        assert not issubclass(one, other)
        assert not issubclass(other, one)
    assert [kind for kind in kinds if issubclass(kind, UsageError)] == [NotFoundError]
    assert not any(issubclass(UsageError, kind) for kind in kinds)
    assert len({kind("x").exit_code for kind in (NotFoundError, UnreachableError)}) == 2


def test_no_error_is_defined_elsewhere() -> None:
    """Every exception class of the package stands in errors.py, or is named there."""
    bases = {
        found.name: [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in found.bases]
        for path in ROOT.rglob("*.py")
        if path != Path(errors.__file__)
        for found in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(found, ast.ClassDef)
    }

    def is_exception(name: str) -> bool:
        known = getattr(errors, name, None) or getattr(builtins, name, None)
        if isinstance(known, type):
            return issubclass(known, BaseException)
        return name.endswith(("Error", "Exception")) or any(map(is_exception, bases.get(name, ())))

    found = {name for name in bases if any(map(is_exception, bases[name]))}
    assert found == {name for name in found if f"{name} " in (errors.__doc__ or "")}
    assert is_exception("MedretError")
    assert not issubclass(MedretError, ValueError | OSError)
