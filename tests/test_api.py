"""The HTTP API over real HTTP, a real uvicorn and a real online store."""

from __future__ import annotations

import base64
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import schemathesis
from faulty_server import Server, wait_until
from fuzzing import CASES, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from starlette.routing import Route

from feature_platform.api import create_app, serve
from feature_platform.api.auth import check_binding, needed_scope
from feature_platform.api.protocol import MAX_HEAD_BYTES
from feature_platform.api.server import Server as ApiServer
from feature_platform.api.server import server_config
from feature_platform.dtypes import to_micros
from feature_platform.errors import SettingsError
from feature_platform.model import Entity, Feature, FeatureService, FeatureView, ParquetSource
from feature_platform.online.codec import ViewCodec, ViewMeta
from feature_platform.online.embedded import stop_server
from feature_platform.online.opening import open_online_store
from feature_platform.online.store import OnlineStore
from feature_platform.registry import Registry
from feature_platform.settings import Settings
from feature_platform.tokens import TokenScope, create_token, revoke_token

NOW = datetime.now(UTC).replace(microsecond=123456)
HOUR = timedelta(hours=1)
TOKEN = "a long random text"

events = ParquetSource("events", "events/*.parquet", timestamp="event_timestamp")
user = Entity("user", {"user_id": str})
title = Entity("title", {"title_id": int})
viewing = Entity("viewing", {"user_id": str, "title_id": int})
odd = Entity("odd", {"flag": bool, "blob": bytes, "day": date, "at": datetime, "price": Decimal, "small": pa.int8()})
everyone = Entity("everyone")

profile = FeatureView(
    "profile",
    entity=user,
    sources=[events],
    query="select user_id, segment, score from events",
    features=[Feature("segment", str, "Activity segment.", default="new"), Feature("score", float)],
    schedule="@daily",
    start=datetime(2026, 1, 1),
    ttl=timedelta(days=2),
)
last_watch = FeatureView("last_watch", entity=user, sources=[events], features=[Feature("genre", str, default="none")], ttl=HOUR)
titles = FeatureView("titles", entity=title, sources=[events], features=[Feature("plays", int)])
viewings = FeatureView("viewings", entity=viewing, sources=[events], features=[Feature("minutes", int)])
oddities = FeatureView("oddities", entity=odd, sources=[events], features=[Feature("hits", int)])
site = FeatureView("site", entity=everyone, sources=[events], features=[Feature("banner", str)])
other = FeatureView("other", entity=user, sources=[events], features=[Feature("score", int)])

