from __future__ import annotations

import pyarrow as pa
import pytest

from medret.index.columns import Coded, Maps, Strings, Utf8

TEXTS = ["a", None, "", "ä/é", "a", None]


@pytest.mark.parametrize("start", [0, 1, 3])
def test_single_values_are_arrows_own(start: int) -> None:
    values = pa.array(TEXTS, pa.string()).slice(start)
    assert [Strings(values)[place] for place in range(len(values))] == TEXTS[start:]
    coded = pa.array(TEXTS, pa.string()).dictionary_encode().slice(start)
    assert [Coded(coded)[place] for place in range(len(values))] == TEXTS[start:]


def test_bytes_of_a_slice_and_of_nothing() -> None:
    ids = Utf8(pa.array(["x", "", "ä"], pa.string()).slice(1))
    assert [ids[place] for place in range(len(ids))] == [b"", "ä".encode()]
    assert len(Utf8(pa.array([], pa.string()))) == 0


@pytest.mark.parametrize("start", [0, 1, 2])
def test_maps(start: int) -> None:
    content = [[("a", "1"), ("b", None)], None, [], [("c", "ä")]]
    maps = Maps(pa.array(content, pa.map_(pa.string(), pa.string())).slice(start))
    assert [maps[place] for place in range(len(content) - start)] == [one or [] for one in content[start:]]
