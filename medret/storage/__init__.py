"""Read and write whole objects in any fsspec store, atomically, under content-addressed names."""

from medret.storage.filesystems import in_words, is_store_failure, open_filesystem, reaching, tree
from medret.storage.location import NAME_DIGITS, Location, WrittenFile, read_checked
from medret.storage.objects import Identity, StoredObject, folder_entries, identity_of, read_uri
from medret.storage.storage_options import add_options, given_options, parse_options, use_options
from medret.storage.uris import escaped, is_text, normalise_uri, redacted, refuse_secrets, scheme_of
