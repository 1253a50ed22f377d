"""
Runs of adjacent windows of an aggregate view: one scan, one statement, then one file a window.

A run builds on what its predecessor's files hold, or begins with the complete state. Why building on files is safe: a file's
rows are a function of the source rows that its window reads, `[start - longest window, end)`, if the running totals that it
started from were. Every file from the newest full one to the predecessor is there, records the fingerprint of the source files
that its window reads, and that is today's; the full one started from nothing. So, file by file, each holds what computing
everything from today's events would write, and the newest row of a key has the totals of the events inside at the
predecessor's end. Files from before the longest window need not be looked at: a key that has an event inside has a row from
when that entered. Where a file is missing, rejected since, of another definition or layout, or of source files that are others
today, the run begins with the complete state.

Knows which window is full and which holds changes. The SQL of the values is `change_points.py`'s.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from feature_platform.dtypes import from_micros, to_micros
from feature_platform.model import FeatureView
from feature_platform.offline.accumulators import Layout, layout_of
from feature_platform.offline.aggregates import aggregates_of, check_aggregates, known_from
from feature_platform.offline.change_points import ChangePoints, Ends
from feature_platform.offline.contract import RESULT
from feature_platform.offline.history import stored_rows
from feature_platform.offline.inputs import fingerprints
from feature_platform.offline.kept_states import newest_state
from feature_platform.offline.middles import make_middle
from feature_platform.offline.query import explaining, first_row, parquet, quote, timestamp
from feature_platform.offline.redone import Block, Redone
from feature_platform.offline.store import TOMBSTONE, Partition
from feature_platform.windows import Window, adjacent, grid_of, reads_from

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from datetime import datetime

    import duckdb

    from feature_platform.model import Aggregate
    from feature_platform.offline.sources import SourceViews
    from feature_platform.offline.writer import PartitionReport, PartitionWriter

__all__ = ["aggregate_windows", "base_rows", "predecessors"]

_EVENTS: Final = "temp.feature_platform__events"
_DELTAS: Final = "temp.feature_platform__deltas"
_POINTS: Final = "temp.feature_platform__points"
_REDONE: Final = "temp.feature_platform__redone"
_TOTALS: Final = "temp.feature_platform__totals"
_NEXT: Final = "temp.feature_platform__next"
_MIDDLE: Final = "temp.feature_platform__middle"
_TABLES: Final = (_EVENTS, _DELTAS, _POINTS, _REDONE, _TOTALS, _NEXT, _MIDDLE, f"temp.{RESULT}")

# Windows are computed some at a time, so that a run of any length is held in little memory: as many as the rows of those before
# them let expect to fit, beginning with few.
_RESULT_BYTES: Final = 256_000_000
_FIRST_WINDOWS: Final = 4
_MORE_WINDOWS: Final = 8


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
    """Compute windows up to the first that is rejected, some at a time; return how many, and whether one was."""
    view, connection, done = writer.view, writer.connection, 0
    try:
        with explaining(f"view {view.name!r}"):
            layout = layout_of(view, check_aggregates(connection, view))
            is_full = starts_full or _is_full(writer, run[0])
            chain = [] if is_full else predecessors(writer, sources, layout, run[0])
        latest = chain[-1].newest_source_timestamp if chain else None
        # What starts from nothing has a row for every key in its first window, which tells nothing of those after it.
        wanted = _FIRST_WINDOWS if chain else 1
        block: Block | None = None
        while done < len(run):
            started, some, before = time.perf_counter(), run[done : done + wanted], block
            if layout.redone:
                block = Block.of(some[0], max(one.window for one in layout.redone))
                some = [window for window in some if block.holds(window)]
            with explaining(f"view {view.name!r}"):
                computation = _Computation(
                    writer, sources, layout, some, chain, block, is_first=done == 0, is_last=done + len(some) == len(run)
                )
                computation.compute(has_middle=block == before)
                newest, dropped = computation.read_by_end(latest)
                latest = newest[-1]
            seconds = (time.perf_counter() - started) / len(some)
            for index, window in enumerate(some):
                full = not chain and done == 0
                select = f"select * from temp.{RESULT} where event_timestamp = {timestamp(window.end)}" + (
                    f" and not {quote(TOMBSTONE)}" if full else ""
                )
                report = writer.write(
                    window, select, is_full=full, dropped=dropped[index], newest=newest[index], seconds=seconds, accumulators=layout.hash
                )
                yield report
                done += 1
                if report.outcome == "rejected":
                    return done, True
            if done < len(run):
                rows = first_row(connection, f"select count(*) from temp.{RESULT}")[0]
                wanted = min(_MORE_WINDOWS * len(some), max(1, _RESULT_BYTES // layout.row_bytes * len(some) // max(1, rows)))
    finally:
        connection.execute("; ".join(f"drop table if exists {table}" for table in _TABLES))
    return done, False


def predecessors(writer: PartitionWriter, sources: SourceViews, layout: Layout, window: Window) -> list[Partition]:
    """
    Return the files that changes of a window can build on, up to its predecessor, oldest first; none where they cannot.

    They reach back to the newest full one, or as far as the longest window: a key that has an event inside at the predecessor's end
    has a row from when that one entered, and a key without one has no totals.
    """
    view, store, grid = writer.view, writer.store, grid_of(writer.view)
    if grid is None:
        return []
    reach = to_micros(window.start - max(one.window for one in aggregates_of(view)))
    stored = {one.window: one for one in store.partitions(view, after=reach, before=window.start)}
    attempts = store.attempts.of(view)
    chain: list[Partition] = []
    before = grid.before(window)
    while before is not None and to_micros(before.end) > reach:
        one = stored.get(before)
        if one is None or one.definition != view.definition_hash or one.accumulators != layout.hash:
            return []
        attempt = attempts.get(before.key)
        if attempt is not None and attempt.outcome == "rejected":
            return []
        chain.append(one)
        if one.is_full:
            break
        before = grid.before(before)
    if not chain or (before is None and not chain[-1].is_full):
        return []
    today = fingerprints(view, sources.files, [one.window for one in reversed(chain)], from_micros(writer.now))
    for one in chain:
        attempt = attempts.get(one.window.key)
        if (attempt.inputs if attempt else one.inputs) != today[one.window]:
            return []
    return chain[::-1]


def base_rows(writer: PartitionWriter, chain: Sequence[Partition], points: ChangePoints, keys: str | None) -> str:
    """
    Return the SELECT of the running totals at the end of a chain of files: our keys, the accumulators.

    Args:
        writer: Knows where the files are.
        chain: As of `predecessors`.
        points: Names the keys and the accumulators.
        keys: A table of the keys that are wanted; None for all.
    """
    view, listed = writer.view, "".join(f"{key}, " for key in points.keys)
    state = newest_state(view, writer.store, chain[-1].end)
    since = [one for one in chain if state is None or one.end > state.until]
    # A state from before the chain spares nothing, and one from before a full file in it holds keys that ended with that.
    if state is None or len(since) == len(chain) or any(one.is_full for one in since):
        tables, has_one_row_a_key = [stored_rows(view, writer.store, chain)], len(chain) == 1
    else:
        tables, has_one_row_a_key = [f"select * from {parquet([state.path])}"], not since
        tables += [stored_rows(view, writer.store, since)] if since else []
    only = f" semi join {keys} using ({', '.join(points.keys)})" if points.keys and keys else ""
    history = f"({' union all by name '.join(tables)})"
    if has_one_row_a_key:
        only = "" if points.ends.is_one else only  # then it is joined to them anyway
        return f"select {listed}{points.accumulators}\nfrom (select {points.renamed}{points.accumulators} from {history}){only}"
    # Two narrow steps: of 1.2 million rows, 24 ms; with row_number over whole rows 50 ms.
    newest = f"select {listed}max(event_timestamp) as event_timestamp from (select {points.renamed}event_timestamp from {history}){only}"
    newest += f" group by {', '.join(points.keys)}" if points.keys else ""
    return (
        f"select {listed}{points.accumulators}\nfrom (select {points.renamed}event_timestamp, {points.accumulators} from {history})\n"
        f"semi join ({newest}) using ({listed}event_timestamp)"
    )


@dataclass(frozen=True)
class _Computation:
    """The tables of some windows: `compute` leaves the rows of all their files in the table of results."""

    writer: PartitionWriter
    sources: SourceViews
    layout: Layout
    run: Sequence[Window]
    chain: Sequence[Partition]
    block: Block | None
    is_first: bool
    is_last: bool

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        return self.writer.connection

    @property
    def _view(self) -> FeatureView:
        return self.writer.view

    @property
    def _is_built_on(self) -> bool:
        return bool(self.chain) or not self.is_first

    @property
    def _points(self) -> ChangePoints:
        ends = Ends.of([window.end for window in self.run], built_on=self.run[0].start if self._is_built_on else None)
        return ChangePoints(self._view, self.layout, ends)

    def _create(self, table: str, select: str) -> None:
        self._connection.execute(f"create or replace {table.replace('temp.', 'temp table ')} as {select}")

    def compute(self, *, has_middle: bool) -> None:
        """
        Fill the table of results; unless these windows are the last, leave the running totals that the next ones build on, too.

        Args:
            has_middle: Whether the table of the block's middle is there from the windows before.
        """
        points = self._points
        points.ends.register(self._connection)
        if self.is_first and self.chain and not self.is_last:
            self._create(_TOTALS, base_rows(self.writer, self.chain, points, None))
        running = self._running(points)
        if self.layout.redone:
            self._create(_POINTS, running)
            redone = Redone(points, self.layout.redone, self.block)
            if redone.shared and not has_middle:
                make_middle(self.writer, self.sources, redone, _MIDDLE, _POINTS, is_last=self.is_last)
            self._redo(redone)
            self._create(f"temp.{RESULT}", points.rows(_POINTS, redone=_REDONE))
        else:
            self._create(f"temp.{RESULT}", points.rows(f"({running})", redone=None))
        for name, aggregates in self.layout.inexact.items():
            if first_row(self._connection, f"select count(*) from temp.{RESULT} where {name} <> 0")[0]:
                self._repair(points, name, aggregates)
        if not self.is_last:
            self._carry(points)

    def _carry(self, points: ChangePoints) -> None:
        """Keep the running totals at the last end, of the keys that have any."""
        names = "".join(f"{quote(name)}, " for name in self._view.entity.join_keys)
        newest = f"select {names}max(event_timestamp) as event_timestamp from temp.{RESULT} group by {names}true"
        found = f"select {points.renamed}{points.accumulators} from temp.{RESULT} semi join ({newest}) using ({names}event_timestamp)"
        found += f" where not {quote(TOMBSTONE)}"
        if self._is_built_on:
            changed = f"select {points.renamed}true from temp.{RESULT}"
            same = points.same_keys("t", "c")
            found += f"\nunion all by name\nselect t.* from {_TOTALS} as t anti join ({changed}) as c on {same}"
        self._create(_NEXT, found)
        self._connection.execute(f"drop table if exists {_TOTALS}")
        self._connection.execute(f"alter table {_NEXT} rename to {_TOTALS.removeprefix('temp.')}")

    def _running(self, points: ChangePoints) -> str:
        """Return the SELECT of running totals, from what enters and leaves where there is something to build on."""
        first, last = self.run[0], self.run[-1]
        if not self._is_built_on:
            self.sources.show(reads_from(self._view, first), last.end)
            return points.running(points.deltas(points.events()), None)
        ranges = _joined([*((first.start - length, last.end - length) for length in self.layout.windows), (first.start, last.end)])
        events = self._events(points, ranges, late=points.ends.after if len(ranges) > 1 else None)
        if len(ranges) > 1 and not points.ends.is_one:  # they are read once for each length
            self._create(_EVENTS, events)
            events = f"select * from {_EVENTS}"
        self._create(_DELTAS, points.deltas(events))
        if self.is_first and self.is_last:
            base = base_rows(self.writer, self.chain, points, _DELTAS)
        else:
            base = f"select t.* from {_TOTALS} as t semi join {_DELTAS} as d on {points.same_keys('t', 'd')}"
        return points.running(f"select * from {_DELTAS}", base)

    def _events(self, points: ChangePoints, ranges: Sequence[tuple[datetime, datetime]], *, late: int | None) -> str:
        """
        Return the SELECT of events.

        Args:
            points: Of the run.
            ranges: The times of those that are read, apart from each other; the last range is up to the last end.
            late: Those from before the last range that became known after it are read, too.
        """
        known = self.run[-1].end
        selects = [points.events(self.sources.rows(ranges, known=known))]
        if late is not None and self._view.sources[0].created_timestamp:
            seen = " or ".join(f"(__time >= {to_micros(low)} and __time < {to_micros(high)})" for low, high in ranges)
            before = self.sources.rows([(reads_from(self._view, self.run[0]), ranges[-1][0])], known=known)
            selects.append(f"select * from ({points.events(before)}) where __known > {late} and not ({seen})")
        return "\nunion all\n".join(selects)

    def _redo(self, redone: Redone) -> None:
        """Find the values of aggregates at the points among the events of their keys."""
        first, last = to_micros(self.run[0].end), to_micros(self.run[-1].end)
        ranges = _joined([(from_micros(low), from_micros(high)) for low, high in redone.ranges(first, last) if low < high])
        late = redone.block.start if redone.block is not None and redone.shared else None
        events = self._events(redone.points, ranges, late=late)
        self._create(_EVENTS, f"select e.* from ({events}) as e semi join {_POINTS} as p on {redone.points.same_keys('e', 'p')}")
        self._create(_REDONE, redone.values(_POINTS, _EVENTS, _MIDDLE))

    def _repair(self, points: ChangePoints, inexact: str, aggregates: Sequence[Aggregate]) -> None:
        """Put in the sums and means of windows that hold values which no running total can."""
        view = self._view
        self._create(_POINTS, f"select {points.renamed}epoch_us(event_timestamp) as __end from temp.{RESULT} where {inexact} <> 0")
        self._redo(Redone(points, aggregates, None))
        same = "".join(f" and t.{quote(name)} = r.{key}" for key, name in zip(points.keys, view.entity.join_keys, strict=True))
        values = ", ".join(f"{quote(one.name)} = r.{quote(one.name)}" for one in aggregates)
        self._connection.execute(
            f"update temp.{RESULT} as t set {values} from {_REDONE} as r where epoch_us(t.event_timestamp) = r.__end{same}"
        )

    def read_by_end(self, latest: int | None) -> tuple[list[int | None], list[int]]:
        """
        Return for each window what was read for it.

        Args:
            latest: Newest source time that a window before these could know.

        Returns:
            The newest source time among the rows that it, or one before it, could know; and how many of its own rows lacked a key.
        """
        points, first, last = self._points, self.run[0], self.run[-1]
        oldest, source = reads_from(self._view, first), self._view.sources[0]
        at, known = f"epoch_us(s.{quote(source.timestamp or '')})", f"epoch_us({known_from(self._view, 's')})"
        entered = f"{known} > {points.ends.after}" if self._is_built_on else "true"
        lacks = " or ".join(f"s.{quote(key)} is null" for key in self._view.entity.join_keys) or "false"
        spans = [(first.start if self._is_built_on else oldest, last.end)]
        if self._is_built_on and source.created_timestamp:
            spans.append((oldest, first.start))
        newest, dropped = dict[int, int](), dict[int, int]()
        for span in spans:
            rows = self._connection.execute(
                f"select {points.ends.first_from(known)}, {points.ends.first_from(f'({at} + 1)')}, "
                f"max({at}) filter (where {entered}), count(*) filter (where ({lacks}) and {at} >= {to_micros(first.start)}) "
                f"from ({self.sources.rows([span], known=last.end)}) as s group by 1, 2"
            ).fetchall()
            for enter, own, at_most, lacking in rows:
                if at_most is not None:
                    newest[enter] = max(at_most, newest.get(enter, at_most))
                dropped[own] = dropped.get(own, 0) + lacking
        every: list[int | None] = []
        for window in self.run:
            latest = max((one for one in (latest, newest.get(to_micros(window.end))) if one is not None), default=None)
            every.append(latest)
        return every, [dropped.get(to_micros(window.end), 0) for window in self.run]


def _joined(ranges: Sequence[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Return ranges of time without overlaps, oldest first."""
    joined: list[tuple[datetime, datetime]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined
