"""What the subjects of `sdk` share: the loop around a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

from benchmarks.checksums import checksum_of_rows
from benchmarks.measuring import Run, peak_rss_mb, percentile_ms

__all__ = ["timed_calls"]


def timed_calls(read: Callable[[Sequence[str]], list[list[Any]]], asked: Sequence[Sequence[str]], calls: int) -> Run:
    """
    Time calls one by one, after a round of all questions that warms up and is checked.

    Args:
        read: From entity ids to rows of values.
        asked: The questions.
        calls: How many to time.
    """
    checksum = checksum_of_rows(row for ids in asked for row in read(ids))
    latencies = []
    for ids in islice(cycle(asked), calls):
        started = time.perf_counter()
        read(ids)
        latencies.append(time.perf_counter() - started)
    seconds = sum(latencies) / calls
    return Run(
        seconds=seconds,
        rate=1 / seconds,
        p50_ms=percentile_ms(latencies, 50),
        p99_ms=percentile_ms(latencies, 99),
        peak_rss_mb=peak_rss_mb(),
        checksum=checksum,
    )
