"""List the volumes of an archive and join labels to them."""

from medret.archive.labels import LabelJoin, labelled, labels_of, read_labels
from medret.archive.listing import ArchiveObject, Listing, list_archive
