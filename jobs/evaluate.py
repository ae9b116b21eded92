"""`medret evaluate` as a Ray job: ray job submit --working-dir . -- python jobs/evaluate.py STORE [options]."""

from __future__ import annotations

import sys

from medret.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
