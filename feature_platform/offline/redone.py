"""
Aggregates without a running total: the SQL of their values at change points, from the events that are inside then.

An extreme, or a set, cannot be taken back. But the ends of a `Block` share most of their events: what those come to is found
once, as the block's middle, and each end adds its own few events to it (as the back stack of the two-stacks algorithm for
sliding windows: Tangwongsan, Hirzel, Schneider, "In-order sliding-window aggregation in worst-case constant time", 2021).
Knows SQL. Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

from feature_platform.dtypes import MICROSECOND, to_micros
from feature_platform.offline.query import quote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from feature_platform.model import Aggregate
    from feature_platform.offline.change_points import ChangePoints
    from feature_platform.windows import Window

__all__ = ["Block", "Redone"]


@dataclass(frozen=True)
class Block:
    """
    The ends in `(start, start + width]`, UTC microseconds: windows that end there and are longer than `width` share their middle.

    Reading the rest costs `width` of events at each end, and the middle a window's events once a block: least where the width
    is the geometric mean of a window's length and the time between two ends, and a multiple of that.
    """

    start: int
    width: int

    @classmethod
    def of(cls, window: Window, longest: timedelta) -> Block:
        """Return the block that a window's end lies in, for aggregates as long as `longest`."""
        period = (window.end - window.start) // MICROSECOND
        width = period * max(1, isqrt(longest // MICROSECOND // period))
        return cls((to_micros(window.end) - 1) // width * width, width)

    def holds(self, window: Window) -> bool:
        """Say whether a window's end lies in it."""
        return self.start < to_micros(window.end) <= self.start + self.width

    def has_middle(self, aggregate: Aggregate) -> bool:
        """Say whether the windows of an aggregate are long enough to share any event."""
        return aggregate.window // MICROSECOND > self.width

    def low(self, aggregate: Aggregate) -> int:
        """Return the first instant of an aggregate's middle, which ends before the block's start."""
        return self.start + self.width - aggregate.window // MICROSECOND


@dataclass(frozen=True)
class Redone:
    """
    The statements.

    Attributes:
        points: Of the run.
        aggregates: Which.
        block: That the ends lie in; None reads all events at each of them.
    """

    points: ChangePoints
    aggregates: Sequence[Aggregate]
    block: Block | None

    @property
    def shared(self) -> list[Aggregate]:
        """The aggregates that have a middle."""
        return [one for one in self.aggregates if self.block is not None and self.block.has_middle(one)]

    def ranges(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the times of the events that are read beside the middle, for ends from the first to the last one."""
        found = [(first - one.window // MICROSECOND, last) for one in self.aggregates if one not in self.shared]
        if self.block is not None and self.shared:
            start = self.block.start
            found += [(min(first - one.window // MICROSECOND, low), low) for one in self.shared for low in [self.block.low(one)]]
            found.append((start, last))
        return found

    def middle(self, events: str) -> str:
        """
        Return the SELECT of the middle: our keys, and what each aggregate that has one comes to.

        Args:
            events: A SELECT of the events from the longest middle's first instant to the block's start, as far as they were known then.
        """
        assert self.block is not None  # noqa: S101 - without one there is no middle
        keys = self.points.keys
        listed = "".join(f"e.{key}, " for key in keys)
        values = [f"{self._partial(one, f'e.__time >= {self.block.low(one)}')} as {self._name('mid', one)}" for one in self.shared]
        grouped = f"\ngroup by {', '.join(f'e.{key}' for key in keys)}" if keys else ""
        return f"select {listed}{', '.join(values)}\nfrom ({events}) as e{grouped}"

    def values(self, points: str, events: str, middle: str) -> str:
        """
        Return the SELECT of the values at the points: our keys, `__end`, each value by its feature's name.

        Args:
            points: A table of keys and ends.
            events: A table of events of those keys: all in `ranges`, and what became known of others since the block's start.
            middle: A table as of `middle`, where there is one.
        """
        keys = self.points.keys
        of_points = "".join(f"p.{key}, " for key in keys)
        longest = max(one.window for one in self.aggregates) // MICROSECOND
        own = [f"{self._partial(one, self._beside(one))} as {self._name('own', one)}" for one in self.aggregates]
        inside = f"e.__known <= p.__end and e.__time >= p.__end - {longest}"
        grouped = (
            f"select {of_points}p.__end, {', '.join(own)}\nfrom {points} as p\n"
            f"left join {events} as e on {self.points.same_keys('e', 'p')} and {inside}\ngroup by {of_points}p.__end"
        )
        joined = f"\nleft join {middle} as m on {self.points.same_keys('r', 'm')}" if self.shared else ""
        values = [f"cast({self._value(one)} as {one.type.duckdb}) as {quote(one.name)}" for one in self.aggregates]
        return f"select {''.join(f'r.{key}, ' for key in keys)}r.__end, {', '.join(values)}\nfrom ({grouped}) as r{joined}"

    def _name(self, kind: str, aggregate: Aggregate) -> str:
        return f"__{kind}{self.points.layout.aggregates.index(aggregate)}"

    def _beside(self, aggregate: Aggregate) -> str:
        """Return the condition of an event that is inside at a point and not in the middle."""
        inside = f"e.__time >= p.__end - {aggregate.window // MICROSECOND}"
        if self.block is None or aggregate not in self.shared:
            return inside
        start = self.block.start
        return f"{inside} and (e.__time < {self.block.low(aggregate)} or e.__time >= {start} or e.__known > {start})"

    def _partial(self, aggregate: Aggregate, inside: str) -> str:
        """Return SQL for what some events come to, in a form that `_value` can put together with another one."""
        layout = self.points.layout
        value = f"e.__value{layout.column(aggregate)}"
        counts = f"{inside} and e.__counts{layout.condition(aggregate)}"
        only, there = f"filter (where {counts})", f"filter (where {counts} and {value} is not null)"
        pair = f"{{'__at': e.__time, '__value': {value}}}"
        match aggregate.function:
            case "sum" | "mean":
                # In one order, or the last bits of a sum would differ from run to run; fsum turns infinities into NaN.
                total = f"fsum({value} order by e.__time, {value}) {only}"
                total = f"case when isfinite({total}) then {total} else sum({value} order by e.__time, {value}) {only} end"
                return f"coalesce({total}, 0)" if aggregate.function == "sum" else f"({total}) / nullif(count({value}) {only}, 0)"
            case "count_distinct":
                return f"list(distinct {value}) {there}"
            case "last_n":
                return f"max({pair}, {aggregate.n}) {there}"
            case "first" | "last":
                return f"{'min' if aggregate.function == 'first' else 'max'}({pair}) {there}"
            case function:
                return f"{function}({value}) {only}"

    def _value(self, aggregate: Aggregate) -> str:
        """Return SQL for the value of what the events at a point come to, and those of the middle."""
        own, middle = f"r.{self._name('own', aggregate)}", f"m.{self._name('mid', aggregate)}"
        is_shared = aggregate in self.shared
        match aggregate.function:
            case "count_distinct":
                new = f"list_filter({own}, lambda one: not coalesce(list_contains({middle}, one), false))" if is_shared else own
                return f"coalesce(len({new}), 0)" + (f" + coalesce(len({middle}), 0)" if is_shared else "")
            case "last_n":
                newest = f"nullif(list_slice(list_reverse_sort(list_concat({own}, {middle})), 1, {aggregate.n}), [])" if is_shared else own
                return f"list_transform({newest}, lambda one: one.__value)"
            case "first" | "last":
                extreme = "least" if aggregate.function == "first" else "greatest"
                return f"({extreme}({own}, {middle})).__value" if is_shared else f"({own}).__value"
            case "min" | "max":
                extreme = "least" if aggregate.function == "min" else "greatest"
                return f"{extreme}({own}, {middle})" if is_shared else own
            case _:
                return own
