"""
The newest row of each key at a moment, and which keys' newest rows may have changed since an earlier moment.

Knows the state model, generations and what replacements changed. Knows nothing of where the rows go.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Final

from feature_platform.dtypes import MICROSECOND, to_micros
from feature_platform.model import FeatureView
from feature_platform.offline.history import History, history_of
from feature_platform.offline.kept_states import KeptState, newest_state, visible_at, winners
from feature_platform.offline.query import first_row, parquet, quote, quote_all
from feature_platform.offline.store import OfflineStore, Partition, Summary
from feature_platform.windows import utc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import duckdb

__all__ = ["NewestRows", "Seen"]

_FEW_ROWS: Final = 1_000_000
_NEWER_SHARE: Final = 8


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
        summary: Of the partitions that exist at the moment.
        newest_full: Window views: the end of the newest full partition among them; older rows do not count.
        state: A kept state that stands for the older ones of those.
        partitions: The rest of those whose rows count, oldest first.
    """

    view: FeatureView
    store: OfflineStore
    now: datetime
    generation: int
    summary: Summary
    newest_full: int | None
    state: KeptState | None
    partitions: Sequence[Partition]

    @classmethod
    def at(cls, view: FeatureView, store: OfflineStore, now: datetime) -> NewestRows:
        """Look at what exists at a moment."""
        generation, moment = store.generation(view), to_micros(utc(now))
        if not view.is_window_view:
            # Its rows are visible one by one; a partition that starts later has none of them.
            summary, state = store.summary(view, started_by=moment), newest_state(view, store, moment)
            after = None if state is None else state.until
            found = store.partitions(view, after=after, before=utc(now) + MICROSECOND)
            return cls(view, store, utc(now), generation, summary, None, state, found)
        limit = moment - view.delay // MICROSECOND
        summary, state = store.summary(view, ended_by=limit), newest_state(view, store, limit)
        if state is not None and state.newest_full != summary.newest_full:
            state = None
        # The newest full partition is the first that counts; with a state, what comes after it.
        after = state.until if state else None if summary.newest_full is None else summary.newest_full - 1
        found = [one for one in store.partitions(view, after=after, before=utc(now)) if one.end <= limit]
        return cls(view, store, utc(now), generation, summary, summary.newest_full, state, found)

    @cached_property
    def _rows(self) -> int:
        """How many rows may count, those of the state among them."""
        return sum(one.rows for one in self.partitions) + (self.state.rows if self.state else 0)

    @property
    def seen(self) -> Seen:
        """What the next look goes on from."""
        return Seen(generation=self.generation, at=self.now, files=self.summary.partitions, newest_full=self.newest_full)

    @property
    def is_uniform(self) -> bool:
        """Whether every file was computed by the view's present definition."""
        return not self.summary.of_other_definitions

    @property
    def newest_window_key(self) -> str | None:
        """The key of the last window that exists."""
        end = self.summary.newest_end
        return None if end is None else self.store.partitions(self.view, after=end - 1)[0].window.key

    def rows(self, *, keys: str | None = None, part: tuple[int, int] | None = None) -> History:
        """
        Return the SELECT of the newest row of each key.

        Args:
            keys: A table of join keys: only theirs.
            part: Which of how many parts, each with about as many keys: only its keys.
        """
        features = list(self.view.feature_by_name)
        history = self._history(features)
        if history.sql is None:
            return history
        visible = "true" if self.view.is_window_view else visible_at(self.view, self.now)
        only = f" semi join {keys} using ({quote_all(self.view.entity.join_keys)})" if keys else ""
        if part is not None:
            visible += f" and hash({quote_all(self.view.entity.join_keys)}) % {part[1]} = {part[0]}"

        def seen(rows: str | None) -> str:
            return f"select * from ({rows}){only} where {visible}"

        start = None if history.partial else self._begin_newer()
        if start is None:
            return History(winners(self.view, seen(history.sql)), history.partial)
        # Whoever has a newer row needs no look at the older ones: those of a few keys remain, and little is held.
        newer = history_of(self.view, self.store, self.partitions[start:], features).sql
        older = history_of(self.view, self.store, self.partitions[:start], features, self.state).sql
        same = " and ".join(f"o.{quote(key)} = n.{quote(key)}" for key in self.view.entity.join_keys)
        rest = winners(self.view, f"select o.* from ({seen(older)}) as o anti join __newer as n on {same}")
        newest = f"with __newer as ({winners(self.view, seen(newer))})\nselect * from __newer\nunion all by name\nselect * from ({rest})"
        return History(newest, history.partial)

    def _begin_newer(self) -> int | None:
        """Return the first of the partitions whose rows, a small part of many, are newer than all rows before; None if there is none."""
        start, newer = len(self.partitions), 0
        while start and newer * _NEWER_SHARE < self._rows:
            start -= 1
            newer += self.partitions[start].rows
        before = [one.max_event_timestamp for one in self.partitions[:start] if one.max_event_timestamp is not None]
        if self.state is not None:  # of an event view, it ends before
            before.append(self.state.until if self.view.is_window_view else self.state.until - 1)
        after = [one.min_event_timestamp for one in self.partitions[start:] if one.min_event_timestamp is not None]
        is_split = self._rows > _FEW_ROWS and before and after and max(before) < min(after)
        return start if is_split and self.view.entity.join_keys else None

    def estimated_keys(self, connection: duckdb.DuckDBPyConnection, *, unless_rows: int) -> int:
        """Return about how many keys there are; where there are no more rows than `unless_rows`, the number of rows."""
        history, keys = self._history([]).sql, quote_all(self.view.entity.join_keys)
        if self._rows <= unless_rows or history is None or not keys:
            return self._rows
        found: int = first_row(connection, f"select approx_count_distinct(hash({keys})) from ({history})")[0]
        return found

    @property
    def identity(self) -> str:
        """What two looks have in common that find the same rows."""
        # Rows of an event view become visible one by one: unless all are, the moment decides which.
        is_all = self.view.is_window_view
        if not is_all and not self.view.has_created_timestamp:
            times = [one.max_event_timestamp or 0 for one in self.partitions] + ([self.state.until] if self.state else [])
            is_all = max(times, default=0) + self.view.delay // MICROSECOND <= to_micros(self.now)
        return repr((self.view.definition_hash, self.generation, self.summary, None if is_all else to_micros(self.now)))

    def changed_keys(self, since: Seen) -> str | None:
        """
        Return the SELECT of the join keys whose newest row may be another one than at an earlier look.

        None where that cannot be told: the complete state was renewed, files came and went unseen, or there are no join keys.
        """
        view = self.view
        changes, new = self._changed_since(since)
        written = {one.generation for one in self.store.written(view, after=since.generation, until=self.generation)}
        is_known = len(written | changes.keys()) == self.generation - since.generation
        is_known &= self.summary.partitions == since.files + len(new)
        if not view.entity.join_keys or not is_known or self.newest_full != since.newest_full or self.now < since.at:
            return None
        keys = quote_all(view.entity.join_keys)
        selects = [f"select {keys} from {parquet(changes.values())}"] if changes else []
        if new:
            selects.append(f"select {keys} from ({history_of(view, self.store, new, []).sql})")
        history = None if view.is_window_view else self._history([]).sql
        if history is not None:  # rows that nobody wrote, and that became visible with time
            selects.append(f"select {keys} from ({history}) where {visible_at(view, self.now)} and not ({visible_at(view, since.at)})")
        everything = "\nunion all\n".join(selects) or f"select {keys} from ({self._history([]).sql}) limit 0"
        return f"select distinct {keys} from ({everything})"

    def has_lost_files(self, since: Seen) -> bool:
        """
        Say whether a file that existed at an earlier look is gone, which raised no generation.

        Also where the lists of what replacements changed since are gone, as after a week: nobody can tell the two apart then.
        """
        return self.summary.partitions < since.files + len(self._changed_since(since)[1])

    def newest_times(self, connection: duckdb.DuckDBPyConnection) -> tuple[int | None, int | None]:
        """
        Return the newest event time that is served, and the newest time of the source rows behind it, UTC microseconds.

        The latter is the age of the data itself: of an event view, its newest visible row; of a window view, the newest source
        row that its windows read, since an hourly window over a dead source is not fresh.
        """
        if self.view.is_window_view:
            return self.summary.newest_event, self.summary.newest_source
        newest: int | None = None
        for one in sorted(self.partitions, key=lambda one: one.max_event_timestamp or 0, reverse=True):
            if one.max_event_timestamp is None or (newest is not None and one.max_event_timestamp <= newest):
                break
            newest = max(newest or 0, self._newest_visible(connection, [one], None) or 0) or None
        if newest is None and self.state is not None:
            newest = self._newest_visible(connection, [], self.state)
        return newest, newest

    def _newest_visible(
        self, connection: duckdb.DuckDBPyConnection, partitions: Sequence[Partition], state: KeptState | None
    ) -> int | None:
        rows = history_of(self.view, self.store, partitions, [], state).sql
        sql = f"select epoch_us(max(event_timestamp)) from ({rows}) where {visible_at(self.view, self.now)}"
        found: int | None = first_row(connection, sql)[0]
        return found

    def _changed_since(self, since: Seen) -> tuple[dict[int, Path], list[Partition]]:
        """Return the keys' files of replacements since an earlier look, by generation, and the partitions that are new since."""
        view, limit = self.view, to_micros(self.now) - self.view.delay // MICROSECOND
        changes = self.store.changes(view, after=since.generation, until=self.generation)
        written = [one for one in self.store.written(view, after=since.generation) if one.generation not in changes]
        if view.is_window_view:
            became_due = self.store.partitions(view, after=to_micros(since.at) - view.delay // MICROSECOND)
            new = {one.window: one for one in [*written, *became_due] if one.end <= limit}
        else:
            begun = [one for one in self.store.partitions(view, after=to_micros(since.at)) if one.start > to_micros(since.at)]
            new = {one.window: one for one in [*written, *begun] if one.start <= to_micros(self.now)}
        return changes, list(new.values())

    def _history(self, features: Sequence[str]) -> History:
        return history_of(self.view, self.store, self.partitions, features, self.state)
