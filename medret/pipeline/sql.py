"""Queries over Arrow tables, by DuckDB: in memory, without files and without extensions."""

from __future__ import annotations

from functools import cache
from typing import Any

import pyarrow as pa

# An empty temp_directory means that nothing is ever written to disk.
CONFIG: dict[str, Any] = {
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def query(text: str, tables: dict[str, pa.Table], **parameters: Any) -> pa.Table:
    """Run a query over these tables, by name. parameters: values of the `$name` in its text."""
    with _database().cursor() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(text, params=parameters or None).to_arrow_table()


@cache
def _database() -> Any:
    import duckdb  # only where a query runs, not in every worker

    return duckdb.connect(config=CONFIG)
