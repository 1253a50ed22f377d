"""Online reads: four statuses, ttl at the moment of use, defaults, and questions that are refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_platform.dtypes import to_micros
from feature_platform.errors import EntityRowsError, NameClashError, NotMaterializedError, OnlineStoreError, RegistryError, UnknownNameError
from feature_platform.model import ON_UPDATE, Aggregate, Entity, Feature, FeatureService, FeatureStatus, FeatureView, ParquetSource
from feature_platform.online.answers import FeatureValue, OnlineFeatures, ViewProvenance
from feature_platform.online.codec import TOMBSTONE, ViewCodec
from feature_platform.online.memory import MemoryOnlineStore
from feature_platform.online.meta import ViewMeta
from feature_platform.online.retrieval import plan_online_read, read_online
from feature_platform.registry import Registry

if TYPE_CHECKING:
    from feature_platform.online.entity_rows import EntityRows

DAY = timedelta(days=1)
AS_OF = datetime(2026, 3, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
USER = Entity("user", {"user_id": str})
TITLE = Entity("title", {"title_id": int})
WATCHES = ParquetSource("watches", "watches.parquet", timestamp="watched_at")
PROFILE = FeatureView(
    "user_profile",
    entity=USER,
    sources=[WATCHES],
    query="select user_id, 'casual' as segment, 1.5 as score from watches group by user_id",
    features=[Feature("segment", str, default="new"), Feature("score", float)],
    schedule="@daily",
    start=START,
    ttl=2 * DAY,
)
ACTIVITY = FeatureView(
    "user_activity",
    entity=USER,
    sources=[WATCHES],
    features=[
        Aggregate("watches", "count", window=30 * DAY),
        Aggregate("minutes", "sum", column="minutes", window=DAY),
        Aggregate("longest", "max", column="minutes", window=DAY),
    ],
    schedule="@hourly",
    start=START,
)
LAST = FeatureView(
    "user_last",
    entity=USER,
    sources=[WATCHES],
    query="select user_id, watched_at as event_timestamp, genre from watches",
    features=[Feature("genre", str)],
    schedule=ON_UPDATE,
    start=START,
    ttl=DAY,
)
TITLES = FeatureView(
    "title_facts",
    entity=TITLE,
    sources=[ParquetSource("titles", "titles.parquet", timestamp="event_timestamp")],
    features=[Feature("year", int), Feature("segment", str)],
)
GLOBAL = FeatureView(
    "everyone",
    entity=Entity("everyone"),
    sources=[ParquetSource("totals", "totals.parquet", timestamp="event_timestamp")],
    features=[Feature("total", int)],
)
SERVICE = FeatureService("recommender", [PROFILE[["segment"]], ACTIVITY[["watches"]], LAST, GLOBAL])
REGISTRY = Registry([PROFILE, ACTIVITY, LAST, TITLES, GLOBAL], [SERVICE])


def push(store: MemoryOnlineStore, view: FeatureView, rows: list[dict[str, Any]], **meta: Any) -> None:
    """Write rows and a meta as a materialization does."""
    codec = ViewCodec("shop", view)
    generation = meta.pop("generation", 1)
    dtypes = {name: dtype.arrow for name, dtype in (view.entity.keys | codec.dtypes).items()}
    columns = {name: pa.array([row.get(name) for row in rows], arrow) for name, arrow in dtypes.items()}
    columns["event_timestamp"] = pa.array([row.get("event_timestamp", AS_OF) for row in rows], pa.timestamp("us", tz="UTC"))
    columns[TOMBSTONE] = pa.array([row.get("gone", False) for row in rows])
    store.put_many(codec.encode_rows(pa.table(columns), generation))
    known = {
        "as_of": to_micros(AS_OF) if view.is_window_view else None,
        "schemas": {codec.definition: codec.schema},
    }
    stored = ViewMeta(generation=generation, materialized_at=to_micros(AS_OF), definition=codec.definition, **(known | meta))
    assert store.put_meta(codec.meta_key, stored.to_bytes())


def ask(store: MemoryOnlineStore, features: Any, rows: EntityRows, now: datetime = AS_OF, **more: bool) -> OnlineFeatures:
    """Read from the store."""
    return read_online(REGISTRY, store, "shop", features, rows, now=now, **more)


@pytest.fixture
def store() -> MemoryOnlineStore:
    """Return a store to which nothing was pushed."""
    return MemoryOnlineStore()


@pytest.fixture
def filled(store: MemoryOnlineStore) -> MemoryOnlineStore:
    """Return a store with a row of `8a2f` in every view."""
    push(store, PROFILE, [{"user_id": "8a2f", "segment": "casual", "score": None}])
    push(store, ACTIVITY, [{"user_id": "8a2f", "watches": 47, "minutes": 2.5, "longest": None, "event_timestamp": AS_OF - 9 * DAY}])
    push(store, LAST, [{"user_id": "8a2f", "genre": "drama", "event_timestamp": AS_OF - DAY / 2}])
    push(store, TITLES, [{"title_id": 2**63 - 1, "year": 1999, "segment": "old"}])
    push(store, GLOBAL, [{"total": 2**60 + 1}])
    return store


def test_present_and_null_values(filled: MemoryOnlineStore) -> None:
    """A stored value is PRESENT, a stored null NULL_VALUE and None even where a default is declared, each with its time."""
    [row] = ask(filled, ["score", "watches", "longest", "genre"], [{"user_id": "8a2f"}]).rows
    assert row == {
        "score": FeatureValue(None, FeatureStatus.NULL_VALUE, AS_OF),
        "watches": FeatureValue(47, FeatureStatus.PRESENT, AS_OF - 9 * DAY),
        "longest": FeatureValue(None, FeatureStatus.NULL_VALUE, AS_OF - 9 * DAY),
        "genre": FeatureValue("drama", FeatureStatus.PRESENT, AS_OF - DAY / 2),
    }


def test_unknown_entities_have_defaults_and_say_so(filled: MemoryOnlineStore) -> None:
    """An entity without a row is NOT_FOUND: the declared default, the value of an empty window, or None."""
    [row] = ask(filled, ["user_profile:segment", "score", "watches", "minutes", "longest", "genre"], [{"user_id": "?"}]).rows
    assert {value.status for value in row.values()} == {FeatureStatus.NOT_FOUND}
    assert {value.event_timestamp for value in row.values()} == {None}
    assert {name: value.value for name, value in row.items()} == {
        "segment": "new",
        "score": None,
        "watches": 0,
        "minutes": 0.0,
        "longest": None,
        "genre": None,
    }


@pytest.mark.parametrize(
    ("age", "status", "value"),
    [
        (2 * DAY, FeatureStatus.PRESENT, "casual"),
        (2 * DAY + timedelta(microseconds=1), FeatureStatus.OUTSIDE_MAX_AGE, "new"),
    ],
    ids=["exactly-at-ttl", "past-ttl"],
)
def test_a_window_view_is_as_old_as_its_as_of(store: MemoryOnlineStore, age: timedelta, status: FeatureStatus, value: str) -> None:
    """An old row of a window view is as fresh as the view's as-of, inclusive; past it the default stands in."""
    push(store, PROFILE, [{"user_id": "a", "segment": "casual", "event_timestamp": AS_OF - 30 * DAY}])
    [row] = ask(store, ["user_profile:segment", "score"], [{"user_id": "a"}], now=AS_OF + age).rows
    assert row["segment"] == FeatureValue(value, status, AS_OF - 30 * DAY)
    assert row["score"].status is (FeatureStatus.NULL_VALUE if status is FeatureStatus.PRESENT else status)


