"""The async SDK: the answers of the blocking one, one round trip a read, and no framework loaded."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import redis
from offline_project import MICROS, NOW, T0, history_view, write

from feature_platform import AsyncFeatureStore, FeatureStore, Registry, Settings
from feature_platform.errors import EntityRowsError, NotMaterializedError
from feature_platform.online.embedded import ensure_server, stop_server

USERS = [f"u{number}" for number in range(250)]
VIEWS = [history_view(name) for name in ("first", "second", "third")]
EMPTY = history_view("fourth")
REGISTRY = Registry([*VIEWS, EMPTY])
ASKED = ["first:value", "second:value", "third:value"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Three views of 250 users each, in a server of their own."""
    root: Path = tmp_path_factory.mktemp("project")
    for offset, view in enumerate(VIEWS):
        numbers = [number * 10 + offset for number in range(len(USERS))]
        write(root, {"user_id": USERS, "event_timestamp": pa.array([T0] * len(USERS), MICROS), "value": numbers}, view.name)
    settings = Settings(root=root, read_deadline_ms=5000)
    try:
        with FeatureStore(REGISTRY, settings) as store:
            store.compute(VIEWS, now=NOW)
            store.materialize(VIEWS, now=NOW)
        yield settings
    finally:
        stop_server(settings.online_root)


def trips(settings: Settings) -> int:
    """Return how many commands the server has been sent."""
    with redis.Redis(unix_socket_path=str(ensure_server(settings.online_root))) as client:
        return int(client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"])


def test_answers_are_those_of_the_blocking_store(project: Settings) -> None:
    """Values, statuses, names and order are the same, for entities that are there or not."""
    rows = [{"user_id": user} for user in ("u3", "nobody", "u3", "u249")]

    async def read() -> tuple[object, object]:
        async with AsyncFeatureStore(REGISTRY, project) as store:
            found = await store.get_online_features(ASKED, rows, now=NOW, full_feature_names=True, metadata=True)
            return found.rows, found.views

    with FeatureStore(REGISTRY, project) as store:
        expected = store.get_online_features(ASKED, rows, now=NOW, full_feature_names=True, metadata=True)
    assert asyncio.run(read()) == (expected.rows, expected.views)


def test_a_read_is_one_round_trip_blocking_or_not(project: Settings) -> None:
    """However many views and entities: the server is asked once."""
    rows = {"user_id": USERS}
    with FeatureStore(REGISTRY, project) as store:
        before = trips(project)
        store.get_online_features(ASKED, rows, now=NOW, full_feature_names=True)
        assert trips(project) - before == 1

    async def read() -> int:
        async with AsyncFeatureStore(REGISTRY, project) as store:
            before = trips(project)
            await store.get_online_features(ASKED, rows, now=NOW, full_feature_names=True)
            return trips(project) - before

    assert asyncio.run(read()) == 1


def test_many_reads_at_once_share_a_connection(project: Settings) -> None:
    """Each gets its own answer, in whatever order they come."""

    async def read() -> tuple[list[int], int]:
        async with AsyncFeatureStore(REGISTRY, project) as store:
            await store.get_online_features(ASKED[:1], [{"user_id": "u0"}], now=NOW)
            with redis.Redis(unix_socket_path=str(ensure_server(project.online_root))) as client:
                before = client.info("clients")["connected_clients"]
                answers = await asyncio.gather(
                    *(store.get_online_features(ASKED[:1], [{"user_id": user}], now=NOW) for user in USERS for _ in range(4))
                )
                more = client.info("clients")["connected_clients"] - before
        return [answer.to_dict()["value"][0] for answer in answers], more

    found, more = asyncio.run(read())
    assert found == [number * 10 for number in range(len(USERS)) for _ in range(4)]
    assert more == 0


def test_a_reader_that_gives_up_takes_nobodys_answer(project: Settings) -> None:
    """Cancelled reads leave the connection in order: what is asked next gets its own answer."""

    async def read() -> list[int]:
        found = []
        async with AsyncFeatureStore(REGISTRY, project) as store:
            for user in USERS[:50]:
                gone = asyncio.create_task(store.get_online_features(ASKED[:1], [{"user_id": "u249"}], now=NOW))
                await asyncio.sleep(0)
                gone.cancel()
                answer = await store.get_online_features(ASKED[:1], [{"user_id": user}], now=NOW)
                found.append(answer.to_dict()["value"][0])
        return found

    assert asyncio.run(read()) == [number * 10 for number in range(50)]


def test_errors_are_those_of_the_blocking_store(project: Settings) -> None:
    """A view that is not there, and a key that is wrong, are told likewise."""

    async def read(features: list[str], rows: list[dict[str, object]]) -> None:
        async with AsyncFeatureStore(REGISTRY, project) as store:
            await store.get_online_features(features, rows, now=NOW)

    with pytest.raises(NotMaterializedError, match="fourth"):
        asyncio.run(read(["fourth:value"], [{"user_id": "u1"}]))
    with pytest.raises(EntityRowsError, match="user_id"):
        asyncio.run(read(ASKED[:1], [{"user_id": 1}]))


def test_it_loads_no_duckdb() -> None:
    """An agent's process pays for what it reads with, and for no more."""
    program = (
        "from feature_platform import AsyncFeatureStore; import sys; print({'duckdb', 'dagster', 'pandas', 'fastapi'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "set()"
