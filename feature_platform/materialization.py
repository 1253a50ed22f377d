"""
Materialize: from the Parquet history to the online store, what is visible at one moment.

Knows both stores and the order in which rows and meta move. Computes nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_platform.dtypes import from_micros, to_micros
from feature_platform.errors import OnlineStoreError
from feature_platform.model import FeatureView, ViewKind
from feature_platform.offline.history import KNOWN, existing, history_of, window_states
from feature_platform.offline.query import configure, first_row, interval, quote, quote_all, timestamp
from feature_platform.offline.store import TOMBSTONE, OfflineStore, Partition
from feature_platform.online.codec import ViewCodec
from feature_platform.online.meta import ViewMeta
from feature_platform.windows import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import duckdb

    from feature_platform.online.store import OnlineStore, WriteCounts

__all__ = ["MaterializationReport", "materialize_view", "newest_rows_sql", "read_meta"]

_BATCH_ROWS = 50_000


@dataclass(frozen=True, kw_only=True)
class MaterializationReport:
    """
    What one materialization of a view did.

    Attributes:
        view: Name of the view.
        now: The moment whose truth was pushed.
        as_of: Window views: the greatest window end that exists at `now`.
        generation: Of the view, read before its rows.
        rows_read: Newest rows found in the history, tombstones among them.
        rows_written: Values that are now the ones to read.
        rows_removed: Keys that lost their value.
        rows_skipped: Values older than what was there.
        newest_event_timestamp: Of the rows.
        newest_source_timestamp: Of the source rows behind them: the age of the data itself.
        seconds: Time it took.
    """

    view: str
    now: datetime
    as_of: datetime | None = None
    generation: int = 0
    rows_read: int = 0
    rows_written: int = 0
    rows_removed: int = 0
    rows_skipped: int = 0
    newest_event_timestamp: datetime | None = None
    newest_source_timestamp: datetime | None = None
    seconds: float = 0.0


def newest_rows_sql(view: FeatureView, store: OfflineStore, now: datetime) -> tuple[str | None, list[Partition], frozenset[str]]:
    """
    Return the SELECT of the newest row of each key at a moment.

    Returns:
        The SELECT (None where nothing exists), the partitions that exist, and the features that some file lacks.
    """
    names = list(view.feature_by_name)
    if view.is_window_view:
        partitions = existing(view, store, now)
        newest_full = window_states(partitions).newest_full[-1] if partitions else None
        counted = [one for one in partitions if newest_full is None or one.end >= newest_full]
        history = history_of(view, store, counted, names)
        order, visible = "event_timestamp desc", "true"
    else:
        partitions = store.partitions(view, before=utc(now) + timedelta(microseconds=1))
        history = history_of(view, store, partitions, names)
        visible = f"event_timestamp + {interval(view.delay)} <= {timestamp(utc(now))}"
        order = "event_timestamp desc"
        if view.has_created_timestamp:
            visible += f" and (created_timestamp is null or created_timestamp <= {timestamp(utc(now))})"
            order += ", created_timestamp desc nulls last"
    if history.sql is None:
        return None, partitions, history.partial
    by_keys = f"partition by {quote_all(view.entity.join_keys)} " if view.entity.join_keys else ""
    sql = f"select * from ({history.sql}) where {visible} qualify row_number() over ({by_keys}order by {order}) = 1"
    return sql, partitions, history.partial


def materialize_view(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    *,
    store: OfflineStore,
    online: OnlineStore,
    project: str,
    now: datetime,
    run_id: str | None = None,
    partition: str | None = None,
    again: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MaterializationReport:
    """
    Push the newest visible row of every key; what is older than what is there changes nothing.

    The generation is read before the rows, and the meta moves after the last one: a crash leaves, key by key, the old value
    or the new one, and running it again completes it. Once the meta has moved, values of an earlier generation, or from
    before the newest full partition, count as absent, so a key that left a snapshot is gone without being looked for;
    sweeping them is garbage collection.

    Args:
        connection: Any DuckDB connection; its settings are set.
        view: The view.
        store: Its history.
        online: Where the rows go.
        project: Prefix of the keys.
        now: Whose truth is pushed; an earlier one than was pushed last changes nothing.
        run_id: Kept in the view's meta.
        partition: Kept in the view's meta.
        again: Push even where a later moment was pushed already (a rebuild).
        progress: Called with rows sent and rows to send.

    Raises:
        OnlineStoreError: The store does not answer, or was filled from another history of a later generation.
    """
    started = time.perf_counter()
    configure(connection)
    codec = ViewCodec(project, view)
    with store.materializing(view):
        generation = store.generation(view)
        stored = online.get_many([codec.meta_key])[0]
        current = read_meta(stored, even_if_broken=again)
        if current and current.generation > generation:
            message = (
                f"view {view.name!r}: the online store holds generation {current.generation}, "
                f"the history in {store.root} only {generation}.\n"
                "It was filled from another history. Run 'fp rebuild-online' to fill it from this one."
            )
            raise OnlineStoreError(message)
        if current and to_micros(utc(now)) < current.materialized_at and not again:
            return MaterializationReport(view=view.name, now=utc(now), generation=generation)
        sql, partitions, partial = newest_rows_sql(view, store, now)
        if sql is None:
            return MaterializationReport(view=view.name, now=utc(now), generation=generation)
        push = _Push(connection, view, online, project, generation, partial, progress)
        connection.execute(f"create or replace temp table feature_platform_newest as {sql}")
        try:
            if current:
                known = {**current.schemas, **push.schemas()}
                online.put_meta(codec.meta_key, replace(current, schemas=known).to_bytes(), force=True)
            counts = push.run()
            newest = first_row(connection, "select epoch_us(max(event_timestamp)) from feature_platform_newest")[0]
        finally:
            connection.execute("drop table if exists temp.feature_platform_newest")
        states = window_states(partitions) if view.is_window_view else None
        newest_full = states.newest_full[-1] if states else None
        source_times = [one.newest_source_timestamp for one in partitions if one.newest_source_timestamp is not None]
        meta = ViewMeta(
            generation=generation,
            materialized_at=to_micros(utc(now)),
            definition=view.definition_hash,
            as_of=states.ends[-1] if states else None,
            newest_full=newest_full,
            full_generation=generation,
            rows=counts.written,
            removed=counts.removed,
            newest_source_timestamp=max(source_times, default=None),
            schemas=push.schemas(),
            run_id=run_id,
            partition=partition or partitions[-1].window.key,
        )
        online.put_meta(codec.meta_key, meta.to_bytes(), force=again)
        # Sweeping looks at every key, so only where a reader's bounds have moved since the last push.
        has_leftovers = current is not None and (current.full_generation, current.newest_full) != (generation, newest_full)
        swept = 0
        if again or has_leftovers:
            swept = online.sweep(project, view.entity.name, view.name, below_generation=generation, before=newest_full)
    return MaterializationReport(
        view=view.name,
        now=utc(now),
        as_of=from_micros(meta.as_of) if meta.as_of is not None else None,
        generation=generation,
        rows_read=push.sent,
        rows_written=counts.written,
        rows_removed=counts.removed + swept,
        rows_skipped=counts.skipped,
        newest_event_timestamp=from_micros(newest) if newest is not None else None,
        newest_source_timestamp=from_micros(meta.newest_source_timestamp) if meta.newest_source_timestamp is not None else None,
        seconds=time.perf_counter() - started,
    )


def read_meta(stored: bytes | None, *, even_if_broken: bool) -> ViewMeta | None:
    """Return what is under a view's meta key; what cannot be read is an error, or nothing."""
    try:
        return ViewMeta.from_bytes(stored) if stored else None
    except OnlineStoreError:
        if even_if_broken:
            return None
        raise


