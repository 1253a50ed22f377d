"""
Skew: whether the online store answers what the point-in-time join answers.

Knows both stores, and reads each the way its users do. Knows nothing of how rows are pushed.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from feature_platform.dtypes import MICROSECOND, from_micros, to_micros
from feature_platform.model import FeatureStatus, FeatureView, ViewKind
from feature_platform.offline.historical import HistoricalFeatures
from feature_platform.offline.history import existing, history_of, window_states
from feature_platform.offline.query import configure, interval, quote, quote_all, timestamp
from feature_platform.offline.question import STATUS_SUFFIX, Question
from feature_platform.online.codec import ViewCodec
from feature_platform.online.layout import read_head
from feature_platform.online.meta import ViewMeta
from feature_platform.online.retrieval import plan_online_read
from feature_platform.registry import Registry
from feature_platform.windows import utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from feature_platform.offline.store import OfflineStore, Partition
    from feature_platform.online.store import OnlineStore

__all__ = ["Answer", "Mismatch", "SkewReport", "measure_skew"]

_ATTEMPTS: Final = 3
_EXAMPLES: Final = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What one store answers.

    Attributes:
        value: The default where the status is NOT_FOUND or OUTSIDE_MAX_AGE.
        status: What stands behind the value.
    """

    value: object
    status: FeatureStatus


@dataclass(frozen=True, slots=True)
class Mismatch:
    """
    One feature of one key that the stores answer differently.

    Attributes:
        join_keys: Of the entity.
        feature: Its name.
        online: What is served.
        offline: What the history says.
    """

    join_keys: Mapping[str, object]
    feature: str
    online: Answer
    offline: Answer


@dataclass(frozen=True, kw_only=True)
class SkewReport:
    """
    What comparing some keys of a view found.

    Attributes:
        view: Name of the view.
        watermark: The moment whose truth was pushed last, and at which both stores were asked; None where nothing was pushed.
        keys: How many were compared.
        mismatches: How many keys differ, by feature; every feature is there.
        examples: The first of them.
        unsettled: Keys left out: they hold what a later push has written that is under way, or broke off.
        not_comparable: Why nothing was compared; None where it was.
    """

    view: str
    watermark: datetime | None
    keys: int = 0
    mismatches: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[Mismatch] = ()
    unsettled: int = 0
    not_comparable: str | None = None

    @property
    def has_skew(self) -> bool:
        """Whether a key that was compared differs."""
        return any(self.mismatches.values())


def measure_skew(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    *,
    store: OfflineStore,
    online: OnlineStore,
    project: str,
    sample: int = 200,
    now: datetime | None = None,
) -> SkewReport:
    """
    Ask both stores about the same keys, as of the moment that was pushed last, and compare values and statuses (laws L6 and L8).

    The keys come from both sides, up to `sample` of each, so that what one side lacks shows. They change with the moment of the
    push: checks that follow pushes see other keys each time. What a write or a push under way explains is no skew: a view whose
    history at the watermark was written again since the push is not comparable until the next one.

    Args:
        connection: Any DuckDB connection; its settings are set.
        view: The view.
        store: Its history.
        online: Where it is served from.
        project: Prefix of the keys.
        sample: Keys of each side at most.
        now: Not before any push; this moment if left out.

    Raises:
        OnlineStoreError: The store does not answer, or a value in it cannot be read.
    """
    configure(connection)
    measuring = _Measuring(connection, view, store, online, ViewCodec(project, view), sample, now)
    for _ in range(_ATTEMPTS):
        report = measuring.once()
        if report is not None:
            return report
    return measuring.refused(
        None, f"it was written or pushed each of the {_ATTEMPTS} times that it was looked at; the next check may see it at rest"
    )


