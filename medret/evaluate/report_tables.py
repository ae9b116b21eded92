"""Tables of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from medret.evaluate.averages import MACRO, MICRO
from medret.evaluate.configs import SearchConfig
from medret.evaluate.figures import ALL, ANN_RECALL, Evaluation, Row
from medret.evaluate.relevance import SELF

HEADLINE = ("recall@1", "mAP", "precision@5", "ndcg@10")
CLASS_METRICS = ("recall@1", "recall@10", "precision@5", "mAP", "ndcg@10")


def words(name: str) -> str:
    """A label column as a reader says it."""
    return name.replace("_", " ")


def among(exclude: str) -> str:
    """Which volumes may be found under an exclusion."""
    return "all other volumes" if exclude == SELF else f"other {words(exclude)}s"


def scored(found: Evaluation) -> list[tuple[str, str]]:
    """The (exclude, level) pairs that have figures."""
    places = [(exclude, level) for level in found.levels for exclude in found.excludes]
    return [place for place in places if found.figure(found.leading, *place, MACRO, "mAP")]


def headline_table(found: Evaluation) -> str:
    """Macro figures of the leading arm with intervals and chance, a row a level and exclusion."""
    rows = []
    for exclude, level in scored(found):
        figures = [found.figure(found.leading, exclude, level, MACRO, metric) for metric in HEADLINE]
        held = [row for row in figures if row]
        classes = len(found.classes_of(found.leading, exclude, level))
        head = f'<th scope="row">{escape(words(level))}</th><td class="text">{escape(among(exclude))}</td>'
        cells = "".join(_figure(row, "big" if row.metric == "recall@1" else "") for row in held)
        rows.append(f"<tr>{head}<td>{held[0].n}</td><td>{classes}</td>{cells}</tr>")
    heads = "".join(f"<th>{name}</th><th>chance</th>" for name in ("recall@1", "mAP", "precision@5", "nDCG@10"))
    return _table(
        "Macro: the mean of the classes. In brackets the 95 % interval over subjects, where no class has but one.",
        f"<tr><th></th><th class='text'>found among</th><th>queries</th><th>classes</th>{heads}</tr>",
        rows,
    )


def class_table(found: Evaluation, exclude: str, level: str) -> str:
    """Every class of the leading arm at a level."""
    rows = []
    for name in [*found.classes_of(found.leading, exclude, level), MACRO, MICRO]:
        figures = [found.figure(found.leading, exclude, level, name, metric) for metric in CLASS_METRICS]
        held = [row for row in figures if row]
        mean = ' class="means"' if name in (MACRO, MICRO) else ""
        counts = f"<td>{held[0].n}</td><td>{held[0].subjects}</td>"
        cells = "".join(_figure(row) for row in held)
        rows.append(f'<tr{mean}><th scope="row">{escape(name)}</th>{counts}{cells}</tr>')
    heads = "".join(f"<th>{name}</th><th>chance</th>" for name in CLASS_METRICS)
    title = f"{words(level)}, found among {among(exclude)}"
    return _table(title, f"<tr><th></th><th>queries</th><th>subjects</th>{heads}</tr>", rows)


def arms_table(found: Evaluation) -> str:
    """Every arm: macro recall@1 and mAP at every level and exclusion, and how exact its index is."""
    places = scored(found)
    rows = []
    for arm in found.arms:
        if arm.by_slices and arm.aggregation != found.arms[0].aggregation:
            continue
        kind = ' class="default"' if arm.default else ""
        cells = "".join(f"<td>{_pair(found, arm, place)}</td>" for place in places)
        note = ' <span class="n">default</span>' if arm.default else ""
        rows.append(
            f'<tr{kind}><th scope="row">{escape(arm.model)}{note}</th>'
            f'<td class="text">{escape("" if arm.by_slices else arm.aggregation)}</td>'
            f'<td class="text">{escape(arm.index)}</td><td class="text">{escape(arm.mode)}</td>'
            f"<td>{_ann(found, arm)}</td>{cells}</tr>"
        )
    heads = "".join(f"<th>{escape(words(level))}<br>{escape(among(exclude))}</th>" for exclude, level in places)
    chances = "".join(f"<td>{_pair(found, found.leading, place, chance=True)}</td>" for place in places)
    first = f'<tr><th scope="row">chance</th><td></td><td></td><td></td><td></td>{chances}</tr>'
    columns = "<th class='text'>aggregation</th><th class='text'>index</th><th class='text'>mode</th>"
    return _table(
        "Macro recall@1 / mAP. ANN: share of the ten nearest volumes by exact search that the index finds; it has "
        "nothing to do with labels. default: what search does when told nothing.",
        f"<tr><th class='text'>model</th>{columns}<th>ANN</th>{heads}</tr>",
        [first, *rows],
    )


def left_out_table(found: Evaluation) -> str:
    """Queries that were not scored, and why."""
    rows = []
    for one in found.left_out:
        classes = ", ".join(f"{name} {count}" for name, count in one.by_class.items())
        rows.append(
            f'<tr><th scope="row">{escape(words(one.level))}</th><td class="text">{escape(among(one.exclude))}</td>'
            f"<td>{one.counted}</td><td>{one.classes}</td><td>{one.too_few_relevant}</td><td>{one.unlabelled}</td>"
            f'<td class="text" style="white-space:normal">{escape(classes)}</td></tr>'
        )
    head = (
        "<tr><th></th><th class='text'>found among</th><th>scored</th><th>classes</th><th>too few relevant</th>"
        "<th>no label</th><th class='text'>classes left out, with their queries</th></tr>"
    )
    caption = f"A query is scored when at least {found.min_relevant} relevant volumes are left to find."
    return _table(caption, head, rows)


def _figure(row: Row, kind: str = "") -> str:
    interval = f"{row.low:.2f}&ndash;{row.high:.2f}" if row.has_interval else "no interval"
    note = f' <span class="n">[{interval}]</span>'
    return f'<td class="{kind}">{row.value:.3f}{note}</td><td class="n">{row.chance:.3f}</td>'


def _pair(found: Evaluation, arm: SearchConfig, place: tuple[str, str], chance: bool = False) -> str:
    rows = [found.figure(arm, *place, MACRO, metric) for metric in ("recall@1", "mAP")]
    return " / ".join(f"{row.chance if chance else row.value:.3f}" for row in rows if row)


def _ann(found: Evaluation, arm: SearchConfig) -> str:
    row = found.figure(arm, found.excludes[0], ALL, ALL, ANN_RECALL)
    return f"{row.value:.3f}" if row else "exact"


def _table(caption: str, head: str, rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead>{head}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def counts_line(counts: Sequence[tuple[str, int]]) -> str:
    """Names with their counts."""
    return ", ".join(f"{escape(name)} {count}" for name, count in counts)
