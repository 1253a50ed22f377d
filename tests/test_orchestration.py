"""The registry as a Dagster project, run by Dagster in this process; the daemon has a test of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar
from zoneinfo import ZoneInfo

import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy
from dagster_duckdb import DuckDBResource
from dagster_shared.serdes.utils import SerializableTimeDelta
from orchestration_project import (
    DAY,
    START,
    Project,
    activity,
    evaluations,
    key,
    last_play,
    open_project,
    profile,
    titles,
    write_day,
)

from feature_platform import Feature, FeatureStore, FeatureView, Registry, Settings
from feature_platform.errors import RegistryError, WindowError
from feature_platform.offline.due import pending_windows
from feature_platform.offline.inputs import source_files
from feature_platform.online.store import OnlineStore
from feature_platform.orchestration import OnlineStoreResource, build_definitions, feature_key, online_key
from feature_platform.orchestration.automation import tick_cron
from feature_platform.orchestration.partitions import key_of, partitions_def, window_of
from feature_platform.orchestration.resources import connect
from feature_platform.windows import Window, grid_of


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Return a project with five days of plays; its online store is stopped in the end."""
    with open_project(tmp_path, [profile, activity, last_play, titles]) as project:
        yield project


def test_the_example_loads_without_a_warning(tmp_path: Path) -> None:
    """`dagster definitions validate` passes, and with every warning switched on none is about what we use."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-W", "always", "-m", "dagster", "definitions", "validate", "--log-format", "json", "-w", "workspace.yaml"]
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    heard = [line for line in (done.stdout + done.stderr).splitlines() if "Warning:" in line]
    assert [line for line in heard if "definitions_validate_command" not in line] == []


def test_definitions_load_without_a_warning(tmp_path: Path) -> None:
    """Views of every kind load without a beta, preview or deprecation warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dg.Definitions.validate_loadable(build_definitions(Registry([profile, activity, last_play, titles]), Settings(root=tmp_path)))


# ruff: noqa: E501 - the graph shows an asset's facts in one line
GRAPH = """
features/activity/plays_2h
  from sources/plays | group activity | kinds duckdb,parquet | versioned
  partitions 0 * * * * UTC | pool view_activity | blocking check contract | check late_data | check volume
features/last_play/title
  from sources/plays | group last_play | kinds duckdb,parquet | versioned
  partitions 0 0 * * * UTC, open one too | pool view_last_play | blocking check contract | check late_data | check volume
features/profile/last_title
  from sources/plays | group profile | kinds duckdb,parquet | versioned | owner team:a
  warns after 22.5 h, fails after 30.0 h | partitions 0 0 * * * UTC | pool view_profile | blocking check contract | check late_data | check volume
features/profile/plays
  from sources/plays | group profile | kinds duckdb,parquet | versioned | owner team:a
  warns after 22.5 h, fails after 30.0 h | partitions 0 0 * * * UTC | pool view_profile | blocking check contract | check late_data | check volume
features/titles/title
  from sources/plays | group titles | kinds duckdb,parquet | versioned
  pool view_titles | blocking check contract | check late_data | check volume
online/activity
  from features/activity/plays_2h | group activity | kinds redis | versioned
  automated | pool view_activity | check skew
online/last_play
  from features/last_play/title | group last_play | kinds redis | versioned
  automated | pool view_last_play | check skew
online/profile
  from features/profile/last_title, features/profile/plays | group profile | kinds redis | versioned | owner team:a
  warns after 22.5 h, fails after 30.0 h | automated | pool view_profile | check data_age | check skew
online/titles
  from features/titles/title | group titles | kinds redis | versioned
  automated | pool view_titles | check skew
sources/plays
  group sources | kinds parquet
upkeep/compaction
  group upkeep | kinds parquet
"""


def hours(span: SerializableTimeDelta) -> str:
    """Return a span of time in hours."""
    return f"{span.to_timedelta() / timedelta(hours=1)} h"


