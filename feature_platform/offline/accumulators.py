"""
Accumulators: running totals of an aggregate view that an event changes when it enters a window, and back when it leaves.

They are exact, so that adding and taking away in any order gives the total of what is inside, to the last bit: counts, whole
numbers and decimals by nature, floats as two whole numbers. Knows SQL. Knows no files and no windows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from feature_platform.model import Aggregate, FeatureView
from feature_platform.offline.query import type_family

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from duckdb.sqltypes import DuckDBPyType

__all__ = ["Accumulator", "Layout", "float_parts", "layout_of"]

_VERSION: Final = 1
_SUMMED: Final = frozenset({"sum", "mean"})
_RUNNING: Final = frozenset({"count", *_SUMMED})

# A double below 2^72 is high * 2^-20 + low * 2^-114, two whole numbers below 2^92 and 2^94: every step of the split is exact, and
# 2^32 of them add up within the 126 bits that DECIMAL(38, 0) holds. What is left over, such as NaN, is counted as inexact.
_HIGH_UNIT: Final = 2.0**-20
_LOW_UNIT: Final = 2.0**-114
_LIMIT: Final = 2.0**72
_WHOLE: Final = "decimal(38, 0)"
_LOWS_IN_A_HIGH: Final = 2**94


@dataclass(frozen=True)
class Accumulator:
    """
    One running total.

    Attributes:
        name: Column of a file, hidden: no feature may hold `__`.
        window: Of the aggregates that it serves; with `condition`, the events that it counts.
        condition: Place among `Layout.conditions`.
        column: Place among `Layout.columns`; None counts events.
        kind: "rows", "values", "whole" (the sum of integers or decimals), or "high", "low" and "inexact" of floats.
        stored: The DuckDB type that a file holds it as. Sums are of decimals, never HUGEINT: a cast from one to the other was
            measured at 200 ns, ten times an addition.
    """

    name: str
    window: timedelta
    condition: int
    column: int | None
    kind: str
    stored: str

    def contribution(self, event: str) -> str:
        """Return SQL for what one event adds."""
        value = f"{event}.__value{self.column}"
        match self.kind:
            case "rows":
                return "1::bigint"
            case "values":
                return f"({value} is not null)::bigint"
            case "whole":
                return f"coalesce(cast({value} as {self.stored}), 0)"
            case kind:
                return f"{event}.__{kind}{self.column}"


@dataclass(frozen=True)
class Layout:
    """
    The accumulators of a view, each one once, whatever number of its aggregates share it.

    Attributes:
        aggregates: Of the view, in declared order.
        conditions: Each different `where`, as SQL over the source's columns; "true" where there is none.
        columns: Each different column of the source that an aggregate reads.
        types: Of those columns.
        read_as: The columns that decide a value, each with its type: where there is a condition, all of the source's.
    """

    aggregates: tuple[Aggregate, ...]
    conditions: tuple[str, ...]
    columns: tuple[str, ...]
    types: tuple[DuckDBPyType, ...]
    read_as: tuple[tuple[str, str], ...]

    @cached_property
    def windows(self) -> list[timedelta]:
        """Each different length, rising."""
        return sorted({aggregate.window for aggregate in self.aggregates})

    def condition(self, aggregate: Aggregate) -> int:
        """Return the place of an aggregate's condition."""
        return self.conditions.index(_condition(aggregate))

    def column(self, aggregate: Aggregate) -> int | None:
        """Return the place of an aggregate's column."""
        return None if aggregate.column is None else self.columns.index(aggregate.column)

    @cached_property
    def accumulators(self) -> list[Accumulator]:
        """All of them, in the order of the file's columns."""
        wanted = dict.fromkeys(one for aggregate in self.aggregates for one in self._wanted(aggregate))
        return [
            Accumulator(f"__acc{index}", window, condition, column, kind, self._stored(kind, column))
            for index, (window, condition, column, kind) in enumerate(wanted)
        ]

    def _wanted(self, aggregate: Aggregate) -> list[tuple[timedelta, int, int | None, str]]:
        condition, column = self.condition(aggregate), self.column(aggregate)
        kinds: list[tuple[int | None, str]] = [(None, "rows")]
        if column is not None and aggregate.function in _RUNNING:
            kinds.append((column, "values"))
        if column is not None and aggregate.function in _SUMMED:
            kinds += [(column, kind) for kind in (("high", "low", "inexact") if self.is_float(column) else ("whole",))]
        return [(aggregate.window, condition, column, kind) for column, kind in kinds]

    def _stored(self, kind: str, column: int | None) -> str:
        if kind == "whole" and column is not None and type_family(self.types[column]) == "decimal":
            return f"decimal(38, {dict(self.types[column].children)['scale']})"
        return "bigint" if kind in {"rows", "values", "inexact"} else _WHOLE

    def is_float(self, column: int) -> bool:
        """Say whether a column holds floats."""
        return type_family(self.types[column]) == "float"

    def of(self, aggregate: Aggregate, kind: str) -> str:
        """Return the column of one accumulator of an aggregate."""
        wanted = (aggregate.window, self.condition(aggregate), None if kind == "rows" else self.column(aggregate), kind)
        return next(one.name for one in self.accumulators if (one.window, one.condition, one.column, one.kind) == wanted)

    @property
    def row_bytes(self) -> int:
        """About what a row of results takes in memory."""
        return 16 * (2 + len(self.aggregates) + len(self.accumulators))

    @cached_property
    def hash(self) -> str:
        """16 hex digits: files of another layout, or of columns read as other types, are not built upon."""
        text = repr((_VERSION, self.conditions, self.columns, self.accumulators, self.read_as))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def is_empty(self) -> str:
        """SQL that holds where no window has an event."""
        return " and ".join(f"{one.name} = 0" for one in self.accumulators if one.kind == "rows")

    @cached_property
    def redone(self) -> list[Aggregate]:
        """The aggregates that have no running total: their values are found among the events inside."""
        return [aggregate for aggregate in self.aggregates if aggregate.function not in _RUNNING]

    @cached_property
    def inexact(self) -> dict[str, list[Aggregate]]:
        """By the accumulator of values that do not fit a running total, the sums and means that are found among the events then."""
        found: dict[str, list[Aggregate]] = {}
        for aggregate in self.aggregates:
            column = self.column(aggregate)
            if aggregate.function in _SUMMED and column is not None and self.is_float(column):
                found.setdefault(self.of(aggregate, "inexact"), []).append(aggregate)
        return found

    def value(self, aggregate: Aggregate) -> str:
        """Return SQL for the value of an aggregate that has a running total."""
        if aggregate.function == "count":
            return self.of(aggregate, "rows" if aggregate.column is None else "values")
        column = self.column(aggregate)
        if column is not None and self.is_float(column):
            total = _to_double(self.of(aggregate, "high"), self.of(aggregate, "low"))
        else:
            total = self.of(aggregate, "whole")
        if aggregate.function == "sum":
            return total
        return f"cast({total} as double) / nullif({self.of(aggregate, 'values')}, 0)"


