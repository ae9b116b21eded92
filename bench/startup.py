"""Starting: `import medret`, `medret --help` and `medret search`, against importing FAISS and pyarrow.

    python bench/startup.py [--repeats N] [--json]

Wall time of whole processes, which take turns; the median of each. The store that is searched is small and synthetic,
the query a volume_id or a vector, so no model is loaded; each process also says which heavy libraries it loaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
from figures import Figure, Measured, main
from synthetic import Plan, clustered, volume_id, write_store

from medret.storage.objects import CACHE_VARIABLE

HEAVY = ("torch", "ray")
FLOOR = "import faiss, pyarrow"
BOUND = 1.5
REST = "medret's own modules are imported besides, and the store is opened and searched; not taken apart further"
# Runs what is measured, then names the heavy libraries that it loaded on the last line of standard error.
REPORT = "; import sys; print(*({names!r} & sys.modules.keys()), file=sys.stderr)"


def seconds_of(code: str, heavy: dict[str, set[str]], environment: dict[str, str]) -> float:
    """Wall time of a process that runs `code`. heavy: gets what it loaded of HEAVY."""
    start = time.perf_counter()
    command = [sys.executable, "-c", code + REPORT.format(names=set(HEAVY))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds = time.perf_counter() - start
    heavy.setdefault(code, set()).update(done.stderr.splitlines()[-1].split())
    return seconds


def command_line(*arguments: str) -> str:
    """What the installed `medret` runs."""
    return f"from medret.cli import main; assert main({list(arguments)!r}) == 0"


def measured(arguments: argparse.Namespace) -> Measured:
    """The median of every start against that of the floor."""
    with tempfile.TemporaryDirectory() as scratch:
        plan = Plan(200, 32)
        write_store(f"{scratch}/store", plan, 1)
        np.save(f"{scratch}/vector.npy", clustered(1, plan.dim)[0])
        store = f"{scratch}/store"
        starts = {
            "import medret": "import medret",
            "import medret, first use": "import medret; medret.open_snapshot",
            "medret --help": command_line("--help"),
            "medret search --help": command_line("search", "--help"),
            "medret search by volume_id": command_line("search", store, volume_id(7), "-k", "3", "--json"),
            "medret search by vector": command_line("search", store, f"{scratch}/vector.npy", "-k", "3", "--json"),
        }
        # Compiled modules are kept, as they are where medret was installed: by the round that is not counted.
        environment = os.environ | {CACHE_VARIABLE: f"{scratch}/cache", "PYTHONPYCACHEPREFIX": f"{scratch}/compiled"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        heavy: dict[str, set[str]] = {}
        times: dict[str, list[float]] = {code: [] for code in (FLOOR, *starts.values())}
        for number in range(1 if arguments.tiny else arguments.repeats + 1):
            for code, own in times.items():
                seconds = seconds_of(code, heavy, environment)
                if number or arguments.tiny:  # the first round reads files from disk, and checks the store's
                    own.append(seconds)
    medians = {code: float(np.median(own)) for code, own in times.items()}
    against = "importing faiss and pyarrow"
    figures = [
        Figure(f"{name}: process", medians[code] / medians[FLOOR], BOUND, against, at_least=False, why=REST)
        for name, code in starts.items()
    ]
    loaded = {name: sorted(heavy[code]) for name, code in starts.items()}
    count = float(sum(map(len, loaded.values())))
    figures.append(Figure(f"of {' and '.join(HEAVY)} loaded by these", count, 0, "none of them", at_least=False))
    seconds_each = {name: medians[code] for name, code in ({"faiss, pyarrow": FLOOR} | starts).items()}
    return Measured(figures, {"median_seconds": seconds_each, "loaded": loaded})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="(default %(default)s)")
    main(measured, parser)
