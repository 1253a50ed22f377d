"""`FeatureStore.get_online_features`, a fresh list of entity rows each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Run
from benchmarks.members import entity_id, references
from benchmarks.online_data import online_registry, online_settings
from benchmarks.subjects.calls import timed_calls
from feature_platform import FeatureStore


def run(*, folder: str, online_root: str, width: int, asked: list[list[int]], calls: int) -> Run:
    """Time calls."""
    features = references(width)
    names = [reference.partition(":")[2] for reference in features]
    with FeatureStore(online_registry(), online_settings(Path(folder), Path(online_root))) as store:

        def read(ids: Sequence[str]) -> list[list[Any]]:
            found = store.get_online_features(features, [{"member_id": one} for one in ids]).to_dict()
            return [list(row) for row in zip(*(found[name] for name in names), strict=True)]

        return timed_calls(read, [[entity_id(number) for number in numbers] for numbers in asked], calls)
