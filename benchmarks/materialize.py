"""
Materialize into an empty server: keys a second, beside the same keys and bytes poured in by `redis-cli --pipe`.

Knows the cases, and reads back what is online to compare it. How a subject writes is its own module's.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import redis

from benchmarks.checksums import checksum_of_rows
from benchmarks.feast_environment import feast_python
from benchmarks.measuring import REFERENCE, BenchmarkError, Context, Run, Subject, Tally, in_worker, measure, size_text
from benchmarks.members import WIDTHS, entity_id, values_of
from benchmarks.online_data import PROJECT, empty_server, ensure_history, online_registry
from feature_platform.online.codec import ViewCodec

__all__ = ["run"]

_WIDTH = WIDTHS[0]
_KEYS_A_READ = 2000
_FEAST_KEYS = 1_000_000
"""More would take Feast minutes, and tell nothing new."""


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    sizes: tuple[int, ...] = context.of_size(tiny=(2000,), quick=(100_000,), full=(1_000_000, 5_000_000))
    for keys in sizes:
        _measure(context, tally, keys)


def _measure(context: Context, tally: Tally, keys: int) -> None:
    case = f"{size_text(keys)} keys x {_WIDTH} features"
    context.say(f"{case}: data")
    folder = ensure_history(keys, context.cache, [_WIDTH])
    client = shutil.which("redis-cli")
    with tempfile.TemporaryDirectory(prefix="payload-") as temporary:
        payload = Path(temporary) / "payload"
        subjects = [Subject(REFERENCE, partial(_materialize, folder, keys, payload))]
        if client is None:
            tally.left_out.append(f"{case}: redis_cli_pipe is left out: there is no redis-cli on PATH (Debian: redis-tools)")
        elif context.limits:
            subjects.append(Subject("redis_cli_pipe", partial(_pipe, client, keys, payload)))
        feast = feast_python(context, tally) if "feast" in context.peers and keys <= _FEAST_KEYS else None
        if feast is not None:
            subjects.append(Subject("feast", partial(_feast, feast, folder, keys)))
        expected = checksum_of_rows(values_of(number, _WIDTH) for number in range(keys))
        measure(context, tally, case, subjects, runs=context.of_size(tiny=1, quick=5, full=3), expected=expected)


def _materialize(folder: Path, keys: int, payload: Path) -> Run:
    with empty_server() as (online_root, socket):
        done = in_worker("materialize_feature_platform", folder=str(folder), online_root=str(online_root), view=f"view_{_WIDTH}")
        with redis.Redis(unix_socket_path=str(socket)) as server:
            if not payload.exists():
                payload.write_bytes(b"".join(_set(key, value) for key, value in _stored(server, keys)))
            return _checked(done.seconds, keys, server, peak=done.peak_rss_mb)


def _feast(python: Path, folder: Path, keys: int) -> Run:
    """Push with Feast, and read back some of it through Feast's own client: its bytes are its own."""
    with empty_server() as (online_root, socket):
        repository, view = online_root / "feast", f"view_{_WIDTH}"
        arguments: dict[str, Any] = {"folder": str(folder), "socket": str(socket), "views": [view], "keys": keys}
        done = in_worker("materialize_feast", python=python, repository=str(repository), **arguments)
        every = [list(range(start, min(start + _KEYS_A_READ, keys))) for start in range(0, keys, _KEYS_A_READ)]
        read = in_worker("sdk_feast", python=python, repository=str(repository), width=_WIDTH, asked=every, calls=1)
    return replace(done, checksum=read.checksum)


def _pipe(client: str, keys: int, payload: Path) -> Run:
    with empty_server() as (_, socket), redis.Redis(unix_socket_path=str(socket)) as server, payload.open("rb") as commands:
        started = time.perf_counter()
        done = subprocess.run([client, "-s", str(socket), "--pipe"], stdin=commands, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode or "errors: 0" not in done.stdout:
            raise BenchmarkError((done.stdout + done.stderr).strip()[-300:])
        return _checked(seconds, keys, server, peak=None)


def _checked(seconds: float, keys: int, server: redis.Redis, *, peak: float | None) -> Run:
    """Read everything back and decode it without the platform: after its head of four, a value is the features in order."""
    checksum = checksum_of_rows(msgspec.msgpack.decode(value)[4:] for _, value in _stored(server, keys))
    return Run(seconds=seconds, rate=keys / seconds, peak_rss_mb=peak, checksum=checksum)


def _stored(server: redis.Redis, keys: int) -> Iterator[tuple[bytes, bytes]]:
    codec = ViewCodec(PROJECT, online_registry().view(f"view_{_WIDTH}"))
    for start in range(0, keys, _KEYS_A_READ):
        names = [codec.entity_key([entity_id(number)]) for number in range(start, min(start + _KEYS_A_READ, keys))]
        yield from zip(names, server.mget(names), strict=True)


def _set(key: bytes, value: bytes) -> bytes:
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)