def drawn(definitions: dg.Definitions) -> str:
    """Return the asset graph as text."""
    graph, lines = definitions.resolve_asset_graph(), []
    for one in sorted(graph.get_all_asset_keys()):
        node = graph.get(one)
        facts = [f"from {', '.join(sorted(parent.to_user_string() for parent in node.parent_keys))}"] if node.parent_keys else []
        facts += [f"group {node.group_name}", f"kinds {','.join(sorted(node.kinds))}"]
        facts += ["versioned"] if node.code_version else []
        facts += [f"owner {owner}" for owner in node.owners]
        runs: list[str] = []
        if isinstance(policy := node.freshness_policy, TimeWindowFreshnessPolicy) and policy.warn_window:
            runs.append(f"warns after {hours(policy.warn_window)}, fails after {hours(policy.fail_window)}")
        if isinstance(node.partitions_def, dg.TimeWindowPartitionsDefinition):
            also = ", open one too" if node.partitions_def.end_offset else ""
            runs.append(f"partitions {node.partitions_def.cron_schedule} {node.partitions_def.timezone}{also}")
        runs += ["automated"] if node.automation_condition else []
        runs += [f"pool {pool}" for pool in sorted(node.pools or ())] if node.is_executable else []
        for check in sorted(node.check_keys, key=lambda check: check.name):
            runs.append(("blocking " if graph.get(check).blocking else "") + f"check {check.name}")
        lines += [one.to_user_string(), *("  " + " | ".join(part) for part in (facts, runs) if part)]
    return "\n" + "\n".join(lines) + "\n"


def test_the_asset_graph_is_the_registry(project: Project) -> None:
    """Keys, lineage, groups, kinds, owners, promises, partitions, pools and checks are these, and no others."""
    assert drawn(project.definitions) == GRAPH


def test_what_dagster_shows_of_a_feature(project: Project) -> None:
    """The SQL, the columns and the table's name are on the asset; tags that Dagster refuses are made valid."""
    spec = next(
        spec
        for assets in project.definitions.assets or ()
        for spec in getattr(assets, "specs", ())
        if spec.key == feature_key(profile, "plays")
    )
    assert "```sql\nselect user_id, count(*) as plays" in spec.metadata["definition"].value
    assert [column.name for column in spec.metadata["dagster/column_schema"].schema.columns] == ["user_id", "event_timestamp", "plays"]
    assert spec.metadata["dagster/table_name"] == "profile.plays"
    assert spec.code_version == profile.definition_hash
    assert {name: spec.tags[name] for name in ("entity", "view_kind", "cost_centre")} == {
        "entity": "user",
        "view_kind": "snapshot",
        "cost_centre": "A_B_C",
    }


def test_the_history_is_compacted_by_an_asset_of_its_own(project: Project) -> None:
    """One run merges the closed days of every view and says what it did."""
    with FeatureStore(project.registry, project.settings) as store:
        store.compute(activity, end=START + 2 * DAY)
        assert len({one.file for one in store.offline.partitions(activity)}) == 48
    result = project.run(dg.AssetKey(["upkeep", "compaction"]))
    assert result.success
    (event,) = result.asset_materializations_for_node("upkeep__compaction")
    shown = {record.data["view"]: record.data for record in event.metadata["views"].value.records}  # type: ignore[union-attr]
    assert list(shown) == list(project.registry.views)
    assert (shown["activity"]["days merged"], shown["activity"]["windows"], shown["activity"]["files now"]) == (2, 48, 2)
    assert len({one.file for one in project.store.partitions(activity)}) == 2


