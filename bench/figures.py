"""What all benchmarks share: figures with the bounds they are to reach, the machine, the table and its JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("medret", "numpy", "torch", "timm", "transformers", "dreamsim", "ray", "faiss-gpu", "pyarrow", "nibabel")


@dataclass(frozen=True)
class Figure:
    """One row of the table: a measured number and the bound it is to reach.

    wanted: the bound, None for a number that is told and not judged. at_least: whether more is better. unit: of both;
    empty for a ratio. against: what it was measured against, in words. why: said beside a figure that falls short.
    """

    name: str
    measured: float
    wanted: float | None
    against: str
    at_least: bool = True
    unit: str = ""
    why: str = ""

    @property
    def reached(self) -> bool:
        """Whether the bound is reached; a figure that is not judged always is."""
        if self.wanted is None:
            return True
        return bool(self.measured >= self.wanted if self.at_least else self.measured <= self.wanted)


@dataclass(frozen=True)
class Measured:
    """What one script measured. facts: how (sizes, weights, times), for the JSON; JSON's own types only."""

    figures: list[Figure]
    facts: dict[str, Any] = field(default_factory=dict)


def main(measure: Callable[[argparse.Namespace], Measured], parser: argparse.ArgumentParser) -> None:
    """Parse, measure, and print the table, or with --json one document. measure gets `tiny` among its arguments."""
    parser.add_argument("--tiny", action="store_true", help="as small as it goes: shows that it works, not how fast")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    arguments = parser.parse_args()
    measured = measure(arguments)
    if arguments.json:
        json.dump(document(Path(sys.argv[0]).stem, measured, tiny=arguments.tiny), sys.stdout, indent=1)
        print()
    else:
        print_table(measured.figures)


def document(script: str, measured: Measured, *, tiny: bool) -> dict[str, Any]:
    """What is kept of a measurement."""
    rows = [asdict(figure) | {"reached": figure.reached} for figure in measured.figures]
    return {"benchmark": script, "tiny": tiny, "machine": machine(), "figures": rows, "facts": measured.facts}


def print_table(figures: Sequence[Figure]) -> None:
    """The figures on standard output, what falls short in red and with its reason below it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in (("figure", False), ("wanted", True), ("measured", True), ("against", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for figure in figures:
        sign = ">=" if figure.at_least else "<="
        wanted = "" if figure.wanted is None else f"{sign} {_number(figure.wanted, figure.unit)}"
        style = None if figure.reached else "red"
        table.add_row(figure.name, wanted, _number(figure.measured, figure.unit), figure.against, style=style)
        if not figure.reached:
            table.add_row(f"  short: {figure.why or 'not explained yet'}", "", "", "", style="red")
    Console(width=None if sys.stdout.isatty() else 150, highlight=False).print(table)


def machine() -> dict[str, Any]:
    """The processor, the GPU if there is one, and the versions of what is measured."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
    }


def chip() -> str:
    """The GPU's name, or the processor's and its cores, as part of a file name."""
    name = _gpu() or f"{_processor()} {len(os.sched_getaffinity(0))} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _number(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) < 0.99 or abs(value) >= 1.01 else 3
    return f"{value:,.{digits}f}" + (f" {unit}" if unit else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # a benchmark that did not need torch did not run on a GPU
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
