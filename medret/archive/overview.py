"""What there is in an archive, by kind: what would be indexed, what is left out and why, and which labels there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive.label_origins import counts, with_tags
from medret.archive.labels import LabelJoin
from medret.archive.listing import Listing
from medret.archive.series import packed
from medret.archive.skip_rules import is_nifti
from medret.schemas import LABELS

NIFTI, DICOM, PACKED = "nifti", "dicom", "packed"
_PAIRS = pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.string())]))
WORDS_SHOWN = 6  # most frequent values of a label

# Why a rule of a listing leaves objects out, in a few words; medret.archive.skip_rules says more.
WHY = {
    "hidden": "a part of the path begins with a dot",
    "no_access": "folders that may not be entered",
    "not_a_volume": "neither NIfTI nor DICOM",
    "not_an_image": "no image of a volume: reports, captures, DICOMDIR",
    "localizer": "DICOM localizers (scouts)",
    "name_taken": "series whose id is that of a folder",
    "not_a_file": "FIFOs, sockets and devices",
    "not_text_name": "names that are not UTF-8",
    "label_mask": "segmentations, by their names",
    "derivatives": "results of other programs (BIDS derivatives)",
    "excluded": "match --exclude",
    "outside_glob": "do not match --glob",
}


@dataclass(frozen=True)
class Kind:
    """Volumes of one kind. kind: nifti, dicom or packed. modality: of series, as DICOM says it. objects: files."""

    kind: str
    modality: str | None
    volumes: int
    objects: int
    size_bytes: int


@dataclass(frozen=True)
class LeftOut:
    """What one rule leaves out. why: in words. examples: paths below the archive."""

    rule: str
    objects: int
    why: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class LabelFound:
    """One label. volumes: that have it. values: distinct ones. frequent: value -> volumes, not for the subject.

    origins: where it comes from -> volumes.
    """

    name: str
    volumes: int
    values: int
    frequent: Mapping[str, int]
    origins: Mapping[str, int]


@dataclass(frozen=True)
class Overview:
    """An archive at a glance.

    objects: all that were listed. suffixes: suffix -> objects that are neither NIfTI nor DICOM. labels: the label
    columns that some volume has. metadata: other label -> volumes. join: counts of how labels and volumes were joined.
    notes: lines for the user.
    """

    archive: str
    objects: int
    kinds: tuple[Kind, ...]
    left_out: tuple[LeftOut, ...]
    suffixes: Mapping[str, int]
    labels: tuple[LabelFound, ...]
    metadata: Mapping[str, int]
    join: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def volumes(self) -> int:
        """How many volumes would be indexed."""
        return sum(kind.volumes for kind in self.kinds)

    @property
    def size_bytes(self) -> int:
        """Of all volumes."""
        return sum(kind.size_bytes for kind in self.kinds)

    def to_json(self) -> dict[str, Any]:
        """The overview as a JSON object."""
        return {"volumes": self.volumes, "bytes": self.size_bytes, **asdict(self)}


def overview(listing: Listing, join: LabelJoin, tags: Mapping[str, Mapping[str, str]]) -> Overview:
    """Sum up a listing and the labels of its volumes. tags: volume_id -> labels in tags of DICOM, by name."""
    labels = with_tags(listing.objects["volume_id"], join.labels, tags)
    ignored = (f"{path} is ignored: {reason}" for path, reason in join.ignored.items())
    mismatch = (join.mismatch,) if join.mismatch else ()
    return Overview(
        listing.archive_uri,
        _objects(listing),
        tuple(_kinds(listing)),
        tuple(_left_out(listing)),
        dict(sorted(listing.suffixes.items(), key=lambda pair: (-pair[1], pair[0]))),
        tuple(_labels(labels)),
        _metadata(labels),
        join.to_json(),
        (*listing.notes, *mismatch, *ignored),
    )


def _objects(listing: Listing) -> int:
    parts = pc.sum(pc.fill_null(listing.objects["parts"], 1)).as_py() or 0
    return int(parts) + sum(listing.skipped.values())


def _kinds(listing: Listing) -> Iterator[Kind]:
    """The kinds of volumes, the most frequent first."""
    objects, series = listing.objects, listing.series
    lower = pc.utf8_lower(objects["volume_id"])
    kinds = pc.if_else(is_nifti(lower), NIFTI, pc.if_else(packed(lower), PACKED, DICOM))
    modalities = series["modality"].combine_chunks().take(pc.index_in(objects["volume_id"], series["volume_id"]))
    parts = pc.fill_null(objects["parts"], 1)
    table = pa.table(
        {"kind": kinds, "modality": modalities, "parts": parts, "size_bytes": objects["size_bytes"]}
    ).group_by(["kind", "modality"])
    sums = table.aggregate([([], "count_all"), ("parts", "sum"), ("size_bytes", "sum")])
    ranked = sums.sort_by([("count_all", "descending"), ("kind", "ascending"), ("modality", "ascending")])
    for row in ranked.to_pylist():
        yield Kind(row["kind"], row["modality"], row["count_all"], row["parts_sum"], row["size_bytes_sum"])


def _left_out(listing: Listing) -> Iterator[LeftOut]:
    """What the rules leave out, the most first."""
    for rule, objects in sorted(listing.skipped.items(), key=lambda pair: (-pair[1], pair[0])):
        yield LeftOut(rule, objects, WHY.get(rule, rule), listing.examples.get(rule, ()))


def _labels(labels: pa.Table) -> Iterator[LabelFound]:
    """The labels that some volume has. labels: schemas.VOLUME_LABELS."""
    origins = counts(labels)
    for name in LABELS:
        frequencies = labels[name].drop_null().value_counts().to_pylist()
        if not frequencies:
            continue
        frequent = {} if name == "subject" else dict(_ranked(frequencies)[:WORDS_SHOWN])  # subjects may be names
        from_where = {origin: found[name] for origin, found in origins.items() if name in found}
        volumes = sum(each["counts"] for each in frequencies)
        yield LabelFound(name, volumes, len(frequencies), frequent, from_where)


def _metadata(labels: pa.Table) -> dict[str, int]:
    """Other label -> how many volumes have it, the most frequent first. labels: schemas.VOLUME_LABELS."""
    pairs = labels["metadata"].cast(_PAIRS)
    return dict(_ranked(pc.struct_field(pc.list_flatten(pairs), "key").value_counts().to_pylist()))


def _ranked(frequencies: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Words and their counts, the most frequent first. frequencies: as Arrow counts values."""
    return sorted(((each["values"], each["counts"]) for each in frequencies), key=lambda pair: (-pair[1], pair[0]))