def test_a_range_is_one_computation_with_metadata_per_partition(project: Project) -> None:
    """Five days in one run are one step; each partition of each feature has its own rows, nulls and times."""
    write_day(project.settings.root, START + 2 * DAY, users=["ann", "bob", "cid"])
    result = project.run(feature_key(profile, "plays"), feature_key(profile, "last_title"), first=key(0), last=key(4))
    assert result.success
    assert len([event for event in result.all_events if event.event_type_value == "STEP_START"]) == 1
    rows: dict[str, dict[str, object]] = {}
    for event in result.asset_materializations_for_node("compute_profile"):
        rows.setdefault(event.asset_key.path[-1], {})[str(event.partition)] = event.metadata["dagster/partition_row_count"].value
    assert rows == {name: {key(day): 3 if day == 2 else 2 for day in range(5)} for name in ("plays", "last_title")}
    last = result.asset_materializations_for_node("compute_profile")[-1].metadata
    assert last["nulls"].value == 0
    assert last["kind"].value == "full"
    assert last["max_event_timestamp"].value == (START + 5 * DAY).timestamp()
    assert project.store.partitions(profile)[-1].run_id == result.run_id


def test_a_run_of_one_feature_reports_all_that_it_wrote(project: Project) -> None:
    """The other feature of the file has its materialization and its check, so that the push follows; and it does."""
    project.pushes()
    result = project.run(feature_key(profile, "plays"), first=key(3))
    assert result.success
    other = project.instance.fetch_materializations(feature_key(profile, "last_title"), limit=10).records
    assert [record.partition_key for record in other] == [key(3)]
    made = other[0].asset_materialization
    assert made is not None
    assert made.metadata["dagster/partition_row_count"].value == 2
    assert (made.tags or {})["dagster/code_version"] == profile.definition_hash
    targets = {one.asset_key.path[-1]: one.target_materialization_data for one in evaluations(project, result.run_id, "contract")}
    assert targets.keys() == {"plays", "last_title"}
    assert targets["last_title"] is not None
    assert targets["last_title"].storage_id == other[0].storage_id
    assert project.pushes() == {"profile"}
    assert project.run(online_key(profile)).success
    assert project.pushes() == set()
    with FeatureStore(project.registry, project.settings) as store:
        assert store.get_online_features(["profile:plays"], [{"user_id": "ann"}]).to_dict()["plays"] == [24]


def test_a_push_follows_every_write_whatever_its_place_in_history(project: Project) -> None:
    """With most of history missing, the first write is pushed; an older day's recomputation later is, too; and nothing without a write."""
    assert project.pushes() == set()
    for day in (4, 1):
        assert project.run(feature_key(profile, "plays"), first=key(day)).success
        assert project.pushes() == {"profile"}
        assert project.run(online_key(profile)).success
        assert project.pushes() == set()


def test_a_write_between_push_and_look_is_not_lost(project: Project) -> None:
    """The push of what was there before it does not count for what was written after it."""
    project.pushes()
    for assets in ([feature_key(profile, "plays")], [online_key(profile)], [feature_key(profile, "plays")]):
        assert project.run(*assets, first=None if assets == [online_key(profile)] else key(0)).success
    assert project.pushes() == {"profile"}


class LookingStoreResource(OnlineStoreResource):
    """The online store; while it is open for a push, automation has a look."""

    look: ClassVar[Callable[[], None]]

    @contextlib.contextmanager
    def open(self) -> Iterator[OnlineStore]:
        """Hand out the store after a look."""
        type(self).look()
        with super().open() as store:
            yield store


def test_a_write_seen_while_a_push_fails_is_pushed_minutes_later(project: Project) -> None:
    """A write is not pushed beside a push under way, nor again and again when that one fails; a little later it is."""
    project.pushes()
    seen_meanwhile: list[set[str]] = []

    def look() -> None:
        assert project.run(feature_key(profile, "plays"), first=key(1)).success
        seen_meanwhile.append(project.pushes())
        message = "a user's error fails at once"
        raise WindowError(message)

    assert project.run(feature_key(profile, "plays"), first=key(0)).success
    assert project.pushes() == {"profile"}
    resource = type("Resource", (LookingStoreResource,), {"look": staticmethod(look), "settings": project.settings})()
    defs = build_definitions(project.registry, project.settings, resources={"online_store": resource})
    job = defs.resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=project.instance, asset_selection=[online_key(profile)], raise_on_error=False)
    assert seen_meanwhile == [set()]
    assert project.pushes(datetime.now(UTC)) == set()
    assert project.pushes(datetime.now(UTC) + timedelta(minutes=11)) == {"profile"}


