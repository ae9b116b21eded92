"""Every benchmark, one after the other, each in a process of its own; the table at the end and JSON beside it.

    python bench/run.py [SCRIPT ...] [--tiny] [--out FILE]        (make bench)

SCRIPT is a name without `.py`; all of them, if none is named. What falls short of its bound is red and says why. A
script that fails is named, and the exit code is 1. The JSON goes to bench/results/<chip>.json after each script, with
--tiny nowhere. It names the commit and the start of the run, which are the same for all figures of an unbroken run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
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
    run = {"commit": commit(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    out = arguments.out or (None if arguments.tiny else RESULTS / f"{chip()}.json")
    for name in arguments.scripts or SCRIPTS:
        started = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        document = run_one(name, tiny=arguments.tiny)
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
        if document is None:
            failed.append(name)
        else:
            documents.append(document | {"seconds": round(time.monotonic() - started), "run": run})
            if out:
                keep(out, documents[-1])
    print_table([_figure(row) for document in documents for row in document["figures"]])
    if out:
        print(f"kept in {out}", file=sys.stderr)
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


def commit() -> str:
    """The commit that is measured, with a + if files differ from it; "" outside a repository."""
    here = Path(__file__).parent
    said = [
        subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S607
        for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    return said[0] + ("+" if said[1] else "")


def keep(path: Path, document: dict[str, Any]) -> None:
    """Write a document; those of scripts that did not run this time stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {document["benchmark"]: document}, indent=1) + "\n")


def _figure(row: dict[str, Any]) -> Figure:
    return Figure(**{name: value for name, value in row.items() if name != "reached"})


if __name__ == "__main__":
    sys.exit(main())
