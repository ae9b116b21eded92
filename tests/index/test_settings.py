from __future__ import annotations

import json
from typing import Any

import pytest

from medret.errors import UsageError
from medret.index import IndexSettings
from medret.index.settings import FP16, HNSW_CODES


@pytest.mark.parametrize("codes", HNSW_CODES)
def test_json_round_trip(codes: str) -> None:
    settings = IndexSettings(hnsw_m=16, hnsw_codes=codes, lsh_bits=256, kinds=("exact", "lsh"))
    assert IndexSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_defaults_are_the_stated_ones() -> None:
    settings = IndexSettings()
    assert (settings.hnsw_m, settings.hnsw_ef_construction, settings.hnsw_ef_search) == (32, 200, 64)
    assert settings.hnsw_codes == "auto"
    assert settings.kinds == ("hnsw", "lsh", "exact")


@pytest.mark.parametrize(
    ("dim", "bits"), [(1, 64), (32, 64), (33, 128), (384, 768), (768, 1536), (1024, 2048), (1792, 2048), (2048, 2048)]
)
def test_lsh_bits_rule(dim: int, bits: int) -> None:
    assert IndexSettings().bits_for(dim) == bits
    assert IndexSettings(lsh_bits=72).bits_for(dim) == 72


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"hnsw_m": 1}, "hnsw_m"),
        ({"hnsw_ef_construction": 0}, "hnsw_ef_construction"),
        ({"hnsw_ef_search": -1}, "hnsw_ef_search"),
        ({"hnsw_ef_search": 1.5}, "1.5"),
        ({"hnsw_m": True}, "True"),
        ({"hnsw_codes": "fp8"}, "hnsw_codes is 'fp8', expected one of auto, fp16, rabitq2"),
        ({"hnsw_codes": None}, "None"),
        ({"lsh_bits": 100}, "multiple of 8"),
        ({"lsh_candidates": 0}, "lsh_candidates"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"kinds": ("hnsw", "ivf", "exact")}, "ivf"),
        ({"kinds": ("exact", "exact")}, "distinct"),
        ({"kinds": ("hnsw",)}, "'exact'"),
    ],
)
def test_nonsense_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        IndexSettings(**values)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(UsageError, match="nprobe"):
        IndexSettings.from_json({**IndexSettings().to_json(), "nprobe": 3})


def test_json_tells_settings_apart() -> None:
    assert IndexSettings().to_json() == IndexSettings().to_json()
    assert IndexSettings().to_json() != IndexSettings(hnsw_m=16).to_json()
    assert len({json.dumps(IndexSettings(hnsw_codes=codes).to_json()) for codes in HNSW_CODES}) == len(HNSW_CODES)


def test_settings_from_before_there_were_codes_mean_float16() -> None:
    """And float16 is written as it was then: its files stay where they are."""
    content = {name: value for name, value in IndexSettings().to_json().items() if name != "hnsw_codes"}
    assert IndexSettings.from_json(content) == IndexSettings(hnsw_codes=FP16)
    assert IndexSettings(hnsw_codes=FP16).to_json() == content
