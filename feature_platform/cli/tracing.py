"""
Where a served value comes from: its row online, the partition file that holds it, and the push between the two.

Reads both stores and changes neither. Knows nothing of how a trace is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from feature_platform.cli.output import ago, instant
from feature_platform.dtypes import from_micros, to_micros
from feature_platform.model import FeatureStatus, FeatureView, ViewKind
from feature_platform.offline.history import KNOWN, history_of
from feature_platform.offline.query import configure, quote
from feature_platform.offline.store import TOMBSTONE, OfflineStore, Partition
from feature_platform.online.answers import FeatureValue, OnlineFeatures, ViewProvenance
from feature_platform.online.layout import read_head
from feature_platform.online.meta import ViewMeta
from feature_platform.online.retrieval import plan_online_read
from feature_platform.wording import span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from feature_platform.dtypes import Dtype
    from feature_platform.online.layout import Head
    from feature_platform.online.store import OnlineStore
    from feature_platform.registry import FeatureRef, Registry
    from feature_platform.settings import Settings

__all__ = ["Trace", "trace_value"]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """
    One value, and what stands behind it.

    Attributes:
        ref: Which feature.
        served: What a read answers; None where the view is not in the online store, and a read is refused.
        reason: Why it is so, as a sentence.
        push: The last push of the view; None where there was none.
        is_behind: Whether the history was written since that push.
        partition: What the footer of the file says in which the row stands; None where the row stands in none.
        path: That file.
        in_file: The value that the file holds; None where it holds no row of the entity at that time.
        agrees: Whether that is what the online store holds; None where it holds no row.
        advice: What to do where the two do not agree.
    """

    ref: FeatureRef
    served: FeatureValue | None
    reason: str
    push: ViewProvenance | None = None
    is_behind: bool = False
    partition: Partition | None = None
    path: Path | None = None
    in_file: FeatureValue | None = None
    agrees: bool | None = None
    advice: str | None = None


def trace_value(
    registry: Registry, settings: Settings, online: OnlineStore, ref: FeatureRef, entity: Mapping[str, object], now: datetime
) -> Trace:
    """
    Follow one value back to its partition file.

    Args:
        registry: Declares the feature.
        settings: Of the project.
        online: Holds the value.
        ref: The feature.
        entity: Its entity's join keys, of their dtypes; others are left aside.
        now: When the value is used.

    Raises:
        OnlineStoreError: The store does not answer.
    """
    view = ref.view
    keys = {name: entity[name] for name in view.entity.join_keys}
    # By its full name, which no join key has.
    plan = plan_online_read(registry, settings.project, [str(ref)], [keys], full_feature_names=True)
    stored_meta, stored = online.get_many(plan.keys, patient=True)
    history = _History(OfflineStore(settings.offline_root), view, ref.feature.name, keys)
    if stored_meta is None:
        known = history.newest()
        seen = f"its history has a row of {instant(known.event_timestamp)}" if known else "its history has no row of this entity"
        return Trace(ref=ref, served=None, reason=f"the view is not in the online store: run fp materialize {view.name}; {seen}")
    meta = ViewMeta.from_bytes(stored_meta)
    served = _only(plan.answer([stored_meta, stored], now))
    found = _Found(view, meta, served, read_head(stored) if stored else None, now)
    push = ViewProvenance.of(meta, now)
    is_behind = history.store.generation(view) > meta.generation
    if served.event_timestamp is None:
        row = history.newest()
        partition = row.partition if row else None
        path = history.store.file(view, partition) if partition else None
        reason = found.why_not_there(row)
        return Trace(ref=ref, served=served, reason=reason, push=push, is_behind=is_behind, partition=partition, path=path)
    partition = history.partition_of(served.event_timestamp)
    row = history.row_at(partition, served.event_timestamp, from_micros(meta.materialized_at)) if partition else None
    # At its own time nothing is past its ttl, so this is what is stored and not a default.
    stored_value = _only(plan.answer([stored_meta, stored], served.event_timestamp)).value
    agrees = row is not None and row.is_known and _same(ref.feature.type, row.value, stored_value)
    return Trace(
        ref=ref,
        served=served,
        reason=found.why_there(row),
        push=push,
        is_behind=is_behind,
        partition=partition,
        path=history.store.file(view, partition) if partition else None,
        in_file=row.as_value() if row else None,
        agrees=agrees,
        advice=None if agrees else _advice(view, partition, meta),
    )


@dataclass(frozen=True)
class _Row:
    """A row of the history: the feature's value, and the row's times."""

    partition: Partition
    event_timestamp: datetime
    created_timestamp: datetime | None
    is_tombstone: bool
    is_known: bool
    value: object

    def as_value(self) -> FeatureValue:
        status = FeatureStatus.NULL_VALUE if self.value is None else FeatureStatus.PRESENT
        return FeatureValue(self.value, status if self.is_known else FeatureStatus.NOT_FOUND, self.event_timestamp)


class _History:
    """One entity's rows in the files of a view."""

    def __init__(self, store: OfflineStore, view: FeatureView, feature: str, keys: Mapping[str, object]) -> None:
        self.store = store
        self._view, self._feature, self._keys = view, feature, keys
        self._partitions = store.partitions(view)

    def partition_of(self, moment: datetime) -> Partition | None:
        """Return the partition in which a row of this event_timestamp stands: the window that ends then, or that holds it."""
        micros, is_window = to_micros(moment), self._view.is_window_view
        holds = (one for one in self._partitions if (one.end == micros if is_window else one.start <= micros < one.end))
        return next(holds, None)

    def row_at(self, partition: Partition, moment: datetime, known_at: datetime) -> _Row | None:
        """Return the row of that time in a partition, as it was known at another."""
        return self._first([partition], moment, known_at)

    def newest(self) -> _Row | None:
        """Return the newest row in the whole history."""
        return self._first(self._partitions)

    def _first(self, partitions: Sequence[Partition], moment: datetime | None = None, known_at: datetime | None = None) -> _Row | None:
        view, name = self._view, self._feature
        sql = history_of(view, self.store, partitions, [name])
        if sql.sql is None:
            return None
        conditions = [f"{quote(key)} = cast(? as {dtype.duckdb})" for key, dtype in view.entity.keys.items()]
        values: list[object] = list(self._keys.values())
        order = "event_timestamp desc"
        if moment is not None:
            conditions.append("event_timestamp = cast(? as timestamp)")
            values.append(moment)
        created = "created_timestamp" if view.has_created_timestamp else "null::timestamp"
        if view.has_created_timestamp:
            order += ", created_timestamp desc nulls last"
            if known_at is not None:
                conditions.append("(created_timestamp is null or created_timestamp <= cast(? as timestamp))")
                values.append(known_at)
        gone = quote(TOMBSTONE) if view.kind is ViewKind.AGGREGATE else "false"
        known = quote(name + KNOWN) if name in sql.partial else "true"
        select = f"select event_timestamp, {created}, {gone}, {known}, {quote(name)} from ({sql.sql})"
        where = " and ".join(conditions) or "true"
        with duckdb.connect(":memory:") as connection:
            configure(connection)
            table = connection.sql(f"{select} where {where} order by {order} limit 1", params=values).to_arrow_table()
        if not table.num_rows:
            return None
        times = [table.column(place).cast(pa.timestamp("us", tz="UTC"))[0].as_py() for place in (0, 1)]
        # As it would come back from the online store, so that the two can be compared.
        value = view.feature_by_name[name].type.normal(table.column(4)[0].as_py())
        partition = self.partition_of(times[0])
        if partition is None:  # a file of an earlier schedule
            return None
        return _Row(partition, times[0], times[1], bool(table.column(2)[0].as_py()), bool(table.column(3)[0].as_py()), value)


