"""
What reads, writes and health do when the online store fails, one fault a test; `docs/faults.md` says the same, row by row.

`FAULTS=write pytest tests/test_faults.py` writes the rows anew.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_server import Network, Server, wait_until
from test_api import running

from feature_platform import Entity, Feature, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.errors import NotMaterializedError, OnlineStoreError
from feature_platform.online.connections import Tuning
from feature_platform.online.redis import RedisOnlineStore

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
USERS = 2000
FIRST, SECOND = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
DEADLINE = 2.0
LATE = 0.5
"""Above this share of the deadline an answer is one of the deadline's."""

scores = FeatureView(
    "scores",
    entity=Entity("user", {"user_id": str}),
    sources=[ParquetSource("scores", "scores.parquet", timestamp="event_timestamp")],
    features=[Feature("score", int), Feature("note", str)],
)
BEFORE = {f"u{number}": (number, f"note {number}") for number in range(USERS)}
AFTER = {user: (score + 1, note) for user, (score, note) in BEFORE.items()}


@dataclass
class Project:
    """A project, its server, the network between them, and an API."""

    store: FeatureStore
    server: Server
    network: Network
    api: httpx.Client

    def read(self) -> tuple[str, str]:
        """Ask the API for one user: what it answers, and how fast."""
        started = time.monotonic()
        response = self.api.post("/get-online-features", json={"features": ["score"], "user_id": "u7"})
        seconds = time.monotonic() - started
        assert seconds < DEADLINE + 2
        if response.status_code == 200:
            assert response.json()["features"]["score"] in {7, 8}
            return "the values", "at once" if seconds < LATE * DEADLINE else "late"
        assert "retry-after" in response.headers
        kind = response.json()["type"].rpartition(":")[2]
        return f"{response.status_code} `{kind}`", "at once" if seconds < LATE * DEADLINE else "at the deadline"

    def push(self) -> str:
        """Push the second day: what becomes of it."""
        try:
            self.store.materialize(now=SECOND + timedelta(hours=1))
        except OnlineStoreError:
            return "fails, and completes when it is run again"
        return "completes"

    def answers(self) -> dict[str, tuple[int, str]]:
        """Return what is online of all users."""
        found = self.store.get_online_features(["score", "note"], {"user_id": list(BEFORE)}).to_dict()
        return dict(zip(found["user_id"], zip(found["score"], found["note"], strict=True), strict=True))

    def is_ready(self) -> bool:
        """Say whether the API is."""
        return self.api.get("/ready").status_code == 200

    def is_well_again(self, since: str) -> str:
        """Wait until the API is ready, which nobody helps it to be; then the push is run again, and nothing is lost."""
        assert wait_until(self.is_ready) < 1
        assert self.read()[0] == "the values"
        self.push()
        assert self.answers() == AFTER
        return f"within a second of {since}"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Push the first day."""
    rows = [
        {"user_id": user, "event_timestamp": time, "score": score, "note": note}
        for time, values in ((FIRST, BEFORE), (SECOND, AFTER))
        for user, (score, note) in values.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    server = Server(tmp_path / "server")
    registry = Registry([scores])
    with Network(server.port) as network:
        url = f"redis://127.0.0.1:{network.port}"
        settings = Settings(root=tmp_path, redis_url=url, read_deadline_ms=int(1000 * DEADLINE))
        with FeatureStore(registry, settings) as store, running(settings, of=registry) as api:
            try:
                store.compute(now=SECOND + timedelta(days=1))
                store.materialize(now=FIRST + timedelta(hours=1))
                found = Project(store, server, network, api)
                assert found.is_ready()
                assert found.read()[0] == "the values"
                assert found.answers() == BEFORE
                yield found
            finally:
                server.close()


@dataclass(frozen=True)
class Row:
    """
    A row of the page.

    Attributes:
        fault: Its name.
        reads: What they answer.
        speed: How fast.
        writes: What a push does meanwhile.
        back: When all is well again.
    """

    fault: str
    reads: str
    speed: str
    writes: str
    back: str

    def check(self) -> None:
        """Compare with the page, or write it."""
        line = "| " + " | ".join(astuple(self)) + " |"
        page = PAGE.read_text()
        if os.environ.get("FAULTS") == "write":
            pattern = re.compile(rf"^\| {re.escape(self.fault)} \|.*$", re.MULTILINE)
            assert pattern.search(page), f"the page has no row {self.fault!r}"
            PAGE.write_text(pattern.sub(lambda _: line, page))
        else:
            assert line in page.splitlines()


def test_killed(project: Project) -> None:
    """A server that dies is told at once; when it is started again, with its data, all is well."""
    project.server.kill()
    reads, speed = project.read()
    assert not project.is_ready()
    writes = project.push()
    project.server.start()
    Row("the server is killed", reads, speed, writes, project.is_well_again("its start")).check()


def test_frozen(project: Project) -> None:
    """A server that accepts and says nothing costs a read its deadline, and no read waits for another's."""
    project.server.freeze()
    started = time.monotonic()
    seen = [project.read() for _ in range(3)]
    assert len(set(seen)) == 1
    assert time.monotonic() - started < 3 * (DEADLINE + 1)
    writes = _meanwhile(project, project.server.thaw)
    Row("the server is frozen", *seen[0], writes, project.is_well_again("its thaw")).check()


