"""Hits are a list that shows itself in a notebook."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from medret.errors import DroppedError
from medret.search import Hits, Snapshot, open_snapshot
from medret.search.pictures import Pictures
from tests.search.conftest import ledger_row


@pytest.fixture(scope="module")
def snapshot(made_store: Any) -> Snapshot:
    return open_snapshot(made_store.uri)


def test_hits_are_a_list(made_store: Any, snapshot: Snapshot) -> None:
    hits = snapshot.search(made_store.ids[3], 5)
    assert isinstance(hits, list)
    assert hits == list(hits) == pickle.loads(pickle.dumps(hits))
    assert type(pickle.loads(pickle.dumps(hits))) is list
    assert [hit.rank for hit in hits[1:3]] == [2, 3]
    assert json.loads(json.dumps([hit.to_json() for hit in hits]))[0]["rank"] == 1
    assert Hits()._repr_html_() is None


def test_hits_that_cannot_be_read_are_shown_without_pictures(made_store: Any, snapshot: Snapshot) -> None:
    """The volumes of this store are not on this machine."""
    hits = snapshot.search(made_store.ids[3], 5)
    shown, first = hits._repr_html_(), hits[:1]._repr_html_()
    assert shown
    assert first
    assert all(hit.volume_id.rpartition("/")[2] in shown for hit in hits)
    assert "<img" not in shown
    assert first.count("<li>") == 1
    assert shown.count("<li>") == 5


def test_nothing_is_read_before_hits_are_shown(
    made_store: Any, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise DroppedError("the snapshot is gone")

    monkeypatch.setattr(Pictures, "read", fail)
    hits = snapshot.search(made_store.ids[3], 2)
    assert str(hits._repr_html_()).count("the snapshot is gone") == 2


def test_one_instance_is_known_as_the_series_that_it_is(tmp_path: Path, store_maker: Any, volume_maker: Any) -> None:
    from medret.volume import Part, content_sha256

    volumes, content = volume_maker(2), b"an instance"
    sums = (content_sha256((Part("1.dcm", content),)), content_sha256(content))
    rows = [ledger_row(one.volume_id, content_sha256=sha256) for one, sha256 in zip(volumes, sums, strict=True)]
    corpus = open_snapshot(store_maker(tmp_path / "store", volumes, ledger=rows).uri).corpus
    assert corpus.with_content(sums[1]) == [(one.volume_id, 0) for one in volumes]
