"""Write the module tables of architecture.md from the first docstring line of every module.

    python docs/modules.py            rewrite the tables
    python docs/modules.py --check    change nothing; exit 1 if they are out of date

A table stands between `<!-- modules: FOLDER ... -->` and `<!-- end -->`; `.` is medret/ itself. Rows keep the order
that they have in the file, the order of the flow: move a row by hand. A new module is added at the end of its table.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
TABLE = re.compile(r"(?<=<!-- modules: )(?P<folders>[^>]+?)(?P<close> -->\n)(?P<rows>.*?)(?=<!-- end -->)", re.DOTALL)
HEAD = "\n| module | |\n|---|---|\n"


def module_lines() -> dict[str, str]:
    """`folder/module.py` -> its first docstring line, for every module of medret/ except `__init__` and `__main__`."""
    lines = {}
    for path in sorted((ROOT / "medret").rglob("*.py")):
        if not path.name.startswith("__"):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            lines[path.relative_to(ROOT / "medret").as_posix()] = docstring.partition("\n")[0].removesuffix(".")
    return lines


def with_tables(text: str, lines: dict[str, str]) -> str:
    """The page with its tables rewritten. Raises ValueError for a folder without a table."""
    left = dict(lines)

    def table(found: re.Match[str]) -> str:
        folders = found["folders"].split()
        old = [name for name in re.findall(r"^\| `([^`]+)`", found["rows"], re.MULTILINE) if name in left]
        new = [name for name in left if Path(name).parent.as_posix() in folders and name not in old]
        rows = "".join(f"| `{name}` | {left.pop(name).replace('|', chr(92) + '|')} |\n" for name in (*old, *new))
        return f"{found['folders']}{found['close']}{HEAD}{rows}\n"

    text = TABLE.sub(table, text)
    if left:
        raise ValueError(f"add <!-- modules: FOLDER --> and <!-- end --> to {PAGE.name} for {', '.join(left)}")
    return text


def main() -> int:
    """Rewrite the page, or check it; returns the exit code."""
    text = PAGE.read_text(encoding="utf-8")
    new = with_tables(text, module_lines())
    if new == text:
        return 0
    if "--check" in sys.argv[1:]:
        sys.stderr.write("docs/architecture.md is out of date: run `python docs/modules.py`\n")
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
