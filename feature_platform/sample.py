"""
Sample watch events of a streaming service, seeded and shaped like real traffic.

Knows the columns of `data/sources/watches` and what traffic looks like: few users and titles make most of it, evenings are
busy, some users stop for good, and one row in fifty is ingested minutes to two days late. Knows nothing of features.

Two users are pinned, whatever the size, the seed and the end, and their numbers hold for windows that end up to six hours
before or after the sample does:

- `8a2f` watches 47 titles in the last 30 days, the last a `documentary`; in the month before that it was a `regular`.
- `b13c` watches 5 titles in the last 30 days, the last a `thriller`. One of them is `LATE_EXAMPLE`: ten days before the end
  it watches `horror`, and the row is ingested 20 hours later. A join that goes by the event's time alone leaks that value
  into every question asked within those 20 hours; what was known then is `drama`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["FOLDER", "LATE_EXAMPLE", "PINNED_USERS", "LateExample", "SampleReport", "find", "generate"]

FOLDER = Path("data/sources/watches")

_MARKER = "_sample.json"
# Raised when the same parameters give other rows, so that older samples are written again.
_VERSION = 1

_GENRES = ("drama", "comedy", "thriller", "documentary", "action", "crime", "romance", "animation", "science_fiction", "horror")
_GENRE_SHARES = (0.2, 0.18, 0.13, 0.1, 0.1, 0.09, 0.07, 0.06, 0.04, 0.03)
_TITLES = 2_000

# By hour of the day (UTC) and by weekday from Monday: the rhythm of an audience around Greenwich.
_HOURS = (3, 2, 1, 1, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 5, 6, 7, 9, 11, 12, 11, 9, 5)
_WEEKDAYS = (0.9, 0.9, 0.92, 0.95, 1.1, 1.25, 1.2)

_QUIET_SHARE = 0.15
_LATE_SHARE = 0.02
_PROMPT = timedelta(seconds=3)
# A window of 30 days, the day by which the daily window may lag behind the hourly one, and the margin on either side.
_SHORTEST_DAYS = 32

_HOUR = 3_600_000_000


class LateExample(NamedTuple):
    """A row whose value was not known when it became true: where a naive join leaks."""

    user_id: str
    before_end: timedelta
    lag: timedelta
    genre: str
    genre_before: str


PINNED_USERS = ("8a2f", "b13c")
LATE_EXAMPLE = LateExample("b13c", before_end=timedelta(days=10), lag=timedelta(hours=20), genre="horror", genre_before="drama")


@dataclass(frozen=True, slots=True)
class SampleReport:
    """
    What a sample holds.

    `start` and `end` bound `watched_at` (half-open); `skipped` says that the same sample was there already.
    """

    folder: Path
    users: int
    events: int
    files: int
    start: datetime
    end: datetime
    seconds: float
    skipped: bool


class _PinnedEvent(NamedTuple):
    user_id: str
    genre: str
    before_end: timedelta
    lag: timedelta = _PROMPT


class _Slot(NamedTuple):
    """A stretch within one hour of the clock, in microseconds of UTC."""

    start: int
    end: int


def generate(
    root: Path,
    *,
    users: int = 10_000,
    events: int = 1_000_000,
    days: int = 60,
    end: datetime | None = None,
    seed: int = 7,
    now: datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SampleReport:
    """
    Write the sample's day files below `root`, or find them there.

    Args:
        root: The project folder; files go to `data/sources/watches/<UTC day>.parquet` in it, rows sorted by `watched_at`.
        users: How many user ids occur at most, the two pinned ones included.
        events: How many rows, exactly.
        days: How far before `end` the sample reaches; at least 32.
        end: The first instant after the sample; naive means UTC. The last full hour of `now` if not given.
        seed: The same seed, sizes and end give the same rows.
        now: The clock to read.
        progress: Called with rows written and rows in all, after every day.

    Raises:
        SettingsError: A size too small for the pinned users, or the folder has Parquet that no sample wrote.
    """
    began = time.perf_counter()
    last = _utc(end) if end is not None else _utc(now or datetime.now(UTC)).replace(minute=0, second=0, microsecond=0)
    pinned = _pinned_events(days)
    _check(users=users, events=events, days=days, pinned=len(pinned))
    folder = root / FOLDER
    parameters = {"version": _VERSION, "users": users, "events": events, "days": days, "end": last.isoformat(), "seed": seed}
    marker = _read_marker(folder)
    if marker.get("complete") and marker.get("parameters") == parameters and all((folder / name).exists() for name in marker["files"]):
        return _report(folder, marker, began=began, skipped=True)

    slots = _slots(last - timedelta(days=days), last)
    names = sorted({_day_file(slot.start) for slot in slots})
    owned = set(marker.get("files", ()))
    _refuse_foreign_files(folder, owned)
    folder.mkdir(parents=True, exist_ok=True)
    # Before the first file: a run that dies half-way leaves files that the next one knows as its own.
    _write_marker(folder, {"complete": False, "parameters": parameters, "files": sorted(owned | set(names))})
    written = 0
    for name, table in _day_tables(slots, users=users, events=events, seed=seed, end=_micros(last), pinned=pinned):
        _write_day(folder / name, table)
        written += table.num_rows
        if progress is not None:
            progress(written, events)
    for name in owned.difference(names):
        (folder / name).unlink(missing_ok=True)
    marker = {"complete": True, "parameters": parameters, "files": names}
    _write_marker(folder, marker)
    return _report(folder, marker, began=began, skipped=False)


def find(root: Path) -> SampleReport | None:
    """Describe the complete sample below `root`, if there is one."""
    began = time.perf_counter()
    folder = root / FOLDER
    marker = _read_marker(folder)
    return _report(folder, marker, began=began, skipped=True) if marker.get("complete") else None


def _check(*, users: int, events: int, days: int, pinned: int) -> None:
    if days < _SHORTEST_DAYS:
        raise SettingsError(f"days={days} is too short for the windows of 30 days: use {_SHORTEST_DAYS} or more.", field="days")
    if users <= len(PINNED_USERS):
        raise SettingsError(f"users={users} leaves none beside the two pinned ones: use 3 or more.", field="users")
    if events < pinned:
        raise SettingsError(f"events={events} has no room for the {pinned} rows of the pinned users: use {pinned} or more.", field="events")


def _pinned_events(days: int) -> list[_PinnedEvent]:
    """
    List the rows of the pinned users within the last `days` days.

    None lies within six hours of the end, nor between 29 days 18 hours and 31 days 6 hours before it: the left edge of the
    hourly window, and of the daily one whatever the hour of the end.
    """
    busy, casual = PINNED_USERS
    hours = [timedelta(hours=6, minutes=30 + index * 917) for index in range(47)]
    earlier = [timedelta(days=31, hours=9, minutes=index * 2_700) for index in range(14)]
    rows = [
        _PinnedEvent(busy, ("documentary", "drama", "documentary", "comedy")[index % 4], before)
        for index, before in enumerate(hours + earlier)
    ]
    rows += [
        _PinnedEvent(casual, "thriller", timedelta(hours=9, minutes=36)),
        _PinnedEvent(casual, "comedy", timedelta(days=4, hours=5)),
        _PinnedEvent(casual, LATE_EXAMPLE.genre, LATE_EXAMPLE.before_end, LATE_EXAMPLE.lag),
        _PinnedEvent(casual, LATE_EXAMPLE.genre_before, timedelta(days=17, hours=2)),
        _PinnedEvent(casual, "crime", timedelta(days=25, hours=3)),
        _PinnedEvent(casual, "comedy", timedelta(days=34, hours=1)),
        _PinnedEvent(casual, "drama", timedelta(days=43, hours=4)),
        _PinnedEvent(casual, "thriller", timedelta(days=52, hours=2)),
    ]
    return [row for row in rows if row.before_end < timedelta(days=days)]


def _slots(start: datetime, end: datetime) -> list[_Slot]:
    """Cut `[start, end)` at the hours of the clock: each slot lies in one hour, so in one UTC day."""
    first, last = _micros(start), _micros(end)
    edges = [first, *range((first // _HOUR + 1) * _HOUR, last, _HOUR), last]
    return [_Slot(*pair) for pair in pairwise(edges)]


def _day_tables(
    slots: Sequence[_Slot], *, users: int, events: int, seed: int, end: int, pinned: Sequence[_PinnedEvent]
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the name and the rows of every day file; each day draws from random numbers of its own."""
    rng = np.random.default_rng([seed, 0])
    catalog = _Catalog.draw(rng)
    audience = _Audience.draw(rng, users=users - len(PINNED_USERS), days=len({_day_file(slot.start) for slot in slots}))
    counts = rng.multinomial(events - len(pinned), _traffic(slots))
    for day, (name, group) in enumerate(groupby(zip(slots, counts, strict=True), key=lambda pair: _day_file(pair[0].start))):
        rng = np.random.default_rng([seed, 1, day])
        here = list(group)
        repeats = [int(count) for _, count in here]
        watched = rng.integers(np.repeat([slot.start for slot, _ in here], repeats), np.repeat([slot.end for slot, _ in here], repeats))
        size = watched.size
        titles = _choose(rng, catalog.popularity, size)
        rows = _Rows(
            user=_choose(rng, np.where(audience.quiet_from > day, audience.activity, 0.0), size),
            title=titles,
            # Half of the titles are watched to the end.
            minutes=np.maximum(1, catalog.lengths[titles] * np.minimum(1.0, rng.random(size) * 2.0)).astype(np.int64),
            watched=watched,
            ingested=watched + _lags(rng, size),
        )
        extra = _pinned_rows(
            [row for row in pinned if _day_file(end - _length(row.before_end)) == name],
            catalog,
            end=end,
            first_user=users - len(PINNED_USERS),
        )
        both = _Rows(*(np.concatenate(pair) for pair in zip(rows, extra, strict=True)))
        # What would be ingested after the end is ingested at the end: the sample's clock stops there.
        yield name, _table(both._replace(ingested=np.minimum(both.ingested, end)), catalog, audience)


