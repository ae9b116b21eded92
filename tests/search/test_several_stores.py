"""A store split in several, and shards searched elsewhere, answer as the whole: the same hits with the same scores."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medret.cli import main
from medret.embeddings import Slices
from medret.errors import CorruptError, DroppedError, UsageError
from medret.index import IndexSettings, fit_centre, open_exact, pooled_centre
from medret.search import Hit, Snapshots, Task, open_snapshot, open_snapshots
from medret.search.basis import write_moved
from medret.search.query import VolumeName
from medret.search.shard import ShardFiles
from medret.serve import LiveStores

KINDS = ("hnsw", "lsh", "exact")
MODES = ("volume", "vote", "max", "sum", "late", "slice")
SETTINGS = IndexSettings(hnsw_m=8, hnsw_ef_construction=40, lsh_candidates=400)  # every vector is a candidate
EMPTY = 2  # slices of a volume that are the same in all volumes
OPTIONS: tuple[dict[str, Any], ...] = (
    {"k": 100},
    {"per_slice": 3, "candidates": 5, "exclude": "self"},
    {"where": "organ in ('Liver', 'Lung')", "exclude": "subject", "per_slice": 7},
    {"query_weights": "gaussian:0.3,0.2", "symmetric": True, "where": "organ <> 'Lung'"},
    {"slices": "25:55"},
    {"query_slices": "uniform:2"},
)


def fitted(_: str | None, vectors: Any, count: int) -> Any:
    return fit_centre([vectors.sum(axis=0, dtype=np.float64)], len(vectors), count)


class Split:
    """The same volumes as one store and as `parts` stores, in two index shards each."""

    def __init__(self, folder: Path, stores: Any, volumes: Sequence[Slices], parts: int, whole_centre: Any) -> None:
        def made(name: str, some: Sequence[Slices], centre: Any) -> str:
            half = -(-len(some) // 2)
            rows = [
                stores.ledger_row(
                    volume.volume_id,
                    organ=volume.volume_id.split("/")[1].split("_")[0].capitalize(),
                    subject=f"subject-{volume.volume_id[-8:-7]}",
                    metadata=[("source", "made up")] if number or name == "whole" else [],
                    shards=[(stores.recipe_of().digest, f"shard-{number // half}")],
                )
                for number, volume in enumerate(some)
            ]
            made = stores.make_store(
                folder / name, tuple(some), settings=SETTINGS, per_shard=half, ledger=rows, centre=centre
            )
            return str(made.uri)

        owner = np.random.default_rng(parts).permutation(np.arange(len(volumes)) % parts)
        own = [[volume for volume, at in zip(volumes, owner, strict=True) if at == part] for part in range(parts)]
        self.uris = [made(f"part-{part}", some, fitted) for part, some in enumerate(own)]
        self.parts = open_snapshots(self.uris)
        self.whole = open_snapshot(made("whole", volumes, whole_centre or self._pooled))

    def _pooled(self, aggregation: str | None, _: Any, count: int) -> Any:
        stores = self.parts.corpus.stores
        centres = [contents.centre((stores[0].manifest.recipes[0].digest, aggregation), 32) for contents in stores]
        return pooled_centre(centre for centre in centres if centre is not None)


@pytest.fixture(scope="module")
def stores() -> Any:
    from tests.search import conftest

    return conftest


@pytest.fixture(scope="module")
def volumes(volume_maker: Callable[..., Any]) -> list[Slices]:
    """Thirty volumes, three copies of one of them, and slices that are the same in all."""
    made = [replace(one, vectors=one.vectors.copy()) for one in volume_maker(30, seed=5)]
    for one in made:
        one.vectors[:EMPTY] = made[0].vectors[:EMPTY]
    made += [replace(made[3], volume_id=f"synthetic/liver_copy{number}.nii.gz") for number in range(3)]
    return sorted(made, key=lambda one: one.volume_id)


@pytest.fixture(scope="module", params=[2, 3, 7])
def split(request: Any, tmp_path_factory: pytest.TempPathFactory, stores: Any, volumes: list[Slices]) -> Split:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("split")
        patch.setenv("MEDRET_CACHE", str(folder / "cache"))
        return Split(folder, stores, volumes, request.param, None)


def ask(snapshot: Snapshots, queries: Sequence[Any], mode: str, kind: str, options: dict[str, Any]) -> list[list[Hit]]:
    answers = snapshot.search_many(queries, **{"k": 6, "mode": mode, "index": kind, **options})
    return [[replace(hit, store="", labels={**hit.labels, "source": None}) for hit in hits] for hits in answers]


def asked(volumes: Sequence[Slices], number: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Queries that are asked together, with options. number: tests with successive ones go through all options."""
    rng = np.random.default_rng(number)
    first, second = rng.choice(len(volumes), 2, replace=False)
    yield [volumes[first].volume_id, volumes[second].volume_id], OPTIONS[number % len(OPTIONS)]
    yield [rng.standard_normal(32), volumes[first].vectors[:3]], {"k": 5, "per_slice": 4 + number % 30}


