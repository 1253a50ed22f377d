"""
The point-in-time join beside its peers, over the same Parquet, from entity rows in a file to ordered answers in memory.

Knows the cases. How a subject joins is its own module's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.feast_environment import feast_python
from benchmarks.histories import History, ensure_days, ensure_entity_rows, ensure_history
from benchmarks.measuring import REFERENCE, Context, Run, Subject, Tally, in_worker, measure, size_text

__all__ = ["run"]

_SEVERAL: Final = frozenset({"duckdb", "polars", "pandas"})


@dataclass(frozen=True, kw_only=True)
class _Case:
    history: History
    entities: int
    ttl_days: float | None = None
    memory: str | None = None
    title: str = ""
    window: tuple[float, float] | None = None
    views: int | None = None
    every: int = 1
    peers: frozenset[str] = frozenset({"duckdb", "polars", "pandas", "feast"})

    @property
    def name(self) -> str:
        if self.title:
            return self.title
        sizes = f"R={size_text(self.history.rows)} E={size_text(self.entities)}"
        if self.memory:
            return f"{sizes} memory={self.memory}"
        return f"{sizes} K={self.asked.views} ttl={'none' if self.ttl_days is None else f'{self.ttl_days:g}d'}"

    @property
    def asked(self) -> History:
        """The part of the history that is asked for: its first views."""
        return self.history if self.views is None else replace(self.history, views=self.views)


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    for case in context.of_size(tiny=_tiny(), quick=_quick(), full=_full()):
        if context.wants(case.name):
            _measure(context, tally, case)


def _tiny() -> list[_Case]:
    history = History(rows=2000, views=2, features=3, days=9)
    return [_Case(history=history, entities=500, ttl_days=1)]


def _quick() -> list[_Case]:
    history = History(rows=1_000_000, views=3, features=3)
    years = History(rows=500_000, views=1, features=3, days=90, hourly=True)
    large = History(rows=1_000_000, views=1, features=3)
    return [
        _Case(history=history, entities=100_000),
        _Case(history=history, entities=100_000, ttl_days=1),
        _Case(history=history, entities=100_000, views=1, peers=_SEVERAL),
        _Case(history=large, entities=1_000_000, memory="100MB", peers=frozenset({"duckdb"})),
        _Case(history=history, entities=20_000, views=1, every=50, title="few keys of many R=1M E=20k", peers=_SEVERAL),
        _Case(history=years, entities=20_000, title="one week of 90 days, hourly", window=(80, 87), ttl_days=7, peers=_SEVERAL),
    ]


def _full() -> list[_Case]:
    history = History(rows=10_000_000, views=3, features=3)
    # One view and one peer: polars and pandas have no memory limit to be held to.
    large = History(rows=50_000_000, views=1, features=3)
    years = History(rows=10_000_000, views=1, features=3, days=730, hourly=True)
    return [
        _Case(history=history, entities=1_000_000),
        _Case(history=history, entities=1_000_000, ttl_days=1),
        _Case(history=history, entities=1_000_000, views=1, peers=_SEVERAL),
        _Case(history=large, entities=10_000_000, memory="1GB", peers=frozenset({"duckdb"})),
        _Case(history=History(rows=1_000_000, views=1, features=50), entities=1_000_000, title="wide 50 features", peers=_SEVERAL),
        _Case(history=History(rows=1_000_000, views=10, features=3), entities=1_000_000, title="10 views", peers=_SEVERAL),
        _Case(history=history, entities=100_000, views=1, every=50, title="few keys of many", peers=_SEVERAL),
        _Case(history=years, entities=100_000, title="one week of two years", window=(700, 707), ttl_days=7, peers=_SEVERAL),
    ]


def _measure(context: Context, tally: Tally, case: _Case) -> None:
    context.say(f"{case.name}: data")
    folder = ensure_history(case.history, context.cache)
    first, last = case.window or (0, case.history.days)
    entities = ensure_entity_rows(case.history, folder, case.entities, first_day=first, last_day=last, every=case.every)
    arguments: dict[str, Any] = {
        "history": asdict(case.asked),
        "folder": str(folder),
        "entities": str(entities),
        "ttl_days": case.ttl_days,
        "memory": case.memory,
    }
    subjects = [Subject(REFERENCE, partial(in_worker, "pit_feature_platform", **arguments))]
    if case.memory and context.limits:
        whole = arguments | {"memory": None, "to_file": True}
        subjects.append(Subject("unbounded", partial(in_worker, "pit_feature_platform", **whole)))
    files = [case.history.files(folder, view) for view in range(case.asked.views)]
    if case.window and case.ttl_days is not None:
        # Whoever writes the join by hand lists the files that can hold an answer, too.
        oldest, newest = int(first - case.ttl_days), int(last)
        low, high = (f"{case.history.day(day):%Y-%m-%d}" for day in (max(0, oldest), newest + 1))
        files = [[file for file in of_view if low <= Path(file).name < high] for of_view in files]
        if context.limits:
            alone = arguments | {"folder": str(ensure_days(case.history, folder, first_day=oldest, last_day=newest + 1))}
            subjects.append(Subject("week_alone", partial(in_worker, "pit_feature_platform", **alone)))
    peer: dict[str, Any] = {
        "files": files,
        "columns": [case.history.feature_names(view) for view in range(case.asked.views)],
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
