"""`medret serve` against searches of the same snapshot by as many threads, without HTTP.

    python bench/serve.py [--rows N] [--dim N] [--data FOLDER] [--json]

Clients ask by volume_id, each for 10 hits, over connections that stay open; one light process sends their requests
(http_load.py). On the other side threads of one process call `Snapshot.search`, and make no JSON of what they find. The
two sides take turns. One store holds real volumes, 8 slices of each, another a million made-up vectors (synthetic.py).
Beside the rates: what clients notice while snapshots are published and old ones removed, and what memory the server
takes as requests go on.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from corpus import REAL
from figures import Figure, Measured, main
from http_load import Load, post, run_load
from synthetic import SETTINGS, Plan, write_store

from medret.cli import main as medret_main
from medret.schemas import LEDGER
from medret.search import Snapshot, VolumeName, open_snapshot
from medret.snapshot import Manifest, current_id, publish, read_files, read_manifest
from medret.storage import Location
from medret.storage.objects import CACHE_VARIABLE

CLIENTS, REQUESTS, SNAPSHOTS, K = 32, 2000, 5, 10
MANY = 10_000  # requests, for memory
PAUSE_S = 3  # between snapshots: a server looks at CURRENT every two seconds
SMALL = (
    "a search of so few vectors takes less time than reading a request and writing its answer as JSON, which the bare "
    "calls do not do"
)


@dataclass(frozen=True)
class Rate:
    """Requests a second of one pass, and per second of processor time."""

    per_s: float
    per_cpu_s: float


class Server:
    """`medret serve` in a process of its own."""

    def __init__(self, root: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "medret", "serve", root, "--port", str(self.port)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not self._answers():
            if self._process.poll() is not None:
                raise SystemExit(f"medret serve {root} ended with {self._process.returncode}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        with suppress(OSError), closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as asking:
            asking.request("GET", "/readyz")
            return asking.getresponse().status == 200
        return False

    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Memory of its own: without pages of files, which it shares with the file system."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) / 1024

    def stop(self) -> None:
        """End it, and wait."""
        self._process.terminate()
        self._process.wait(60)


@contextmanager
def server(root: str) -> Iterator[Server]:
    """A server of a store."""
    running = Server(root)
    try:
        yield running
    finally:
        running.stop()


@cache
def opened(root: str) -> Snapshot:
    """A snapshot, opened once per process."""
    return open_snapshot(root)


def bare(root: str, ids: Sequence[str], threads: int) -> tuple[Rate, list[float]]:
    """Search from threads of this process; milliseconds of each search too."""
    snapshot = opened(root)

    def ask(volume_id: str) -> float:
        start = time.perf_counter()
        snapshot.search(VolumeName(volume_id), K)
        return (time.perf_counter() - start) * 1e3

    ask(ids[0])
    with ThreadPoolExecutor(threads) as pool:
        start, cpu = time.perf_counter(), time.process_time()
        took = list(pool.map(ask, ids))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Rate(len(ids) / seconds, len(ids) / cpu), took


def served(running: Server, load: Callable[..., Load], ids: Sequence[str], clients: int) -> tuple[Rate, Load]:
    """Ask a server; raises SystemExit if a request fails."""
    cpu = running.cpu_s()
    done = load(running.port, [post("/v1/search", {"volume": each, "k": K}) for each in ids], clients)
    if set(done.statuses) != {200}:
        raise SystemExit(f"requests failed: {dict(done.statuses)}")
    return Rate(len(ids) / done.seconds, len(ids) / max(running.cpu_s() - cpu, 0.01)), done


@dataclass(frozen=True)
class Sides:
    """Passes over one store, both sides in turns; latencies of the server's best pass."""

    served: list[Rate]
    bare: list[Rate]
    latencies_ms: list[float]
    bare_ms: list[float]
    load_cpu_share: float

    def ratio(self, rate: Callable[[Rate], float]) -> float:
        """The median over the turns of the served rate over the bare one."""
        pairs = zip(self.served, self.bare, strict=True)
        return statistics.median(rate(one) / rate(other) for one, other in pairs)


def compared(root: str, ids: Sequence[str], clients: int, repeats: int, workers: list[ProcessPoolExecutor]) -> Sides:
    """Let both sides answer the same requests, in turns. The first turn is not counted."""
    loader, direct = workers
    over_http: list[tuple[Rate, Load]] = []
    by_call: list[tuple[Rate, list[float]]] = []
    with server(root) as running:
        for _ in range(repeats + 1):
            over_http.append(served(running, lambda *given: loader.submit(run_load, *given).result(), ids, clients))
            by_call.append(direct.submit(bare, root, ids, clients).result())
    over_http, by_call = over_http[1:], by_call[1:]
    _, best = max(over_http, key=lambda each: each[0].per_s)
    return Sides(
        [rate for rate, _ in over_http], [rate for rate, _ in by_call], best.latencies_ms,
        max(by_call, key=lambda each: each[0].per_s)[1], best.cpu_s / best.seconds,
    )  # fmt: skip


def republish(root: str) -> None:
    """Publish the same volumes as a new snapshot, and remove all others."""
    store = Location(root)
    live = current_id(store)
    assert live is not None
    manifest: Manifest = read_manifest(store, live)
    own = ("format", "created", "tables", "parent")
    fields = {name: getattr(manifest, name) for name in Manifest.__struct_fields__ if name not in own}
    publish(store, LEDGER.empty_table(), (), read_files(store, live, manifest), parent=live, **fields)
    with redirect_stdout(sys.stderr):  # on standard output there may be JSON alone
        if medret_main(["gc", root, "--keep", "0", "--older-than", "0h"]) != 0:
            raise SystemExit(f"{root}: old snapshots could not be removed")


