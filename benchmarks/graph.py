"""
Loading time of the asset graph: `dagster definitions validate` on a generated project, beside one with nothing in it.

Knows the projects that it writes. Knows nothing of how definitions are made.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.measuring import REFERENCE, BenchmarkError, Context, Run, Subject, Tally, measure, worker_environment

__all__ = ["run"]

_FEATURES_A_VIEW = 5
_VALID = "All code locations passed validation"

_FEATURE_PLATFORM = """\
from datetime import UTC, datetime, timedelta

from feature_platform import Entity, Feature, FeatureView, ParquetSource, Registry
from feature_platform.orchestration import build_definitions

member = Entity("member", join_keys={{"member_id": str}})
events = ParquetSource("events", "sources/events/*.parquet", timestamp="happened_at")


def view(number):
    names = [f"view_{{number}}_feature_{{index}}" for index in range({width})]
    counted = ", ".join(f"count(*) filter (where kind = {{index}}) as {{name}}" for index, name in enumerate(names))
    return FeatureView(
        f"view_{{number}}",
        entity=member,
        sources=[events],
        query=f"select member_id, {{counted}} from events group by member_id",
        features=[Feature(name, int, "Events of a kind.") for name in names],
        schedule="@daily",
        start=datetime(2025, 1, 1, tzinfo=UTC),
        lookback=timedelta(days=7),
        freshness=timedelta(hours=26),
        owners=["team:benchmark"],
    )


registry = Registry(views=[view(number) for number in range({views})])
definitions = build_definitions(registry)
"""

_EMPTY = """\
import dagster as dg

definitions = dg.Definitions()
"""

_COUNT = """
import definitions
keys = [key.path for key in definitions.definitions.resolve_all_asset_keys()]
print(sum(path[0] == "features" for path in keys))
"""


def run(context: Context, tally: Tally) -> None:
    """Measure all cases of the size wanted."""
    views = context.of_size(tiny=2, quick=20, full=200)
    features = views * _FEATURES_A_VIEW
    with tempfile.TemporaryDirectory(prefix="graph-") as temporary:
        ours = _project(Path(temporary) / "ours", _FEATURE_PLATFORM.format(views=views, width=_FEATURES_A_VIEW))
        if (counted := _output(ours, [sys.executable, "-c", _COUNT]).strip()) != str(features):
            message = f"the project should have {features} feature assets, and has {counted}"
            raise BenchmarkError(message)
        subjects = [Subject(REFERENCE, partial(_validate, ours))]
        if context.limits:
            subjects.append(Subject("empty", partial(_validate, _project(Path(temporary) / "empty", _EMPTY))))
        measure(context, tally, f"{features} features", subjects, runs=context.of_size(tiny=1, quick=3, full=5))


def _project(folder: Path, text: str) -> Path:
    (folder / "home").mkdir(parents=True)
    (folder / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    (folder / "definitions.py").write_text(text)
    return folder


def _validate(folder: Path) -> Run:
    started = time.perf_counter()
    said = _output(folder, [sys.executable, "-m", "dagster", "definitions", "validate", "-f", "definitions.py"])
    seconds = time.perf_counter() - started
    if _VALID not in said:
        raise BenchmarkError(said.strip()[-2000:])
    # The answer is that all is valid; what is valid was counted before.
    return Run(seconds=seconds, checksum=_VALID)


def _output(folder: Path, command: list[str]) -> str:
    environment = {**worker_environment(), "DAGSTER_HOME": str(folder / "home")}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError((done.stdout + done.stderr).strip()[-2000:])
    return done.stdout + done.stderr
