"""
Change points: the SQL of the values of sliding windows at every end where an event enters or leaves one.

An event enters at the first window end after it and leaves at the first end after it has left; between two such ends nothing
is written, and an ASOF join gives exactly the dense answer. Knows SQL. Knows no files.

Every name of its own holds `__`, which no source, join key or feature may: a source's columns may be called anything, and are
read under such names once. Times are whole microseconds, ends are looked up in a list (an ASOF join of ten million events
with 720 ends was measured at 1.7 s, the list at 0.14 s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Final

from feature_platform.dtypes import MICROSECOND, to_micros
from feature_platform.offline.accumulators import Layout, float_parts
from feature_platform.offline.aggregates import known_from
from feature_platform.offline.query import quote
from feature_platform.offline.store import TOMBSTONE

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    import duckdb

    from feature_platform.model import FeatureView

__all__ = ["ChangePoints", "Ends"]

_SLOTS: Final = "feature_platform__ends"
_COMPARED: Final = 2  # ends: so few are compared one by one


@dataclass(frozen=True)
class Ends:
    """
    The ends that a run of windows is about.

    Attributes:
        times: In order: the end before the first window where that window builds on it, then every window's.
        after: Rows are wanted of the ends after it, UTC microseconds.
    """

    times: tuple[int, ...]
    after: int

    @classmethod
    def of(cls, ends: Sequence[datetime], *, built_on: datetime | None) -> Ends:
        """Return the ends of windows that build on what was there at an end before them, or on nothing."""
        times = [to_micros(end) for end in ([] if built_on is None else [built_on]) + list(ends)]
        return cls(tuple(times), times[0] - (built_on is None))

    @property
    def is_one(self) -> bool:
        """Whether rows are wanted of a single end."""
        return sum(end > self.after for end in self.times) == 1

    @cached_property
    def _step(self) -> int:
        return gcd(*(after - before for before, after in pairwise(self.times))) or 1

    def register(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let `first_from` find them."""
        if len(self.times) <= _COMPARED:
            return
        slots: list[int] = []
        for end in self.times:
            slots += [end] * ((end - self.times[0]) // self._step + 1 - len(slots))
        connection.execute(f"set variable {_SLOTS} = ?::bigint[]", [slots])

    def first_from(self, micros: str) -> str:
        """Return SQL for the first end that is not before a time; the first of all for earlier times, NULL after the last."""
        if len(self.times) <= _COMPARED:
            return f"case {' '.join(f'when {micros} <= {end} then {end}' for end in self.times)} end"
        slot = f"greatest(({micros} - {self.times[0] - self._step + 1}) // {self._step}, 0)"
        return f"list_extract(getvariable('{_SLOTS}'), {slot} + 1)"


@dataclass(frozen=True)
class ChangePoints:
    """
    The statements of one run.

    Attributes:
        view: An aggregate view.
        layout: Its accumulators.
        ends: The run's.
    """

    view: FeatureView
    layout: Layout
    ends: Ends

    @cached_property
    def keys(self) -> list[str]:
        """Our names of the join keys."""
        return [f"__key{index}" for index in range(len(self.view.entity.keys))]

    @cached_property
    def renamed(self) -> str:
        """The join keys under our names, as a SQL list with a comma behind each."""
        return "".join(f"{quote(name)} as {key}, " for key, name in zip(self.keys, self.view.entity.join_keys, strict=True))

    def _listed(self, alias: str = "") -> str:
        """Return the keys, each with a comma behind it."""
        return "".join(f"{alias}{key}, " for key in self.keys)

    def same_keys(self, left: str, right: str) -> str:
        """Return the condition that two rows are of one key."""
        return " and ".join(f"{left}.{key} = {right}.{key}" for key in self.keys) or "true"

    def events(self, rows: str | None = None) -> str:
        """
        Return the SELECT of events under our names; `__known` is the first instant at which a window's end can count the event.

        Args:
            rows: A SELECT of source rows; None for those that the source view shows.
        """
        source = self.view.sources[0]
        columns = [
            f"cast(s.{quote(name)} as {dtype.duckdb}) as {key}"
            for key, (name, dtype) in zip(self.keys, self.view.entity.keys.items(), strict=True)
        ]
        columns += [f"epoch_us(s.{quote(source.timestamp or '')}) as __time", f"epoch_us({known_from(self.view, 's')}) as __known"]
        for index, column in enumerate(self.layout.columns):
            columns.append(f"{self._read(index, f's.{quote(column)}')} as __value{index}")
        columns += [f"coalesce({condition}, false) as __counts{index}" for index, condition in enumerate(self.layout.conditions)]
        relevant = "true" if "true" in self.layout.conditions else " or ".join(self.layout.conditions)
        not_null = "".join(f"s.{quote(key)} is not null and " for key in self.view.entity.join_keys)
        shown = quote(source.name) if rows is None else f"({rows})"
        return f"select {', '.join(columns)}\nfrom {shown} as s\nwhere {not_null}({relevant})"

    def _read(self, column: int, value: str) -> str:
        """Return a column as the accumulators need it; a float that is wide enough for every step of its split."""
        if self.layout.is_float(column) and any(one.column == column and one.kind == "high" for one in self.layout.accumulators):
            return f"{value}::double"
        return value

    def _in_parts(self, events: str, *columns: str) -> str:
        """Return the SELECT of the events known at the last end, with further columns and the whole numbers of floats."""
        highs, lows, parts = [], [], list[str]()
        for column in sorted({one.column for one in self.layout.accumulators if one.kind == "high" and one.column is not None}):
            high, low, rest = float_parts(f"__value{column}", column)
            highs.append(high)
            lows.append(low)
            parts += rest
        select = f"select {', '.join(['*', *columns, *highs])} from ({events}) where __known <= {self.ends.times[-1]}"
        if not parts:
            return select
        return f"select {', '.join(['*', *parts])} from (select {', '.join(['*', *lows])} from ({select}))"

    def _lifetimes(self, events: str) -> str:
        """Return the SELECT of events with the end at which each one enters and, for each length, leaves."""
        leaves = [
            f"{self.ends.first_from(f'(__time + {length // MICROSECOND + 1})')} as __leave{index}"
            for index, length in enumerate(self.layout.windows)
        ]
        return self._in_parts(events, f"{self.ends.first_from('__known')} as __enter", *leaves)

    def deltas(self, events: str) -> str:
        """Return the SELECT of what enters and leaves at each end: our keys, `__end`, what each accumulator gains."""
        sums = ", ".join(f"sum({one.name}) as {one.name}" for one in self.layout.accumulators)
        grouped = f"select {self._listed()}__end, {sums}\nfrom ({{}})\ngroup by {self._listed()}__end"
        if self.ends.is_one:
            return grouped.format(self._gains(events))
        return f"with __events as not materialized ({self._lifetimes(events)})\n" + grouped.format(self._comings_and_goings())

    def _gains(self, events: str) -> str:
        """Return the SELECT of what each event changes at the only end, in one pass: it enters a window there, or leaves it."""
        after, end = self.ends.after, self.ends.times[-1]
        signs, gains = [], []
        for length in self.layout.windows:
            leaves = f"__time + {length // MICROSECOND}"
            entered = f"case when {leaves} >= {end} then 1 else 0 end"
            left = f"case when {leaves} between {after} and {end - 1} then -1 else 0 end"
            # Where nothing is built on, everything enters.
            signs.append(f"case when __known > {after} then {entered} else {left} end" if len(self.ends.times) > 1 else entered)
        for one in self.layout.accumulators:
            sign, value = f"e.__sign{self.layout.windows.index(one.window)}", one.contribution("e")
            gain = f"case {sign} when 1 then {value} when -1 then -({value}) else 0 end"
            gains.append(f"case when e.__counts{one.condition} then {gain} else 0 end as {one.name}")
        changes = [f"({self._any_counts(length)} and e.__sign{index} <> 0)" for index, length in enumerate(self.layout.windows)]
        signed = self._in_parts(events, *(f"{sign} as __sign{index}" for index, sign in enumerate(signs)))
        return f"select {self._listed('e.')}{end}::bigint as __end, {', '.join(gains)}\nfrom ({signed}) as e\nwhere {' or '.join(changes)}"

    def _comings_and_goings(self) -> str:
        """Return the SELECT of what each of `__events` changes at the ends where it enters and leaves."""
        gains = []
        for one in self.layout.accumulators:
            is_inside = f"{self._inside(self.layout.windows.index(one.window))} and e.__counts{one.condition}"
            gains.append(f"case when {is_inside} then {one.contribution('e')} else 0 end as {one.name}")
        anywhere = " or ".join(
            f"({self._inside(index)} and {self._any_counts(length)})" for index, length in enumerate(self.layout.windows)
        )
        entering = f"e.__enter > {self.ends.after} and ({anywhere})"
        selects = [f"select {self._listed('e.')}e.__enter as __end, {', '.join(gains)}\nfrom __events as e\nwhere {entering}"]
        for index, length in enumerate(self.layout.windows):
            losses = [
                f"case when e.__counts{one.condition} then -({one.contribution('e')}) else 0 end as {one.name}"
                if one.window == length
                else f"0 as {one.name}"
                for one in self.layout.accumulators
            ]
            selects.append(
                f"select {self._listed('e.')}e.__leave{index} as __end, {', '.join(losses)}\nfrom __events as e\n"
                f"where e.__enter < e.__leave{index} and {self._any_counts(length)}"
            )
        return "\nunion all\n".join(selects)

    def _inside(self, index: int) -> str:
        """Return the condition that an event is in the window of some length at the end where it enters."""
        return f"(e.__leave{index} is null or e.__enter < e.__leave{index})"

    def _any_counts(self, length: timedelta) -> str:
        conditions = sorted({one.condition for one in self.layout.accumulators if one.window == length})
        return "(" + " or ".join(f"e.__counts{index}" for index in conditions) + ")"

    @property
    def accumulators(self) -> str:
        """The columns of the running totals, as a SQL list."""
        return ", ".join(one.name for one in self.layout.accumulators)

    def running(self, deltas: str, base: str | None) -> str:
        """
        Return the SELECT of the accumulators at each change point.

        Args:
            deltas: A SELECT as of `deltas`.
            base: A SELECT of our keys and what they had at the end before the first delta; None where they had nothing.
        """
        if self.keys and base is not None and self.ends.is_one:  # nothing runs: each key that gained has one row in both
            totals = ", ".join(f"d.{one.name} + coalesce(t.{one.name}, 0) as {one.name}" for one in self.layout.accumulators)
            joined = f"({deltas}) as d left join ({base}) as t on {self.same_keys('d', 't')}"
            return f"select {self._listed('d.')}d.__end, {totals}\nfrom {joined}"
        if base is None:
            everything = deltas
        else:
            everything = (
                f"{deltas}\nunion all by name\nselect {self._listed()}{self.ends.after} as __end, {self.accumulators} from ({base})"
            )
        sums = ", ".join(f"sum({one.name}) over __run as {one.name}" for one in self.layout.accumulators)
        partition = f"partition by {', '.join(self.keys)} " if self.keys else ""
        return (
            f"select * from (select {self._listed()}__end, {sums}\nfrom ({everything})\n"
            f"window __run as ({partition}order by __end rows between unbounded preceding and current row))\n"
            f"where __end > {self.ends.after}"
        )

    def rows(self, points: str, *, redone: str | None) -> str:
        """
        Return the SELECT of the rows of files, in order of their ends where there are several.

        Args:
            points: A table or SELECT in parentheses as of `running`.
            redone: A table as of `Redone.values`, of the values that have no running total.
        """
        named = "".join(f"p.{key} as {quote(name)}, " for key, name in zip(self.keys, self.view.entity.join_keys, strict=True))
        values = [
            f"r.{quote(one.name)}"
            if one in self.layout.redone
            else f"cast({self.layout.value(one)} as {one.type.duckdb}) as {quote(one.name)}"
            for one in self.layout.aggregates
        ]
        hidden = [f"cast(p.{one.name} as {one.stored}) as {one.name}" for one in self.layout.accumulators]
        joined = f" left join {redone} as r on {self.same_keys('p', 'r')} and p.__end = r.__end" if redone else ""
        ordered = "" if self.ends.is_one else f"\norder by {', '.join(['p.__end', *(f'p.{key}' for key in self.keys)])}"
        return (
            f"select {named}make_timestamp(p.__end) as event_timestamp,\n{', '.join(values)},\n"
            f"{self.layout.is_empty} as {quote(TOMBSTONE)},\n{', '.join(hidden)}\nfrom {points} as p{joined}{ordered}"
        )
