"""Some of a query's slices, and their weights. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medret.embeddings import parse_aggregation
from medret.errors import UsageError
from medret.search.matching import SliceVectors
from medret.search.region import SliceRange


@dataclass(frozen=True)
class Places:
    """Where the slices of a volume lie. relative: (n,) in [0, 1]. mm: (n,) scanner coordinates."""

    relative: NDArray[np.float32]
    mm: NDArray[np.float32]

    def only(self, chosen: NDArray[np.int64]) -> Places:
        """Those of the chosen slices."""
        return Places(self.relative[chosen], self.mm[chosen])


def within(slices: SliceVectors, places: Places, wanted: SliceRange, label: str) -> NDArray[np.int64]:
    """The numbers of the slices in a range; raises UsageError that says where there are slices."""
    assert slices.positions is not None
    at = places.mm if wanted.mm else slices.positions
    own = np.array([plane == wanted.plane for plane in slices.planes])
    kept = np.flatnonzero(own & (at >= wanted.first) & (at <= wanted.last))
    if not len(kept):
        unit = " mm" if wanted.mm else ""
        there = ", ".join(f"{value:.5g}" for value in at[own]) or "nowhere"
        raise UsageError(
            f"query '{label}': none of its stored slices lies in {wanted}; they lie at {there}{unit}. Give the NIfTI "
            "file itself to slice it anew"
        )
    return kept


def chosen_slices(plan: str, slices: SliceVectors, label: str) -> NDArray[np.int64]:
    """The numbers of the slices that a slice plan keeps, in each plane on its own."""
    from medret.volume.slice_plan import parse_slice_plan

    parsed = parse_slice_plan(plan)
    chosen = []
    for plane in dict.fromkeys(slices.planes):
        own = np.flatnonzero([other == plane for other in slices.planes])
        chosen.append(own[parsed.indices(len(own), f"{label}\0{plane}")])
    return np.sort(np.concatenate(chosen))


def slice_weights(text: str, relative: NDArray[np.float32], label: str) -> NDArray[np.float64]:
    """`uniform` or `gaussian:CENTRE,SIGMA` over relative positions: (n,) summing to 1; raises UsageError."""
    if text == "uniform":
        return np.full(len(relative), 1 / len(relative))
    if not text.startswith("gaussian:"):
        raise UsageError(f"query weights '{text}' are not understood; expected uniform or gaussian:CENTRE,SIGMA")
    return parse_aggregation(text).weights(relative, label)
