"""DICOM series in folders: which objects can be instances, what identifies a series, and how a folder is divided.

A folder with one series is that volume; of a folder with several, each is FOLDER/SeriesInstanceUID. To tell the two
apart, the first and the last candidate of each suffix are looked at, and all of them only if these differ; before a
suffix is taken for that of other objects, its largest one. What is read of an object is its first bytes. Pure
functions, but for the two that they are given: `look` and `entries`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive.dicom_head import DicomHead, is_uid, kind_of
from medret.storage import Identity, is_text

Look = Callable[[Collection[str]], Mapping[str, DicomHead | None]]  # names -> heads; None: not DICOM
Entries = Callable[[], Mapping[str, Identity]]  # the candidates of a folder, listed now

# This very value is that of an object that may be a damaged instance: it cannot be read, or its bytes are neither DICOM
# nor text. Among DICOM objects, and with a suffix of DICOM, it is taken for one; its reader reports what is wrong.
UNCLEAR = DicomHead()
_DICOM_SUFFIXES = (".dcm", ".dic", ".dicom", ".ima")
RULES = {"localizer": "localizer", "other": "not_an_image"}

# Names of objects of other kinds. All others, with any suffix or none, may be instances: their first bytes tell.
_OTHER_SUFFIX = (
    "7z|avi|bak|bat|bids|bmp|bval|bvec|bz2|c|cab|cfg|chm|conf|crdownload|css|csv|dat|db|dll|doc|docx|dtd|edf|exe|"
    "fif|filepart|gif|gii|gz|h5|hdf5|hdr|html?|ico|inf|ini|ipynb|jar|jpe?g|js|json|jsonl|lnk|lock|log|lut|m|mat|"
    "md|md5|mgh|mgz|mha|mhd|mp4|mps|msi|nhdr|nii|npy|npz|nrrd|obj|odt|parquet|part|partial|pdf|pkl|ply|png|pptx?|"
    "ps1|pt|pth|py|pyc|r|rar|rda|rds|rst|rtf|sav|scl|set|sh|sha1|sha256|sql|stl|surf|svg|swp|tck|tex|tiff?|tmp|"
    "toml|trk|tsv|txt|url|vtk|vtp|vtu|xls|xlsx|xml|xsd|xsl|xz|ya?ml|zst"
)
_OTHER_NAME = (
    "authors|changelog|changes|copying|install|licen[cs]e|lockfile|makefile|notice|readme|todo|version|_success"
)
_OTHER = rf"(\.({_OTHER_SUFFIX})|(^|/)({_OTHER_NAME})|~|/)$"
_PACKED = r"\.(zip|tar|tgz|tar\.gz)$"
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,7}$")
WEAK = "W/"  # begins an etag, in the words of HTTP, that does not tell the content
_ETAG = re.compile(r"(W/)?([0-9]+)-([0-9a-f]{32})")
_MODULUS = 1 << 128


def candidates(lower: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each path may be that of an instance, by its last part. lower: in lower case."""
    return pc.invert(pc.or_(pc.match_substring_regex(lower, _OTHER), packed(lower)))


