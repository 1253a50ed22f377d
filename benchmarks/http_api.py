"""
Reads over HTTP, one worker: answers a second at 16 connections, latency at a fixed rate, beside the bare server's own benchmark.

Knows the cases and the server's process. The load is made by another process: `subjects/http_load.py`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import redis

from benchmarks.checksums import checksum_of_rows
from benchmarks.feast_members import ensure_feast
from benchmarks.measuring import (
    REFERENCE,
    BenchmarkError,
    Context,
    Run,
    Subject,
    Tally,
    in_worker,
    measure,
    peak_rss_mb,
    worker_command,
    worker_environment,
)
from benchmarks.members import entity_id
from benchmarks.online_data import PROJECT, filled_server
from benchmarks.sdk import SHAPES, expected_checksum, questions
from feature_platform.online.embedded import ensure_server

__all__ = ["run"]

_CONNECTIONS = 16
_READY_SECONDS = 60.0
_UNTIL_IT_PUSHES = 2.0


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    keys = context.of_size(tiny=500, quick=20_000, full=1_000_000)
    runs = context.of_size(tiny=1, quick=3, full=5)
    context.say(f"http: {keys} keys")
    benchmark = shutil.which("redis-benchmark")
    if benchmark is None:
        tally.left_out.append("http: redis_benchmark is left out: it is not on PATH (Debian: redis-tools)")
    with contextlib.ExitStack() as stack:
        folder, online_root = stack.enter_context(filled_server(keys, context.cache))
        arguments = {"folder": str(folder), "online_root": str(online_root)}
        servers = {REFERENCE: stack.enter_context(_serving("http_feature_platform", arguments, "/ready"))}
        feast = ensure_feast(context, tally, folder, online_root)
        if feast is not None:
            servers["feast"] = stack.enter_context(_serving("http_feast", feast.arguments, "/health", feast.python))
        seconds = context.of_size(tiny=0.3, quick=3.0, full=10.0)
        cases: list[tuple[int, int, float | None]] = [(entities, features, None) for entities, features in SHAPES]
        cases.append((*SHAPES[0], 1000.0))
        for entities, features, rate in cases:
            asked = questions(keys, entities)
            load = partial(_load, asked=asked, features=features, seconds=seconds, rate=rate)
            subjects = []
            for name, (port, process) in servers.items():
                subjects.append(Subject(name, partial(load, port=port, pid=process.pid, is_feast=name == "feast")))
            if benchmark is not None and context.limits and rate is None:
                bare = partial(_redis_benchmark, program=benchmark, path=ensure_server(online_root), keys=keys)
                subjects.append(Subject("redis_benchmark", partial(bare, asked=asked, features=features, seconds=seconds)))
            case = f"{entities} x {features} " + (f"c={_CONNECTIONS}" if rate is None else f"at {rate:.0f}/s")
            measure(context, tally, case, subjects, runs=runs, expected=expected_checksum(asked, features))
        (entities, features), (port, process) = SHAPES[0], servers[REFERENCE]
        asked = questions(keys, entities)
        load = partial(_load, port=port, pid=process.pid, asked=asked, features=features, seconds=seconds, rate=500.0, is_feast=False)
        subjects = [Subject(REFERENCE, load), Subject("while_materializing", partial(_while_materializing, arguments, load))]
        measure(context, tally, f"{entities} x {features} at 500/s", subjects, runs=runs, expected=expected_checksum(asked, features))
        with _serving("http_unobserved", arguments, "/ready") as (blind_port, blind):
            load = partial(_load, asked=asked, features=features, seconds=seconds, rate=None, is_feast=False)
            subjects = [
                Subject(REFERENCE, partial(load, port=port, pid=process.pid)),
                Subject("unobserved", partial(load, port=blind_port, pid=blind.pid)),
            ]
            case = f"{entities} x {features} seen inside"
            measure(context, tally, case, subjects, runs=3 * runs, expected=expected_checksum(asked, features))


@contextlib.contextmanager
def _serving(
    subject: str, arguments: dict[str, Any], ready: str, python: Path | None = None
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Start a server in a process of its own on a free port; stop it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            worker_command(subject, python), stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=worker_environment()
        )
        try:
            assert process.stdin is not None
            json.dump({**arguments, "port": port}, process.stdin)
            process.stdin.close()
            deadline = time.monotonic() + _READY_SECONDS
            while not _is_ready(port, ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    message = f"{subject} does not start: {log.read()[-2000:]}"
                    raise BenchmarkError(message)
                time.sleep(0.1)
            yield port, process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _while_materializing(arguments: dict[str, str], load: Callable[[], Run]) -> Run:
    """Measure while all keys are pushed again and again. The values stay the same, so a read that misses one is seen."""
    process = subprocess.Popen(
        worker_command("materialize_again"), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=worker_environment()
    )
    try:
        assert process.stdin is not None
        json.dump(arguments, process.stdin)
        process.stdin.close()
        time.sleep(_UNTIL_IT_PUSHES)
        run_ = load()
        if process.poll() is not None:
            message = "the push ended while reads were measured"
            raise BenchmarkError(message)
        return run_
    finally:
        process.kill()
        process.wait()


def _is_ready(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _load(*, port: int, pid: int, asked: list[list[int]], features: int, seconds: float, rate: float | None, is_feast: bool) -> Run:
    shape: dict[str, Any] = {"asked": asked, "width": features, "is_feast": is_feast}
    run_ = in_worker("http_load", port=port, connections=_CONNECTIONS, seconds=seconds, rate=rate, **shape)
    # The memory that counts is the server's, since it started.
    return Run(
        seconds=run_.seconds,
        rate=run_.rate,
        p50_ms=run_.p50_ms,
        p99_ms=run_.p99_ms,
        peak_rss_mb=peak_rss_mb(pid),
        checksum=run_.checksum,
    )


def _redis_benchmark(*, program: str, path: Path, keys: int, asked: list[list[int]], features: int, seconds: float) -> Run:
    """MGET random keys of the same view: what the server gives without HTTP, Python or decoding."""
    key = f"{PROJECT}:{{member:%s}}:view_{features}"
    with redis.Redis(unix_socket_path=str(path)) as server:
        # It shows no answers, so the same keys are read and decoded here.
        rows = [value for numbers in asked for value in server.mget([key % entity_id(number) for number in numbers])]
    checksum = checksum_of_rows(msgspec.msgpack.decode(row)[4:] for row in rows)
    names = [key % "__rand_int__"] * len(asked[0])
    requests = int(seconds * (50_000 if len(names) == 1 else 4000))
    command = [program, "-s", str(path), "-c", str(_CONNECTIONS), "-n", str(requests), "-r", str(keys), "--csv", "MGET", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or len(lines) != 2:
        raise BenchmarkError((done.stdout + done.stderr).strip()[-300:])
    (row,) = csv.DictReader(io.StringIO("\n".join(lines)))
    rate = float(row["rps"])
    return Run(seconds=1 / rate, rate=rate, p50_ms=float(row["p50_latency_ms"]), p99_ms=float(row["p99_latency_ms"]), checksum=checksum)
