"""dataset.json of the Medical Segmentation Decathlon: a task's name -> modality, body region, organ.

The table is that of the retrieval benchmark on MSD (Khun Jush et al., arXiv 2311.13547).
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from typing import Any

from medret.errors import UsageError
from medret.modalities import modality_of
from medret.storage import is_store_failure, read_uri

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
# Names that tasks go by, in lower case without anything but letters.
_ALIASES = {
    "brats": "Brain",
    "braintumour": "Brain",
    "braintumor": "Brain",
    "leftatrium": "Heart",
    "lits": "Liver",
    "coloncancer": "Colon",
    **{organ.lower(): organ for organ in ORGANS},
}
_TASK_FOLDER = re.compile(r"(?:Task|Dataset)\d+_(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class MsdTask:
    """What a dataset.json says of all its volumes. organ, body_region: None for a task that is not of MSD."""

    name: str
    modality: str | None
    body_region: str | None
    organ: str | None


def read_msd_task(archive_uri: str, path: str) -> MsdTask:
    """Read one dataset.json. path: below the archive. Raises UsageError when it is no JSON object."""
    uri = f"{archive_uri}/{path}"
    try:
        content = json.loads(read_uri(uri))
    except Exception as error:
        if not is_store_failure(error):
            raise
        raise UsageError(f"{uri} cannot be read as JSON: {error}; repair it, or give labels as a table") from error
    if not isinstance(content, dict):
        raise UsageError(f"{uri} holds no JSON object, as MSD's dataset.json does; give labels as a table")
    return msd_task(content, posixpath.basename(posixpath.dirname(uri)))


def msd_task(content: dict[str, Any], folder: str) -> MsdTask:
    """The task of a dataset.json. folder: the one it lies in, such as Task09_Spleen; its name counts first."""
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
    """One word for all channels; None when they are unknown or of several kinds."""
    channels = content.get("modality", content.get("channel_names"))
    words = channels.values() if isinstance(channels, dict) else channels if isinstance(channels, list) else [channels]
    kinds = {modality_of(word) if isinstance(word, str) else None for word in words}
    return kinds.pop() if len(kinds) == 1 else None
