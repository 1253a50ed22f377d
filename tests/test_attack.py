"""The server as `fp serve` runs it, attacked over raw sockets by several threads; who asks honestly meanwhile does not notice."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import secrets
import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
import test_serving
from hostile_requests import SECRET, UNAUTHORIZED, Kinds, bodies, framing, raw, requests
from test_serving import BODY, HEADERS, TOKEN, serving, until

from feature_platform.tokens import TokenScope, create_token

SECONDS = float(os.environ.get("ATTACK_SECONDS", "20"))  # by hand, an hour
ATTACKERS = 8
HELD = 75  # connections that an attacker holds at once: all of them stay below the 1,024 files that many processes may open
LATE_SHARE = 0.01  # of honest questions: the machine may be busy with other tests
MEGABYTES = 100
LINES_A_SECOND = 120  # of both workers, which write 50 about refusals each
RIGHT: dict[str, Any] = {"user_id": "u1", "features": {"genre": "noir"}, "statuses": {"genre": "PRESENT"}}

project = test_serving.project  # the fixture
_log = logging.getLogger(__name__)

WAYS = ["whole"] * 8 + ["pieces", "half-closed", "reset", "held"] * 3 + ["deaf", "crowd"]


def mutated(sent: bytes, random: Random) -> bytes:
    """Return the same, or, now and then, with a few bytes more, less or other near its beginning."""
    if random.random() > 0.2:
        return sent
    start = random.randrange(min(len(sent), 2000) + 1)
    return sent[:start] + random.randbytes(random.randrange(4)) + sent[start + random.randrange(4) :]


def send(connection: socket.socket, sent: bytes, way: str, random: Random) -> bytes:
    """Send in some way; return what is left to send."""
    cut = random.randrange(len(sent) + 1)
    if way == "pieces":
        for start in range(0, cut, cut // 4 + 1):
            connection.sendall(sent[start : min(start + cut // 4 + 1, cut)])
            time.sleep(0.005)
        connection.sendall(sent[cut:])
    elif way == "half-closed":
        connection.sendall(random.choice([sent, sent[:cut]]))
        connection.shutdown(socket.SHUT_WR)
    elif way == "deaf":
        connection.settimeout(0.1)
        connection.sendall(raw("GET /openapi.json HTTP/1.1") * 200)
    else:
        connection.sendall(sent if way == "whole" else sent[:cut])
    return sent[cut:]


def reset(connection: socket.socket) -> None:
    """Close as one whose machine has crashed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def statuses(connection: socket.socket) -> list[int]:
    """Return what is answered until the server closes, or has said nothing for a moment; end the connection."""
    answer = b""
    with connection, suppress(OSError):
        connection.settimeout(0.05)
        while piece := connection.recv(1_000_000):
            answer += piece
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", answer)]


def attack(port: int, kinds: Kinds, random: Random, end: float) -> Counter[tuple[str, str | int]]:
    """Attack until it is over; return how often with what, in which way, and what was answered."""
    counts, held = Counter[tuple[str, str | int]](), list[tuple[socket.socket, bytes]]()
    while time.monotonic() < end:
        kind, way = random.choice(list(kinds)), random.choice(WAYS)
        counts["kind", kind] += 1
        counts["way", way] += 1
        connection, rest = socket.create_connection(("127.0.0.1", port), timeout=5), b""
        with suppress(OSError):  # the server may close before it has heard all
            sent = random.choice(kinds[kind])
            rest = send(connection, sent if kind in UNAUTHORIZED else mutated(sent, random), way, random)
        if way == "reset":
            reset(connection)
        elif way in {"held", "deaf"}:
            held.append((connection, rest))
        elif way == "crowd":
            held += [(connection, b""), *((socket.create_connection(("127.0.0.1", port), timeout=5), b"") for _ in range(9))]
        else:
            answered = statuses(connection)
            assert kind not in UNAUTHORIZED or 200 not in answered
            counts.update(("status", one) for one in answered)
        for index in random.sample(range(len(held)), min(len(held), 10)):
            slow, rest = held[index]
            with suppress(OSError):
                slow.settimeout(0)
                slow.send(rest[:1])
            held[index] = slow, rest[1:]
        while len(held) > HELD:
            counts.update(("status", one) for one in statuses(held.pop(random.randrange(len(held)))[0]))
    for connection, _ in held:
        random.choice([reset, socket.socket.close])(connection)
    return counts


