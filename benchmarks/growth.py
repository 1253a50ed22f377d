"""
Growth: the same questions of a longer and longer history; what time and peak memory do from size to size.

Knows the curves and their sizes. How they are measured is the other benchmarks'.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

from benchmarks.compute import measure_compute, snapshot
from benchmarks.histories import History, ensure_entity_rows, ensure_history
from benchmarks.measuring import REFERENCE, Context, Point, Subject, Tally, in_worker, measure, size_text
from benchmarks.newest import measure_newest

__all__ = ["run"]

_ROWS_A_KEY = 50
_TTL_DAYS = 7


def run(context: Context, tally: Tally) -> None:
    """Measure all curves at one size before the next: what is lost with a size that is too large is that size."""
    million = 1_000_000
    sizes = context.of_size(
        tiny=(1000, 2000), quick=(100_000, 300_000, million), full=(million, 3 * million, 10 * million, 30 * million, 100 * million)
    )
    asked, days, windows = context.of_size(tiny=(100, 9, 3), quick=(100_000, 90, 30), full=(million, 730, 30))
    runs = context.of_size(tiny=1, quick=3, full=3)
    for rows in sizes:
        history = History(rows=rows, views=1, features=3)
        _join(context, tally, "join E=R/10", history, rows // 10, runs=runs)
        _join(context, tally, "join E=R/10 memory=1GB", history, rows // 10, runs=runs, memory="1GB")
        daily = History(rows=rows, views=1, features=3, days=days, daily=True)
        _join(context, tally, f"one week asked E={size_text(asked)}", daily, asked, runs=runs, week=True)
        measure_newest(context, tally, rows, rows // _ROWS_A_KEY, runs=runs, scans=["scan"], curve="newest")
        # Beside the engine alone: pandas would need more memory than there is at the largest size.
        computed = replace(snapshot(rows, windows), peers=frozenset({"duckdb"}))
        measure_compute(context, tally, computed, runs=runs, curve="compute")


def _join(
    context: Context, tally: Tally, curve: str, history: History, entities: int, *, runs: int, memory: str | None = None, week: bool = False
) -> None:
    """Measure the point-in-time join of one view; with `week`, of the last seven days, where a value counts for as long."""
    case = f"{curve} R={size_text(history.rows)}"
    if not context.wants(case):
        return
    context.say(f"{case}: data")
    folder = ensure_history(history, context.cache)
    first = history.days - _TTL_DAYS if week else 0
    rows = ensure_entity_rows(history, folder, entities, first_day=first, last_day=history.days)
    asked: dict[str, Any] = {"entities": str(rows), "ttl_days": _TTL_DAYS if week else None, "memory": memory}
    ours = partial(in_worker, "pit_feature_platform", history=asdict(history), folder=str(folder), **asked)
    subjects = [Subject(REFERENCE, ours)]
    if "duckdb" in context.peers:
        # Whoever writes the join by hand lists the days that can hold an answer, too.
        files = history.files(folder, 0)[max(0, first - _TTL_DAYS) :]
        subjects.append(Subject("duckdb_asof", partial(in_worker, "pit_duckdb", files=[files], columns=[history.columns], **asked)))
    measure(context, tally, case, subjects, runs=runs, point=Point(curve, history.rows))
