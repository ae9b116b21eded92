from __future__ import annotations

from dataclasses import replace

from medret.evaluate import Evaluation, Options, Selection, archive_queries, evaluate
from medret.evaluate.figures import late_notes
from medret.search import Snapshot


def _with(found: Evaluation, mode: str, name: str, value: float) -> Evaluation:
    """The evaluation with one class's recall@1 and the macro figure set to a value, in one mode."""
    rows = [
        replace(row, value=value, low=value, high=value)
        if row.config.mode == mode
        and row.metric == "recall@1"
        and row.class_ in (name, "macro")
        and row.level == "organ"
        else row
        for row in found.rows
    ]
    return replace(found, rows=rows)


def test_it_is_said_where_late_interaction_is_worse(snapshot: Snapshot) -> None:
    selection = Selection([snapshot.models[0]], ["mean"], ["exact"], ["volume", "late"])
    found = evaluate(snapshot, archive_queries(snapshot), Options(levels=["organ"], selection=selection))
    better = _with(_with(found, "late", "Liver", 1.0), "volume", "Liver", 0.5)
    assert late_notes(better) == []
    (note,) = late_notes(_with(_with(found, "late", "Liver", 0.0), "volume", "Liver", 1.0))
    assert "late has macro recall@1 0.000, volume 1.000 (their intervals do not overlap)" in note
    n = next(row.n for row in found.rows if row.class_ == "Liver")
    assert f"Liver (0 of {n} queries right, volume {n})" in note


def test_without_late_there_is_nothing_to_say(snapshot: Snapshot) -> None:
    selection = Selection([snapshot.models[0]], ["mean"], ["exact"], ["volume"])
    found = evaluate(snapshot, archive_queries(snapshot), Options(levels=["organ"], selection=selection))
    assert late_notes(found) == []
