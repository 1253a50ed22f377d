"""
Compute one view for some of its windows: from its sources to Parquet.

Knows the three kinds of view, the contract of their rows, and the order of work. Paths and locks are the store's.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa

from feature_platform.dtypes import Dtype, to_micros
from feature_platform.errors import ContractError, QueryError, WindowError, suggest
from feature_platform.model import ON_UPDATE, FeatureView, ViewKind
from feature_platform.offline.aggregates import aggregates_of, change_points_sql, check_aggregates, longest_window
from feature_platform.offline.query import (
    check_select,
    configure,
    first_row,
    fits,
    literal,
    named_parameters,
    quote,
    quote_all,
    timestamp,
    to_micros_up,
    type_family,
)
from feature_platform.offline.sources import SourceViews, source_views, utc_naive
from feature_platform.offline.store import METADATA_KEY, TOMBSTONE, OfflineStore, Partition
from feature_platform.windows import WHOLE, Window, grid_of, utc

__all__ = ["PartitionReport", "Progress", "compute_windows", "due_windows", "requested_windows", "verify_partition"]

Progress: TypeAlias = Callable[[int, int], None]
_RESULT = "feature_platform_result"
_ENDS = "feature_platform_ends"
_RETURNED = "feature_platform_returned"


@dataclass(frozen=True, kw_only=True)
class PartitionReport:
    """
    What one window's computation wrote.

    Attributes:
        view: Name of the view.
        window: The window.
        path: Its file.
        partition: What the file's footer says (rows, nulls, time range, generation).
        seconds: Time it took; windows computed together share it evenly.
    """

    view: str
    window: Window
    path: Path
    partition: Partition
    seconds: float

    @property
    def kind(self) -> str:
        """Full or changes."""
        return "full" if self.partition.is_full else "changes"


def due_windows(view: FeatureView, store: OfflineStore, now: datetime) -> list[Window]:
    """
    Return the closed windows that are not computed yet, oldest first.

    An ON_UPDATE view's open day is always due: data may have arrived. So is the one table of a view without a schedule.
    """
    return [w for w in _closed(view, now) if _is_open(view, w, now) or store.partition(view, w) is None]


def requested_windows(view: FeatureView, start: datetime | None, end: datetime | None, now: datetime) -> list[Window]:
    """Return the closed windows that share an instant with `[start, end)`, computed or not; naive bounds are UTC."""
    low, high = (None if start is None else utc(start)), (None if end is None else utc(end))
    return [w for w in _closed(view, now) if (low is None or w.end > low) and (high is None or w.start < high)]


def _closed(view: FeatureView, now: datetime) -> list[Window]:
    grid, now = grid_of(view), utc(now)
    if grid is None:
        return [WHOLE]
    if view.schedule == ON_UPDATE:
        return grid.touching(None, now + timedelta(microseconds=1))
    return grid.within(None, now - view.delay)


def _is_open(view: FeatureView, window: Window, now: datetime) -> bool:
    return view.schedule is None or (view.schedule == ON_UPDATE and window.end > utc(now))


def compute_windows(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    windows: Sequence[Window],
    *,
    store: OfflineStore,
    root: Path,
    now: datetime,
    run_id: str | None = None,
    progress: Progress | None = None,
) -> list[PartitionReport]:
    """
    Compute and write some windows of a view; repeated, in any order or in parallel, the answers are the same.

    Args:
        connection: Any DuckDB connection; its settings are set.
        view: The view.
        windows: Windows of the view's grid.
        store: Where the files go.
        root: The project folder, which the sources' paths hang off.
        now: A window is refused before `end + delay`: it could not know all its rows.
        run_id: Kept in the files' footers.
        progress: Called with windows done and windows wanted.

    Returns:
        One report a window, oldest first.

    Raises:
        WindowError: A window is not closed at `now`.
        SourceNotFoundError: A source has no files.
        QueryError: The query is unsafe.
        ContractError: The rows differ from what the view declares; nothing of their window is written.
    """
    ordered = sorted(set(windows))
    for window in ordered:
        opens = window.start if view.schedule == ON_UPDATE else window.end + view.delay
        if view.schedule is not None and opens > utc(now):
            message = f"view {view.name!r}: window {window} can be computed from {opens:%Y-%m-%d %H:%M} UTC on, and it is {utc(now):%Y-%m-%d %H:%M}."
            raise WindowError(message)
    configure(connection)
    base = _Writer(connection, view, store, to_micros(now), run_id)
    reports: list[PartitionReport] = []
    with source_views(connection, view, root) as sources:
        each = _aggregate_runs(base, sources, ordered) if view.kind is ViewKind.AGGREGATE else _queries(base, sources, ordered)
        for report in each:
            reports.append(report)
            if progress:
                progress(len(reports), len(ordered))
    return reports


@dataclass(frozen=True)
class _Writer:
    """Writes the rows of a window from a table to its file."""

    connection: duckdb.DuckDBPyConnection
    view: FeatureView
    store: OfflineStore
    now: int
    run_id: str | None

    def write(self, window: Window, rows: str, *, is_full: bool, dropped: int, newest: int | None, seconds: float) -> PartitionReport:
        """Write `rows`, a SELECT of all the file's columns in order; what it holds is counted first, for the footer."""
        names = list(self.view.feature_by_name)
        tombstones = f"count(*) filter (where {quote(TOMBSTONE)})" if self.view.kind is ViewKind.AGGREGATE else "0"
        nulls = "".join(f", count(*) - count({quote(name)})" for name in names)
        times = "epoch_us(min(event_timestamp)), epoch_us(max(event_timestamp))"
        counts = first_row(self.connection, f"select count(*), {tombstones}, {times}{nulls} from ({rows})")
        partition = {
            "view": self.view.name,
            "start": to_micros(window.start),
            "end": to_micros(window.end),
            "is_full": is_full,
            "definition": self.view.definition_hash,
            "columns": {name: str(feature.type) for name, feature in self.view.feature_by_name.items()},
            "rows": counts[0],
            "tombstones": counts[1],
            "dropped": dropped,
            "nulls": dict(zip(names, counts[4:], strict=True)),
            "min_event_timestamp": counts[2],
            "max_event_timestamp": counts[3],
            "newest_source_timestamp": newest,
            "computed_at": self.now,
            "run_id": self.run_id,
        }
        order = quote_all([*self.view.entity.join_keys, "event_timestamp"])

        def copy(path: Path, generation: int) -> None:
            footer = Partition(**partition, generation=generation).to_json()
            self.connection.execute(
                f"copy (select * from ({rows}) order by {order}) to {literal(str(path))} "
                f"(format parquet, compression zstd, kv_metadata {{{METADATA_KEY}: {literal(footer)}}})"
            )

        self.store.replace(self.view, window, copy)
        written = self.store.partition(self.view, window)
        assert written is not None  # noqa: S101 - it was renamed into place above
        return PartitionReport(view=self.view.name, window=window, path=self.store.path(self.view, window), partition=written, seconds=seconds)


