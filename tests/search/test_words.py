"""Words as queries in a space that is made so that the answers are known: images and words have centres far apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.embeddings import Slices, plane_codes
from medret.errors import UsageError
from medret.index import fit_centre
from medret.models.words import REFERENCE_TEXTS, TextEncoder, unit
from medret.search import Encoders, SearchOptions, Snapshot, Words, open_snapshot
from medret.search.explanation_page import explanation_page
from medret.snapshot import RecipeEntry
from tests.search.conftest import DIM, MadeStore, make_store

CONCEPTS, VOLUMES, SLICES = 5, 8, 4
NAMES = [f"concept {number}" for number in range(CONCEPTS)]
RNG = np.random.default_rng(0)
AXES = np.linalg.qr(RNG.standard_normal((DIM, DIM)))[0].T.astype(np.float32)
SHOWN, OF_IMAGES = AXES[:CONCEPTS], 0.9 * AXES[CONCEPTS]
OF_WORDS = 0.9 * (-0.6 * AXES[CONCEPTS] + 0.8 * AXES[CONCEPTS + 1])
GAP: NDArray[np.float32] = unit((OF_WORDS - OF_IMAGES)[None])[0]


class Constructed(TextEncoder):
    """A text tower whose vectors are known: the centre of words, and a little of what the text says."""

    def __init__(self) -> None:
        self._centre = None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rng = np.random.default_rng(1)
        said = [
            SHOWN[NAMES.index(text)] if text in NAMES else mixture / np.linalg.norm(mixture) @ SHOWN
            for text, mixture in zip(texts, rng.standard_normal((len(texts), CONCEPTS)), strict=True)
        ]
        return unit((OF_WORDS + 0.25 * np.array(said)).astype(np.float32))


class Shared(Encoders):
    """Encoders that have a text tower for every recipe."""

    def directions(self, entry: RecipeEntry, options: SearchOptions, text: str) -> NDArray[np.float32]:
        direction: NDArray[np.float32] = Constructed().directions([text])[0]
        return direction


def volumes() -> tuple[Slices, ...]:
    """Volumes that each show one concept. Each lies a little towards the words or away from them, by chance."""
    rng, made = np.random.default_rng(2), []
    for number in range(CONCEPTS * VOLUMES):
        concept = number % CONCEPTS
        own = OF_IMAGES + 0.35 * SHOWN[concept] + 0.2 * rng.standard_normal() * GAP
        raw = unit((own + 0.05 * rng.standard_normal((SLICES, DIM))).astype(np.float32))
        relative = np.linspace(0, 1, SLICES, dtype=np.float32)
        made.append(
            Slices(
                raw.astype(np.float16), plane_codes(["axial"] * SLICES), np.arange(SLICES, dtype=np.int32), relative,
                relative, np.ones(SLICES, np.float32), volume_id=f"made/concept{concept}_{number:03d}.nii.gz",
            )
        )  # fmt: skip
    return tuple(sorted(made, key=lambda volume: volume.volume_id))


def centre(aggregation: str | None, vectors: NDArray[np.float16], count: int) -> NDArray[np.float32]:
    per_volume = len(vectors) // count
    return fit_centre([vectors.astype(np.float64).sum(axis=0) / per_volume], count, count)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeStore:
    return make_store(tmp_path_factory.mktemp("words") / "store", volumes(), centre=centre)


@pytest.fixture(scope="module")
def snapshot(made: MadeStore) -> Snapshot:
    return open_snapshot(made.uri, encoders=Shared())


def share_right(snapshot: Snapshot, queries: Sequence[Any], **options: Any) -> float:
    """Precision at the number of volumes that show a concept, over all concepts."""
    right = [
        [f"concept{number}_" in hit.volume_id for hit in snapshot.search(query, VOLUMES, index="exact", **options)]
        for number, query in enumerate(queries)
    ]
    return float(np.mean(right))


@pytest.mark.parametrize("mode", ["volume", "max", "vote", "sum", "late", "slice"])
def test_words_find_what_they_say(mode: str, snapshot: Snapshot) -> None:
    assert share_right(snapshot, list(map(Words, NAMES)), mode=mode) == 1


def test_seen_from_the_centre_of_images_they_do_not(snapshot: Snapshot) -> None:
    """The same text vectors as if they were images: each lies towards all words, whatever it says."""
    assert share_right(snapshot, list(Constructed().embed(NAMES))) < 0.5


def test_nor_by_the_cosine_of_a_text_and_an_image(made: MadeStore) -> None:
    """Without any centre, chance decides more than words."""
    images = np.array([unit(volume.vectors.astype(np.float32).mean(axis=0)[None])[0] for volume in made.volumes])
    ranked = (-Constructed().embed(NAMES) @ images.T).argsort(axis=1)[:, :VOLUMES]
    right = [[f"concept{n}_" in made.ids[at] for at in row] for n, row in enumerate(ranked)]
    assert np.mean(right) < 0.5


def test_the_reference_texts_are_not_what_is_asked() -> None:
    assert len(set(REFERENCE_TEXTS)) == len(REFERENCE_TEXTS) > 8
    assert not set(NAMES) & set(REFERENCE_TEXTS)


def test_each_hit_says_which_slice_fits_best(snapshot: Snapshot, made: MadeStore) -> None:
    (hit, *_) = snapshot.search(Words(NAMES[2]), 1)
    assert hit.slices is not None
    assert hit.slices.query is None
    (volume,) = (volume for volume in made.volumes if volume.volume_id == hit.volume_id)
    raw = volume.vectors.astype(np.float32)
    seen = unit(raw - centre(None, np.concatenate([v.vectors for v in made.volumes]), len(made.volumes)))
    best = int((seen @ Constructed().directions([NAMES[2]])[0]).argmax())
    assert hit.slices.hit == (best, best)


@pytest.mark.parametrize("mode", ["volume", "late", "max"])
def test_an_explanation_gives_the_score_of_the_search(mode: str, snapshot: Snapshot) -> None:
    query = Words(NAMES[2])
    for hit in snapshot.search(query, 12, mode=mode, index="exact"):
        explanation = snapshot.explain(query, hit.volume_id, mode=mode)
        assert explanation.score == pytest.approx(hit.score, abs=1e-6)
        assert explanation.shares.sum() == pytest.approx(hit.score, abs=2e-3 if mode == "volume" else 1e-6)
        assert explanation.shares.shape == (1, SLICES)
        pairs = explanation.pairs
        assert [pair.query for pair in pairs] == [None] * (SLICES if mode == "volume" else 1)
        assert [pair.share for pair in pairs] == sorted((pair.share for pair in pairs), reverse=True)
        assert "a text counts as a volume of one slice" in explanation.words
        assert explanation.to_json()["query_slices"] == [{"plane": None, "slice": None}]


def test_the_page_of_an_explanation_of_words_names_the_slices_of_the_hit(snapshot: Snapshot, made: MadeStore) -> None:
    query = Words(NAMES[2])
    page = explanation_page(snapshot, snapshot.explain(query, made.ids[0], mode="volume"), query)
    assert "The query against each slice" in page
    assert f"<td>axial {SLICES - 1}</td>" in page
    assert "None" not in page


def test_words_are_filtered_like_any_query(snapshot: Snapshot) -> None:
    hits = snapshot.search(Words(NAMES[0]), 3, where="volume_id like 'made/concept3%'")
    assert [hit.volume_id.startswith("made/concept3") for hit in hits] == [True] * 3


def test_words_and_volumes_are_asked_in_one_pass(snapshot: Snapshot, made: MadeStore) -> None:
    queries: list[Any] = [Words(NAMES[1]), made.ids[0], Words(NAMES[4])]
    together = snapshot.search_many(queries, 5)
    alone = [snapshot.search(query, 5) for query in queries]
    assert [[hit.volume_id for hit in hits] for hits in together] == [[h.volume_id for h in hits] for hits in alone]


@pytest.mark.parametrize("options", [{"slices": "1:2"}, {"box": "0:1,0:1,0:1"}, {"query_slices": "uniform:2"}])
def test_words_have_no_slices(options: dict[str, Any], snapshot: Snapshot) -> None:
    with pytest.raises(UsageError, match="'concept 0' is a text, which has no slices"):
        snapshot.search(Words(NAMES[0]), **options)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_nothing_is_no_query(text: str) -> None:
    with pytest.raises(UsageError, match="the text of a query is empty"):
        Words(text)


def test_a_store_without_a_text_tower_says_what_to_do(tmp_path: Path) -> None:
    from tests.search.conftest import recipe_of

    store = make_store(tmp_path / "store", volumes(), recipe=recipe_of("efficientnet_lite0"), centre=centre)
    with pytest.raises(UsageError, match="efficientnet_lite0 has no text tower"):
        open_snapshot(store.uri).search(Words(NAMES[0]))
