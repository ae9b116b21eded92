"""A page of search results: one self-contained HTML file, without scripts and without a network.

For each query its own middle slices, then a row a hit: rank, score, labels, its middle slices, and, framed, the slice
of the query and the slice of the hit that are most alike. Every text is escaped: names and labels come from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from medret.search.hit import Hit, SlicePair
from medret.search.ledger import LABELS
from medret.search.options import SCORES, VOLUME
from medret.search.page_images import SIDE_PX, ImageRequest, Shown, Tile, read_tiles
from medret.search.page_style import STYLE, document
from medret.search.resolve import sha256_of
from medret.search.snapshot import Snapshot
from medret.storage import redacted

Result = tuple[str, str | None, list[Hit]]
Images = Mapping[ImageRequest, Shown | str]

CHIPS = LABELS[1:]  # modality, body region, organ: what a reader looks for; all else is folded away


def results_page(
    snapshot: Snapshot, results: Sequence[Result], title: str = "Search results", score: str = SCORES[VOLUME]
) -> str:
    """The page as text.

    results: for each query its label, the path or URI of its voxels (None when there are none, as for a vector) and its
    hits. score: what that of a hit is, in words. Slices are read from the archive; a file that is out of reach leaves a
    note in their place.
    """
    wanted = [_query_wanted(uri, hits) for _, uri, hits in results if uri is not None]
    wanted += [_hit_wanted(hit) for _, _, hits in results for hit in hits]
    recipe = snapshot.recipe().slices
    images = read_tiles(wanted, recipe, lambda uri, data: snapshot.identify(uri, sha256_of(data)), snapshot.place)
    sections = "\n".join(_section(number, result, images) for number, result in enumerate(results, start=1))
    manifest = snapshot.manifest
    volumes = manifest.counts.embedded + manifest.counts.unchanged
    body = f"""<header>
<h1>{escape(title)}</h1>
<p class="soft">{len(results)} {"query" if len(results) == 1 else "queries"} among {volumes} volumes of
{escape(manifest.archive_uri)}. Score: {escape(score)}, at most 1. Framed: the slice of the query and the
slice of the hit that are most alike.</p>
{_warning(snapshot)}
</header>
<main>
{sections}
</main>
<footer>snapshot {escape(snapshot.id)}, models {escape(", ".join(snapshot.models))},
medret {escape(manifest.medret_version)}. For research: not a medical device.</footer>"""
    return document(title, STYLE, body)


def _warning(snapshot: Snapshot) -> str:
    random = [str(entry.recipe["model"]["name"]) for entry in snapshot.manifest.recipes if entry.random_weights]
    if not random:
        return ""
    names = escape(", ".join(random))
    return f'<p class="warning">{names}: random weights, for trying things out. Such hits say nothing.</p>'


def _best(hit: Hit) -> SlicePair | None:
    """The slice of the query and the slice of the hit that are most alike."""
    return hit.slices.pairs[0] if hit.slices and hit.slices.pairs else None


def _query_wanted(uri: str, hits: Sequence[Hit]) -> ImageRequest:
    """The query's volume, with the slices that its hits matched."""
    pairs = (_best(hit) for hit in hits)
    places = {(pair.plane, pair.query) for pair in pairs if pair is not None and pair.query is not None}
    return ImageRequest(uri, None, frozenset(places))


def _hit_wanted(hit: Hit) -> ImageRequest:
    pair = _best(hit)
    places = [] if pair is None else [(pair.plane, pair.hit)]
    return ImageRequest(hit.uri, (hit.volume_id, hit.labels.get("modality")), frozenset(places))