@dataclass(frozen=True)
class _Found:
    """What a read found online, put into words."""

    view: FeatureView
    meta: ViewMeta
    served: FeatureValue
    head: Head | None
    now: datetime

    @property
    def _as_of(self) -> datetime | None:
        return None if self.meta.as_of is None else from_micros(self.meta.as_of)

    def why_there(self, row: _Row | None) -> str:
        """Say since when a value stands, what confirmed it, and whether it is too old."""
        moment, as_of = self.served.event_timestamp, self._as_of
        if self.view.is_window_view and moment and as_of and moment < as_of:
            said = f"unchanged since {instant(moment)}; confirmed by the window that ended {instant(as_of)}"
        elif self.view.is_window_view:
            said = f"computed by the window that ended {instant(moment)}"
        else:
            said = f"took effect at {instant(moment)}"
            if row and row.created_timestamp and row.created_timestamp > row.event_timestamp:
                late = row.created_timestamp - row.event_timestamp
                said += f"; it was known from {instant(row.created_timestamp)} on, {_rough(late)} later"
        if self.served.status is FeatureStatus.NULL_VALUE:
            said += "; it is NULL there, which no default replaces"
        if self.served.status is FeatureStatus.OUTSIDE_MAX_AGE:
            said += f"; {self._too_old()}"
        return said + self._default()

    def _default(self) -> str:
        has_default = self.served.status in {FeatureStatus.NOT_FOUND, FeatureStatus.OUTSIDE_MAX_AGE} and self.served.value is not None
        return "; the default is answered" if has_default else ""

    def _after_the_push(self, what: str) -> str:
        return f"{what} after the last push: run fp materialize {self.view.name}"

    def _too_old(self) -> str:
        since = self._as_of if self.view.is_window_view else self.served.event_timestamp
        assert self.view.ttl is not None  # noqa: S101 - without a ttl nothing is too old
        if since is None:
            return f"too old: the ttl is {span(self.view.ttl)}, and no window was pushed"
        what = "the window" if self.view.is_window_view else "it"
        return (
            f"too old since {instant(since + self.view.ttl)}: the ttl is {span(self.view.ttl)}, and {what} is from {ago(since, self.now)}"
        )

    def why_not_there(self, row: _Row | None) -> str:
        """Say why there is no value: never one, one that ended, or one that was not pushed."""
        return self._why_not_there(row) + self._default()

    def _why_not_there(self, row: _Row | None) -> str:
        head, full = self.head, self.meta.newest_full
        if row is None:
            return "the history has no row of this entity"
        last = f"the last row of this entity is of {instant(row.event_timestamp)}"
        if row.is_tombstone:
            return f"a tombstone: every window of this entity is empty since {instant(row.event_timestamp)}"
        if self.view.is_window_view and full is not None and to_micros(row.event_timestamp) < full:
            return f"{last}; the newest full window, which ended {instant(from_micros(full))}, does not hold it any more"
        if head is not None and not head.is_tombstone and head.generation >= self.meta.full_generation:
            when = instant(row.event_timestamp)
            return f"the row online was computed before the view had this feature: run fp compute {self.view.name} for {when}"
        pushed = self.meta.materialized_at
        if row.partition.generation > self.meta.generation or to_micros(row.event_timestamp) > pushed:
            return self._after_the_push(f"{last}, written")
        if row.created_timestamp and to_micros(row.created_timestamp) > pushed:
            return self._after_the_push(f"{last}, known from {instant(row.created_timestamp)} on,")
        if to_micros(row.event_timestamp + self.view.delay) > pushed:
            return self._after_the_push(f"{last}, to be used from {instant(row.event_timestamp + self.view.delay)} on (its delay),")
        if self.view.ttl is not None and not self.view.is_window_view and self.now - row.event_timestamp > self.view.ttl:
            return f"{last}, past the ttl of {span(self.view.ttl)}, and was removed from the online store"
        return f"{last}, and the online store has lost it: run fp rebuild-online"


def _only(answer: OnlineFeatures) -> FeatureValue:
    return next(iter(answer.rows[0].values()))


def _rough(length: timedelta) -> str:
    return span(timedelta(seconds=int(length.total_seconds())))


def _same(dtype: Dtype, one: object, other: object) -> bool:
    """Compare as text: NaN is itself there, and so is every dtype that nests it."""
    to_json = dtype.to_json or (lambda value: value)
    spelled: list[Any] = [None if value is None else to_json(value) for value in (one, other)]
    return repr(spelled[0]) == repr(spelled[1])


def _advice(view: FeatureView, partition: Partition | None, meta: ViewMeta) -> str:
    if partition is None:
        return f"no file holds that time any more: run fp compute {view.name}, then fp materialize {view.name}"
    if partition.generation > meta.generation:
        return f"the file was written again after the push: run fp materialize {view.name}"
    return "the online store holds something else than the history: run fp rebuild-online"
