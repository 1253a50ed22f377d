"""
How one run is measured and how runs become a result: fresh processes, subjects in turn, medians, equal answers.

Knows processes and numbers. Knows no subject. Loads nothing heavy: workers import it, and their peak memory counts.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

__all__ = [
    "MARK",
    "REFERENCE",
    "BenchmarkError",
    "Context",
    "Point",
    "Result",
    "Run",
    "Subject",
    "Tally",
    "in_worker",
    "measure",
    "peak_rss_mb",
    "percentile_ms",
    "size_text",
    "worker_command",
    "worker_environment",
]

REFERENCE: Final = "feature_platform"
MARK: Final = "MEASURED "
"""What the line begins with on which a worker prints its run."""

_ROOT: Final = Path(__file__).parent.parent
_LONGEST_RUN_SECONDS: Final = 1800.0
_T = TypeVar("_T")


class BenchmarkError(RuntimeError):
    """A run failed; the message ends with what it printed."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """
    What is wanted.

    Attributes:
        size: "quick" or "full"; tests use "tiny".
        peers: Other libraries to measure, of duckdb, polars, pandas and feast.
        limits: Whether to measure what bounds us: the bare server, the bare client, an empty project.
        cache: Holds generated data, kept from run to run.
        say: Shows one line of progress.
        case: Part of the names of the cases that are measured.
    """

    size: str
    peers: frozenset[str]
    limits: bool
    cache: Path
    say: Callable[[str], None]
    case: str = ""

    def wants(self, case: str) -> bool:
        """Say whether a case is to be measured; asked before its data is made, where that takes long."""
        return self.case in case

    def of_size(self, *, tiny: _T, quick: _T, full: _T) -> _T:
        """Return the one of this context's size."""
        return {"tiny": tiny, "quick": quick, "full": full}[self.size]


@dataclass(frozen=True, kw_only=True)
class Run:
    """
    What one run measured.

    Attributes:
        seconds: Of the whole task, or of one call where there are many.
        peak_rss_mb: Of the process that did the work, before its answers were checked; None where it is not the subject's own.
        rate: Answers, or keys, a second.
        p50_ms: Median latency of one call.
        p99_ms: 99th percentile of the same.
        checksum: Over the ordered answers.
    """

    seconds: float
    checksum: str
    peak_rss_mb: float | None = None
    rate: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True)
class Point:
    """Where a case lies on a curve of growth: one question asked of more and more rows."""

    curve: str
    rows: int


@dataclass(frozen=True)
class Subject:
    """Who is measured, and what makes one run of it."""

    name: str
    run: Callable[[], Run]


