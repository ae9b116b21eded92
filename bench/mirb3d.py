"""The 3D-MIR benchmark (Ben Abacha et al., arXiv 2311.13752): are the first hits of a tumour's case tumour cases too?

    medret index DECATHLON STORE --slices all            (Task03_Liver, Task06_Lung, Task07_Pancreas, Task10_Colon)
    python bench/mirb3d.py STORE --splits 3D-MIR/Data/Data_Splits --labels 3D-MIR/Data/3DMIR_labels --organ liver
    python bench/mirb3d.py STORE --cases CASES.csv       (any cases: columns path, split, flag, stage, source)

The protocol is that of the authors' notebooks. Volumes of the test split ask, those of the training split are found. A
hit is right if it has the query's tumour flag, or its stage (the group of its lesions). P@3, P@5 and P@10 are over the
hits there are. AP is over the first ten hits alone: the mean precision at the right ones among them, 0 if none is.
Rankings: freq, max and sum pool the 20 nearest slices of each slice of the query; the vector rankings compare one
aggregated vector per volume, late is late interaction.

The splits: per organ the cases of its task, and as normal cases volumes of other tasks. Training / test, and how many
of them are of other tasks: liver 157 / 19, 42 / 3; colon 156 / 24, 44 / 10; lung 62 / 32, 15 / 16; pancreas 269 / 32,
28 / 4. Apart from 13 livers every normal case is of another task, and every case of another task is normal.

The confound. So the flag follows from where a volume comes from: a network that tells scanners and fields of view apart
scores well without seeing a tumour. The table has beside each figure chance, and how often naming the most frequent
flag (or stage) of the query's source is right.

We could not read the paper's tables, so none of its figures stands here.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.search import Snapshot, open_snapshot

DEPTH = 10
RANKINGS = {"freq": "vote", "max": "max", "sum": "sum", "late": "late"}
METRICS = ("P@3", "P@5", "P@10", "AP")


@dataclass(frozen=True)
class Case:
    """A volume of the benchmark. name: its file, without suffix. source: the data set that it comes from."""

    name: str
    split: str
    flag: str
    stage: str
    source: str


def cases_of_repository(splits: Path, labels: Path, organ: str) -> list[Case]:
    """The cases of an organ, from the authors' tables."""
    with (labels / f"{organ}_labels_and_captions.csv").open(newline="", encoding="utf-8-sig") as lines:
        known = {_stem(row["name"]): row for row in csv.DictReader(lines)}
    cases = []
    for split, column in (("train", "training"), ("test", "testing")):
        with (splits / f"{organ}_full_{split}_split.csv").open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines):
                name = _stem(row[column])
                if name not in known:
                    raise SystemExit(f"{name} of {organ}_full_{split}_split.csv has no row in the table of labels")
                flag, stage = known[name]["cancer_flag"], known[name]["lesion_group"]
                cases.append(Case(name, split, flag, stage, re.sub(r"_?\d+$", "", name)))
    return cases