EVERY_DTYPE: dict[str, tuple[Any, Any, Any]] = {  # name: dtype, stored, as JSON
    "a_bool": (bool, True, True),
    "an_int": (int, 2**63 - 1, 2**63 - 1),
    "a_uint64": (pa.uint64(), 2**64 - 1, 2**64 - 1),
    "a_float": (float, 0.1, 0.1),
    "a_nan": (float, math.nan, "NaN"),
    "an_infinity": (float, -math.inf, "-Infinity"),
    "a_str": (str, "né 🎬", "né 🎬"),
    "an_empty_str": (str, "", ""),
    "some_bytes": (bytes, b"\x00\xff", base64.b64encode(b"\x00\xff").decode()),
    "a_date": (date, date(2026, 2, 28), "2026-02-28"),
    "a_datetime": (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02T03:04:05.000006Z"),
    "a_decimal": (pa.decimal128(20, 2), Decimal("123456789012345678.90"), "123456789012345678.90"),
    "a_list": (list[float], [1.5, None, math.inf], [1.5, None, "Infinity"]),
    "a_struct": ({"lat": float, "on": date}, {"lat": 1.0, "on": date(2026, 1, 1)}, {"lat": 1.0, "on": "2026-01-01"}),
    "a_map": (dict[str, int], {"x": 2**60}, {"x": 2**60}),
}
all_dtypes = FeatureView(
    "all_dtypes", entity=user, sources=[events], features=[Feature(name, dtype) for name, (dtype, _, _) in EVERY_DTYPE.items()]
)
registry = Registry(
    views=[profile, last_watch, titles, viewings, oddities, site, other, all_dtypes],
    services=[
        FeatureService("recommender", [profile[["segment"]], last_watch], description="What the prompt says."),
        FeatureService("everything", [all_dtypes]),
        FeatureService("of_a_viewing", [viewings, titles, site], full_feature_names=True),
    ],
)


def put(store: OnlineStore, view: FeatureView, rows: Sequence[dict[str, Any]], *, hours_ago: float = 0.0) -> None:
    """Write rows and the meta of a view, as a materialization does."""
    codec = ViewCodec(Settings().project, view)
    types = {name: dtype.arrow for name, dtype in view.entity.keys.items()} | {one.name: one.type.arrow for one in view.features}
    when = NOW - timedelta(hours=hours_ago)
    columns = {name: pa.array([row.get(name) for row in rows], arrow) for name, arrow in types.items()}
    columns["event_timestamp"] = pa.array([row.get("event_timestamp", when) for row in rows], pa.timestamp("us", tz="UTC"))
    store.put_many(codec.encode_rows(pa.table(columns), 1))
    micros = to_micros(when)
    as_of = micros if view.is_window_view else None
    meta = ViewMeta(generation=1, materialized_at=micros, definition=codec.definition, as_of=as_of, rows=len(rows))
    known = replace(meta, schemas={codec.definition: codec.schema}, run_id="a-run", partition="2026-01-01T0000Z")
    store.put_meta(codec.meta_key, known.to_bytes())


def fill(store: OnlineStore) -> None:
    """Write the rows that the tests ask about."""
    put(store, profile, [{"user_id": "u1", "segment": "power", "score": 0.5}, {"user_id": "u2", "segment": None, "score": math.nan}])
    old = NOW - 2 * HOUR
    genres: list[dict[str, Any]] = [{"user_id": "u1", "genre": "noir"}, {"user_id": "u2", "genre": "western", "event_timestamp": old}]
    put(store, last_watch, genres)
    put(store, titles, [{"title_id": 2**60 + 1, "plays": 7}])
    put(store, viewings, [{"user_id": "u1", "title_id": 2**60 + 1, "minutes": 90}])
    put(store, oddities, [{**ODD, "hits": 3}])
    put(store, site, [{"banner": "hello"}])
    put(store, other, [])
    put(store, all_dtypes, [{"user_id": "u1", **{name: stored for name, (_, stored, _) in EVERY_DTYPE.items()}}])


ODD = {
    "flag": True,
    "blob": b"\x01,\xff",
    "day": date(2026, 1, 1),
    "at": datetime(2026, 1, 1, 12, tzinfo=UTC),
    "price": Decimal("1.50"),
    "small": -128,
}
ODD_JSON = {"flag": True, "blob": "ASz/", "day": "2026-01-01", "at": "2026-01-01T12:00:00Z", "price": "1.5", "small": -128}


@contextmanager
def running(config: Settings, *, of: Registry = registry) -> Iterator[httpx.Client]:
    """Serve as `serve` does, in a thread, on a free port."""
    server = ApiServer(server_config(create_app(of, config), host="127.0.0.1", port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(10)


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the problem body of a refused request."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= body.keys()
    return body


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Fill the embedded store of a project."""
    chosen = Settings(root=tmp_path_factory.mktemp("project"), max_entities=50, max_body_bytes=20_000, read_deadline_ms=2000)
    try:
        with open_online_store(chosen) as store:
            fill(store)
        yield chosen
    finally:
        stop_server(chosen.online_root)


@pytest.fixture(scope="module")
def api(config: Settings) -> Iterator[httpx.Client]:
    """Run an API and connect to it."""
    with running(config) as client:
        yield client


def ask(api: httpx.Client, body: object) -> httpx.Response:
    """Ask for features."""
    return api.post("/get-online-features", json=body)


# Both forms


def test_one_entity_is_answered_with_values_and_statuses(api: httpx.Client) -> None:
    """The one-entity form repeats the keys and has a value and a status for every feature, in the order asked."""
    response = ask(api, {"user_id": "u1", "features": ["genre", "profile:score", "segment"]})
    assert response.status_code == 200
    assert response.json() == {
        "user_id": "u1",
        "features": {"genre": "noir", "score": 0.5, "segment": "power"},
        "statuses": {"genre": "PRESENT", "score": "PRESENT", "segment": "PRESENT"},
    }
    assert list(response.json()["features"]) == ["genre", "score", "segment"]


def test_all_four_statuses_are_told_apart(api: httpx.Client) -> None:
    """Null, absent and too old never look like a value, and the default stands in for the last two."""
    asked = {"features": ["profile:segment", "profile:score", "genre"], "metadata": True}
    of_u2, of_nobody = ask(api, asked | {"user_id": "u2"}).json(), ask(api, asked | {"user_id": "nobody"}).json()
    assert of_u2["features"] == {"segment": None, "score": "NaN", "genre": "none"}
    assert of_u2["statuses"] == {"segment": "NULL_VALUE", "score": "PRESENT", "genre": "OUTSIDE_MAX_AGE"}
    assert of_u2["event_timestamps"]["genre"] == (NOW - 2 * HOUR).isoformat().replace("+00:00", "Z")
    assert of_nobody["features"] == {"segment": "new", "score": None, "genre": "none"}
    assert set(of_nobody["statuses"].values()) == {"NOT_FOUND"}
    assert set(of_nobody["event_timestamps"].values()) == {None}


def test_metadata_says_where_values_come_from(api: httpx.Client) -> None:
    """Either form adds the push behind each view when asked, and only then: Feast's clients see what they know."""
    asked = {"features": ["profile:segment", "genre"]}
    now = NOW.isoformat().replace("+00:00", "Z")
    one = ask(api, {**asked, "user_id": "u1", "metadata": True}).json()
    several = ask(api, {**asked, "entities": {"user_id": ["u1"]}, "metadata": True}).json()
    for views in (one["views"], several["metadata"]["views"]):
        assert views.keys() == {"profile", "last_watch"}
        assert 0 <= views["profile"].pop("age_seconds") < 3600
        known = {"run_id": "a-run", "partition": "2026-01-01T0000Z", "materialized_at": now}
        assert views["profile"] == {**known, "code_version": profile.definition_hash, "as_of": now}
        assert views["last_watch"]["as_of"] is None
    assert several["metadata"]["feature_names"] == ["user_id", "segment", "genre"]
    routed = api.post("/services/recommender", json={"user_id": "u1", "metadata": True}).json()
    assert routed["views"].keys() == one["views"].keys()
    assert "views" not in ask(api, {**asked, "user_id": "u1"}).json()
    assert ask(api, {**asked, "entities": {"user_id": ["u1"]}}).json()["metadata"].keys() == {"feature_names"}


def test_columns_are_answered_as_feast_does(api: httpx.Client) -> None:
    """The columnar form has one result for every name, the keys first, and the epoch where there is no timestamp."""
    body = ask(api, {"features": ["last_watch:genre", "profile:segment"], "entities": {"user_id": ["nobody", "u1", "u1"]}}).json()
    epoch, now = "1970-01-01T00:00:00Z", NOW.isoformat().replace("+00:00", "Z")
    assert body == {
        "metadata": {"feature_names": ["user_id", "genre", "segment"]},
        "results": [
            {"values": ["nobody", "u1", "u1"], "statuses": ["PRESENT"] * 3, "event_timestamps": [epoch] * 3},
            {"values": ["none", "noir", "noir"], "statuses": ["NOT_FOUND", "PRESENT", "PRESENT"], "event_timestamps": [epoch, now, now]},
            {"values": ["new", "power", "power"], "statuses": ["NOT_FOUND", "PRESENT", "PRESENT"], "event_timestamps": [epoch, now, now]},
        ],
    }


def test_no_entities_are_answered_with_empty_columns(api: httpx.Client) -> None:
    """Empty lists are a question without rows, not an error."""
    body = ask(api, {"features": ["genre"], "entities": {"user_id": []}}).json()
    assert body["metadata"]["feature_names"] == ["user_id", "genre"]
    assert body["results"] == [{"values": [], "statuses": [], "event_timestamps": []}] * 2


def test_full_feature_names_part_features_of_one_name(api: httpx.Client) -> None:
    """Two views' features of one name are refused, with advice, until they are asked for by full names."""
    asked = {"user_id": "u1", "features": ["profile:score", "other:score"]}
    assert "full_feature_names" in problem(ask(api, asked), 422)["detail"]
    assert ask(api, asked | {"full_feature_names": True}).json()["features"] == {"profile__score": 0.5, "other__score": None}


def test_a_service_is_asked_by_name_or_by_its_route(api: httpx.Client) -> None:
    """A service's own route answers what naming it does, for one entity and for columns."""
    named = ask(api, {"user_id": "u1", "feature_service": "recommender"})
    routed = api.post("/services/recommender", json={"user_id": "u1"})
    assert routed.json() == named.json()
    assert routed.json()["features"] == {"segment": "power", "genre": "noir"}
    entities = {"entities": {"user_id": ["u1", "u2"]}}
    assert api.post("/services/recommender", json=entities).json() == ask(api, entities | {"feature_service": "recommender"}).json()


def test_composite_keys_and_features_of_everybody_go_together(api: httpx.Client) -> None:
    """A service over several entities takes the union of their keys, ints past 2^53 with every digit."""
    body = api.post("/services/of_a_viewing", json={"user_id": "u1", "title_id": 2**60 + 1}).json()
    assert body["title_id"] == 2**60 + 1
    assert body["features"] == {"viewings__minutes": 90, "titles__plays": 7, "site__banner": "hello"}


def test_features_of_everybody_need_no_key(api: httpx.Client) -> None:
    """A global view is asked about without keys, and has one row."""
    assert ask(api, {"features": ["banner"]}).json() == {"features": {"banner": "hello"}, "statuses": {"banner": "PRESENT"}}
    assert ask(api, {"features": ["banner"], "entities": {}}).json()["results"][0]["values"] == ["hello"]


def test_every_dtype_arrives_exactly(api: httpx.Client) -> None:
    """Ints keep all digits; NaN, infinities, bytes and decimals are strings."""
    assert api.post("/services/everything", json={"user_id": "u1"}).json()["features"] == {
        name: as_json for name, (_, _, as_json) in EVERY_DTYPE.items()
    }


def test_keys_of_every_dtype_find_their_row(api: httpx.Client) -> None:
    """Join keys are read by their dtype, so another spelling of one value finds the same row and is repeated as sent."""
    body = ask(api, {"features": ["hits"], **ODD_JSON, "at": "2026-01-01T13:00:00+01:00", "price": "1.500"}).json()
    assert body["features"] == {"hits": 3}
    assert body["price"] == "1.500"


# Refusals


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"features": ["genre"]}, "user_id", "'user_id' is missing"),
        ({"features": ["genre"], "userid": "u1"}, "user_id", "Did you mean it by 'userid'?"),
        ({"features": ["genre"], "entities": {}}, "entities.user_id", "'entities.user_id' is missing"),
        ({"features": ["genre"], "user_id": "u1", "metdata": True}, "metdata", "Did you mean 'metadata'?"),
        ({"features": ["genre"], "user_id": "u1", "feature_service": "recommender"}, "feature_service", "exclude each other"),
        ({"user_id": "u1"}, "features", "no features are asked for"),
        ({"user_id": "u1", "feature": ["genre"]}, "features", "Did you mean it by 'feature'?"),
        ({"features": [], "user_id": "u1"}, "features", "no feature is asked for"),
        ({"features": "genre", "user_id": "u1"}, "features", "not a list of strings"),
        ({"features": ["genre", 1], "user_id": "u1"}, "features", "not a list of strings"),
        ({"features": ["genre", "genre"], "user_id": "u1"}, "features", "Ask for it once"),
        ({"features": ["score"], "user_id": "u1"}, "features", "profile:score"),
        ({"features": ["genre"] * 1000, "user_id": "u1"}, "features", "are declared"),
        ({"feature_service": ["recommender"], "user_id": "u1"}, "feature_service", "not a string"),
        ({"features": ["genre"], "user_id": "u1", "metadata": 1}, "metadata", "neither true nor false"),
        ({"features": ["genre"], "user_id": "u1", "full_feature_names": "yes"}, "full_feature_names", "neither true nor false"),
        ({"features": ["genre"], "user_id": 7}, "user_id", "not of dtype str"),
        ({"features": ["genre"], "user_id": None}, "user_id", "null"),
        ({"features": ["genre"], "user_id": ["u1"]}, "user_id", "is a list, not one value"),
        ({"features": ["genre"], "user_id": {}}, "user_id", "is an object, not one value"),
        ({"features": ["plays"], "title_id": True}, "title_id", "not of dtype int"),
        ({"features": ["plays"], "title_id": 1.0}, "title_id", "not of dtype int"),
        ({"features": ["plays"], "title_id": "1"}, "title_id", "not of dtype int"),
        ({"features": ["plays"], "title_id": 2**63}, "title_id", "not of dtype int"),
        ({"features": ["hits"], **ODD_JSON, "small": 128}, "small", "not of dtype int8"),
        ({"features": ["hits"], **ODD_JSON, "blob": "?"}, "blob", "not of dtype bytes"),
        ({"features": ["hits"], **ODD_JSON, "day": "2026-02-30"}, "day", "not of dtype date"),
        ({"features": ["hits"], **ODD_JSON, "price": "NaN"}, "price", "not of dtype decimal"),
        ({"features": ["genre"], "entities": ["u1"]}, "entities", "not an object"),
        ({"features": ["genre"], "entities": {"user_id": "u1"}}, "entities.user_id", "not a list"),
        ({"features": ["genre"], "entities": {"user_id": ["u1", 2]}}, "entities.user_id[1]", "not of dtype str"),
        ({"features": ["genre"], "entities": {"user_id": ["u1", None]}}, "entities.user_id[1]", "null"),
        ({"features": ["genre"], "entities": {"user_id": ["u1"], "user": ["x"]}}, "entities.user", "Did you mean 'entities.user_id'?"),
        ({"features": ["genre"], "entities": {"user_id": ["u1"]}, "user_id": "u1"}, "user_id", "beside entities"),
        ({"features": ["minutes"], "entities": {"user_id": ["u1"], "title_id": [1, 2]}}, "entities", "differ in length"),
        ({"features": ["genre"], "entities": {"user_id": ["u"] * 51}}, "entities", "at most 50"),
        ([], None, "not an object"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(api: httpx.Client, body: object, field: str | None, said: str) -> None:
    """A 422 names the field and the next step."""
    found = problem(ask(api, body), 422)
    assert found.get("field") == field
    assert said in found["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body", "suggestion"),
    [
        ("POST", "/get-online-features", {"features": ["gener"], "user_id": "u1"}, "genre"),
        ("POST", "/get-online-features", {"features": ["last_watch:gener"], "user_id": "u1"}, "genre"),
        ("POST", "/get-online-features", {"features": ["lastwatch:genre"], "user_id": "u1"}, "last_watch"),
        ("POST", "/get-online-features", {"feature_service": "recomender", "user_id": "u1"}, "recommender"),
        ("POST", "/services/recomender", {"user_id": "u1"}, "recommender"),
        ("GET", "/features/profil", None, "profile"),
    ],
)
def test_an_unknown_name_is_404_with_a_suggestion(api: httpx.Client, method: str, path: str, body: object, suggestion: str) -> None:
    """What is not declared is not found, and the nearest name is suggested."""
    assert problem(api.request(method, path, json=body), 404)["suggestion"] == suggestion


def test_a_service_route_takes_keys_only(api: httpx.Client) -> None:
    """The service decides the features, so naming some beside it is refused."""
    assert problem(api.post("/services/recommender", json={"user_id": "u1", "features": ["genre"]}), 422)["field"] == "features"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{nope", 400),
        (b'{"features": ["genre"], "user_id": "\xff"}', 400),
        (b'{"features": ["genre"], "user_id": "\\ud800"}', 400),
        (b'{"features": ["genre"], "\\uDfff": 1}', 400),
        (b'{"features": ["genre"], "user_id": "u1", "user_id": "u2"}', 400),
        (b'{"features": ["genre"], "user_id": NaN}', 400),
        (b'{"features": ["genre"], "user_id": -Infinity}', 400),
        (b'{"features": ["plays"], "title_id": ' + b"9" * 5000 + b"}", 400),
        (b'{"features": ["plays"], "title_id": ' + b"9" * 4000 + b"}", 422),
        (b'{"features": ["plays"], "title_id": 1e999}', 422),
        (b"[" * 15000, 400),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, 400),
        (b'\xef\xbb\xbf{"features": ["genre"], "user_id": "u1"}', 400),
        ('{"features": ["genre"], "user_id": "u1"}'.encode("utf-16"), 400),
        (b"null", 422),
        (b'"text"', 422),
        (b'{"features": ["genre"], "user_id": "u1"} {}', 400),
        (b'{"features": ["genre"], "user_id": "\\u0000"}', 200),
        (b'{"features": ["genre"], "user_id": ""}', 200),
        (b'{"features": ["genre"], "user_id": "\\ud83c\\udfac"}', 200),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_is_read_strictly(api: httpx.Client, content: bytes, status: int) -> None:
    """What one parser takes and another refuses is refused."""
    response = api.post("/get-online-features", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "application/vnd.api+json"}, 200),
        ({}, 200),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
    ],
    ids=str,
)
def test_only_plain_json_is_understood(api: httpx.Client, headers: dict[str, str], status: int) -> None:
    """Other content types are 415, and so are compressed bodies; without a type it is taken for JSON."""
    content = b'{"features": ["genre"], "user_id": "u1"}'
    assert api.post("/get-online-features", content=content, headers=headers).status_code == status