def test_a_view_without_a_schedule_is_one_table(project: Project) -> None:
    """It is computed as one, not partitioned, and pushed."""
    project.pushes()
    result = project.run(feature_key(titles, "title"))
    assert result.success
    assert result.asset_materializations_for_node("compute_titles")[0].metadata["dagster/row_count"].value == 240
    assert project.pushes() == {"titles"}


def refused_on_day_two(plays: duckdb.DuckDBPyRelation, start: datetime) -> duckdb.DuckDBPyRelation:
    """Return two rows a key on the second day, which a snapshot may not."""
    rows = plays.aggregate("user_id, count(*)::bigint as plays", "user_id")
    return rows.union(rows) if start == START + DAY else rows


def test_a_window_that_breaks_the_contract_is_not_pushed(project: Project) -> None:
    """The run fails at once, with the reason; the check says it too; the push of the same run does not happen."""
    broken = replace(profile, query=refused_on_day_two, features=[Feature("plays", int)])
    project.registry = Registry([broken])
    project.pushes()
    result = project.run(feature_key(broken, "plays"), first=key(1))
    assert not result.success
    assert [event.event_type_value for event in result.all_events].count("STEP_UP_FOR_RETRY") == 0
    assert "a snapshot has one row a key" in str(result.failure_data_for_node("compute_profile"))
    (evaluation,) = evaluations(project, result.run_id, "contract")
    assert not evaluation.passed
    assert "a snapshot has one row a key" in str(evaluation.metadata["problems"].value)
    assert project.store.partitions(broken) == []
    assert project.pushes() == set()


def test_a_bad_window_does_not_hold_up_the_good_ones(project: Project) -> None:
    """In a range the others are written, reported and pushed; the run fails and names the bad one, which stays due."""
    broken = replace(profile, query=refused_on_day_two, features=[Feature("plays", int), Feature("more", int)][:1])
    project.registry = Registry([broken])
    project.pushes()
    result = project.run(feature_key(broken, "plays"), first=key(0), last=key(2))
    assert not result.success
    assert "1 of 3 windows were not promoted" in str(result.failure_data_for_node("compute_profile"))
    assert project.instance.get_materialized_partitions(feature_key(broken, "plays")) == {key(0), key(2)}
    assert project.pushes() == {"profile"}
    asked = project.tick(broken, START + 3 * DAY)
    assert [request.partition_key for request in asked] == [key(1)]


def vandal(plays: duckdb.DuckDBPyRelation, start: datetime) -> duckdb.DuckDBPyRelation:
    """Return the plays, and on the second day take a row out of the file of the first, as a broken disk might."""
    path = Path(VANDALISED.read_text()) if start == START + DAY else None
    if path is not None:
        table = pq.read_table(path)
        pq.write_table(table.slice(1), path)
    return plays.aggregate("user_id, count(*)::bigint as plays", "user_id")


VANDALISED = Path("set by the test")