@pytest.mark.parametrize(("mode", "kind"), list(itertools.product(MODES, KINDS)))
def test_a_store_split_answers_as_the_whole(split: Split, volumes: list[Slices], mode: str, kind: str) -> None:
    """The whole has the centre that its parts share: all bits are equal, ties, copies and empty slices included."""
    for queries, options in asked(volumes, 7 * MODES.index(mode) + KINDS.index(kind) + len(split.uris)):
        found = ask(split.parts, queries, mode, kind, options)
        assert any(found)
        assert found == ask(split.whole, queries, mode, kind, options), options


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_of_split_stores(split: Split, volumes: list[Slices], kind: str) -> None:
    queries = [volumes[11].volume_id]
    for mode, fuse in (("volume", "concat"), ("late", "concat"), ("vote", "rrf"), ("volume", "rrf")):
        options = {"aggregation": {"mean": 0.7, "max": 0.3}, "fuse": fuse, "candidates": 100}
        assert ask(split.parts, queries, mode, kind, options) == ask(split.whole, queries, mode, kind, options)


def test_the_centre_that_a_whole_is_fitted_to_moves_no_score(
    tmp_path: Path, stores: Any, volumes: list[Slices]
) -> None:
    """Centres are stored rounded, so that of the whole may differ in its last bit: scores by what float16 rounds."""
    split = Split(tmp_path, stores, volumes, 3, fitted)
    for mode in ("volume", "max", "late", "slice"):
        for found, expected in zip(
            ask(split.parts, [volumes[9].volume_id], mode, "exact", {"k": 30}),
            ask(split.whole, [volumes[9].volume_id], mode, "exact", {"k": 30}),
            strict=True,
        ):
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=2e-4)


def test_a_hit_names_its_store_and_one_id_in_two_stores_is_two_volumes(split: Split, volumes: list[Slices]) -> None:
    twin = open_snapshots([split.whole, split.uris[0]])
    ids = {hit.volume_id for hit in open_snapshot(split.uris[0]).search(volumes[0].vectors, 100)}
    hits = twin.search(volumes[0].vectors, 100)
    assert len(hits) == len(volumes) + len(ids) == twin.volumes
    assert {hit.volume_id for hit in hits if hit.store == split.uris[0]} == ids
    shared = min(ids)
    assert twin.labels().num_rows == twin.volumes
    with pytest.raises(UsageError, match=rf"is a volume of {split.whole.uri} and of {split.uris[0]}: say which with '"):
        twin.search(shared)
    for uri in (split.whole.uri, split.uris[0]):
        first, second = twin.search(f"{uri}#{shared}", 2, index="exact")
        assert {first.volume_id, second.volume_id} == {shared} or first.score == second.score
        others = twin.search(f"{uri}#{shared}", 100, exclude="self")
        assert len(others) == len(hits) - 1
        assert (uri, shared) not in {(hit.store, hit.volume_id) for hit in others}
    assert twin.search(f"{split.whole.uri}#{shared}", 1)[0].to_json()["store"] in (split.whole.uri, split.uris[0])


def test_stores_that_cannot_be_searched_together(tmp_path: Path, stores: Any, volumes: list[Slices]) -> None:
    recipe = stores.recipe_of()
    other = replace(recipe, model=replace(recipe.model, precision="bf16"))
    first = stores.make_store(tmp_path / "first", tuple(volumes[:4])).uri
    second = stores.make_store(tmp_path / "second", tuple(volumes[:4]), recipe=other).uri
    with pytest.raises(
        UsageError, match=rf"{second} cannot be searched .*{other.digest} there.*precision bf16 and fp32"
    ):
        open_snapshots([first, second])
    third = stores.make_store(tmp_path / "third", tuple(volumes[:4]), recipe=stores.recipe_of("another")).uri
    with pytest.raises(
        UsageError, match=rf"{third} cannot .* before it: its models are another, theirs synthetic-model"
    ):
        open_snapshots([first, third])
    fourth = stores.make_store(tmp_path / "fourth", tuple(volumes[:4]), aggregations=("max",)).uri
    both = open_snapshots([first, fourth])
    assert both.aggregations == ("max",)
    with pytest.raises(UsageError, match=r"aggregation 'mean' is not in snapshots .*, which has max"):
        both.search(volumes[0].vectors, aggregation="mean")
    with pytest.raises(UsageError, match="named more than once"):
        open_snapshots([first, first])
    wrongs: list[Any] = [[], first]
    for wrong in wrongs:
        with pytest.raises(UsageError, match="expected a list of stores, at least one"):
            open_snapshots(wrong)


