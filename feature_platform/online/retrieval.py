"""
Online reads: which keys a question needs, and what their values answer.

Pure functions around one `get_many`, so that the blocking SDK and the async API share every rule: which rows count, how old
is too old, what a default replaces. Knows no server.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import pyarrow as pa

from feature_platform.dtypes import MICROSECOND, Dtype, from_micros, to_micros
from feature_platform.errors import NameClashError, NotMaterializedError
from feature_platform.model import FeatureService, FeatureStatus, FeatureView
from feature_platform.online.codec import Places, ViewCodec
from feature_platform.online.entity_rows import EntityRows, checked_rows
from feature_platform.online.layout import DEFINITION_ITEM, TIME_ITEM, read_head
from feature_platform.online.meta import ViewMeta

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from feature_platform.online.store import OnlineStore
    from feature_platform.registry import FeatureRef, Features, Registry

__all__ = [
    "Column",
    "EntityRows",
    "FeatureStatus",
    "FeatureValue",
    "OnlineFeatures",
    "OnlineQuestion",
    "OnlineRead",
    "ViewProvenance",
    "online_question",
    "plan_online_read",
    "read_online",
    "read_online_async",
]


class FeatureValue(msgspec.Struct, frozen=True, gc=False):
    """
    One answer. A msgspec struct and not a dataclass: a request makes a thousand of them, 8 times as fast.

    Attributes:
        value: The declared default where the status is NOT_FOUND or OUTSIDE_MAX_AGE; None for NULL_VALUE.
        status: What stands behind the value.
        event_timestamp: When the stored value became true; None for NOT_FOUND.
    """

    value: object
    status: FeatureStatus
    event_timestamp: datetime | None = None


Row: TypeAlias = "dict[str, FeatureValue]"


class ViewProvenance(msgspec.Struct, frozen=True):
    """
    Where the values of one view come from: the last push of its history.

    Attributes:
        run_id: The Dagster run that pushed; None where the command line did.
        partition: The newest partition that was pushed.
        code_version: Hash of the view's definition when it was pushed.
        as_of: Of a window view: the end of its newest window then.
        materialized_at: The moment whose truth was pushed.
        age_seconds: Age of the data: since the newest source row that was read, else the as-of, else the materialization.
    """

    run_id: str | None
    partition: str | None
    code_version: str
    as_of: datetime | None
    materialized_at: datetime
    age_seconds: float

    @classmethod
    def of(cls, meta: ViewMeta, now: datetime) -> ViewProvenance:
        """Return what a view's meta says at a moment."""
        return cls(
            run_id=meta.run_id,
            partition=meta.partition,
            code_version=meta.definition,
            as_of=None if meta.as_of is None else from_micros(meta.as_of),
            materialized_at=from_micros(meta.materialized_at),
            age_seconds=meta.age_seconds(now),
        )


class Column(msgspec.Struct, frozen=True):
    """
    The answers of one feature, one per entity row; `FeatureValue` says what they mean.

    Attributes:
        values: With the defaults put in.
        statuses: Of each value.
        times: UTC microseconds of each event; columns of one view share the list where they can.
    """

    values: list[Any]
    statuses: list[FeatureStatus]
    times: list[int | None]


