"""What a feature author declares: frozen values, the kind of a view, and the hash of what decides its values."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest

from feature_platform import ON_UPDATE, Aggregate, Entity, Feature, FeatureService, FeatureView, ParquetSource
from feature_platform.model import FeatureSelection, ViewKind
from feature_platform.query_text import returns_event_timestamp

DAY = timedelta(days=1)
USER = Entity("user", {"user_id": str, "device": int})
WATCHES = ParquetSource("watches", "w.parquet", timestamp="watched_at", created_timestamp="ingested_at")
TITLES = ParquetSource("titles", "t.parquet")
VIEW = FeatureView(
    "profile",
    entity=USER,
    sources=[WATCHES, TITLES],
    features=[Feature("segment", str, default="new"), Feature("age", int)],
    query="select user_id, device, 'a  b' as segment, 1 as age from watches",
    schedule="@daily",
    start=datetime(2026, 1, 1),
    lookback=30 * DAY,
)
COUNT = Aggregate("watch_count", "count", window=DAY, where="genre = 'a  b'")
ACTIVITY = replace(VIEW, name="activity", sources=[WATCHES], features=[COUNT], query=None, lookback=None)


@pytest.mark.parametrize(
    "value",
    [USER, WATCHES, VIEW, VIEW.features[0], COUNT, VIEW[["age"]], FeatureService("s", [VIEW])],
    ids=lambda value: type(value).__name__,
)
def test_declared_values_are_frozen(value: Any) -> None:
    """Nothing changes a declaration after it is made, and two equal ones are equal."""
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, "other")
    assert replace(value) == value


def test_a_view_selects_features_by_name() -> None:
    """`activity[["x"]]` is a selection for a service, in the order written; one name does too."""
    assert VIEW[["age", "segment"]] == FeatureSelection(VIEW, ("age", "segment"))
    assert VIEW["age"] == VIEW[["age"]]
    assert FeatureService("s", [VIEW, ACTIVITY[["watch_count"]]]).selections == [VIEW[["segment", "age"]], ACTIVITY[["watch_count"]]]


@pytest.mark.parametrize(
    ("aggregate", "dtype", "empty", "default"),
    [
        (Aggregate("a", "count", window=DAY), "int", 0, 0),
        (Aggregate("a", "count_distinct", window=DAY, column="x"), "int", 0, 0),
        (Aggregate("a", "sum", window=DAY, column="x"), "float", 0, 0.0),
        (Aggregate("a", "sum", window=DAY, column="x", dtype=int), "int", 0, 0),
        (Aggregate("a", "mean", window=DAY, column="x"), "float", None, None),
        (Aggregate("a", "min", window=DAY, column="x", dtype=str), "str", None, None),
        (Aggregate("a", "last_n", window=DAY, column="x", n=2), "list<float>", None, None),
        (Aggregate("a", "max", window=DAY, column="x", default=-1), "float", None, -1.0),
    ],
    ids=["count", "count_distinct", "sum", "sum-of-int", "mean", "min", "last_n", "declared-default"],
)
def test_an_empty_window_is_zero_or_nothing(aggregate: Aggregate, dtype: str, empty: object, default: object) -> None:
    """Zero for counts and sums, NULL for the rest; a key without state answers that as its default."""
    answered = aggregate.effective_default
    assert (str(aggregate.type), aggregate.empty_value, answered) == (dtype, empty, default)
    assert type(answered) is type(default)


def test_a_default_answers_in_the_form_of_a_stored_value() -> None:
    """A naive instant and an int for a float come back as the stores would give them."""
    assert Feature("a", datetime, default=datetime(2026, 1, 1)).effective_default == datetime(2026, 1, 1, tzinfo=UTC)
    assert isinstance(Feature("a", float, default=1).effective_default, float)


# Kinds

QUERIES: dict[str, tuple[str, bool]] = {
    "alias": ("select user_id, watched_at as event_timestamp from w", True),
    "no alias": ("select user_id, event_timestamp from w", True),
    "of a table": ("select w.user_id, w.event_timestamp from w", True),
    "alias without as": ("select user_id, max(watched_at) event_timestamp from w group by user_id", True),
    "alias in front": ("select user_id, event_timestamp: watched_at from w", True),
    "quoted": ('select user_id, watched_at as "event_timestamp" from w', True),
    "capitals": ("SELECT user_id, watched_at AS EVENT_TIMESTAMP FROM w", True),
    "from first": ("from w select user_id, event_timestamp", True),
    "from only": ("from (select 1 as user_id, 2 as event_timestamp)", True),
    "in parentheses": ("(select user_id, event_timestamp from w)", True),
    "first of a union": ("select user_id, event_timestamp from w union all select user_id, watched_at from w", True),
    "distinct": ("select distinct event_timestamp, user_id from w", True),
    "distinct on": ("select distinct on (user_id) user_id, event_timestamp from w order by watched_at", True),
    "after a quoted keyword": ('select 1 as "from", event_timestamp from w', True),
    "after is distinct from": ("select user_id is distinct from 'a' as x, event_timestamp from w", True),
    "after a comment": ("select user_id /* from */, -- from\n event_timestamp from w", True),
    "after a literal": ("select ' from ' as x, $$ from $$ as y, E'\\' from ' as z, event_timestamp from w", True),
    "after a case": ("select case when user_id = 'a' then watched_at end as event_timestamp from w", True),
    "a case without as": ("select case when user_id = 'a' then watched_at end event_timestamp from w", True),
    "star of a cte": ("with a as (select user_id, watched_at as event_timestamp from w) select * from a", True),
    "star of a table": ("with a as (select user_id, watched_at as event_timestamp from w) select a.* from a", True),
    "star that leaves another out": ("select * exclude (user_id) from w where event_timestamp is not null", True),
    "only in a filter": ("select user_id, count(*) as n from w where event_timestamp < now() group by user_id", False),
    "only in a cte": ("with a as (select user_id, event_timestamp from w) select user_id, count(*) as n from a group by user_id", False),
    "only in a function": ("select user_id, max(event_timestamp) as last_seen from w group by user_id", False),
    "only in a filter clause": ("select user_id, count(*) filter (event_timestamp > '2026-01-01') as n from w group by 1", False),
    "only in a window": ("select user_id, row_number() over (order by event_timestamp) as n from w", False),
    "only in a subquery": ("select user_id, (select max(event_timestamp) from w) as n from w", False),
    "only in a comment": ("select user_id /* event_timestamp */ from w -- event_timestamp", False),
    "only in a literal": ("select user_id, 'event_timestamp' as x from w", False),
    "only in a quoted name": ('select user_id as "the event_timestamp" from w', False),
    "renamed": ("select user_id, event_timestamp as seen from w", False),
    "in an expression": ("select user_id, watched_at = event_timestamp from w", False),
    "negated": ("select user_id, not (event_timestamp is null) and event_timestamp > '2026-01-01' from w", False),
    "cast": ("select user_id, event_timestamp::date from w", False),
    "in a list": ("select user_id, [event_timestamp, watched_at] as both from w", False),
    "in a struct": ("select user_id, {'a': event_timestamp, 'b': watched_at} as both from w", False),
    "star that leaves it out": ("select * exclude (event_timestamp) from w", False),
    "star that renames it": ("select w.* rename (event_timestamp as seen) from w", False),
    "snapshot in parentheses": ("(select user_id, count(*) as n from w group by user_id)", False),
    "count star": ("select count(*) from w where event_timestamp > '2026-01-01'", False),
}


@pytest.mark.parametrize(("query", "returns"), QUERIES.values(), ids=QUERIES.keys())
def test_the_select_list_says_whether_a_query_returns_event_timestamp(query: str, returns: bool) -> None:  # noqa: FBT001 - the expectation
    """Our reading of the text agrees with what DuckDB says the query returns."""
    with duckdb.connect() as connection:
        connection.execute("create table w (user_id varchar, watched_at timestamp, event_timestamp timestamp)")
        described = {row[0].lower() for row in connection.execute(f"describe {query}").fetchall()}
    assert ("event_timestamp" in described) == returns
    assert returns_event_timestamp(query, through_star=True) == returns


def test_a_star_brings_what_the_sources_have() -> None:
    """`select *` over a source whose timestamp column is `event_timestamp` is an event view; over another it is none."""
    query, named = "select * from watches", replace(WATCHES, timestamp="event_timestamp")
    assert replace(VIEW, query=query, sources=[named]).kind is ViewKind.EVENT
    assert replace(VIEW, query=query).kind is ViewKind.SNAPSHOT


def returns_times(watches: object) -> object:
    """Return event_timestamp."""
    return watches


def returns_state(watches: object, days: int = 1) -> object:
    """Return the state."""
    return watches, days


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, ViewKind.SNAPSHOT),
        ({"query": None, "features": [COUNT]}, ViewKind.AGGREGATE),
        ({"query": None}, ViewKind.EVENT),
        ({"schedule": ON_UPDATE}, ViewKind.EVENT),
        ({"schedule": None, "start": None}, ViewKind.EVENT),
        ({"query": returns_times}, ViewKind.EVENT),
        ({"query": functools.partial(returns_times)}, ViewKind.EVENT),
        ({"query": returns_state}, ViewKind.SNAPSHOT),
    ],
    ids=["query", "aggregates", "no-query", "on-update", "no-schedule", "function-of-events", "partial-of-events", "function-of-state"],
)
def test_a_view_is_of_one_of_three_kinds(changes: dict[str, Any], kind: ViewKind) -> None:
    """What is declared decides; the two window views are those that are not event views."""
    view = replace(VIEW, **changes)
    assert view.kind is kind
    assert view.is_window_view == (kind is not ViewKind.EVENT)


def test_rows_say_when_they_were_known_where_a_source_does() -> None:
    """Only event views keep created_timestamp; in window views it is baked in."""
    assert replace(VIEW, schedule=ON_UPDATE).has_created_timestamp
    assert not VIEW.has_created_timestamp
    assert not replace(VIEW, schedule=ON_UPDATE, sources=[TITLES]).has_created_timestamp


# The definition's hash


def count_days(days: int) -> Callable[[object], object]:
    """Return a query function that encloses a number."""
    return lambda watches: (watches, days)


OF_AGGREGATES: dict[str, Any] = {"window": 2 * DAY, "function": "sum", "column": "x", "n": 3, "where": "genre = 'a b'", "dtype": float}
OF_NO_VALUE: dict[str, Any] = {
    "ttl": DAY,
    "freshness": DAY,
    "owners": ["team:a"],
    "tags": {"a": "b"},
    "description": "Text.",
    "start": datetime(2025, 1, 1),
    "name": "renamed",
}
CHANGING: dict[str, tuple[FeatureView, FeatureView]] = {
    "the query": (VIEW, replace(VIEW, query="select user_id, device, 'a  b' as segment, 2 as age from watches")),
    "space in a literal": (VIEW, replace(VIEW, query="select user_id, device, 'a b' as segment, 1 as age from watches")),
    "space in a quoted name": (replace(VIEW, query='select "a  b" from w'), replace(VIEW, query='select "a b" from w')),
    "where a comment ends": (replace(VIEW, query="select 1 --x\n, 2"), replace(VIEW, query="select 1 --x , 2")),
    "the kind": (VIEW, replace(VIEW, schedule=ON_UPDATE)),
    "the schedule": (VIEW, replace(VIEW, schedule="@hourly")),
    "the time zone": (VIEW, replace(VIEW, timezone="Europe/Berlin")),
    "lookback": (VIEW, replace(VIEW, lookback=31 * DAY)),
    "delay": (VIEW, replace(VIEW, delay=DAY)),
    "a source's path": (VIEW, replace(VIEW, sources=[replace(WATCHES, path="x.parquet"), TITLES])),
    "a source's timestamp": (VIEW, replace(VIEW, sources=[replace(WATCHES, timestamp="x"), TITLES])),
    "a source's created_timestamp": (VIEW, replace(VIEW, sources=[replace(WATCHES, created_timestamp=None), TITLES])),
    "a key's name": (VIEW, replace(VIEW, entity=Entity("user", {"user": str, "device": int}))),
    "a key's dtype": (VIEW, replace(VIEW, entity=Entity("user", {"user_id": str, "device": str}))),
    "the order of keys": (VIEW, replace(VIEW, entity=Entity("user", {"device": int, "user_id": str}))),
    "the entity": (VIEW, replace(VIEW, entity=replace(USER, name="member"))),
    "a feature's name": (VIEW, replace(VIEW, features=[Feature("segment", str), Feature("years", int)])),
    "a feature's dtype": (VIEW, replace(VIEW, features=[Feature("segment", str), Feature("age", float)])),
    "the order of features": (VIEW, replace(VIEW, features=VIEW.features[::-1])),
    **{
        f"an aggregate's {name}": (ACTIVITY, replace(ACTIVITY, features=[replace(COUNT, **{name: value})]))
        for name, value in OF_AGGREGATES.items()
    },
    "a function": (replace(VIEW, query=returns_times), replace(VIEW, query=returns_state)),
    "what a function encloses": (replace(VIEW, query=count_days(7)), replace(VIEW, query=count_days(30))),
    "what a partial binds": (
        replace(VIEW, query=functools.partial(returns_state, days=7)),
        replace(VIEW, query=functools.partial(returns_state, days=30)),
    ),
}
KEEPING: dict[str, tuple[FeatureView, FeatureView]] = {
    "layout of the query": (
        VIEW,
        replace(VIEW, query="select user_id,\n  device, -- key\n 'a  b' as segment, 1 as age /* x */ from watches"),
    ),
    "layout of a condition": (ACTIVITY, replace(ACTIVITY, features=[replace(COUNT, where="genre  =\n 'a  b'")])),
    "the order of sources": (VIEW, replace(VIEW, sources=[TITLES, WATCHES])),
    "a default": (VIEW, replace(VIEW, features=[Feature("segment", str), Feature("age", int)])),
    "an aggregate's default": (ACTIVITY, replace(ACTIVITY, features=[replace(COUNT, default=5)])),
    "lists or tuples": (VIEW, replace(VIEW, features=tuple(VIEW.features), sources=tuple(VIEW.sources))),
    **{name: (VIEW, replace(VIEW, **{name: value})) for name, value in OF_NO_VALUE.items()},
    "an entity's description": (VIEW, replace(VIEW, entity=replace(USER, description="Text."))),
    "a source's description": (VIEW, replace(VIEW, sources=[replace(WATCHES, description="Text."), TITLES])),
}


@pytest.mark.parametrize(("before", "after"), CHANGING.values(), ids=CHANGING.keys())
def test_the_hash_changes_with_what_decides_values(before: FeatureView, after: FeatureView) -> None:
    """Partitions of the old definition are then known to be stale."""
    assert before.definition_hash != after.definition_hash


@pytest.mark.parametrize(("before", "after"), KEEPING.values(), ids=KEEPING.keys())
def test_the_hash_stays_with_what_does_not(before: FeatureView, after: FeatureView) -> None:
    """A comment, an owner or a ttl recomputes nothing."""
    assert before.definition_hash == after.definition_hash


def test_the_hash_is_the_same_in_every_process() -> None:
    """Sets and hashes of Python are seeded anew in each process; the definition's hash does not depend on them."""
    program = """
import sys; sys.path.insert(0, "tests")
import test_model as m
from dataclasses import replace
functions = [m.returns_times, m.count_days(7), m.functools.partial(m.returns_state, days=7)]
views = [m.VIEW, m.ACTIVITY, *(replace(m.VIEW, query=function) for function in functions)]
print(*(view.definition_hash for view in views))
"""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - plain text for a child process
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(printed) == 1
    assert printed.pop().split()[:2] == [VIEW.definition_hash, ACTIVITY.definition_hash]