def test_a_file_that_is_not_what_was_written_blocks_the_push(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read back: the blocking check fails, the push in the same run is skipped, and none is asked for."""
    broken = replace(profile, query=vandal, features=[Feature("plays", int)])
    note = project.settings.root / "path"
    note.write_text(str(project.store.path(broken, window_of(broken, key(0)))))
    monkeypatch.setitem(globals(), "VANDALISED", note)
    project.registry = Registry([broken])
    project.pushes()
    result = project.run(feature_key(broken, "plays"), first=key(0), last=key(1))
    assert not result.success
    (evaluation,) = evaluations(project, result.run_id, "contract")
    assert not evaluation.passed
    assert "holds 1 rows, its footer says 2" in str(evaluation.metadata["problems"].value)
    assert project.pushes() == set()


def test_old_data_is_told_and_blocks_nothing(project: Project) -> None:
    """The newest play is from January: the freshness of the job is fine, the age of the data is not."""
    assert project.run(feature_key(profile, "plays"), first=key(4)).success
    result = project.run(online_key(profile))
    assert result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.passed, evaluation.severity) == ("data_age", False, dg.AssetCheckSeverity.ERROR)
    metadata = result.asset_materializations_for_node("online__profile")[0].metadata
    assert [metadata[f"rows_{what}"].value for what in ("read", "written", "removed", "skipped")] == [2, 2, 0, 0]
    assert metadata["as_of"].value == (START + 5 * DAY).timestamp()
    assert isinstance(age := metadata["data_age_seconds"].value, float)
    assert age > timedelta(days=200).total_seconds()


@pytest.mark.slow
def test_a_server_that_is_gone_is_tried_again(project: Project) -> None:
    """A push to a server that does not answer is up for a retry: it may come back."""
    project.run(feature_key(titles, "title"))
    defs = build_definitions(
        project.registry, project.settings, resources={"online_store": OnlineStoreResource(url="redis://127.0.0.1:1/0")}
    )
    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=project.instance, asset_selection=[online_key(titles)], raise_on_error=False)
    assert not result.success
    assert "STEP_UP_FOR_RETRY" in [event.event_type_value for event in result.all_events]


def test_a_missed_tick_is_made_up_for(project: Project) -> None:
    """After three ticks that nobody heard, the next asks for all their days in one run; then nothing is due."""
    (first,) = project.tick(profile, START + DAY)
    assert first.partition_key == key(0)
    project.execute(profile, first)
    (missed,) = project.tick(profile, START + 5 * DAY)
    assert missed.tags["dagster/asset_partition_range_start"] == key(1)
    assert missed.tags["dagster/asset_partition_range_end"] == key(4)
    assert missed.run_key == f"profile:{key(1)}..{key(4)}@2026-01-06T0000Z"
    project.execute(profile, missed)
    assert project.instance.get_materialized_partitions(feature_key(profile, "plays")) == {key(day) for day in range(5)}
    assert project.skip(profile, START + 5 * DAY) == "profile: every closed window is computed."


def test_a_gap_is_asked_for_on_its_own(project: Project) -> None:
    """Two stretches without a gap are two runs."""
    assert project.run(feature_key(profile, "plays"), first=key(2)).success
    asked = project.tick(profile, START + 5 * DAY)
    assert [request.run_key for request in asked] == [
        f"profile:{key(0)}..{key(1)}@2026-01-06T0000Z",
        f"profile:{key(3)}..{key(4)}@2026-01-06T0000Z",
    ]


def test_a_delay_holds_the_tick_back(project: Project) -> None:
    """A window is not asked for before its delay has passed."""
    late = replace(profile, delay=timedelta(hours=2))
    project.registry = Registry([late])
    assert project.skip(late, START + DAY + timedelta(hours=1)) == "profile: every closed window is computed."
    (asked,) = project.tick(late, START + DAY + timedelta(hours=2))
    assert asked.partition_key == key(0)


def test_what_is_under_way_is_left_alone(project: Project) -> None:
    """A run of some days, whoever started it, is not asked for again; the other days are."""
    job = project.definitions.resolve_job_def("profile_refresh")
    tags = {"dagster/asset_partition_range_start": key(0), "dagster/asset_partition_range_end": key(1)}
    project.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    (asked,) = project.tick(profile, START + 3 * DAY)
    assert asked.partition_key == key(2)
    assert "under way" in project.skip(profile, START + 2 * DAY)


def test_a_file_whose_run_died_unreported_is_due_again(project: Project) -> None:
    """A run killed between the file and its report leaves a window that Dagster does not know: the next tick asks for it."""
    assert project.run(feature_key(profile, "plays"), first=key(0)).success
    project.instance.wipe_assets([feature_key(profile, "plays")])
    (asked,) = project.tick(profile, START + DAY)
    assert asked.partition_key == key(0)


def test_what_the_command_line_computed_is_not_computed_again(project: Project) -> None:
    """Files that name no run are taken as they are."""
    with FeatureStore(project.registry, project.settings) as store:
        store.compute("profile", now=START + 2 * DAY)
    assert project.skip(profile, START + 2 * DAY) == "profile: every closed window is computed."


def test_a_changed_schedule_needs_no_other_edit(project: Project) -> None:
    """The registry's new cron is the schedule's, the partitions', and what a tick asks for."""
    faster = replace(profile, schedule="*/15 * * * *")
    project.registry = Registry([faster])
    definitions = project.definitions
    assert definitions.resolve_schedule_def("profile_schedule").cron_schedule == "*/15 * * * *"
    (asked,) = project.tick(faster, START + timedelta(minutes=45))
    assert asked.tags["dagster/asset_partition_range_end"] == "2026-01-01T0030Z"
    project.execute(faster, asked)
    assert len(project.store.partitions(faster)) == 3


def test_schedules_and_sensors_of_sources_are_off_until_a_setting_says_so(project: Project) -> None:
    """A laptop that loads a project computes nothing by itself; what was computed is pushed all the same."""
    quiet, busy = project.definitions, build_definitions(project.registry, replace(project.settings, run_schedules=True))
    for definitions, expected in ((quiet, "STOPPED"), (busy, "RUNNING")):
        assert {
            schedule.default_status.value for schedule in definitions.schedules or () if isinstance(schedule, dg.ScheduleDefinition)
        } == {expected}
        sensors = {sensor.name: sensor.default_status.value for sensor in definitions.sensors or ()}
        following = dict.fromkeys(["last_play_on_update", "titles_on_update", "late_data"], expected)
        assert sensors == following | {"online_automation": "RUNNING", "freshness": "RUNNING"}


@pytest.mark.parametrize(
    ("schedule", "delay", "timezone", "cron"),
    [
        ("@hourly", 0, "UTC", "0 * * * *"),
        ("@hourly", 10, "UTC", "10 * * * *"),
        ("@hourly", 90, "Europe/Berlin", "30 * * * *"),
        ("@daily", 90, "UTC", "30 1 * * *"),
        ("30 23 * * *", 60, "UTC", "30 0 * * *"),
        ("@daily", 90, "Europe/Berlin", "*/5 * * * *"),
        ("*/15 * * * *", 5, "UTC", "*/5 * * * *"),
        ("@weekly", 60, "UTC", "*/5 * * * *"),
    ],
)
def test_a_tick_comes_when_its_window_can_be_computed(schedule: str, delay: int, timezone: str, cron: str) -> None:
    """The cron is moved by the delay; where that cannot be written as one cron, it looks every few minutes."""
    assert tick_cron(replace(profile, schedule=schedule, delay=timedelta(minutes=delay), timezone=timezone)) == cron


@pytest.mark.parametrize(
    "timezone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Santiago"]
)
@pytest.mark.parametrize("cron", ["0 0 * * *", "30 2 * * *", "30 1 * * *", "0 3 * * 1", "*/30 * * * *"])
def test_dagsters_partitions_are_our_windows(cron: str, timezone: str) -> None:
    """Over two clock changes every partition is the window that starts with it, under a key of its own, and back."""
    start = datetime(2026, 1, 1, tzinfo=ZoneInfo(timezone))
    view = replace(profile, schedule=cron, timezone=timezone, start=start)
    definition, grid, until = partitions_def(view), grid_of(view), start + 330 * DAY
    assert definition is not None
    assert grid is not None
    windows = grid.within(None, until.astimezone(UTC))
    with dg.partition_loading_context(effective_dt=until):
        keys = definition.get_partition_keys()
    spans = [definition.time_window_for_partition_key(one) for one in keys]
    assert [Window(span.start.astimezone(UTC), span.end.astimezone(UTC)) for span in spans] == windows
    assert [window_of(view, one) for one in keys] == windows
    assert [key_of(view, window) for window in windows] == list(keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("cron", "timezone"), [("0 * * * *", "Australia/Lord_Howe"), ("0 */6 * * *", "Africa/Cairo")])
