"""
What the stored values of one view answer: which rows count, how old is too old, what a default replaces.

Knows the view and its meta. Knows no server, and no other view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from feature_platform.dtypes import MICROSECOND
from feature_platform.model import FeatureStatus
from feature_platform.online.answers import Column
from feature_platform.online.layout import DEFINITION_ITEM, TIME_ITEM, read_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_platform.online.codec import Places, ViewCodec
    from feature_platform.online.meta import ViewMeta
    from feature_platform.registry import FeatureRef

__all__ = ["ViewReader"]

_GENERATION, _IS_TOMBSTONE = 0, 3


class ViewReader:
    """
    The part of a question that one view answers.

    Args:
        codec: The view's.
        refs: Its features that are asked for.

    Attributes:
        codec: The view's.
    """

    def __init__(self, codec: ViewCodec, refs: list[FeatureRef]) -> None:
        self.codec = codec
        self._refs = [(ref.column, ref.feature.name, ref.feature.effective_default) for ref in refs]
        self._is_window_view = codec.view.is_window_view
        self._ttl = None if codec.view.ttl is None else codec.view.ttl // MICROSECOND

    def answer(self, stored: Sequence[bytes | None], meta: ViewMeta, now: int, found: dict[str, Column]) -> None:
        """Add the view's answers to those found, given what is stored under each row's key."""
        floor = meta.newest_full if self._is_window_view else None
        rows = self._rows(stored, meta.full_generation, floor)
        times = [None if row is None else row[TIME_ITEM] for row in rows]
        oldest = None if self._ttl is None else now - self._ttl
        is_stale = False
        if oldest is not None and self._is_window_view:
            # An unchanged value is as fresh as the last window that confirmed it.
            is_stale, oldest = meta.as_of is None or meta.as_of < oldest, None
        elif oldest is not None:
            is_stale = any(time is not None and time < oldest for time in times)
        definitions = {row[DEFINITION_ITEM] for row in rows if row is not None}
        places = {one: self.codec.columns_of(one, meta.schemas) for one in definitions}
        if not is_stale and len(places) == 1 and None not in rows:
            (only,) = places.values()
            self._answer_alike(rows, times, only, found)  # type: ignore[arg-type]
        else:
            self._answer_mixed(rows, times, places, oldest, found, is_stale=is_stale)

    def _rows(self, stored: Sequence[bytes | None], full_generation: int, floor: int | None) -> list[list[Any] | None]:
        """Return the items of each value; None for those that the last complete push, or the newest full partition, left out."""
        try:
            rows = self.codec.decode_several(stored)
            if floor is None:
                return [None if row is None or row[_IS_TOMBSTONE] or row[_GENERATION] < full_generation else row for row in rows]
            return [
                None if row is None or row[_IS_TOMBSTONE] or row[_GENERATION] < full_generation or row[TIME_ITEM] < floor else row
                for row in rows
            ]
        except (msgspec.DecodeError, TypeError, LookupError):
            # One is broken or not ours, which decoding it says: a silent NOT_FOUND would hide it.
            return [
                None if value is None or _is_absent(value, full_generation, floor) else self.codec.decode_items(value) for value in stored
            ]

    def _answer_alike(self, rows: list[list[Any]], times: list[int | None], places: Places, found: dict[str, Column]) -> None:
        """Answer where every row has a value that counts, of one definition: nearly always."""
        columns = list(zip(*rows, strict=True))
        present = [FeatureStatus.PRESENT] * len(rows)
        for column, name, default in self._refs:
            if name not in places:
                found[column] = Column([default] * len(rows), [FeatureStatus.NOT_FOUND] * len(rows), [None] * len(rows))
                continue
            index, from_wire = places[name]
            values, statuses = list(columns[index]), present
            if None in values:
                statuses = [FeatureStatus.NULL_VALUE if one is None else FeatureStatus.PRESENT for one in values]
            if from_wire is not None:
                values = [None if one is None else from_wire(one) for one in values]
            found[column] = Column(values, statuses, times)

    def _answer_mixed(
        self,
        rows: list[list[Any] | None],
        times: list[int | None],
        places: dict[str, Places],
        oldest: int | None,
        found: dict[str, Column],
        *,
        is_stale: bool,
    ) -> None:
        """Answer row by row."""
        for column, name, default in self._refs:
            answer = found[column] = Column([], [], [])
            for row, time in zip(rows, times, strict=True):
                place = None if row is None else places[row[DEFINITION_ITEM]].get(name)
                value, status = default, FeatureStatus.NOT_FOUND
                if row is None or place is None or time is None:
                    time = None  # noqa: PLW2901 - there is no event
                elif is_stale and (oldest is None or time < oldest):
                    status = FeatureStatus.OUTSIDE_MAX_AGE
                else:
                    index, from_wire = place
                    value = row[index]
                    status = FeatureStatus.NULL_VALUE if value is None else FeatureStatus.PRESENT
                    if value is not None and from_wire is not None:
                        value = from_wire(value)
                answer.values.append(value)
                answer.statuses.append(status)
                answer.times.append(time)


def _is_absent(value: bytes, full_generation: int, floor: int | None) -> bool:
    head = read_head(value)
    if head is None:
        return False
    return head.is_tombstone or head.generation < full_generation or (floor is not None and head.micros < floor)