def steady(
    root: str, ids: Sequence[str], clients: int, many: int, snapshots: int, loader: ProcessPoolExecutor
) -> dict[str, Any]:
    """Memory as requests go on, and a load under which snapshots are published and old ones removed."""

    def load(*given: Any) -> Load:
        return loader.submit(run_load, *given).result()

    with server(root) as running:
        memory = []
        for count in (many // 10, many - many // 10):
            served(running, load, [ids[number % len(ids)] for number in range(count)], clients)
            memory.append(running.memory_mb())
        publishing: Future[Load] = loader.submit(_until, running.port, ids, clients, f"{root}.done")
        for _ in range(snapshots):
            republish(root)
            time.sleep(PAUSE_S)
        Path(f"{root}.done").touch()
        during = publishing.result()
    return {
        "memory_mb": memory,
        "requests_while_publishing": sum(during.statuses.values()),
        "failed_while_publishing": sum(count for status, count in during.statuses.items() if status != 200),
        "ms_while_publishing": np.percentile(during.latencies_ms, (50, 95, 100)).tolist(),
    }


def _until(port: int, ids: Sequence[str], clients: int, done: str) -> Load:
    return run_load(port, [post("/v1/search", {"volume": each, "k": K}) for each in ids], clients, Path(done).exists)


def index_real(folder: Path, root: str) -> None:
    """Index real volumes with the model whose weights come with medret."""
    command = [sys.executable, "-m", "medret", "index", str(folder), root, "--slices", "uniform:8"]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(f"{folder} could not be indexed")


def measured(arguments: argparse.Namespace) -> Measured:
    """Make the stores, and all figures."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        os.environ[CACHE_VARIABLE] = f"{scratch}/cache"
        stores: dict[str, str] = {}
        rows, dim = (2000, 32) if arguments.tiny else (arguments.rows, arguments.dim)
        folder = arguments.data or REAL
        if arguments.real_store:
            stores["real volumes"] = arguments.real_store
        elif folder.is_dir() and not arguments.tiny:
            index_real(folder, f"{scratch}/real")
            stores["real volumes"] = f"{scratch}/real"
        if not arguments.synthetic_store:
            plan = Plan(rows, dim, settings=replace(SETTINGS, hnsw_ef_construction=40))
            write_store(f"{scratch}/synthetic", plan, 1 if arguments.tiny else arguments.processes)
        name = f"synthetic store, {rows:,} x {dim}"
        stores[name] = arguments.synthetic_store or f"{scratch}/synthetic"
        with _worker() as loader, _worker() as direct:
            return _figures(arguments, stores, [loader, direct])


def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _figures(arguments: argparse.Namespace, stores: dict[str, str], workers: list[ProcessPoolExecutor]) -> Measured:
    tiny = arguments.tiny
    requests, clients, repeats = (100, 4, 1) if tiny else (arguments.requests, arguments.clients, arguments.repeats)
    figures, facts = [], {"clients": clients, "requests": requests, "k": K}
    for name, root in stores.items():
        sides = compared(root, _ids(root, requests), clients, repeats, workers)
        against = f"{clients} threads that call search, {name}"
        p50, p95 = np.percentile(sides.latencies_ms, (50, 95)).tolist()
        figures += [
            Figure("requests a second over HTTP", sides.ratio(lambda rate: rate.per_s), 0.7, against, why=SMALL),
            Figure("requests per second of processor time", sides.ratio(lambda rate: rate.per_cpu_s), None, against),
            Figure("requests a second over HTTP", max(rate.per_s for rate in sides.served), None, name, unit="/s"),
            Figure(f"p50 with {clients} clients", p50, None, name, at_least=False, unit="ms"),
            Figure(f"p95 with {clients} clients", p95, None, name, at_least=False, unit="ms"),
        ]
        facts[name] = {
            "served": [vars(rate) for rate in sides.served], "bare": [vars(rate) for rate in sides.bare],
            "bare_p50_and_p95_ms": np.percentile(sides.bare_ms, (50, 95)).tolist(),
            "cores_that_the_load_takes": sides.load_cpu_share,
        }  # fmt: skip
    name, root = next(iter(stores.items()))
    many, snapshots = (MANY // 100, 1) if tiny else (MANY, SNAPSHOTS)
    found = steady(root, _ids(root, requests), clients, many, snapshots, workers[0])
    facts["steady"] = found
    first, last = found["memory_mb"]
    publishing = f"{found['requests_while_publishing']:,} requests while {snapshots} snapshots are published, {name}"
    figures += [
        Figure("requests that fail", found["failed_while_publishing"], 0, publishing, at_least=False),
        Figure("slowest request", found["ms_while_publishing"][2], None, publishing, at_least=False, unit="ms"),
        Figure("memory after 10,000 requests", last / first, 1.1, f"the same after 1,000, {name}", at_least=False),
    ]
    return Measured(figures, facts)


def _ids(root: str, count: int) -> list[str]:
    known = opened(root).labels()["volume_id"]
    return [known[int(number)].as_py() for number in np.random.default_rng(1).integers(len(known), size=count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the synthetic store (default %(default)s)")
    parser.add_argument("--dim", type=int, default=128, help="of the synthetic store (default %(default)s)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="volumes to index (default: the real ones)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="and threads (default %(default)s)")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of a pass (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="that build the store (default %(default)s)")
    parser.add_argument("--real-store", metavar="STORE", help="one that was made before; snapshots are published to it")
    parser.add_argument("--synthetic-store", metavar="STORE", help="one that was made before, of --rows and --dim")
    parser.add_argument(
        "--scratch", help="a folder with room for the stores, removed at the end (default: the system's)"
    )
    main(measured, parser)