def _pinned_rows(pinned: Sequence[_PinnedEvent], catalog: _Catalog, *, end: int, first_user: int) -> _Rows:
    watched = _ints(end - _length(row.before_end) for row in pinned)
    titles = _ints(catalog.title_of(row.genre) for row in pinned)
    return _Rows(
        user=_ints(first_user + PINNED_USERS.index(row.user_id) for row in pinned),
        title=titles,
        minutes=catalog.lengths[titles],
        watched=watched,
        ingested=watched + _ints(_length(row.lag) for row in pinned),
    )


def _table(rows: _Rows, catalog: _Catalog, audience: _Audience) -> pa.Table:
    order = np.argsort(rows.watched, kind="stable")
    user, title, minutes, watched, ingested = (column[order] for column in rows)
    instant = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "user_id": audience.user_ids.take(pa.array(user)),
            "title_id": catalog.title_ids.take(pa.array(title)),
            "genre": catalog.genres.take(pa.array(title)),
            "minutes": pa.array(minutes),
            "watched_at": pa.array(watched).cast(instant),
            "ingested_at": pa.array(ingested).cast(instant),
        }
    )


class _Rows(NamedTuple):
    """Columns of equal length: indices into audience and catalog, then minutes, then microseconds of UTC."""

    user: NDArray[np.int64]
    title: NDArray[np.int64]
    minutes: NDArray[np.int64]
    watched: NDArray[np.int64]
    ingested: NDArray[np.int64]