@pytest.mark.parametrize("mode", MODES)
def test_shards_searched_elsewhere_give_the_same_answer(split: Split, volumes: list[Slices], mode: str) -> None:
    elsewhere = open_snapshot(split.whole.uri)
    held: set[tuple[Any, int]] = set()

    def spread(tasks: Sequence[Task]) -> list[Any]:
        sent = [pickle.loads(pickle.dumps(task)) for task in tasks]
        held.update((task.index, task.shard) for task in sent)
        answers = [pickle.loads(pickle.dumps(elsewhere.run(task))) for task in reversed(sent)][::-1]
        for answer in answers:
            if isinstance(answer, np.ndarray):
                answer.flags.writeable = False  # as Ray gives them
        return answers

    snapshot = open_snapshot(split.whole.uri, spread=spread)
    for number, kind in enumerate(KINDS):
        for queries, options in asked(volumes, 5 * number + len(split.uris)):
            assert ask(snapshot, queries, mode, kind, options) == ask(split.whole, queries, mode, kind, options)
    assert {shard for _, shard in held} == {0, 1}
    with pytest.raises(UsageError, match="open the same ones, by their ids"):
        open_snapshot(split.uris[0]).run(Task((split.whole.id,), ("", None), 0, "search", ()))


def test_the_command_searches_several_stores(
    split: Split, volumes: list[Slices], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    also = [word for uri in split.uris[1:] for word in ("--also", uri)]
    page = tmp_path / "hits.html"
    command = ["search", split.uris[0], volumes[0].volume_id, "-k", "40", *also]
    assert main([*command, "--json", "--html", str(page)]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {hit["store"] for hit in hits} == set(split.uris)
    assert [hit["volume_id"] for hit in hits] == [hit.volume_id for hit in split.parts.search(volumes[0].volume_id, 40)]
    text = page.read_text()
    assert f"among {len(volumes)} volumes of" in text
    assert all(f"<dt>store</dt><dd>{uri}</dd>" in text for uri in split.uris)
    assert main([*command, "--also", split.uris[0]]) == 2
    assert "named more than once" in capsys.readouterr().err
    assert main(command) == 0
    assert "store" in capsys.readouterr().out


def test_an_option_of_one_store_names_it(split: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = split.uris[:2]
    command = ["search", first, open_snapshot(first).labels()["volume_id"][0].as_py(), "--also", second, "--json"]
    assert main(command) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    live = {uri: open_snapshot(uri).id for uri in (first, second)}
    assert main([*command, "--snapshot", live[first], "--snapshot", f"{second}={live[second]}"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == hits
    assert main([*command, "--snapshot", f"{second}=20200101T000000-none"]) == 2
    assert f"{second} has no snapshot '20200101T000000-none'" in capsys.readouterr().err
    assert main([*command, "--archive", f"{second}=a", "--archive", f"{second}=b"]) == 2
    assert f"--archive says a and b for the store {second}" in capsys.readouterr().err
    live_stores = LiveStores([first, second], archives={second: str(tmp_path / "moved")})
    for hit in hits:
        place = live_stores.current.snapshots.uri_of_query(VolumeName(hit["volume_id"], hit["store"]))
        assert (place == f"{tmp_path}/moved/{hit['volume_id']}") == (hit["store"] == second)


def test_a_shard_is_moved_without_its_dead_rows_and_checked(tmp_path: Path, split: Split) -> None:
    contents = split.parts.corpus.stores[0]
    key = (contents.manifest.recipes[0].digest, "mean")
    shard = split.parts.corpus.index(contents.manifest.recipes[0], "mean").shards[0]
    stored, centre = contents.embedded(key, shard.key), np.zeros(32, np.float32)
    ids = stored["volume_id"].to_pylist()
    listed = ShardFiles(shard.key, shard.rows, {}, frozenset(ids[:1]))
    write_moved(tmp_path / "moved", listed, shard.table, stored.slice(1), centre)
    moved = open_exact(tmp_path / "moved", rows=shard.rows, dim=32).vectors(np.arange(shard.rows))
    dead = shard.table.volume_ids(slice(0, shard.rows)).index(ids[0])
    assert not moved[dead].any()
    assert np.linalg.norm(np.delete(moved, dead, 0).astype(np.float32), axis=1) == pytest.approx(1, abs=1e-2)
    with pytest.raises(CorruptError, match="hold other rows than its row table; run `medret verify`"):
        write_moved(tmp_path / "moved", listed, shard.table, stored, centre)


def test_an_error_of_one_store_names_it(tmp_path: Path, stores: Any, volumes: list[Slices]) -> None:
    uris = [stores.make_store(tmp_path / name, tuple(volumes[:4])).uri for name in ("first", "second")]
    both = open_snapshots(uris)
    for path in Path(uris[1]).glob("indices/*/exact-*"):
        path.write_bytes(b"damaged")
    with pytest.raises(CorruptError, match=r"second/indices/.*exact-.* is damaged"):
        both.search(volumes[0].vectors, mode="late", index="exact")
    for path in Path(uris[1]).glob("snapshots/*/*"):
        path.unlink()
    with pytest.raises(DroppedError, match=rf"is no longer in {uris[1]}"):
        both.search(volumes[0].vectors, mode="late", index="exact")


def test_a_shard_that_a_run_wrote_is_moved_to_the_bits_that_it_has(tmp_path: Path) -> None:
    """Around the store's own centre, what is computed from the embedding files is what the run indexed."""
    snapshot = open_snapshot(Path(__file__).parents[1] / "golden" / "store")
    (contents,), entry = snapshot.corpus.stores, snapshot.manifest.recipes[0]
    for aggregation in (None, *snapshot.aggregations):
        key = (entry.digest, aggregation)
        centre = contents.centre(key, entry.dim)
        assert centre is not None
        for number, shard in enumerate(snapshot.corpus.index(entry, aggregation).shards):
            path = tmp_path / f"{aggregation}-{number}"
            write_moved(path, shard.listed, shard.table, contents.embedded(key, shard.key), centre[0])
            moved, rows = open_exact(path, rows=shard.rows, dim=entry.dim), np.arange(shard.rows)
            alive = moved.vectors(rows).any(axis=1)
            assert (moved.vectors(rows)[alive] == shard.exact.vectors(rows)[alive]).all()
            assert [bool(shard.rows_found(name)) for name in shard.table.volume_ids(rows)] == alive.tolist()


def test_a_dead_first_copy_has_the_vector_of_a_live_one(tmp_path: Path, split: Split) -> None:
    """Empty slices are equal in all volumes, and an index holds the first."""
    contents = split.parts.corpus.stores[0]
    entry = contents.manifest.recipes[0]
    shard = split.parts.corpus.index(entry, None).shards[0]
    stored, first = contents.embedded((entry.digest, None), shard.key), shard.table.volume_id(0)
    stays = pa.array([name != first for name in stored["volume_id"].to_pylist()])
    listed = ShardFiles(shard.key, shard.rows, {}, frozenset([first]))
    write_moved(tmp_path / "moved", listed, shard.table, stored.filter(stays), np.zeros(32, np.float32))
    moved = open_exact(tmp_path / "moved", rows=shard.rows, dim=32).vectors(np.arange(shard.rows))
    alive = np.array([name != first for name in shard.table.volume_ids(slice(0, shard.rows))])
    firsts = np.asarray(shard.table.same_as)[alive]
    assert not alive[firsts].all()
    assert (moved[firsts] == moved[alive]).all()


def test_a_filter_of_one_snapshot_is_not_lost_among_several(split: Split) -> None:
    hidden = open_snapshot(split.uris[0]).restricted("organ = 'Lung'")
    with pytest.raises(UsageError, match="restricted by a filter"):
        open_snapshots([hidden, split.uris[1]])


def test_a_third_store_without_what_two_share_is_named(tmp_path: Path, stores: Any, volumes: list[Slices]) -> None:
    names = (("mean", "max"), ("max",), ("mean",))
    uris = [
        stores.make_store(tmp_path / str(number), tuple(volumes[:4]), aggregations=of_store).uri
        for number, of_store in enumerate(names)
    ]
    with pytest.raises(UsageError, match=rf"{uris[2]} cannot .* its aggregations are mean, theirs max;"):
        open_snapshots(uris)