def _queries(writer: _Writer, sources: SourceViews, windows: Sequence[Window]) -> Iterator[PartitionReport]:
    """Run the view's query once a window: what it returns may depend on all that its window shows."""
    view = writer.view
    for window in windows:
        started = time.perf_counter()
        sources.show(window, reach=view.lookback)
        dropped = _run_query(writer.connection, view, window)
        _check_rows(writer.connection, view, window)
        yield writer.write(
            window,
            f"select * from temp.{_RESULT}",
            is_full=view.kind is ViewKind.SNAPSHOT,
            dropped=dropped,
            newest=sources.newest(),
            seconds=time.perf_counter() - started,
        )
        writer.connection.execute(f"drop table temp.{_RESULT}")


def _run_query(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window) -> int:
    """Leave the query's rows, cast to the declared dtypes, in a table; return how many lacked a key or a time."""
    sql, parameters = _select(connection, view, window)
    described = connection.execute(f"describe {sql}", parameters).fetchall()
    relation = connection.sql(f"select * from ({sql}\n) limit 0", params=parameters or None)
    types = dict(zip(relation.columns, relation.types, strict=True))
    _check_columns(view, [str(row[0]) for row in described], types)
    columns = [f"cast({quote(name)} as {dtype.duckdb}) as {quote(name)}" for name, dtype in view.entity.keys.items()]
    if view.kind is ViewKind.EVENT:
        for name in _time_columns(view):
            columns.append(f"{to_micros_up(quote(name), str(types[name]))} as {quote(name)}")
    else:
        columns.append(f"{timestamp(window.end)} as event_timestamp")
    columns += [f"{_cast(quote(name), types[name], feature.type)} as {quote(name)}" for name, feature in view.feature_by_name.items()]
    needed = [*view.entity.join_keys, *(["event_timestamp"] if view.kind is ViewKind.EVENT else [])]
    present = " and ".join(f"{quote(name)} is not null" for name in needed) or "true"
    connection.execute(f"create or replace temp table {_RETURNED} as select {', '.join(columns)} from ({sql}\n)", parameters)
    kept = f"select * from temp.{_RETURNED} where {present}"
    if view.kind is ViewKind.EVENT and view.schedule is not None and view.lookback is not None:
        kept += f" and event_timestamp >= {timestamp(window.start)}"
    connection.execute(f"create or replace temp table {_RESULT} as {kept}")
    dropped: int = first_row(connection, f"select count(*) from temp.{_RETURNED} where not ({present})")[0]
    connection.execute(f"drop table temp.{_RETURNED}")
    return dropped


