"""What each step of the default is worth, and what was tried in its place: label recall on volumes with labels.

    python bench/retrieval.py ARCHIVE LABELS.csv --cache FOLDER [--model NAME[=WEIGHTS]]... [--json FILE]

LABELS has the columns path, subject, dataset, organ, body_region, modality. Every figure is a leave-one-out search over
volume vectors by brute force: recall@1 / mAP, macro over classes, only queries with at least three relevant volumes
left. Slice vectors are computed once for each way to make slices, and kept in the cache.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.index import centred, fit_centre
from medret.models import Encoder, ModelSpec, model_spec, resolve_precision, resolve_weights
from medret.recipe import SliceRecipe
from medret.volume import read_volume

Array = NDArray[np.float32]
Slicer = Callable[[bytes, str, str, int], NDArray[np.uint8]]  # bytes, id, modality, side -> (n, side, side)
LEAST_RELEVANT = 3
TASKS = (("organ", "subject"), ("organ", "dataset"), ("body_region", "dataset"))


def plain(data: bytes, _name: str, _modality: str, side: int) -> NDArray[np.uint8]:
    """nibabel, percentiles of all voxels, each slice stretched to the square."""
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(gzip.decompress(data)))
    voxels = np.nan_to_num(image.get_fdata())
    voxels = voxels[..., 0] if voxels.ndim == 4 else voxels
    low, high = np.percentile(voxels, (0.5, 99.5))
    grey = np.clip((voxels - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    depth = grey.shape[2]
    chosen = np.unique(np.linspace(0, depth - 1, min(16, depth)).round().astype(int))
    return np.stack([np.asarray(Image.fromarray(grey[:, :, z].T[::-1, ::-1]).resize((side, side))) for z in chosen])


def by(recipe: SliceRecipe, after: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None) -> Slicer:
    """medret's own slices under a recipe; after: what is then done to the pixels."""

    def slices(data: bytes, name: str, modality: str, side: int) -> NDArray[np.uint8]:
        pixels = read_volume(data, name, recipe, [side], modality=modality).pixels[side]
        return after(pixels) if after else pixels

    return slices


def equalised(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey levels of the foreground spread evenly, over the whole volume."""
    inside = pixels[pixels > 8]
    if not inside.size:
        return pixels
    levels = np.bincount(inside, minlength=256).cumsum() / inside.size * 255
    levels[:9] = 0
    flat: NDArray[np.uint8] = levels.astype(np.uint8)[pixels]
    return flat


def edges(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The length of the grey levels' gradient, scaled to its 99.5th percentile."""
    down, across = np.gradient(pixels.astype(np.float32), axis=(1, 2))
    length = np.hypot(down, across)
    scale = np.maximum(np.percentile(length, 99.5, axis=(1, 2), keepdims=True), 1e-3)
    grey: NDArray[np.uint8] = np.clip(length / scale * 255, 0, 255).astype(np.uint8)
    return grey


DEFAULT = SliceRecipe()
SLICERS: dict[str, Slicer] = {
    "default": by(DEFAULT),
    "plain": plain,
    "no crop": by(replace(DEFAULT, crop="none")),
    "CT window full": by(replace(DEFAULT, ct_window="full")),
    "equalised": by(DEFAULT, equalised),
    "edges": by(DEFAULT, edges),
    "8 slices": by(replace(DEFAULT, slices="uniform:8")),
    "32 slices": by(replace(DEFAULT, slices="uniform:32")),
    **{f"every {gap} mm": by(replace(DEFAULT, slices=f"every:{gap}mm")) for gap in (5, 10, 20, 30, 40)},
    "coronal": by(replace(DEFAULT, planes=("coronal",))),
    "sagittal": by(replace(DEFAULT, planes=("sagittal",))),
}


@dataclass(frozen=True)
class Slices:
    """Unit slice vectors of all volumes. starts: first row of each volume. inner: where the inner layer begins."""

    vectors: Array
    starts: NDArray[np.int64]
    inner: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """Slices of each volume."""
        return np.diff(np.append(self.starts, len(self.vectors)))

    def part(self, first: int, last: int | None) -> Slices:
        """Some of the components, at length 1 again."""
        return replace(self, vectors=unit(self.vectors[:, first:last]))

    def seen_from_centre(self) -> Slices:
        """The same as directions from their mean."""
        return replace(self, vectors=centre(self.vectors))


def unit(rows: NDArray[np.floating]) -> Array:
    """Rows at length 1."""
    found: Array = (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)).astype(np.float32)
    return found


