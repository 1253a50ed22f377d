"""Rebuilds the online store again and again, every key of it, until it is stopped: what reads have to live beside."""

from __future__ import annotations

from pathlib import Path

from benchmarks.online_data import NOW, online_registry, online_settings
from feature_platform import FeatureStore


def run(*, folder: str, online_root: str) -> None:
    """Push for ever."""
    with FeatureStore(online_registry(), online_settings(Path(folder), Path(online_root))) as store:
        while True:
            store.rebuild_online(now=NOW)