class _Measuring:
    """One view's two sides."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        view: FeatureView,
        store: OfflineStore,
        online: OnlineStore,
        codec: ViewCodec,
        sample: int,
        now: datetime | None,
    ) -> None:
        self._connection, self._view, self._store, self._online = connection, view, store, online
        self._codec, self._sample, self._now = codec, sample, now

    def refused(self, meta: ViewMeta | None, why: str) -> SkewReport:
        """Report that nothing can be said now."""
        return SkewReport(view=self._view.name, watermark=from_micros(meta.materialized_at) if meta else None, not_comparable=why)

    def once(self) -> SkewReport | None:
        """Compare once; None where something moved meanwhile."""
        view = self._view
        meta = self._meta(self._online.get_many([self._codec.meta_key], patient=True)[0])
        if meta is None:
            return self.refused(None, f"the online store holds nothing of it: push it first (run the asset online/{view.name})")
        if meta.definition != view.definition_hash:
            return self.refused(meta, "its definition has changed since it was pushed; the next push makes it comparable")
        watermark = from_micros(meta.materialized_at)
        partitions = self._counted(watermark)
        if any(one.generation > meta.generation for one in partitions):
            return self.refused(meta, "its history was written again since it was pushed; the next push makes it comparable")
        rows = self._keys(partitions, watermark)
        read = plan_online_read(Registry([view]), self._codec.project, [f"{view.name}:{name}" for name in view.feature_by_name], rows)
        offline = self._offline(rows, watermark)
        values = self._online.get_many(read.keys, patient=True)
        # Once more after the values: a push that ends in between may have swept what the meta before them still counts.
        after = self._meta(self._online.get_many([self._codec.meta_key], patient=True)[0])
        if any(_moved(meta, other) for other in (self._meta(values[0]), after)) or self._counted(watermark) != partitions:
            return None
        served = read.answer(values, watermark).rows
        stored = values[1:] if view.entity.join_keys else values[1:] * len(rows)
        differing: dict[int, list[Mismatch]] = {}
        for index, (row, value, ours) in enumerate(zip(rows, stored, offline, strict=True)):
            for name in view.feature_by_name:
                theirs = Answer(served[index][name].value, served[index][name].status)
                if not _agree(theirs, ours[name]) and not (value is None and self._may_be_collected(ours[name], watermark)):
                    differing.setdefault(index, []).append(Mismatch(row, name, theirs, ours[name]))
        unsettled = self._unsettled(meta, {index: (rows[index], stored[index]) for index in differing})
        found = [one for index, its in differing.items() if index not in unsettled for one in its]
        counts = Counter(one.feature for one in found)
        return SkewReport(
            view=view.name,
            watermark=watermark,
            keys=len(rows) - len(unsettled),
            mismatches={name: counts[name] for name in view.feature_by_name},
            examples=tuple(found[:_EXAMPLES]),
            unsettled=len(unsettled),
        )

    def _meta(self, stored: bytes | None) -> ViewMeta | None:
        return None if stored is None else ViewMeta.from_bytes(stored)

    @property
    def _moment(self) -> datetime:
        return datetime.now(UTC) if self._now is None else utc(self._now)

    def _counted(self, at: datetime) -> list[Partition]:
        """Return the partitions that decide the answers at a moment."""
        if not self._view.is_window_view:
            return self._store.partitions(self._view, before=at - self._view.delay + MICROSECOND)
        partitions = existing(self._view, self._store, at)
        newest_full = window_states(partitions).newest_full[-1] if partitions else None
        return [one for one in partitions if newest_full is None or one.end >= newest_full]

    def _keys(self, partitions: Sequence[Partition], watermark: datetime) -> list[dict[str, Any]]:
        """Return the keys to compare: some of the history's, and some of those that are served, as far as anybody can ask for them."""
        view, codec, seed = self._view, self._codec, to_micros(watermark)
        names = view.entity.join_keys
        if not names:
            return [{}]
        found: dict[bytes, dict[str, Any]] = {}
        history = history_of(view, self._store, partitions, [])
        if history.sql is not None:
            # By a hash that is the same in every version of DuckDB.
            texts = ", ".join(f"cast({quote(name)} as varchar)" for name in names)
            visible = f"event_timestamp + {interval(view.delay)} <= {timestamp(watermark)}"
            sql = (
                f"select * from (select distinct {quote_all(names)} from ({history.sql}) where {visible}) "
                f"order by md5(concat_ws(chr(0), '{seed}', {texts})) limit {self._sample}"
            )
            for row in self._typed(self._connection.sql(sql).to_arrow_table()):
                found[codec.entity_key(row)] = row
        for key in self._online.sample_keys(codec.project, view.entity.name, view.name, seed=seed, limit=self._sample):
            join_keys = codec.join_keys(key)
            if join_keys is not None:
                found[key] = join_keys
        return list(found.values())

    def _offline(self, rows: Sequence[Mapping[str, Any]], at: datetime) -> list[dict[str, Answer]]:
        """Ask the point-in-time join about keys at one moment."""
        view = self._view
        columns = {name: pa.array([row[name] for row in rows], dtype.arrow) for name, dtype in view.entity.keys.items()}
        columns["event_timestamp"] = pa.array([at] * len(rows), pa.timestamp("us", tz="UTC"))
        refs = Registry([view]).resolve([f"{view.name}:{name}" for name in view.feature_by_name])
        question = Question(tuple(refs), statuses=True)
        joined = HistoricalFeatures(lambda: contextlib.nullcontext(self._connection), self._store, pa.table(columns), question).features
        return [
            {
                # As a stored value comes back: that of a map, say, is a list of pairs here.
                name: Answer(feature.type.normal(row[name]), FeatureStatus(row[name + STATUS_SUFFIX]))
                for name, feature in view.feature_by_name.items()
            }
            for row in joined.to_pylist()
        ]

    def _may_be_collected(self, offline: Answer, watermark: datetime) -> bool:
        """
        Say whether a key that the server no longer holds is right: its value is past its ttl by now.

        Servers drop the values of event views some time after that; a value that is past its ttl and one that is gone are answered alike.
        """
        if self._view.kind is not ViewKind.EVENT or self._view.ttl is None:
            return False
        return offline.status is FeatureStatus.OUTSIDE_MAX_AGE or self._moment > watermark + self._view.ttl

    def _unsettled(self, meta: ViewMeta, differing: Mapping[int, tuple[Mapping[str, Any], bytes | None]]) -> set[int]:
        """
        Return which keys hold what only a later push than the last whole one can have written: one under way, or broken off.

        Such a value is of a later generation, or of a time that the last whole push could not see.
        """
        if not differing:
            return set()
        view, moment = self._view, self._moment
        delay, newest = view.delay // MICROSECOND, self._store.generation(view)
        seen = meta.as_of if meta.as_of is not None else meta.materialized_at - delay
        corrected = self._known_between(from_micros(meta.materialized_at), moment)
        found = set()
        for index, (row, value) in differing.items():
            head = None if value is None else read_head(value)
            is_later = head is not None and (meta.generation < head.generation <= newest or seen < head.micros <= to_micros(moment) - delay)
            if is_later or self._codec.entity_key(row) in corrected:
                found.add(index)
        return found

    def _known_between(self, after: datetime, until: datetime) -> set[bytes]:
        """Return the keys of which something was known later than one moment: its own time may lie long before."""
        if not self._view.has_created_timestamp:
            return set()
        history = history_of(self._view, self._store, self._counted(until), [])
        if history.sql is None:
            return set()
        names = quote_all(["created_timestamp", *self._view.entity.join_keys])
        between = f"created_timestamp > {timestamp(after)} and created_timestamp <= {timestamp(until)}"
        table = self._connection.sql(f"select distinct {names} from ({history.sql}) where {between}").to_arrow_table()
        return {self._codec.entity_key(row) for row in self._typed(table)}

    def _typed(self, table: pa.Table) -> list[dict[str, Any]]:
        """Return the join keys of each row as Python values of their declared dtypes."""
        columns = [table.column(name).cast(dtype.arrow).to_pylist() for name, dtype in self._view.entity.keys.items()]
        return (
            [dict(zip(self._view.entity.keys, row, strict=True)) for row in zip(*columns, strict=True)]
            if columns
            else [{}] * table.num_rows
        )


def _moved(meta: ViewMeta, other: ViewMeta | None) -> bool:
    return other is None or (other.generation, other.materialized_at) != (meta.generation, meta.materialized_at)


def _agree(left: Answer, right: Answer) -> bool:
    return left.status is right.status and _same(left.value, right.value)


def _same(left: object, right: object) -> bool:
    """Compare values exactly; NaN is NaN, and a zero has no sign, since DuckDB's choice of newest rows does not keep it."""
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(value, right[name]) for name, value in left.items())
    return left == right
