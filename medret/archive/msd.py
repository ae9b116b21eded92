"""Labels of the Medical Segmentation Decathlon and nnU-Net: from dataset.json files and the names of images.

    Task03_Liver/dataset.json, imagesTr/liver_1.nii.gz          MSD: case liver_1
    Dataset001_X/dataset.json, imagesTr/x_1_0000.nii.gz         nnU-Net: case x_1, channel 0000

The task gives modality, body region and organ; the table of tasks comes from the retrieval benchmark on MSD (Khun Jush
et al., arXiv 2311.13547). The case is the subject, and the folder the split.
"""

from __future__ import annotations

import json
import posixpath
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.storage import StoredObject, in_words, is_store_failure
from medret.vocabularies import modality_of

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
_SUFFIX = r"(?i)\.nii(\.gz)?$"
_IMAGE = r"^images(?P<split>Tr|Ts|Va|Val)/(?P<name>[^/]+)$"
_CHANNEL = r"^(?P<case>.+)_(?P<channel>\d{4})$"
_SPLITS = {"Tr": "training", "Ts": "test", "Va": "validation", "Val": "validation"}


@dataclass(frozen=True)
class MsdTask:
    """What a dataset.json says. organ, body_region: of all volumes; None for a task that is not MSD's.

    channels: number, such as "0" -> name. cases: the names of images that it lists, without suffix. numbered: whether
    the names of all images end in their channel, as in nnU-Net 2; None: the names themselves must tell.
    """

    name: str
    modality: str | None
    body_region: str | None
    organ: str | None
    channels: Mapping[str, str]
    cases: frozenset[str]
    numbered: bool | None


def msd_labels(ids: pa.ChunkedArray, tasks: Mapping[str, MsdTask]) -> Iterator[pa.Table]:
    """The labels of all volumes below a folder with a task; the deepest folder counts.

    ids: sorted. tasks: by folder below the archive, "" for the archive itself. Per task a table of text: volume_id,
    data_set (the folder), labels and metadata.
    """
    owners = np.full(len(ids), -1, np.int32)
    ranges = {folder: _range(ids, folder) for folder in sorted(tasks, key=_depth)}
    for number, (first, last) in enumerate(ranges.values()):
        owners[first:last] = number
    for number, (folder, (first, last)) in enumerate(ranges.items()):
        own = ids.slice(first, last - first).filter(pa.array(owners[first:last] == number))
        if len(own):
            yield _labels(own, folder, tasks[folder])


def _depth(folder: str) -> int:
    return folder.count("/") + 1 if folder else 0


def _range(ids: pa.ChunkedArray, folder: str) -> tuple[int, int]:
    """The first and the last row, exclusive, of the ids below a folder."""
    if not folder:
        return 0, len(ids)
    ends = (f"{folder}/", f"{folder}0")  # 0 follows the slash in the alphabet
    first, last = (bisect_left(ids, end, key=lambda one: one.as_py()) for end in ends)
    return first, last


def _labels(ids: pa.ChunkedArray, folder: str, task: MsdTask) -> pa.Table:
    below = pc.utf8_slice_codeunits(ids, len(folder) + 1 if folder else 0)
    image = pc.extract_regex(pc.replace_substring_regex(below, _SUFFIX, ""), _IMAGE)
    name, split = (pc.struct_field(image, part) for part in ("name", "split"))
    cases, channels = _cases(name, task)
    numbers = {f"{int(number):04}": word for number, word in task.channels.items()}
    modalities = {number: modality_of(word) for number, word in numbers.items()}
    count = len(ids)
    columns = {
        "volume_id": ids,
        "data_set": pa.repeat(folder, count),
        "subject": cases,
        "modality": pc.coalesce(_looked_up(channels, modalities), pa.scalar(task.modality, pa.string())),
        "body_region": pa.repeat(pa.scalar(task.body_region, pa.string()), count),
        "organ": pa.repeat(pa.scalar(task.organ, pa.string()), count),
        "task": pa.repeat(task.name, count),
        "split": _looked_up(split, _SPLITS),
        "channel": channels,
        "channel_name": _looked_up(channels, numbers),
    }
    return pa.table(columns)


