"""What is asked and answered for people who look: options in words, how a volume is shown, and maps."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class WindowMessage(BaseModel):
    """A range of values that is shown from black to white: `width` around `level`."""

    name: str
    level: float
    width: float


class OptionsAnswer(BaseModel):
    """What a search may be asked. defaults: of every option. modes: what their scores are, in words."""

    defaults: dict[str, Any]
    modes: dict[str, str]
    fusions: list[str]
    ct_windows: list[WindowMessage]


class ViewAnswer(BaseModel):
    """How a volume is shown. shape, spacing_mm: along x, y, z (RAS+). hounsfield: whether CT windows mean something."""

    shape: list[int]
    spacing_mm: list[float]
    hounsfield: bool
    window: WindowMessage


class MapPoint(BaseModel):
    """A volume on the map, and its value of the label that colours it."""

    volume_id: str
    store: str
    x: float
    y: float
    value: str | None


class MapAnswer(BaseModel):
    """A map: near points have similar volume vectors. total: volumes that the points were chosen from."""

    points: list[MapPoint]
    total: int
    label: str | None
    spread: list[float] = Field(description="share of the variance of all vectors along x and along y")
    model: str
    aggregation: str
    snapshots: list[str]
