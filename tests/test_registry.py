"""The registry: what it refuses, in words that help, and what references mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_platform import ON_UPDATE, Aggregate, Entity, Feature, FeatureService, FeatureView, ParquetSource, Registry
from feature_platform.errors import DtypeError, FeaturePlatformError, NameClashError, RegistryError, UnknownNameError

DAY, HOUR, ZERO = timedelta(days=1), timedelta(hours=1), timedelta(0)
USER = Entity("user", {"user_id": str})
TITLE = Entity("title", {"title_id": int})
WATCHES = ParquetSource("watches", "watches/*.parquet", timestamp="watched_at")
TITLES = ParquetSource("titles", "titles.parquet")
START = datetime(2026, 1, 1)


def snapshot(name: str = "profile", **changes: Any) -> FeatureView:
    """Return a snapshot view."""
    declared: dict[str, Any] = {
        "entity": USER,
        "sources": [WATCHES],
        "features": [Feature("segment", str)],
        "query": "select user_id, 'new' as segment from watches",
        "schedule": "@daily",
        "start": START,
    }
    return FeatureView(name, **{**declared, **changes})


def aggregates(name: str = "activity", **changes: Any) -> FeatureView:
    """Return an aggregate view."""
    return snapshot(name, **{"features": [Aggregate("watch_count", "count", window=DAY)], "query": None, "schedule": "@hourly", **changes})


def event(name: str = "last_watch", **changes: Any) -> FeatureView:
    """Return an event view."""
    query = "select user_id, watched_at as event_timestamp, genre as segment from watches"
    return snapshot(name, **{"query": query, "schedule": ON_UPDATE, **changes})


def one(**changes: Any) -> FeatureView:
    """Return a view with one aggregate, changed."""
    declared = {"name": "watch_count", "function": "count", "window": DAY, **changes}
    return aggregates(features=[Aggregate(declared.pop("name"), declared.pop("function"), **declared)])


def feature(*args: Any, **changes: Any) -> FeatureView:
    """Return a view with one feature."""
    return snapshot(features=[Feature(*args, **changes)])


def source(*args: Any, **changes: Any) -> FeatureView:
    """Return a view over one source."""
    return snapshot(sources=[ParquetSource(*args, **changes)])


def keys(declared: Any) -> FeatureView:
    """Return a view over an entity with these join keys."""
    return snapshot(entity=Entity("user", declared))


def served(*features: Any, views: Any = None, **changes: Any) -> Registry:
    """Return a registry with one service."""
    return Registry(views or [snapshot()], [FeatureService("recommender", list(features), **changes)])


PROFILE = snapshot()
# What is declared, and words that the refusal must have: what is wrong, where, and what to do next.
REFUSALS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "two views of one name": (lambda: [snapshot(), snapshot()], ["two views", "'profile'", "another name"]),
    "two views that differ in case": (lambda: [snapshot(), snapshot("Profile")], ["'profile' and 'Profile'", "only in case", "rename"]),
    "two services of one name": (
        lambda: Registry([PROFILE], [FeatureService("s", [PROFILE]), FeatureService("s", [PROFILE])]),
        ["two services", "'s'", "another name"],
    ),
    "two features of one name": (
        lambda: snapshot(features=[Feature("a", int), Feature("a", str)]),
        ["view 'profile'", "two features", "'a'", "another name"],
    ),
    "two features that differ in case": (
        lambda: snapshot(features=[Feature("a", int), Feature("A", str)]),
        ["view 'profile'", "'a' and 'A'", "one name in SQL", "Rename"],
    ),
    "a view that holds Feature and Aggregate": (
        lambda: snapshot(features=[Feature("a", int), Aggregate("b", "count", window=DAY)], query=None),
        ["view 'profile'", "mixes Feature and Aggregate", "two views"],
    ),
    "a source declared twice, differently": (
        lambda: [snapshot(), aggregates(sources=[ParquetSource("watches", "other.parquet", timestamp="at")])],
        ["view 'activity'", "source 'watches'", "twice, differently", "another name"],
    ),
    "a source named twice in a view": (lambda: snapshot(sources=[WATCHES, WATCHES]), ["view 'profile'", "source twice", "once"]),
    "an entity declared twice, differently": (
        lambda: [snapshot(), aggregates(entity=Entity("user", {"user_id": int}))],
        ["view 'activity'", "entity 'user'", "twice, differently", "Use one Entity"],
    ),
    "no features": (lambda: snapshot(features=[]), ["view 'profile'", "no features", "Declare at least one"]),
    "no sources": (lambda: snapshot(sources=[]), ["view 'profile'", "no sources", "Name at least one"]),
    # Time
    "window of zero": (
        lambda: one(window=ZERO),
        ["view 'activity'", "'watch_count'", "window 0:00:00", "not positive", "timedelta(days=30)"],
    ),
    "negative window": (lambda: one(window=-DAY), ["'watch_count'", "window", "not positive", "timedelta(days=30)"]),
    "ttl of zero": (lambda: snapshot(ttl=ZERO), ["view 'profile'", "ttl 0:00:00 is not positive", "Leave ttl out"]),
    "negative ttl": (lambda: snapshot(ttl=-DAY), ["view 'profile'", "ttl -1 day", "not positive", "Leave ttl out"]),
    "lookback of zero": (lambda: snapshot(lookback=ZERO), ["view 'profile'", "lookback", "not positive", "Leave lookback out"]),
    "freshness of zero": (lambda: snapshot(freshness=ZERO), ["view 'profile'", "freshness", "not positive"]),
    "freshness of seconds": (lambda: snapshot(freshness=timedelta(seconds=59)), ["view 'profile'", "freshness", "at least a minute"]),
    "negative delay": (lambda: snapshot(delay=-HOUR), ["view 'profile'", "delay", "negative", "zero or more"]),
    "ttl below delay": (
        lambda: event(ttl=HOUR, delay=2 * HOUR),
        ["view 'last_watch'", "ttl 1:00:00", "shorter than 2:00:00", "longer ttl"],
    ),
    "ttl below period": (lambda: aggregates(ttl=HOUR - DAY / 86400), ["view 'activity'", "shorter than 1:00:00", "longer ttl"]),
    "ttl below period and delay": (
        lambda: aggregates(ttl=HOUR * 1.5, delay=HOUR),
        ["view 'activity'", "ttl 1:30:00", "shorter than 2:00:00", "longer ttl"],
    ),
    "ttl of ten thousand years": (lambda: snapshot(ttl=timedelta.max), ["view 'profile'", "ttl", "hundred years", "ttl=timedelta("]),
    "delay of ten thousand years": (
        lambda: snapshot(delay=timedelta.max),
        ["view 'profile'", "delay", "hundred years", "delay=timedelta("],
    ),
    "lookback beside aggregates": (lambda: aggregates(lookback=DAY), ["view 'activity'", "lookback goes with a query", "leave it out"]),
    # Schedules
    "a cron of four fields": (lambda: snapshot(schedule="0 0 * *"), ["view 'profile'", "'0 0 * *' is not a cron", "five fields", "@daily"]),
    "a cron of six fields": (lambda: snapshot(schedule="0 0 0 * * *"), ["view 'profile'", "is not a cron", "five fields"]),
    "a cron with minute 61": (lambda: snapshot(schedule="61 * * * *"), ["view 'profile'", "'61 * * * *' is not a cron", "five fields"]),
    "a cron of 30 February": (lambda: snapshot(schedule="0 0 30 2 *"), ["view 'profile'", "is not a cron", "five fields"]),
    "a misspelt alias": (lambda: snapshot(schedule="@dayly"), ["view 'profile'", "'@dayly' is not a cron", "@daily"]),
    "an empty schedule": (lambda: snapshot(schedule=""), ["view 'profile'", "'' is not a cron", "five fields"]),
    "an unknown zone": (lambda: snapshot(timezone="Mars/Base"), ["view 'profile'", "timezone 'Mars/Base'", "not known", "'Europe/Berlin'"]),
    "a zone that is a path": (lambda: snapshot(timezone="../../etc/passwd"), ["view 'profile'", "timezone", "not known", "IANA"]),
    "an unknown zone without a schedule": (
        lambda: event(schedule=None, start=None, timezone="Mars/Base"),
        ["view 'last_watch'", "timezone 'Mars/Base'", "IANA"],
    ),
    "no start": (lambda: snapshot(start=None), ["view 'profile'", "a schedule and no start", "start=datetime(2026, 1, 1)"]),
    "a start in year 1": (lambda: snapshot(start=datetime(1, 1, 1)), ["view 'profile'", "start 0001-01-01", "calendar", "Write the year"]),
    "a start in year 9999": (
        lambda: snapshot(start=datetime(9999, 12, 31)),
        ["view 'profile'", "start 9999-12-31", "calendar", "Write the year"],
    ),
    "a start without schedule": (lambda: event(schedule=None), ["view 'last_watch'", "a start and no schedule", "leave start out"]),
    "lookback without schedule": (
        lambda: event(schedule=None, start=None, lookback=DAY),
        ["view 'last_watch'", "a lookback and no schedule", "leave lookback out"],
    ),
    "aggregates without schedule": (
        lambda: aggregates(schedule=None, start=None),
        ["view 'activity'", "holds aggregates", "no schedule", 'schedule="@daily"'],
    ),
    "aggregates ON_UPDATE": (lambda: aggregates(schedule=ON_UPDATE), ["view 'activity'", "aggregates and has ON_UPDATE", "@hourly"]),
    # Names
    "a name with a slash": (lambda: snapshot("../etc"), ["view name '../etc'", "not safe", "'etc'"]),
    "a name with a quote": (lambda: feature('a"b', int), ["view 'profile': feature name", "not safe", "'a_b'"]),
    "a name with a colon": (lambda: snapshot("a:b"), ["view name 'a:b'", "not safe", "'a_b'"]),
    "a name with two underscores": (lambda: feature("a__b", int), ["feature name 'a__b'", "not safe", "'a_b'"]),
    "a name that starts with a digit": (lambda: snapshot("1st"), ["view name '1st'", "not safe", "'n_1st'"]),
    "a name that ends in a line break": (lambda: snapshot("profile\n"), ["view name", "not safe", "'profile'"]),
    "an empty name": (lambda: snapshot(""), ["view name ''", "not safe", "'name'"]),
    "a name of 101 letters": (lambda: snapshot("a" * 101), ["view name", "at most 100"]),
    "a name in other letters": (lambda: feature("größe", float), ["feature name 'größe'", "not safe"]),
    "an unsafe source": (lambda: source("a b", "p"), ["view 'profile': source name 'a b'", "not safe", "'a_b'"]),
    "an unsafe entity": (lambda: snapshot(entity=Entity("a}b", {"k": str})), ["entity name 'a}b'", "not safe", "'a_b'"]),
    "an unsafe join key": (lambda: keys({"user id": str}), ["entity 'user'", "'user id'", "not safe", "'user_id'"]),
    "an unsafe service": (lambda: Registry([PROFILE], [FeatureService("a/b", [PROFILE])]), ["service name 'a/b'", "not safe", "'a_b'"]),
    "a feature named event_timestamp": (
        lambda: feature("event_timestamp", int),
        ["view 'profile'", "'event_timestamp'", "time column", "Call it"],
    ),
    "a feature named Created_Timestamp": (lambda: feature("Created_Timestamp", int), ["view 'profile'", "time column", "Call it"]),
    "a feature named as the key": (lambda: feature("user_id", int), ["view 'profile'", "'user_id'", "key", "Call it profile_user_id"]),
    "a feature named as the key in SQL": (lambda: feature("User_ID", int), ["view 'profile'", "'User_ID'", "key", "Call it"]),
    "a key named event_timestamp": (lambda: keys({"event_timestamp": int}), ["entity 'user'", "reserved", "Call it user_event_timestamp"]),
    "a key named Event_Timestamp": (lambda: keys({"Event_Timestamp": int}), ["entity 'user'", "reserved", "Call it"]),
    **{
        f"a key named {name}": (functools.partial(keys, {name: str}), ["entity 'user'", f"'{name}'", "reserved", f"user_{name}"])
        for name in ("features", "feature_service", "entities", "metadata", "full_feature_names", "statuses", "event_timestamps")
    },
    "keys that differ in case": (lambda: keys({"a": str, "A": str}), ["entity 'user'", "'a' and 'A'", "one name in SQL", "Rename"]),
    # Dtypes
    "a float key": (lambda: keys({"user_id": float}), ["entity 'user'", "'user_id'", "float", "Use int or str"]),
    "a float32 key": (lambda: keys({"user_id": pa.float32()}), ["entity 'user'", "'user_id'", "Use int or str"]),
    "a list key": (lambda: keys({"user_id": list[str]}), ["entity 'user'", "list<str>", "Use int or str"]),
    "an unknown dtype": (lambda: feature("a", object), ["view 'profile'", "'a'", "dtype object", "not supported", "Use bool, int"]),
    "an unknown dtype of a key": (lambda: keys({"user_id": object}), ["entity 'user'", "dtype object", "Use bool, int"]),
    "a dtype as text": (lambda: feature("a", "int"), ["view 'profile'", "'a'", "dtype 'int'", "Use bool, int"]),
    "an int default of a str": (lambda: feature("a", str, default=5), ["view 'profile'", "'a'", "default 5 (int)", "dtype str"]),
    "a bool default of an int": (lambda: feature("a", int, default=True), ["'a'", "default True (bool)", "dtype int"]),
    "a float default of an int": (lambda: feature("a", int, default=1.0), ["'a'", "default 1.0 (float)", "dtype int"]),
    "a default too big": (lambda: feature("a", pa.int8(), default=128), ["'a'", "default 128 (int)", "dtype int8"]),
    "an int default that no float holds": (
        lambda: feature("a", float, default=2**53 + 1),
        ["'a'", "default 9007199254740993", "dtype float"],
    ),
    "an int default beyond all floats": (lambda: feature("a", float, default=10**400), ["'a'", "default", "dtype float"]),
    "a naive date for an instant": (lambda: feature("a", datetime, default=date(2026, 1, 1)), ["'a'", "default", "dtype datetime"]),
    "a default deep inside": (lambda: feature("a", {"x": list[int]}, default={"x": ["1"]}), ["'a'", "default", "struct<x: list<int>>"]),
    "an aggregate's default of the wrong dtype": (
        lambda: one(default="none"),
        ["view 'activity'", "'watch_count'", "default 'none' (str)", "int"],
    ),
    # Aggregates
    "an unknown function": (
        lambda: one(function="cuont"),
        ["view 'activity'", "'watch_count'", "'cuont' is not known", "Did you mean 'count'?"],
    ),
    **{
        f"{function} without column": (
            functools.partial(one, function=function, **more),
            ["'watch_count'", f"{function} needs a column", 'column="minutes"'],
        )
        for function, more in {"sum": {}, "mean": {}, "min": {}, "max": {}, "count_distinct": {}, "last_n": {"n": 3}}.items()
    },
    "count of an empty column": (lambda: one(column=""), ["'watch_count'", "needs a column", 'column="minutes"']),
    "last_n without n": (lambda: one(function="last_n", column="genre"), ["'watch_count'", "n goes with last_n", "n=5"]),
    "n without last_n": (lambda: one(n=5), ["'watch_count'", "n goes with last_n", "n=5"]),
    "n of zero": (lambda: one(function="last_n", column="genre", n=0), ["'watch_count'", "n=0 is not positive", "at least one"]),
    "an empty condition": (lambda: one(where=" "), ["'watch_count'", "where is empty", "leave where out"]),
    "a count that is a str": (lambda: one(dtype=str), ["'watch_count'", "count cannot have dtype str", "Use int"]),
    "a sum that is a str": (lambda: one(function="sum", column="x", dtype=str), ["sum cannot have dtype str", "decimal or float or int"]),
    "a last_n that is no list": (lambda: one(function="last_n", column="x", n=2, dtype=str), ["last_n cannot have dtype str", "Use list"]),
    "aggregates with a query": (lambda: aggregates(query="select 1"), ["view 'activity'", "aggregates and a query", "leave the query out"]),
    "aggregates over two sources": (lambda: aggregates(sources=[WATCHES, TITLES]), ["view 'activity'", "2 sources", "Name one source"]),
    "aggregates over a static source": (
        lambda: aggregates(sources=[TITLES]),
        ["view 'activity'", "'titles' has no timestamp", "timestamp="],
    ),
    # Queries and sources
    "an empty query": (lambda: snapshot(query="  "), ["view 'profile'", "empty query", "one SELECT"]),
    "no query over two sources": (
        lambda: snapshot(query=None, sources=[WATCHES, TITLES]),
        ["view 'profile'", "2 sources", "Name one source"],
    ),
    "no query over a static source": (lambda: snapshot(query=None, sources=[TITLES]), ["view 'profile'", "'titles' has no timestamp"]),
    "a function of an unknown source": (
        lambda: snapshot(query=lambda watches, titels: (watches, titels), sources=[WATCHES, TITLES]),
        ["view 'profile'", "parameter 'titels'", "Did you mean 'titles'?"],
    ),
    "a function without a signature": (
        lambda: snapshot(query=dict),
        ["view 'profile'", "does not tell its parameters", "Write a function"],
    ),
    "a function over a source named start": (
        lambda: snapshot(query=lambda start: start, sources=[ParquetSource("start", "p")]),
        ["view 'profile'", "source 'start'", "bound", "Rename"],
    ),
    "a source without path": (lambda: source("s", ""), ["source 's'", "no path", "Name a Parquet file"]),
    "a source with created_timestamp only": (
        lambda: source("s", "p", created_timestamp="at"),
        ["source 's'", "created_timestamp and no timestamp", "event's own time"],
    ),
    "a source with one time for both": (
        lambda: source("s", "p", timestamp="at", created_timestamp="at"),
        ["source 's'", "both its times are 'at'", "Leave created_timestamp out"],
    ),
    "a source with an empty timestamp": (
        lambda: source("s", "p", timestamp=""),
        ["source 's'", "timestamp is empty", "leave timestamp out"],
    ),
    "an owner of no known form": (
        lambda: snapshot(owners=["personalization"]),
        ["view 'profile'", "owner 'personalization'", "'team:name'"],
    ),
    # Services
    "a service of an unknown view": (
        lambda: served(snapshot("profiles")),
        ["service 'recommender'", "'profiles' is not in the registry", "Did you mean 'profile'?"],
    ),
    "a service of another view by that name": (
        lambda: served(snapshot(ttl=9 * DAY)),
        ["service 'recommender'", "'profile' is not the one that the registry has", "Add it to views"],
    ),
    "a service of an unknown feature": (
        lambda: served(PROFILE[["segmnt"]]),
        ["service 'recommender'", "no feature 'segmnt'", "view 'profile'", "Did you mean 'segment'?"],
    ),
    "a service that selects nothing": (lambda: served(PROFILE[[]]), ["service 'recommender'", "selects nothing", "'profile'", "Name some"]),
    "a service without features": (served, ["service 'recommender'", "no features", "List views"]),
    "a service with a feature twice": (
        lambda: served(PROFILE, PROFILE[["segment"]]),
        ["service 'recommender'", "'segment'", "profile:segment", "Ask for it once"],
    ),
    "a service whose features clash": (
        lambda: served(PROFILE, event(), views=[PROFILE, event()]),
        ["service 'recommender'", "'segment'", "profile:segment and last_watch:segment", "full_feature_names=True"],
    ),
    "a service whose feature is another view's key": (
        lambda: served(
            PROFILE, aggregates(entity=Entity("s", {"Segment": str})), views=[PROFILE, aggregates(entity=Entity("s", {"Segment": str}))]
        ),
        ["service 'recommender'", "profile:segment", "join key", "full_feature_names=True"],
    ),
    "a service whose keys disagree": (
        lambda: served(PROFILE, *(twins := [aggregates(entity=Entity("member", {"user_id": int}))]), views=[PROFILE, *twins]),
        ["service 'recommender'", "'user_id' is str in view 'profile' and int in 'activity'", "one dtype"],
    ),
    # Python types, for whoever runs no type checker
    "a window of 5": (lambda: one(window=5), ["'watch_count'", "window is 5 (int)", "window=timedelta(days=30)"]),
    "a ttl of '1d'": (lambda: snapshot(ttl="1d"), ["view 'profile'", "ttl is '1d' (str)", "ttl=timedelta(days=2)"]),
    "a ttl of True": (lambda: snapshot(ttl=True), ["view 'profile'", "ttl is True (bool)", "ttl=timedelta"]),
    "a delay of None": (lambda: snapshot(delay=None), ["view 'profile'", "delay is None", "delay=timedelta"]),
    "a lookback of 30": (lambda: snapshot(lookback=30), ["view 'profile'", "lookback is 30 (int)", "lookback=timedelta(days=30)"]),
    "a freshness of 30": (lambda: snapshot(freshness=30), ["view 'profile'", "freshness is 30 (int)", "freshness=timedelta"]),
    "a start as text": (
        lambda: snapshot(start="2026-01-01"),
        ["view 'profile'", "start is '2026-01-01' (str)", "start=datetime(2026, 1, 1)"],
    ),
    "a start as date": (lambda: snapshot(start=date(2026, 1, 1)), ["view 'profile'", "(date)", "start=datetime(2026, 1, 1)"]),
    "a schedule of 5": (lambda: snapshot(schedule=5), ["view 'profile'", "schedule is 5 (int)", 'schedule="@daily"']),
    "a schedule of a timedelta": (lambda: snapshot(schedule=DAY), ["view 'profile'", "schedule is", "(timedelta)", 'schedule="@daily"']),
    "a zone that is no text": (lambda: snapshot(timezone=UTC), ["view 'profile'", "timezone is", 'timezone="Europe/Berlin"']),
    "no entity": (lambda: snapshot(entity=None), ["view 'profile'", "entity is None", 'Entity("user"']),
    "an entity by name": (lambda: snapshot(entity="user"), ["view 'profile'", "entity is 'user' (str)", 'Entity("user"']),
    "join keys as a list": (lambda: keys(["user_id"]), ["entity 'user'", "join_keys is ['user_id'] (list)", '{"user_id": str}']),
    "no list of features": (
        lambda: snapshot(features=None),
        ["view 'profile'", "features is None", "features=[...]", "Feature or Aggregate"],
    ),
    "features as a dict": (lambda: snapshot(features={"a": int}), ["view 'profile'", "features is", "(dict)", "features=[...]"]),
    "features as a set": (lambda: snapshot(features={Feature("a", int)}), ["view 'profile'", "(set)", "features=[...]"]),
    "one feature": (lambda: snapshot(features=Feature("a", int)), ["view 'profile'", "(Feature)", "features=[...]"]),
    "features by name": (lambda: snapshot(features=["a"]), ["view 'profile'", "features has 'a' (str)", "Each one is a Feature"]),
    "one source": (lambda: snapshot(sources=WATCHES), ["view 'profile'", "(ParquetSource)", "sources=[...]"]),
    "sources by name": (
        lambda: snapshot(sources=["watches"]),
        ["view 'profile'", "sources has 'watches' (str)", "Each one is a ParquetSource"],
    ),
    "a path that is no text": (lambda: source("s", Path("p")), ["source 's'", "path is", "Write path="]),
    "a query that is bytes": (lambda: snapshot(query=b"select 1"), ["view 'profile'", "query is b'select 1'", 'query="select']),
    "a path with NUL": (lambda: source("s", "a\0b"), ["source 's'", "NUL", "Leave it out"]),
    "a function that is a function": (lambda: one(function=sum), ["'watch_count'", "function is", 'function="count"']),
    "n as text": (lambda: one(function="last_n", column="x", n="3"), ["'watch_count'", "n is '3' (str)", "n=5"]),
    "owners as text": (lambda: snapshot(owners="team:a"), ["view 'profile'", "owners is 'team:a' (str)", "owners=[...]"]),
    "tags as a list": (lambda: snapshot(tags=["a"]), ["view 'profile'", "tags is ['a'] (list)", "tags={"]),
    "views that are none": (lambda: Registry([5]), ["Registry", "views has 5 (int)", "FeatureView"]),  # type: ignore[list-item]
    "one view": (lambda: Registry(PROFILE), ["Registry", "views is", "views=[...]"]),  # type: ignore[arg-type]
    "views as a dict": (lambda: Registry({"a": PROFILE}), ["Registry", "(dict)", "views=[...]"]),  # type: ignore[arg-type]
    "one service": (lambda: Registry([PROFILE], FeatureService("s", [PROFILE])), ["Registry", "services=[...]"]),  # type: ignore[arg-type]
    "a service of references": (lambda: served("profile:segment"), ["service 'recommender'", "'profile:segment' (str)", "FeatureView"]),
    "a service of one view": (
        lambda: Registry([PROFILE], [FeatureService("s", PROFILE)]),  # type: ignore[arg-type]
        ["service 's'", "features is", "features=[...]"],
    ),
    "a selection by number": (lambda: PROFILE[0], ["view 'profile'", "asked for 0", "view[["]),  # type: ignore[index]
    "a selection of numbers": (lambda: served(PROFILE[[0]]), ["service 'recommender'", "a selection has 0 (int)"]),  # type: ignore[list-item]
}


def load(declare: Callable[[], Any]) -> None:
    """Declare, and put views into a registry."""
    declared = declare()
    if not isinstance(declared, Registry):
        Registry(declared if isinstance(declared, list) else [declared])


@pytest.mark.parametrize(("declare", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_contradiction_is_refused_with_what_where_and_the_next_step(declare: Callable[[], Any], words: list[str]) -> None:
    """Every refusal names what is wrong, where it stands, and what to write instead, and is a ValueError."""
    with pytest.raises(RegistryError) as refusal:
        load(declare)
    assert isinstance(refusal.value, ValueError)
    message = str(refusal.value)
    assert [word for word in words if word not in message] == [], message


def test_a_wrong_default_is_a_dtype_error() -> None:
    """Dtype trouble has its own class, below RegistryError."""
    with pytest.raises(DtypeError):
        Registry([feature("a", int, default="1")])


ACCEPTED: dict[str, Callable[[], Any]] = {
    "nothing at all": Registry,
    "tuples in place of lists": lambda: Registry((snapshot(features=(Feature("a", int),), sources=(WATCHES,)),)),
    "files that do not exist": lambda: Registry([source("watches", "/no/such/folder/*.parquet", timestamp="at")]),
    "an entity without keys": lambda: Registry([keys({})]),
    "a composite key of all key dtypes": lambda: Registry(
        [keys({"a": bool, "b": int, "c": str, "d": bytes, "e": date, "f": datetime, "g": Decimal})]
    ),
    "SQL words as names": lambda: Registry([snapshot("select", features=[Feature("order", int), Feature("group", str)])]),
    "a ttl of exactly period plus delay": lambda: Registry([aggregates(ttl=2 * HOUR, delay=HOUR)]),
    "a ttl of exactly the delay": lambda: Registry([event(ttl=HOUR, delay=HOUR)]),
    "one source in two views": lambda: Registry([snapshot(), aggregates()]),
    "clashing features with full names": lambda: served(PROFILE, event(), views=[PROFILE, event()], full_feature_names=True),
    "a service over two entities": lambda: served(PROFILE, *(other := [aggregates(entity=TITLE)]), views=[PROFILE, *other]),
    "a service of an equal view": lambda: served(snapshot()),
    "a function of relations": lambda: Registry([snapshot(query=lambda watches, start, end: (watches, start, end))]),
    "a function of a source with capitals": lambda: Registry(
        [snapshot(query=lambda Watches, end: (Watches, end), sources=[ParquetSource("Watches", "p", timestamp="at")])]  # noqa: N803 - the source's
    ),
    "a function of all relations": lambda: Registry([snapshot(query=lambda relations: relations)]),
    "a history without query": lambda: Registry([snapshot(query=None, schedule=None, start=None)]),
    "every aggregate": lambda: Registry(
        [
            aggregates(
                features=[
                    Aggregate("a", "count", window=DAY),
                    Aggregate("b", "sum", window=DAY, column="x", dtype=int),
                    Aggregate("c", "mean", window=DAY, column="x"),
                    Aggregate("d", "min", window=DAY, column="x", dtype=str, default="none"),
                    Aggregate("e", "max", window=DAY, column="x", dtype=datetime, where="x > 3"),
                    Aggregate("f", "count_distinct", window=DAY, column="x"),
                    Aggregate("g", "last_n", window=DAY, column="x", n=3, dtype=list[str]),
                ]
            )
        ]
    ),
}


@pytest.mark.parametrize("declare", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_makes_sense_is_accepted(declare: Callable[[], Registry]) -> None:
    """Unusual declarations that contradict nothing load."""
    assert isinstance(declare(), Registry)


# References


@pytest.fixture
def registry() -> Registry:
    """Three views, two of which share a feature's name."""
    views = [
        snapshot(features=[Feature("segment", str), Feature("age", int)]),
        event(),
        aggregates(entity=TITLE, features=[Aggregate("watch_count", "count", window=DAY)]),
    ]
    return Registry(
        views, [FeatureService("recommender", [views[0], views[2]]), FeatureService("full", views[:2], full_feature_names=True)]
    )


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["age"], ["profile:age"]),
        (["profile:segment"], ["profile:segment"]),
        (["watch_count", "last_watch:segment", "age"], ["activity:watch_count", "last_watch:segment", "profile:age"]),
        ("recommender", ["profile:segment", "profile:age", "activity:watch_count"]),
    ],
    ids=["bare", "view-and-feature", "order-asked", "service-by-name"],
)
def test_references_mean_features_in_the_order_asked(registry: Registry, asked: Any, found: list[str]) -> None:
    """A bare name is enough where it is unique; a service stands for its list."""
    assert [str(ref) for ref in registry.resolve(asked)] == found


