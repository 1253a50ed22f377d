"""
Entity rows as SQL over sources: who is asked about, and when, straight from the events.

Knows which statements are such a query. The rows themselves are read when the join is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_platform.errors import EntityRowsError, QueryError
from feature_platform.offline.query import explaining, named_parameters, quote
from feature_platform.offline.safety import check_select
from feature_platform.offline.sources import whole_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    import duckdb

    from feature_platform.model import ParquetSource

__all__ = ["entity_rows", "is_query"]

_WHERE: Final = "entity_df"
# What follows the word tells `from 'x'` and `values (1)` from the paths from/x.parquet and values.parquet.
_STATEMENT: Final = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(?:(?:select|with|from)(?=[\s\"'(*])|values\s*\()", re.IGNORECASE | re.DOTALL
)


def is_query(entity_df: object) -> bool:
    """Say whether entity rows are given as a query, and not as a path or a table."""
    if not isinstance(entity_df, str) or _STATEMENT.match(entity_df) is None:
        return False
    return not os.path.exists(entity_df)  # noqa: PTH110 - Path.exists raises where a query is too long for the name of a file


def entity_rows(
    connection: duckdb.DuckDBPyConnection, sql: str, sources: Mapping[str, ParquetSource], root: Path
) -> duckdb.DuckDBPyRelation:
    """
    Return the rows of a query over sources, by their names; every source is visible whole.

    Args:
        connection: Gets a temporary view for each source that the query names.
        sql: One SELECT that gives the same rows every time: training sets are made again from it.
        sources: By name.
        root: The project folder, which the sources' paths hang off.

    Raises:
        EntityRowsError: It is no such SELECT.
        SourceNotFoundError: A source that it names has no files.
    """
    sql = sql.strip().rstrip(";")
    try:
        check_select(connection, sql, sources=list(sources), where=_WHERE, instead="Write times as literals.")
        names = named_parameters(connection, sql)
    except QueryError as exc:
        raise EntityRowsError(str(exc), field="entity_df") from exc
    if names:
        message = f"{_WHERE}: the query names ${min(names)}.\nWrite its value."
        raise EntityRowsError(message, field="entity_df")
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    for name, source in sources.items():
        if name.lower() in words:
            connection.execute(f"create or replace temp view {quote(name)} as {whole_source(connection, source, root)}")
    try:
        with explaining(_WHERE):
            return connection.sql(sql)
    except QueryError as exc:
        raise EntityRowsError(str(exc), field="entity_df") from exc
