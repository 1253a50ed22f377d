"""Feast's `materialize` with its default engine and file store, into the same server; runs in an environment of its own."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.measuring import Run, peak_rss_mb
from benchmarks.subjects.feast_members import BEGIN, END, open_store, write_repository


def run(*, folder: str, repository: str, socket: str, views: list[str], keys: int) -> Run:
    """Push every key of some views."""
    write_repository(Path(repository), Path(folder), socket)
    store = open_store(Path(repository))
    started = time.perf_counter()
    store.materialize(BEGIN, END, feature_views=views)
    seconds = time.perf_counter() - started
    return Run(seconds=seconds, rate=keys / seconds, peak_rss_mb=peak_rss_mb(), checksum="")
