"""`medret serve`: search stores from a browser, and over HTTP."""

from __future__ import annotations

import argparse
from typing import Any

from medret.cli.shared import (
    add_command,
    add_repeatable,
    add_storage_options,
    count,
    note,
    parse_weights,
    per_store,
    port,
    positive_float,
    positive_int,
)
from medret.errors import UsageError, require
from medret.visible import say

MIB, GIB = 1 << 20, 1 << 30

DESCRIPTION = """\
Serve the live snapshots of stores: a page for people at /, an HTTP API below /v1, its description at /docs. A new
snapshot is taken up as soon as it is published, without a restart.

Without --token-file only this machine is answered. With it, every request for data needs one of its tokens, and a
token may be restricted to the volumes that a filter keeps.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "serve", run, "search from a browser and over HTTP", DESCRIPTION)
    parser.set_defaults(verbose=1)  # whoever runs a server sees which snapshots it opens, and what keeps it from that
    parser.add_argument(
        "stores", metavar="STORE", nargs="*", help="folder or URI of a store; several are searched as one"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen at (default %(default)s)")
    parser.add_argument(
        "--archive",
        action="append",
        default=[],
        metavar="[STORE2=]URI",
        help="where the volumes of the first STORE lie, or those of another, for pictures and boxes (default: where "
        "the store says, if that is on this machine's disks or on the store's own server; repeatable)",
    )
    add_storage_options(parser)
    _add_access(parser.add_argument_group("who may ask"))
    _add_limits(parser.add_argument_group("uploads and limits"))


def _add_access(group: Any) -> None:
    group.add_argument(
        "--token-file", metavar="FILE", help="TOML file of the tokens that are let in; read again when it changes"
    )
    group.add_argument(
        "--make-token", metavar="NAME", help="print a new token and its entry for the token file, and serve nothing"
    )
    group.add_argument(
        "--audit", metavar="FILE", help="append one JSON line per request: who, when, asked what, was shown what"
    )


def _add_limits(group: Any) -> None:
    group.add_argument(
        "--max-upload-mib", type=positive_float, default=512, metavar="MIB", help="size of a request (default 512)"
    )
    group.add_argument(
        "--upload-seconds", type=positive_float, default=60, metavar="S", help="time to send a file (default 60)"
    )
    group.add_argument(
        "--max-volume-gib",
        type=positive_float,
        default=1,
        metavar="GIB",
        help="size of an uploaded volume once it is decoded (default 1)",
    )
    group.add_argument(
        "--encoder-slots", type=positive_int, default=1, metavar="N", help="files encoded at a time (default 1)"
    )
    group.add_argument(
        "--queue", type=count, default=8, metavar="N", help="further files that are received or wait (default 8)"
    )
    group.add_argument(
        "--uploads-per-caller", type=positive_int, default=4, metavar="N", help="of them, of one token (default 4)"
    )
    group.add_argument(
        "--request-seconds",
        type=positive_float,
        default=120,
        metavar="S",
        help="time for an answer, from the received request (default 120)",
    )
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where files are encoded (default auto)"
    )
    add_repeatable(group, "--weights", "NAME=PATH", "a model's weights, if they are elsewhere on this machine")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    require("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")
    from medret.serve.access import make_token

    if arguments.make_token is not None:
        token, entry = make_token(arguments.make_token)
        say(f"the token, which is shown only now: {token}", error=True)
        for line in entry.splitlines():
            say(line)
        return 0
    if not arguments.stores:
        raise UsageError("no STORE is given: name the store to serve, or several")
    _serve(arguments)
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    from medret.serve import LiveStores, ServeSettings, Service
    from medret.serve.access import AuditLog, Tokens
    from medret.serve.app import check_reach, run_server

    tokens = None if arguments.token_file is None else Tokens(arguments.token_file)
    check_reach(arguments.host, tokens)
    audit = None if arguments.audit is None else AuditLog(arguments.audit)
    settings = ServeSettings(
        device=arguments.device,
        weights=parse_weights(arguments.weights),
        request_seconds=arguments.request_seconds,
        upload_bytes=int(arguments.max_upload_mib * MIB),
        upload_seconds=arguments.upload_seconds,
        volume_bytes=int(arguments.max_volume_gib * GIB),
        encoder_slots=arguments.encoder_slots,
        queue=arguments.queue,
        uploads_per_caller=arguments.uploads_per_caller,
    )
    archives = per_store(arguments.archive, arguments.stores, "--archive")
    live = LiveStores(arguments.stores, archives=archives, storage_options=arguments.storage_options)
    service = Service(live, settings, tokens=tokens, audit=audit)
    service.check_filters()
    run_server(service, arguments.host, arguments.port, note)
