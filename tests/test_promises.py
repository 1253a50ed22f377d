"""What a run, a sensor and the API say of data: expectations that break, files that come late, promises that are not kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from orchestration_project import DAY, START, Project, evaluations, key, open_project, plays, profile, user, write_day

from feature_platform import Aggregate, Feature, FeatureStore, FeatureView, Registry, Settings, between
from feature_platform.api import schemas
from feature_platform.model import Freshness
from feature_platform.online.meta import ViewMeta
from feature_platform.orchestration import feature_key, online_key

HOUR = timedelta(hours=1)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Return a project with five days of plays; its online store is stopped in the end."""
    with open_project(tmp_path, [profile]) as project:
        yield project


def look(project: Project, sensor: str, cursor: str | None = None) -> dg.SensorExecutionData:
    """Evaluate a sensor, and let the instance keep its events as the daemon would."""
    defs = project.definitions
    resources = {"online_store": (defs.resources or {})["online_store"]}
    repository = defs.get_repository_def()
    with dg.build_sensor_context(project.instance, cursor, repository_def=repository, resources=resources) as context:
        found = defs.resolve_sensor_def(sensor).evaluate_tick(context)
    for event in found.asset_events:
        project.instance.report_runless_asset_event(event)
    return found


def said(found: dg.SensorExecutionData, check: str) -> dict[str, tuple[bool, str]]:
    """Return what a sensor said of the checks of one name: passed and severity, by the asset's last name."""
    events = [event for event in found.asset_events if isinstance(event, dg.AssetCheckEvaluation) and event.check_name == check]
    return {event.asset_key.path[-1]: (event.passed, event.severity.value) for event in events}


expecting = replace(profile, features=[Feature("plays", int, expect=[between(1, 24)]), Feature("last_title", str)])


def online(project: Project, *features: str) -> dict[str, Any]:
    """Return what ann's values are online."""
    with FeatureStore(project.registry, project.settings) as store:
        found = store.get_online_features(list(features), [{"user_id": "ann"}]).to_dict()
    return {name: values[0] for name, values in found.items() if name != "user_id"}


def test_a_partition_that_breaks_an_expectation_is_not_promoted(project: Project) -> None:
    """The run fails, the check of that expectation shows counts and rows, and the values of before keep serving."""
    project.registry = Registry([expecting])
    project.pushes()
    assert project.run(feature_key(profile, "plays"), feature_key(profile, "last_title"), first=key(0)).success
    assert project.pushes() == {"profile"}
    assert project.run(online_key(profile)).success
    write_day(project.settings.root, START + DAY, users=["ann", "ann", "bob"], title="zulu")
    result = project.run(feature_key(profile, "plays"), feature_key(profile, "last_title"), first=key(1))
    assert not result.success
    assert [event.event_type_value for event in result.all_events].count("STEP_UP_FOR_RETRY") == 0
    assert "plays: between(1, 24) fails for 1 of 2 rows, such as user_id='ann'" in str(result.failure_data_for_node("compute_profile"))
    (evaluation,) = evaluations(project, result.run_id, "between")
    assert (evaluation.passed, evaluation.blocking, evaluation.asset_key) == (False, True, feature_key(profile, "plays"))
    shown = {name: value.value for name, value in evaluation.metadata.items()}
    assert (shown["failed_rows"], shown["rows"], shown["rejected_windows"]) == (1, 2, 1)
    assert "| ann |" in str(shown["sample_rows"])
    assert "| 48 |" in str(shown["sample_rows"])
    assert project.instance.get_materialized_partitions(feature_key(profile, "plays")) == {key(0)}
    assert project.pushes() == set()
    assert online(project, "profile:plays", "profile:last_title") == {"plays": 24, "last_title": "dune"}


def test_a_rejected_day_does_not_hold_up_the_good_ones(project: Project) -> None:
    """In a range the others are promoted and pushed; the rejected one waits, and is tried again once its files change."""
    project.registry = Registry([expecting])
    project.pushes()
    write_day(project.settings.root, START + DAY, users=["ann", "ann", "bob"])
    keys = [feature_key(profile, "plays"), feature_key(profile, "last_title")]
    result = project.run(*keys, first=key(0), last=key(2))
    assert not result.success
    assert [one.passed for one in evaluations(project, result.run_id, "between")] == [False, True]
    assert project.instance.get_materialized_partitions(keys[0]) == {key(0), key(2)}
    assert project.pushes() == {"profile"}
    assert "every closed window is computed" in project.skip(expecting, START + 3 * DAY)
    write_day(project.settings.root, START + DAY)
    (asked,) = project.tick(expecting, START + 3 * DAY)
    assert asked.partition_key == key(1)
    project.execute(expecting, asked)
    assert project.instance.get_materialized_partitions(keys[0]) == {key(0), key(1), key(2)}


