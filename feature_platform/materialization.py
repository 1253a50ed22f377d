"""
Materialize: from the Parquet history to the online store, what is visible at one moment.

Knows both stores, and the order in which rows and meta move. Which rows those are is `offline.newest`'s. Computes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import duckdb
import msgspec
import pyarrow as pa

from feature_platform.dtypes import MICROSECOND, from_micros, to_micros
from feature_platform.errors import OnlineStoreError
from feature_platform.model import FeatureView, ViewKind
from feature_platform.offline.history import KNOWN, History
from feature_platform.offline.newest import NewestRows, Seen
from feature_platform.offline.query import configure, first_row, quote, quote_all
from feature_platform.offline.store import TOMBSTONE, OfflineStore
from feature_platform.online.codec import ViewCodec
from feature_platform.online.layout import GENERATION, read_head
from feature_platform.online.meta import ViewMeta
from feature_platform.online.store import WriteCounts
from feature_platform.windows import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from feature_platform.online.store import OnlineStore

__all__ = ["MaterializationReport", "materialize_view", "read_meta"]

_BATCH_ROWS = 50_000
_PART_ROWS = 250_000
_COMPARED_KEYS = 1_000
_DAY = timedelta(days=1)
_NEWEST, _CHANGED = "feature_platform_newest", "feature_platform_changed"


@dataclass(frozen=True, kw_only=True)
class MaterializationReport:
    """
    What one materialization of a view did.

    Attributes:
        view: Name of the view.
        now: The moment whose truth was pushed.
        as_of: Window views: the greatest window end that exists at `now`.
        generation: Of the view, read before its rows.
        is_complete: Whether every key was pushed, and not only those whose answer may have changed since the push before.
        rows_read: Newest rows found in the history for those keys, tombstones among them.
        rows_written: Values that are now the ones to read.
        rows_removed: Keys that lost their value.
        rows_skipped: Values older than what was there.
        rows_unchanged: Keys whose answer turned out to be what it was, and which were left alone.
        newest_event_timestamp: Of the rows.
        newest_source_timestamp: Of the source rows behind them: the age of the data itself.
        seconds: Time it took.
    """

    view: str
    now: datetime
    as_of: datetime | None = None
    generation: int = 0
    is_complete: bool = False
    rows_read: int = 0
    rows_written: int = 0
    rows_removed: int = 0
    rows_skipped: int = 0
    rows_unchanged: int = 0
    newest_event_timestamp: datetime | None = None
    newest_source_timestamp: datetime | None = None
    seconds: float = 0.0


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
    Push the newest visible row of every key whose answer changed; what is older than what is there changes nothing.

    The generation is read before the rows, and the meta moves after the last one: a crash leaves, key by key, the old value
    or the new one, and running it again completes it.

    Where the meta and the history tell what has changed since the push before, only those keys are looked at, and only those
    whose value differs from what is online are written. Otherwise, and where a full partition is new, all are: once the meta
    has moved, values of an earlier generation, or from before the newest full partition, count as absent, so a key that left
    a snapshot is gone without being looked for; sweeping them is garbage collection.

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
    # One core is left to who reads meanwhile: with all of them busy, a read waits for the scheduler.
    configure(connection, threads=max(1, first_row(connection, "select current_setting('threads')")[0] - 1))
    codec = ViewCodec(project, view)
    with store.materializing(view):
        generation = store.generation(view)
        stored = online.get_many([codec.meta_key], patient=True)[0]
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
        newest = NewestRows.at(view, store, now)
        if not newest.summary.partitions and (current is None or not again):
            return MaterializationReport(view=view.name, now=utc(now), generation=newest.generation)
        seen = _seen_by(current)
        since = seen if current and not again and _may_go_on(current, newest) else None
        if seen and newest.has_lost_files(seen):
            store.raise_generation(view)
            newest, since = NewestRows.at(view, store, now), None
        changed = newest.changed_keys(since) if since else None
        push = _Push(connection, newest, online, project, progress, current if changed else None)
        try:
            counts = push.run(current, changed)
        finally:
            connection.execute(f"drop table if exists temp.{_NEWEST}")
            connection.execute(f"drop table if exists temp.{_CHANGED}")
        newest_event, newest_source = newest.newest_times(connection)
        wrote_nothing = current is not None and changed is not None and not (counts.written or counts.removed)
        meta = ViewMeta(
            generation=newest.generation,
            materialized_at=to_micros(utc(now)),
            definition=view.definition_hash,
            as_of=newest.summary.newest_end if view.is_window_view else None,
            newest_full=newest.newest_full,
            full_generation=current.full_generation if current and changed else newest.generation,
            full_at=current.full_at if current and changed else to_micros(utc(now)),
            files=newest.seen.files if newest.is_uniform else None,
            ttl=view.ttl // MICROSECOND if view.ttl is not None else None,
            rows=current.rows if current and wrote_nothing else counts.written,
            removed=current.removed if current and wrote_nothing else counts.removed,
            newest_source_timestamp=newest_source,
            schemas=push.schemas(),
            run_id=run_id,
            partition=partition or newest.newest_window_key,
        )
        online.put_meta(codec.meta_key, meta.to_bytes(), force=again)
        push.finish()
        # Sweeping looks at every key, so only where a reader's bounds have moved since the last push.
        bounds = (meta.full_generation, meta.newest_full)
        swept = 0
        if again or (current is not None and (current.full_generation, current.newest_full) != bounds):
            swept = online.sweep(project, view.entity.name, view.name, below_generation=meta.full_generation, before=meta.newest_full)
        store.forget_changes(view, until=meta.generation)
    return MaterializationReport(
        view=view.name,
        now=utc(now),
        as_of=from_micros(meta.as_of) if meta.as_of is not None else None,
        generation=meta.generation,
        is_complete=changed is None,
        rows_read=push.sent,
        rows_written=counts.written,
        rows_removed=counts.removed + swept,
        rows_skipped=counts.skipped,
        rows_unchanged=push.unchanged,
        newest_event_timestamp=from_micros(newest_event) if newest_event is not None else None,
        newest_source_timestamp=from_micros(newest_source) if newest_source is not None else None,
        seconds=time.perf_counter() - started,
    )


def _seen_by(current: ViewMeta | None) -> Seen | None:
    """Return what of the history the push saw that left a meta, if it could tell."""
    if current is None or current.files is None:
        return None
    at = from_micros(current.materialized_at)
    return Seen(generation=current.generation, at=at, files=current.files, newest_full=current.newest_full)


def _may_go_on(current: ViewMeta, newest: NewestRows) -> bool:
    """
    Say whether a push may leave out what the one before it pushed.

    Once a day it may not: keys that the server lost come back, and an event view's start their time to live anew, which is twice
    the ttl. Under a ttl of less than a day it may not so much the sooner.
    """
    ttl = newest.view.ttl if newest.view.kind is ViewKind.EVENT else None
    is_alike = current.definition == newest.view.definition_hash and newest.is_uniform
    has_same_ttl = current.ttl == (None if newest.view.ttl is None else newest.view.ttl // MICROSECOND)
    return is_alike and has_same_ttl and newest.now - from_micros(current.full_at) < min(ttl or _DAY, _DAY)


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
    Sends the newest rows, all or those of keys that may have changed.

    Rows of files that lack a feature are encoded by a codec without it, so that it reads NOT_FOUND and not NULL.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        newest: NewestRows,
        online: OnlineStore,
        project: str,
        progress: Callable[[int, int], None] | None,
        goes_on_from: ViewMeta | None,
    ) -> None:
        self._connection, self._newest, self._view, self._online = connection, newest, newest.view, online
        self._project, self._progress, self._before = project, progress, goes_on_from
        self._codec = ViewCodec(project, self._view)
        self._partial: list[str] = []
        self._codecs: dict[tuple[str, ...], ViewCodec] = {}
        self._sent_before: dict[str, list[tuple[str, str]]] = {}
        self._has_parts = False
        self.sent = self.unchanged = self._reached = 0

    def schemas(self) -> dict[str, list[tuple[str, str]]]:
        """Return what readers need to map this push's rows by name."""
        return self._sent_before | {codec.definition: codec.schema for codec in [self._codec, *self._codecs.values()]}

    def run(self, current: ViewMeta | None, changed: str | None) -> WriteCounts:
        """
        Send rows, in batches, and count what became of them.

        Args:
            current: The view's meta: it is told of new schemas before the first row of one.
            changed: SELECT of the keys that may have changed; None sends all.
        """
        if changed is not None:
            self._connection.execute(f"create or replace temp table {_CHANGED} as {changed}")
            return self._send(self._of_changed(self._newest.rows(keys=f"temp.{_CHANGED}")), current, 0)
        # Part by part, each in a table that fits into little memory. A push that was cut short goes on with the part where it stopped.
        estimated = self._newest.estimated_keys(self._connection, unless_rows=_PART_ROWS)
        parts = max(1, -(-estimated // _PART_ROWS))
        if parts == 1:
            return self._send(self._newest.rows(), current, 0)
        name = _name_of(self._newest.identity, parts, current.full_at if current else None)
        progress = _progress_of(self._online.get_many([self._codec.push_key], patient=True)[0], name)
        counts, self._sent_before, self._has_parts = progress.counts, progress.schemas, True
        for part in range(progress.parts, parts):
            self._reached = max(self._reached, estimated * part // parts)
            counts = counts.plus(self._send(self._newest.rows(part=(part, parts)), current, estimated))
            done = _Progress(name, part + 1, counts, self.schemas())
            self._online.put_meta(self._codec.push_key, msgspec.msgpack.encode(done), force=True)
        return counts

    def finish(self) -> None:
        """Forget how far the push came, once the meta has moved."""
        if self._has_parts:
            self._online.put_meta(self._codec.push_key, b"", force=True)

    def _send(self, history: History, current: ViewMeta | None, estimated: int) -> WriteCounts:
        """Send the rows of a history."""
        if history.sql is None:
            return WriteCounts()  # the history was emptied: what is online is of an earlier generation
        self._partial = sorted(history.partial)
        self._connection.execute(f"create or replace temp table {_NEWEST} as {history.sql}")
        codecs = self._lacking()
        if current and not self.schemas().keys() <= current.schemas.keys():
            known = {**current.schemas, **self.schemas()}
            self._online.put_meta(self._codec.meta_key, replace(current, schemas=known).to_bytes(), force=True)
        total: int = first_row(self._connection, f"select count(*) from {_NEWEST}")[0]
        ttl = self._view.ttl
        # Garbage collection only, and of event views only; age is judged when reading.
        expire = 2 * -(-ttl // timedelta(seconds=1)) if ttl is not None and self._view.kind is ViewKind.EVENT else None
        # Closed whatever happens: a result that is still open would hide why the store refused.
        with contextlib.closing(self._items(codecs, max(total, estimated))) as items:
            sent = items if self._before is None else self._differing(items, self._before)
            return self._online.put_many(sent, expire_seconds=expire)

    def _of_changed(self, history: History) -> History:
        """Return the rows of the changed keys, those without one as tombstones."""
        keys, mark = list(self._view.entity.join_keys), quote(TOMBSTONE)
        gone = f"coalesce(n.{mark}, true)" if self._view.kind is ViewKind.AGGREGATE else "n.event_timestamp is null"
        columns = [f"c.{quote(key)}" for key in keys]
        # A tombstone is older than any row: one that becomes visible later, with the same generation, must win.
        columns.append("coalesce(n.event_timestamp, timestamp '0001-01-01') as event_timestamp")
        columns += [f"{gone} as {mark}", *(f"n.{quote(name)}" for name in self._view.feature_by_name)]
        sql = f"select {', '.join(columns)} from temp.{_CHANGED} as c left join ({history.sql}) as n using ({quote_all(keys)})"
        return History(sql, history.partial)

    def _items(self, codecs: Mapping[tuple[str, ...], ViewCodec], total: int) -> Generator[tuple[bytes, bytes], None, None]:
        has_marks = self._before is not None or self._view.kind is ViewKind.AGGREGATE
        for lacking, codec in codecs.items():
            condition = " and ".join(f"{'not ' if name in lacking else ''}{quote(name + KNOWN)}" for name in self._partial) or "true"
            extra = [quote(TOMBSTONE)] if has_marks else []
            names = [*map(quote, self._view.entity.join_keys), "event_timestamp", *extra, *(quote(f.name) for f in codec.view.features)]
            sql = f"select {', '.join(names)} from {_NEWEST} where {condition}"
            with self._connection.sql(sql).to_arrow_reader(_BATCH_ROWS) as reader:
                for batch in reader:
                    yield from codec.encode_rows(pa.Table.from_batches([batch]), self._newest.generation)
                    self.sent += batch.num_rows
                    self._reached += batch.num_rows
                    if self._progress:
                        self._progress(min(self._reached, total), total)

    def _differing(self, items: Iterator[tuple[bytes, bytes]], before: ViewMeta) -> Iterator[tuple[bytes, bytes]]:
        """Leave out what readers find online already; the generation alone is no difference."""
        while some := list(islice(items, _COMPARED_KEYS)):
            for (key, value), stored in zip(some, self._online.get_many([key for key, _ in some], patient=True), strict=True):
                if _reads_alike(value, stored, before):
                    self.unchanged += 1
                else:
                    yield key, value

    def _lacking(self) -> Mapping[tuple[str, ...], ViewCodec]:
        """Return a codec for each set of features that some rows lack; a row that lacks them all has no value."""
        if not self._partial:
            return {(): self._codec}
        found = {}
        flags = ", ".join(quote(name + KNOWN) for name in self._partial)
        for row in self._connection.execute(f"select distinct {flags} from {_NEWEST}").fetchall():
            lacking = tuple(name for name, known in zip(self._partial, row, strict=True) if not known)
            features = [feature for feature in self._view.features if feature.name not in lacking]
            if features and lacking not in self._codecs:
                self._codecs[lacking] = ViewCodec(self._project, replace(self._view, features=features))
            if features:
                found[lacking] = self._codecs[lacking]
        return found


class _Progress(msgspec.Struct, frozen=True, array_like=True):
    """
    How far a push came that goes part by part.

    Attributes:
        push: See `_name_of`.
        parts: How many were sent.
        counts: What became of them.
        schemas: How their rows are read.
    """

    push: str
    parts: int = 0
    counts: WriteCounts = WriteCounts()
    schemas: dict[str, list[tuple[str, str]]] = {}


def _name_of(identity: str, parts: int, full_at: int | None) -> str:
    """Return a name that two pushes share only if what one has sent is what the other would send: DuckDB's hash decides the part, too."""
    return hashlib.sha256(repr((identity, parts, full_at, duckdb.__version__)).encode()).hexdigest()


def _progress_of(stored: bytes | None, push: str) -> _Progress:
    """Return how far a push came: not at all, if what is stored is another push's."""
    with contextlib.suppress(msgspec.DecodeError):
        progress = msgspec.msgpack.decode(stored or b"", type=_Progress)
        if progress.push == push:
            return progress
    return _Progress(push)


def _reads_alike(value: bytes, stored: bytes | None, before: ViewMeta) -> bool:
    """Say whether readers find in the stored value what they would find in the new one."""
    new, old = read_head(value), None if stored is None else read_head(stored)
    if stored is None or old is None:
        return stored is None and new is not None and new.is_tombstone
    is_absent = old.is_tombstone or old.generation < before.full_generation
    is_absent |= before.newest_full is not None and old.micros < before.newest_full
    if new is not None and new.is_tombstone:
        return is_absent
    same_bytes = value[: GENERATION.start] == stored[: GENERATION.start] and value[GENERATION.stop :] == stored[GENERATION.stop :]
    return same_bytes and not is_absent
