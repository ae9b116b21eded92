"""The forms of the names and checksums that a store may hold: whatever has another form is not medret's."""

from __future__ import annotations

import re

from medret.storage import NAME_DIGITS

SHA256 = re.compile(r"[0-9a-f]{64}")
# Of the tables in a snapshot's folder.
TABLE_NAME = re.compile(rf"(files|ledger|tombstones)-[0-9a-f]{{{NAME_DIGITS}}}\.parquet")
