"""Labels from dataset.json of the Medical Segmentation Decathlon and nnU-Net: task -> modality, body region, organ.

The table comes from the retrieval benchmark on MSD (Khun Jush et al., arXiv 2311.13547).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medret.modalities import modality_of
from medret.storage import StoredObject, in_words, is_store_failure

# organ -> (modality, body region)
ORGANS = {
    "Brain": ("MRI", "Head"),
    "Hippocampus": ("MRI", "Head"),
    "Heart": ("MRI", "Chest"),
    "Lung": ("CT", "Chest"),
    "Liver": ("CT", "Abdomen"),
    "Pancreas": ("CT", "Abdomen"),
    "Colon": ("CT", "Abdomen"),
    "HepaticVessel": ("CT", "Abdomen"),
    "Spleen": ("CT", "Abdomen"),
    "Prostate": ("MRI", "Pelvis"),
}
# Names of tasks, in lower case, letters only.
_ALIASES = {
    "brats": "Brain",
    "braintumour": "Brain",
    "braintumor": "Brain",
    "leftatrium": "Heart",
    "lits": "Liver",
    "coloncancer": "Colon",
    **{organ.lower(): organ for organ in ORGANS},
}
_KNOWN_KEYS = frozenset({"modality", "channel_names", "numTraining", "tensorImageSize", "file_ending"})
_MAX_BYTES = 64 << 20  # about the size of a file that lists a million cases
_TASK_FOLDER = re.compile(r"(?:Task|Dataset)\d+_(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class MsdTask:
    """The labels that a dataset.json gives all its volumes. organ, body_region: None for a task that is not MSD's."""

    name: str
    modality: str | None
    body_region: str | None
    organ: str | None


def read_descriptions(archive_uri: str, paths: Sequence[str]) -> tuple[dict[str, MsdTask], dict[str, str]]:
    """Read the dataset.json files of MSD and nnU-Net: folder -> task, and path -> reason for the files ignored.

    paths: below the archive. Many tools write a file dataset.json, so another tool's is not an error.
    """
    tasks: dict[str, MsdTask] = {}
    ignored: dict[str, str] = {}
    for path in paths:
        uri, below = f"{archive_uri}/{path}", posixpath.dirname(path)
        folder = posixpath.basename(posixpath.dirname(uri))
        try:
            content = _read(uri)
        except Exception as error:
            if not is_store_failure(error) and not isinstance(error, RecursionError):
                raise
            ignored[path] = f"it cannot be read as JSON: {in_words(error)}"
            continue
        if isinstance(content, dict) and (_KNOWN_KEYS & content.keys() or _TASK_FOLDER.fullmatch(folder)):
            tasks[below] = msd_task(content, folder)
        else:
            ignored[path] = f"it is not MSD's or nnU-Net's: it has none of {', '.join(sorted(_KNOWN_KEYS))}"
    return tasks, ignored


def _read(uri: str) -> Any:
    """Read the JSON value of a file of bounded size. Raises ValueError, or whatever the store raises."""
    data = StoredObject(uri).read(0, _MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MiB")
    return json.loads(data)


def msd_task(content: dict[str, Any], folder: str) -> MsdTask:
    """The task of a dataset.json. folder: the one that contains it, such as Task09_Spleen; its name is tried first."""
    match = _TASK_FOLDER.fullmatch(folder)
    names = [match[1]] if match else []
    if isinstance(content.get("name"), str):
        names.append(content["name"])
    names.append(folder)
    organ = next((found for name in names if (found := _organ(name)) is not None), None)
    known_modality, region = ORGANS[organ] if organ else (None, None)
    return MsdTask(names[0], _modality(content) or known_modality, region, organ)


def _organ(name: str) -> str | None:
    return _ALIASES.get(re.sub(r"[^a-z]", "", name.lower()))


def _modality(content: dict[str, Any]) -> str | None:
    """The modality of all channels; None if it is unknown or they differ."""
    channels = content.get("modality", content.get("channel_names"))
    words = channels.values() if isinstance(channels, dict) else channels if isinstance(channels, list) else [channels]
    kinds = {modality_of(word) if isinstance(word, str) else None for word in words}
    return kinds.pop() if len(kinds) == 1 else None
