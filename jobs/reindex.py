"""`medret index` for a scheduler: ray job submit --working-dir . -- python jobs/reindex.py ARCHIVE STORE [options].

It differs from `jobs/index.py` in the exit codes: a scheduler knows only 0 and failure, so volumes in quarantine (4)
and a store that another run holds (5) become 0. A line on standard error says which it was.
"""

from __future__ import annotations

import sys

from medret.cli import main

FINE = {4: "published, with volumes in quarantine", 5: "another run holds the store"}

if __name__ == "__main__":
    code = main(["index", *sys.argv[1:]])
    if code in FINE:
        sys.stderr.write(f"reindex: {FINE[code]} (exit code {code})\n")
        code = 0
    sys.exit(code)
