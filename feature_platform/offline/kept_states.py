"""
Kept states: the rows of all partitions up to some window's end that can still win, in one file.

With one of them, what is newest costs its keys and the partitions since, however long the history is. A state says which
partitions it was made of; where one of those was replaced since, it counts no more. Nothing is lost with the files.
Knows the state model and when rows are visible. Knows nothing of who asks.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.dtypes import from_micros, to_micros
from feature_platform.model import ViewKind
from feature_platform.offline.history import stored_rows
from feature_platform.offline.partition import METADATA_KEY
from feature_platform.offline.query import interval, literal, parquet, quote, quote_all, timestamp
from feature_platform.windows import KEY_FORMAT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import duckdb

    from feature_platform.model import FeatureView
    from feature_platform.offline.store import OfflineStore

__all__ = ["KeptState", "forget_states", "keep_state", "newest_state", "visible_at", "winners"]

_FOLDER: Final = "_states"
_RECENT: Final = 8
_MINUTE: Final = 60_000_000


@dataclass(frozen=True, kw_only=True)
class KeptState:
    """
    One kept state.

    Attributes:
        path: Its file.
        until: It stands for all partitions that end at or before it, UTC microseconds; for a window view as of then.
        partitions: How many those were.
        generations: Sum of their generations.
        newest_full: Window views: the end of the newest full one among them.
        definition: Definition hash of the view that computed them all.
        columns: Feature name to dtype.
        rows: How many it has.
    """

    path: Path
    until: int
    partitions: int
    generations: int
    newest_full: int | None
    definition: str
    columns: dict[str, str]
    rows: int = 0


def newest_state(view: FeatureView, store: OfflineStore, until: int) -> KeptState | None:
    """
    Return the newest state that stands for the partitions as they are today.

    Args:
        view: Whose.
        store: Its history.
        until: None later than this, UTC microseconds.
    """
    for path in _paths(view, store):
        if _until(path) <= until and (state := _read(path)) and _is_right(view, store, state):
            return state
    return None


def keep_state(connection: duckdb.DuckDBPyConnection, view: FeatureView, store: OfflineStore, until: int) -> bool:
    """
    Make the state of a view as of a window's end, from the one before it and the partitions in between.

    Args:
        connection: Any DuckDB connection with our settings.
        view: Whose.
        store: Its history.
        until: A whole minute, UTC microseconds.

    Returns:
        Whether one was made. There is none to keep of a snapshot, whose partitions are complete, of a view that is not partitioned, nor
        of what another definition computed, which may mean something else; and none where the one before says the same.
    """
    summary = store.summary(view, ended_by=until)
    if view.kind is ViewKind.SNAPSHOT or view.schedule is None or not summary.partitions or until % _MINUTE:
        return False
    before = newest_state(view, store, until)
    if before is not None and (before.until == until or before.partitions == summary.partitions):
        return False
    if before is not None and before.newest_full != _newest_full(view, summary.newest_full):
        before = None
    partitions = [one for one in store.partitions(view, after=None if before is None else before.until) if one.end <= until]
    if view.is_window_view and summary.newest_full is not None:
        partitions = [one for one in partitions if one.end >= summary.newest_full]
    columns = {name: str(feature.type) for name, feature in view.feature_by_name.items()}
    if any(one.definition != view.definition_hash or one.columns != columns for one in partitions):
        return False
    rows = ([stored_rows(view, store, partitions)] if partitions else []) + (
        [f"select * from {parquet([before.path])}"] if before is not None else []
    )
    path = store.folder(view) / _FOLDER / f"{from_micros(until).strftime(KEY_FORMAT)}.parquet"
    state = KeptState(
        path=path,
        until=until,
        partitions=summary.partitions,
        generations=summary.generations,
        newest_full=_newest_full(view, summary.newest_full),
        definition=view.definition_hash,
        columns=columns,
    )
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
    footer = {name: value for name, value in asdict(state).items() if name not in {"path", "rows"}}
    order = quote_all([*view.entity.join_keys, "event_timestamp"])
    remaining = _remaining(view, "\nunion all by name\n".join(rows), until)
    try:
        connection.execute(
            f"copy (select * from ({remaining}) order by {order}) to {literal(str(temporary))} "
            f"(format parquet, compression lz4_raw, kv_metadata {{{METADATA_KEY}: {literal(json.dumps(footer))}}})"
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def forget_states(view: FeatureView, store: OfflineStore) -> int:
    """Delete states that count no more, and all but the first of each month beyond the last few; return how many."""
    seen: set[str] = set()
    deleted = 0
    for index, path in enumerate(reversed(_paths(view, store))):
        state, month = _read(path), path.stem[:7]
        is_recent = index >= len(_paths(view, store)) - _RECENT
        if state is None or not _is_right(view, store, state) or (month in seen and not is_recent):
            path.unlink(missing_ok=True)
            deleted += 1
        else:
            seen.add(month)
    return deleted


def visible_at(view: FeatureView, at: datetime) -> str:
    """Return the condition of an event view's row that is visible at a moment (law L2)."""
    condition = f"event_timestamp + {interval(view.delay)} <= {timestamp(at)}"
    if view.has_created_timestamp:
        condition += f" and (created_timestamp is null or created_timestamp <= {timestamp(at)})"
    return condition


