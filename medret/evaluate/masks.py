"""Where the masks (segmentations) of a store's volumes are, and which structures the values in them stand for.

`--masks PLACE` names a table or a folder. A table has a row per mask: the volume in the column `volume_id` or `path`,
the file in `mask`, relative to the table's folder, and in `structure` what any voxel but 0 is (`liver`), or what each
value is (`1=liver;2=liver tumour`). In a folder the masks of a volume are the first of these that exist:

    FOLDER/<mask>                                 the store's own label `mask` of the volume
    FOLDER/<case>/segmentations/ORGAN.nii.gz      TotalSegmentator: of <case>/ct.nii.gz; any voxel but 0 is the ORGAN
    FOLDER/<task>/labelsTr/<case>.nii.gz          MSD, nnU-Net: of <task>/imagesTr/<case>.nii.gz; names in dataset.json
    FOLDER/<volume_id>                            a file of the same name, unless it is the volume itself

A file with a value per structure gets their names from --mask-names (a dataset.json, or a table with the columns
`value` and `name`), from the dataset.json of its task, or else they are called `value 1`, `value 2`, ...

TotalSegmentator's names, and the coarse structures that they belong to, are a table of facts here. The 104 names are
those of version 1 of the data set (Wasserthal et al., arXiv 2208.05868); `MORE` are the names that version 2 added. The
retrieval benchmark of Khun Jush et al. (arXiv 2405.09334) scores these 104 and 29 coarse ones. Which 29 it took is not
known to medret. Those here are medret's own: sides, lobes, chambers, levels and the three gluteal muscles are joined,
and so are the six great vessels.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import pyarrow as pa

from medret.archive.label_table import ID_COLUMNS, read_table
from medret.errors import NotFoundError, UsageError
from medret.evaluate.relevance import text_column
from medret.storage import folder_entries, normalise_uri, reaching, read_uri, redacted

MASK = "mask"
DATASET = "dataset.json"
_TABLE = re.compile(r"(?i)\.(csv|tsv|txt|parquet)$")
_NIFTI = re.compile(r"(?i)\.nii(\.gz)?$")
_MSD = re.compile(r"^(?P<task>.*/|)images(?P<split>Tr|Ts|Va|Val)/(?P<case>[^/]+?)(?P<channel>_\d{4})?\.nii(\.gz)?$")


@dataclass(frozen=True)
class Mask:
    """One file. structure: what any voxel but 0 is; None: `names` has a name for each value, or none is known."""

    uri: str
    structure: str | None = None
    names: Mapping[int, str] = field(default_factory=dict)

    def name_of(self, value: int) -> str:
        """The structure of a value; raises UsageError for one without a name where others have one."""
        if self.structure is not None:
            return self.structure
        if self.names and value not in self.names:
            known = ", ".join(f"{number} {name}" for number, name in sorted(self.names.items()))
            raise UsageError(
                f"mask {redacted(self.uri)} holds the value {value}, which has no name (names are {known}): name it "
                "with --mask-names"
            )
        return self.names.get(value, f"value {value}")

    @property
    def annotated(self) -> frozenset[str]:
        """The structures that the file would show if they were there, as far as that is known without reading it."""
        return frozenset([self.structure] if self.structure is not None else self.names.values())


def find_masks(
    place: str, labels: pa.Table, names_uri: str | None = None, archive: str | None = None
) -> dict[str, tuple[Mask, ...]]:
    """volume_id -> its masks, for the volumes that have some. Reads tables and lists folders, but opens no mask.

    place: see above. labels: of the volumes, as `Snapshot.labels` has them. names_uri: see above. archive: where the
    volumes are. Raises UsageError if no volume has a mask, and for a table or names that cannot be understood;
    StorageError for a folder that cannot be listed.
    """
    root = normalise_uri(place).rstrip("/")
    names = None if names_uri is None else read_names(normalise_uri(names_uri))
    if _TABLE.search(root):
        found = _of_table(root, labels["volume_id"].to_pylist(), names or {})
    else:
        found = _Folder(root, names, archive).masks(labels)
    if not found:
        raise UsageError(
            f"--masks {redacted(root)}: no volume of the store has a mask there; expected a table with the columns "
            "volume_id and mask, or a folder with the files that the label `mask` names, with "
            "segmentations/ORGAN.nii.gz beside each volume (TotalSegmentator), with labelsTr (MSD), or with a file "
            "under each volume's own path"
        )
    return found


def read_names(uri: str) -> dict[int, str]:
    """Value -> name, from a dataset.json or from a table with the columns `value` and `name`; raises UsageError."""
    name = redacted(uri)
    if not uri.lower().endswith(".json"):
        cells = read_table(uri).cells
        if not {"value", "name"} <= set(cells.column_names):
            raise UsageError(f"--mask-names {name}: expected the columns value and name, found {cells.column_names}")
        pairs = list(zip(cells["value"].to_pylist(), cells["name"].to_pylist(), strict=True))
    else:
        try:
            labels = json.loads(read_uri(uri))["labels"]
            pairs = [(key, value) if str(key).isdigit() else (value, str(key)) for key, value in labels.items()]
        except FileNotFoundError as error:
            raise NotFoundError(f"--mask-names {name} does not exist") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UsageError(f"{name} has no names of labels ({type(error).__name__}: {error})") from error
    found: dict[int, str] = {}
    for value, structure in pairs:
        if not re.fullmatch(r"\d{1,6}", str(value)) or not structure:
            raise UsageError(f"{name}: {value!r} is no whole number with one name: {structure!r}")
        if int(value):
            found[int(value)] = str(structure)
    return found


def _of_table(uri: str, volume_ids: Sequence[str], names: Mapping[int, str]) -> dict[str, tuple[Mask, ...]]:
    cells = read_table(uri).cells
    columns = set(cells.column_names)
    named_in = [name for name in ID_COLUMNS if name in columns]
    if not named_in or MASK not in columns:
        raise UsageError(
            f"--masks {redacted(uri)}: expected the columns volume_id (or path) and {MASK}, found "
            f"{', '.join(cells.column_names)}"
        )
    known = set(volume_ids)
    by_file: dict[str, list[str]] = {}
    for one in volume_ids:
        by_file.setdefault(posixpath.basename(one), []).append(one)
    folder = posixpath.dirname(uri)
    found: dict[str, tuple[Mask, ...]] = {}
    for row in cells.select([*named_in, MASK, *({"structure"} & columns)]).to_pylist():
        texts = [row[name] for name in named_in if row[name]]
        volume_id: str | None = next((text for text in texts if text in known), None) or _by_tail(texts, by_file)
        if volume_id is not None and row[MASK]:
            mask = _mask_of_row(_joined(folder, row[MASK]), row.get("structure"), names, redacted(uri))
            found[volume_id] = (*found.get(volume_id, ()), mask)
    return found


def _mask_of_row(uri: str, structure: str | None, names: Mapping[int, str], table: str) -> Mask:
    if structure is None or "=" not in structure:
        return Mask(uri, structure, names)
    parts = [part.partition("=") for part in structure.split(";") if part.strip()]
    own = {value.strip(): name.strip() for value, _, name in parts}
    if not all(re.fullmatch(r"[1-9]\d{0,5}", value) and name for value, name in own.items()):
        raise UsageError(
            f"--masks {table}: structure {structure!r} is not understood; expected one name, or VALUE=NAME;VALUE=NAME"
        )
    return Mask(uri, None, {int(value): name for value, name in own.items()})


def _by_tail(texts: Sequence[str], by_file: Mapping[str, Sequence[str]]) -> str | None:
    """The one volume whose id ends in one of the names, or is the end of it."""
    for text in texts:
        ends = [
            one
            for one in by_file.get(posixpath.basename(text), ())
            if f"/{text}".endswith(f"/{one}") or f"/{one}".endswith(f"/{text}")
        ]
        if len(ends) == 1:
            return ends[0]
    return None


def _joined(folder: str, path: str) -> str:
    return path if "://" in path or path.startswith("/") else posixpath.join(folder, path)


class _Folder:
    """The masks below a folder."""

    def __init__(self, root: str, names: Mapping[int, str] | None, archive: str | None) -> None:
        self._root, self._names, self._archive = root, names, None if archive is None else archive.rstrip("/")
        self._entries = cache(self._list)
        self._names_of_task = cache(self._read_names)

    def masks(self, labels: pa.Table) -> dict[str, tuple[Mask, ...]]:
        """volume_id -> its masks."""
        rows = zip(labels["volume_id"].to_pylist(), text_column(labels, MASK), strict=True)
        found = {volume_id: self._of(volume_id, label) for volume_id, label in rows}
        return {volume_id: masks for volume_id, masks in found.items() if masks}

    def _of(self, volume_id: str, label: str | None) -> tuple[Mask, ...]:
        for path in self._labelled(label), self._msd(volume_id):
            if path is not None and self._has(path):
                return (Mask(f"{self._root}/{path}", None, self._names_at(path)),)
        folder = posixpath.join(posixpath.dirname(volume_id), "segmentations")
        if organs := sorted(name for name in self._entries(folder) if _NIFTI.search(name)):
            return tuple(Mask(f"{self._root}/{folder}/{name}", _NIFTI.sub("", name)) for name in organs)
        if self._root != self._archive and self._has(volume_id):
            return (Mask(f"{self._root}/{volume_id}", None, self._names_at(volume_id)),)
        return ()

    def _list(self, below: str) -> frozenset[str]:
        uri = f"{self._root}/{below}".rstrip("/")
        with reaching(uri, "listed"):
            return frozenset(folder_entries(uri))

    def _labelled(self, label: str | None) -> str | None:
        """The path that a label of the store names, if it stays below the folder: a store names no place to read."""
        if label is None or "\0" in label or {"", ".", ".."} & set(label.split("/")):
            return None
        return label

    def _msd(self, volume_id: str) -> str | None:
        match = _MSD.match(volume_id)
        if match is None:
            return None
        folder = f"{match['task']}labels{match['split']}"
        stems = (f"{match['case']}{match['channel'] or ''}", match["case"])  # an MSD case may end in four digits
        paths = (f"{folder}/{stem}{suffix}" for stem in stems for suffix in (".nii.gz", ".nii"))
        return next(filter(self._has, paths), None)

    def _has(self, path: str) -> bool:
        return posixpath.basename(path) in self._entries(posixpath.dirname(path))

    def _names_at(self, path: str) -> Mapping[int, str]:
        """The names that were given, or those of the nearest dataset.json above a mask."""
        if self._names is not None:
            return self._names
        folder = posixpath.dirname(path)
        while True:
            if DATASET in self._entries(folder):
                return self._names_of_task(folder)
            if not folder:
                return {}
            folder = posixpath.dirname(folder)

    def _read_names(self, folder: str) -> Mapping[int, str]:
        return read_names("/".join(filter(None, (self._root, folder, DATASET))))


VERTEBRAE = tuple(f"vertebrae_{part}{n}" for part, last in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, last + 1))
RIBS = tuple(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13))


def _sides(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{side}" for name in names for side in ("left", "right"))


COARSE: dict[str, Sequence[str]] = {
    "adrenal_gland": _sides("adrenal_gland"),
    "autochthon": _sides("autochthon"),
    "brain": ("brain",),
    "clavicula": _sides("clavicula"),
    "colon": ("colon",),
    "duodenum": ("duodenum",),
    "esophagus": ("esophagus",),
    "face": ("face",),
    "femur": _sides("femur"),
    "gallbladder": ("gallbladder",),
    "gluteus": _sides("gluteus_maximus", "gluteus_medius", "gluteus_minimus"),
    "heart": (
        "heart_myocardium",
        *(f"heart_{chamber}_{side}" for chamber in ("atrium", "ventricle") for side in ("left", "right")),
    ),
    "hip": _sides("hip"),
    "humerus": _sides("humerus"),
    "iliopsoas": _sides("iliopsoas"),
    "kidney": _sides("kidney"),
    "liver": ("liver",),
    "lung": (
        *(f"lung_{lobe}_lobe_left" for lobe in ("upper", "lower")),
        *(f"lung_{lobe}_lobe_right" for lobe in ("upper", "middle", "lower")),
    ),
    "pancreas": ("pancreas",),
    "rib": RIBS,
    "sacrum": ("sacrum",),
    "scapula": _sides("scapula"),
    "small_bowel": ("small_bowel",),
    "spleen": ("spleen",),
    "stomach": ("stomach",),
    "trachea": ("trachea",),
    "urinary_bladder": ("urinary_bladder",),
    "vertebrae": VERTEBRAE,
    "vessels": (
        "aorta",
        "inferior_vena_cava",
        "portal_vein_and_splenic_vein",
        "pulmonary_artery",
        *_sides("iliac_artery", "iliac_vena"),
    ),
}
FINE = tuple(sorted(name for names in COARSE.values() for name in names))
# Names of version 2 -> the coarse structure; those without one are left as they are.
MORE = {
    "heart": "heart",
    "atrial_appendage_left": "heart",
    "kidney_cyst_left": "kidney",
    "kidney_cyst_right": "kidney",
    "lung_left": "lung",
    "lung_right": "lung",
    "vertebrae_S1": "vertebrae",
    "vertebrae": "vertebrae",
    **dict.fromkeys(
        (
            "brachiocephalic_trunk",
            "pulmonary_vein",
            "superior_vena_cava",
            *_sides("brachiocephalic_vein", "common_carotid_artery", "subclavian_artery"),
        ),
        "vessels",
    ),
}

_COARSE_OF = {name: coarse for coarse, names in COARSE.items() for name in names} | MORE


def coarse_of(structure: str) -> str | None:
    """The coarse structure that a structure of TotalSegmentator belongs to, or that it is; None for other names."""
    return _COARSE_OF.get(structure, structure if structure in COARSE else None)
