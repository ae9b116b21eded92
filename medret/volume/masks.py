"""Is this a segmentation? What its voxels say, for masks whose names do not.

A label map holds a few whole numbers in pieces of one value each. An image of as few grey levels has noise: its
neighbouring voxels differ. Of 68 real masks the least has 62 % of its neighbours alike, of 169 real volumes the most
has 22 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.volume.sample import Sample

_GREATEST_LABEL = 127
_LEAST_ALIKE = 0.45
_MOST_FOR_BACKGROUND = 1 << 16


def check_not_mask(voxels: NDArray[Any], sample: Sample) -> None:
    """Raises LABEL_MASK for a segmentation. voxels: stored values, first axis fastest in memory.

    All voxels are looked at only where the sample holds nothing but small whole numbers.
    """
    labels = np.unique(sample.ordered)
    if not labels.size or labels[0] < 0 or labels[-1] > _GREATEST_LABEL or np.any(labels != np.round(labels)):
        return
    alike = _alike_share(voxels)
    if alike >= _LEAST_ALIKE:
        raise VolumeError(
            QuarantineCode.LABEL_MASK,
            f"voxels are {labels.size} whole numbers from {labels[0]:g} to {labels[-1]:g} and {alike:.0%} of the "
            "neighbours are alike, as in a segmentation; --include-masks takes it as a volume",
        )


def _alike_share(voxels: NDArray[Any]) -> float:
    """Share of neighbours with the same value, out of those that are not both background; slab by slab."""
    some = voxels.reshape(-1, order="F")[:: max(1, voxels.size // _MOST_FOR_BACKGROUND)]
    values, counts = np.unique(some, return_counts=True)
    background = values[np.argmax(counts)]
    slabs = voxels.T
    alike, pairs = 0, 0
    for number, slab in enumerate(slabs):
        neighbours = [(slab[1:], slab[:-1]), (slab[:, 1:], slab[:, :-1])]
        if number:
            neighbours.append((slab, slabs[number - 1]))
        for one, other in neighbours:
            same = one == other
            alike += int(np.count_nonzero(same & (one != background)))
            pairs += int(np.count_nonzero(~same | (one != background)))
    return alike / pairs if pairs else 0.0