def packed(lower: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each path ends as that of a zip or tar does. lower: in lower case."""
    return pc.match_substring_regex(lower, _PACKED)


def is_candidate(name: str) -> bool:
    """Whether an object of this name may be an instance: it is not hidden and has no suffix of another kind."""
    lower = name.lower()
    other = re.search(_OTHER, lower) or is_packed(name) or lower == "dicomdir"
    return is_text(name) and not name.startswith(".") and not other


def is_packed(path: str) -> bool:
    """Whether a path ends as that of a zip or tar does."""
    return re.search(_PACKED, path.lower()) is not None


def is_weak(etag: str) -> bool:
    """Whether objects with the same etag may differ in content."""
    return etag.startswith(WEAK)


def suffix_of(name: str) -> str:
    """The suffix of a name in lower case; "" for none, and for the number that ends a UID or counts instances."""
    found = _SUFFIX.search(name.lower())
    return found[0] if found else ""


@dataclass(slots=True)
class Whole:
    """Several objects as one: what tells one version of all of them from another, whatever their order and folder.

    digest: sum of the objects' digests modulo 2^128, so that wholes add up. weak: some object has no etag.
    """

    count: int = 0
    size_bytes: int = 0
    digest: int = 0
    mtime: str | None = None
    weak: bool = False

    def add(self, name: str, size_bytes: int, etag: str | None, mtime: str | None) -> None:
        """Add one object. name: below the folder."""
        said = f"{name}\0{size_bytes}\0{etag or mtime}".encode()
        self.digest = (self.digest + int.from_bytes(blake2b(said, digest_size=16).digest())) % _MODULUS
        self.count += 1
        self.size_bytes += size_bytes
        self.mtime = max(self.mtime or "", mtime or "") or None
        self.weak |= not etag

    def __add__(self, other: Whole) -> Whole:
        return Whole(
            self.count + other.count,
            self.size_bytes + other.size_bytes,
            (self.digest + other.digest) % _MODULUS,
            max(self.mtime or "", other.mtime or "") or None,
            self.weak or other.weak,
        )

    def identity(self) -> Identity:
        """As of one object. The etag is weak if it was made from times of objects, not from their etags."""
        return Identity(self.size_bytes, f"{WEAK * self.weak}{self.count}-{self.digest:032x}", self.mtime)

    @classmethod
    def of(cls, entries: Mapping[str, Identity], names: Iterable[str] | None = None) -> Whole:
        """Of the objects in a folder. names: only of these, of which some may be gone."""
        whole = cls()
        for name in entries if names is None else names:
            if one := entries.get(name):
                whole.add(name, one.size_bytes, one.etag, one.mtime)
        return whole

    @classmethod
    def parse(cls, identity: Identity) -> Whole | None:
        """From an identity that was recorded; None if it is that of one object."""
        found = _ETAG.fullmatch(identity.etag or "")
        if found is None:
            return None
        return cls(int(found[2]), identity.size_bytes, int(found[3], 16), identity.mtime, found[1] is not None)

    def is_same(self, other: Whole) -> bool:
        """Whether both are of the same objects. Their times count where they have no etag: in the digest."""
        return replace(self, mtime=None) == replace(other, mtime=None)


@dataclass(slots=True)
class Group:
    """The candidates of a folder that have one suffix. first, last: in the order of their names. largest: in bytes."""

    whole: Whole = field(default_factory=Whole)
    first: str = ""
    last: str = ""
    largest: str = ""
    most_bytes: int = -1

    def add(self, name: str, size_bytes: int, etag: str | None, mtime: str | None) -> None:
        """Add one candidate."""
        self.first = min(self.first or name, name)
        self.last = max(self.last, name)
        if size_bytes > self.most_bytes:
            self.largest, self.most_bytes = name, size_bytes
        self.whole.add(name, size_bytes, etag, mtime)


Groups = dict[str, Group]  # by suffix


def grouped(entries: Mapping[str, Identity]) -> Groups:
    """The candidates of a folder by suffix."""
    groups: Groups = defaultdict(Group)
    for name, one in entries.items():
        groups[suffix_of(name)].add(name, one.size_bytes, one.etag, one.mtime)
    return groups


@dataclass(frozen=True)
class Series:
    """A series in a folder.

    uid: empty if it is unknown. names: of its objects; None: all candidates of the folder. alone: whether it is the
    only series of its folder. head: of one of its objects.
    """

    uid: str
    whole: Whole
    names: tuple[str, ...] | None
    alone: bool
    head: DicomHead


@dataclass(frozen=True)
class Division:
    """What is in a folder. strays: objects that are DICOM, or cannot be read, and belong to no series of several."""

    series: tuple[Series, ...] = ()
    strays: Mapping[str, Identity] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)


def divided(
    groups: Mapping[str, Group], look: Look, entries: Entries, *, partial: bool = False, mixed: bool = False
) -> Division:
    """Divide a folder into its series.

    partial: some of the objects in the folder that could be instances are not in `groups`, nor in `entries`.
    mixed: the folder is known to hold more than the objects at the ends of its groups show.
    """
    seen = _looked_at(groups, look)
    dicom = {
        suffix: group
        for suffix, group in groups.items()
        if any(map(is_dicom, seen[suffix])) or (suffix in _DICOM_SUFFIXES and any(seen[suffix]))
    }
    others = sum(group.whole.count for suffix, group in groups.items() if suffix not in dicom)
    skipped = Counter(not_a_volume=others)
    head = _of_one_series({head for suffix in dicom for head in seen[suffix]})
    if head is None or mixed:
        chosen = {name: one for name, one in entries().items() if suffix_of(name) in dicom} if dicom else {}
        return _by_series(chosen, look, skipped, partial)
    names, whole = None, sum((group.whole for group in dicom.values()), Whole())
    if others or partial:
        chosen = {name: one for name, one in entries().items() if suffix_of(name) in dicom}
        names, whole = tuple(sorted(chosen)), Whole.of(chosen)
    return Division((Series(head.series_uid, whole, names, True, head),), {}, _counted(skipped))


def _looked_at(groups: Mapping[str, Group], look: Look) -> dict[str, set[DicomHead | None]]:
    """The heads that tell what the candidates with each suffix are."""
    heads = dict(look({name for group in groups.values() for name in (group.first, group.last)}))
    seen = {suffix: {heads[group.first], heads[group.last]} for suffix, group in groups.items()}
    unlike = [suffix for suffix, found in seen.items() if not any(map(is_dicom, found))]
    heads |= look({groups[suffix].largest for suffix in unlike} - heads.keys())
    for suffix in unlike:
        seen[suffix].add(heads[groups[suffix].largest])
    return seen


def _of_one_series(heads: Collection[DicomHead | None]) -> DicomHead | None:
    """One of these heads if all are images of one series. What is skipped is not taken for the whole of its folder."""
    images = [head for head in heads if head and head.series_uid and kind_of(head) == "image"]
    one = len(images) == len(heads) and len({head.series_uid for head in images}) == 1
    return images[0] if one else None


def is_dicom(head: DicomHead | None) -> bool:
    """Whether an object is DICOM without doubt."""
    return head is not None and head is not UNCLEAR


def _by_series(chosen: Mapping[str, Identity], look: Look, skipped: Counter[str], partial: bool) -> Division:
    """Divide by looking at every object. chosen: the candidates with a suffix of which some are DICOM."""
    heads = look(chosen)
    named: dict[str, list[str]] = defaultdict(list)
    unknown = []
    more: Counter[str] = Counter()
    for name in sorted(chosen):
        head = heads[name]
        if head is None:
            more["not_a_volume"] += 1
        elif (kind := kind_of(head)) != "image":
            more[RULES[kind]] += 1
        elif is_uid(head.series_uid):
            named[head.series_uid].append(name)
        else:
            unknown.append(name)
    if len(named) <= 1:  # what does not say its series is taken for a damaged part of the one that is there
        names = tuple(sorted([*unknown, *(name for names in named.values() for name in names)]))
        if not names:
            return Division(skipped=_counted(skipped, more))
        named, unknown = {next(iter(named), ""): list(names)}, []
    everything = not (partial or skipped.total() or more.total())
    series = []
    for uid, of_series in sorted(named.items()):
        known = (head for name in of_series if (head := heads[name]) and head.modality)
        names_ = None if everything and len(named) == 1 and not unknown else tuple(of_series)
        series.append(Series(uid, Whole.of(chosen, of_series), names_, len(named) == 1, next(known, UNCLEAR)))
    return Division(tuple(series), {name: chosen[name] for name in unknown}, _counted(skipped, more))


def _counted(*counts: Mapping[str, int]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return {rule: count for rule, count in total.items() if count}
