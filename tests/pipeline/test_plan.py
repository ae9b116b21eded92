"""Planning: a pure function of listing, ledger and journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medret.archive import Listing
from medret.index import IndexSettings
from medret.pipeline.content_hashes import resolve, twins, with_checks
from medret.pipeline.layout import Live, compactions, findable, plan_index_shards, tombstones, with_indexed_in
from medret.pipeline.plan import ACTIONS, Plan, Step, make_plan
from medret.pipeline.prepare import ruleset_digest
from medret.pipeline.request import IndexRequest
from medret.pipeline.store_state import BaseSnapshot, StoreState, Target, known_rows, store_state
from medret.schemas import FILES, LEDGER, OBJECTS, TOMBSTONES, VOLUME_LABELS
from medret.snapshot import Journal
from medret.snapshot.files import LiveFile, LiveShards, StoredFile, live_files, live_shards

A, B = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
WANTED = Target((A,), "judge")


def item(volume_id: str, size: int = 10, mtime: str = "t0", etag: str | None = None) -> dict[str, Any]:
    return {"volume_id": volume_id, "size_bytes": size, "etag": etag, "mtime": mtime}


def planned(
    objects: list[dict[str, Any]], modalities: dict[str, str], state: StoreState, target: Target = WANTED
) -> Plan:
    labels = [{"volume_id": name, "modality": label, "metadata": []} for name, label in sorted(modalities.items())]
    listing = Listing("/archive", pa.Table.from_pylist(objects, OBJECTS), {})
    return make_plan(listing, pa.Table.from_pylist(labels, VOLUME_LABELS), state, target)


def steps(plan: Plan) -> dict[str, Step]:
    return {step.item.volume_id: step for step in plan.of(*ACTIONS)}


def row(volume_id: str, **more: Any) -> dict[str, Any]:
    return {
        "volume_id": volume_id, "uri": f"/archive/{volume_id}", "size_bytes": 10, "mtime": "t0", "status": "embedded",
        "content_sha256": f"sha-{volume_id}", "slices": 2, "shards": [(A, "one")], "judged_by": "judge", **more,
    }  # fmt: skip


def refused(volume_id: str, **more: Any) -> dict[str, Any]:
    return row(volume_id, **{"status": "quarantined", "code": "truncated", "shards": [], "slices": 0, **more})


def known(
    *rows: dict[str, Any], journal: tuple[dict[str, Any], ...] = (), older: tuple[dict[str, Any], ...] = ()
) -> StoreState:
    journalled = Journal(pa.Table.from_pylist(list(journal), LEDGER), FILES.empty_table(), ())
    return store_state(base(*rows), journalled, pa.Table.from_pylist(list(older), LEDGER))


def base(*rows: dict[str, Any], files: pa.Table | None = None, tombstones: pa.Table | None = None) -> BaseSnapshot:
    ledger = known_rows(pa.Table.from_pylist(sorted(rows, key=lambda each: str(each["volume_id"])), LEDGER))
    return BaseSnapshot("id", None, ledger, files or FILES.empty_table(), tombstones or TOMBSTONES.empty_table())


def causes(plan: Plan) -> Mapping[str, tuple[str, str]]:
    return {name: (step.action, step.cause) for name, step in steps(plan).items()}


def test_every_kind_of_change_is_told_apart() -> None:
    before = known(
        row("same"), row("touched"), row("grown"), row("gone"), refused("still"), refused("fixed"),
        refused("judged", judged_by="older"), refused("away", code="unreadable"),
    )  # fmt: skip
    objects = [
        item("away"), item("fixed", size=11), item("grown", size=99), item("judged"), item("new", size=98),
        item("same"), item("still"), item("touched", mtime="t1"),
    ]  # fmt: skip
    plan = planned(objects, {}, before)
    assert causes(plan) == {
        "away": ("check", "retried"),
        "fixed": ("embed", "retried"),
        "grown": ("embed", "changed"),
        "judged": ("check", "retried"),  # it has the size of a known volume, so it may be a copy
        "new": ("embed", "new"),
        "same": ("keep", "unchanged"),
        "still": ("refuse", "refused"),
        "touched": ("check", "touched"),
    }
    assert [before.rows["volume_id"][row].as_py() for row in plan.gone] == ["gone"]
    assert not plan.idle
    again = planned(objects, {}, before, Target((A,), "judge", retry=True))
    assert causes(again)["still"] == ("check", "retried")


def test_a_stale_volume_is_compared_again_and_no_run_is_idle_until_then() -> None:
    """A14: its row is of the object that its vectors are of, with the code of what could not be read."""
    before = known(row("away", code="unreadable"), row("back", code="unreadable"))
    plan = planned([item("away", mtime="t1"), item("back")], {}, before)
    assert causes(plan) == {"away": ("check", "touched"), "back": ("keep", "touched")}
    assert not plan.idle


def test_older_snapshots_give_vectors_but_no_second_opinion() -> None:
    """A5, B8: what returns is kept with its vectors, of one snapshot or of several; a refusal that stands is kept."""
    older = (row("back"), row("both"), row("bad"), row("other", content_sha256="x"))
    before = known(row("both", shards=[(B, "two")]), refused("bad"), older=older)
    objects = [item("back"), item("bad"), item("both"), item("moved")]
    plan = planned(objects, {}, before)
    assert causes(plan) == {
        "back": ("keep", "returned"),
        "bad": ("refuse", "refused"),
        "both": ("keep", "returned"),
        "moved": ("check", "new"),
    }
    both = steps(planned(objects, {}, before, Target((A, B), "judge")))["both"]
    assert (both.cause, dict(both.shards)) == ("returned", {A: "one", B: "two"})


def test_hashes_decide_what_is_kept_copied_or_embedded() -> None:
    before = known(row("a"), row("b"), row("old"))
    objects = [item("a", mtime="t1"), item("b", mtime="t1"), item("moved"), item("other")]
    plan = planned(objects, {}, before)
    found = resolve(plan, {"a": "sha-a", "b": "else", "moved": "sha-old", "other": "unknown"})
    assert causes(found) == {
        "a": ("keep", "touched"),
        "b": ("embed", "changed"),
        "moved": ("copy", "renamed"),
        "other": ("embed", "new"),
    }
    assert dict(steps(found)["moved"].shards) == {A: "one"}
    # What cannot be hashed is read, and refused there with a reason.
    assert causes(resolve(plan, {}))["a"] == ("embed", "changed")


def test_equal_objects_of_one_run_are_embedded_once() -> None:
    nothing = known()
    plan = planned([item("a"), item("b"), item("c"), item("d", size=77)], {"c": "CT"}, nothing, WANTED)
    assert twins(plan).select(["volume_id", "alike"]).to_pydict() == {"volume_id": ["a", "b", "c"], "alike": [0, 0, 0]}
    plan = resolve(with_checks(plan, {"a", "b", "c"}), dict.fromkeys("abc", "equal"))
    assert causes(plan)["b"] == ("copy", "renamed")
    assert steps(plan)["b"].leader == "a"
    # Another modality gives another window, and so other vectors.
    assert [causes(plan)[name][0] for name in "acd"] == ["embed"] * 3


def test_a_further_model_is_embedded_alone() -> None:
    before = known(row("a"), row("b", shards=[(A, "one"), (B, "two")]))
    plan = planned([item("a"), item("b")], {}, before, Target((A, B), "judge"))
    first, second = steps(plan).values()
    assert (first.action, first.cause, first.missing, dict(first.shards)) == ("embed", "recipe", (B,), {A: "one"})
    assert (second.action, dict(second.shards)) == ("keep", {A: "one", B: "two"})


def test_another_recipe_embeds_everything() -> None:
    plan = planned([item("a")], {}, known(row("a")), Target((B,), "judge"))
    assert steps(plan)["a"].missing == (B,)
    assert not plan.idle


def test_what_the_journal_has_is_not_made_again() -> None:
    before = known(
        row("same"), journal=(row("done", shards=[(A, "j")]), row("same", shards=[(A, "j")]), refused("bad"))
    )
    objects = [item("bad"), item("done"), item("done2"), item("same")]
    plan = planned(objects, {}, before)
    assert causes(plan) == {
        "bad": ("refuse", "refused"),
        "done": ("keep", "resumed"),
        "done2": ("check", "new"),
        "same": ("keep", "unchanged"),
    }
    # An object that was written to since is not what the journal speaks of.
    changed = planned([item("done", mtime="t1", size=12)], {}, before)
    assert causes(changed)["done"] == ("embed", "new")


def test_another_modality_label_is_another_volume() -> None:
    plan = planned([item("a")], {"a": "CT"}, known(row("a", modality="MRI")))
    assert causes(plan)["a"][0] != "keep"


def test_slices_drawn_by_name_are_never_shared() -> None:
    wanted = Target((A,), "judge", copies=False)
    before = known(row("old"))
    plan = planned([item("moved")], {}, before, wanted)
    assert causes(plan)["moved"] == ("embed", "new")
    assert causes(planned([item("old", mtime="t1")], {}, before, wanted))["old"] == ("check", "touched")


# --- layout ------------------------------------------------------------------------------------------------------


def files(*pieces: tuple[str, int, int, str | None]) -> list[LiveFile]:
    return [
        LiveFile(StoredFile(p, "slices", "0" * 64, 1, rows, A, None, p, held), live) for p, rows, live, held in pieces
    ]


SETTINGS = IndexSettings(shard_rows=100)


def test_what_fits_one_shard_is_one_shard_without_dead_rows() -> None:
    assert plan_index_shards(files(("a", 50, 50, "x")), {"x": 50}, SETTINGS).kept == ("x",)
    dead = plan_index_shards(files(("a", 50, 49, "x")), {"x": 50}, SETTINGS)
    assert (dead.kept, len(dead.built)) == ((), 1)
    more = plan_index_shards(files(("a", 50, 50, "x"), ("b", 10, 10, None)), {"x": 50}, SETTINGS)
    assert (more.kept, [len(group) for group in more.built]) == ((), [2])


@pytest.mark.parametrize(("live", "kept"), [(100, True), (81, True), (79, False)])
def test_a_shard_is_rebuilt_past_a_fifth_of_dead_rows(live: int, kept: bool) -> None:
    plan = plan_index_shards(files(("a", 100, live, "x"), ("b", 100, 100, "y")), {"x": 100, "y": 100}, SETTINGS)
    assert ("x" in plan.kept) is kept
    assert "y" in plan.kept
    assert [[member.file.path for member in group] for group in plan.built] == ([] if kept else [["a"]])


def test_a_small_shard_takes_in_what_is_added() -> None:
    held = {"x": 100, "y": 10}
    pieces = files(("a", 100, 100, "x"), ("b", 10, 10, "y"), ("c", 5, 5, None))
    plan = plan_index_shards(pieces, held, SETTINGS)
    assert plan.kept == ("x",)
    assert [[member.file.path for member in group] for group in plan.built] == [["b", "c"]]
    assert plan_index_shards(pieces[:2], held, SETTINGS).kept == ("x", "y")  # nothing was added: nothing to do


def everything(previous: BaseSnapshot, ledger: pa.Table) -> Live:
    """All shards count as touched."""
    shards = live_shards(ledger)
    return Live(ledger, shards, shards.keys() | live_shards(previous.ledger).keys())


def test_tombstones_are_the_rows_that_died() -> None:
    before = [row("a"), row("b"), row("c", shards=[(A, "two")]), row("d")]
    now = pa.Table.from_pylist([row("a"), row("b", shards=[(A, "three")]), row("c", shards=[(A, "two")])], LEDGER)
    held = [("p1", "one", "x"), ("p2", "two", "y")]
    table = pa.Table.from_pylist(
        [{"path": path, "kind": "slices", "sha256": "", "size_bytes": 1, "rows": 1, "recipe": A, "shard": shard,
          "indexed_in": key} for path, shard, key in held], FILES,
    )  # fmt: skip
    old = pa.Table.from_pylist([{"shard": "x", "volume_id": "z"}, {"shard": "w", "volume_id": "z"}], TOMBSTONES)
    found = tombstones(
        ["x", "y"], base(*before, files=table, tombstones=old), table, everything(base(*before), now)
    ).to_pylist()
    assert {(one["shard"], one["volume_id"]) for one in found} == {("x", "z"), ("x", "b"), ("x", "d")}


MEMBERS = {"one": "abcd", "two": "efgh", "three": "ae", "four": "bfg", "five": "ch", "six": "d"}
HOLDERS = {volume: [None, *(key for key, held in MEMBERS.items() if volume in held)] for volume in "abcdefgh"}
STATES = st.fixed_dictionaries({volume: st.sampled_from(holders) for volume, holders in HOLDERS.items()})


@settings(max_examples=60, deadline=None)
@given(st.lists(STATES, min_size=2, max_size=8), st.integers(1, 9))
def test_what_lives_is_found_once_whatever_became_of_it_before(
    history: list[dict[str, str | None]], shard_rows: int
) -> None:
    """B4: embedding shards go and come back, volumes move between them and return; no live row stays hidden."""
    wanted = IndexSettings(shard_rows=shard_rows)
    previous = base()
    indices: dict[str, list[str]] = {}
    for generation, state in enumerate(history):
        ledger = pa.Table.from_pylist([row(v, shards=[(A, key)]) for v, key in state.items() if key], LEDGER)
        now = everything(previous, ledger)
        live = now.shards
        before = {(each["recipe"], each["shard"]): each["indexed_in"] for each in previous.files.to_pylist()}
        pool = pa.Table.from_pylist(
            [{"path": f"p-{key}", "kind": "volumes", "sha256": "", "size_bytes": 1, "rows": len(held), "recipe": A,
              "aggregation": "mean", "shard": key, "indexed_in": before.get((A, key))}
             for key, held in MEMBERS.items() if (A, key) in live], FILES,
        )  # fmt: skip
        files = findable(pool, previous, now)
        members = live_files(files, live, A, "mean")
        plan = plan_index_shards(members, {key: len(held) for key, held in indices.items()}, wanted)
        placed = {m.file.path: m.file.indexed_in for m in members if m.file.indexed_in in plan.kept}
        indices = {key: indices[key] for key in plan.kept}
        for number, group in enumerate(plan.built):
            key = f"{generation}-{number}"
            indices[key] = [v for member in group for v in live[member.file.key].volumes]
            placed |= dict.fromkeys((member.file.path for member in group), key)
        files = with_indexed_in(files, [placed.get(path) for path in files["path"].to_pylist()])
        dead = tombstones(plan.kept, previous, files, now)
        hidden = {(each["shard"], each["volume_id"]) for each in dead.to_pylist()}
        found = [v for key, held in indices.items() for v in held if (key, v) not in hidden]
        assert sorted(found) == sorted(ledger["volume_id"].to_pylist())
        assert all(v in indices[key] for key, v in hidden)
        previous = base(*ledger.to_pylist(), files=files, tombstones=dead)


def test_dead_and_many_small_embedding_shards_are_written_again() -> None:
    def shards(volumes: dict[str, list[str]]) -> LiveShards:
        rows = [row(name, shards=[(A, shard)]) for shard, names in volumes.items() for name in names]
        return live_shards(pa.Table.from_pylist(rows, LEDGER))

    def table(*pieces: tuple[str, int]) -> pa.Table:
        rows = [{"path": f"p-{s}", "kind": "slices", "sha256": "", "size_bytes": 1, "rows": n, "recipe": A, "shard": s}
                for s, n in pieces]  # fmt: skip
        return pa.Table.from_pylist(rows, FILES)

    live = shards({"full": [str(n) for n in range(64)], "dead": ["a", "b", "c"]})
    groups = compactions(table(("full", 128), ("dead", 10)), live, A, 64)
    assert [[file.shard for file in group] for group in groups] == [["dead"]]
    small = shards({f"s{n}": [f"v{n}"] for n in range(8)})
    names = [(shard, 2) for _, shard in small]
    assert compactions(table(*names[:7]), small, A, 64) == []
    assert [len(group) for group in compactions(table(*names), small, A, 64)] == [8]


def test_what_looks_like_a_mask_is_judged_again_when_masks_are_wanted() -> None:
    """C10: `include_masks` lifts the check of content and changes what refused volumes were judged by."""
    without, masks = IndexRequest("archive", "store"), IndexRequest("archive", "store", include_masks=True)
    assert without.volume_limits.refuse_masks
    assert not masks.volume_limits.refuse_masks
    assert ruleset_digest(without, []) != ruleset_digest(masks, [])


def test_a_refusal_that_is_not_published_yet_leaves_something_to_do() -> None:
    for before, idle in (
        (known(refused("bad"), row("same")), True),
        (known(row("same"), journal=(refused("bad"),)), False),
        (known(refused("bad"), row("same"), journal=(refused("bad"),)), True),
        (known(refused("bad", judged_by="older"), row("same"), journal=(refused("bad"),)), False),
        (known(refused("bad", judged_by="older"), row("same"), older=(refused("bad"),)), False),
    ):
        plan = planned([item("bad"), item("same")], {}, before)
        assert causes(plan)["bad"] == ("refuse", "refused")
        assert plan.idle == idle
