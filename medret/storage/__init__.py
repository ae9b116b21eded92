"""Read and write whole objects in any fsspec store, atomically, under content-addressed names."""

from medret.storage.filesystems import in_words, is_store_failure, open_filesystem, reaching, tree
from medret.storage.location import NAME_DIGITS, Location, WrittenFile, read_checked
from medret.storage.objects import Identity, StoredObject, folder_entries, identity_of, read_uri
from medret.storage.uris import (
    add_options,
    escaped,
    given_options,
    is_text,
    normalise_uri,
    parse_options,
    redacted,
    refuse_secrets,
    scheme_of,
    use_options,
)
