"""Terms of use of weights are said before any work."""

from __future__ import annotations

from pathlib import Path

from medret.pipeline.prepare import read_inputs
from medret.pipeline.request import IndexRequest
from medret.pipeline.run_report import begin


def test_a_run_begins_with_the_terms_of_its_models(phantom_archive: Path, tmp_path: Path) -> None:
    names = ("rad_dino", "dinov3_s16", "efficientnet_lite0")
    request = IndexRequest(
        str(phantom_archive), str(tmp_path / "store"), models=names, weights=dict.fromkeys(names, "random")
    )
    said: list[str] = []
    read_inputs(request, begin(), said.append)
    assert said == [
        "rad_dino (MIT): for research only, not for clinical use, as its publisher's page says",
        "dinov3_s16 (DINOv3 License): its publisher gives the weights to those who accept the DINOv3 License",
    ]