def test_a_jump_in_rows_or_nulls_warns(project: Project) -> None:
    """A day with three times the users, or one whose titles are missing, is promoted with a warning that says what is unusual."""
    keys = [feature_key(profile, "plays"), feature_key(profile, "last_title")]
    first = project.run(*keys, first=key(0), last=key(3))
    assert {one.passed for one in evaluations(project, first.run_id, "volume")} == {True}
    write_day(project.settings.root, START + 4 * DAY, users=[f"user{index}" for index in range(7)])
    result = project.run(*keys, first=key(4))
    assert result.success
    warned = {one.asset_key.path[-1]: one for one in evaluations(project, result.run_id, "volume")}
    assert {name: (one.passed, one.severity) for name, one in warned.items()} == dict.fromkeys(
        ["plays", "last_title"], (False, dg.AssetCheckSeverity.WARN)
    )
    assert "7 rows, where the 4 before have 2 to 2" in str(warned["plays"].metadata["unusual"].value)
    write_day(project.settings.root, START + 4 * DAY, title=None)
    result = project.run(*keys, first=key(4))
    warned = {one.asset_key.path[-1]: one for one in evaluations(project, result.run_id, "volume")}
    assert warned["plays"].passed
    assert "100.0% NULL, where the 4 before have at most 0.0%" in str(warned["last_title"].metadata["unusual"].value)


followed = replace(profile, late_data_horizon=timedelta(days=36_000))


def test_a_late_file_is_observed_and_its_days_run_again_as_one_range(project: Project) -> None:
    """The source is observed, the day is asked for in one run, its feature says so until it has run; then nobody asks again."""
    reach = replace(followed, lookback=2 * DAY)
    project.registry = Registry([reach])
    keys = [feature_key(reach, "plays"), feature_key(reach, "last_title")]
    assert project.run(*keys, first=key(0), last=key(4)).success
    quiet = look(project, "late_data")
    assert [event.asset_key.path for event in quiet.asset_events] == [["sources", "plays"]]
    assert quiet.asset_events[0].metadata["files"].value == 5
    assert not quiet.run_requests
    write_day(project.settings.root, START + 9 * DAY)  # of no computed window
    assert not look(project, "late_data", quiet.cursor).run_requests
    write_day(project.settings.root, START + DAY, users=["ann", "bob", "cid"])
    found = look(project, "late_data", quiet.cursor)
    (asked,) = list(found.run_requests or [])
    assert (asked.job_name, asked.tags["dagster/asset_partition_range_start"]) == ("profile_refresh", key(1))
    assert asked.tags["dagster/asset_partition_range_end"] == key(2)
    assert said(found, "late_data") == dict.fromkeys(["plays", "last_title"], (False, "WARN"))
    project.execute(reach, asked)
    settled = look(project, "late_data", found.cursor)
    assert not settled.run_requests
    assert said(settled, "late_data") == dict.fromkeys(["plays", "last_title"], (True, "WARN"))
    assert look(project, "late_data", settled.cursor).skip_message == "No file changed under a computed window."


