"""Several rankings of the same volumes to one. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Cormack, Clarke and Buettcher 2009: keeps a first place from outweighing agreement further down.
RRF_CONSTANT = 60


def reciprocal_rank(
    rankings: Sequence[Sequence[str]], weights: Sequence[float], constant: int = RRF_CONSTANT
) -> list[tuple[str, float]]:
    """Volumes with the weighted sum of 1 / (constant + rank), ranks from 1, best first; ties in the order of the ids.

    Divided by the most that can be reached, so that a volume that all rankings put first scores 1.
    """
    scores: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, volume_id in enumerate(ranking, start=1):
            scores[volume_id] = scores.get(volume_id, 0.0) + weight / (constant + rank)
    best = sum(weights) / (constant + 1)
    return _ranked({volume_id: score / best for volume_id, score in scores.items()})


def weighted_sum(scores: Sequence[Mapping[str, float]], weights: Sequence[float]) -> list[tuple[str, float]]:
    """Volumes with the weighted mean of their scores, best first; ties in the order of the ids.

    For cosines this is the cosine of the members' unit vectors, each times the root of its weight, put end to end. A
    volume that a member does not know scores 0 there.
    """
    total = sum(weights)
    fused: dict[str, float] = {}
    for own, weight in zip(scores, weights, strict=True):
        for volume_id, score in own.items():
            fused[volume_id] = fused.get(volume_id, 0.0) + weight * score / total
    return _ranked(fused)


def _ranked(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(((name, round(score, 9)) for name, score in scores.items()), key=lambda pair: (-pair[1], pair[0]))