def _cast(column: str, duckdb_type: Any, dtype: Dtype) -> str:
    """Cast to the declared dtype; a time of a finer unit rounds up, like all times of features."""
    if dtype.family == "datetime":
        return to_micros_up(column, str(duckdb_type)) if type_family(duckdb_type) != "null" else f"cast({column} as timestamp)"
    return f"cast({column} as {dtype.duckdb})"


def _select(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window) -> tuple[str, dict[str, object]]:
    where = f"view {view.name!r}"
    start, end = utc_naive(window)
    if callable(view.query):
        return _call(connection, view, window), {}
    if view.query is None:
        return _history(view), {}
    sql = view.query.strip().rstrip(";")
    check_select(connection, sql, sources=[source.name for source in view.sources], where=where)
    names = named_parameters(connection, sql)
    known = {} if view.schedule is None else {"start": start, "end": end}
    for name in names - known.keys():
        message = f"{where}: the query names ${name}.\n{suggest(name, known, has='It may use')}"
        raise QueryError(message)
    return sql, {name: known[name] for name in names}  # DuckDB refuses values for parameters that a query does not name


def _history(view: FeatureView) -> str:
    """Return the SELECT of an event view whose source holds the history of values already."""
    source = view.sources[0]
    times = f"{quote(source.timestamp or '')} as event_timestamp"
    if source.created_timestamp:
        times += f", {quote(source.created_timestamp)} as created_timestamp"
    keys = "".join(quote(key) + ", " for key in view.entity.join_keys)
    return f"select {keys}{times}, {quote_all(view.feature_by_name)} from {quote(source.name)}"


def _call(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window) -> str:
    """Run the view's Python function; return the SELECT of what it returned."""
    relations: dict[str, object] = {source.name: connection.view(source.name) for source in view.sources}
    result = _invoke(view, relations, window)
    if isinstance(result, duckdb.DuckDBPyRelation):
        result.create_view("feature_platform_function", replace=True)
        return "select * from feature_platform_function"
    if isinstance(result, (pa.Table, pa.RecordBatchReader)):
        table = result.read_all() if isinstance(result, pa.RecordBatchReader) else result
    elif hasattr(result, "__arrow_c_stream__"):
        table = pa.table(result)
    else:
        message = f"view {view.name!r}: its function returned {type(result).__name__}.\nReturn a DuckDB relation or an Arrow table."
        raise ContractError(message)
    connection.register("feature_platform_function", table)
    return "select * from feature_platform_function"


def _invoke(view: FeatureView, relations: Mapping[str, object], window: Window) -> object:
    assert callable(view.query)  # noqa: S101 - the caller asked
    by_name = {**relations, "start": window.start, "end": window.end}
    parameters = inspect.signature(view.query).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return view.query(**relations)
    if all(p.name in by_name or p.default is not inspect.Parameter.empty for p in parameters):
        return view.query(**{p.name: by_name[p.name] for p in parameters if p.name in by_name})
    return view.query(relations)


def _time_columns(view: FeatureView) -> list[str]:
    return ["event_timestamp", *(["created_timestamp"] if view.has_created_timestamp else [])]


def _check_columns(view: FeatureView, returned: Sequence[str], types: Mapping[str, Any]) -> None:
    """Compare the described query with the declaration, before any row is read."""
    where = f"view {view.name!r}"
    if view.kind is ViewKind.SNAPSHOT and "event_timestamp" in returned:
        message = f"{where}: its query returns event_timestamp, which makes it an event view.\nName the column in the outermost SELECT, or leave it out."
        raise ContractError(message)
    times = _time_columns(view) if view.kind is ViewKind.EVENT else []
    wanted = [*view.entity.join_keys, *times, *view.feature_by_name]
    for name in wanted:
        if name not in returned:
            hint = ", as its source declares created_timestamp: the join filters by it" if name == "created_timestamp" else ""
            message = f"{where}: its query does not return {name!r}{hint}.\n{suggest(name, returned, has='It returns')}"
            raise ContractError(message)
    for name in returned:
        if name not in wanted:
            message = f"{where}: its query returns {name!r}, which is not declared.\nDeclare Feature({name!r}, ...), or leave it out. {suggest(name, wanted, has='Declared')}"
            raise ContractError(message)
    for name in times:
        if type_family(types[name]) not in {"datetime", "date", "null"}:
            message = f"{where}: {name} is {types[name]}, not a time.\nCast it to timestamp."
            raise ContractError(message)
    declared = {**view.entity.keys, **{name: feature.type for name, feature in view.feature_by_name.items()}}
    for name, dtype in declared.items():
        if not fits(types[name], dtype):
            message = f"{where}: column {name!r} is declared {dtype} and the query returns {types[name]}.\nDeclare it as that, or write cast({quote(name)} as {dtype.duckdb})."
            raise ContractError(message)