@pytest.mark.parametrize("place", ['{"features":["genre"],"user_id":%s}', '{"features":%s}', '{"x":%s}', '{"entities":{"user_id":%s}}'])
def test_no_depth_of_nesting_is_a_defect(api: httpx.Client, place: str) -> None:
    """Bodies that are nested almost too deep to be parsed are refused like those past it."""
    for depth in (*range(900, 1000, 7), *range(960, 1000), 5000):
        content = (place % ("[" * depth + "]" * depth)).encode()
        problem_status = api.post("/get-online-features", content=content, headers={"content-type": "application/json"}).status_code
        assert problem_status in {400, 422}


def test_a_hostile_body_costs_no_more_than_its_size(config: Settings) -> None:
    """A megabyte of fields that nobody knows, or that stand there twice, is refused in a moment."""
    with running(replace(config, max_body_bytes=1_000_000)) as api:
        fields = ",".join(f'"featur{number}":0' for number in range(50_000))
        for content in ("{" + fields + "}", '{"features":["genre"],' + fields + "}", "{" + fields + ',"z":1,"z":2}'):
            started = time.monotonic()
            assert api.post("/get-online-features", content=content).status_code in {400, 422}
            assert time.monotonic() - started < 15, "a cost that grows with the square of the body would take minutes"


