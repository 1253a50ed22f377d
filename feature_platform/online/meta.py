"""
The meta of one view in the online store: what was pushed last, and how its rows are to be read.

A reader takes it before or with the rows; a materialization moves it after the last one. Knows no server and no view.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from feature_platform.dtypes import to_micros
from feature_platform.errors import OnlineStoreError
from feature_platform.online.layout import pack_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

__all__ = ["Schemas", "ViewMeta"]

Schemas: TypeAlias = "Mapping[str, Sequence[Sequence[str]]]"
"""Definition hash to the names and dtypes of its features, in the order that its rows hold them."""

_IN_HEAD: Final = ("generation", "materialized_at", "definition")
_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMeta:
    """
    What one materialization leaves behind for readers. Instants are UTC microseconds.

    Attributes:
        generation: The view's generation, read before its rows were.
        materialized_at: The moment whose truth was pushed.
        definition: Hash of the view's definition when it was pushed.
        as_of: Window views: the greatest window end that existed then.
        newest_full: Window views: the end of the newest full partition that existed then; older rows do not count.
        full_generation: Generation of the last push of all rows; rows of earlier generations do not count.
        full_at: When that was, as `materialized_at`.
        files: How many partitions existed then, if all were of one definition: the next push can tell what changed since.
        ttl: Of the view then, in microseconds: the server's own expiry went by it.
        rows: How many the last push wrote that wrote any.
        removed: How many keys lost their value in it.
        newest_source_timestamp: The age of the data itself: of a window view, the newest source row that was read; of an event view,
            the newest row that is served.
        schemas: See `Schemas`.
        run_id: Of Dagster.
        partition: The newest one that was pushed.
    """

    generation: int
    materialized_at: int
    definition: str
    as_of: int | None = None
    newest_full: int | None = None
    full_generation: int = 0
    full_at: int = 0
    files: int | None = None
    ttl: int | None = None
    rows: int = 0
    removed: int = 0
    newest_source_timestamp: int | None = None
    schemas: Schemas = field(default_factory=dict)
    run_id: str | None = None
    partition: str | None = None

    def age_seconds(self, now: datetime) -> float:
        """Return the age of the data: since the newest source row that was read, else the as-of, else the materialization."""
        newest = next(one for one in (self.newest_source_timestamp, self.as_of, self.materialized_at) if one is not None)
        return round((to_micros(now) - newest) / 1e6, 3)

    def to_bytes(self) -> bytes:
        """Return the value to store: the head of a row, so that the same script guards it, and the rest by name."""
        rest = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _IN_HEAD}
        return pack_head(1, self.generation, self.materialized_at, self.definition) + _encode(rest)

    @classmethod
    def from_bytes(cls, value: bytes) -> ViewMeta:
        """
        Read a stored value; fields that a later version added are passed over.

        Raises:
            OnlineStoreError: It is not a meta.
        """
        try:
            generation, materialized_at, definition, _, rest, *_ = _decode(value)
            known: dict[str, Any] = {one.name: rest[one.name] for one in fields(cls) if one.name in rest}
            return cls(generation=generation, materialized_at=materialized_at, definition=definition, **known)
        except (msgspec.DecodeError, TypeError, ValueError) as exc:
            message = "the meta of a view in the online store cannot be read.\nRun 'fp rebuild-online' to write it again."
            raise OnlineStoreError(message) from exc
