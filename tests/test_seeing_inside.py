"""What the API tells of itself: metrics, request ids, lines of JSON, and nothing of anybody's values."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from test_api import ask, config, running  # noqa: F401 - a fixture

from feature_platform import Settings
from feature_platform.api.request_log import LOGGER_NAME
from feature_platform.errors import SettingsError

SECRET = "somebody-s-own-key"


class Lines(logging.Handler):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.texts.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Take the place of standard error, as a service that logs elsewhere does."""
    logger, taken = logging.getLogger(LOGGER_NAME), Lines()
    before, level = logger.handlers, logger.level
    logger.handlers = [taken]
    logger.setLevel(logging.INFO)
    try:
        yield taken
    finally:
        logger.handlers = before
        logger.setLevel(level)


def value_of(api: httpx.Client, metric: str) -> float:
    """Return what a metric stands at; 0 where it is not there yet."""
    found = re.search(rf"^feature_platform_{re.escape(metric)} (\S+)$", api.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_request_that_fails_leaves_one_line_without_values(config: Settings, lines: Lines) -> None:  # noqa: F811 - the fixture
    """Route, status, time and id are in it; keys, bodies, queries, unknown paths and tokens are not."""
    with running(replace(config, api_token="a token")) as api:
        api.headers["Authorization"] = "Bearer a token"
        assert ask(api, {"features": ["genre"], "user_id": SECRET}).status_code == 200
        assert lines.texts == []
        headers = {"X-Request-ID": "mine-1"}
        api.post("/get-online-features", json={"features": ["genre"], "user_id": [SECRET]}, headers=headers)
        api.get(f"/{SECRET}?{SECRET}=1")
        api.get("/metrics", headers={"Authorization": f"Bearer {SECRET}"})
    assert SECRET not in "".join(lines.texts)
    assert "a token" not in "".join(lines.texts)
    seen = [json.loads(text) for text in lines.texts]
    assert [(one["method"], one["route"], one["status"]) for one in seen] == [
        ("POST", "/get-online-features", 422),
        ("GET", "other", 404),
        ("GET", "other", 401),
    ]
    assert seen[0]["request_id"] == "mine-1"
    assert all(0 <= one["seconds"] < 10 for one in seen)


def test_every_answer_has_an_id(config: Settings, lines: Lines) -> None:  # noqa: F811
    """The client's own, if it is a plain one; else a new one each time."""
    with running(replace(config, api_log="all")) as api:
        mine = api.get("/health", headers={"X-Request-ID": "a.B_c-9"})
        assert mine.headers["x-request-id"] == "a.B_c-9"
        others = [api.get("/health", headers={"X-Request-ID": sent}) for sent in ("", "x" * 65, 'a"b', "a b")]
        given = [one.headers["x-request-id"] for one in others]
    assert len(set(given)) == len(given)
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", one) for one in given)
    assert [json.loads(text)["request_id"] for text in lines.texts] == ["a.B_c-9", *given]


def test_a_flood_of_refusals_does_not_fill_a_disk(config: Settings, lines: Lines) -> None:  # noqa: F811
    """Fifty lines a second, and the next line says how many were left out."""
    with running(config) as api:
        for _ in range(300):
            api.get("/nothing")
        first = len(lines.texts)
        assert 50 <= first < 300
        seen = [json.loads(text) for text in lines.texts]
        while not any("omitted_before" in one for one in seen):
            api.get("/nothing")
            seen = [json.loads(text) for text in lines.texts]
    assert sum(one.get("omitted_before", 0) for one in seen) > 0


def test_none_is_none(config: Settings, lines: Lines) -> None:  # noqa: F811
    """Who wants no lines gets none; a word that is not known is refused."""
    with running(replace(config, api_log="none")) as api:
        api.get("/nothing")
    assert lines.texts == []
    with pytest.raises(SettingsError, match="Did you mean 'errors'"):
        replace(config, api_log="error")


def test_round_trips_and_refused_connections_are_counted(config: Settings) -> None:  # noqa: F811
    """A read is one round trip; a head that is too large is no request, and is counted all the same."""
    with running(config) as api:
        before = value_of(api, "online_read_seconds_count")
        for _ in range(3):
            ask(api, {"features": ["genre", "profile:score"], "entities": {"user_id": ["u1", "u2", "nobody"]}})
        assert value_of(api, "online_read_seconds_count") - before == 3
        assert value_of(api, 'online_read_seconds_bucket{le="+Inf"}') - before == 3
        assert value_of(api, "requests_in_flight") == 1  # the one that asks
        assert value_of(api, 'view_rows_materialized{view="titles"}') >= 0
        with socket.create_connection((api.base_url.host, api.base_url.port or 0)) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 70_000)
            assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
        with socket.create_connection((api.base_url.host, api.base_url.port or 0)) as connection:
            connection.sendall(b"\x16\x03\x01\x02")
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
        assert value_of(api, 'refused_connections_total{status="431"}') == 1
        assert value_of(api, 'refused_connections_total{status="400"}') == 1


def test_answers_are_for_nobody_elses_page(config: Settings) -> None:  # noqa: F811
    """A browser is told to guess no type, keep nothing, and give no other site's script the answer; refusals say the same."""
    with running(config) as api:
        origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
        answers = [
            api.post("/get-online-features", json={"features": ["genre"], "user_id": "u1"}, headers=origin),
            api.post("/get-online-features", json={"features": ["genre"]}, headers=origin),
            api.options("/get-online-features", headers=origin),
            api.get("/health", headers=origin),
        ]
    assert [one.status_code for one in answers] == [200, 422, 405, 200]
    for one in answers:
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["cache-control"] == "no-store"
        assert not [name for name in one.headers if name.startswith("access-control-")]
        assert "server" not in one.headers