# Bounds


def test_a_large_body_is_refused_whether_it_says_so_or_not(api: httpx.Client) -> None:
    """A body over the bound is 413, declared or in chunks, and the server goes on."""
    large = b'{"user_id": "' + b"u" * 100_000 + b'"}'
    headers = {"content-type": "application/json"}
    problem(api.post("/get-online-features", content=large, headers=headers), 413)
    pieces = (large[start : start + 1000] for start in range(0, len(large), 1000))
    problem(api.post("/get-online-features", content=pieces, headers=headers), 413)
    assert ask(api, {"features": ["genre"], "user_id": "u1"}).status_code == 200


def test_a_body_that_says_it_is_large_is_not_waited_for(api: httpx.Client) -> None:
    """The declared length decides before the first byte of the body arrives."""
    with socket.create_connection((api.base_url.host, api.base_url.port or 0), timeout=5) as connection:
        connection.sendall(b"POST /get-online-features HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_values_of_one_request_are_bounded(config: Settings) -> None:
    """Rows times features have a bound of their own, whatever the settings allow."""
    with running(replace(config, max_entities=10_000, max_body_bytes=10_000_000)) as api:
        body = {"feature_service": "everything", "entities": {"user_id": ["u1"] * 7000}}
        assert "100000 values" in problem(ask(api, body), 422)["detail"]
        assert ask(api, {"feature_service": "everything", "entities": {"user_id": ["u1"] * 6000}}).status_code == 200


def test_a_head_without_end_is_cut_off(api: httpx.Client) -> None:
    """A request line or header that is too large is 431 long before it fills the memory."""
    with socket.create_connection((api.base_url.host, api.base_url.port or 0), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx: ")
        connection.sendall(b"x" * (MAX_HEAD_BYTES + 1))
        assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
    assert api.get("/health").status_code == 200


def test_a_client_that_leaves_halfway_does_no_harm(api: httpx.Client) -> None:
    """A body that never ends because its sender has gone counts as one of a client that has gone, not as an error of the server."""
    with socket.create_connection((api.base_url.host, api.base_url.port or 0), timeout=10) as connection:
        connection.sendall(b"POST /get-online-features HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    wait_until(lambda: 'route="/get-online-features",status="499"' in api.get("/metrics").text)
    assert 'status="500"' not in api.get("/metrics").text


# Catalog, operations


def test_the_catalog_describes_features_views_and_services(api: httpx.Client) -> None:
    """What may be asked for can be read, dtypes, defaults and keys included."""
    features = {one["reference"]: one for one in api.get("/features").json()["features"]}
    assert len(features) == sum(len(view.features) for view in registry.views.values())
    assert features["profile:segment"] == {
        "name": "segment",
        "reference": "profile:segment",
        "view": "profile",
        "dtype": "str",
        "description": "Activity segment.",
        "default": "new",
        "join_keys": {"user_id": "str"},
    }
    view = api.get("/features/profile").json()
    assert (view["kind"], view["ttl_seconds"], [one["name"] for one in view["features"]]) == ("snapshot", 172800.0, ["segment", "score"])
    services = {one["name"]: one for one in api.get("/services").json()["services"]}
    assert services["of_a_viewing"]["columns"] == ["viewings__minutes", "titles__plays", "site__banner"]
    assert services["of_a_viewing"]["join_keys"] == {"user_id": "str", "title_id": "int"}


def test_openapi_types_every_service(api: httpx.Client) -> None:
    """Each service is an operation whose request and response name every key and feature with its dtype."""
    document = api.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    operation = document["paths"]["/services/everything"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/everything_request"}
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/everything_response"}
    assert operation["responses"]["422"]["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/ProblemBody"}
    assert schemas["everything_row"]["properties"]["user_id"] == {"type": "string"}
    assert schemas["everything_row"]["required"] == ["user_id"]
    typed = schemas["everything_answer"]["properties"]["features"]["properties"]
    assert list(typed) == list(EVERY_DTYPE)
    for feature in all_dtypes.features:
        assert typed[feature.name] == {"anyOf": [feature.type.json_schema, {"type": "null"}]}
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas, f"{name} is referred to and not there"


def test_health_and_readiness_are_two_things(api: httpx.Client) -> None:
    """The process answers /health; /ready tells how old every view is."""
    assert api.get("/health").json() == {"status": "ok"}
    ready = api.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["views"].keys() == registry.views.keys()
    assert 0 <= ready.json()["views"]["profile"]["age_seconds"] < 3600


def test_metrics_count_requests_statuses_and_ages(api: httpx.Client) -> None:
    """Prometheus finds requests by route and status, latencies, feature statuses and the age of every view."""
    before = api.get("/metrics").text
    ask(api, {"features": ["genre"], "user_id": "nobody"})
    api.get("/a/path/of/a/scanner")
    after = api.get("/metrics")
    assert after.headers["content-type"].startswith("text/plain; version=0.0.4")

    def value(text: str, series: str) -> float:
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series + " ")), 0.0)

    for series in (
        'feature_platform_requests_total{route="/get-online-features",status="200"}',
        'feature_platform_request_seconds_count{route="/get-online-features"}',
        'feature_platform_request_seconds_bucket{route="/get-online-features",le="+Inf"}',
        'feature_platform_feature_values_total{view="last_watch",feature="genre",status="NOT_FOUND"}',
        'feature_platform_requests_total{route="other",status="404"}',
    ):
        assert value(after.text, series) == value(before, series) + 1, series
    assert value(after.text, "feature_platform_online_store_up") == 1
    assert 'feature_platform_view_age_seconds{view="profile"}' in after.text
    for line in after.text.splitlines():
        assert line.startswith("# ") or len(line.rsplit(" ", 1)) == 2


def test_unknown_paths_and_methods_are_problems_too(api: httpx.Client) -> None:
    """Every refusal has the same kind of body."""
    problem(api.get("/nope"), 404)
    problem(api.get("/features/"), 404)
    assert problem(api.get("/get-online-features"), 405)
    assert api.get("/get-online-features").headers["allow"] == "POST"


# Tokens


def test_a_token_guards_everything_but_the_probes(config: Settings) -> None:
    """With a token set, requests without it are 401; load balancers may still ask how the server is."""
    with running(replace(config, api_token=TOKEN)) as api:
        body = {"features": ["genre"], "user_id": "u1"}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}):
            response = api.post("/get-online-features", json=body, headers=headers)
            problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        assert api.get("/openapi.json").status_code == 401
        assert api.get("/metrics").status_code == 401
        assert api.post("/get-online-features", json=body, headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
        assert api.get("/health").status_code == api.get("/ready").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])  # noqa: S104 - refused, which is the point