@dataclass
class OnlineFeatures:
    """
    The answers, one per entity row, in the order asked.

    Attributes:
        names: Result columns: the bare feature name, or `view__feature`.
        entity_rows: The join keys asked about.
        columns: The answers, by result column.
        dtypes: Of join keys and result columns.
        views: By view, where its values come from; None unless it was asked for.
    """

    names: tuple[str, ...]
    entity_rows: list[dict[str, Any]]
    columns: dict[str, Column]
    dtypes: dict[str, Dtype] = field(repr=False)
    views: dict[str, ViewProvenance] | None = None

    @cached_property
    def rows(self) -> list[Row]:
        """The answers by row, then by result column; made when first asked for."""
        columns = []
        for name in self.names:
            column = self.columns[name]
            instants = [None if time is None else from_micros(time) for time in column.times]
            columns.append(list(map(FeatureValue, column.values, column.statuses, instants)))
        return [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return columns: join keys first, then the features."""
        keys = [name for name in self.dtypes if name not in self.columns]
        columns: dict[str, list[Any]] = {name: [row[name] for row in self.entity_rows] for name in keys}
        return columns | {name: self.columns[name].values for name in self.names}

    def to_pandas(self) -> pd.DataFrame:
        """Return the same as a DataFrame; ints, bools and strs are nullable there, so that nothing turns into a float."""
        import pandas as pd  # noqa: PLC0415 - the API process does without

        columns = {}
        for name, values in self.to_dict().items():
            columns[name] = pd.Series(values, dtype=_pandas_dtype(self.dtypes[name]), name=name)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self.entity_rows)))


class OnlineQuestion:
    """
    The features of a question, resolved: made once, asked about any rows.

    Args:
        registry: Declares the features.
        project: Prefix of the keys.
        features: References, a service, or a service's name.
        full_feature_names: Whether result columns are named `view__feature`.

    Attributes:
        refs: The features, in the order asked.
        join_keys: That rows must have.

    Raises:
        UnknownNameError: A feature or service that is not declared.
        RegistryError: A bare name that several views have, or no feature at all.
        NameClashError: Two result columns, or one and a join key, would have one name.
    """

    def __init__(self, registry: Registry, project: str, features: Features, *, full_feature_names: bool = False) -> None:
        self.refs = registry.resolve(features, full_feature_names=full_feature_names)
        self.join_keys = registry.join_keys(self.refs)
        for ref in self.refs:
            if ref.column in self.join_keys:
                message = f"feature {ref} has the name of a join key.\nUse full_feature_names=True."
                raise NameClashError(message, name=ref.column)
        by_view: dict[str, list[FeatureRef]] = {}
        for ref in self.refs:
            by_view.setdefault(ref.view.name, []).append(ref)
        self._views = [_ViewReader(_codec(registry, project, refs[0].view), refs) for refs in by_view.values()]
        self._metas = [view.codec.meta_key for view in self._views]
        self._names = tuple(ref.column for ref in self.refs)
        self._dtypes = self.join_keys | {ref.column: ref.feature.type for ref in self.refs}

    def read(self, rows: list[dict[str, Any]]) -> OnlineRead:
        """Return the read of some rows, whose join keys have been checked."""
        keys, places = list(self._metas), []
        for view in self._views:
            # A global view has one key, however many rows ask for it.
            first, asked = len(keys), rows if view.codec.view.entity.join_keys else rows[:1]
            keys += view.codec.entity_keys(asked)
            places.append(slice(first, len(keys)))
        return OnlineRead(self, rows, keys, places)

    def answer(self, read: OnlineRead, values: Sequence[bytes | None], now: datetime, *, metadata: bool) -> OnlineFeatures:
        """Return the answers of one of its reads; see `OnlineRead.answer`."""
        micros = to_micros(now)
        found: dict[str, Column] = {}
        provenance: dict[str, ViewProvenance] | None = {} if metadata else None
        for view, value, place in zip(self._views, values, read.places, strict=False):  # the metas come first
            if value is None:
                raise NotMaterializedError(view.codec.view.name)
            meta = _read_meta(value)
            stored = values[place]
            view.answer(stored if len(stored) == len(read.rows) else list(stored) * len(read.rows), meta, micros, found)
            if provenance is not None:
                provenance[view.codec.view.name] = ViewProvenance.of(meta, now)
        return OnlineFeatures(self._names, read.rows, found, self._dtypes, provenance)


class OnlineRead(msgspec.Struct, frozen=True):
    """
    A read that has been checked and only waits for its values.

    Attributes:
        question: Whose it is.
        rows: The join keys asked about.
        keys: What to get: the metas of the views, then the rows.
        places: Where each view's rows stand in them.
    """

    question: OnlineQuestion
    rows: list[dict[str, Any]]
    keys: list[bytes]
    places: list[slice]

    def answer(self, values: Sequence[bytes | None], now: datetime, *, metadata: bool = False) -> OnlineFeatures:
        """
        Return the answers that stand in the values of `keys`.

        Args:
            values: One per key, in order.
            now: When the values are used: ttl is judged at it (naive means UTC).
            metadata: Whether the answer says where each view's values come from.

        Raises:
            NotMaterializedError: A view has no meta.
            OnlineStoreError: A value cannot be read.
        """
        return self.question.answer(self, values, now, metadata=metadata)


def online_question(registry: Registry, project: str, features: Features, *, full_feature_names: bool = False) -> OnlineQuestion:
    """Return the question about some features, kept as long as its registry: making one costs more than a read. Raises as it does."""
    kept = _questions.setdefault(registry, {})
    asked: Hashable
    if isinstance(features, str):
        asked = features
    elif isinstance(features, FeatureService):
        asked = features.name if registry.services.get(features.name) is features else None
    else:
        asked = tuple(features) if isinstance(features, (list, tuple)) else None
    if asked is None:
        return OnlineQuestion(registry, project, features, full_feature_names=full_feature_names)
    key = (project, asked, full_feature_names)
    try:
        question = kept.get(key)
    except TypeError:  # something in the list is no name, and is refused by it
        return OnlineQuestion(registry, project, features, full_feature_names=full_feature_names)
    if question is None:
        question = OnlineQuestion(registry, project, features, full_feature_names=full_feature_names)
        if len(kept) >= _QUESTIONS_KEPT:
            kept.clear()
        kept[key] = question
    return question


def plan_online_read(
    registry: Registry, project: str, features: Features, entity_rows: EntityRows, *, full_feature_names: bool = False
) -> OnlineRead:
    """
    Check a question and return the read that answers it.

    Args:
        registry: Declares the features.
        project: Prefix of the keys.
        features: References, a service, or a service's name.
        entity_rows: One mapping of join keys per entity, or join keys to columns; rows may repeat.
        full_feature_names: Whether result columns are named `view__feature`.

    Raises:
        EntityRowsError: A join key is missing, null, not declared or of another dtype.
        FeaturePlatformError: What `OnlineQuestion` raises.
    """
    question = online_question(registry, project, features, full_feature_names=full_feature_names)
    return question.read(checked_rows(entity_rows, question.join_keys))


def read_online(
    registry: Registry,
    store: OnlineStore,
    project: str,
    features: Features,
    entity_rows: EntityRows,
    *,
    now: datetime | None = None,
    full_feature_names: bool = False,
    metadata: bool = False,
    patient: bool = False,
) -> OnlineFeatures:
    """
    Ask the store and return the answers; one trip, however many views and entities.

    Args:
        registry: See `plan_online_read`.
        store: Holds the values.
        project: See `plan_online_read`.
        features: See `plan_online_read`.
        entity_rows: See `plan_online_read`.
        now: When the values are used; None is this moment.
        full_feature_names: See `plan_online_read`.
        metadata: See `OnlineRead.answer`.
        patient: See `OnlineStore.get_many`.

    Raises:
        OnlineStoreError: The store does not answer.
        NotMaterializedError: A view is not in the store.
        FeaturePlatformError: What `plan_online_read` raises.
    """
    read = plan_online_read(registry, project, features, entity_rows, full_feature_names=full_feature_names)
    return read.answer(store.get_many(read.keys, patient=patient), now or datetime.now(UTC), metadata=metadata)


async def read_online_async(
    registry: Registry,
    store: OnlineStore,
    project: str,
    features: Features,
    entity_rows: EntityRows,
    *,
    now: datetime | None = None,
    full_feature_names: bool = False,
    metadata: bool = False,
) -> OnlineFeatures:
    """Do the same without blocking the event loop; see `read_online`."""
    read = plan_online_read(registry, project, features, entity_rows, full_feature_names=full_feature_names)
    return read.answer(await store.get_many_async(read.keys), now or datetime.now(UTC), metadata=metadata)


@lru_cache(maxsize=1024)
def _read_meta(value: bytes) -> ViewMeta:
    """Read a meta; it moves once a materialization and is read with every request."""
    return ViewMeta.from_bytes(value)


class _ViewReader:
    """The part of a question that one view answers."""

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


_GENERATION, _IS_TOMBSTONE = 0, 3
_QUESTIONS_KEPT: Final = 256
_questions: weakref.WeakKeyDictionary[Registry, dict[Hashable, OnlineQuestion]] = weakref.WeakKeyDictionary()
_codecs: weakref.WeakKeyDictionary[Registry, dict[tuple[str, str], ViewCodec]] = weakref.WeakKeyDictionary()


def _codec(registry: Registry, project: str, view: FeatureView) -> ViewCodec:
    """Return the view's codec, kept as long as its registry: making one costs more than a read."""
    of_registry = _codecs.setdefault(registry, {})
    codec = of_registry.get((project, view.name))
    if codec is None or codec.view is not view:
        codec = of_registry[project, view.name] = ViewCodec(project, view)
    return codec


def _pandas_dtype(dtype: Dtype) -> str:
    match dtype.family:
        case "int":
            return f"{'UInt' if pa.types.is_unsigned_integer(dtype.arrow) else 'Int'}{dtype.arrow.bit_width}"
        case "bool":
            return "boolean"
        case "str":
            return "string"
        case "float":
            return f"float{dtype.arrow.bit_width}"
        case "datetime":
            return "datetime64[us, UTC]"
        case _:
            return "object"
