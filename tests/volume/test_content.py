"""What identifies the content of a series: its parts' bytes, whatever their names and order."""

from __future__ import annotations

import hashlib

from medret.volume import Part, content_sha256


def test_an_object_has_the_sha256_of_its_bytes() -> None:
    assert content_sha256(b"bytes") == hashlib.sha256(b"bytes").hexdigest()


def test_a_series_is_known_by_its_parts_whatever_their_names_and_order() -> None:
    series = (Part("a/1.dcm", b"one"), Part("a/2.dcm", b"two"))
    renamed = (Part("b/IM2", b"two"), Part("b/IM1", b"one"))
    assert content_sha256(series) == content_sha256(renamed)
    assert content_sha256(series) != content_sha256(series[:1])
    assert content_sha256(series) != content_sha256((*series, series[0]))  # a repeated instance is another content