def test_a_service_answers_as_itself_and_by_name(registry: Registry) -> None:
    """The object and its name resolve alike, full names included."""
    assert registry.resolve(registry.service("full")) == registry.resolve("full")
    assert [ref.column for ref in registry.resolve("full")] == ["profile__segment", "profile__age", "last_watch__segment"]


def test_a_service_that_is_not_registered_resolves_over_views_that_are(registry: Registry) -> None:
    """A list made on the spot may select; it may not bring a view of its own."""
    view = registry.view("profile")
    assert [str(ref) for ref in registry.resolve(FeatureService("ad_hoc", [view[["age"]]]))] == ["profile:age"]
    with pytest.raises(RegistryError, match="'stranger' is not in the registry"):
        registry.resolve(FeatureService("ad_hoc", [snapshot("stranger")]))


def test_full_feature_names_tell_namesakes_apart(registry: Registry) -> None:
    """Two features of one bare name are refused with the advice that then works."""
    both = ["profile:segment", "last_watch:segment"]
    with pytest.raises(NameClashError, match="full_feature_names=True") as clash:
        registry.resolve(both)
    assert clash.value.name == "segment"
    assert [ref.column for ref in registry.resolve(both, full_feature_names=True)] == ["profile__segment", "last_watch__segment"]


def test_a_feature_asked_for_twice_is_refused(registry: Registry) -> None:
    """Full names do not help there, so the advice is another one."""
    with pytest.raises(NameClashError, match="Ask for it once"):
        registry.resolve(["age", "profile:age"])