# Who asks honestly, and what the server takes


def ask(connection: http.client.HTTPConnection) -> str:
    """Ask; return what became of it."""
    try:
        connection.request("POST", "/get-online-features", BODY, HEADERS)
        with connection.getresponse() as response:
            status, content = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return f"late: {error!r}"
    if status == 503:
        return f"late: {content!r}"
    return "right" if status == 200 and json.loads(content) == RIGHT else f"wrong: {status} {content!r}"


def get(connection: http.client.HTTPConnection, path: str) -> bytes:
    """Return an answer that has to be a success."""
    connection.request("GET", path, headers=HEADERS)
    with connection.getresponse() as response:
        content = response.read()
    assert response.status == 200, content
    return content


def megabytes(pid: int) -> float:
    """Return what a process has in memory."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return round(int(found[1]) / 1024, 1) if found else 0.0


def files(pid: int) -> int:
    """Return how many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.timeout(SECONDS + 240)
def test_a_server_under_attack_still_answers(project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its processes live on, in the memory that they had; it fails at nothing, tells nothing, and gives back what it took."""
    seed = os.environ.get("ATTACK_SEED") or secrets.token_hex(4)
    caplog.set_level(logging.INFO)
    _log.info("ATTACK_SEED=%s", seed)
    monkeypatch.setenv("FEATURE_PLATFORM_API_TOKENS", "tokens.json")
    _, limited = create_token(project / "tokens.json", "limited", now=datetime.now(UTC), scopes=[TokenScope.METRICS])
    with (
        serving(project, workers=2) as served,
        closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)) as honest,
        ThreadPoolExecutor(ATTACKERS) as pool,
    ):
        routes = [*json.loads(get(honest, "/openapi.json"))["paths"], "/docs", "/redoc", "/openapi.json"]
        kinds = {**framing(Random(seed)), **bodies(), **requests(limited, routes)}
        processes, workers = served.children(), sorted(served.workers())
        before, begin = [files(pid) for pid in workers], time.monotonic()
        end = begin + SECONDS
        attacks = [pool.submit(attack, served.port, kinds, Random(f"{seed} {number}"), end) for number in range(ATTACKERS)]
        answers, seconds, memory = Counter[str](), list[float](), list[list[float]]()
        while (now := time.monotonic()) < end:
            answers[ask(honest)] += 1
            seconds.append(time.monotonic() - now)
            if now - begin > len(memory):
                memory.append([megabytes(pid) for pid in workers])
            time.sleep(0.02)
        counts = sum((one.result() for one in attacks), Counter[tuple[str, str | int]]())
        until("the files to be closed", lambda: all(files(pid) <= most + 5 for pid, most in zip(workers, before, strict=True)))
        memory.append([megabytes(pid) for pid in workers])
        log, slowest = served.log(), sorted(seconds)[len(seconds) * 99 // 100]
        figures = f"ATTACK_SEED={seed}: {dict(counts)}; honest {dict(answers)}, 99 % within {slowest:.3f} s; megabytes {memory}"
        _log.info("%s; %d lines", figures, log.count("\n"))
        assert served.children() == processes, figures
        assert {one for what, one in counts if what == "status" and int(one) >= 500} <= {503}, figures
        assert not [one for one in answers if one.startswith("wrong")], figures
        assert answers["right"] >= (1 - LATE_SHARE) * len(seconds), figures
        warm = memory[min(len(memory) // 4, 10)]
        assert all(most - at_first < MEGABYTES for row in memory for at_first, most in zip(warm, row, strict=True)), figures
        assert not [one for one in (TOKEN, limited, SECRET, RIGHT["features"]["genre"], "FLUSHALL", "Traceback") if one in log], figures
        assert log.count("\n") < LINES_A_SECOND * (time.monotonic() - begin) + 100, figures
        for path in ("/health", "/ready"):
            get(honest, path)