def test_a_network_is_not_served_without_a_token(config: Settings, host: str) -> None:
    """Binding anything but loopback without a token is refused before a socket is opened."""
    with pytest.raises(SettingsError, match="FEATURE_PLATFORM_API_TOKEN"):
        serve(registry, config, host=host, port=0)


def test_an_empty_token_is_refused(config: Settings) -> None:
    """An empty token would let everybody in."""
    with pytest.raises(SettingsError, match="empty"):
        create_app(registry, replace(config, api_token=" "))


def bearer(secret: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Return where a tokens file would be."""
    return tmp_path / "tokens.json"


def made(tokens: Path, name: str, **limits: Any) -> str:
    """Make a token as `fp token create` does."""
    return create_token(tokens, name, **{"now": NOW, **limits})[1]


ASKED = {"features": ["genre"], "user_id": "u1"}


def test_a_token_may_do_what_its_scopes_say(config: Settings, tokens: Path) -> None:
    """Reading does not open the metrics, the metrics no features, and neither what would write; 403 names the scope and how to get it."""
    reader, scraper = made(tokens, "reader"), made(tokens, "scraper", scopes=[TokenScope.METRICS])
    both = made(tokens, "both", scopes=[TokenScope.READ, TokenScope.METRICS])
    with running(replace(config, api_tokens=tokens)) as api:
        for secret in (reader, both):
            assert api.post("/get-online-features", json=ASKED, headers=bearer(secret)).status_code == 200
            assert api.post("/services/recommender", json={"user_id": "u1"}, headers=bearer(secret)).status_code == 200
            assert {api.get(path, headers=bearer(secret)).status_code for path in ("/features", "/services", "/openapi.json")} == {200}
        assert api.get("/metrics", headers=bearer(scraper)).status_code == api.get("/metrics", headers=bearer(both)).status_code == 200
        refused = api.get("/metrics", headers=bearer(reader))
        body = problem(refused, 403)
        assert (body["title"], body["field"], refused.headers["connection"]) == ("Forbidden", "Authorization", "close")
        assert "the scope metrics, and token 'reader' has: read.\n" in body["detail"]
        assert "fp token create NAME --scope metrics" in body["detail"]
        for path in ("/get-online-features", "/services/recommender"):
            assert "scope read" in problem(api.post(path, json=ASKED, headers=bearer(scraper)), 403)["detail"]
        assert "scope read" in problem(api.get("/features", headers=bearer(scraper)), 403)["detail"]
        assert "scope write" in problem(api.delete("/features/profile", headers=bearer(both)), 403)["detail"]


def test_a_token_may_be_limited_to_services(config: Settings, tokens: Path) -> None:
    """It asks their routes and nothing else, whatever the body says; 403 says which are open to it."""
    limited = made(tokens, "team", services=["recommender"])
    with running(replace(config, api_tokens=tokens)) as api:
        api.headers = httpx.Headers(bearer(limited))
        assert api.post("/services/recommender", json={"user_id": "u1"}).json()["features"]["genre"] == "noir"
        assert api.post("/services/%72ecommender", json={"user_id": "u1"}).status_code == 200
        refused = [
            api.post("/services/everything", json={"user_id": "u1"}),
            api.post("/services/recommender/", json={"user_id": "u1"}),
            api.post("/get-online-features", json=ASKED),
            api.post("/get-online-features", json={"feature_service": "recommender", "user_id": "u1"}),
            api.get("/features"),
            api.get("/services"),
            api.get("/services/recommender"),
        ]
        for response in refused[:1] + refused[2:]:
            assert "Ask POST /services/recommender, or make" in problem(response, 403)["detail"]
        problem(refused[1], 403)


@pytest.mark.parametrize("name", ["nobody", "expired", "revoked", "in_two_headers"])
def test_a_token_that_is_not_in_force_is_401(config: Settings, tokens: Path, name: str) -> None:
    """Unknown, expired or revoked, and where two are sent: 401 and the next step; only the holder is told that it expired."""
    secrets = {name: made(tokens, name) for name in ("kept", "revoked", "in_two_headers")}
    secrets["expired"] = made(tokens, "expired", now=NOW - 2 * HOUR, expires_after=HOUR)
    secrets["nobody"] = "fpt_" + "A" * 43
    revoke_token(tokens, "revoked")
    headers = [("authorization", f"Bearer {secrets[name]}")] * (2 if name == "in_two_headers" else 1)
    with running(replace(config, api_tokens=tokens)) as api:
        response = api.post("/get-online-features", json=ASKED, headers=headers)
        body = problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        assert "fp token create" in body["detail"]
        assert ("has expired" in body["detail"]) == (name == "expired")
        assert api.post("/get-online-features", json=ASKED, headers=bearer(secrets["kept"])).status_code == 200
        assert api.get("/health").status_code == api.get("/ready").status_code == 200


def test_a_token_is_rotated_while_the_server_runs(config: Settings, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second token is let in, then the first is refused, about a second later each; in between both are good, and no log has either."""
    first = made(tokens, "first")
    with running(replace(config, api_tokens=tokens)) as api:

        def status(secret: str) -> int:
            return api.post("/get-online-features", json=ASKED, headers=bearer(secret)).status_code

        assert status(first) == 200
        second = made(tokens, "second")
        wait_until(lambda: status(second) == 200, seconds=3)
        assert status(first) == 200
        revoke_token(tokens, "first")
        wait_until(lambda: status(first) == 401, seconds=3)
        assert status(second) == 200
    assert caplog.text.count("fpt_") == 0
    assert first[4:] not in caplog.text


def test_a_broken_tokens_file_keeps_the_last_good_tokens(config: Settings, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They stay in force, and the log says so in one line without the file's content; without a file nobody is let in."""
    secret = made(tokens, "kept")
    good, bad = tokens.read_bytes(), b'{"tokens": [{"name": "pasted-secret", '
    with running(replace(config, api_tokens=tokens)) as api:

        def status() -> int:
            return api.post("/get-online-features", json=ASKED, headers=bearer(secret)).status_code

        assert status() == 200
        tokens.write_bytes(bad)
        deadline = time.monotonic() + 2.5  # time to look at it twice
        while time.monotonic() < deadline:
            assert status() == 200
            time.sleep(0.1)
        lines = [record.getMessage() for record in caplog.records if "api_tokens" in record.getMessage()]
        assert len(lines) == 1, lines
        assert "is broken" in lines[0]
        assert "\n" not in lines[0]
        assert "pasted-secret" not in caplog.text
        tokens.unlink()
        wait_until(lambda: status() == 401, seconds=3)
        tokens.write_bytes(good)
        wait_until(lambda: status() == 200, seconds=3)
    tokens.write_bytes(bad)
    with pytest.raises(SettingsError, match="is broken"):
        create_app(registry, replace(config, api_tokens=tokens))


def test_the_token_of_the_settings_may_do_everything(config: Settings, tokens: Path) -> None:
    """With a tokens file beside it, which need not be there."""
    with running(replace(config, api_token=TOKEN, api_tokens=tokens)) as api:
        assert api.get("/metrics", headers=bearer(TOKEN)).status_code == 200
        assert api.post("/get-online-features", json=ASKED, headers=bearer(TOKEN)).status_code == 200
        assert api.delete("/features", headers=bearer(TOKEN)).status_code == 405
        assert api.get("/metrics").status_code == 401


def test_a_tokens_file_opens_the_network_only_with_a_token_in_it(config: Settings, tokens: Path) -> None:
    """Without a file, or with an empty one, the network is refused as without a token; on loopback nobody is let in."""
    settings = replace(config, api_tokens=tokens)
    everywhere = "0.0.0.0"  # noqa: S104 - nothing is bound
    with pytest.raises(SettingsError, match="fp token create"):
        check_binding(settings, everywhere)
    made(tokens, "only")
    check_binding(settings, everywhere)
    revoke_token(tokens, "only")
    with pytest.raises(SettingsError, match="fp token create"):
        check_binding(settings, everywhere)
    with running(settings) as api:
        problem(api.get("/features"), 401)


def test_what_names_no_scope_needs_to_write(config: Settings) -> None:
    """Every route that there is asks to read or for the metrics; another one that changes something is closed to those who read."""
    app = create_app(registry, config)
    scopes = {needed_scope(method, route.path) for route in app.routes if isinstance(route, Route) for method in route.methods or ()}
    assert scopes == {TokenScope.READ, TokenScope.METRICS}
    for method, path in [
        ("POST", "/features"),
        ("PUT", "/services/x"),
        ("POST", "/services/x/rows"),
        ("DELETE", "/"),
        ("POST", "/services/"),
    ]:
        assert needed_scope(method, path) is TokenScope.WRITE


# Trouble


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """Start a server of the test's own."""
    server = Server(tmp_path / "server")
    try:
        yield server
    finally:
        server.close()


def test_an_outage_is_503_at_once_and_passes(own: Server, tmp_path: Path) -> None:
    """Without the store every read is 503 with Retry-After, fast; when it is back, so are the answers."""
    chosen = Settings(root=tmp_path, redis_url=f"redis://127.0.0.1:{own.port}", read_deadline_ms=500)
    with open_online_store(chosen) as store:
        fill(store)
    body = {"features": ["genre"], "user_id": "u1"}
    with running(chosen) as api:
        assert ask(api, body).status_code == 200
        own.kill()
        started = time.monotonic()
        response = ask(api, body)
        assert problem(response, 503)["type"].endswith("online-store-unavailable")
        assert int(response.headers["retry-after"]) >= 1
        assert time.monotonic() - started < 1
        problem(api.get("/ready"), 503)
        assert api.get("/health").status_code == 200
        assert "feature_platform_online_store_up 0" in api.get("/metrics").text
        own.start()
        assert ask(api, body).json()["features"] == {"genre": "noir"}


def test_a_frozen_store_is_503_within_the_deadline(own: Server, tmp_path: Path) -> None:
    """A server that takes connections and says nothing does not hold requests up, and is asked again when it wakes."""
    chosen = Settings(root=tmp_path, redis_url=f"redis://127.0.0.1:{own.port}", read_deadline_ms=500)
    with open_online_store(chosen) as store:
        fill(store)
    body = {"features": ["genre"], "user_id": "u1"}
    with running(chosen) as api:
        assert ask(api, body).status_code == 200
        own.freeze()
        started = time.monotonic()
        with ThreadPoolExecutor(64) as crowd:  # twice as many as there are connections to the store
            for response in crowd.map(lambda _: ask(api, body), range(64)):
                problem(response, 503)
        assert time.monotonic() - started < 2
        own.thaw()
        for _ in range(50):  # an answer that was given up on never reaches the next question
            for asked, genre in (("u1", "noir"), ("nobody", "none")):
                assert ask(api, {"features": ["genre"], "user_id": asked}).json()["features"] == {"genre": genre}


def test_an_emptied_store_is_not_ready_and_answers_nothing(own: Server, tmp_path: Path) -> None:
    """A view that is not in the store is 503: defaults for everyone would hide it."""
    chosen = Settings(root=tmp_path, redis_url=f"redis://127.0.0.1:{own.port}", read_deadline_ms=500)
    with open_online_store(chosen) as store:
        put(store, profile, [])
    with running(chosen) as api:
        found = problem(api.get("/ready"), 503)
        assert set(found["missing"]) == registry.views.keys() - {"profile"}
        response = ask(api, {"features": ["genre"], "user_id": "u1"})
        assert problem(response, 503)["missing"] == ["last_watch"]
        assert "fp materialize last_watch" in response.json()["detail"]
        assert "retry-after" in response.headers
        assert ask(api, {"features": ["segment"], "user_id": "u1"}).json()["features"] == {"segment": "new"}


# Never 500

_names = st.sampled_from(["features", "feature_service", "entities", "user_id", "title_id", "metadata", "full_feature_names", "x"])
_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.sampled_from(["genre", "profile:score", "plays", "minutes", "banner", "recommender", "u1", ":", "a:b:c"]),
)
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names | st.text(max_size=5), inner, max_size=4)
)
_bodies = st.one_of(
    st.binary(max_size=200),
    st.dictionaries(_names, _values, max_size=6).map(lambda body: json.dumps(body).encode()),
    st.builds(
        lambda body, start, noise: json.dumps(body).encode()[:start] + noise + json.dumps(body).encode()[start:],
        st.just({"features": ["genre"], "user_id": "u1"}),
        st.integers(0, 40),
        st.binary(max_size=4),
    ),
)