def centre(rows: Array) -> Array:
    """Rows as an index over them holds them."""
    return centred(rows, fit_centre([rows.sum(axis=0, dtype=np.float64)], len(rows), len(rows)))


def mean(slices: Slices, weights: Array | None = None) -> Array:
    """Volume vectors, as `--aggregation mean` makes them."""
    rows = slices.vectors if weights is None else slices.vectors * weights[:, None]
    return unit(np.add.reduceat(rows, slices.starts, axis=0))


def cosines(rows: Array) -> Array:
    """Of each unit row with each."""
    found: Array = rows @ rows.T
    return found


def late(slices: Slices, *, symmetric: bool = False) -> Array:
    """Mean over the query's slices of the best cosine among the other volume's."""
    best = np.maximum.reduceat(slices.vectors @ slices.vectors.T, slices.starts, axis=1)
    scores: Array = (np.add.reduceat(best, slices.starts, axis=0) / slices.counts[:, None]).astype(np.float32)
    return (scores + scores.T) * np.float32(0.5) if symmetric else scores


def whitened(slices: Slices, floor: float) -> Slices:
    """Principal axes scaled to equal spread; floor: added to each variance, as a share of the largest."""
    rows = slices.vectors - slices.vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    return replace(slices, vectors=unit(rows @ axes / np.sqrt(np.maximum(variances, 0) + floor * variances[-1])))


def expanded(rows: Array, subjects: NDArray[np.str_], nearest: int) -> Array:
    """Scores after each query was averaged with its nearest volumes of other subjects."""
    scores = cosines(rows)
    allowed = np.where(subjects[:, None] == subjects[None], -np.inf, scores)
    top = np.argsort(-allowed, axis=1)[:, :nearest]
    weights = np.maximum(np.take_along_axis(allowed, top, axis=1), 0)
    found: Array = unit(rows + np.einsum("qk,qkd->qd", weights, rows[top])) @ rows.T
    return found


def less_hubs(rows: Array, neighbours: int = 10) -> Array:
    """Cosines less half of how near a volume is to its own nearest ones (cross-domain similarity local scaling)."""
    scores = cosines(rows)
    others = np.where(np.eye(len(rows), dtype=bool), -np.inf, scores)
    near: Array = np.sort(others, axis=1)[:, -neighbours:].mean(axis=1)
    return (scores - near / 2).astype(np.float32)


def with_spread(slices: Slices) -> Array:
    """Cosine of the means plus half that of the standard deviations over a volume's slices."""
    sums = np.add.reduceat(slices.vectors, slices.starts, axis=0) / slices.counts[:, None]
    squares = np.add.reduceat(slices.vectors**2, slices.starts, axis=0) / slices.counts[:, None]
    spread = np.sqrt(np.maximum(squares - sums**2, 0))
    found: Array = cosines(unit(sums)) + cosines(unit(spread - spread.mean(axis=0))) * np.float32(0.5)
    return found


@dataclass(frozen=True)
class Corpus:
    """Volumes with labels, in the order of the table."""

    folder: Path
    rows: list[dict[str, str]]

    def column(self, name: str) -> NDArray[np.str_]:
        """A column of the labels."""
        return np.array([row[name] for row in self.rows])

    def slices(self, cache: Path, spec: ModelSpec, given: str | None, name: str) -> Slices:
        """The slice vectors of one way to make slices, from the cache or computed."""
        file = cache / f"{spec.name}-{name.replace(' ', '_')}.npz"
        if not file.exists():
            precision = resolve_precision("auto", "cpu")
            encoder = Encoder(spec, resolve_weights(spec, given), precision=precision, batch_size=8)
            parts = []
            for row in self.rows:
                data = (self.folder / row["path"]).read_bytes()
                parts.append(unit(encoder.embed(SLICERS[name](data, row["path"], row["modality"], spec.image_size))))
            starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
            np.savez(file, vectors=np.concatenate(parts).astype(np.float16), starts=starts)
        held = np.load(file)
        inner = int(spec.dim if not spec.layers else _output_width(spec))
        return Slices(unit(held["vectors"].astype(np.float32)), held["starts"], inner)

    def figures(self, scores: Array) -> list[tuple[float, float, int]]:
        """Of each task: macro recall@1, macro mAP, queries."""
        return [self._figure(scores, self.column(level), self.column(group)) for level, group in TASKS]

    def _figure(self, scores: Array, labels: NDArray[np.str_], groups: NDArray[np.str_]) -> tuple[float, float, int]:
        found: dict[str, list[tuple[float, float]]] = {}
        for query in range(len(labels)):
            kept = np.flatnonzero(groups != groups[query])
            order = kept[np.argsort(-scores[query, kept], kind="stable")]
            ranks = np.flatnonzero(labels[order] == labels[query])
            if len(ranks) >= LEAST_RELEVANT:
                precision = (np.arange(len(ranks)) + 1) / (ranks + 1)
                found.setdefault(str(labels[query]), []).append((float(ranks[0] == 0), float(precision.mean())))
        by_class = np.array([np.mean(pairs, axis=0) for pairs in found.values()])
        return float(by_class[:, 0].mean()), float(by_class[:, 1].mean()), sum(map(len, found.values()))


