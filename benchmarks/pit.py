"""
The point-in-time join beside its peers, over the same Parquet, from entity rows in a file to ordered answers in memory.

Knows the cases. How a subject joins is its own module's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.feast_environment import feast_python
from benchmarks.histories import History, ensure_entity_rows, ensure_history
from benchmarks.measuring import REFERENCE, Context, Run, Subject, Tally, in_worker, measure, size_text

__all__ = ["run"]


@dataclass(frozen=True, kw_only=True)
class _Case:
    history: History
    entities: int
    ttl_days: float | None = None
    memory: str | None = None
    title: str = ""
    window: tuple[float, float] | None = None
    peers: frozenset[str] = frozenset({"duckdb", "polars", "pandas", "feast"})

    @property
    def name(self) -> str:
        if self.title:
            return self.title
        sizes = f"R={size_text(self.history.rows)} E={size_text(self.entities)}"
        if self.memory:
            return f"{sizes} memory={self.memory}"
        return f"{sizes} K={self.history.views} ttl={'none' if self.ttl_days is None else f'{self.ttl_days:g}d'}"


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    for case in context.of_size(tiny=_tiny(), quick=_quick(), full=_full()):
        _measure(context, tally, case)


def _tiny() -> list[_Case]:
    history = History(rows=2000, views=2, features=3, days=9)
    return [_Case(history=history, entities=500, ttl_days=1)]


def _quick() -> list[_Case]:
    history = History(rows=1_000_000, views=3, features=3)
    return [_Case(history=history, entities=100_000), _Case(history=history, entities=100_000, ttl_days=1)]


def _full() -> list[_Case]:
    history = History(rows=10_000_000, views=3, features=3)
    # One view and two libraries: polars and pandas have no memory limit to be held to.
    large = History(rows=50_000_000, views=1, features=3)
    years = History(rows=10_000_000, views=1, features=3, days=730, daily=True)
    several = frozenset({"duckdb", "polars", "pandas"})
    return [
        _Case(history=history, entities=1_000_000),
        _Case(history=history, entities=1_000_000, ttl_days=1),
        _Case(history=large, entities=10_000_000, memory="1GB", peers=frozenset({"duckdb"})),
        _Case(history=History(rows=1_000_000, views=1, features=50), entities=1_000_000, title="wide 50 features", peers=several),
        _Case(history=History(rows=1_000_000, views=10, features=3), entities=1_000_000, title="10 views", peers=several),
        _Case(history=years, entities=100_000, title="one week of two years", window=(700, 707), ttl_days=7, peers=several),
    ]


def _measure(context: Context, tally: Tally, case: _Case) -> None:
    context.say(f"{case.name}: data")
    folder = ensure_history(case.history, context.cache)
    first, last = case.window or (0, case.history.days)
    entities = ensure_entity_rows(case.history, folder, case.entities, first_day=first, last_day=last)
    arguments: dict[str, Any] = {
        "history": asdict(case.history),
        "folder": str(folder),
        "entities": str(entities),
        "ttl_days": case.ttl_days,
        "memory": case.memory,
    }
    subjects = [Subject(REFERENCE, partial(in_worker, "pit_feature_platform", **arguments))]
    files = [case.history.files(folder, view) for view in range(case.history.views)]
    if case.window and case.ttl_days is not None:
        # Whoever writes the join by hand lists the days that can hold an answer, too.
        oldest, newest = int(first - case.ttl_days), int(last)
        files = [of_view[max(0, oldest) : newest + 1] for of_view in files]
    peer: dict[str, Any] = {
        "files": files,
        "columns": [case.history.feature_names(view) for view in range(case.history.views)],
        "entities": str(entities),
        "ttl_days": case.ttl_days,
    }
    wanted = context.peers & case.peers
    if "duckdb" in wanted:
        subjects.append(Subject("duckdb_asof", partial(in_worker, "pit_duckdb", **peer, memory=case.memory)))
    subjects += [Subject(name, partial(in_worker, f"pit_{name}", **peer)) for name in ("polars", "pandas") if name in wanted]
    if "feast" in wanted:
        python = feast_python(context, tally)
        if python is not None:
            subjects.append(Subject("feast", partial(_feast, python, context.cache, peer)))
    runs = context.of_size(tiny=1, quick=5, full=3)
    measure(context, tally, case.name, subjects, runs=runs)


def _feast(python: Path, cache: Path, peer: dict[str, Any]) -> Run:
    return in_worker("pit_feast", python=python, **peer, cache=str(cache))
