"""
The newest row of each key at a moment, and which keys' newest rows may have changed since an earlier moment.

Knows the state model, generations and what replacements changed. Knows nothing of where the rows go.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from feature_platform.dtypes import MICROSECOND, to_micros
from feature_platform.model import FeatureView
from feature_platform.offline.history import History, history_of, window_states
from feature_platform.offline.query import first_row, interval, literal, quote_all, timestamp
from feature_platform.offline.store import OfflineStore, Partition
from feature_platform.windows import utc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import duckdb

__all__ = ["NewestRows", "Seen"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """
    What of a history was looked at once, for the next look to go on from.

    Attributes:
        generation: Of the view.
        at: The moment.
        files: How many partitions existed at it.
        newest_full: Window views: the end of the newest full one, UTC microseconds.
    """

    generation: int
    at: datetime
    files: int
    newest_full: int | None


@dataclass(frozen=True)
class NewestRows:
    """
    The newest rows of a view at one moment.

    Attributes:
        view: Whose.
        store: Its history.
        now: The moment.
        generation: The view's, read before the files were listed.
        partitions: The view's files that exist at the moment, oldest first.
        newest_full: Window views: the end of the newest full partition among them; older rows do not count.
    """

    view: FeatureView
    store: OfflineStore
    now: datetime
    generation: int
    partitions: Sequence[Partition]
    newest_full: int | None

    @classmethod
    def at(cls, view: FeatureView, store: OfflineStore, now: datetime) -> NewestRows:
        """Look at what exists at a moment."""
        generation = store.generation(view)
        found = store.partitions(view, before=utc(now) + MICROSECOND)
        exist = [one for one in found if _exists(view, one, utc(now))]
        states = window_states(exist) if view.is_window_view and exist else None
        return cls(view, store, utc(now), generation, exist, states.newest_full[-1] if states else None)

    @property
    def seen(self) -> Seen:
        """What the next look goes on from."""
        return Seen(generation=self.generation, at=self.now, files=len(self.partitions), newest_full=self.newest_full)

    @property
    def is_uniform(self) -> bool:
        """Whether every file was computed by the view's present definition."""
        return all(one.definition == self.view.definition_hash for one in self.partitions)

    def rows(self, *, keys: str | None = None) -> History:
        """
        Return the SELECT of the newest row of each key.

        Args:
            keys: A table of join keys: only theirs.
        """
        history = self._history(list(self.view.feature_by_name))
        if history.sql is None:
            return history
        visible, order = "true", "event_timestamp desc"
        if not self.view.is_window_view:
            visible = _visible(self.view, self.now)
            order += ", created_timestamp desc nulls last" if self.view.has_created_timestamp else ""
        join_keys = quote_all(self.view.entity.join_keys)
        partition_by = f"partition by {join_keys} " if join_keys else ""
        only = f" semi join {keys} using ({join_keys})" if keys else ""
        sql = f"select * from ({history.sql}){only} where {visible} qualify row_number() over ({partition_by}order by {order}) = 1"
        return History(sql, history.partial)

    def changed_keys(self, since: Seen) -> str | None:
        """
        Return the SELECT of the join keys whose newest row may be another one than at an earlier look.

        None where that cannot be told: the complete state was renewed, files came and went unseen, or there are no join keys.
        """
        view = self.view
        changes, new = self._changed_since(since)
        written = {one.generation for one in self.store.partitions(view) if since.generation < one.generation <= self.generation}
        is_known = len(written | changes.keys()) == self.generation - since.generation and len(self.partitions) == since.files + len(new)
        if not view.entity.join_keys or not is_known or self.newest_full != since.newest_full or self.now < since.at:
            return None
        keys = quote_all(view.entity.join_keys)
        files = [self.store.path(view, one.window) for one in new] + list(changes.values())
        selects = [f"select {keys} from read_parquet([{', '.join(literal(str(file)) for file in files)}])"] if files else []
        history = None if view.is_window_view else self._history([]).sql
        if history is not None:  # rows that nobody wrote, and that became visible with time
            selects.append(f"select {keys} from ({history}) where {_visible(view, self.now)} and not ({_visible(view, since.at)})")
        everything = "\nunion all\n".join(selects) or f"select {keys} from ({self._history([]).sql}) limit 0"
        return f"select distinct {keys} from ({everything})"

    def has_lost_files(self, since: Seen) -> bool:
        """
        Say whether a file that existed at an earlier look is gone, which raised no generation.

        Also where the lists of what replacements changed since are gone, as after a week: nobody can tell the two apart then.
        """
        return len(self.partitions) < since.files + len(self._changed_since(since)[1])

    def newest_times(self, connection: duckdb.DuckDBPyConnection) -> tuple[int | None, int | None]:
        """
        Return the newest event time that is served, and the newest time of the source rows behind it, UTC microseconds.

        The latter is the age of the data itself: of an event view, its newest visible row; of a window view, the newest source
        row that its windows read, since an hourly window over a dead source is not fresh.
        """
        if self.view.is_window_view:
            events = [one.max_event_timestamp for one in self.partitions if one.max_event_timestamp is not None]
            sources = [one.newest_source_timestamp for one in self.partitions if one.newest_source_timestamp is not None]
            return max(events, default=None), max(sources, default=None)
        newest: int | None = None
        for one in sorted(self.partitions, key=lambda one: one.max_event_timestamp or 0, reverse=True):
            if one.max_event_timestamp is None or (newest is not None and one.max_event_timestamp <= newest):
                break
            rows = history_of(self.view, self.store, [one], []).sql
            sql = f"select epoch_us(max(event_timestamp)) from ({rows}) where {_visible(self.view, self.now)}"
            found: int | None = first_row(connection, sql)[0]
            newest = max((time for time in (newest, found) if time is not None), default=None)
        return newest, newest

    def _changed_since(self, since: Seen) -> tuple[dict[int, Path], list[Partition]]:
        """Return the keys' files of replacements since an earlier look, by generation, and the partitions that are new since."""
        changes = self.store.changes(self.view, after=since.generation, until=self.generation)
        return changes, [one for one in self.partitions if _is_new(self.view, one, since, changes)]

    def _history(self, features: Sequence[str]) -> History:
        counted = [one for one in self.partitions if self.newest_full is None or one.end >= self.newest_full]
        return history_of(self.view, self.store, counted, features)


def _exists(view: FeatureView, partition: Partition, at: datetime) -> bool:
    """Say whether a window exists at a moment; an event view's rows are visible one by one."""
    return not view.is_window_view or partition.end <= to_micros(at) - view.delay // MICROSECOND


def _is_new(view: FeatureView, partition: Partition, since: Seen, changes: dict[int, Path]) -> bool:
    """Say whether a partition was not there at an earlier look, rather than replaced since."""
    was_written = partition.generation > since.generation and partition.generation not in changes
    if view.is_window_view:
        return was_written or not _exists(view, partition, since.at)
    return was_written or partition.start > to_micros(since.at)


def _visible(view: FeatureView, at: datetime) -> str:
    """Return the condition of an event view's row that is visible at a moment (law L2)."""
    condition = f"event_timestamp + {interval(view.delay)} <= {timestamp(at)}"
    if view.has_created_timestamp:
        condition += f" and (created_timestamp is null or created_timestamp <= {timestamp(at)})"
    return condition