class _Push:
    """
    Sends the rows of `feature_platform_newest`.

    Rows of files that lack a feature are encoded by a codec without it, so that it reads NOT_FOUND and not NULL.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        view: FeatureView,
        online: OnlineStore,
        project: str,
        generation: int,
        partial: frozenset[str],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._connection, self._view, self._online = connection, view, online
        self._project, self._generation, self._progress = project, generation, progress
        self._partial = sorted(partial)
        self._codecs: dict[tuple[str, ...], ViewCodec] = {}
        self.sent = 0

    def schemas(self) -> dict[str, list[tuple[str, str]]]:
        """Return what readers need to map this push's rows by name."""
        return {codec.definition: codec.schema for codec in [ViewCodec(self._project, self._view), *self._lacking().values()]}

    def run(self) -> WriteCounts:
        """Send all rows, in batches, and count what became of them."""
        total: int = first_row(self._connection, "select count(*) from feature_platform_newest")[0]
        ttl = self._view.ttl
        # Garbage collection only, and of event views only: each push starts it anew, and age is judged when reading.
        expire = 2 * -(-ttl // timedelta(seconds=1)) if ttl is not None and self._view.kind is ViewKind.EVENT else None
        return self._online.put_many(self._items(total), expire_seconds=expire)

    def _items(self, total: int) -> Iterator[tuple[bytes, bytes]]:
        for lacking, codec in self._lacking().items() or [((), ViewCodec(self._project, self._view))]:
            condition = " and ".join(f"{'not ' if name in lacking else ''}{quote(name + KNOWN)}" for name in self._partial) or "true"
            extra = [quote(TOMBSTONE)] if self._view.kind is ViewKind.AGGREGATE else []
            names = [*map(quote, self._view.entity.join_keys), "event_timestamp", *extra, *(quote(f.name) for f in codec.view.features)]
            sql = f"select {', '.join(names)} from feature_platform_newest where {condition}"
            for batch in self._connection.sql(sql).to_arrow_reader(_BATCH_ROWS):
                yield from codec.encode_rows(pa.Table.from_batches([batch]), self._generation)
                self.sent += batch.num_rows
                if self._progress:
                    self._progress(self.sent, total)

    def _lacking(self) -> dict[tuple[str, ...], ViewCodec]:
        """Return a codec for each set of features that some rows lack; a row that lacks them all has no value."""
        if not self._codecs and self._partial:
            flags = ", ".join(quote(name + KNOWN) for name in self._partial)
            for row in self._connection.execute(f"select distinct {flags} from feature_platform_newest").fetchall():
                lacking = tuple(name for name, known in zip(self._partial, row, strict=True) if not known)
                features = [feature for feature in self._view.features if feature.name not in lacking]
                if features:
                    self._codecs[lacking] = ViewCodec(self._project, replace(self._view, features=features))
        return self._codecs
