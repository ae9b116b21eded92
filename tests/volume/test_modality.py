"""CT or not: what labels and voxels say, and what only resembles Hounsfield units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medret.volume.intensity import is_hounsfield_like, modality_of

Values = NDArray[np.float64]


def seen_as_hu(values: NDArray[Any], *, labelled: bool = False) -> bool:
    return is_hounsfield_like(np.sort(values, axis=None).astype(float), labelled=labelled)


def tissue(rng: np.random.Generator, noise_hu: float = 20.0, *, count: int = 6000) -> Values:
    """Values of the inside of a body: fat, muscle and organs, trabecular and cortical bone."""
    parts = [
        rng.normal(-100, noise_hu, count // 4),
        rng.normal(50, noise_hu, count // 2),
        rng.normal(150, 2 * noise_hu, count // 8),
        rng.normal(600, 250, count // 16),
    ]
    return np.concatenate(parts)


def chest(rng: np.random.Generator, air_share: float = 0.4, noise_hu: float = 20.0) -> Values:
    """Values of a CT: tissue with air around it, and edges between the two."""
    inside = tissue(rng, noise_hu)
    air = rng.normal(-1000, noise_hu, int(inside.size * air_share / (1 - air_share)))
    edges = rng.uniform(-1000, 50, inside.size // 40)
    return np.concatenate([inside, air, edges])


def test_ct_is_known_by_its_numbers(ct: NDArray[np.int16], mr: NDArray[np.uint16]) -> None:
    assert seen_as_hu(ct)
    assert not seen_as_hu(mr)
    assert not seen_as_hu(mr, labelled=True)


@pytest.mark.parametrize("padding", [-1024, -1150, -1200, -2000, -2048, -3024, -8192])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
def test_padding_outside_the_circle_is_left_out(padding: float, share: float) -> None:
    """C6."""
    values = chest(np.random.default_rng(0))
    padded = np.concatenate([values, np.full(int(values.size * share / (1 - share)), padding)])
    assert seen_as_hu(padded)


@pytest.mark.parametrize(("metal", "share"), [(3071, 0.03), (8000, 0.02), (30_000, 0.02)])
def test_metal_does_not_deny_ct(metal: float, share: float) -> None:
    """C6: also in the extended scale."""
    rng = np.random.default_rng(0)
    values = chest(rng)
    assert seen_as_hu(np.concatenate([values, rng.uniform(metal / 2, metal, int(share * values.size))]))


@given(st.floats(0.05, 0.9), st.floats(5, 60), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_ct_with_any_share_of_air_and_any_noise_is_ct(air_share: float, noise_hu: float, seed: int) -> None:
    values = chest(np.random.default_rng(seed), air_share, noise_hu)
    assert seen_as_hu(values)
    assert seen_as_hu(values, labelled=True)


def test_ct_of_the_inside_of_the_body_is_known_by_fat_and_bone() -> None:
    assert seen_as_hu(tissue(np.random.default_rng(0)))


def _standardised(rng: np.random.Generator) -> Values:
    values = np.concatenate([rng.rayleigh(10, 4000), rng.normal(300, 60, 3000), rng.normal(800, 90, 1500)])
    return np.asarray(100 * (values - values.mean()) / values.std())


# name -> values of an MRI (mostly) that someone could take for CT
NOT_CT: dict[str, Callable[[np.random.Generator], Values]] = {
    "phase in 12 bits": lambda rng: np.linspace(-4096, 4095, 10_000),
    "phase in mrad": lambda rng: rng.uniform(-3142, 3142, 10_000),
    "real part": lambda rng: rng.normal(0, 30, 10_000) + rng.choice([-1, 1], 10_000) * rng.gamma(1, 300, 10_000),
    "field map in Hz": lambda rng: np.concatenate([rng.normal(0, 15, 6000), rng.normal(-20, 110, 6000)]),
    "field map at 7 T": lambda rng: np.concatenate([rng.normal(0, 60, 6000), rng.normal(60, 350, 6000)]),
    "field map with zeros outside": lambda rng: np.concatenate([np.zeros(6000), rng.normal(-40, 120, 6000)]),
    "phase contrast": lambda rng: np.concatenate([rng.uniform(-1500, 1500, 6000), rng.normal(0, 40, 4000)]),
    "phase contrast, slow": lambda rng: np.concatenate([rng.uniform(-1000, 1000, 6000), rng.normal(0, 40, 4000)]),
    "subtraction": lambda rng: np.concatenate([rng.normal(0, 40, 9000), rng.gamma(2, 150, 1000)]),
    "subtraction, other way round": lambda rng: np.concatenate([rng.normal(0, 60, 8000), -rng.gamma(2, 250, 2000)]),
    "z-scores": lambda rng: rng.normal(0, 1, 10_000),
    "z-scores x 100": lambda rng: rng.normal(0, 100, 10_000),
    "z-scores x 500": lambda rng: rng.normal(0, 500, 10_000),
    "standardised x 100": _standardised,
    "padded with -1000": lambda rng: np.concatenate([np.full(4000, -1000.0), rng.gamma(2, 150, 9000)]),
    "padded with -1000, resampled": lambda rng: np.concatenate(
        [np.full(4000, -1000.0), rng.gamma(2, 150, 9000), rng.uniform(-1000, 200, 200)]
    ),
    "magnitude": lambda rng: rng.gamma(2, 300, 10_000),
    "8 bit": lambda rng: np.arange(256.0),
    "HU, skull stripped": lambda rng: np.concatenate([np.zeros(8000), rng.normal(35, 8, 2000)]),
    "HU + 1024": lambda rng: np.maximum(chest(rng) + 1024, 0),
    "HU scaled to 0..1": lambda rng: (chest(rng).clip(-1000, 1000) + 1000) / 2000,
    "padding alone": lambda rng: np.full(100, -2000.0),
}


@pytest.mark.parametrize("name", NOT_CT)
def test_what_is_not_in_hounsfield_units(name: str) -> None:
    """C6: values around zero are not enough."""
    for seed in range(3):
        assert not seen_as_hu(NOT_CT[name](np.random.default_rng(seed)))


@pytest.mark.parametrize("name", ["8 bit", "HU, skull stripped", "HU + 1024", "HU scaled to 0..1"])
def test_ct_that_lost_its_scale_is_counted(name: str) -> None:
    """C5, C6: labelled CT, and not in HU."""
    found = modality_of("CT", np.sort(NOT_CT[name](np.random.default_rng(0))))
    assert (found.name, found.is_hu, found.is_ct_without_hu) == ("CT", False, True)


@pytest.mark.parametrize("label", ["CT", "HRCT", "CT;PET"])
def test_the_label_ct_asks_less(label: str) -> None:
    """C5, C6: clipped to a soft window, with hardly any bone; nobody would guess it, and the label settles it."""
    values = np.sort(np.concatenate([chest(np.random.default_rng(0)).clip(-200, 300), np.full(3000, -200.0)]))
    assert modality_of(None, values).is_hu is False
    found = modality_of(label, values)
    assert (found.name, found.is_hu, found.is_ct_without_hu) == ("CT", True, False)


def test_label_and_voxels_decide_together(ct: NDArray[np.int16], mr: NDArray[np.uint16]) -> None:
    hu, other = np.sort(ct, axis=None).astype(float), np.sort(mr, axis=None).astype(float)

    def outcome(label: str | None, values: Values) -> tuple[str, str, bool]:
        found = modality_of(label, values)
        return found.name, found.source, found.is_hu

    assert outcome(None, hu) == ("CT", "guessed", True)
    assert outcome("  ", other) == ("MRI", "guessed", False)
    assert outcome("ct", hu) == ("CT", "label", True)
    assert outcome("CT", other) == ("CT", "label", False)  # labelled CT, but not in HU
    assert outcome("mr", hu) == ("MRI", "label", False)
    assert outcome("PT", other) == ("PET", "label", False)
    assert outcome("Ultrasound", other) == ("US", "label", False)
    assert outcome("holography", hu) == ("HOLOGRAPHY", "label", True)  # a word that nobody knows denies nothing