@pytest.mark.fuzz
@fuzz
@given(content=_bodies, path=st.sampled_from(["/get-online-features", "/services/recommender", "/services/of_a_viewing"]))
def test_no_body_is_answered_with_a_500(api: httpx.Client, content: bytes, path: str) -> None:
    """Whatever is sent gets an answer or is the sender's error."""
    response = api.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code < 500, response.text
    assert isinstance(response.json(), dict)


@pytest.mark.fuzz
@fuzz
@given(
    key=st.sampled_from([("user_id", "last_watch:genre", "profile:score"), ("title_id", "titles:plays")]),
    ids=st.lists(st.sampled_from(["u1", "u2", 2**60 + 1]) | _values, max_size=4),
)
def test_both_forms_are_understood_alike(api: httpx.Client, key: tuple[str, ...], ids: list[Any]) -> None:
    """Several entities in columns are answered what each is answered alone, or refused as one of them is."""
    name, *features = key

    def post(body: dict[str, Any]) -> httpx.Response:
        # Of Python's JSON, which also has NaN and half surrogate pairs.
        return api.post("/get-online-features", content=json.dumps(body), headers={"content-type": "application/json"})

    columns = post({"features": features, "entities": {name: ids}})
    alone = [post({"features": features, name: one}) for one in ids]
    refused = {one.status_code for one in alone if one.status_code != 200}
    assert columns.status_code in (refused or {200})
    if columns.status_code == 200:
        results = columns.json()["results"][1:]
        for index, one in enumerate(alone):
            assert [result["values"][index] for result in results] == list(one.json()["features"].values())
            assert [result["statuses"][index] for result in results] == list(one.json()["statuses"].values())


