"""--storage-option: what it means, where it holds, and that no secret among the options is shown."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medret.cli import main
from medret.cli.main import _parser
from medret.errors import UsageError
from medret.pipeline.request import IndexRequest
from medret.storage import Location, filesystems, given_options, parse_options, redacted, use_options
from medret.storage import uris as module
from medret.storage.uris import options_at


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_given", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("anon=true", {"anon": True}),
        ("anon=False", {"anon": False}),
        ("max_concurrency=16", {"max_concurrency": 16}),
        ("endpoint_url=https://minio:9000/?a=b", {"endpoint_url": "https://minio:9000/?a=b"}),
        ("client_kwargs.region_name=eu-central-1", {"client_kwargs": {"region_name": "eu-central-1"}}),
        ('client_kwargs={"verify": false}', {"client_kwargs": {"verify": False}}),
        ("secret=12345678", {"secret": "12345678"}),
        ("store.password=true", {"store": {"password": "true"}}),
        ('token={"type": "user"}', {"token": {"type": "user"}}),
        ("profile=", {"profile": ""}),
    ],
)
def test_values_have_the_types_that_fsspec_needs(text: str, expected: dict[str, Any]) -> None:
    assert parse_options([text]) == expected


def test_options_may_be_nested_and_repeated() -> None:
    texts = ["client_kwargs.a=1", 'client_kwargs.b="2"', "anon=true", "anon=True"]
    assert parse_options(texts) == {"client_kwargs": {"a": 1, "b": "2"}, "anon": True}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["anon"], "'anon' is not of the form KEY=VALUE"),
        (["=true"], "not of the form"),
        (["a..b=1"], "not of the form"),
        (["anon=true", "anon=false"], "gives anon twice"),
        (["client_kwargs=1", "client_kwargs.a=1"], "gives 'client_kwargs' a plain value"),
    ],
)
def test_what_is_no_option_is_refused_without_its_value(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_options(texts)


def test_options_hold_for_the_store_and_for_the_buckets_of_everything_else() -> None:
    given = parse_options(["max_concurrency=4", "archive.anon=true", "store.profile=me"])
    use_options(given, stores=["s3://ours/medret/"], others=["s3://idc-open-data/a/b", "/a/local/place", "rel"])
    assert options_at("s3://ours/medret/CURRENT") == {"max_concurrency": 4, "profile": "me"}
    assert options_at("s3://ours/medret") == {"max_concurrency": 4, "profile": "me"}
    assert options_at("s3://idc-open-data/other") == {"max_concurrency": 4, "anon": True}
    assert options_at("s3://ours/medret2") == {}
    assert options_at("s3://idc-open-data-2/other") == {}
    assert options_at("/a/local/place") == {}


def test_options_travel_with_a_location() -> None:
    use_options({"anon": True}, stores=["s3://ours/medret"], others=["s3://theirs"])
    given, packed = given_options(), pickle.dumps(Location("s3://ours/medret"))
    assert given == {"s3://ours/medret": {"anon": True}, "s3://theirs": {"anon": True}}
    module._given.clear()
    assert pickle.loads(packed).uri == "s3://ours/medret"
    assert given_options() == given


def test_a_wrong_option_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for option, words in (
        ("anno=true", "s3:// has no storage option 'anno'; it has anon, "),
        ("client_kwargs=5", "cannot be opened with the storage options client_kwargs: "),
        ("config_kwargs.no_such=1", "cannot be opened with the storage options config_kwargs: "),
        ("profile=nobody-has-this", "cannot be opened with the storage options profile: "),
        ("anon", "'anon' is not of the form KEY=VALUE"),
    ):
        module._given.clear()
        assert main(["verify", "s3://bucket/store", "--storage-option", option]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_every_command_with_a_store_or_an_archive_takes_them() -> None:
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    takes = {
        name: any("--storage-option" in action.option_strings for action in parser._actions)
        for name, parser in commands.choices.items()
    }
    assert {name for name, takes_it in takes.items() if not takes_it} == {"demo", "models"}


def test_options_are_a_mapping() -> None:
    for wrong in ("anon=true", ["anon"], {"archive": True}):
        with pytest.raises(UsageError, match="not a mapping"):
            use_options(wrong, others=["s3://b"])  # type: ignore[arg-type]


def test_credentials_among_the_options_are_never_shown() -> None:
    given = {"key": "AKIAEXAMPLE", "client_kwargs": {"aws_session_token": "sess-ion-token"}, "anon": False}
    use_options(given, stores=["s3://ours"])
    assert redacted("no AKIAEXAMPLE, no sess-ion-token, but False") == "no ***, no ***, but False"


@pytest.mark.s3
def test_a_public_bucket_is_read_without_credentials(
    s3: Callable[[str], str],
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The endpoint and the missing credentials come from the options alone."""
    archive = s3("public")
    Location(archive).write("a/case.nii.gz", b"no volume")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    filesystems._s3_session.cache_clear()  # it remembers credentials
    options = ["archive.anon=true", f"endpoint_url={s3_server}"]
    given = [word for option in options for word in ("--storage-option", option)]
    assert main(["plan", archive, f"{archive}-store", *given]) == 1
    assert "Unable to locate credentials" in capsys.readouterr().err  # for the store, which has none
    assert main(["plan", archive, str(tmp_path / "store"), "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out)["listed"] == 1
    filesystems._s3_session.cache_clear()


def test_a_run_opens_all_its_places_with_the_options() -> None:
    options = {"endpoint_url": "https://minio"}
    weights = {"resnet50": "s3://weights/resnet50.pth", "dinov2": "random"}
    request = IndexRequest(
        "s3://scans/a", "s3://stores/b", models=tuple(weights), weights=weights, labels="s3://tables/labels.csv",
        model_config="s3://settings/fed.toml", storage_options=options,
    )  # fmt: skip
    request.open_store()
    places = ("s3://scans/a", "s3://stores/b", "s3://tables/labels.csv", "s3://settings/fed.toml", *weights.values())
    assert [options_at(place) for place in places] == [options] * 5 + [{}]


def test_options_of_the_archive_do_not_reach_a_store_in_its_bucket() -> None:
    use_options({"archive": {"anon": True}}, stores=["s3://both/medret"], others=["s3://both/scans"])
    assert [options_at(f"s3://both/{name}") for name in ("scans/a.nii", "medret/CURRENT")] == [{"anon": True}, {}]
