"""A model's weights: resolved and checksummed once on the driver, staged once per node.

The driver resolves weights and reads their bytes; a node that lacks them writes them to
`<cache>/weights/<sha256>/<role>`. Each file appears whole or not at all, so concurrent actors may all try.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from medret.errors import NotFoundError, WeightsError
from medret.models.hub import Entry, FileSet, fetch, open_files, select, torch_hub_file
from medret.models.spec import ModelSpec, UrlFile, WeightPart
from medret.storage.objects import CACHE_VARIABLE, default_cache_dir, write_atomically

_RANDOM = re.compile(r"random(?::(.*))?", re.DOTALL)


def is_random(weights_uri: str) -> bool:
    """Whether it is `random` or `random:SEED`."""
    return _RANDOM.fullmatch(weights_uri) is not None


def resolve_weights(spec: ModelSpec, weights_uri: str | None = None) -> Weights:
    """Find the weights of `spec` and checksum them. Files that are not local are copied to the cache folder.

    weights_uri: path or fsspec URI of a file or folder (for DreamSim also of its published zip), `random` or
        `random:SEED`; None takes the package or hub that the model names.

    Raises WeightsError, within seconds when a hub cannot be reached. It says which file is needed, where it is
    published and how to pass it.
    """
    random = _RANDOM.fullmatch(weights_uri) if weights_uri is not None else None
    if random:
        return random_weights(spec, _seed(spec, random[1]))
    if weights_uri is None:
        files, source = _fetch_all(spec)
    else:
        files = open_files(weights_uri, archive=spec.family == "dreamsim") | _beside(spec, weights_uri)
        source = weights_uri if "://" in weights_uri else str(Path(weights_uri).expanduser().absolute())
    chosen, missing = select(spec.parts, files)
    if missing:
        raise WeightsError(_missing_text(spec, files, missing))
    return _gather(spec, chosen, source)


def random_weights(spec: ModelSpec, seed: int = 0) -> Weights:
    """Weights drawn from a seed, untrained: for trying medret out."""
    sha256 = hashlib.sha256(f"random:{spec.name}:{seed}".encode()).hexdigest()
    return Weights(spec.name, sha256, f"random weights (seed {seed})", random=True)


def _seed(spec: ModelSpec, text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise WeightsError(f"weights of {spec.name}: 'random:{text}' is not random:SEED, where SEED is digits")
    return int(text)


def _beside(spec: ModelSpec, weights_uri: str) -> FileSet:
    """Files that a release leaves out: looked for beside the zip and in torch.hub's cache."""
    entries: dict[str, Entry] = {}
    for origin in spec.origins:
        if isinstance(origin, UrlFile) and not origin.archive:
            folder = Path(weights_uri).expanduser().parent
            near = [folder / origin.name, folder / "checkpoints" / origin.name, torch_hub_file(origin.name)]
            path = next((path for path in near if path is not None and path.is_file()), None)
            if path is not None:
                entries[origin.name] = path
    return FileSet(weights_uri, entries)


def _fetch_all(spec: ModelSpec) -> tuple[FileSet, str]:
    files = FileSet(spec.source)
    sources: list[str] = []
    if not spec.origins:
        raise WeightsError(f"{spec.name}: its weights are not on a hub that medret knows. {_how_to_pass(spec)}")
    for origin in spec.origins:
        try:
            more, source = fetch(origin)
        except (WeightsError, NotFoundError) as error:
            raise WeightsError(f"{spec.name}: no weights found: {error}. {_how_to_pass(spec)}") from error
        files |= more
        sources.append(source)
    return files, ", ".join(sources)


def _gather(spec: ModelSpec, entries: Mapping[str, Entry], source: str) -> Weights:
    local = {role: entry for role, entry in entries.items() if isinstance(entry, Path)}
    if len(local) == len(entries):
        absolute = {role: path.expanduser().absolute() for role, path in local.items()}
        return Weights(spec.name, files_sha256(absolute), source, absolute)
    contents = {}
    for role, entry in entries.items():
        try:
            contents[role] = entry.read_bytes() if isinstance(entry, Path) else entry()
        except WeightsError:
            raise
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise WeightsError(f"weights {source}: {role} cannot be read: {type(error).__name__}: {error}") from error
    sha256 = combined_sha256({role: hashlib.sha256(data).hexdigest() for role, data in contents.items()})
    return stage_weights(Weights(spec.name, sha256, source, {role: Path(role) for role in contents}), contents)