def _check_rows(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window) -> None:
    """Check the times of an event view's rows, and that rows are unique: a snapshot's by key, an event view's by key and times."""
    where, keys = f"view {view.name!r}", list(view.entity.join_keys)
    if view.kind is ViewKind.EVENT and view.schedule is not None:
        outside = f"event_timestamp < {timestamp(window.start)} or event_timestamp >= {timestamp(window.end)}"
        row = first_row(connection, f"select count(*), min(event_timestamp), max(event_timestamp) from temp.{_RESULT} where {outside}")
        if row[0]:
            message = (
                f"{where}: {row[0]} rows lie outside their window {window}, at {row[1]} to {row[2]}.\n"
                "Each row belongs to the window of its own event_timestamp: take that from the source's time column."
            )
            raise ContractError(message)
    unique = [*keys, *(_time_columns(view) if view.kind is ViewKind.EVENT else [])]
    grouped = f"group by {quote_all(unique)} having count(*) > 1" if unique else "having count(*) > 1"
    selected = quote_all(unique) if unique else "count(*)"
    twice = connection.execute(f"select {selected} from temp.{_RESULT} {grouped} limit 1").fetchall()
    if not twice:
        return
    if view.kind is ViewKind.SNAPSHOT:
        named = ", ".join(f"{name}={value!r}" for name, value in zip(unique, twice[0], strict=False))
        message = f"{where}: a snapshot has one row a key, and {named or 'the global view'} has several.\nGroup by {', '.join(keys) or 'nothing'}."
        raise ContractError(message)
    # Full ties: one row stays, the same one every time, whatever the order of the files (law L4).
    order = ", ".join(f"{quote(name)} desc nulls last" for name in view.feature_by_name)
    connection.execute(
        f"create or replace temp table {_RESULT} as select * from temp.{_RESULT} "
        f"qualify row_number() over (partition by {quote_all(unique)} order by {order}) = 1"
    )


def _aggregate_runs(writer: _Writer, sources: SourceViews, windows: Sequence[Window]) -> Iterator[PartitionReport]:
    """Compute adjacent windows together: one scan, one statement, then one file a window."""
    for run in _adjacent(windows):
        yield from _aggregate_run(writer, sources, run)


def _adjacent(windows: Sequence[Window]) -> list[list[Window]]:
    runs: list[list[Window]] = []
    for window in windows:
        if runs and runs[-1][-1].end == window.start:
            runs[-1].append(window)
        else:
            runs.append([window])
    return runs


def _aggregate_run(writer: _Writer, sources: SourceViews, run: Sequence[Window]) -> Iterator[PartitionReport]:
    started, view, connection = time.perf_counter(), writer.view, writer.connection
    types = check_aggregates(connection, view)
    sources.show(Window(run[0].start, run[-1].end), reach=longest_window(view))
    grid = grid_of(view)
    before = grid.before(run[0]) if grid else None
    predecessor = writer.store.partition(view, before) if before else None
    is_full = predecessor is None or predecessor.definition != view.definition_hash
    ends = pa.table({"window_end": pa.array([run[0].start, *(w.end for w in run)], pa.timestamp("us", tz="UTC"))})
    connection.register("feature_platform_arrow", ends)
    connection.execute(f"create or replace temp table {_ENDS} as select window_end::timestamp as window_end from feature_platform_arrow order by 1")
    connection.unregister("feature_platform_arrow")
    lengths = sorted({aggregate.window for aggregate in aggregates_of(view)})
    points = change_points_sql(view, types, f"temp.{_ENDS}", first_is_full=is_full, windows=lengths)
    keys = [f"cast({quote(name)} as {dtype.duckdb}) as {quote(name)}" for name, dtype in view.entity.keys.items()]
    columns = ", ".join([*keys, "event_timestamp", *(quote(name) for name in view.feature_by_name), quote(TOMBSTONE)])
    connection.execute(f"create or replace temp table {_RESULT} as select {columns} from ({points}) order by event_timestamp")
    newest, dropped = _newest_by_end(connection, view, run), _null_keys_by_end(connection, view, run)
    seconds = (time.perf_counter() - started) / len(run)
    for index, window in enumerate(run):
        full = is_full and index == 0
        rows = f"select * from temp.{_RESULT} where event_timestamp = {timestamp(window.end)}" + (f" and not {quote(TOMBSTONE)}" if full else "")
        yield writer.write(window, rows, is_full=full, dropped=dropped[index], newest=newest[index], seconds=seconds)
    connection.execute(f"drop table temp.{_RESULT}")
    connection.execute(f"drop table temp.{_ENDS}")


