"""
The leak-free views of a view's sources: what a query sees under a source's name.

Knows which rows a window may see. Knows nothing of what the query makes of them.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from feature_platform.errors import ContractError, SourceNotFoundError, suggest
from feature_platform.offline.query import first_row, parquet, quote, timestamp, to_micros_up, type_family
from feature_platform.offline.source_footers import paths_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import duckdb
    from duckdb.sqltypes import DuckDBPyType

    from feature_platform.model import FeatureView, ParquetSource
    from feature_platform.offline.source_footers import SourceFile
    from feature_platform.windows import Window

__all__ = ["SourceViews", "source_views", "utc_naive", "whole_source"]

_START, _END, _KNOWN = "feature_platform_start", "feature_platform_end", "feature_platform_known"
_SHOWN = [(f"getvariable('{_START}')", f"getvariable('{_END}')")]
_SHOWN_KNOWN = f"getvariable('{_KNOWN}')"


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
    files: Sequence[SourceFile]
    _tables: tuple[_Table, ...]
    _read: dict[str, list[str]]

    def show(self, start: datetime, end: datetime, *, known: datetime | None = None) -> None:
        """Narrow the views to `[start, end)`, known by `end + delay`, or by `known + delay`; files without such rows are not opened."""
        if self.view.schedule is None:
            return
        for name, instant in ((_START, start), (_END, end), (_KNOWN, (known or end) + self.view.delay)):
            self.connection.execute(f"set variable {name} = {timestamp(instant)}")
        for table in self._tables:
            read = table.files(start, end)
            if read != self._read.get(table.name):
                self.connection.execute(f"create or replace temp view {quote(table.name)} as\n{table.select(read)}")
                self._read[table.name] = read

    def rows(self, ranges: Sequence[tuple[datetime, datetime]], *, known: datetime) -> str:
        """Return the SELECT of what `show` would show of some ranges of the only source of a view with a schedule, in one scan."""
        (table,) = self._tables
        files = dict.fromkeys(path for start, end in ranges for path in table.files(start, end))
        return table.select(list(files), [(timestamp(start), timestamp(end)) for start, end in ranges], timestamp(known + self.view.delay))

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
def source_views(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, root: Path, files: Sequence[SourceFile]
) -> Iterator[SourceViews]:
    """
    Make the source views of a feature view, and drop them afterwards.

    Args:
        connection: Gets the views.
        view: Whose.
        root: The project folder, which the sources' paths hang off.
        files: What is known of the sources' files.

    Raises:
        SourceNotFoundError: A source has no files.
        ContractError: A source lacks a time column that it declares.
    """
    tables = tuple(_table(connection, view, source, root, files) for source in view.sources)
    try:
        for table in tables:
            read = table.paths if view.schedule is None else table.schemas  # what has a schedule is shown window by window
            connection.execute(f"create or replace temp view {quote(table.name)} as\n{table.select(read)}")
        yield SourceViews(connection, view, files, tables, {})
    finally:
        for table in tables:
            connection.execute(f"drop view if exists temp.{quote(table.name)}")


def whole_source(connection: duckdb.DuckDBPyConnection, source: ParquetSource, root: Path) -> str:
    """
    Return the SELECT of all of a source's rows, its times in UTC microseconds.

    Raises:
        SourceNotFoundError: It has no files.
        ContractError: It lacks a time column that it declares.
    """
    paths = _paths(source, root)
    return _select(_columns(source, _types(connection, paths)), paths)


@dataclass(frozen=True)
class _Table:
    """
    A source as a view reads it.

    Attributes:
        name: Of the source.
        paths: All its files.
        schemas: A file of each schema, by path: read together, they have all the source's columns.
        timeless: The files whose footers do not say which times they hold.
        spans: The other files, by their earliest time, each with the least and greatest time of each row group.
        reach: The greatest time in each of those and all before it.
        columns: What is selected.
        where: The rows that may be seen of ranges that begin and end as SQL expressions say, and what is known there.
    """

    name: str
    paths: list[str]
    schemas: list[str]
    timeless: list[str]
    spans: list[tuple[str, tuple[tuple[datetime, datetime], ...]]]
    reach: list[datetime]
    columns: str
    where: Callable[[Sequence[tuple[str, str]], str], str]

    def select(self, paths: Sequence[str], ranges: Sequence[tuple[str, str]] = _SHOWN, known: str = _SHOWN_KNOWN) -> str:
        return _select(self.columns, paths) + self.where(ranges, known)

    def files(self, start: datetime, end: datetime) -> list[str]:
        """Return the files to open for `[start, end)`: each that may hold such a row, after one of each schema."""
        near = self.spans[bisect_left(self.reach, start) : bisect_left(self.spans, end, key=lambda one: min(one[1])[0])]
        within = [path for path, spans in near if any(low < end and high >= start for low, high in spans)]
        return list(dict.fromkeys([*self.schemas, *sorted([*self.timeless, *within])]))


def _table(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, source: ParquetSource, root: Path, files: Sequence[SourceFile]
) -> _Table:
    paths = _paths(source, root, where=f" of view {view.name!r}")
    known = {os.path.join(root, file.path): file for file in files if file.source == source.name}  # noqa: PTH118 - there may be very many
    first = {known[path].schema if path in known else path: path for path in reversed(paths)}
    schemas = sorted(first.values())
    types = _types(connection, schemas)
    timeless = [path for path in paths if path not in known or known[path].spans is None]
    spans = sorted(
        ((path, known[path].spans or ()) for path in paths if path in known and known[path].spans), key=lambda one: min(one[1])[0]
    )
    reach = list(accumulate((max(high for _, high in its) for _, its in spans), max))
    return _Table(source.name, paths, schemas, timeless, spans, reach, _columns(source, types), partial(_conditions, view, source, types))


def _paths(source: ParquetSource, root: Path, *, where: str = "") -> list[str]:
    paths = paths_of(source, root)
    if not paths:
        message = (
            f"source {source.name!r}{where} has no files at {source.path!r} (in {root}).\n"
            "Put its Parquet files there, or correct the source's path; 'fp sample' makes the running example's."
        )
        raise SourceNotFoundError(message)
    return paths


def _types(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, DuckDBPyType]:
    relation = connection.sql(f"select * from {parquet(paths, union_by_name=True)} limit 0")
    return dict(zip(relation.columns, relation.types, strict=True))


def _select(columns: str, paths: Sequence[str]) -> str:
    return f"select {columns}\nfrom {parquet(paths, union_by_name=True)} as source"


def _columns(source: ParquetSource, types: Mapping[str, DuckDBPyType]) -> str:
    """Return what is selected of a source's rows under the alias `source`, its times in UTC microseconds."""
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
    return f"* replace ({', '.join(replaced)})" if replaced else "*"


def _conditions(
    view: FeatureView, source: ParquetSource, types: Mapping[str, DuckDBPyType], ranges: Sequence[tuple[str, str]], known: str
) -> str:
    if source.timestamp is None or view.schedule is None:
        return ""
    column, kind = f"source.{quote(source.timestamp)}", str(types[source.timestamp])
    exact = to_micros_up(column, kind)
    # TIMESTAMP WITH TIME ZONE is compared as it is stored, so that Parquet's statistics still prune row groups.
    cast = "::timestamptz" if kind.lower() == "timestamp with time zone" else ""
    left = column if cast else exact
    within = " or ".join(f"({left} >= {start}{cast} and {left} < {end}{cast})" for start, end in ranges)
    found = f"\nwhere ({within})"
    if view.is_window_view and source.created_timestamp:
        created = to_micros_up(f"source.{quote(source.created_timestamp)}", str(types[source.created_timestamp]))
        found += f"\nand ({created} is null or {created} <= {known})"
    return found


def utc_naive(window: Window) -> tuple[object, object]:
    """Return the window's bounds as DuckDB parameters: naive, in UTC."""
    return window.start.astimezone(UTC).replace(tzinfo=None), window.end.astimezone(UTC).replace(tzinfo=None)