@pytest.mark.parametrize(
    ("age", "status"),
    [(DAY, FeatureStatus.PRESENT), (DAY + timedelta(microseconds=1), FeatureStatus.OUTSIDE_MAX_AGE)],
    ids=["exactly-at-ttl", "past-ttl"],
)
def test_an_event_view_is_as_old_as_its_row(store: MemoryOnlineStore, age: timedelta, status: FeatureStatus) -> None:
    """Rows of an event view age one by one."""
    push(store, LAST, [{"user_id": "a", "genre": "drama"}, {"user_id": "b", "genre": "noir", "event_timestamp": AS_OF + DAY}])
    a, b = ask(store, ["genre"], [{"user_id": "a"}, {"user_id": "b"}], now=AS_OF + age).rows
    assert a["genre"].status is status
    assert b["genre"].status is FeatureStatus.PRESENT


def test_absent_comes_before_old(store: MemoryOnlineStore) -> None:
    """A key without a row is NOT_FOUND however old the view is."""
    push(store, PROFILE, [])
    [row] = ask(store, ["score"], [{"user_id": "a"}], now=AS_OF + 100 * DAY).rows
    assert row["score"].status is FeatureStatus.NOT_FOUND


def test_what_lost_its_value_is_not_found(store: MemoryOnlineStore) -> None:
    """Tombstones, rows below the last full push, and rows before the newest full partition do not count."""
    push(store, PROFILE, [{"user_id": "below", "segment": "x"}], generation=1)
    rows: list[dict[str, Any]] = [
        {"user_id": "gone", "segment": "x", "gone": True},
        {"user_id": "before", "segment": "x", "event_timestamp": AS_OF - timedelta(microseconds=1)},
        {"user_id": "edge", "segment": "x"},
    ]
    push(store, PROFILE, rows, generation=3, full_generation=3, newest_full=to_micros(AS_OF))
    users = [{"user_id": name} for name in ("below", "gone", "before", "edge")]
    statuses = [row["segment"].status.value for row in ask(store, ["user_profile:segment"], users).rows]
    assert statuses == ["NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "PRESENT"]


def test_rows_pushed_ahead_of_their_meta_count(store: MemoryOnlineStore) -> None:
    """While a push runs, its rows are there before the meta moves, and read as PRESENT."""
    push(store, PROFILE, [{"user_id": "a", "segment": "old"}], generation=1, full_generation=1, newest_full=to_micros(AS_OF))
    codec = ViewCodec("shop", PROFILE)
    table = pa.table({"user_id": ["a"], "segment": ["new one"], "score": [1.0], "event_timestamp": pa.array([AS_OF + DAY])})
    store.put_many(codec.encode_rows(table, 2))
    [row] = ask(store, ["user_profile:segment"], [{"user_id": "a"}]).rows
    assert row["segment"] == FeatureValue("new one", FeatureStatus.PRESENT, AS_OF + DAY)


@pytest.mark.parametrize("rows", [[{"user_id": "8a2f"}], []], ids=["rows", "no-rows"])
def test_a_view_that_was_never_pushed_is_an_error(filled: MemoryOnlineStore, rows: list[dict[str, object]]) -> None:
    """A missing meta is an exception that names the view, never defaults for everyone."""
    filled._values.pop(ViewCodec("shop", LAST).meta_key)
    with pytest.raises(NotMaterializedError, match="user_last") as caught:
        ask(filled, ["watches", "genre"], rows)
    assert caught.value.view == "user_last"


def test_rows_of_an_earlier_definition_answer_by_name(store: MemoryOnlineStore) -> None:
    """After a change of the view, a feature that the stored row has is answered; a new one is NOT_FOUND, past its ttl too."""
    earlier = FeatureView(
        "user_profile",
        entity=USER,
        sources=[WATCHES],
        query="select user_id, 1.5 as score, 'x' as other from watches",
        features=[Feature("other", str), Feature("score", float)],
        schedule="@daily",
        start=START,
    )
    push(store, earlier, [{"user_id": "a", "other": "x", "score": 2.5}])
    for now, status in ((AS_OF, FeatureStatus.PRESENT), (AS_OF + 9 * DAY, FeatureStatus.OUTSIDE_MAX_AGE)):
        [row] = ask(store, ["user_profile:segment", "score"], [{"user_id": "a"}], now=now).rows
        assert row["score"].status is status
        assert row["segment"] == FeatureValue("new", FeatureStatus.NOT_FOUND)


def test_several_views_and_entities_are_one_trip(filled: MemoryOnlineStore) -> None:
    """A read asks for the metas first, then for the rows; a global view's row once for all; repeated rows are answered each."""
    rows = [{"user_id": "8a2f"}, {"user_id": "?"}, {"user_id": "8a2f"}]
    read = plan_online_read(REGISTRY, "shop", "recommender", rows)
    assert [b":meta:" in key for key in read.keys] == [True] * 4 + [False] * 10
    answers = read.answer(filled.get_many(read.keys), AS_OF)
    assert answers.names == ("segment", "watches", "genre", "total")
    assert [list(row) for row in answers.rows] == [list(answers.names)] * 3
    assert answers.rows[0] == answers.rows[2] != answers.rows[1]
    assert [row["total"].value for row in answers.rows] == [2**60 + 1] * 3


def test_answers_say_where_their_values_come_from(filled: MemoryOnlineStore) -> None:
    """Asked for metadata, an answer has the push behind each view, however many features and rows; unasked, it has none."""
    push(filled, PROFILE, [], generation=2, run_id="run-7", partition="2026-02-28T0000Z")
    answer = ask(filled, ["user_profile:segment", "score", "genre"], [{"user_id": "8a2f"}, {"user_id": "?"}], AS_OF + DAY, metadata=True)
    assert answer.views == {
        "user_profile": ViewProvenance("run-7", "2026-02-28T0000Z", PROFILE.definition_hash, AS_OF, AS_OF, DAY.total_seconds()),
        "user_last": ViewProvenance(None, None, LAST.definition_hash, None, AS_OF, DAY.total_seconds()),
    }
    plain = ask(filled, ["user_profile:segment", "score", "genre"], [{"user_id": "8a2f"}, {"user_id": "?"}], AS_OF + DAY)
    assert plain.views is None
    assert plain.rows == answer.rows


@pytest.mark.parametrize(
    ("known", "age"),
    [
        ({"newest_source_timestamp": AS_OF - 3 * DAY}, 4 * DAY),
        ({"newest_source_timestamp": None}, DAY),
        ({"newest_source_timestamp": None, "as_of": None, "materialized_at": AS_OF - DAY}, 2 * DAY),
    ],
    ids=["newest-source-row", "as-of", "materialized"],
)
def test_the_age_of_a_view_is_its_datas(known: dict[str, datetime | None], age: timedelta) -> None:
    """It counts from the newest source row; without one from the as-of, and without that from the materialization."""
    meta = {"as_of": AS_OF, "materialized_at": AS_OF} | known
    micros = {name: None if moment is None else to_micros(moment) for name, moment in meta.items()}
    stored = ViewMeta(generation=1, definition="0" * 16, **micros)  # type: ignore[arg-type]
    assert stored.age_seconds(AS_OF + DAY) == age.total_seconds()
    assert stored.age_seconds((AS_OF + DAY).replace(tzinfo=None)) == age.total_seconds()


def test_global_views_need_no_keys(filled: MemoryOnlineStore) -> None:
    """A view without join keys is asked with an empty row, or with no columns."""
    questions: list[EntityRows] = [[{}], {}]
    for rows in questions:
        assert ask(filled, ["total"], rows).to_dict() == {"total": [2**60 + 1]}
    assert ask(filled, ["total"], []).to_dict() == {"total": []}


def test_answers_as_columns(filled: MemoryOnlineStore) -> None:
    """Columns hold the join keys, then the features in the order asked; rows and columns ask the same question."""
    features = ["title_facts:year", "genre", "watches"]
    columns: dict[str, list[object]] = {"user_id": ["8a2f", "?"], "title_id": [2**63 - 1, 0]}
    answers = ask(filled, features, columns)
    assert answers.to_dict() == {
        "title_id": [2**63 - 1, 0],
        "user_id": ["8a2f", "?"],
        "year": [1999, None],
        "genre": ["drama", None],
        "watches": [47, 0],
    }
    assert ask(filled, features, [{"user_id": "8a2f", "title_id": 2**63 - 1}, {"title_id": 0, "user_id": "?"}]).rows == answers.rows
    assert ask(filled, ["year"], {"title_id": np.array([2**63 - 1])}).rows[0]["year"].value == 1999
    assert ask(filled, ["year"], {"title_id": pd.Series([0])}).rows[0]["year"].value is None
    assert ask(filled, ["year"], [{"title_id": np.int64(2**63 - 1)}]).rows[0]["year"].value == 1999


def test_frames_keep_ints_whole(filled: MemoryOnlineStore) -> None:
    """A frame has nullable ints, so that a gap does not turn the others into floats."""
    frame = ask(filled, ["total", "year", "genre", "minutes"], {"user_id": ["8a2f", "?"], "title_id": [2**63 - 1, 0]}).to_pandas()
    assert frame["title_id"].tolist() == [2**63 - 1, 0]
    assert frame["total"].tolist() == [2**60 + 1] * 2
    assert frame["year"].isna().tolist() == [False, True]
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "title_id": "Int64",
        "user_id": "string",
        "total": "Int64",
        "year": "Int64",
        "genre": "string",
        "minutes": "float64",
    }
    assert ask(filled, ["year"], []).to_pandas().shape == (0, 2)