def _missing_text(spec: ModelSpec, files: FileSet, missing: list[WeightPart]) -> str:
    needed = ", ".join(" or ".join(part.names) or "a checkpoint (.safetensors, .pth, .pt, .bin)" for part in missing)
    present = ", ".join(sorted(files.entries)[:6]) + (", ..." if len(files.entries) > 6 else "")
    return (
        f"weights of {spec.name} in {files.label}: found {present or 'nothing'}, but no {needed}. {_how_to_pass(spec)}"
    )


def _how_to_pass(spec: ModelSpec) -> str:
    """How to get the files and pass them to medret."""
    kind = "FOLDER_OR_ZIP" if spec.family == "dreamsim" else "FOLDER" if len(spec.parts) > 1 else "FILE"
    names = ", ".join(part.names[-1] for part in spec.parts if part.names)
    terms = f" ({spec.terms})" if spec.terms else ""
    return (
        f"Needed: {spec.source}{f' ({names})' if names else ''}{terms}. Download it on a machine with a network and "
        f"pass --weights {spec.name}={kind}; --weights {spec.name}=random tries medret out with random weights"
    )


@dataclass(frozen=True)
class Weights:
    """A model's weights on this machine.

    sha256: of the file; for several files, of their roles and checksums in order of role; for random weights, of the
        text `random:<model>:<seed>`.
    source: where they come from, in words.
    files: role -> local path, empty for random weights.
    """

    model: str
    sha256: str
    source: str
    files: Mapping[str, Path] = field(default_factory=dict)
    random: bool = False


def combined_sha256(checksums: Mapping[str, str]) -> str:
    """One checksum for all files of a model. checksums: role -> sha256."""
    if len(checksums) == 1:
        return next(iter(checksums.values()))
    text = "".join(f"{role} {sha256}\n" for role, sha256 in sorted(checksums.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def files_sha256(files: Mapping[str, Path]) -> str:
    """`combined_sha256` of files on disk. Raises WeightsError for a file that cannot be read."""
    checksums = {}
    for role, path in files.items():
        try:
            with path.open("rb") as file:
                checksums[role] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"weights {path}: cannot be read: {error.strerror}") from error
    return combined_sha256(checksums)


def check_weights(weights: Weights) -> None:
    """Raise WeightsError if the files have changed since they were resolved."""
    if weights.random:
        return
    sha256 = files_sha256(weights.files)
    if sha256 != weights.sha256:
        where = ", ".join(str(path) for path in weights.files.values())
        raise WeightsError(
            f"weights of {weights.model} ({where}) changed: sha256 is {sha256[:16]}.., the run began with "
            f"{weights.sha256[:16]}..; restore the file or start again"
        )


def read_contents(weights: Weights) -> dict[str, bytes]:
    """Read every file: role -> bytes, as the driver sends them to the nodes. Empty for random weights."""
    return {role: path.read_bytes() for role, path in weights.files.items()}


def staged_weights(weights: Weights) -> Weights | None:
    """The same weights in this node's cache, checked; None if they are missing or damaged."""
    if weights.random:
        return weights
    staged = replace(weights, files={role: _folder(weights) / role for role in weights.files})
    if not all(path.is_file() for path in staged.files.values()) or files_sha256(staged.files) != weights.sha256:
        return None
    return staged


def stage_weights(weights: Weights, contents: Mapping[str, bytes | memoryview]) -> Weights:
    """Write `contents` (role -> bytes) to this node's cache unless it has them; return the weights there.

    Concurrent processes may all call this. Raises WeightsError when the bytes do not have the weights' sha256, or the
    cache cannot be written.
    """
    staged = staged_weights(weights)
    if staged is not None:
        return staged
    sha256 = combined_sha256({role: hashlib.sha256(data).hexdigest() for role, data in contents.items()})
    if sha256 != weights.sha256 or set(contents) != set(weights.files):
        raise WeightsError(
            f"weights of {weights.model}: the bytes to stage have sha256 {sha256[:16]}.., "
            f"expected {weights.sha256[:16]}.."
        )
    folder = _folder(weights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for role, data in contents.items():
            write_atomically(folder / role, data)
    except OSError as error:
        raise WeightsError(
            f"cache {folder} cannot be written: {error}; set {CACHE_VARIABLE} to another folder"
        ) from error
    staged = staged_weights(weights)
    if staged is None:
        raise WeightsError(f"cache {folder} lost a file that was just written; set {CACHE_VARIABLE} to another folder")
    return staged


def _folder(weights: Weights) -> Path:
    return default_cache_dir() / "weights" / weights.sha256
