"""What a URI says by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medret.cli import main
from medret.errors import CorruptError, UsageError
from medret.storage import Location, normalise_uri, redacted
from medret.storage.uris import check_relative, scheme_of

WITH_SECRETS = (
    "http://user:hunter2@host/a",
    "http://user:hunter2@host:8080/a@b",
    "https://hunter2@host/a",
    "s3://KEY:hunter2@bucket/a",
    "s3://KEY:hun/ter2+x=hunter2@bucket/a",
    "sftp://user:hunter2@host",
    "https://bucket.host/a.nii?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2",
    "https://host/a?token=hunter2",
    "https://account.host/a?sv=1&sig=hunter2&se=2",
)
WITHOUT = (
    "s3://bucket/a:b@c.nii",
    "http://host:8080/a@b",
    "http://[::1]:9000/a@b",
    "abfs://container@account.host/a",
    "sftp://user@host/a",
    "/data/user:name@host/a",
    "https://host/a?page=2&assign=3",
    "gs://bucket/[1]?*.nii",
)


@pytest.mark.parametrize("uri", WITH_SECRETS)
def test_a_secret_is_never_shown_and_never_stored(uri: str) -> None:
    """E8: not in the message that refuses it either, nor in a line of text around it."""
    assert "hunter2" not in redacted(uri)
    assert "hunter2" not in redacted(f"[Errno 2] cannot open '{uri}': refused")
    with pytest.raises(UsageError, match=r"carries a credential.*in the environment") as caught:
        Location(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_is_no_secret_is_shown(uri: str) -> None:
    assert redacted(uri) == uri


def test_the_commands_refuse_and_redact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """E8, A15: exit code 2 and one line, for archive and store, whatever the command."""
    secret, chain = WITH_SECRETS[0], f"zip://a.nii::{tmp_path}/a.zip"
    for command in (
        ["plan", secret, str(tmp_path / "s")],
        ["plan", str(tmp_path), secret],
        ["plan", str(tmp_path), str(tmp_path / "s"), "--weights", f"efficientnet_lite0={secret}"],
        ["verify", secret],
        ["plan", chain, str(tmp_path / "s")],
        ["index", f"tar://{tmp_path}/a.tar", str(tmp_path / "s")],
        ["plan", "simplecache::s3://bucket/a", str(tmp_path / "s")],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "hunter2" not in said


def test_colons_and_patterns_are_letters_of_a_name(tmp_path: Path) -> None:
    """A1."""
    for name in ("a::b", "zip::b", "[0] x", "a*b", "what?", "x://y"):
        assert scheme_of(f"s3://bucket/{name}") == "s3"
        assert scheme_of(str(tmp_path / name)) == ""
        location = Location(tmp_path / name)
        location.write("f/x", b"1")
        assert location.files() == ["f/x"]
        assert location.read("f/x") == b"1"


def test_a_path_that_is_no_text_is_refused() -> None:
    """A2."""
    for path in ("/data/caf\udce9", "/data/\0"):
        with pytest.raises(UsageError, match=r"/data/.*\\x.* is not UTF-8 text"):
            normalise_uri(path)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "a//b", "a/.", "a/", "a\0b", "a/caf\udce9", "..", "."]
)
def test_a_path_that_leads_elsewhere_is_damage(tmp_path: Path, path: str) -> None:
    """E1: whatever is done with it."""
    store = Location(tmp_path / "store")
    for operation in (store.path, store.local_path, store.read, store.delete, store.exists, store.files):
        with pytest.raises(CorruptError, match="below its store"):
            operation(path)
    with pytest.raises(CorruptError, match="below its store"):
        store.write(path, b"x")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1), min_size=1, max_size=4))
def test_a_path_either_stays_below_or_is_refused(parts: list[str]) -> None:
    """E1."""
    path = "/".join(parts)
    if {".", ".."} & set(parts):
        with pytest.raises(CorruptError):
            check_relative(path)
    else:
        assert check_relative(path) == path


def test_a_link_out_of_a_store_is_not_followed(tmp_path: Path) -> None:
    """E1: neither read, nor written through, nor deleted behind; the store itself may lie behind a link."""
    outside, real = tmp_path / "outside", tmp_path / "real"
    for folder in (outside, real):
        folder.mkdir()
    (outside / "x").write_bytes(b"theirs")
    (tmp_path / "store").symlink_to(real)
    store = Location(tmp_path / "store")
    store.write("a/x", b"mine")
    (real / "folder").symlink_to(outside)
    (real / "file").symlink_to(outside / "x")
    for operation in (lambda: store.read("folder/x"), lambda: store.read("file"), lambda: store.delete("folder/x")):
        with pytest.raises(CorruptError, match="leads out of"):
            operation()
    with pytest.raises(CorruptError, match="leads out of"):
        store.write("folder/y", b"mine")
    store.delete("file")  # the link itself
    assert [path.name for path in outside.iterdir()] == ["x"]
    assert store.read("a/x") == b"mine"


def test_a_filesystem_inside_another_is_called_so() -> None:
    with pytest.raises(UsageError, match="does not read a simplecache: filesystem"):
        normalise_uri("simplecache::/data/a")


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "gs://", "file://"])
def test_a_scheme_alone_names_no_place(uri: str) -> None:
    with pytest.raises(UsageError, match="names no place"):
        normalise_uri(uri)
