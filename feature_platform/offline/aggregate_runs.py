"""
Runs of adjacent windows of an aggregate view: one scan, one statement, then one file a window.

Knows which window is full and which holds changes. The SQL of the values is `aggregates.py`'s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from feature_platform.dtypes import to_micros
from feature_platform.model import FeatureView
from feature_platform.offline.aggregates import change_points_sql, check_aggregates, known_from
from feature_platform.offline.contract import RESULT
from feature_platform.offline.query import explaining, quote, timestamp
from feature_platform.offline.store import TOMBSTONE
from feature_platform.windows import Window, adjacent, grid_of, reads_from

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import duckdb

    from feature_platform.offline.sources import SourceViews
    from feature_platform.offline.writer import PartitionReport, PartitionWriter

__all__ = ["aggregate_windows"]

_ENDS: Final = "feature_platform__ends"


def aggregate_windows(writer: PartitionWriter, sources: SourceViews, windows: Sequence[Window]) -> Iterator[PartitionReport]:
    """
    Compute adjacent windows together.

    A window whose rows are rejected is not there for those after it: the next one begins a run with the complete state. So does
    one whose file holds the complete state already: its rows can come out the same.
    """
    for run in adjacent(windows):
        rest, after_rejection = run, False
        while rest:
            length = _until_full(writer, rest)
            done, after_rejection = yield from _run(writer, sources, rest[:length], starts_full=after_rejection)
            rest = rest[done:]


def _until_full(writer: PartitionWriter, run: Sequence[Window]) -> int:
    """Return how many windows come before the next one whose file holds the complete state."""
    for index, window in enumerate(run[1:], start=1):
        if _is_full(writer, window):
            return index
    return len(run)


def _is_full(writer: PartitionWriter, window: Window) -> bool:
    stored = writer.store.partition(writer.view, window)
    return stored is not None and stored.is_full and stored.definition == writer.view.definition_hash


def _run(
    writer: PartitionWriter, sources: SourceViews, run: Sequence[Window], *, starts_full: bool
) -> Generator[PartitionReport, None, tuple[int, bool]]:
    """Compute windows up to the first that is rejected; return how many, and whether one was."""
    started, view, connection = time.perf_counter(), writer.view, writer.connection
    with explaining(f"view {view.name!r}"):
        types = check_aggregates(connection, view)
        sources.show(reads_from(view, run[0]), run[-1].end)
        _register_ends(connection, run)
        is_full = starts_full or _is_full(writer, run[0]) or _has_no_predecessor(writer, run[0])
        points = change_points_sql(view, types, f"temp.{_ENDS}", first_is_full=is_full)
        connection.execute(f"create or replace temp table {RESULT} as {points} order by event_timestamp")
        newest, dropped = _newest_by_end(connection, view, run), _null_keys_by_end(connection, view, run)
    seconds, done, is_rejected = (time.perf_counter() - started) / len(run), 0, False
    for window in run:
        full = is_full and done == 0
        rows = f"select * from temp.{RESULT} where event_timestamp = {timestamp(window.end)}" + (
            f" and not {quote(TOMBSTONE)}" if full else ""
        )
        report = writer.write(window, rows, is_full=full, dropped=dropped[done], newest=newest[done], seconds=seconds)
        yield report
        done, is_rejected = done + 1, report.outcome == "rejected"
        if is_rejected:
            break
    connection.execute(f"drop table temp.{RESULT}")
    connection.execute(f"drop table temp.{_ENDS}")
    return done, is_rejected


def _has_no_predecessor(writer: PartitionWriter, window: Window) -> bool:
    """
    Say whether nothing stands before a window, or what changes cannot build on.

    That is another definition's values, and values of files that are others today: a late row is stored only at the window that
    it entered, and that one may never be computed again. It is rejected since, or lies before the horizon.
    """
    grid = grid_of(writer.view)
    before = grid.before(window) if grid else None
    predecessor = writer.store.partition(writer.view, before) if before else None
    if before is None or predecessor is None or predecessor.definition != writer.view.definition_hash:
        return True
    attempt = writer.store.attempt(writer.view, before)
    if attempt is not None and attempt.outcome == "rejected":
        return True
    inputs = attempt.inputs if attempt else predecessor.inputs
    return inputs is not None and inputs != writer.inputs.get(before)


def _register_ends(connection: duckdb.DuckDBPyConnection, run: Sequence[Window]) -> None:
    ends = pa.table({"window_end": pa.array([run[0].start, *(w.end for w in run)], pa.timestamp("us", tz="UTC"))})
    connection.register(f"{_ENDS}_arrow", ends)
    connection.execute(f"create or replace temp table {_ENDS} as select window_end::timestamp as window_end from {_ENDS}_arrow order by 1")
    connection.unregister(f"{_ENDS}_arrow")


def _newest_by_end(connection: duckdb.DuckDBPyConnection, view: FeatureView, run: Sequence[Window]) -> list[int | None]:
    """Return for each window the newest source time among the rows that it, or one before it in the run, could know."""
    source = view.sources[0]
    rows = connection.execute(
        f"select epoch_us(w.window_end), epoch_us(max(s.{quote(source.timestamp or '')})) from {quote(source.name)} as s "
        f"asof join temp.{_ENDS} as w on {known_from(view, 's')} <= w.window_end group by all"
    ).fetchall()
    newest = dict(rows)
    found: list[int | None] = []
    latest: int | None = newest.get(to_micros(run[0].start))
    for window in run:
        latest = max((one for one in (latest, newest.get(to_micros(window.end))) if one is not None), default=None)
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
