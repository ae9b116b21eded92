"""What an archive holds: its volumes, and what is known of each from a table of labels."""

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