def test_a_bare_name_of_several_views_asks_which(registry: Registry) -> None:
    """The choices are spelled out."""
    with pytest.raises(RegistryError, match="'profile:segment' or 'last_watch:segment'") as ambiguous:
        registry.resolve(["segment"])
    assert ambiguous.value.field == "features"


@pytest.mark.parametrize(
    ("asked", "kind", "suggestion", "field"),
    [
        (["agee"], "feature", "age", "features"),
        (["profil:age"], "view", "profile", "features"),
        (["profile:segmnt"], "feature", "segment", "features"),
        (["profile:age:x"], "feature", "age", "features"),
        ("recomender", "service", "recommender", "feature_service"),
        ([""], "feature", None, "features"),
        ([":"], "view", None, "features"),
    ],
    ids=["bare", "view", "feature-of-view", "two-colons", "service", "empty", "colon"],
)
def test_an_unknown_reference_says_what_was_meant(registry: Registry, asked: Any, kind: str, suggestion: str | None, field: str) -> None:
    """The nearest name is in the message and on the exception, which is a LookupError."""
    with pytest.raises(UnknownNameError) as unknown:
        registry.resolve(asked)
    assert (unknown.value.kind, unknown.value.suggestion, unknown.value.field) == (kind, suggestion, field)
    assert isinstance(unknown.value, LookupError)
    assert suggestion is None or f"Did you mean '{suggestion}'?" in str(unknown.value)