def _output_width(spec: ModelSpec) -> int:
    from medret.models.open_names import measure
    from medret.models.timm_models import build_timm

    return measure(lambda: build_timm(spec), spec.image_size, spec.name)[0]


def steps(corpus: Corpus, get: Callable[[str], Slices]) -> list[tuple[str, Array]]:
    """Each step towards the default, then what was tried beside or instead of it. (name, scores)."""
    default = get("default")
    seen = default.seen_from_centre()
    rows = centre(mean(default))
    subjects = corpus.column("subject")
    output = default.part(0, default.inner)
    place = np.concatenate([np.linspace(0, 1, count) if count > 1 else [0.5] for count in default.counts])
    gauss = np.exp(-(((place - 0.5) / 0.25) ** 2) / 2).astype(np.float32)
    found = [
        ("plain slices, output, mean", cosines(mean(get("plain").part(0, default.inner)))),
        ("+ crop, HU window, aspect kept", cosines(mean(output))),
        ("+ inner layer", cosines(mean(default))),
        ("+ centre = default", cosines(rows)),
        ("output only, centred", cosines(centre(mean(output)))),
        ("inner layer only, centred", cosines(centre(mean(default.part(default.inner, None))))),
    ]
    found += [(name, cosines(centre(mean(get(name))))) for name in SLICERS if name not in ("default", "plain")]
    planes = [centre(mean(get(name))) for name in ("default", "coronal", "sagittal")]
    found += [
        ("three planes, concatenated", cosines(unit(np.concatenate(planes, axis=1)))),
        ("gaussian:0.5,0.25", cosines(centre(mean(default, gauss)))),
        ("mean and standard deviation", with_spread(seen)),
        ("whitened, floor 0.1", cosines(mean(whitened(default, 0.1)))),
        ("whitened, floor 0.01", cosines(mean(whitened(default, 0.01)))),
        ("late interaction", late(seen)),
        ("late interaction, symmetric", late(seen, symmetric=True)),
        ("late interaction, not centred", late(default)),
        ("query expansion by 2", expanded(rows, subjects, 2)),
        ("query expansion by 5", expanded(rows, subjects, 5)),
        ("hubs pushed back", less_hubs(rows)),
    ]
    return found


def main() -> None:
    """Compute, print a Markdown table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model", action="append", metavar="NAME[=WEIGHTS]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    with options.labels.open(newline="", encoding="utf-8") as lines:
        corpus = Corpus(options.archive, list(csv.DictReader(lines)))
    results = []
    defaults: list[Array] = []
    for asked in options.model or ["efficientnet_lite0"]:
        name, _, given = asked.partition("=")
        spec = model_spec(name)

        def get(slicer: str, spec: ModelSpec = spec, given: str = given) -> Slices:
            return corpus.slices(options.cache, spec, given or None, slicer)

        if not defaults:
            results += [(name, step, corpus.figures(scores)) for step, scores in steps(corpus, get)]
        else:
            results.append((name, "default", corpus.figures(cosines(centre(mean(get("default")))))))
        defaults.append(centre(mean(get("default"))))
    if len(defaults) > 1:
        fused = np.add.reduce([cosines(rows) for rows in defaults])
        results.append(("all models", "sum of cosines", corpus.figures(fused)))
    _print(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _print(results: Sequence[tuple[str, str, list[tuple[float, float, int]]]]) -> None:
    heads = [f"{level}, other {group}s (n {n})" for (level, group), (_, _, n) in zip(TASKS, results[0][2], strict=True)]
    print("| model | step | " + " | ".join(heads) + " |\n|---|---|" + "---|" * len(heads))
    for name, step, figures in results:
        print(f"| {name} | {step} | " + " | ".join(f"{recall:.3f} / {ap:.3f}" for recall, ap, _ in figures) + " |")


if __name__ == "__main__":
    main()
