"""Run the application in uvicorn."""

from __future__ import annotations

import uvicorn

from medret.errors import UsageError
from medret.serve.app import create_app
from medret.serve.guard import is_loopback
from medret.serve.patience import ImpatientProtocol
from medret.serve.service import Service
from medret.serve.tokens import Tokens
from medret.visible import say

WATCH_SECONDS = 2.0  # between looks at CURRENT
CONNECTIONS_PER_REQUEST = 4  # browsers keep several open


def check_reach(host: str, tokens: Tokens | None) -> None:
    """Raise UsageError where everyone could ask for everything."""
    if tokens is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, and without tokens everyone there could see every "
            "volume: give --token-file FILE (`medret serve --make-token NAME` prints an entry for it), or leave --host "
            "out and reach this machine through ssh -L"
        )


def server_config(service: Service, host: str, port: int) -> uvicorn.Config:
    """How uvicorn runs the application; raises UsageError as `check_reach` does."""
    check_reach(host, service.tokens)
    return uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        http=ImpatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
        limit_concurrency=CONNECTIONS_PER_REQUEST * service.settings.in_flight,
    )


def run_server(service: Service, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished. Raises UsageError before anything is served."""
    config = server_config(service, host, port)
    service.live.watch(WATCH_SECONDS)
    shown = f"[{host}]" if ":" in host else host
    say(f"medret serves {', '.join(service.live.current.ids)} at http://{shown}:{port}/", error=True)
    try:
        uvicorn.Server(config).run()
    finally:
        service.live.close()
