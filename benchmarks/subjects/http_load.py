"""
The load generator: keep-alive connections on raw sockets, each with one request under way.

Every answer under load must equal, byte for byte, the one that was read and checked before. Latencies at a fixed rate count
from the moment a request was due, so a slow answer cannot hide the wait of the next one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.checksums import checksum_of_rows
from benchmarks.measuring import BenchmarkError, Run, percentile_ms
from benchmarks.members import entity_id, feature_name, references

_WARM_UP_SECONDS = 0.5
_REFUSED_AT_MOST = 0.01
_HOST = "127.0.0.1"


@dataclass
class _Load:
    """What the connections of one load share."""

    port: int
    requests: list[bytes]
    answers: list[bytes]
    stop: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    dropped: int = 0
    wrong: int = 0

    def count(self, index: int, answer: bytes | None, latency: float) -> None:
        """Take one answer into account; None was a refusal or a dropped connection, on which no time counts."""
        if answer is None:
            self.refused += 1
        else:
            self.latencies.append(latency)
            self.wrong += answer != self.answers[index]


def run(*, port: int, asked: list[list[int]], width: int, connections: int, seconds: float, rate: float | None, is_feast: bool) -> Run:
    """
    Ask every question once, in order; warm up; then load for some seconds.

    Args:
        port: Of the server.
        asked: Numbers of the entities of each question.
        width: Features.
        connections: At once.
        seconds: How long.
        rate: Requests a second; None is as many as it takes.
        is_feast: One entity is asked about in columns, too; and connections may be dropped, with the requests on them, since its worker
            ends after a thousand.
    """
    requests = [_request(port, numbers, width, columns=is_feast or len(numbers) > 1) for numbers in asked]
    return uvloop.run(_run(_Load(port, requests, []), width, connections, seconds, rate, may_drop=is_feast))


async def _run(load: _Load, width: int, connections: int, seconds: float, rate: float | None, *, may_drop: bool) -> Run:
    connection = _Connection(load)
    for request in load.requests:
        answer = await connection.ask(request) or await connection.ask(request)
        if answer is None:
            message = "503 without any load"
            raise BenchmarkError(message)
        load.answers.append(answer)
    connection.close()
    checksum = checksum_of_rows(row for answer in load.answers for row in _values(answer, width))
    await _drive(load, connections, min(_WARM_UP_SECONDS, seconds), rate)
    load.latencies.clear()
    load.refused = load.dropped = 0
    took = await _drive(load, connections, seconds, rate)
    done = len(load.latencies)
    if load.wrong or load.refused > done * _REFUSED_AT_MOST or (load.dropped and not may_drop):
        message = (
            f"of {done + load.refused} answers under load, {load.wrong} were not the ones read before, and {load.refused} were 503; "
            f"{load.dropped} were lost with a connection"
        )
        raise BenchmarkError(message)
    return Run(
        # At a fixed rate the time between answers is ours; the time that one takes is the server's.
        seconds=took / done if rate is None else sum(load.latencies) / done,
        rate=done / took,
        p50_ms=percentile_ms(load.latencies, 50),
        p99_ms=percentile_ms(load.latencies, 99),
        checksum=checksum,
    )


async def _drive(load: _Load, connections: int, seconds: float, rate: float | None) -> float:
    started = time.perf_counter()
    load.stop = started + seconds
    if rate is None:
        await asyncio.gather(*(_as_fast_as_it_goes(load, number) for number in range(connections)))
    else:
        await asyncio.gather(*(_at_a_rate(load, number, started, connections, rate) for number in range(connections)))
    return time.perf_counter() - started


class _Connection:
    """One connection of a load; opened again where the server drops it, as some do after so many requests."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> bytes | None:
        """Return the body of an answer; None where there is none."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(_HOST, self._load.port)
        try:
            return await _ask(*self._streams, request)
        except (ConnectionError, asyncio.IncompleteReadError):
            self._load.dropped += 1
            self._load.refused -= 1  # as which it will be counted
            self.close()
            return None

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _as_fast_as_it_goes(load: _Load, number: int) -> None:
    connection, index = _Connection(load), number
    while (started := time.perf_counter()) < load.stop:
        index = (index + 1) % len(load.requests)
        load.count(index, await connection.ask(load.requests[index]), time.perf_counter() - started)
    connection.close()


async def _at_a_rate(load: _Load, number: int, started: float, connections: int, rate: float) -> None:
    connection, index, due = _Connection(load), number, started + number / rate
    while due < load.stop:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        index = (index + 1) % len(load.requests)
        load.count(index, await connection.ask(load.requests[index]), time.perf_counter() - due)
        due += connections / rate
    connection.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes | None:
    """Return the body of an answer; None for 503, which a machine busy with other things may see now and then."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(_length(head))
    if head.startswith(b"HTTP/1.1 503 "):
        return None
    if not head.startswith(b"HTTP/1.1 200 "):
        message = f"{head.splitlines()[0].decode()}: {body[:300].decode()}"
        raise BenchmarkError(message)
    return body


def _length(head: bytes) -> int:
    lower = head.lower()
    at = lower.index(b"content-length:") + len(b"content-length:")
    return int(lower[at : lower.index(b"\r\n", at)])


def _request(port: int, numbers: Sequence[int], width: int, *, columns: bool) -> bytes:
    ids = [entity_id(number) for number in numbers]
    body: dict[str, Any] = {"features": references(width)}
    body |= {"entities": {"member_id": ids}} if columns else {"member_id": ids[0]}
    text = json.dumps(body).encode()
    head = f"POST /get-online-features HTTP/1.1\r\nhost: {_HOST}:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(text)}\r\n\r\n".encode() + text


def _values(answer: bytes, width: int) -> list[list[Any]]:
    """Return the rows of an answer in either form."""
    body = json.loads(answer)
    if "results" not in body:
        return [list(body["features"].values())]
    found = dict(zip(body["metadata"]["feature_names"], body["results"], strict=True))
    columns = [found[feature_name(width, index)]["values"] for index in range(width)]
    return [list(row) for row in zip(*columns, strict=True)]
