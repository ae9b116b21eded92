"""Every benchmark, one after the other, each in a process of its own; the table at the end and JSON beside it.

    python bench/run.py [SCRIPT ...] [--tiny] [--out FILE]        (make bench)

SCRIPT is a name without `.py`; all of them, if none is named. What falls short of its bound is red and says why. A
script that fails is named, and the exit code is 1. The JSON goes to bench/results/<chip>.json, with --tiny nowhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from figures import RESULTS, Figure, chip, print_table

SCRIPTS = ("decode", "embed", "job", "peers", "index", "codes", "search", "filter", "serve", "startup", "scale")


def main() -> int:
    """Run them and print; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"of: {', '.join(SCRIPTS)}")
    parser.add_argument("--tiny", action="store_true", help="as small as it goes: shows that they work, not how fast")
    parser.add_argument("--out", type=Path, help="the JSON file (default: bench/results/<chip>.json)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.scripts if name not in SCRIPTS]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
    documents, failed = [], []
    for name in arguments.scripts or SCRIPTS:
        started = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        document = run_one(name, tiny=arguments.tiny)
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
        if document is None:
            failed.append(name)
        else:
            documents.append(document | {"seconds": round(time.monotonic() - started)})
    print_table([_figure(row) for document in documents for row in document["figures"]])
    if not arguments.tiny or arguments.out:
        keep(arguments.out or RESULTS / f"{chip()}.json", documents)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def run_one(name: str, *, tiny: bool) -> dict[str, Any] | None:
    """One script's document, None if it failed; what it says on standard error passes through."""
    script = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, str(script), "--json", *(["--tiny"] if tiny else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        return None
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def keep(path: Path, documents: list[dict[str, Any]]) -> None:
    """Write the documents; those of scripts that did not run this time stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {document["benchmark"]: document for document in documents}
    path.write_text(json.dumps(known, indent=1) + "\n")
    print(f"kept in {path}", file=sys.stderr)


def _figure(row: dict[str, Any]) -> Figure:
    return Figure(**{name: value for name, value in row.items() if name != "reached"})


if __name__ == "__main__":
    sys.exit(main())