@pytest.mark.fuzz
@fuzz
@given(line=st.binary(max_size=60), headers=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=3))
def test_no_bytes_on_the_wire_stop_the_server(api: httpx.Client, line: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """What is not even HTTP is cut off, and the next client is answered."""
    raw = b"GET /features/" + line + b" HTTP/1.1\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n"
    with socket.create_connection((api.base_url.host, api.base_url.port or 0), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    assert not answer.startswith(b"HTTP/1.1 5")
    assert api.get("/health").status_code == 200


@pytest.mark.fuzz
def test_the_server_does_what_its_openapi_says(api: httpx.Client) -> None:
    """Statuses, content types and bodies of every operation are the documented ones."""
    document = schemathesis.openapi.from_url(f"{api.base_url}/openapi.json")
    checks = schemathesis.checks
    wanted = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == 7 + len(registry.services)
    for operation in operations:

        @settings(fuzz, max_examples=CASES // 15)
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(checks=wanted)

        check()


# Process


def test_the_process_loads_neither_dagster_nor_duckdb_nor_pandas(config: Settings) -> None:
    """An API process that has answered has loaded nothing that it does not need."""
    script = f"""
import json, sys, threading, time, urllib.request
from pathlib import Path
from feature_platform.api import serve
from feature_platform.model import Entity, Feature, FeatureView, ParquetSource
from feature_platform.registry import Registry
from feature_platform.settings import Settings
events = ParquetSource("events", "events/*.parquet", timestamp="event_timestamp")
last_watch = FeatureView("last_watch", entity=Entity("user", {{"user_id": str}}), sources=[events], features=[Feature("genre", str)])
settings = Settings(root=Path({str(config.root)!r}), api_port={free_port()}, read_deadline_ms=5000)
threading.Thread(target=serve, args=(Registry([last_watch]), settings), daemon=True).start()
body = json.dumps({{"features": ["genre"], "user_id": "u1"}}).encode()
url = f"http://127.0.0.1:{{settings.api_port}}/get-online-features"
for _ in range(500):
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, body, {{"content-type": "application/json"}})).read()
        break
    except urllib.error.URLError:
        time.sleep(0.02)
loaded = [name for name in ("dagster", "duckdb", "pandas", "polars") if name in sys.modules]
print(json.dumps([json.loads(answer)["features"], loaded]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{"genre": "noir"}, []]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
