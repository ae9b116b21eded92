"""Resolving a model's weights, once, on the driver: what they are, where they lie, and their checksum."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from medret.errors import NotFoundError, WeightsError
from medret.models.filesets import Entry, FileSet, open_files, select
from medret.models.hub import fetch, torch_hub_file
from medret.models.spec import ModelSpec, UrlFile, WeightPart
from medret.models.staging import Weights, combined_sha256, default_cache_dir, files_sha256, stage_weights

__all__ = ["Weights", "random_weights", "resolve_weights"]

_RANDOM = re.compile(r"random(?::(.*))?", re.DOTALL)


def resolve_weights(spec: ModelSpec, given: str | None = None, *, cache_dir: Path | None = None) -> Weights:
    """Find the weights of `spec` and checksum them.

    given: path or fsspec URI of a file or folder (for DreamSim also of its published zip); `random` or
    `random:SEED`; None: the package or hub that the model names. Local files are used where they lie, all others are
    copied to `cache_dir` (`default_cache_dir()` when None). Raises WeightsError, within seconds when a hub is out
    of reach, saying which file is needed, where it is published and how to give it.
    """
    random = _RANDOM.fullmatch(given) if given is not None else None
    if random:
        return random_weights(spec, _seed(spec, random[1]))
    cache = cache_dir or default_cache_dir()
    if given is not None:
        files, source = open_files(given, archive=spec.family == "dreamsim"), given
        found, missing = select(spec.parts, files | _beside(spec, given))
        if missing:
            raise WeightsError(_missing_text(spec, files, missing))
        if "://" not in given:
            source = str(Path(given).expanduser().absolute())
    else:
        files, source = _fetch_all(spec, cache)
        found, missing = select(spec.parts, files)
        if missing:
            raise WeightsError(_missing_text(spec, files, missing))
    return _gather(spec, found, source, cache)


def random_weights(spec: ModelSpec, seed: int = 0) -> Weights:
    """Weights drawn from a seed: for trying things out; they know nothing."""
    sha256 = hashlib.sha256(f"random:{spec.name}:{seed}".encode()).hexdigest()
    return Weights(spec.name, sha256, f"random weights (seed {seed})", random=True, seed=seed)


def _seed(spec: ModelSpec, text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise WeightsError(f"weights of {spec.name}: 'random:{text}' is not random:SEED with a seed of digits")
    return int(text)


def _beside(spec: ModelSpec, given: str) -> FileSet:
    """Files that a release leaves out and its users have elsewhere: next to the zip, or in torch.hub's cache."""
    entries: dict[str, Entry] = {}
    for origin in spec.origins:
        if isinstance(origin, UrlFile) and not origin.archive:
            folder = Path(given).expanduser().parent
            near = [folder / origin.name, folder / "checkpoints" / origin.name, torch_hub_file(origin.name)]
            path = next((path for path in near if path is not None and path.is_file()), None)
            if path is not None:
                entries[origin.name] = path
    return FileSet(given, entries)


def _fetch_all(spec: ModelSpec, cache: Path) -> tuple[FileSet, str]:
    files = FileSet(spec.source)
    sources: list[str] = []
    if not spec.origins:
        raise WeightsError(f"{spec.name}: its weights are on no hub that medret could ask. {_bring(spec)}")
    for origin in spec.origins:
        try:
            more, source = fetch(origin, cache)
        except (WeightsError, NotFoundError) as error:
            raise WeightsError(f"{spec.name}: no weights at hand: {error}. {_bring(spec)}") from error
        files |= more
        sources.append(source)
    return files, ", ".join(sources)


def _gather(spec: ModelSpec, found: Mapping[str, Entry], source: str, cache: Path) -> Weights:
    local = {role: entry for role, entry in found.items() if isinstance(entry, Path)}
    if len(local) == len(found):
        absolute = {role: path.expanduser().absolute() for role, path in local.items()}
        return Weights(spec.name, files_sha256(absolute), source, absolute)
    contents = {}
    for role, entry in found.items():
        try:
            contents[role] = entry.read_bytes() if isinstance(entry, Path) else entry()
        except WeightsError:
            raise
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise WeightsError(f"weights {source}: {role} cannot be read: {type(error).__name__}: {error}") from error
    sha256 = combined_sha256({role: hashlib.sha256(data).hexdigest() for role, data in contents.items()})
    return stage_weights(Weights(spec.name, sha256, source, {role: Path(role) for role in contents}), contents, cache)


def _missing_text(spec: ModelSpec, files: FileSet, missing: list[WeightPart]) -> str:
    wanted = ", ".join(" or ".join(part.names) or "a checkpoint (.safetensors, .pth, .pt, .bin)" for part in missing)
    held = ", ".join(sorted(files.entries)[:6]) + (", ..." if len(files.entries) > 6 else "")
    return f"weights of {spec.name} in {files.label}: found {held or 'nothing'}, but no {wanted}. {_bring(spec)}"


def _bring(spec: ModelSpec) -> str:
    """How to get the files and hand them over."""
    kind = "FOLDER_OR_ZIP" if spec.family == "dreamsim" else "FOLDER" if spec.family == "hf" else "FILE"
    names = ", ".join(part.names[-1] for part in spec.parts if part.names)
    return (
        f"Needed: {spec.source}{f' ({names})' if names else ''}. Fetch it where there is a network and pass "
        f"--weights {spec.name}={kind}; --weights {spec.name}=random tries medret out with random weights"
    )
