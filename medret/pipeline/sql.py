"""Queries over Arrow tables, by DuckDB: in memory, without files and without extensions."""

from __future__ import annotations

from functools import cache
from typing import Any

import pyarrow as pa

from medret.errors import MedretError

# An empty temp_directory means that nothing is ever written to disk.
CONFIG: dict[str, Any] = {
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def query(text: str, tables: dict[str, pa.Table], **parameters: Any) -> pa.Table:
    """Run a query over these tables, by name. parameters: values of the `$name` in its text.

    Raises MedretError if the memory of this machine is too small for it.
    """
    import duckdb  # only where a query runs, not in every worker

    with _database().cursor() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        try:
            return connection.sql(text, params=parameters or None).to_arrow_table()
        except duckdb.OutOfMemoryException as error:
            raise MedretError(
                f"planning the run needs more memory than there is here: {str(error).splitlines()[0]}; start it where "
                "the driver has more (docs/scale.md says how much a volume takes), or split the archive"
            ) from error


@cache
def _database() -> Any:
    import duckdb

    return duckdb.connect(config=CONFIG)
