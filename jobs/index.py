"""`medret index` as a Ray job: ray job submit --working-dir . -- python jobs/index.py ARCHIVE STORE [options]."""

from __future__ import annotations

import sys

from medret.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