def test_restarted_empty(project: Project) -> None:
    """A server that comes back without data is noticed, never answered with defaults, and filled again to the same answers."""
    project.store.materialize(now=SECOND + timedelta(hours=1))
    before = project.answers()
    project.server.empty()
    reads, speed = project.read()
    assert project.api.get("/ready").json()["missing"] == ["scores"]
    with pytest.raises(NotMaterializedError):
        project.answers()
    project.store.rebuild_online(now=SECOND + timedelta(hours=1))
    assert project.answers() == before == AFTER
    back = project.is_well_again("`fp rebuild-online`")
    Row("the server comes back empty", reads, speed, "fill it again: the same answers", back).check()


def test_out_of_memory(project: Project) -> None:
    """A full server refuses writes, and goes on answering what it holds."""
    project.server.ask("CONFIG", "SET", "maxmemory", "1")
    reads, speed = project.read()
    writes = project.push()
    assert project.answers() == BEFORE
    project.server.ask("CONFIG", "SET", "maxmemory", "0")
    Row("the server is out of memory", reads, speed, writes, project.is_well_again("the end of it")).check()


def test_script_cache_flushed(project: Project) -> None:
    """A server that has forgotten the script is given it again."""
    project.server.ask("SCRIPT", "FLUSH")
    reads, speed = project.read()
    Row("its script cache is flushed", reads, speed, project.push(), project.is_well_again("it")).check()


def test_stalled(project: Project) -> None:
    """A script of somebody else's holds the server up: reads end at their deadline, a push waits."""
    # It counts seconds of a core, which may be long ones: the server is told not to call itself busy meanwhile.
    project.server.ask("CONFIG", "SET", "busy-reply-threshold", "0")
    script = "local t = os.clock() + 3 while os.clock() < t do end return 1"
    stalling = threading.Thread(target=project.server.ask, args=("EVAL", script, "0"))
    stalling.start()
    time.sleep(0.2)
    reads, speed = project.read()
    writes = _meanwhile(project, stalling.join)
    Row("a script stalls the server", reads, speed, writes, project.is_well_again("its end")).check()


def test_refused(project: Project) -> None:
    """Where nobody listens, that is told at once."""
    project.network.refuse()
    reads, speed = project.read()
    writes = project.push()
    project.network.listen()
    Row("connections are refused", reads, speed, writes, project.is_well_again("the end of it")).check()


def test_half_open(project: Project) -> None:
    """What is sent on a dead connection vanishes: one read is late, the next one has a connection of its own."""
    project.network.swallow()
    reads, speed = project.read()
    assert project.read() == ("the values", "at once")
    # Listening again only when the push has ended: a push that tries again in the very moment would complete.
    writes = _meanwhile(project, project.network.refuse)
    project.network.listen()
    Row("a connection is half open", reads, speed, writes, "at the next read").check()
    project.is_well_again("it")


