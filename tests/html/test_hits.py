from __future__ import annotations

import numpy as np
import pytest
from jinja2 import UndefinedError

from medret.html import breakable, render
from medret.html.cards import BestPair, HitCard, Tile, VolumeImages, png_uri, preview_images, render_hits
from medret.volume.previews import Preview

EVIL = "<script>alert('x')</script> & \"quoted\""


def _card(images: VolumeImages | str) -> HitCard:
    return HitCard(1, EVIL, EVIL, 0.5, {"organ": EVIL, EVIL: EVIL}, BestPair(EVIL, None, 3, 0.25), images)


def test_hits_are_a_fragment_with_a_style_of_its_own() -> None:
    source = png_uri(np.zeros((160, 160), np.uint8))
    text = render_hits([_card(VolumeImages((Tile("axial", 2, source),), {(EVIL, 3): Tile(EVIL, 3, source)}))])
    assert text.startswith('<div class="medret">')
    assert text.endswith("</div>")
    assert "<html" not in text
    assert "<script" not in text
    assert "alert('x')" not in text
    assert text.count(f'src="{source}"') == 2
    assert text.split("<style>")[1].startswith("\n.medret {")
    assert "axial 2" in text


def test_a_volume_without_images_has_the_reason_in_their_place() -> None:
    text = render_hits([_card(f"no file {EVIL}")])
    assert "<img" not in text
    assert "no file &lt;script&gt;" in text


def test_previews_say_why_they_are_there() -> None:
    images = preview_images([Preview("axial", 2, b"\xff")], f"no file {EVIL}")
    assert images is not None
    text = render_hits([_card(images)])
    assert "Previews, stored when it was indexed: no file &lt;script&gt;" in text
    assert 'src="data:image/jpeg;base64,/w=="' in text
    assert preview_images([], "no file") is None


def test_names_break_after_their_parts() -> None:
    assert breakable("<a>/b_c") == "&lt;a&gt;/<wbr>b_<wbr>c"


def test_a_misspelt_name_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("hits_page.html.j2", title="no queries")
