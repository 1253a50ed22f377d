"""
The leak-free views of a view's sources: what a query sees under a source's name.

Knows which rows a window may see. Knows nothing of what the query makes of them.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

from feature_platform.errors import ContractError, SourceNotFoundError, suggest
from feature_platform.offline.inputs import SourceFile, source_files
from feature_platform.offline.query import first_row, parquet, quote, timestamp, to_micros_up, type_family

if TYPE_CHECKING:
    from datetime import datetime

    import duckdb

    from feature_platform.model import FeatureView, ParquetSource
    from feature_platform.windows import Window

__all__ = ["SourceViews", "source_views", "utc_naive", "whole_source"]

_START, _END, _KNOWN = "feature_platform_start", "feature_platform_end", "feature_platform_known"


@dataclass(frozen=True)
class SourceViews:
    """
    The source views of one feature view on one connection.

    Attributes:
        connection: Holds them as temporary views, by the sources' names.
        view: Whose sources.
        files: The sources' files, as they were when the views were made.
    """

    connection: duckdb.DuckDBPyConnection
    view: FeatureView
    files: tuple[SourceFile, ...]

    def show(self, start: datetime, end: datetime, *, known: datetime | None = None) -> None:
        """Narrow the views to `[start, end)`, known by `end + delay`, or by `known + delay`."""
        if self.view.schedule is None:
            return
        for name, instant in ((_START, start), (_END, end), (_KNOWN, (known or end) + self.view.delay)):
            self.connection.execute(f"set variable {name} = {timestamp(instant)}")

    def newest(self) -> int | None:
        """Return the newest time among the rows shown, in UTC microseconds."""
        found: list[int] = []
        for source in self.view.sources:
            if source.timestamp:
                sql = f"select epoch_us(max({quote(source.timestamp)})) from {quote(source.name)}"
                newest = first_row(self.connection, sql)[0]
                found += [] if newest is None else [newest]
        return max(found, default=None)


@contextlib.contextmanager
def source_views(connection: duckdb.DuckDBPyConnection, view: FeatureView, root: Path) -> Iterator[SourceViews]:
    """
    Make the source views of a feature view, and drop them afterwards.

    Raises:
        SourceNotFoundError: A source has no files.
        ContractError: A source lacks a time column that it declares.
    """
    made: list[str] = []
    files = tuple(source_files(view, root))
    try:
        for source in view.sources:
            connection.execute(_create(connection, view, source, root))
            made.append(source.name)
        yield SourceViews(connection, view, files)
    finally:
        for name in made:
            connection.execute(f"drop view if exists temp.{quote(name)}")


def whole_source(connection: duckdb.DuckDBPyConnection, source: ParquetSource, root: Path) -> str:
    """
    Return the SELECT of all of a source's rows, its times in UTC microseconds.

    Raises:
        SourceNotFoundError: It has no files.
        ContractError: It lacks a time column that it declares.
    """
    select, _ = _select(connection, source, root, where="")
    return select


def _create(connection: duckdb.DuckDBPyConnection, view: FeatureView, source: ParquetSource, root: Path) -> str:
    select, types = _select(connection, source, root, where=f" of view {view.name!r}")
    return f"create or replace temp view {quote(source.name)} as\n{select}{_conditions(view, source, types)}"


def _select(connection: duckdb.DuckDBPyConnection, source: ParquetSource, root: Path, *, where: str) -> tuple[str, dict[str, str]]:
    """Return the SELECT of a source's rows under the alias `source`, and the types of its columns."""
    pattern = str(Path(glob.escape(str(root))) / source.path)
    files = sorted(glob.glob(pattern, recursive=True))
    if not files:
        message = (
            f"source {source.name!r}{where} has no files at {source.path!r} (in {root}).\n"
            "Put its Parquet files there, or correct the source's path; 'fp sample' makes the running example's."
        )
        raise SourceNotFoundError(message)
    table = parquet(files, union_by_name=True)
    relation = connection.sql(f"select * from {table} limit 0")
    types = dict(zip(relation.columns, relation.types, strict=True))
    replaced: list[str] = []
    for column in (source.timestamp, source.created_timestamp):
        if column is None:
            continue
        if column not in types:
            message = f"source {source.name!r} has no column {column!r}.\n{suggest(column, types, has='It has')}"
            raise ContractError(message)
        if type_family(types[column]) not in {"datetime", "date"}:
            message = f"source {source.name!r}: column {column!r} is {types[column]}, not a time.\nStore it as a timestamp."
            raise ContractError(message)
        replaced.append(f"{to_micros_up(quote(column), str(types[column]))} as {quote(column)}")
    columns = f"* replace ({', '.join(replaced)})" if replaced else "*"
    return f"select {columns}\nfrom {table} as source", {name: str(kind) for name, kind in types.items()}


def _conditions(view: FeatureView, source: ParquetSource, types: dict[str, str]) -> str:
    if source.timestamp is None or view.schedule is None:
        return ""
    column, kind = f"source.{quote(source.timestamp)}", types[source.timestamp]
    exact = to_micros_up(column, kind)
    # TIMESTAMP WITH TIME ZONE is compared as it is stored, so that Parquet's statistics still prune row groups.
    cast = "::timestamptz" if kind.lower() == "timestamp with time zone" else ""
    left = column if cast else exact
    found = [f"{left} >= getvariable('{_START}'){cast}", f"{left} < getvariable('{_END}'){cast}"]
    if view.is_window_view and source.created_timestamp:
        created = to_micros_up(f"source.{quote(source.created_timestamp)}", types[source.created_timestamp])
        found.append(f"({created} is null or {created} <= getvariable('{_KNOWN}'))")
    return "\nwhere " + "\nand ".join(found)


def utc_naive(window: Window) -> tuple[object, object]:
    """Return the window's bounds as DuckDB parameters: naive, in UTC."""
    return window.start.astimezone(UTC).replace(tzinfo=None), window.end.astimezone(UTC).replace(tzinfo=None)
