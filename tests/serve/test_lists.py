"""Lists of volumes and counts of labels, compared with loops over the labels as Python values."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from medret.errors import UsageError
from medret.search import Snapshots, open_snapshots
from medret.serve.volumes import listed

Row = dict[str, Any]
Keep = Callable[[Row], bool]


@pytest.fixture(scope="module")
def both(snapshots: Snapshots, tmp_path_factory: pytest.TempPathFactory) -> Snapshots:
    """The golden store and a copy of it, searched as one."""
    store = tmp_path_factory.mktemp("lists") / "copy"
    shutil.copytree(snapshots.corpus.stores[0].uri, store)
    return open_snapshots([snapshots.corpus.stores[0].uri, str(store)])


def _walk(snapshots: Snapshots, limit: int, **asked: Any) -> tuple[list[tuple[str, str]], list[int]]:
    """Every page: the names of all volumes, and the totals that the pages told."""
    names, totals, after = [], [], None
    for _ in range(100):
        page = listed(snapshots, after=after, limit=limit, facets=False, **asked)
        names += [(row["store"], row["volume_id"]) for row in page["volumes"]]
        totals.append(page["total"])
        if (after := page["next"]) is None:
            return names, totals
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize(
    ("where", "contains", "keep"),
    [
        (None, "", lambda row: True),
        ("modality = 'CT'", "", lambda row: row["modality"] == "CT"),
        ("organ <> 'Brain'", "I/0", lambda row: row["organ"] != "Brain" and "i/0" in row["volume_id"]),
        (None, "CT/", lambda row: "ct/" in row["volume_id"]),
        ("organ is null", "", lambda row: row["organ"] is None),
    ],
)
def test_pages_and_counts_are_those_of_a_loop(both: Snapshots, where: str | None, contains: str, keep: Keep) -> None:
    rows = [row for labels in both.corpus.labels for row in labels.to_pylist() if keep(row)]
    uris = [contents.uri for contents in both.corpus.stores for row in contents.labels.to_pylist() if keep(row)]
    expected = [(uri, row["volume_id"]) for uri, row in zip(uris, rows, strict=True)]
    for limit in (1, 3, 1000):
        names, totals = _walk(both, limit, where=where, contains=contains)
        assert names == expected
        assert set(totals) == {len(expected)}
    facets = listed(both, where=where, contains=contains, after=None, limit=1, facets=True)["facets"]
    for name in ("modality", "body_region", "organ"):
        counted = {each["value"]: each["count"] for each in facets.get(name, [])}
        assert counted == Counter(row[name] for row in rows)


def test_a_page_begins_after_a_volume_that_is_no_longer_there(snapshots: Snapshots) -> None:
    ids = snapshots.labels()["volume_id"].to_pylist()
    gone = f"0:{ids[2]}0"  # it would come between the third and the fourth
    page = listed(snapshots, where=None, contains="", after=gone, limit=2, facets=False)
    assert [row["volume_id"] for row in page["volumes"]] == ids[3:5]


@pytest.mark.parametrize("after", ["", "x", "1:a", "0:", "-1:a", "²:a"])
def test_a_wrong_place_is_refused(snapshots: Snapshots, after: str) -> None:
    with pytest.raises(UsageError, match="expected `next`"):
        listed(snapshots, where=None, contains="", after=after, limit=1, facets=False)