def test_cut_in_the_middle_of_a_batch(project: Project) -> None:
    """A push whose connections are cut again and again fails; what was written stays, reads are not disturbed, and it is run again."""
    project.network.cut_after = 50_000
    writes = project.push()
    reads, speed = project.read()
    project.network.cut_after = None
    found = project.answers()
    assert all(found[user] in {BEFORE[user], AFTER[user]} for user in BEFORE)
    Row("the network is cut in the middle of a batch", reads, speed, writes, project.is_well_again("the end of it")).check()


def test_no_connection_is_free(project: Project) -> None:
    """More reads than can wait are refused at once; threads that find no connection free wait for one no longer than for an answer."""
    url, tuning = f"redis://127.0.0.1:{project.network.port}", Tuning(timeout_seconds=DEADLINE, max_connections=2)

    async def crowd() -> tuple[list[float], int]:
        store = RedisOnlineStore.from_url(url, reads=tuning)
        await store.get_many_async([b"x"])
        project.server.freeze()
        took: list[float] = []
        refused = 0

        async def one() -> None:
            nonlocal refused
            started = time.monotonic()
            try:  # pytest.raises takes longer than the read
                await store.get_many_async([b"x"])
            except OnlineStoreError as error:
                refused += "every connection is in use" in str(error)
            took.append(time.monotonic() - started)

        try:
            await asyncio.gather(*(one() for _ in range(10_100)))
        finally:
            project.server.thaw()
            await store.aclose()
        return took, refused

    took, refused = asyncio.run(crowd())
    assert refused == 100
    assert max(took) < DEADLINE + 6  # ten thousand errors take us some time, too
    project.server.freeze()
    with RedisOnlineStore.from_url(url, reads=tuning) as store:
        waits: list[float] = []

        def wait() -> None:
            started = time.monotonic()
            with pytest.raises(OnlineStoreError):
                store.get_many([b"x"])
            waits.append(time.monotonic() - started)

        threads = [threading.Thread(target=wait) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(waits) < 2 * DEADLINE + 1
    reads, speed = project.read()
    assert speed == "at the deadline"  # of the others, those beyond the ten thousand were told at once
    assert min(took) < LATE * DEADLINE
    writes = _meanwhile(project, project.server.thaw)
    back = project.is_well_again("the end of it")
    Row("every connection is in use", reads, f"at once, or {speed}", writes, back).check()


@pytest.mark.parametrize("fault", ["killed", "frozen", "refused"])
def test_pulled_away_and_given_back_under_load(project: Project, fault: str) -> None:
    """Every answer to clients that ask without pause is the value or an honest 503, in time; a second after each return only values."""
    pull, give_back = {
        "killed": (project.server.kill, project.server.start),
        "frozen": (project.server.freeze, project.server.thaw),
        "refused": (project.network.refuse, project.network.listen),
    }[fault]
    seen: list[tuple[float, str]] = []
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=project.api.base_url, timeout=10) as client:
            asking = replace(project, api=client)
            while not is_over.is_set():
                began = time.monotonic()
                seen.append((began, asking.read()[0]))

    periods = []
    with ThreadPoolExecutor(6) as clients:
        asked = [clients.submit(ask) for _ in range(6)]
        for _ in range(3):
            time.sleep(0.3)
            pulled = time.monotonic()
            pull()
            time.sleep(1.25 * DEADLINE)
            give_back()
            periods.append((pulled, time.monotonic() + 1))
            time.sleep(1.3)
        is_over.set()
        for one in asked:
            one.result()
    assert {answer for _, answer in seen} == {"the values", "503 `online-store-unavailable`"}
    refused = [began for began, answer in seen if answer != "the values"]
    in_period = [[low - DEADLINE <= began <= high for low, high in periods] for began in refused]
    assert all(map(any, in_period)), "refused while nothing was pulled away"
    assert all(map(any, zip(*in_period, strict=True))), "pulled away, and nobody was refused"
    assert seen[-1][1] == "the values"


def _meanwhile(project: Project, end: Callable[[], None]) -> str:
    """Push while the fault lasts, end it after a while: what becomes of the push."""
    found: list[str] = []
    pushing = threading.Thread(target=lambda: found.append(project.push()))
    pushing.start()
    time.sleep(0.5)
    end()
    pushing.join(60)
    return f"waits, then {found[0]}"