def winners(view: FeatureView, rows: str) -> str:
    """
    Return the SELECT of the newest row of each key (law L4).

    By the greatest time and a join back: less than half the time of `row_number() = 1`, whose sort also loses the sign of zero.
    """
    by = ["event_timestamp"]
    if view.has_created_timestamp:
        by.append("coalesce(created_timestamp, timestamp '0001-01-01')")
    keys = list(view.entity.join_keys)
    on = "".join(f"r.{quote(key)} = n.{quote(key)} and " for key in keys)
    for time in by:
        newest = f"select {''.join(quote(key) + ', ' for key in keys)}max({time}) as __newest from __rows" + (
            f" group by {quote_all(keys)}" if keys else ""
        )
        rows = f"with __rows as ({rows})\nselect r.* from __rows as r semi join ({newest}) as n on {on}{time} = n.__newest"
    return rows


def _remaining(view: FeatureView, rows: str, until: int) -> str:
    """Return the SELECT of those rows that can win at some moment from `until` on: each key's winner then, and all not yet visible."""
    if view.is_window_view:
        return winners(view, rows)
    visible = visible_at(view, from_micros(until))
    newest = winners(view, f"select * from ({rows}) where {visible}")
    return f"select * from ({newest})\nunion all by name\nselect * from ({rows}) where not coalesce({visible}, false)"


def _newest_full(view: FeatureView, newest_full: int | None) -> int | None:
    return newest_full if view.is_window_view else None


def _paths(view: FeatureView, store: OfflineStore) -> Sequence[Path]:
    """Return the states' files, newest first."""
    folder = store.folder(view) / _FOLDER
    names = [name for name in os.listdir(folder) if not name.startswith(".")] if folder.is_dir() else []  # noqa: PTH208 - names alone
    return [folder / name for name in sorted(names, reverse=True)]


def _until(path: Path) -> int:
    return to_micros(datetime.fromisoformat(path.stem))


def _read(path: Path) -> KeptState | None:
    try:
        metadata = pq.read_metadata(path)
        footer = json.loads((metadata.metadata or {})[METADATA_KEY.encode()])
        return KeptState(path=path, rows=metadata.num_rows, **footer)
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None  # forgotten meanwhile, or of another version


def _is_right(view: FeatureView, store: OfflineStore, state: KeptState) -> bool:
    """Say whether the partitions that a state stands for are those that it was made of."""
    store.look_again(view, ended_by=state.until)  # nobody will be given them: 2 us a file
    summary = store.summary(view, ended_by=state.until)
    made_of = (state.partitions, state.generations, state.definition, state.newest_full)
    return made_of == (summary.partitions, summary.generations, view.definition_hash, _newest_full(view, summary.newest_full))