@pytest.mark.parametrize("asked", [[], (), [5], None, {"age": 1}, 5, b"age"], ids=repr)
def test_what_are_no_references_is_refused(registry: Registry, asked: Any) -> None:
    """Nothing, and things that are no text, get an error of ours that names the field."""
    with pytest.raises(RegistryError) as refusal:
        registry.resolve(asked)
    assert refusal.value.field == "features"


def test_join_keys_are_the_union_over_entities(registry: Registry) -> None:
    """A question over two entities needs both keys."""
    assert list(registry.join_keys(registry.resolve(["age", "watch_count"]))) == ["user_id", "title_id"]


def test_join_keys_of_two_dtypes_do_not_go_together() -> None:
    """One name, two dtypes: no row could answer both, so the question is refused."""
    views = [snapshot(), aggregates(entity=Entity("member", {"user_id": int}))]
    registry = Registry(views)
    with pytest.raises(RegistryError, match="'user_id' is str in one view and int in 'activity'"):
        registry.join_keys(registry.resolve(["segment", "watch_count"]))


def test_what_is_declared_is_found_by_name(registry: Registry) -> None:
    """Views, services, entities and sources are kept by name, in declared order."""
    assert list(registry.views) == ["profile", "last_watch", "activity"]
    assert list(registry.services) == ["recommender", "full"]
    assert (set(registry.entities), set(registry.sources)) == ({"user", "title"}, {"watches"})
    assert repr(registry) == "Registry(3 views, 4 features, 2 services)"


