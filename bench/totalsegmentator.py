"""The retrieval benchmark on TotalSegmentator (Khun Jush et al., arXiv 2405.09334), with its figures beside ours.

    medret index DATASET STORE --slices all --model dreamsim    (s0001/ct.nii.gz, s0001/segmentations/*.nii.gz, ...)
    python bench/totalsegmentator.py STORE DATASET [--mask-names FILE] [--unnamed-absent] [--model NAME] [--json FILE]
    python bench/totalsegmentator.py --phantoms FOLDER          (made, indexed and scored on the spot)

Every volume asks for the others, in the four ways of the paper: single slices, volumes, the slices of one structure,
and the same where the slices that match must show it. `count` is the paper's own ranking (each slice that asks has one
vote, for its nearest slice), `re-ranked` late interaction. Each figure is a mean over structures.

What the paper says is quoted as published. What it does not say, or what we could not read: which 29 coarse structures
it scores (ours are those of medret/evaluate/masks.py), its split into queries and database, and from how many
voxels on a slice shows a structure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medret.evaluate import Bootstrap, Selection
from medret.evaluate.metrics import MACRO
from medret.evaluate.structure_figures import SHOWN, StructureEvaluation, StructureOptions
from medret.evaluate.structure_retrieval import evaluate_structures, masks_of
from medret.evaluate.structure_scores import COARSE_LEVEL, LEVEL
from medret.search import open_snapshot

# (ranking, ways to ask, level) -> mean recall and its standard deviation over structures, and the best model.
PUBLISHED = {
    ("late", "volume", COARSE_LEVEL): "0.967 (SD 0.040, DINOv1; DreamSim has the same mean, SD 0.045)",
    ("late", "volume", LEVEL): "0.924 (SD 0.072, Swin Transformer)",
    ("late", "region", COARSE_LEVEL): "0.987 (SD 0.027, DreamSim)",
    ("late", "region", LEVEL): "0.987 (SD 0.024, DreamSim)",
}
NAMES = {"slice": "nearest slice", "vote": "count", "late": "re-ranked"}
COLUMNS = ("level", "asks", "ranking", "metric", "model", "value", "95 %", "chance", "n", "published")


def rows_of(evaluation: StructureEvaluation) -> Iterator[dict[str, Any]]:
    """One row per model, level, way to ask and ranking."""
    for search in evaluation.searches():
        for level in evaluation.structures:
            for asks, metric in SHOWN:
                row = evaluation.figures(search, level, asks, metric).get(MACRO)
                if row is not None:
                    interval = "none" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
                    published = PUBLISHED.get((search[2], asks, level), "not known to us")
                    found = (f"{row['value']:.3f}", interval, f"{row['chance']:.3f}", str(row["n"]))
                    texts = (level, asks, NAMES[search[2]], metric, search[0], *found)
                    yield dict(
                        zip(COLUMNS, (*texts, published if metric == "recall@1" else "not known to us"), strict=True)
                    )


def score(store: str, masks: str, names: str | None, models: list[str], *, absent: bool = False) -> StructureEvaluation:
    """Score a store as the paper does, by exact search."""
    snapshot = open_snapshot(store)
    found = masks_of(snapshot, masks, names)
    options = StructureOptions(
        selection=Selection(models=models, indices=["exact"], modes=["vote", "late"]),
        min_relevant=1,
        bootstrap=Bootstrap(300),
        absent=absent,
        per_slice=1,
    )
    return evaluate_structures(snapshot, found, options)[0]


def make_phantoms(folder: Path) -> tuple[str, str, str]:
    """Write phantoms and their masks, and index them; returns store, masks and their names."""
    import medret
    from medret.demo.phantoms import MASK_NAMES, write_corpus

    archive, masks, store = folder / "archive", folder / "masks", folder / "store"
    labels = write_corpus(archive, volumes_per_kind=4, masks=masks)
    medret.index_archive(archive, store, labels=str(labels))
    return str(store), str(masks), str(masks / MASK_NAMES)


def main() -> None:
    """Score, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?")
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--mask-names", metavar="FILE")
    parser.add_argument("--unnamed-absent", action="store_true")
    parser.add_argument("--model", action="append", default=[], metavar="NAME")
    parser.add_argument("--phantoms", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    absent = options.unnamed_absent
    if options.phantoms:
        options.store, options.dataset, options.mask_names = make_phantoms(options.phantoms)
        absent = True  # the names say what a phantom could show
    elif not options.store or not options.dataset:
        parser.error("give STORE and DATASET, or --phantoms FOLDER")
    evaluation = score(options.store, options.dataset, options.mask_names, options.model, absent=absent)
    what = "phantoms (synthetic volumes)" if options.phantoms else options.dataset
    print(
        f"{what}: {evaluation.volumes} volumes, {evaluation.slices} slices; published: 1,204 CTs, over 290,000 slices\n"
    )
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows_of(evaluation):
        print("| " + " | ".join(row.values()) + " |")
    for note in evaluation.notes:
        print(f"\nnote: {note}")
    if options.json:
        options.json.write_text(json.dumps(evaluation.to_json(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