def test_full_names_part_what_would_clash(filled: MemoryOnlineStore) -> None:
    """Two features of one name need full names, which results then have."""
    rows = [{"user_id": "8a2f", "title_id": 2**63 - 1}]
    both = ["user_profile:segment", "title_facts:segment"]
    with pytest.raises(NameClashError, match="full_feature_names"):
        ask(filled, both, rows)
    [row] = ask(filled, both, rows, full_feature_names=True).rows
    assert {name: value.value for name, value in row.items()} == {"user_profile__segment": "casual", "title_facts__segment": "old"}


def test_a_feature_with_the_name_of_a_join_key_needs_its_full_name() -> None:
    """A result column never hides a join key of another entity."""
    view = FeatureView("other", entity=TITLE, sources=TITLES.sources, features=[Feature("user_id", str)])
    registry = Registry([view, LAST])
    rows = [{"user_id": "a", "title_id": 1}]
    with pytest.raises(NameClashError, match="join key"):
        plan_online_read(registry, "shop", ["genre", "other:user_id"], rows)
    assert plan_online_read(registry, "shop", ["genre", "other:user_id"], rows, full_feature_names=True).keys


@pytest.mark.parametrize(
    ("rows", "field", "what"),
    [
        ([{"user_id": "a"}, {}], "user_id", "entity row 1: join key 'user_id' is missing"),
        ([{"user_idd": "a"}], "user_idd", "Did you mean 'user_id'"),
        ([{"user_id": "a", "age": 3}], "age", "no join key"),
        ([{"user_id": None}], "user_id", "row 0: join key 'user_id' is null"),
        ([{"user_id": "a"}, {"user_id": 5}], "user_id", "row 1: join key 'user_id': 5"),
        ([{"user_id": b"a"}], "user_id", "not of dtype str"),
        ([{"user_id": "\ud800"}], "user_id", "not of dtype str"),
        ([{"user_id": ["a"]}], "user_id", "not of dtype str"),
        ({"user_id": "a"}, "user_id", "not a list"),
        ({"user_id": ["a", None]}, "user_id", "row 1: join key 'user_id' is null"),
        ({}, "user_id", "is missing"),
        ({"user": ["a"]}, "user", "Did you mean 'user_id'"),
        ("a", "entity_rows", "not a list of dicts"),
        (["a"], "entity_rows", "entity row 0 is a str"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode() if isinstance(value, (list, dict, str)) else None,
)
def test_wrong_entity_rows_are_refused(rows: Any, field: str, what: str) -> None:
    """Rows that lack a key, have another one, a null or another dtype are refused by name and row."""
    with pytest.raises(EntityRowsError, match=what) as caught:
        plan_online_read(REGISTRY, "shop", ["genre"], rows)
    assert caught.value.field == field


@pytest.mark.parametrize("value", ["1", 1.0, True, 2**63, -(2**63) - 1, np.float64(1), np.bool_(1), AS_OF], ids=repr)
def test_int_keys_take_ints_only(value: object) -> None:
    """Text, floats, bools and ints beyond 64 bits are not cast to an int key."""
    with pytest.raises(EntityRowsError, match="title_id"):
        plan_online_read(REGISTRY, "shop", ["year"], [{"title_id": value}])


def test_columns_of_unequal_length_are_refused() -> None:
    """Columns that do not belong together are not cut to the shortest."""
    with pytest.raises(EntityRowsError, match="differ in length"):
        plan_online_read(REGISTRY, "shop", ["genre", "year"], {"user_id": ["a", "b"], "title_id": [1]})


def test_unknown_and_ambiguous_features_are_refused() -> None:
    """A feature that is not declared, or a bare name of several views, is refused by the registry's own errors."""
    rows = [{"user_id": "a"}]
    with pytest.raises(UnknownNameError, match="Did you mean 'watches'"):
        plan_online_read(REGISTRY, "shop", ["watchs"], rows)
    with pytest.raises(RegistryError, match="several views"):
        plan_online_read(REGISTRY, "shop", ["segment"], rows)


@pytest.mark.parametrize(
    "value",
    [
        b"ruined",
        b"",
        b"7",
        msgspec.msgpack.encode("a text of somebody else's"),
        msgspec.msgpack.encode({"a": 1}),
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode([1, 2, ["a list"], False]),
        msgspec.msgpack.encode([1, None, "a text", False]),
        msgspec.msgpack.encode([1, 2, 3, True]),
    ],
    ids=["no-msgpack", "empty", "number", "text", "object", "short-list", "list-of-lists", "no-time", "no-definition"],
)
def test_a_ruined_value_is_an_error(filled: MemoryOnlineStore, value: bytes) -> None:
    """A value that is broken, or not ours, is an error with a way out, not an absent one."""
    filled._values[ViewCodec("shop", LAST).entity_key(["8a2f"])] = value
    with pytest.raises(OnlineStoreError, match="rebuild-online"):
        ask(filled, ["genre"], [{"user_id": "8a2f"}])


def test_naive_now_is_utc(filled: MemoryOnlineStore) -> None:
    """A moment without a zone is UTC, as everywhere."""
    naive = (AS_OF + DAY / 2).replace(tzinfo=None)
    assert ask(filled, ["genre"], [{"user_id": "8a2f"}], now=naive).rows[0]["genre"].status is FeatureStatus.PRESENT
    later = naive + timedelta(microseconds=1)
    assert ask(filled, ["genre"], [{"user_id": "8a2f"}], now=later).rows[0]["genre"].status is FeatureStatus.OUTSIDE_MAX_AGE