def _cases(names: pa.ChunkedArray, task: MsdTask) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The case and the channel of each image, null where its name does not tell. names: without suffix."""
    nothing = pc.if_else(pc.is_valid(names), None, names)
    parts = pc.extract_regex(names, _CHANNEL)
    case, channel = (pc.struct_field(parts, part) for part in ("case", "channel"))
    known = pc.is_in(channel, pa.array([f"{int(number):04}" for number in task.channels], pa.string()))
    numbered = task.numbered
    if numbered is None:  # MSD lists the images themselves, nnU-Net 1 lists them without channels
        listed = pc.any(pc.is_in(names, pa.array(sorted(task.cases), pa.string()))).as_py()
        numbered = bool(pc.all(known.filter(pc.is_valid(names)), min_count=1).as_py()) and not listed
    if not numbered:
        return names, nothing
    return pc.if_else(known, case, nothing), pc.if_else(known, channel, nothing)


def _looked_up(keys: pa.ChunkedArray, words: Mapping[str, str | None]) -> pa.ChunkedArray:
    """The word of each key; null for other keys."""
    known, found = pa.array(words, pa.string()), pa.array(words.values(), pa.string())
    return pa.chunked_array([found.take(pc.index_in(part, known)) for part in keys.chunks], pa.string())


def read_tasks(archive_uri: str, paths: Sequence[str]) -> tuple[dict[str, MsdTask], dict[str, str]]:
    """Read the dataset.json files of MSD and nnU-Net: folder -> task, and path -> reason for the files ignored.

    paths: below the archive. Many tools write a file dataset.json, so another tool's is not an error.
    """
    tasks: dict[str, MsdTask] = {}
    ignored: dict[str, str] = {}
    for path in paths:
        uri, below = f"{archive_uri}/{path}", posixpath.dirname(path)
        folder = posixpath.basename(posixpath.dirname(uri))
        try:
            content = _read_json(uri)
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


def _read_json(uri: str) -> Any:
    """Read the JSON value of a file of bounded size. Raises ValueError, or whatever the store raises."""
    data = StoredObject(uri).read(0, _MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MiB")
    content = json.loads(data)
    json.dumps(content, ensure_ascii=False).encode()  # JSON can write half of a character, which is no text
    return content


def msd_task(content: Mapping[str, Any], folder: str) -> MsdTask:
    """The task of a dataset.json. folder: the one that contains it, such as Task09_Spleen; its name is tried first."""
    match = _TASK_FOLDER.fullmatch(folder)
    names = [match[1]] if match else []
    if isinstance(content.get("name"), str):
        names.append(content["name"])
    names.append(folder)
    organ = next(filter(None, map(_organ, names)), None)
    known_modality, region = ORGANS[organ] if organ else (None, None)
    channels = content.get("channel_names", content.get("modality"))
    if isinstance(channels, list):
        channels = dict(enumerate(channels))
    numbers = channels if isinstance(channels, dict) else {}
    return MsdTask(
        names[0], _modality(content) or known_modality, region, organ,
        {str(number): str(word) for number, word in numbers.items() if re.fullmatch(r"[0-9]{1,4}", str(number))},
        frozenset(_listed(content)), True if "channel_names" in content else None,
    )  # fmt: skip


def _listed(content: Mapping[str, Any]) -> Iterator[str]:
    """The names of the images that a dataset.json lists, without folder and suffix."""
    for part in ("training", "test", "validation"):
        images = content.get(part)
        for image in images if isinstance(images, list) else ():
            path = image.get("image") if isinstance(image, dict) else image
            if isinstance(path, str):
                yield re.sub(_SUFFIX, "", posixpath.basename(path))


def _organ(name: str) -> str | None:
    return _ALIASES.get(re.sub(r"[^a-z]", "", name.lower()))


def _modality(content: Mapping[str, Any]) -> str | None:
    """The modality of all channels; None if it is unknown or they differ."""
    channels = content.get("modality", content.get("channel_names"))
    words = channels.values() if isinstance(channels, dict) else channels if isinstance(channels, list) else [channels]
    kinds = {modality_of(word) if isinstance(word, str) else None for word in words}
    return kinds.pop() if len(kinds) == 1 else None
