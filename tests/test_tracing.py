"""Where a served value comes from: told in words, and read back from the file that it stands in."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offline_project import DAY, HOUR, MICROS, MINUTE, T0, history_view, instants, late_watches, store_of, user, watches, write

from feature_platform import ON_UPDATE, Aggregate, Entity, Feature, FeatureStatus, FeatureStore, FeatureView
from feature_platform.cli.tracing import Trace, trace_value
from feature_platform.materialization import materialize_view
from feature_platform.offline.compute import compute_windows
from feature_platform.offline.due import requested_windows
from feature_platform.online.codec import ViewCodec

COUNT = FeatureView(
    "activity",
    entity=user,
    sources=[watches],
    features=[Aggregate("plays", "count", window=DAY), Aggregate("longest", "max", column="minutes", window=DAY)],
    schedule="@hourly",
    start=T0,
)
PROFILE = FeatureView(
    "profile",
    entity=user,
    sources=[watches],
    query="select user_id, count(*) as n from watches group by user_id",
    features=[Feature("n", int, default=-1)],
    schedule="@daily",
    start=T0,
    ttl=2 * DAY,
)
LAST = FeatureView(
    "last",
    entity=user,
    sources=[late_watches],
    query='select user_id, "at" as event_timestamp, known_at as created_timestamp, minutes from watches',
    features=[Feature("minutes", float)],
    schedule=ON_UPDATE,
    start=T0,
    ttl=3 * DAY,
)


def watched(*rows: tuple[str, timedelta, float | None], known_after: timedelta = timedelta(0)) -> pa.Table:
    """Return watches: who, when after T0, for how long."""
    return pa.table(
        {
            "user_id": [who for who, _, _ in rows],
            "at": instants(*(offset for _, offset, _ in rows)),
            "known_at": instants(*(offset + known_after for _, offset, _ in rows)),
            "minutes": pa.array([minutes for _, _, minutes in rows], pa.float64()),
        }
    )


def trace(store: FeatureStore, feature: str, who: str, now: datetime) -> Trace:
    """Trace one value."""
    [ref] = store.registry.resolve([feature])
    return trace_value(store.registry, store.settings, store.online, ref, {"user_id": who}, now)


def pushed(root: Path, view: FeatureView, rows: pa.Table, now: datetime) -> FeatureStore:
    """Return a store that has computed and pushed one view."""
    write(root, rows)
    store = store_of(root, view)
    store.compute(now=now)
    store.materialize(now=now)
    return store


def test_a_quiet_value_says_what_confirmed_it(tmp_path: Path) -> None:
    """A count that nothing changed stands in the file of its last change, and is as fresh as the newest window."""
    store = pushed(tmp_path, COUNT, watched(("ann", 90 * MINUTE, 5.0)), T0 + 6 * HOUR)
    found = trace(store, "plays", "ann", T0 + 6 * HOUR)
    assert found.served is not None
    assert (found.served.value, found.served.status) == (1, FeatureStatus.PRESENT)
    assert found.reason == "unchanged since 2026-03-28 02:00; confirmed by the window that ended 2026-03-28 06:00"
    assert found.partition is not None
    assert found.path == tmp_path / "data/features/activity/2026-03-28T0100Z.parquet"
    assert (found.partition.window.end, found.agrees, found.advice) == (T0 + 2 * HOUR, True, None)


def test_a_value_of_the_newest_window_says_so(tmp_path: Path) -> None:
    """The window's end is the value's time; a NULL is told to be the answer."""
    store = pushed(tmp_path, COUNT, watched(("ann", 90 * MINUTE, None)), T0 + 2 * HOUR)
    assert trace(store, "plays", "ann", T0 + 2 * HOUR).reason == "computed by the window that ended 2026-03-28 02:00"
    found = trace(store, "longest", "ann", T0 + 2 * HOUR)
    assert found.reason == "computed by the window that ended 2026-03-28 02:00; it is NULL there, which no default replaces"
    assert (found.agrees, found.in_file is not None and found.in_file.status) == (True, FeatureStatus.NULL_VALUE)


def test_a_late_row_says_when_it_was_known(tmp_path: Path) -> None:
    """A row of an event view stands in the window that holds its time, and tells how late it was known."""
    store = pushed(tmp_path, LAST, watched(("ann", HOUR, 5.0), known_after=20 * HOUR), T0 + DAY)
    found = trace(store, "minutes", "ann", T0 + DAY)
    assert found.reason == "took effect at 2026-03-28 01:00; it was known from 2026-03-28 21:00 on, 20 h later"
    assert found.partition is not None
    assert (found.partition.window.start, found.agrees) == (T0, True)


@pytest.mark.parametrize(
    ("view", "rows", "now", "reason"),
    [
        (COUNT, [("bob", HOUR, 1.0)], 5 * HOUR, "the history has no row of this entity; the default is answered"),
        (
            COUNT,
            [("ann", HOUR, 1.0)],
            30 * HOUR,
            "a tombstone: every window of this entity is empty since 2026-03-29 02:00; the default is answered",
        ),
        (
            PROFILE,
            [("ann", HOUR, 1.0), ("bob", 30 * HOUR, 1.0)],
            2 * DAY,
            (
                "the last row of this entity is of 2026-03-29 00:00; the newest full window, which ended 2026-03-30 00:00, "
                "does not hold it any more; the default is answered"
            ),
        ),
    ],
    ids=["never-there", "tombstone", "left-the-snapshot"],
)
def test_an_absent_value_says_why(tmp_path: Path, view: FeatureView, rows: list[Any], now: timedelta, reason: str) -> None:
    """NOT_FOUND has several causes, and each is told from the history."""
    store = pushed(tmp_path, view, watched(*rows), T0 + now)
    found = trace(store, view.features[0].name, "ann", T0 + now)
    assert found.served is not None
    assert found.served.status is FeatureStatus.NOT_FOUND
    assert (found.reason, found.agrees) == (reason, None)


@pytest.mark.parametrize(
    ("view", "now", "reason"),
    [
        (
            PROFILE,
            DAY + timedelta(days=2, minutes=1),
            (
                "computed by the window that ended 2026-03-29 00:00; "
                "too old since 2026-03-31 00:00: the ttl is 2 d, and the window is from 2 d ago; the default is answered"
            ),
        ),
        (
            LAST,
            HOUR + timedelta(days=3, minutes=1),
            "took effect at 2026-03-28 01:00; too old since 2026-03-31 01:00: the ttl is 3 d, and it is from 3 d ago",
        ),
    ],
    ids=["window-view", "event-view"],
)
def test_a_value_past_its_ttl_says_since_when(tmp_path: Path, view: FeatureView, now: timedelta, reason: str) -> None:
    """The file still holds the value that the read does not answer."""
    store = pushed(tmp_path, view, watched(("ann", HOUR, 1.0)), T0 + DAY)
    found = trace(store, view.features[0].name, "ann", T0 + now)
    assert found.served is not None
    assert found.served.status is FeatureStatus.OUTSIDE_MAX_AGE
    assert (found.reason.replace(" 1 min ago", " ago"), found.agrees) == (reason, True)
    assert found.in_file is not None
    assert found.in_file.value == 1


def test_a_view_that_was_never_pushed_says_what_its_history_has(tmp_path: Path) -> None:
    """Where a read is an error, a trace still answers from the files."""
    write(tmp_path, watched(("ann", HOUR, 1.0)))
    store = store_of(tmp_path, PROFILE)
    never = "the view is not in the online store: run fp materialize profile; "
    assert trace(store, "n", "ann", T0).reason == never + "its history has no row of this entity"
    store.compute(now=T0 + DAY)
    found = trace(store, "n", "ann", T0 + DAY)
    assert (found.served, found.push) == (None, None)
    assert found.reason == never + "its history has a row of 2026-03-29 00:00"


def test_a_correction_that_was_not_pushed_is_found_out(tmp_path: Path) -> None:
    """The file says another value than the online store: it was written after the push, and the next push repairs it."""
    store = pushed(tmp_path, PROFILE, watched(("ann", HOUR, 1.0)), T0 + DAY)
    write(tmp_path, watched(("ann", HOUR, 1.0), ("ann", HOUR, 2.0), ("bob", HOUR, 2.0)))
    store.compute(start=T0, end=T0 + DAY, now=T0 + DAY)
    found = trace(store, "n", "ann", T0 + DAY)
    assert found.served is not None
    assert found.in_file is not None
    assert (found.served.value, found.in_file.value, found.agrees, found.is_behind) == (1, 2, False, True)
    assert found.advice == "the file was written again after the push: run fp materialize profile"
    new = trace(store, "n", "bob", T0 + DAY)
    assert new.reason.startswith("the last row of this entity is of 2026-03-29 00:00, written after the last push: run fp materialize")
    store.materialize(now=T0 + DAY)
    assert (trace(store, "n", "ann", T0 + DAY).agrees, trace(store, "n", "bob", T0 + DAY).agrees) == (True, True)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    """What is served and stands in no file any more is not vouched for."""
    store = pushed(tmp_path, PROFILE, watched(("ann", HOUR, 1.0)), T0 + DAY)
    store.offline.path(PROFILE, requested_windows(PROFILE, None, None, T0 + DAY)[0]).unlink()
    found = trace(store, "n", "ann", T0 + DAY)
    assert (found.partition, found.in_file, found.agrees) == (None, None, False)
    assert found.advice is not None
    assert found.advice.startswith("no file holds that time any more: run fp compute profile")


def test_a_value_that_the_history_never_had_is_found_out(tmp_path: Path) -> None:
    """Somebody wrote to the online store: the file of the same generation says another value."""
    store = pushed(tmp_path, PROFILE, watched(("ann", HOUR, 1.0)), T0 + DAY)
    codec = ViewCodec(store.settings.project, PROFILE)
    forged = pa.table({"user_id": ["ann"], "n": [99], "event_timestamp": pa.array([T0 + DAY], MICROS)})
    store.online.put_many(codec.encode_rows(forged, store.offline.generation(PROFILE)))
    found = trace(store, "n", "ann", T0 + DAY)
    assert (found.agrees, found.advice) == (False, "the online store holds something else than the history: run fp rebuild-online")


def test_a_feature_that_is_newer_than_the_row_is_told(tmp_path: Path) -> None:
    """A row that was computed before the view had a feature says which window to compute again."""
    store = pushed(tmp_path, PROFILE, watched(("ann", HOUR, 1.0)), T0 + DAY)
    wider = replace(
        PROFILE,
        query="select user_id, count(*) as n, max(minutes) as longest from watches group by user_id",
        features=[*PROFILE.features, Feature("longest", float)],
    )
    later = store_of(tmp_path, wider, online=store.online)
    later.materialize(now=T0 + DAY)
    assert trace(later, "longest", "ann", T0 + DAY).reason == (
        "the row online was computed before the view had this feature: run fp compute profile for 2026-03-29 00:00"
    )
    assert trace(later, "n", "ann", T0 + DAY).agrees


def test_runs_of_the_computation_and_the_push_are_told(tmp_path: Path) -> None:
    """The footer names the run that computed, the meta the one that pushed."""
    write(tmp_path, watched(("ann", HOUR, 1.0)))
    store, now = store_of(tmp_path, PROFILE), T0 + DAY
    with store._connect() as connection:
        windows = requested_windows(PROFILE, None, None, now)
        compute_windows(connection, PROFILE, windows, store=store.offline, root=tmp_path, now=now, run_id="computes")
        online, project = store.online, store.settings.project
        materialize_view(connection, PROFILE, store=store.offline, online=online, project=project, now=now, run_id="pushes")
    found = trace(store, "n", "ann", now)
    assert found.partition is not None
    assert found.push is not None
    assert (found.partition.run_id, found.push.run_id, found.push.partition) == ("computes", "pushes", "2026-03-28T0000Z")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), view=st.sampled_from([COUNT, PROFILE, LAST]))
def test_after_a_push_every_value_stands_in_a_file(tmp_path_factory: pytest.TempPathFactory, seed: int, view: FeatureView) -> None:
    """Whatever was computed, in whatever order: a row that is online is in its file, and an absent one has ended or never was."""
    noise = random.Random(seed)
    rows = [(f"u{noise.randrange(4)}", noise.randrange(60 * 60) * MINUTE, noise.choice([None, 1.0, float("nan")])) for _ in range(25)]
    root, now = tmp_path_factory.mktemp("project"), T0 + 50 * HOUR
    write(root, watched(*rows, known_after=noise.choice([timedelta(0), HOUR])))
    store = store_of(root, view)
    windows = requested_windows(view, None, None, now)
    with store._connect() as connection:
        for window in noise.sample(windows, noise.randrange(1, len(windows) + 1)):
            compute_windows(connection, view, [window], store=store.offline, root=root, now=now)
    store.materialize(now=now)
    for who in ("u0", "u1", "u2", "u3", "u4"):
        for feature in view.feature_by_name:
            found = trace(store, feature, who, now)
            assert found.served is not None
            if found.served.event_timestamp is not None:
                assert found.agrees, (found.reason, found.advice)
            else:
                assert any(word in found.reason for word in ("no row", "tombstone", "any more", "after the last push")), found.reason


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ({}, {}),
        ({"user_id": str, "title_id": int}, {"user_id": "a,b\\c'", "title_id": 2**60 + 1}),
        ({"day": date, "at": datetime, "price": Decimal}, {"day": T0.date(), "at": T0 + MINUTE, "price": Decimal("1.50")}),
        ({"blob": bytes, "flag": bool}, {"blob": b"\x00,\xff", "flag": True}),
    ],
    ids=["global", "composite", "times-and-numbers", "bytes-and-bools"],
)
def test_entities_of_every_kind_are_found(tmp_path: Path, keys: dict[str, Any], values: dict[str, Any]) -> None:
    """Join keys of any dtype, several and none: the row is found in the one file of a view that is not partitioned."""
    entity = Entity("thing", join_keys=keys)
    arrow = {name: dtype.arrow for name, dtype in entity.keys.items()}
    columns = {name: pa.array([value], arrow[name]) for name, value in values.items()}
    write(tmp_path, {**columns, "event_timestamp": instants(HOUR), "value": [[1.5, None, float("nan")]]}, "values")
    view = history_view(dtype=list[float], entity=entity)
    store = store_of(tmp_path, view)
    store.compute(now=T0 + DAY)
    store.materialize(now=T0 + DAY)
    [ref] = store.registry.resolve(["value"])
    found = trace_value(store.registry, store.settings, store.online, ref, values, T0 + DAY)
    assert (found.reason, found.agrees) == ("took effect at 2026-03-28 01:00", True)
    assert found.path == tmp_path / "data/features/values/all.parquet"