# Anything at all

_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.dates(),
    st.datetimes(),
    st.timedeltas(),
    st.decimals(),
    st.lists(st.integers() | st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3) | st.integers(), st.sampled_from([int, str, float, object, 5]), max_size=2),
    st.sampled_from(
        [int, object, object(), UTC, USER, WATCHES, Feature("a", int), PROFILE, Registry(), print, dict, lambda: None, pa.int64()]
    ),
)
_NAMES = st.text(max_size=10) | st.sampled_from(["a", "user_id", "event_timestamp", "order", "a" * 101]) | _JUNK
_ANY_KEYS = _JUNK | st.dictionaries(
    _NAMES.filter(lambda name: name.__hash__ is not None), st.sampled_from([int, str, float, bytes]) | _JUNK, max_size=2
)
_ANY_FEATURE = (
    st.builds(Feature, _NAMES, st.sampled_from([int, str, float, list[int], {"a": int}]) | _JUNK, default=_JUNK)
    | st.builds(
        Aggregate,
        _NAMES,
        st.sampled_from(["count", "sum", "last_n", "mean"]) | _JUNK,
        window=st.timedeltas() | _JUNK,
        column=st.none() | st.just("x") | _JUNK,
        n=st.none() | st.integers() | _JUNK,
        dtype=st.none() | _JUNK,
        where=st.none() | _JUNK,
        default=_JUNK,
    )
    | _JUNK
)
_CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "entity": st.builds(Entity, _NAMES, _ANY_KEYS) | _JUNK,
        "sources": st.lists(st.builds(ParquetSource, _NAMES, _NAMES, _NAMES, _NAMES) | _JUNK, max_size=2) | _JUNK,
        "features": st.lists(_ANY_FEATURE, max_size=3) | _JUNK,
        "query": st.text() | _JUNK,
        "schedule": st.text(alphabet="0123456789*/-,@ L#", max_size=12) | st.sampled_from([ON_UPDATE, "@hourly", "0 0 29 2 *"]) | _JUNK,
        "start": st.datetimes() | st.none() | _JUNK,
        "timezone": st.sampled_from(["UTC", "Asia/Tokyo"]) | _JUNK,
        **dict.fromkeys(["lookback", "delay", "ttl", "freshness"], st.timedeltas() | _JUNK),
        "owners": _JUNK,
        "tags": _JUNK,
        "description": _JUNK,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_NAMES, _CHANGES, _CHANGES, st.booleans())
def test_whatever_is_declared_only_our_own_errors_come_out(name: Any, first: dict[str, Any], second: dict[str, Any], serve: bool) -> None:  # noqa: FBT001 - drawn
    """Random values in every place load, or are refused as a FeaturePlatformError."""
    views = [snapshot(name, **first), aggregates(**second)]
    services = [FeatureService(name, views)] if serve else []
    try:
        registry = Registry(views, services)
    except FeaturePlatformError:
        return
    for view in registry.views.values():
        assert len(view.definition_hash) == 16
        for one in view.features:
            one.type.check(one.effective_default)