def test_a_zone_that_dagster_cuts_differently_is_refused(cron: str, timezone: str) -> None:
    """Half-hour shifts and shifts at midnight: refused while loading, and not in the one run a year that meets them."""
    with pytest.raises(RegistryError, match="Dagster cuts time differently"):
        partitions_def(replace(profile, schedule=cron, timezone=timezone))


def test_an_open_day_is_a_partition_of_a_view_that_follows_its_data() -> None:
    """Its last partition is today's."""
    definition = partitions_def(last_play)
    assert definition is not None
    with dg.partition_loading_context(effective_dt=START + 2 * DAY + timedelta(hours=5)):
        assert definition.get_last_partition_key() == key(2)


def test_a_connection_is_closed_when_its_step_fails() -> None:
    """The resource leaves it open; we do not."""
    kept: list[duckdb.DuckDBPyConnection] = []

    def fail() -> None:
        with connect(DuckDBResource(database=":memory:")) as connection:
            kept.append(connection)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(duckdb.ConnectionException):
        kept[0].execute("select 1")


def due(project: Project, view: FeatureView, now: datetime) -> list[str]:
    """Return the keys of the windows that a view's sensor would ask for."""
    files = source_files(view, project.settings.root, project.store.source_footers)
    return [key_of(view, window) for window in pending_windows(view, project.store, files, now).due]


