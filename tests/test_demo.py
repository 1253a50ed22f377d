"""`fp demo` at a small size: what it promises, twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

pytestmark = pytest.mark.slow

SIZE = ["--users", "200", "--events", "5000"]


def fp(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEATURE_PLATFORM_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-m", "feature_platform.cli", *arguments],
        cwd=folder,
        env={**kept, "COLUMNS": "200", "FEATURE_PLATFORM_READ_DEADLINE_MS": "5000"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_demo(folder: Path) -> dict[str, Any]:
    """Return the demo's document."""
    document: dict[str, Any] = json.loads(fp(folder, "demo", *SIZE, "--json").stdout)
    return document


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the demo twice in a new project; once more, where the hour (and with it the sample) changed between the two."""
    folder = tmp_path_factory.mktemp("demo") / "shop"
    fp(folder.parent, "init", "shop")
    first, second = run_demo(folder), run_demo(folder)
    if first["sample"] != second["sample"]:
        first, second = second, run_demo(folder)
    yield folder, first, second
    fp(folder, "down")


def test_the_demo_gives_the_promised_answers(demos: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """The pinned users answer as the example says, online and over HTTP; an unknown one has defaults, and says so."""
    _, document, _ = demos
    values = {row["user_id"]: [found["value"] for found in row["features"].values()] for row in document["online"]}
    assert values == {"8a2f": ["power_user", 47, "documentary"], "b13c": ["casual", 5, "thriller"], "nobody": ["new", 0, None]}
    statuses = {row["user_id"]: {found["status"] for found in row["features"].values()} for row in document["online"]}
    assert statuses == {"8a2f": {"PRESENT"}, "b13c": {"PRESENT"}, "nobody": {"NOT_FOUND"}}
    assert document["http"]["request"] == {"user_id": "8a2f", "features": ["user_segment", "watch_count_30d", "last_genre"]}
    assert document["http"]["response"]["features"] == {"user_segment": "power_user", "watch_count_30d": 47, "last_genre": "documentary"}
    assert all(word in document["prompt"] for word in ("8a2f", "power_user", "47", "documentary"))


def test_the_naive_joins_leak_and_ours_does_not(demos: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """One row of the training frame shows what two naive joins would have told the model of a late event."""
    _, document, _ = demos
    leak = document["training_frame"][-1]
    assert (leak["user_id"], leak["last_genre"]) == ("b13c", "drama")
    assert (leak["naive_by_event_time"], leak["naive_newest"]) == ("horror", "thriller")
    newest = [row for row in document["training_frame"] if row["event_timestamp"] == document["sample"]["end"]]
    assert [(row["user_segment"], row["watch_count_30d"], row["last_genre"]) for row in newest] == [
        ("power_user", 47, "documentary"),
        ("casual", 5, "thriller"),
    ]


def test_the_demo_twice_is_the_demo_once(demos: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """The second demo repeats the answers of the first, to the letter."""
    _, first, second = demos
    for part in ("sample", "views", "training_frame", "online", "http", "prompt", "files"):
        assert first[part] == second[part], part
    assert [run["assets"] for run in first["runs"]] == [run["assets"] for run in second["runs"]]


def test_the_runs_are_in_the_projects_own_dagster(demos: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """The runs are recorded where `fp up` looks: one for each view's range of partitions, one for each push."""
    folder, first, second = demos
    instance = dg.DagsterInstance.from_config(str(folder / ".dagster"))
    try:
        recorded = {run.run_id: run for run in instance.get_runs()}
    finally:
        instance.dispose()
    assert {run["run_id"] for run in [*first["runs"], *second["runs"]]} <= set(recorded)
    assert {run.status for run in recorded.values()} == {dg.DagsterRunStatus.SUCCESS}
    sizes = {run["assets"][0]: len(files(folder, run["assets"][0].split("/")[1])) for run in first["runs"][:3]}
    assert sizes["features/user_profile/user_segment"] == 2
    assert sizes["features/user_activity/watch_count_30d"] == 48
    assert sizes["features/user_last_watch/last_genre"] > 40


def files(folder: Path, view: str) -> list[Path]:
    """Return the partition files of a view."""
    return list((folder / "data" / "features" / view).glob("*.parquet"))


def test_the_demo_tells_people_what_it_does(demos: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """Its steps are numbered, name the files, and a new sample takes the partitions of the old one with it."""
    folder, _, _ = demos
    shown = fp(folder, "demo", *SIZE, "--seed", "8").stdout
    steps = ["1. Sample data", "2. Features", "3. Dagster runs", "4. Training frame", "5. Online read", "6. HTTP", "7. Prompt", "8. Files"]
    assert all(step in shown for step in steps)
    assert "partitions of an earlier sample are removed" in shown
    assert str(folder) in shown
    assert "data/features" in shown