def layout_of(view: FeatureView, types: Mapping[str, DuckDBPyType]) -> Layout:
    """Return the layout of an aggregate view over a source with columns of some types."""
    aggregates = tuple(feature for feature in view.features if isinstance(feature, Aggregate))
    conditions = tuple(dict.fromkeys(_condition(aggregate) for aggregate in aggregates))
    columns = tuple(dict.fromkeys(aggregate.column for aggregate in aggregates if aggregate.column is not None))
    has_condition = any(aggregate.where for aggregate in aggregates)
    read_as = tuple((name, str(kind)) for name, kind in sorted(types.items()) if has_condition or name in columns)
    return Layout(aggregates, conditions, columns, tuple(types[column] for column in columns), read_as)


def _condition(aggregate: Aggregate) -> str:
    return f"({aggregate.where}\n)" if aggregate.where else "true"


def float_parts(value: str, place: int) -> tuple[str, str, list[str]]:
    """
    Return SQL columns of the two whole numbers of a double, in three steps that each read the one before.

    Args:
        value: Column with the double.
        place: Number in the names of the columns.
    """
    fits = f"isfinite({value}) and abs({value}) < {_LIMIT!r}"
    high, low = f"__highest{place}", f"__lowest{place}"
    is_whole = f"coalesce({low} = trunc({low}), false)"
    return (
        f"case when {fits} then trunc({value} * {1 / _HIGH_UNIT!r}) end as {high}",
        f"({value} - {high} * {_HIGH_UNIT!r}) * {1 / _LOW_UNIT!r} as {low}",
        [
            f"case when {is_whole} then {high}::{_WHOLE} else 0 end as __high{place}",
            f"case when {is_whole} then {low}::{_WHOLE} else 0 end as __low{place}",
            f"({value} is not null and not {is_whole})::bigint as __inexact{place}",
        ],
    )


def _to_double(high: str, low: str) -> str:
    """
    Return SQL for the double of two running totals, a function of their exact sum alone, within one unit of its last place.

    Both parts are brought to one sign first: of opposite ones, the rounding of the greater would show in what the smaller leaves.
    What the low part carries is found in doubles: rounded up to a whole, it leaves a small rest of the other sign, as if it were not.
    """
    lows = f"{_LOWS_IN_A_HIGH}::{_WHOLE}"
    carry = f"trunc({low}::double / {float(_LOWS_IN_A_HIGH)!r})::{_WHOLE}"
    whole, rest = f"({high} + {carry})", f"({low} - {carry} * {lows})"
    borrow = f"(case when {whole} > 0 and {rest} < 0 then 1 when {whole} < 0 and {rest} > 0 then -1 else 0 end)"
    return f"(({whole} - {borrow})::double * {_HIGH_UNIT!r} + ({rest} + {borrow} * {lows})::double * {_LOW_UNIT!r})"