def _newest_by_end(connection: duckdb.DuckDBPyConnection, view: FeatureView, run: Sequence[Window]) -> list[int | None]:
    """Return for each window the newest source time that it read."""
    source = view.sources[0]
    time_column = quote(source.timestamp or "")
    rows = connection.execute(
        f"select epoch_us(w.window_end), epoch_us(max(s.{time_column})) from {quote(source.name)} as s "
        f"asof join temp.{_ENDS} as w on s.{time_column} < w.window_end group by all"
    ).fetchall()
    newest = dict(rows)
    found: list[int | None] = []
    latest: int | None = newest.get(to_micros(run[0].start))
    for window in run:
        candidate = newest.get(to_micros(window.end))
        latest = candidate if latest is None or (candidate is not None and candidate > latest) else latest
        found.append(latest)
    return found


def _null_keys_by_end(connection: duckdb.DuckDBPyConnection, view: FeatureView, run: Sequence[Window]) -> list[int]:
    """Return for each window how many of its own source rows lacked a key."""
    source, keys = view.sources[0], list(view.entity.join_keys)
    if not keys:
        return [0] * len(run)
    missing = " or ".join(f"s.{quote(key)} is null" for key in keys)
    rows = connection.execute(
        f"select epoch_us(w.window_end), count(*) from {quote(source.name)} as s "
        f"asof join temp.{_ENDS} as w on s.{quote(source.timestamp or '')} < w.window_end where {missing} group by all"
    ).fetchall()
    counts = dict(rows)
    return [counts.get(to_micros(window.end), 0) for window in run]


def verify_partition(connection: duckdb.DuckDBPyConnection, view: FeatureView, window: Window, store: OfflineStore) -> list[str]:
    """
    Read a written file back and return what is wrong with it; empty where the contract holds.

    It must be there, of this definition, with the declared columns and dtypes, one row a key (and time), no NULL in a key
    or time, and as many rows as its footer says.
    """
    partition = store.partition(view, window)
    if partition is None:
        return [f"window {window} has no file"]
    problems: list[str] = []
    if partition.definition != view.definition_hash:
        problems.append(f"window {window} was computed by another definition: run 'fp compute {view.name}' for it")
    path = store.path(view, window)
    table = f"read_parquet({literal(str(path))})"
    relation = connection.sql(f"select * from {table} limit 0")
    types = dict(zip(relation.columns, relation.types, strict=True))
    declared = {**view.entity.keys, **{name: feature.type for name, feature in view.feature_by_name.items()}}
    problems += [f"{path.name}: column {name!r} is missing" for name in [*declared, "event_timestamp"] if name not in types]
    problems += [
        f"{path.name}: column {name!r} is {types[name]}, not {dtype}" for name, dtype in declared.items() if name in types and not fits(types[name], dtype)
    ]
    if problems:
        return problems
    unique = [*view.entity.join_keys, *(_time_columns(view) if view.kind is ViewKind.EVENT else ["event_timestamp"])]
    required = [name for name in unique if name != "created_timestamp"]
    missing = " or ".join(f"{quote(name)} is null" for name in required)
    distinct_rows = f"select count(*) from (select 1 from {table} group by {quote_all(unique)})"
    rows, null_keys, distinct = first_row(connection, f"select count(*), count(*) filter (where {missing}), ({distinct_rows}) from {table}")
    if rows != partition.rows:
        problems.append(f"{path.name}: holds {rows} rows, its footer says {partition.rows}")
    if null_keys:
        problems.append(f"{path.name}: {null_keys} rows have NULL in a key or in event_timestamp")
    if distinct != rows:
        problems.append(f"{path.name}: {rows - distinct} rows are not unique by {', '.join(unique)}")
    return problems

