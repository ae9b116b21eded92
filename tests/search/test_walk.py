"""Slabs, heads and bodies: volumes of few and of many slices, thick and thin, all ask for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medret.embeddings import Slices, plane_codes
from medret.search import open_snapshot
from medret.volume.slicing import parse_slice_plan
from tests.walk import walk

SLICES = (1, 2, 5, 18, 22, 27, 33, 41, 60, 90, 170, 400)
SPACINGS_MM = (0.8, 1.0, 4.5)


def _stack(number: int, slices: int) -> Slices:
    """Slices of a body that changes slowly from one end to the other; two organs."""
    rng = np.random.default_rng(number)
    ends = np.random.default_rng(number % 2).standard_normal((2, 32))
    positions = parse_slice_plan("uniform:8").indices(np.arange(slices))
    at = (positions / max(1, slices - 1))[:, None]
    raw = (1 - at) * ends[0] + at * ends[1] + 0.3 * rng.standard_normal((len(positions), 32))
    unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
    relative = at[:, 0].astype(np.float32)
    ones = np.ones(len(positions), np.float32)
    planes, volume_id = plane_codes(["axial"] * len(positions)), f"{number:03d}.nii.gz"
    return Slices(unit, planes, positions.astype(np.int32), relative, relative, ones, volume_id=volume_id)


def test_every_stack_asks_every_other(tmp_path: Path, store_maker: Callable[..., Any]) -> None:
    """C0: a search died on such pairs, and no test asked all with all."""
    from tests.search.conftest import ledger_row, recipe_of

    volumes = tuple(_stack(number, slices) for number, slices in enumerate(SLICES * len(SPACINGS_MM)))
    rows = []
    for number, volume in enumerate(volumes):
        spacing_mm = SPACINGS_MM[number // len(SLICES)]
        rows.append(
            ledger_row(
                volume.volume_id,
                subject=f"subject-{number // 2}",
                modality="CT" if number % 3 else "MRI",
                organ=("Liver", "Lung")[number % 2],
                metadata=[("dataset", f"set-{number // len(SLICES)}")],
                facts=json.dumps({"spacing_mm": [1.0, 1.0, spacing_mm], "spacing_assumed": number % 7 == 6}),
                shards=[(recipe_of().digest, f"shard-{number // 20}")],
            )
        )
    made = store_maker(tmp_path, volumes, aggregations=("mean",), per_shard=20, ledger=rows)
    filters = {"modality = 'MRI'": ("modality", {"MRI"}), "organ <> 'Lung'": ("organ", {"Liver"})}
    walk(open_snapshot(made.uri), ("subject", "dataset"), filters)
