"""Feast's `get_online_features(...).to_dict()`; runs in an environment of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Run
from benchmarks.members import entity_id, references
from benchmarks.subjects.calls import timed_calls
from benchmarks.subjects.feast_members import open_store


def run(*, repository: str, width: int, asked: list[list[int]], calls: int) -> Run:
    """Time calls."""
    features = references(width)
    names = [reference.partition(":")[2] for reference in features]
    store = open_store(Path(repository))

    def read(ids: Sequence[str]) -> list[list[Any]]:
        found = store.get_online_features(features=features, entity_rows=[{"member_id": one} for one in ids]).to_dict()
        return [list(row) for row in zip(*(found[name] for name in names), strict=True)]

    return timed_calls(read, [[entity_id(number) for number in numbers] for numbers in asked], calls)