class _Catalog(NamedTuple):
    """The titles, most popular first."""

    title_ids: pa.Array
    genres: pa.Array
    lengths: NDArray[np.int64]
    popularity: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Catalog:
        genres = rng.choice(len(_GENRES), _TITLES, p=_GENRE_SHARES)
        # Every genre has a title, so that the pinned users can watch it.
        genres[: len(_GENRES)] = np.arange(len(_GENRES))
        return cls(
            title_ids=pa.array([f"tt{number:05d}" for number in range(_TITLES)]),
            genres=pa.array(_GENRES).take(pa.array(genres)),
            lengths=rng.integers(20, 150, _TITLES),
            popularity=np.arange(1, _TITLES + 1, dtype=np.float64) ** -0.9,
        )

    def title_of(self, genre: str) -> int:
        return _GENRES.index(genre)


class _Audience(NamedTuple):
    """The users: the pinned ones last, and not in the two arrays of the drawn ones."""

    user_ids: pa.Array
    activity: NDArray[np.float64]
    quiet_from: NDArray[np.int64]

    @classmethod
    def draw(cls, rng: np.random.Generator, *, users: int, days: int) -> _Audience:
        # Zipf-Mandelbrot: the flat head keeps the busiest user at 20 titles a day instead of thousands; of the default
        # sample about a third are power users and a quarter casual ones.
        activity = (np.arange(1, users + 1, dtype=np.float64) + users * 0.05) ** -1.5
        # The day from which a user is quiet; one past the last for those who stay. Nobody is quiet on the first day.
        quiet_from = np.where(rng.random(users) < _QUIET_SHARE, rng.integers(1, days, users), days)
        # Someone always watches: the busiest user stays.
        quiet_from[0] = days
        return cls(pa.array([*_user_ids(users), *PINNED_USERS]), activity, quiet_from)