def _section(number: int, result: Result, images: Images) -> str:
    label, uri, hits = result
    own: Shown | str = "the query is an array of vectors: it has no voxels"
    where = ""
    if uri is not None:
        own = images[_query_wanted(uri, hits)]
        where = f'<p class="soft">{escape(redacted(uri))}</p>'
    heading = label.rsplit("/", 1)[-1] if label == uri else label  # the whole path stands below it
    rows = "\n".join(_row(hit, images[_hit_wanted(hit)], own) for hit in hits)
    body = f"<ol>\n{rows}\n</ol>" if hits else '<p class="empty">No hits.</p>'
    return f"""<section aria-labelledby="query-{number}">
<div class="query">
<div class="row">
<div class="facts"><p class="eyebrow">Query</p><h2 id="query-{number}">{_breakable(redacted(heading))}</h2>{where}</div>
<div class="images">{_strip(own, "query")}{_matched(hits, own)}</div>
</div>
</div>
{body}
</section>"""


def _row(hit: Hit, shown: Shown | str, query: Shown | str) -> str:
    chips = "".join(f"<span>{escape(str(hit.labels[name]))}</span>" for name in CHIPS if hit.labels.get(name))
    others = {name: value for name, value in hit.labels.items() if value and name not in CHIPS} | {"uri": hit.uri}
    details = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in others.items())
    return f"""<li>
<div class="row">
<div class="facts"><div class="rank">{hit.rank}</div><div>
<h3>{_breakable(hit.volume_id)}</h3>
<p class="score"><span>score</span> {hit.score:.4f}</p>
<div class="labels">{chips or "<span>no labels</span>"}</div>
<details><summary>More</summary><dl>{details}</dl></details>
</div></div>
<div class="images">{_strip(shown, f"hit {hit.rank}, {hit.volume_id}")}{_pair(hit, shown, query)}</div>
</div>
</li>"""


def _strip(shown: Shown | str, name: str) -> str:
    """The middle slices, or a note on why there are none."""
    if isinstance(shown, str):
        return f'<div class="absent" role="note"><strong>No image</strong><span>{escape(shown)}</span></div>'
    figures = (_figure(tile, f"{name}: {_place(tile)}", _place(tile)) for tile in shown.middle)
    return f'<div class="strip">{"".join(figures)}</div>'


def _matched(hits: Sequence[Hit], own: Shown | str) -> str:
    """The query's slice that its best hit matched."""
    best = _best(hits[0]) if hits else None
    if isinstance(own, str) or best is None or best.query is None:
        return ""
    place = (best.plane, best.query)
    tile = own.by_place.get(place)
    if tile is None:
        return ""
    ranks = [f"#{hit.rank}" for hit in hits if (pair := _best(hit)) and (pair.plane, pair.query) == place]
    caption = f"{_place(tile)}, matched by {', '.join(ranks)}"
    return f'<div class="strip pair">{_figure(tile, f"query: {caption}", caption)}</div>'


def _pair(hit: Hit, shown: Shown | str, query: Shown | str) -> str:
    """The slice of the query and the slice of the hit that are most alike, as far as they can be shown."""
    match = _best(hit)
    if match is None:
        return ""
    figures = []
    if match.query is not None and not isinstance(query, str):
        tile = query.by_place.get((match.plane, match.query))
        if tile:
            figures.append(_figure(tile, f"query: {_place(tile)}, most like hit {hit.rank}", f"query, {_place(tile)}"))
    tile = None if isinstance(shown, str) else shown.by_place.get((match.plane, match.hit))
    if tile:
        alt = f"hit {hit.rank}, {hit.volume_id}: {_place(tile)}, most like the query, cosine {match.score:.3f}"
        figures.append(_figure(tile, alt, f"hit, {_place(tile)}: {match.score:.3f}"))
    return f'<div class="strip pair">{"".join(figures)}</div>' if figures else ""


def _breakable(name: str) -> str:
    """A name, escaped, that may be broken where its parts meet."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _place(tile: Tile) -> str:
    return f"{tile.plane} {tile.position}"


def _figure(tile: Tile, alt: str, caption: str) -> str:
    image = f'<img src="{tile.source}" alt="{escape(alt)}" width="{SIDE_PX}" height="{SIDE_PX}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
