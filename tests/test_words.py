"""The words and the grain of the house: old names stay away, file names are unique, files have a readable size."""

from __future__ import annotations

import tokenize
from collections import Counter
from pathlib import Path

MEDRET = Path(__file__).parents[1] / "medret"
MODULES = sorted(MEDRET.rglob("*.py"))
MODULES_MAX = 193
LINES_MAX = 350

# Names that were replaced by the field's own. Names on disk stay, and are named in these files alone.
OLD = {
    "deed",
    "Deed",
    "Wanted",
    "Known",
    "Previous",
    "Past",
    "is_passing",
    "PASSING_CODES",
    "retrying",
    "write_named",
    "changed_at",
    "_held",
    "swap",
    "folding",
    "sweep",
    "Swept",
    "Found",
    "Located",
    "Kept",
    "Scope",
    "Judged",
    "Places",
    "side_px",
    "judged_by",
    "fold_norms",
    "Panel",
    "Arm",
    "Bench",
    "told",
    "side_by_side",
    "without_collection",
    "keep_freed_memory",
    "looks_hounsfield",
}
ON_DISK = ("schemas.py", "recipe.py", "manifest.py")


def test_no_old_name_stands_in_the_code() -> None:
    old = []
    for path in MODULES:
        with path.open("rb") as file:
            names = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
        if path.name not in ON_DISK:
            old += [f"{path.relative_to(MEDRET)}: {name}" for name in sorted(names & OLD)]
    assert old == []


def test_one_name_one_file() -> None:
    names = Counter(path.name for path in MODULES if path.parent.name != "cli" and not path.name.startswith("__"))
    assert not [name for name, count in names.items() if count > 1]


def test_files_are_few_and_short() -> None:
    assert len(MODULES) <= MODULES_MAX
    lines = {path.relative_to(MEDRET).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: count for name, count in lines.items() if count > LINES_MAX}