def _user_ids(count: int) -> list[str]:
    """Spread the numbers over hexadecimal ids (an odd factor permutes them), past the pinned ones."""
    digits = 4 if count <= 16**4 - len(PINNED_USERS) else 8
    ids = (f"{number * 0x9E37_79B1 % 16**digits:0{digits}x}" for number in range(count + len(PINNED_USERS)))
    return [user_id for user_id in ids if user_id not in PINNED_USERS][:count]


def _traffic(slots: Sequence[_Slot]) -> NDArray[np.float64]:
    """Share out the events over the slots by hour, weekday and length."""
    starts = [datetime.fromtimestamp(slot.start // 1_000_000, UTC) for slot in slots]
    weights = np.array(
        [_HOURS[at.hour] * _WEEKDAYS[at.weekday()] * (slot.end - slot.start) for at, slot in zip(starts, slots, strict=True)]
    )
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def _choose(rng: np.random.Generator, weights: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Draw `size` indices by weight (`Generator.choice` does the same, and checks its weights for longer than it draws)."""
    edges = np.cumsum(weights)
    chosen: NDArray[np.int64] = np.searchsorted(edges, rng.random(size) * edges[-1], side="right")
    return chosen


def _lags(rng: np.random.Generator, size: int) -> NDArray[np.int64]:
    """Draw how long after the event each row is ingested: within a minute, or, late, five minutes to two days after."""
    prompt = np.minimum(60.0, 0.5 + rng.exponential(6.0, size))
    late = np.exp(rng.uniform(np.log(5 * 60.0), np.log(48 * 3_600.0), size))
    return (np.where(rng.random(size) < _LATE_SHARE, late, prompt) * 1e6).astype(np.int64)


def _refuse_foreign_files(folder: Path, owned: set[str]) -> None:
    foreign = sorted(path.name for path in folder.glob("*.parquet") if path.name not in owned)
    if foreign:
        raise SettingsError(
            f"{folder} holds Parquet files that no sample wrote ({len(foreign)}, {foreign[0]!r} first).\n"
            "Move them away, or sample into another folder.",
            field="root",
        )


def _write_day(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return marker if isinstance(marker, dict) else {}


def _write_marker(folder: Path, marker: dict[str, Any]) -> None:
    temporary = folder / f".{_MARKER}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(marker, indent=1), encoding="utf-8")
    temporary.replace(folder / _MARKER)


def _report(folder: Path, marker: dict[str, Any], *, began: float, skipped: bool) -> SampleReport:
    parameters = marker["parameters"]
    end = datetime.fromisoformat(parameters["end"])
    return SampleReport(
        folder=folder,
        users=parameters["users"],
        events=parameters["events"],
        files=len(marker["files"]),
        start=end - timedelta(days=parameters["days"]),
        end=end,
        seconds=time.perf_counter() - began,
        skipped=skipped,
    )


def _utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _micros(instant: datetime) -> int:
    return _length(instant - datetime(1970, 1, 1, tzinfo=UTC))


def _length(length: timedelta) -> int:
    return length // timedelta(microseconds=1)


def _day_file(micros: int) -> str:
    return f"{datetime.fromtimestamp(micros // 1_000_000, UTC):%Y-%m-%d}.parquet"


def _ints(values: Iterable[int]) -> NDArray[np.int64]:
    return np.array(list(values), dtype=np.int64)
