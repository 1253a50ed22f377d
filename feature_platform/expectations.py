"""
What a feature's values are expected to be, declared beside the feature and checked before a partition is promoted.

Knows values and dtypes. Knows no SQL: `offline.gate` asks for all of a view's expectations in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, ClassVar, TypeAlias

from feature_platform.dtypes import Dtype
from feature_platform.errors import DtypeError

__all__ = ["Between", "Expectation", "NotNull", "OneOf", "Unique", "between", "not_null", "one_of", "unique"]

Bound: TypeAlias = "int | float | Decimal | date | str"
_ORDERED = frozenset({"int", "float", "decimal", "date", "datetime", "str"})
_COMPARABLE = _ORDERED | {"bool", "bytes"}


@dataclass(frozen=True)
class NotNull:
    """See `not_null`."""

    at_least: float
    name: ClassVar[str] = "not_null"

    def __str__(self) -> str:
        """Return it as declared."""
        return f"not_null({'' if self.at_least == 1 else self.at_least})"

    def problems(self, dtype: Dtype) -> Iterator[tuple[str, str]]:
        """Yield what contradicts the feature's dtype, and what to write instead."""
        del dtype
        share: object = self.at_least
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            yield f"{self.at_least!r} is no share of the rows", "Write not_null(0.99), more than 0 and at most 1."


@dataclass(frozen=True)
class Between:
    """See `between`."""

    low: Bound
    high: Bound
    name: ClassVar[str] = "between"

    def __str__(self) -> str:
        """Return it as declared."""
        return f"between({self.low!r}, {self.high!r})"

    def problems(self, dtype: Dtype) -> Iterator[tuple[str, str]]:
        """Yield what contradicts the feature's dtype, and what to write instead."""
        if dtype.family not in _ORDERED:
            yield f"values of dtype {dtype} have no order", "Use not_null(), say."
            return
        wrong = list(_wrong_values((self.low, self.high), dtype))
        yield from wrong
        if not wrong and not _comparable(self.low) <= _comparable(self.high):
            yield f"{self.low!r} is not below {self.high!r}", "Write the lesser bound first."


@dataclass(frozen=True)
class OneOf:
    """See `one_of`."""

    values: tuple[object, ...]
    name: ClassVar[str] = "one_of"

    def __str__(self) -> str:
        """Return it as declared."""
        return f"one_of({', '.join(map(repr, self.values))})"

    def problems(self, dtype: Dtype) -> Iterator[tuple[str, str]]:
        """Yield what contradicts the feature's dtype, and what to write instead."""
        if dtype.family not in _COMPARABLE:
            yield f"values of dtype {dtype} cannot be listed", "Use not_null(), say."
        elif not self.values:
            yield "no value is listed", 'Write one_of("casual", "regular"), say.'
        else:
            yield from _wrong_values(self.values, dtype)


@dataclass(frozen=True)
class Unique:
    """See `unique`."""

    name: ClassVar[str] = "unique"

    def __str__(self) -> str:
        """Return it as declared."""
        return "unique()"

    def problems(self, dtype: Dtype) -> Iterator[tuple[str, str]]:
        """Yield what contradicts the feature's dtype, and what to write instead."""
        if dtype.family not in _COMPARABLE:
            yield f"values of dtype {dtype} are not compared", "Use not_null(), say."


Expectation: TypeAlias = NotNull | Between | OneOf | Unique


def not_null(at_least: float = 1.0) -> NotNull:
    """
    Expect values that are not NULL.

    Args:
        at_least: The least share of a partition's rows that must have one: `not_null(0.99)` lets one in a hundred be NULL.
    """
    return NotNull(at_least)


def between(low: Bound, high: Bound) -> Between:
    """Expect every value to lie in `[low, high]`; NULL passes, NaN does not."""
    return Between(low, high)


def one_of(*values: object) -> OneOf:
    """Expect every value to be one of these; NULL passes."""
    return OneOf(values)


def unique() -> Unique:
    """Expect no value twice in a partition; NULL passes."""
    return Unique()


def _comparable(bound: Bound) -> Any:  # noqa: ANN401 - bounds of one dtype compare
    """Return a bound that compares with the other: naive instants are UTC."""
    return bound.replace(tzinfo=UTC) if isinstance(bound, datetime) and bound.tzinfo is None else bound


def _wrong_values(values: tuple[object, ...], dtype: Dtype) -> Iterator[tuple[str, str]]:
    for value in values:
        try:
            dtype.check(value)
        except DtypeError as exc:
            yield str(exc).rstrip("."), f"Write values of dtype {dtype}."
            continue
        if value is None or value != value:  # noqa: PLR0124 - NaN alone differs from itself
            yield f"{value!r} cannot be compared", "Leave it out; NULL is what not_null() is about."