def cases_of_table(path: Path) -> list[Case]:
    """Cases of a table with the columns path, split, flag, stage and source."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    return [Case(_stem(row["path"]), row["split"], row["flag"], row["stage"], row["source"]) for row in rows]


def _stem(path: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", PurePosixPath(path).name)


def scores(right: Sequence[bool]) -> tuple[float, ...]:
    """P@3, P@5, P@10 and AP of the first ten hits."""
    hits = np.asarray(right[:DEPTH], float)
    if not len(hits):
        return (0.0,) * len(METRICS)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    average = float((precision * hits).sum() / hits.sum()) if hits.any() else 0.0
    return (*(float(hits[:cut].mean()) for cut in (3, 5, 10)), average)


def chance(labels: Sequence[str], wanted: str, draws: NDArray[np.int64]) -> tuple[float, ...]:
    """The mean scores of candidates in random order. draws: (n, DEPTH) numbers of candidates."""
    right = np.array([label == wanted for label in labels])
    return tuple(np.mean([scores(right[row].tolist()) for row in draws], axis=0).tolist())


def by_source(train: Sequence[Case], what: str) -> dict[str, str]:
    """The most frequent flag or stage of each source."""
    counts: dict[str, Counter[str]] = {}
    for case in train:
        counts.setdefault(case.source, Counter())[getattr(case, what)] += 1
    return {source: found.most_common(1)[0][0] for source, found in counts.items()}


def measure(snapshot: Snapshot, cases: Sequence[Case], model: str | None) -> list[dict[str, Any]]:
    """The figures of every ranking, for flag and stage."""
    by_name = {_stem(name): name for name in snapshot.labels()["volume_id"].to_pylist()}
    there = [case for case in cases if case.name in by_name]
    train, test = ([case for case in there if case.split == split] for split in ("train", "test"))
    if not train or not test:
        raise SystemExit(f"the store has {len(train)} volumes of the training split and {len(test)} of the test split")
    case_of = {by_name[case.name]: case for case in there}
    others = frozenset(snapshot.labels()["volume_id"].to_pylist()) - {by_name[case.name] for case in train}
    rng = np.random.default_rng(0)
    draws = np.array([rng.permutation(len(train))[:DEPTH] for _ in range(500)])
    found = []
    rankings: list[tuple[str, str, str | None]] = [(name, mode, None) for name, mode in RANKINGS.items()]
    rankings += [(f"vector, {name}", "volume", name) for name in snapshot.aggregations]
    for name, mode, aggregation in rankings:
        queries = [snapshot.resolve(by_name[case.name], model=model, aggregation=aggregation) for case in test]
        ranked = snapshot.rank(
            queries,
            DEPTH,
            excluded=[others] * len(queries),
            model=model,
            aggregation=aggregation,
            index="exact",
            mode=mode,
            per_slice=20,
        )
        for what in ("flag", "stage"):
            usual = by_source(train, what)
            values, random, guessed = [], [], []
            for case, hits in zip(test, ranked, strict=True):
                wanted = getattr(case, what)
                values.append(scores([getattr(case_of[hit.volume_id], what) == wanted for hit in hits]))
                random.append(chance([getattr(one, what) for one in train], wanted, draws))
                guessed.append(float(usual.get(case.source) == wanted))
            means, floors = np.mean(values, axis=0), np.mean(random, axis=0)
            for metric, value, floor in zip(METRICS, means.tolist(), floors.tolist(), strict=True):
                row = {"ranking": name, "of": what, "metric": metric, "value": value, "chance": floor}
                found.append({**row, "by_source": float(np.mean(guessed)), "n": len(test), "candidates": len(train)})
    return found


def main() -> None:
    """Score, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--splits", type=Path, metavar="FOLDER")
    parser.add_argument("--labels", type=Path, metavar="FOLDER")
    parser.add_argument("--organ", choices=("colon", "liver", "lung", "pancreas"), default="liver")
    parser.add_argument("--cases", type=Path, metavar="CASES.csv")
    parser.add_argument("--model", metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.cases:
        cases = cases_of_table(options.cases)
    elif options.splits and options.labels:
        cases = cases_of_repository(options.splits, options.labels, options.organ)
    else:
        parser.error("give --splits and --labels, or --cases")
    found = measure(open_snapshot(options.store), cases, options.model)
    print(f"{found[0]['n']} queries among {found[0]['candidates']} volumes; published figures: not known to us\n")
    columns = ("ranking", "of", *METRICS, "chance (P@3, AP)", "right by source alone")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for start in range(0, len(found), len(METRICS)):
        rows = found[start : start + len(METRICS)]
        values = [f"{row['value']:.3f}" for row in rows]
        floors = f"{rows[0]['chance']:.3f}, {rows[-1]['chance']:.3f}"
        print(
            "| "
            + " | ".join([rows[0]["ranking"], rows[0]["of"], *values, floors, f"{rows[0]['by_source']:.3f}"])
            + " |"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
