"""No circle of imports: neither when the modules are loaded, nor for type checkers, nor by imports inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_no_module_imports_itself_over_others() -> None:
    """Imports at the top of modules and under TYPE_CHECKING."""
    assert _circle(_graph(functions=False)) == []


def test_no_function_imports_what_imports_its_module() -> None:
    """Imports inside functions save time or a heavy library; they do not hide a circle."""
    assert _circle(_graph(functions=True)) == []


@pytest.mark.parametrize("text", ["import a.b", "from a import b", "from a.b import name"])
def test_every_form_of_import_is_seen(text: str) -> None:
    modules = {"a": "", "a.b": ""}
    assert set(_imported(ast.parse(text), modules, functions=False)) == {"a.b"}
    inside = ast.parse(f"def call() -> None:\n    {text}")
    assert not set(_imported(inside, modules, functions=False))
    assert set(_imported(inside, modules, functions=True)) == {"a.b"}


def _graph(*, functions: bool) -> dict[str, set[str]]:
    """Module -> the modules of medret that it imports."""
    paths = sorted((ROOT / "medret").rglob("*.py"))
    texts = {".".join(_parts(path)): path.read_text(encoding="utf-8") for path in paths}
    return {name: set(_imported(ast.parse(text), texts, functions=functions)) - {name} for name, text in texts.items()}


def _parts(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _imported(tree: ast.AST, modules: dict[str, str], *, functions: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else str(node.module) for name in names if node.module in modules)
        elif functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imported(node, modules, functions=functions)


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, its first module also last; empty when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []
