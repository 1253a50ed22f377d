"""The limit: redis-py, one MGET of keys spelled by hand, msgpack decoded, no statuses, no checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import redis

from benchmarks.measuring import Run
from benchmarks.members import entity_id
from benchmarks.online_data import PROJECT
from benchmarks.subjects.calls import timed_calls
from feature_platform.online.embedded import ensure_server


def run(*, folder: str, online_root: str, width: int, asked: list[list[int]], calls: int) -> Run:  # noqa: ARG001 - as its peer
    """Time calls."""
    decode = msgspec.msgpack.Decoder().decode
    with redis.Redis(unix_socket_path=str(ensure_server(Path(online_root)))) as server:

        def read(ids: Sequence[str]) -> list[list[Any]]:
            # After the head of four stand the features.
            return [decode(value)[4:] for value in server.mget([f"{PROJECT}:{{member:{one}}}:view_{width}" for one in ids])]

        return timed_calls(read, [[entity_id(number) for number in numbers] for numbers in asked], calls)
