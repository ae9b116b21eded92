"""Weight files on each node: written once, checked, shared by every process there.

The driver resolves weights and reads their bytes; a node that does not have them writes them to
`<cache>/weights/<sha256>/<role>`. Each file appears whole or not at all, so concurrent actors may all try.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medret.errors import WeightsError

CACHE_VARIABLE = "MEDRET_CACHE"


@dataclass(frozen=True)
class Weights:
    """Where a model's weights lie on this machine, and what they are.

    sha256: of the file; of several, over their roles and checksums in order of role; of random ones, over the text
    `random:<model>:<seed>`. files: role -> local path, empty when random. source: what a person reads. seed: of
    random weights.
    """

    model: str
    sha256: str
    source: str
    files: Mapping[str, Path] = field(default_factory=dict)
    random: bool = False
    seed: int = 0


def default_cache_dir() -> Path:
    """`$MEDRET_CACHE`, or `~/.cache/medret`."""
    given = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "medret"
    except RuntimeError as error:
        raise WeightsError(
            f"there is no home folder for a cache: set {CACHE_VARIABLE} to a folder that can be written"
        ) from error


def combined_sha256(checksums: Mapping[str, str]) -> str:
    """One checksum for a model's files. checksums: role -> sha256."""
    if len(checksums) == 1:
        return next(iter(checksums.values()))
    text = "".join(f"{role} {sha256}\n" for role, sha256 in sorted(checksums.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def files_sha256(files: Mapping[str, Path]) -> str:
    """`combined_sha256` of files on disk. Raises WeightsError for one that cannot be read."""
    checksums = {}
    for role, path in files.items():
        try:
            with path.open("rb") as file:
                checksums[role] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"weights {path}: cannot be read: {error.strerror}") from error
    return combined_sha256(checksums)


def check_weights(weights: Weights) -> None:
    """Raises WeightsError when the files are no longer those that were resolved."""
    if weights.random:
        return
    found = files_sha256(weights.files)
    if found != weights.sha256:
        where = ", ".join(str(path) for path in weights.files.values())
        raise WeightsError(
            f"weights of {weights.model} ({where}) changed: sha256 is {found[:16]}.., the run began with "
            f"{weights.sha256[:16]}..; restore the file or start again"
        )


def read_contents(weights: Weights) -> dict[str, bytes]:
    """role -> bytes of every file: what the driver sends to the nodes. Empty for random weights."""
    return {role: path.read_bytes() for role, path in weights.files.items()}


def staged_weights(weights: Weights, cache_dir: Path | None = None) -> Weights | None:
    """The same weights in this node's cache, checked; None when they are not there (or not whole)."""
    if weights.random:
        return weights
    folder = _folder(weights, cache_dir)
    staged = _at(weights, folder)
    if not all(path.is_file() for path in staged.files.values()) or files_sha256(staged.files) != weights.sha256:
        return None
    return staged


def stage_weights(
    weights: Weights, contents: Mapping[str, bytes | memoryview], cache_dir: Path | None = None
) -> Weights:
    """Put `contents` (role -> bytes) into this node's cache unless they are there, and name the files there.

    cache_dir: `default_cache_dir()` when None. Safe under concurrent processes. Raises WeightsError when the bytes
    are not those the weights' sha256 names, or the cache cannot be written.
    """
    found = staged_weights(weights, cache_dir)
    if found is not None:
        return found
    sha256 = combined_sha256({role: hashlib.sha256(data).hexdigest() for role, data in contents.items()})
    if sha256 != weights.sha256 or set(contents) != set(weights.files):
        raise WeightsError(
            f"weights of {weights.model}: the bytes to stage have sha256 {sha256[:16]}.., "
            f"expected {weights.sha256[:16]}.."
        )
    folder = _folder(weights, cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for role, data in contents.items():
            _replace(folder / role, data)
    except OSError as error:
        raise WeightsError(
            f"cache {folder} cannot be written: {error}; set {CACHE_VARIABLE} to another folder"
        ) from error
    found = staged_weights(weights, cache_dir)
    if found is None:
        raise WeightsError(
            f"cache {folder} does not keep what is written to it; set {CACHE_VARIABLE} to another folder"
        )
    return found


def _folder(weights: Weights, cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()) / "weights" / weights.sha256


def _at(weights: Weights, folder: Path) -> Weights:
    files = {role: folder / role for role in weights.files}
    return Weights(weights.model, weights.sha256, weights.source, files, weights.random, weights.seed)


def _replace(path: Path, data: bytes | memoryview) -> None:
    """The file appears whole, or is replaced by the same bytes from another process; it is never absent or partial."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
