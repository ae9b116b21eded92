"""Whole jobs from the shell, from the same files to a searchable index on disk: medret, and what people use instead.

    python bench/peers.py [--data FOLDER] [--volumes N] [--json]

Wall time of whole processes (whole.py), which take turns: imports, start, writing and ending count. All embed the same
slices with the same model; the others' vectors are compared with those of the loop. The others leave one vector per
volume and one HNSW index; medret also stores the vectors of slices, builds HNSW, LSH and exact indices over both, and
measures their recall. A package that is not installed is left out and named in the JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from corpus import corpus
from figures import Figure, Measured, main
from whole import MODEL, NEEDS, SLICES, chosen, medret_job, whole_job

OTHERS = {
    "loop": "loop of nibabel, Pillow, timm, FAISS",
    "Ray Data": "Ray Data's recipe for batch inference, Parquet, FAISS",
    "Daft": "Daft: URLs, slices and vectors as columns, Parquet, FAISS",
    "LanceDB": "the loop with LanceDB as store and index",
}
LEAVE_OUT = {"clip-retrieval": "asks for numpy<2, pandas<3 and pyarrow<16, which medret's other packages do not allow"}


def measured(arguments: argparse.Namespace) -> Measured:
    """Every job, `repeats` times in turn; the best of each."""
    left_out = LEAVE_OUT | {job: f"{name} is not installed" for job, name in NEEDS.items() if find_spec(name) is None}
    jobs = {job: words for job, words in OTHERS.items() if job not in left_out}
    with corpus(arguments.data, tiny=arguments.tiny) as (folder, name), tempfile.TemporaryDirectory() as scratch:
        paths = chosen(folder, 3 if arguments.tiny else arguments.volumes, Path(scratch) / "archive")
        archive = paths[0].parent
        seconds: dict[str, list[float]] = {job: [] for job in ("medret", *jobs)}
        cosines: dict[str, float] = {}
        for _ in range(1 if arguments.tiny else arguments.repeats):
            report = medret_job(archive, [MODEL], SLICES)
            seconds["medret"].append(report["seconds"])
            expected: dict[str, np.ndarray] = {}
            for job in jobs:
                passed, vectors = whole_job(job, archive)
                seconds[job].append(passed)
                expected = expected or vectors
                cosines[job] = least_cosine(vectors, expected)
    best = {job: min(own) for job, own in seconds.items()}
    figures = [
        Figure(f"medret, {len(paths)} volumes, whole job: times as fast", best[job] / best["medret"], 1, words,
               why="medret starts a cluster; what it gains per volume has not yet paid for that")
        for job, words in jobs.items()
    ]  # fmt: skip
    figures.insert(0, Figure("medret, whole job", best["medret"], None, "from the shell to its end", False, "s"))
    facts = {"data": name, "volumes": len(paths), "seconds": seconds, "least_cosine_to_the_loop": cosines}
    return Measured(figures, facts | {"left_out": left_out, "waits_s": report["waits_s"]})


def least_cosine(vectors: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """How far the vectors of the same volumes are apart at most; raises SystemExit if the volumes differ."""
    if vectors.keys() != expected.keys():
        raise SystemExit(f"{len(vectors.keys() ^ expected.keys())} volumes are missing or too many")
    pairs = ((vectors[volume], expected[volume]) for volume in expected)
    return min(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for one, other in pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of volumes (default: the real volumes, or phantoms)")
    parser.add_argument("--volumes", type=int, default=64, help="at most so many (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="(default %(default)s)")
    main(measured, parser)