@dataclass(frozen=True, kw_only=True)
class Result:
    """
    One subject's runs of one case.

    Attributes:
        case: Its name.
        subject: Who was measured.
        runs: In the order made.
        equal: Whether all of them gave the right answers.
        p90_seconds: 90th percentile of the runs, where they are many.
        ratios: Of each run's time to that of the feature platform in the same turn; none where it is the platform itself.
        point: Where the case is one of a curve.
    """

    case: str
    subject: str
    runs: list[Run]
    equal: bool
    p90_seconds: float | None = None
    ratios: Sequence[float] = ()
    point: Point | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the row that every benchmark of this project writes."""
        row: dict[str, Any] = {
            "case": self.case,
            "subject": self.subject,
            "seconds": _rounded(median(run.seconds for run in self.runs)),
            "spread": [_rounded(min(run.seconds for run in self.runs)), _rounded(max(run.seconds for run in self.runs))],
            "peak_rss_mb": _median([run.peak_rss_mb for run in self.runs]),
            "rate": _median([run.rate for run in self.runs]),
            "p99_ms": _median([run.p99_ms for run in self.runs]),
            "equal": self.equal,
        }
        more: dict[str, Any] = {
            "p50_ms": _median([run.p50_ms for run in self.runs]),
            "p90_seconds": None if self.p90_seconds is None else _rounded(self.p90_seconds),
            "ratio": _median(self.ratios),
            "ratio_spread": [_rounded(min(self.ratios)), _rounded(max(self.ratios))] if self.ratios else None,
            "curve": self.point and self.point.curve,
            "rows": self.point and self.point.rows,
        }
        return row | {name: value for name, value in more.items() if value is not None}


@dataclass
class Tally:
    """
    What has been measured so far.

    Attributes:
        results: In the order measured.
        left_out: What the table does not tell: why subjects are missing or were not measured whole, a percentile; one line each.
        failed: The benchmarks that did not come to their end, and why; one line each.
        keep: Called after each case, so that what is measured is not lost with a later one.
    """

    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    keep: Callable[[], None] = lambda: None


def measure(
    context: Context,
    tally: Tally,
    case: str,
    subjects: Sequence[Subject],
    *,
    runs: int,
    expected: str | None = None,
    point: Point | None = None,
) -> None:
    """
    Run all subjects of a case in turn, several times, and add their results.

    In turn, so that a busy minute of the machine falls on all of them. A peer that fails is left out and said; we may not.

    Args:
        context: Says what happens.
        tally: Takes the results.
        case: Name of the case.
        subjects: The feature platform among them.
        runs: How often each one runs.
        expected: Checksum of the right answers where they are known; else the feature platform's first ones.
        point: Where the case is one of a curve.
    """
    if not context.wants(case):
        return
    done: dict[str, list[Run]] = {}
    failed: set[str] = set()
    for number in range(1, runs + 1):
        for subject in subjects:
            if subject.name in failed:
                continue
            context.say(f"{case}: {subject.name} {number}/{runs}")
            try:
                run = subject.run()
            except BenchmarkError as error:
                if subject.name == REFERENCE:
                    raise
                failed.add(subject.name)
                done.pop(subject.name, None)
                tally.left_out.append(f"{case}: {subject.name} failed: {error}")
                continue
            done.setdefault(subject.name, []).append(run)
    ours = done[REFERENCE]
    right = expected or ours[0].checksum
    for name, its_runs in done.items():
        equal = all(run.checksum == right for run in its_runs)
        # Turn by turn: what the machine did in one turn falls on both sides of its ratio.
        ratios = [] if name == REFERENCE else [run.seconds / own.seconds for run, own in zip(its_runs, ours, strict=True)]
        tally.results.append(Result(case=case, subject=name, runs=its_runs, equal=equal, ratios=ratios, point=point))
    tally.keep()


def in_worker(subject: str, python: Path | None = None, **arguments: Any) -> Run:  # noqa: ANN401 - JSON
    """
    Run `benchmarks.subjects.<subject>` in a fresh process; its memory is its own and nothing is warm.

    Args:
        subject: Module of the subject.
        python: Interpreter of a peer that has an environment of its own.
        **arguments: For its `run`, as JSON.

    Raises:
        BenchmarkError: It failed or took too long.
    """
    command = worker_command(subject, python)
    try:
        done = subprocess.run(
            command,
            input=json.dumps(arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_RUN_SECONDS,
            env=worker_environment(),
        )
    except subprocess.TimeoutExpired as exc:
        message = f"no answer within {exc.timeout:.0f} s"
        raise BenchmarkError(message) from exc
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BenchmarkError(said[-1][:300])
    return Run(**json.loads(lines[-1].removeprefix(MARK)))


def worker_command(subject: str, python: Path | None = None) -> list[str]:
    """Return the command that runs a subject; its arguments are read from stdin."""
    return [str(python or sys.executable), "-m", "benchmarks.worker", subject]


def worker_environment() -> dict[str, str]:
    """Return the environment of subjects: this repository importable, and no setting of a project around it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEATURE_PLATFORM_", "DAGSTER_"))}
    return {**kept, "PYTHONPATH": str(_ROOT), "FEAST_USAGE": "False"}


def peak_rss_mb(pid: int | str = "self") -> float | None:
    """
    Return the most memory that a process has held.

    From /proc: `ru_maxrss` of a child starts at what its parent held when it was started.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    """Return a percentile (nearest rank) of latencies, in milliseconds."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] * 1000


def size_text(number: int) -> str:
    """Write a size as cases name it: 1M, 100k, 2500."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= unit and number % (unit // 10) == 0:
            return f"{number / unit:g}{letter}"
    return str(number)


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return _rounded(median(there)) if there else None


def _rounded(value: float) -> float:
    """Keep four digits: more would be noise."""
    return float(f"{value:.4g}")
