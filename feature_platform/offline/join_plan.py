"""
What a point-in-time join will read of each view, and how: plain values, made before any row is read.

Knows partitions, states and sizes. A plan can be sent to another process; running it is `asof`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from feature_platform.dtypes import MICROSECOND, from_micros, to_micros
from feature_platform.model import ON_UPDATE, FeatureView, ViewKind
from feature_platform.offline.history import history_of, window_states
from feature_platform.offline.kept_states import newest_state
from feature_platform.windows import WHOLE, grid_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_platform.offline.kept_states import KeptState
    from feature_platform.offline.partition import Partition
    from feature_platform.offline.question import AsOf, Question
    from feature_platform.offline.store import OfflineStore
    from feature_platform.registry import FeatureRef

__all__ = ["PlannedFeature", "ViewPlan", "needed_partitions", "plan_views"]

_FIRST: Final = datetime(2, 1, 1, tzinfo=UTC)
_FIRST_MICROS: Final = to_micros(datetime(1, 1, 1, tzinfo=UTC))
_VALUE_BYTES: Final = {"bool": 1, "int": 8, "float": 8, "datetime": 8, "date": 4, "decimal": 16}
_OTHER_BYTES: Final = 32


@dataclass(frozen=True, kw_only=True)
class PlannedFeature:
    """
    One feature of a plan.

    Attributes:
        name: Its column in the history.
        column: Its column in the result.
        sql_type: DuckDB's.
        has_default: Whether the plan's `defaults` have a value for it.
    """

    name: str
    column: str
    sql_type: str
    has_default: bool


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """
    How one view is joined.

    Attributes:
        view: Its name.
        kind: Its kind.
        join_keys: Of its entity.
        features: What is asked of it.
        delay: Of the view.
        ttl: Of the view.
        as_of: As asked.
        statuses: Whether statuses are asked for.
        has_created_timestamp: Whether its rows say when they were known.
        shift: Labels: how long after the entity row's time they are looked up; else None.
        known_until: Labels: the last moment that is known wholly, UTC microseconds.
        history: SELECT of its rows; None where there are none.
        partial: Features that some of its files lack.
        windows: Window views: every window's end and the newest full one up to it, UTC microseconds.
        defaults: One row of the declared defaults.
        files: What it reads.
        rows: In the files.
        width: Bytes of one row in memory, about.
        partitions: How many of its partitions can hold an answer.
        skipped: How many are not looked at.
        state: The kept state that stands for older ones: the key of the window's end.
        span: From the start of the first window to the end of the last one, UTC microseconds.
    """

    view: str
    kind: ViewKind
    join_keys: tuple[str, ...]
    features: tuple[PlannedFeature, ...]
    delay: timedelta
    ttl: timedelta | None
    as_of: AsOf
    statuses: bool
    has_created_timestamp: bool
    shift: timedelta | None
    known_until: int | None
    history: str | None
    partial: frozenset[str]
    windows: pa.Table | None
    defaults: pa.Table | None
    files: tuple[str, ...]
    rows: int
    width: int
    partitions: int
    skipped: int
    state: str | None
    span: tuple[int, int] | None

    @property
    def bytes_in_memory(self) -> int:
        """What its rows are in memory, about."""
        return self.rows * self.width


def plan_views(store: OfflineStore, question: Question, bounds: tuple[int | None, ...]) -> list[ViewPlan]:
    """
    Plan a question.

    Args:
        store: The history.
        question: What is asked.
        bounds: The earliest and latest time of the entity rows, UTC microseconds; None where there is none.
    """
    plans = [_plan(store, question, refs, bounds, shift=None) for refs in question.by_view.values()]
    for refs in question.labels_by_view.values():
        moved = tuple(None if one is None else one + question.label_delay // MICROSECOND for one in bounds)
        plans.append(_plan(store, question, refs, moved, shift=question.label_delay))
    return plans


def needed_partitions(
    view: FeatureView, store: OfflineStore, bounds: tuple[int | None, ...], question: Question, *, after: int | None = None
) -> list[Partition]:
    """
    Return the partitions that can hold an answer for times between the bounds, oldest first.

    Args:
        view: Whose.
        store: Its history.
        bounds: The earliest and latest time, UTC microseconds.
        question: What is asked.
        after: Only those whose window ends after it: a kept state stands for the others.
    """
    earliest, latest = bounds
    if earliest is None or latest is None:
        return []
    delay = view.delay // MICROSECOND
    before = min(max(latest - delay + 1, to_micros(_FIRST)), to_micros(WHOLE.end))  # a time may be further off than a datetime reaches
    if view.is_window_view:
        if after is None:
            newest_full = store.summary(view, ended_by=earliest - delay).newest_full
            after = None if newest_full is None else newest_full - 1
        return [one for one in store.partitions(view, after=after, before=from_micros(before)) if one.end <= latest - delay]
    if (oldest := _oldest(view, question, earliest)) is not None:
        after = oldest if after is None else max(after, oldest)
    return store.partitions(view, after=after, before=from_micros(before))


def _oldest(view: FeatureView, question: Question, earliest: int) -> int | None:
    """Return the time before which no row of an event view can be an answer: past the ttl and not there at all give one value."""
    if view.ttl is None or question.statuses or view.schedule is None:
        return None  # only statuses tell the two apart
    return earliest - view.ttl // MICROSECOND


def _plan(
    store: OfflineStore, question: Question, refs: Sequence[FeatureRef], bounds: tuple[int | None, ...], *, shift: timedelta | None
) -> ViewPlan:
    view, names = refs[0].view, [ref.feature.name for ref in refs]
    state = _state(view, store, bounds, question)
    partitions = needed_partitions(view, store, bounds, question, after=None if state is None else state.until)
    history = history_of(view, store, partitions, names, state)
    files = dict.fromkeys(str(store.file(view, one)) for one in partitions)
    if state is not None:
        files[str(state.path)] = None
    counted = len(partitions) + (state.partitions if state else 0)
    widths = [_VALUE_BYTES.get(ref.feature.type.family, _OTHER_BYTES) for ref in refs]
    keys = [_VALUE_BYTES.get(dtype.family, _OTHER_BYTES) for dtype in view.entity.keys.values()]
    return ViewPlan(
        view=view.name,
        kind=view.kind,
        join_keys=tuple(view.entity.join_keys),
        features=tuple(
            PlannedFeature(
                name=ref.feature.name,
                column=ref.column,
                sql_type=ref.feature.type.duckdb,
                has_default=ref.feature.effective_default is not None,
            )
            for ref in refs
        ),
        delay=view.delay,
        ttl=view.ttl,
        as_of=question.as_of,
        statuses=question.statuses,
        has_created_timestamp=view.has_created_timestamp,
        shift=shift,
        known_until=None if shift is None else _known_until(view, store),
        history=history.sql,
        partial=history.partial,
        windows=_windows(store, view, partitions, state) if view.is_window_view else None,
        defaults=_defaults(refs),
        files=tuple(files),
        rows=sum(one.rows for one in partitions) + (state.rows if state else 0),
        width=sum(widths) + sum(keys) + 8,
        partitions=counted,
        skipped=store.summary(view).partitions - counted,
        state=None if state is None else state.path.stem,
        span=(partitions[0].start, partitions[-1].end) if partitions else None,
    )


def _state(view: FeatureView, store: OfflineStore, bounds: tuple[int | None, ...], question: Question) -> KeptState | None:
    """Return the newest kept state from before the earliest time, where it spares reading more rows than it has."""
    earliest, latest = bounds
    if earliest is None or latest is None or view.schedule is None or view.kind is ViewKind.SNAPSHOT:
        return None
    until = earliest - (view.delay // MICROSECOND if view.is_window_view else 0)
    state = newest_state(view, store, until)
    if state is None:
        return None
    if view.is_window_view:
        # A full partition after the state ends all that it holds.
        newest_full = store.summary(view, ended_by=until).newest_full
        return state if state.newest_full == newest_full else None
    oldest = _oldest(view, question, earliest)
    if oldest is None:
        return state
    spared = [one.rows for one in store.partitions(view, after=oldest) if one.end <= state.until]
    return state if sum(spared) > state.rows else None


def _windows(store: OfflineStore, view: FeatureView, partitions: Sequence[Partition], state: KeptState | None) -> pa.Table:
    before: list[Partition] = []
    if state is not None:  # the last window that the state stands for is the as-of until the next one ends
        newest_end = store.summary(view, ended_by=state.until).newest_end
        before = [one for one in store.partitions(view, after=(newest_end or 0) - 1) if one.end == newest_end]
    states = window_states([*before, *partitions], None if state is None else state.newest_full)
    return pa.table({"window_end": pa.array(states.ends, pa.int64()), "newest_full": pa.array(states.newest_full, pa.int64())})


def _defaults(refs: Sequence[FeatureRef]) -> pa.Table | None:
    """Return the declared defaults, of any dtype, as one row."""
    values: dict[str, Any] = {}
    for ref in refs:
        if ref.feature.effective_default is not None:
            values[ref.feature.name] = pa.array([ref.feature.effective_default], ref.feature.type.arrow)
    return pa.table(values) if values else None


def _known_until(view: FeatureView, store: OfflineStore) -> int:
    """
    Return the last moment at which what a view answers is settled: nothing that is computed later changes it, late data apart.

    A window view answers by its newest window until the next one has ended and its delay has passed; an event view knows the rows up
    to the end of its newest partition, or to when that was computed, if it was before.
    """
    summary = store.summary(view)
    if summary.newest_end is None:
        return _FIRST_MICROS
    delay = view.delay // MICROSECOND
    if view.is_window_view:
        grid, end = grid_of(view), from_micros(summary.newest_end)
        following = grid.touching(end, end + MICROSECOND) if grid else []
        return (to_micros(following[0].end) if following else summary.newest_end) + delay - 1
    newest = store.partitions(view, after=summary.newest_end - 1)[-1]
    computed_at = newest.computed_at if newest.computed_at is not None else newest.end
    is_open = view.schedule in {ON_UPDATE, None}
    return (min(newest.end, computed_at) if is_open else newest.end) + delay - 1
