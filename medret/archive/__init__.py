"""List the volumes of an archive and join labels to them."""

from medret.archive.labels import LabelJoin, Labels, read_labels
from medret.archive.listing import ArchiveObject, Listing, list_archive

__all__ = [
    "ArchiveObject",
    "LabelJoin",
    "Labels",
    "Listing",
    "list_archive",
    "read_labels",
]
