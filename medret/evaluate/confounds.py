"""Whether a label can be told from where a volume comes from: then a score says little about the images' content."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from medret.evaluate.relevance import text_column, values_of

SOURCE = "dataset"
SEPARABLE = 0.5  # at least so large a `share` or `excess` is a warning


@dataclass(frozen=True)
class Confound:
    """How far a level's label follows from a source column.

    single: classes all of whose volumes come from one source. share: volumes that have such a class.
    predicted: volumes whose class is the most frequent one of the other volumes of their source. excess: how much of
    what the most frequent class of all leaves open that settles: 0 nothing, 1 all.
    """

    level: str
    source: str
    single: tuple[str, ...]
    classes: int
    share: float
    predicted: float
    excess: float

    @property
    def warns(self) -> bool:
        """Whether the label is separable by source."""
        return max(self.share, self.excess) >= SEPARABLE

    @property
    def message(self) -> str:
        """The warning, in a sentence."""
        return (
            f"{self.level} follows from {self.source}: {len(self.single)} of {self.classes} classes, with "
            f"{self.share:.0%} of the volumes, come from one {self.source} each, and naming the most frequent "
            f"{self.level} of a {self.source} is right for {self.predicted:.0%}; believe the score among other "
            f"{self.source}s, not the one beside it"
        )

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {
            "level": self.level,
            "source": self.source,
            "classes_from_one_source": list(self.single),
            "share": self.share,
            "predicted_by_source": self.predicted,
            "separable": self.warns,
            "message": self.message,
        }


def confound(labels: pa.Table, level: str, source: str) -> Confound | None:
    """What the volumes with a label and a source say; None when there is one class or one source only."""
    pairs = [
        (value, origin)
        for text, origin in zip(text_column(labels, level), text_column(labels, source), strict=True)
        if origin is not None
        for value in values_of(text)
    ]
    origins: defaultdict[str, set[str]] = defaultdict(set)
    by_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
    counts: Counter[str] = Counter()
    for value, origin in pairs:
        origins[value].add(origin)
        by_source[origin][value] += 1
        counts[value] += 1
    if len(origins) < 2 or len(by_source) < 2:
        return None
    single = tuple(sorted(value for value, found in origins.items() if len(found) == 1))
    share = sum(counts[value] for value in single) / len(pairs)
    predicted = sum(_right(own) for own in by_source.values()) / len(pairs)
    floor = max(counts.values()) / len(pairs)
    return Confound(level, source, single, len(origins), share, predicted, (predicted - floor) / (1 - floor))


def _right(counts: Counter[str]) -> int:
    """For how many volumes of a source the most frequent class of its other volumes is theirs."""
    right = 0
    for value, count in counts.items():
        others = max((other for name, other in counts.items() if name != value), default=0)
        right += count if count - 1 >= max(others, 1) else 0
    return right
