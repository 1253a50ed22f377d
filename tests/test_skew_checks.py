"""The check of online assets, run by Dagster in this process against a real online store."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.automation_tick_evaluation_context import build_run_requests

from feature_platform import Entity, Feature, FeatureStore, FeatureView, ParquetSource, Registry, Settings
from feature_platform.online.codec import ViewCodec
from feature_platform.online.embedded import stop_server
from feature_platform.orchestration import build_definitions, online_key
from feature_platform.orchestration.skew_checks import SKEW

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
user = Entity("user", join_keys={"user_id": str})
profile = FeatureView(
    "profile",
    entity=user,
    sources=[ParquetSource("plays", "data/plays.parquet", timestamp="played_at")],
    query="select user_id, count(*) as plays, max(title) as last_title from plays group by user_id",
    features=[Feature("plays", int), Feature("last_title", str)],
    schedule="@daily",
    start=START,
)
CHECK = dg.AssetCheckKey(online_key(profile), SKEW)


@dataclass
class Project:
    """One view's definitions with its check, on an instance of their own."""

    settings: Settings
    instance: dg.DagsterInstance
    definitions: dg.Definitions
    cursor: dg.AssetDaemonCursor | None = None

    def write(self, *users: str) -> None:
        """Write a play of each user on the first two days."""
        times = [START + day * DAY for day in range(2) for _ in users]
        columns = {"user_id": [*users] * 2, "played_at": pa.array(times, pa.timestamp("us", tz="UTC")), "title": ["dune"] * len(times)}
        pq.write_table(pa.table(columns), self.settings.root / "data" / "plays.parquet")

    def push(self, days: int) -> None:
        """Compute the first days and push them."""
        with FeatureStore(Registry([profile]), self.settings) as store:
            store.compute(start=START, end=START + days * DAY)
        assert self.run(dg.AssetSelection.assets(online_key(profile)).without_checks()).success

    def run(self, selection: dg.AssetSelection) -> dg.ExecuteInProcessResult:
        """Run a selection."""
        job = dg.define_asset_job("chosen", selection=selection)
        defs = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        return defs.resolve_job_def("chosen").execute_in_process(instance=self.instance, raise_on_error=False)

    def check(self) -> dg.AssetCheckEvaluation | None:
        """Run the check alone; return its verdict."""
        result = self.run(dg.AssetSelection.checks(CHECK))
        assert result.success
        found = result.get_asset_check_evaluations()
        return found[0] if found else None

    def put(self, user_id: str, **features: object) -> None:
        """Write a value online that no push wrote."""
        with FeatureStore(Registry([profile]), self.settings) as store:
            columns: dict[str, Any] = {"user_id": [user_id], "event_timestamp": pa.array([START + DAY], pa.timestamp("us", tz="UTC"))}
            rows = pa.table(columns | {name: [value] for name, value in features.items()})
            store.online.put_many(ViewCodec(self.settings.project, profile).encode_rows(rows, store.offline.generation(profile)))

    def asked(self, at: datetime) -> set[str]:
        """Return what automation would run at a time, by name; remembers what it saw."""
        found = dg.evaluate_automation_conditions(
            self.definitions,
            instance=self.instance,
            cursor=self.cursor,
            asset_selection=dg.AssetSelection.key_prefixes("online"),
            evaluation_time=at,
        )
        self.cursor = found.cursor
        keys = [result.key for result in found.results if result.true_subset.size]
        return {key.name if isinstance(key, dg.AssetCheckKey) else "push" for key in keys}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Return a project with two days of plays; its online store is stopped in the end."""
    settings = Settings(root=tmp_path, read_deadline_ms=5000)
    (tmp_path / "data").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        definitions = build_definitions(Registry([profile]), settings)
        dg.Definitions.validate_loadable(definitions)
    with dg.instance_for_test() as instance:
        found = Project(settings, instance, definitions)
        found.write("ann", "bob")
        yield found
    stop_server(settings.online_root)


def test_a_view_that_was_pushed_is_green(project: Project) -> None:
    """The verdict says how many keys were compared, at which moment, and of each feature that none differs; it blocks nothing."""
    before = datetime.now(UTC)
    project.push(1)
    verdict = project.check()
    assert verdict is not None
    assert (verdict.passed, verdict.blocking) == (True, False)
    shown: dict[str, Any] = {name: value.value for name, value in verdict.metadata.items()}
    assert {name: shown[name] for name in shown if name != "watermark"} == {
        "keys_compared": 2,
        "keys_left_out": 0,
        "mismatches/plays": 0,
        "mismatches/last_title": 0,
    }
    assert before.timestamp() <= shown["watermark"] <= datetime.now(UTC).timestamp()


def test_a_corrupted_value_is_red_until_the_view_is_rebuilt(project: Project) -> None:
    """The verdict names the feature and shows both answers, whatever stands in them; a rebuild of the view mends it."""
    project.push(1)
    project.put("bob", plays=1, last_title="a|b`c\nd")
    verdict = project.check()
    assert verdict is not None
    assert (verdict.passed, verdict.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "history says: last_title." in str(verdict.description)
    assert {name: verdict.metadata[f"mismatches/{name}"].value for name in ("plays", "last_title")} == {"plays": 0, "last_title": 1}
    table = verdict.metadata["examples"].value
    assert str(table).splitlines()[2:] == [r'| user_id=`"bob"` | last_title | `"a\|b' + "'" + r'c\nd"` PRESENT | `"dune"` PRESENT |']
    with FeatureStore(Registry([profile]), project.settings) as store:
        store.rebuild_online("profile")
    verdict = project.check()
    assert verdict is not None
    assert verdict.passed


def test_an_orphan_is_red(project: Project) -> None:
    """A key that is served and that the history does not have counts against every feature that it has."""
    project.push(1)
    project.put("nobody", plays=9, last_title=None)
    verdict = project.check()
    assert verdict is not None
    assert (verdict.passed, verdict.metadata["keys_compared"].value) == (False, 3)


def test_what_is_written_and_not_pushed_gives_no_alarm(project: Project) -> None:
    """Before the first push, and after a partition was written again, there is no verdict at all; after a newer one there is."""
    assert project.check() is None
    project.push(2)
    project.write("ann", "cid")
    with FeatureStore(Registry([profile]), project.settings) as store:
        store.compute(start=START, end=START + DAY)  # decides nothing: the second day's snapshot is whole
        verdict = project.check()
        assert verdict is not None
        assert verdict.passed
        store.compute(start=START + DAY, end=START + 2 * DAY)
        assert project.check() is None
        store.compute(start=START + 2 * DAY, end=START + 3 * DAY)
        assert project.check() is None
    project.push(2)
    verdict = project.check()
    assert verdict is not None
    assert verdict.passed


def test_it_runs_by_itself_once_an_hour_after_a_push(project: Project) -> None:
    """Not without a push, not with it, and not twice in an hour."""
    hour = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) + 60 * MINUTE
    assert project.asked(hour - MINUTE) == set()
    assert project.asked(hour + MINUTE) == set()
    project.push(1)
    assert project.asked(hour + 2 * MINUTE) == {SKEW}
    assert project.check() is not None
    assert project.asked(hour + 3 * MINUTE) == set()
    assert project.asked(hour + 61 * MINUTE) == set()
    project.push(1)
    assert project.asked(hour + 62 * MINUTE) == {SKEW}
    assert project.check() is not None
    assert project.asked(hour + 63 * MINUTE) == set()
    project.push(1)
    assert project.asked(hour + 64 * MINUTE) == set()
    assert project.asked(hour + 119 * MINUTE) == set()
    assert project.asked(hour + 121 * MINUTE) == {SKEW}


def test_a_push_that_automation_asks_for_does_not_bring_the_check(project: Project) -> None:
    """A push every few minutes does not read the history each time: a check with a condition of its own runs when that says so."""
    push = AssetGraphView.for_test(project.definitions, project.instance).get_full_subset(key=online_key(profile))
    graph = project.definitions.resolve_asset_graph()
    (request,) = build_run_requests([push], graph, run_tags={}, emit_backfills=False)
    assert list(request.asset_selection or ()) == [online_key(profile)]
    assert CHECK not in (request.asset_check_keys or ())