def test_changed_files_ask_for_their_own_days(project: Project) -> None:
    """First all days without a file; then none; then the day of a file that changed, that moved in, or that is gone."""
    at = START + 4 * DAY + timedelta(hours=1)
    assert due(project, last_play, at) == [key(day) for day in range(5)]
    with FeatureStore(project.registry, project.settings) as store:
        store.compute("last_play", now=at)
    assert due(project, last_play, at) == []
    write_day(project.settings.root, START + 2 * DAY, title="solaris")
    assert due(project, last_play, at) == [key(2)]
    (project.settings.root / "data" / "plays" / "2026-01-02.parquet").unlink()
    moved = write_day(project.settings.root, START + 6 * DAY)
    assert due(project, last_play, at) == [key(1), key(2)]
    assert due(project, last_play, START + 6 * DAY) == [key(1), key(2), key(5), key(6)]
    moved.rename(moved.with_name("moved.parquet"))
    assert due(project, last_play, at) == [key(1), key(2)]


def test_a_table_without_a_schedule_follows_its_files(project: Project) -> None:
    """It is due when it was never computed, then when a file changes."""
    assert due(project, titles, datetime.now(UTC)) == ["all"]
    assert project.run(feature_key(titles, "title")).success
    assert due(project, titles, datetime.now(UTC)) == []
    write_day(project.settings.root, START + 9 * DAY)
    assert due(project, titles, datetime.now(UTC)) == ["all"]


def test_a_sensor_asks_for_what_changed_and_remembers_it(project: Project) -> None:
    """It asks once for the closed days, and after their run for nothing more; a half-written file, and a day without data, is passed over."""
    view = replace(last_play, start=datetime.now(UTC) - 2 * DAY)
    project.registry = Registry([view])
    (project.settings.root / "data" / "plays" / "torn.parquet").write_bytes(b"PAR1")
    sensor, cursor = project.definitions.resolve_sensor_def("last_play_on_update"), None
    answers: list[dg.SensorExecutionData] = []
    for _ in range(3):
        repository = project.definitions.get_repository_def()
        with dg.build_sensor_context(instance=project.instance, repository_def=repository, cursor=cursor) as context:
            answers.append(found := sensor.evaluate_tick(context))
        cursor = found.cursor
        if len(answers) == 1:
            (project.settings.root / "data" / "plays" / "torn.parquet").unlink()
            (asked,) = found.run_requests or ()
            project.execute(view, asked)
    assert len(project.store.partitions(view)) == 2
    assert [len(found.run_requests or ()) for found in answers] == [1, 0, 0]
    assert answers[-1].skip_message == "last_play: every closed window is computed."