def test_beyond_the_horizon_windows_are_marked_and_wait(project: Project) -> None:
    """Without a horizon, or before it, nothing runs by itself: the mark says which windows, and what computes them."""
    keys = [feature_key(profile, "plays"), feature_key(profile, "last_title")]
    assert project.run(*keys, first=key(0), last=key(4)).success
    quiet = look(project, "late_data")
    write_day(project.settings.root, START + DAY, title="solaris")
    found = look(project, "late_data", quiet.cursor)
    assert not found.run_requests
    marks = [event for event in found.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
    assert {one.metadata["wait_to_be_asked_for"].value for one in marks} == {1}
    assert "2026-01-02 00:00" in str(marks[0].metadata["windows"].value)
    assert "fp compute --changed" in str(marks[0].metadata["to_compute_them"].value)
    assert project.run(*keys, first=key(1)).success
    assert said(look(project, "late_data", found.cursor), "late_data") == dict.fromkeys(["plays", "last_title"], (True, "WARN"))


def promising(freshness: timedelta) -> FeatureView:
    """Return a view of the plays of the last hours that promises something."""
    features = [Aggregate("plays_2h", "count", window=2 * HOUR)]
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 4 * HOUR
    return FeatureView("recent", entity=user, sources=[plays], features=features, schedule="@hourly", start=start, freshness=freshness)


def age_of(project: Project) -> timedelta:
    """Return the age of the newest play that a closed window holds."""
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    write_day(project.settings.root, hour - 24 * HOUR)
    return datetime.now(UTC) - (hour - HOUR)


def test_the_age_of_the_data_passes_warns_and_fails_without_a_run(project: Project) -> None:
    """Each state is said as soon as it is another, in Dagster and by the API alike; a push alone turns nothing green."""
    age = age_of(project)
    view = promising(age * 2)
    project.registry = Registry([view])
    (asked,) = project.tick(view, datetime.now(UTC))
    project.execute(view, asked)
    found = look(project, "freshness")
    assert said(found, "data_age") == {"recent": (True, "ERROR")}
    assert look(project, "freshness", found.cursor).skip_message == "No view's state changed."
    for promise, expected in ((age * 1.2, (False, "WARN")), (age * 0.9, (False, "ERROR")), (age * 2, (True, "ERROR"))):
        project.registry = Registry([promising(promise)])
        found = look(project, "freshness", found.cursor)
        assert said(found, "data_age") == {"recent": expected}
        state = json.loads(found.cursor or "")["views"]["recent"][0]
        assert ready(project).views["recent"].freshness == state
        assert ready(project).status == ("stale" if state == Freshness.FAIL else "ready")


def ready(project: Project) -> schemas.Readiness:
    """Return what the API would say."""
    with FeatureStore(project.registry, project.settings) as store:
        value = store.online.get_many([b"feature_platform:meta:recent"])[0]
    assert value is not None
    return schemas.readiness(project.registry, {"recent": ViewMeta.from_bytes(value)}, datetime.now(UTC))


def test_an_old_backfill_turns_no_promise_green(project: Project) -> None:
    """The policy of Dagster's sees a write; the age of the data does not change with it."""
    assert project.run(feature_key(profile, "plays"), first=key(4)).success
    assert project.run(online_key(profile)).success
    found = look(project, "freshness")
    assert said(found, "data_age") == {"profile": (False, "ERROR")}
    assert project.run(feature_key(profile, "plays"), first=key(1)).success
    result = project.run(online_key(profile))
    (evaluation,) = evaluations(project, result.run_id, "data_age")
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert not said(look(project, "freshness", found.cursor), "data_age")


def test_an_event_views_age_is_that_of_the_newest_row_served(project: Project) -> None:
    """Rows that are not visible yet, their delay not having passed, are no fresher data to a reader."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    write_day(project.settings.root, now - 24 * HOUR)
    view = FeatureView("titles", entity=user, sources=[plays], features=[Feature("title", str)], delay=5 * HOUR, freshness=HOUR)
    with FeatureStore(Registry([view]), Settings(root=project.settings.root)) as store:
        store.compute()
        (report,) = store.materialize(now=now)
    assert report.newest_source_timestamp == now - 5 * HOUR


def test_no_store_is_no_statement_on_age(tmp_path: Path) -> None:
    """A server that does not answer is told as such, and no check changes its state."""
    with open_project(tmp_path, [profile], redis_url="redis://127.0.0.1:1/0") as project:
        found = look(project, "freshness")
    assert "does not tell how old its data is" in str(found.skip_message)
    assert not found.asset_events


asked_for: list[datetime] = []


def counted(plays: duckdb.DuckDBPyRelation, start: datetime) -> duckdb.DuckDBPyRelation:
    """Return plays, remembering for which days; the third day fails the first time, as a disk may."""
    asked_for.append(start)
    if start == START + 2 * DAY and asked_for.count(start) == 1:
        message = "the disk is away"
        raise OSError(message)
    return plays.aggregate("user_id, count(*)::bigint as plays", "user_id")


def test_a_retry_leaves_out_what_was_written(project: Project) -> None:
    """A step that is tried again, or a run that retries another, computes what is missing, and reports all; a new run computes all."""
    asked_for.clear()
    view = replace(profile, query=counted, features=[Feature("plays", int)])
    project.registry = Registry([view])
    first = project.run(feature_key(view, "plays"), first=key(0), last=key(3))
    assert first.success
    assert [(day - START) // DAY for day in asked_for] == [0, 1, 2, 2, 3]
    assert project.instance.get_materialized_partitions(feature_key(view, "plays")) == {key(day) for day in range(4)}
    asked_for.clear()
    job = project.definitions.resolve_job_def("profile_refresh")
    tags = {"dagster/asset_partition_range_start": key(0), "dagster/asset_partition_range_end": key(4)}
    tags["dagster/retry_number"] = "1"
    retry = project.instance.create_run_for_job(job, tags=tags, parent_run_id=first.run_id, root_run_id=first.run_id)
    assert execute_run(InMemoryJob(job), retry, project.instance).success
    assert [(day - START) // DAY for day in asked_for] == [4]
    asked_for.clear()
    assert project.run(feature_key(view, "plays"), first=key(0), last=key(4)).success
    assert [(day - START) // DAY for day in asked_for] == [0, 1, 2, 2, 3, 4]
