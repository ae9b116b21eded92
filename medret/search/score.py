"""What the score of a hit is, in words."""

from __future__ import annotations

from medret.search.ensemble import RRF
from medret.search.modes import LATE, SLICE, VOLUME
from medret.search.options import SearchOptions, Weighted
from medret.search.pooling import MAX, SUM, VOTE
from medret.search.region import PARTS

WORDS = {
    VOLUME: "the cosine of the two volumes' vectors",
    VOTE: "the volume's share of the nearest slices that the query's slices found",
    MAX: "the best cosine of a slice of the query and a slice of the volume",
    SUM: "the sum of the cosines of the volume's slices that were found, over the number looked for",
    LATE: "the mean, over the query's slices, of the best cosine in the volume",
    SLICE: "the cosine of a slice of the query and the slice found",
}


def mode_of(options: SearchOptions) -> str:
    """The mode of a search. Of a part of a query, its own slices say more than one vector of the whole."""
    part = any(options.get(name) for name in PARTS)
    return options.get("mode", LATE if part else VOLUME)


def score_words(options: SearchOptions) -> str:
    """What the scores of a search with these options are; all are at most 1."""
    mode = mode_of(options)
    words = WORDS[mode]
    if mode == LATE and options.get("symmetric"):
        words = f"{words}, and the same with the sides exchanged, averaged"
    if _count(options.get("model")) * _count(options.get("aggregation")) == 1:
        return words
    if options.get("fuse") == RRF:
        return "the sum of the members' reciprocal ranks, over the most it can be"
    return f"the weighted mean of the members' scores, each {words}"


def _count(given: Weighted | None) -> int:
    return 1 if given is None or isinstance(given, str) else len(given)
