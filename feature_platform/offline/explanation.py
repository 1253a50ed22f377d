"""
What a join will read and hold, told before it runs: files, rows, bytes and memory, and whether it goes in buckets.

Knows plans. The one place that decides on buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_platform.dtypes import from_micros
from feature_platform.offline.partition import ROW_GROUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_platform.offline.join_plan import ViewPlan

__all__ = ["JoinExplanation", "ViewExplanation", "explain_join"]

_MB: Final = 1_000_000
# Python, Arrow and DuckDB with nothing to do.
_PROCESS_BYTES: Final = 200 * _MB
# DuckDB sorts both sides of an ASOF join: measured 2.5 times their bytes.
_SORTED: Final = 2.6
# What is sorted at once, where the files let it be cut into ranges of keys: of the memory limit, and at most. Twice as much is as fast.
_RANGE_SHARE: Final = 0.25
_RANGE_BYTES: Final = 300 * _MB
# Row groups of a file to a range: those in which one ends and the next begins are read for both.
_GROUPS_A_RANGE: Final = 4
_SPINE_BYTES: Final = 32
# Of the memory limit, what one bucket's rows may be: they are sorted, beside what is written meanwhile.
_BUCKET_SHARE: Final = 0.3
# Times the limit that DuckDB sorts in one piece, on disk, as fast as that can be done: measured up to 26.
_SPILLED: Final = 25
_MOST_BUCKETS: Final = 64


@dataclass(frozen=True, kw_only=True)
class ViewExplanation:
    """
    What is read of one view.

    Attributes:
        view: Its name.
        files: Paths that are opened.
        rows: In them.
        bytes: On disk, all their columns.
        partitions: That can hold an answer.
        skipped: That cannot, for their time, and are not looked at.
        ranges: In how many ranges of its keys it is sorted, one after another, if it has to be sorted.
        state: The end of the window up to which a kept state stands for the partitions; None where there is none.
        start: Of the first window that is read itself.
        end: Of the last one.
    """

    view: str
    files: tuple[str, ...]
    rows: int
    bytes: int
    partitions: int
    skipped: int
    ranges: int
    state: str | None
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True, kw_only=True)
class JoinExplanation:
    """
    What a join will read and hold; `str()` of it is a table.

    Attributes:
        entity_rows: How many rows are asked about.
        views: What is read of each view, in the order joined.
        buckets: In how many parts it is joined, one after another; more than one where the memory limit is far too small for it as a whole.
        spills: Whether the memory limit is too small for all of it, so that some goes to disk.
        memory_bytes: The most that the process is expected to hold.
        memory_limit_bytes: DuckDB's.
        threads: DuckDB's.
    """

    entity_rows: int
    views: tuple[ViewExplanation, ...]
    buckets: int
    spills: bool
    memory_bytes: int
    memory_limit_bytes: int
    threads: int

    @property
    def files(self) -> int:
        """How many files are opened."""
        return sum(len(view.files) for view in self.views)

    @property
    def rows(self) -> int:
        """How many rows of history are read."""
        return sum(view.rows for view in self.views)

    @property
    def bytes(self) -> int:
        """What those are on disk."""
        return sum(view.bytes for view in self.views)

    @property
    def step_limit(self) -> str:
        """DuckDB's memory limit where something goes to disk: Arrow, and files that are written meanwhile, come on top of it."""
        return f"{max(100, int(self.memory_limit_bytes * (0.85 if self.buckets == 1 else 0.75)) // _MB)}MB"

    def __str__(self) -> str:
        """Return a table, and what it comes to."""
        head = ("view", "files", "rows", "MB", "partitions", "skipped", "from (UTC)", "to", "kept state")
        lines = [head, *(_cells(view) for view in self.views)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        how = f"in {self.buckets} buckets of the keys, one after another"
        if self.buckets == 1:
            ranges = max((view.ranges for view in self.views), default=1)
            pieces = "in one piece" if ranges == 1 else f"in {ranges} ranges of the keys, one after another"
            how = f"{pieces}, in part on disk" if self.spills else pieces
        total = (
            f"{self.entity_rows:,} entity rows and {self.rows:,} rows of {self.files:,} files ({self.bytes / _MB:,.1f} MB), joined {how}; "
            f"about {self.memory_bytes / _MB:,.0f} MB of memory."
        )
        return "\n".join([*table, total])


def _cells(view: ViewExplanation) -> tuple[str, ...]:
    start, end = (one.strftime("%Y-%m-%d %H:%M") if one is not None else "" for one in (view.start, view.end))
    return (
        view.view,
        f"{len(view.files):,}",
        f"{view.rows:,}",
        f"{view.bytes / _MB:,.1f}",
        f"{view.partitions:,}",
        f"{view.skipped:,}",
        start,
        end,
        view.state or "",
    )


def explain_join(plans: Sequence[ViewPlan], entity_rows: int, memory_limit: int, threads: int) -> JoinExplanation:
    """
    Say what running some plans comes to.

    Args:
        plans: Of all views.
        entity_rows: How many rows are asked about.
        memory_limit: DuckDB's, in bytes.
        threads: DuckDB's.
    """
    outputs = sum(plan.width for plan in plans) * entity_rows
    spine = entity_rows * _SPINE_BYTES
    largest = max((plan.bytes_in_memory for plan in plans), default=0)
    views = tuple(_explain(plan, min(_RANGE_BYTES, memory_limit * _RANGE_SHARE)) for plan in plans)
    at_once = max(((plan.bytes_in_memory + spine) / view.ranges for plan, view in zip(plans, views, strict=True)), default=0)
    whole = int(at_once * _SORTED) + spine + 2 * outputs
    buckets = (
        1 if whole <= memory_limit * _SPILLED else min(_MOST_BUCKETS, max(2, math.ceil((largest + spine) / (memory_limit * _BUCKET_SHARE))))
    )
    held = min(whole, memory_limit)
    return JoinExplanation(
        entity_rows=entity_rows,
        views=views,
        buckets=buckets,
        spills=whole > memory_limit,
        memory_bytes=_PROCESS_BYTES + held,
        memory_limit_bytes=memory_limit,
        threads=threads,
    )


def _explain(plan: ViewPlan, range_bytes: float) -> ViewExplanation:
    is_timed = plan.span is not None and plan.files and not plan.files[0].endswith("all.parquet")
    return ViewExplanation(
        view=plan.view,
        files=plan.files,
        rows=plan.rows,
        bytes=sum(Path(file).stat().st_size for file in plan.files),
        partitions=plan.partitions,
        skipped=plan.skipped,
        ranges=_ranges(plan, range_bytes),
        state=plan.state,
        start=from_micros(plan.span[0]) if plan.span and is_timed else None,
        end=from_micros(plan.span[1]) if plan.span and is_timed else None,
    )


def _ranges(plan: ViewPlan, range_bytes: float) -> int:
    groups = plan.rows // max(1, plan.partitions) // ROW_GROUP
    return min(max(1, math.ceil(plan.bytes_in_memory / range_bytes)), groups // _GROUPS_A_RANGE + 1) if plan.join_keys else 1
