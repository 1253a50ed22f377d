"""
Reads through the SDK, one call after another: latency, beside the bare client that asks for the same keys.

Knows the cases. How a subject reads is its own module's.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from benchmarks.checksums import checksum_of_rows
from benchmarks.feast_members import ensure_feast
from benchmarks.measuring import REFERENCE, Context, Subject, Tally, in_worker, measure
from benchmarks.members import values_of
from benchmarks.online_data import filled_server

__all__ = ["SHAPES", "expected_checksum", "questions", "run"]

SHAPES = ((1, 3), (100, 10))
"""Entities and features of a call."""

_QUESTIONS = 200
_SEED = 11


def questions(keys: int, entities: int) -> list[list[int]]:
    """Return the numbers of the keys that each of 200 different calls asks for."""
    rng = random.Random(_SEED)
    return [[rng.randrange(keys) for _ in range(entities)] for _ in range(_QUESTIONS)]


def expected_checksum(asked: list[list[int]], width: int) -> str:
    """Return the checksum of the right answers to all of them."""
    return checksum_of_rows(values_of(number, width) for numbers in asked for number in numbers)


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    keys = context.of_size(tiny=500, quick=20_000, full=1_000_000)
    context.say(f"sdk: {keys} keys")
    with filled_server(keys, context.cache) as (folder, online_root):
        feast = ensure_feast(context, tally, folder, online_root)
        for entities, features in SHAPES:
            calls: int = context.of_size(tiny=20, quick=4000, full=20_000) // (10 if entities > 1 else 1)
            asked = questions(keys, entities)
            arguments: dict[str, Any] = {"width": features, "asked": asked, "calls": calls}
            ours: dict[str, Any] = {"folder": str(folder), "online_root": str(online_root)}
            subjects = [Subject(REFERENCE, partial(in_worker, "sdk_feature_platform", **ours, **arguments))]
            if context.limits:
                subjects.append(Subject("redis_py", partial(in_worker, "sdk_redis_py", **ours, **arguments)))
            if feast is not None:
                subjects.append(Subject("feast", partial(in_worker, "sdk_feast", python=feast.python, **feast.arguments, **arguments)))
            runs = context.of_size(tiny=1, quick=5, full=7)
            case = f"{entities} x {features}"
            measure(context, tally, case, subjects, runs=runs, expected=expected_checksum(asked, features))
