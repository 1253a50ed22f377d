"""The command line as a user types it: processes in a project that `fp init` made."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_platform.cli.arguments import parse_entity_rows
from feature_platform.cli.output import EXIT_CODES, ago
from feature_platform.cli.processes import ChildError, Children, StopSignals, free_port
from feature_platform.cli.reference import all_commands, help_text
from feature_platform.dtypes import resolve
from feature_platform.errors import EntityRowsError
from feature_platform.materialization import materialize_view
from feature_platform.offline.store import OfflineStore
from feature_platform.online.opening import open_online_store
from feature_platform.settings import Settings
from feature_platform.tokens import create_token, read_tokens
from feature_platform.wording import span
from features.streaming import activity

FP = [sys.executable, "-m", "feature_platform.cli"]
FEATURES = ["user_segment", "watch_count_30d", "last_genre"]


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without what would change a project's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEATURE_PLATFORM_", "DAGSTER_"))}
    return {**kept, "COLUMNS": "200", "FEATURE_PLATFORM_READ_DEADLINE_MS": "5000", **more}


def fp(folder: Path, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, and expect an exit code."""
    done = subprocess.run(
        [*FP, *arguments], cwd=folder, env=clean_environment(**environment), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, f"fp {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def fp_json(folder: Path, *arguments: str, code: int = 0, **environment: str) -> Any:
    """Run a command with `--json`; return its document, which is all that stands on stdout."""
    return json.loads(fp(folder, *arguments, "--json", code=code, **environment).stdout)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a new project, with nothing computed."""
    folder = tmp_path_factory.mktemp("bare") / "shop"
    fp(folder.parent, "init", "shop")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a new project with a small sample, computed for two days and pushed online."""
    folder = tmp_path_factory.mktemp("made") / "shop"
    fp(folder.parent, "init", "shop")
    sampled = fp_json(folder, "sample", "--users", "200", "--events", "5000")
    start = datetime.fromisoformat(sampled["end"]) - timedelta(days=2)
    fp_json(folder, "compute", "user_profile", "user_activity", "--start", start.isoformat())
    fp_json(folder, "compute", "user_last_watch", "--start", (start - timedelta(days=12)).isoformat())
    fp_json(folder, "materialize")
    yield folder
    fp(folder, "down")


def test_init_writes_a_project_whose_declarations_load(bare: Path) -> None:
    """A new project has the running example, named after its folder, and loads from a subfolder."""
    document = fp_json(bare / "features", "list")
    assert [view["name"] for view in document["views"]] == ["user_profile", "user_activity", "user_last_watch"]
    assert 'project = "shop"' in (bare / "pyproject.toml").read_text()
    assert (bare / ".gitignore").is_file()


def test_init_overwrites_nothing(bare: Path) -> None:
    """In a folder that has one of its files, init names it, writes nothing, and fails."""
    before = {path: path.stat().st_mtime_ns for path in bare.rglob("*")}
    (bare / "definitions.py").rename(bare / "kept.py")
    try:
        done = fp(bare, "init", ".", code=1)
        assert "pyproject.toml" in done.stderr
        assert "overwritten" in done.stderr
        assert not (bare / "definitions.py").exists()
    finally:
        (bare / "kept.py").rename(bare / "definitions.py")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_help_loads_no_engine() -> None:
    """`fp --help` answers without DuckDB, Dagster, FastAPI, pandas and redis-py."""
    code = (
        "import sys; from feature_platform.cli import cli; cli(['--help'], standalone_mode=False); "
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment())
    loaded = done.stdout.partition("LOADED")[2].split()
    assert "click" in loaded
    assert not {"duckdb", "dagster", "fastapi", "uvicorn", "pandas", "redis", "polars"} & set(loaded)


def test_get_loads_no_duckdb(project: Path) -> None:
    """`fp get` reads what the API reads, without DuckDB and Dagster."""
    code = (
        "import sys; from feature_platform.cli import cli; cli(['get', 'user_id=8a2f', 'last_genre'], standalone_mode=False); "
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment(), cwd=project)
    loaded = done.stdout.partition("LOADED")[2].split()
    assert "redis" in loaded
    assert not {"duckdb", "dagster", "fastapi"} & set(loaded)


@pytest.mark.parametrize("path", all_commands())
def test_every_command_has_an_example_and_json(path: str) -> None:
    """The help of each command shows how it is typed, and offers `--json`."""
    text = help_text(all_commands()[path], path)
    assert path in text.partition("Example")[2]
    assert "--json" in text


def test_list_shows_every_feature_with_its_view(bare: Path) -> None:
    """The table has a line a feature; the JSON has lengths of time in seconds."""
    shown = fp(bare, "list").stdout
    for word in ("user_profile", "snapshot", "user_segment", "@hourly", "2 d", "team:personalization", "Genre of the title watched last."):
        assert word in shown
    views = {view["name"]: view for view in fp_json(bare, "list")["views"]}
    assert views["user_profile"]["ttl_seconds"] == 172_800
    assert [feature["name"] for feature in views["user_activity"]["features"]] == ["watch_count_30d", "watch_minutes_7d"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("user_profile", "view", ["group by user_id", "lookback", "30 d"]),
        ("user_activity:watch_count_30d", "feature", ["count over 30 d", "recommender"]),
        ("last_genre", "feature", ["user_last_watch:last_genre"]),
        ("recommender", "service", ["user_segment", "user_last_watch:last_genre"]),
    ],
    ids=["view", "feature", "bare-feature", "service"],
)
def test_describe_tells_what_was_declared(bare: Path, name: str, kind: str, words: list[str]) -> None:
    """A view, a feature and a service are each described by what their author wrote."""
    shown = fp(bare, "describe", name).stdout
    assert all(word in shown for word in words)
    assert fp_json(bare, "describe", name)["type"] == kind


def test_an_unknown_name_is_one_line_with_a_suggestion(bare: Path) -> None:
    """An error says what, then the next step, on stderr, without a traceback; the code is 1."""
    done = fp(bare, "describe", "user_activity:watch_count_30", code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("Error: no feature 'watch_count_30' in view 'user_activity'.\nDid you mean 'watch_count_30d'?")
    assert "Traceback" not in done.stderr


def test_an_error_is_a_document_too(bare: Path) -> None:
    """With --json, stdout of a failed command holds the error's parts."""
    document = fp_json(bare, "compute", "user_profil", code=1)
    assert document["error"]["type"] == "UnknownNameError"
    assert "user_profile" in document["error"]["message"]
    assert document["error"]["field"] == "features"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lst"], "Did you mean 'list'?"),
        (["get", "user_id=8a2f"], "no feature is asked for"),
        (["get", "user_id=8a2f", "last_genre", "--service", "recommender"], "exclude each other"),
        (["compute", "--start", "yesterday"], "is not a time"),
        (["history", "rows.parquet", "last_genre"], "--out"),
    ],
    ids=["unknown-command", "no-feature", "feature-and-service", "not-a-time", "no-out"],
)
def test_a_command_line_that_is_not_understood_exits_with_2(bare: Path, arguments: list[str], said: str) -> None:
    """Usage errors name what is wrong, and their code differs from that of refusals."""
    assert said in fp(bare, *arguments, code=2).stderr


def test_an_unreachable_online_store_exits_with_3(bare: Path) -> None:
    """A store that does not answer has an exit code of its own, so that scripts can wait and try again."""
    done = fp(bare, "get", "user_id=8a2f", "last_genre", code=3, FEATURE_PLATFORM_REDIS_URL="redis://:secret@127.0.0.1:1")
    assert "cannot be reached" in done.stderr
    assert "secret" not in done.stderr


def test_a_folder_that_is_no_project_is_told_how_to_become_one(tmp_path: Path) -> None:
    """Outside a project, a command says what names the registry."""
    assert "[tool.feature_platform]" in fp(tmp_path, "list", code=1).stderr


def test_what_declarations_print_is_not_the_answer(tmp_path: Path) -> None:
    """A print in the project's own code does not spoil the JSON document."""
    fp(tmp_path, "init", "shop")
    with (tmp_path / "shop" / "features" / "streaming.py").open("a") as file:
        file.write('\nprint("loaded")\n')
    assert "loaded" in fp(tmp_path / "shop", "check").stderr
    assert fp_json(tmp_path / "shop", "check")["views"] == 3


def test_check_reads_the_sources_and_keeps_nothing(project: Path, bare: Path) -> None:
    """`check --sources` computes the newest windows where nobody looks, and names each view that fails."""
    before = sorted(project.joinpath("data/features").rglob("*"))
    document = fp_json(project, "check", "--sources")
    assert [one["problem"] for one in document["sources"]] == [None, None, None]
    assert all(one["rows"] > 0 for one in document["sources"] if one["view"] != "user_last_watch")
    assert sorted(project.joinpath("data/features").rglob("*")) == before
    failed = fp_json(bare, "check", "--sources", code=1)
    assert all("has no files" in one["problem"] for one in failed["sources"])
    assert fp_json(bare, "check")["features"] == 4


def test_sample_is_written_once(tmp_path: Path) -> None:
    """The same sample is found and not written again."""
    fp(tmp_path, "init", "shop")
    arguments = ["sample", "--users", "200", "--events", "5000", "--end", "2026-03-01", "--seed", "1", "--days", "40"]
    first, again = (fp_json(tmp_path / "shop", *arguments) for _ in range(2))
    assert (first["skipped"], again["skipped"]) == (False, True)
    assert again["start"] == "2026-01-20T00:00:00Z"
    assert len(list((tmp_path / "shop" / "data" / "sources" / "watches").glob("*.parquet"))) == 40


def test_get_answers_what_the_example_promises(project: Path) -> None:
    """The pinned users answer as declared; a key that is given again begins the next entity; an unknown user has defaults."""
    rows = fp_json(project, "get", "user_id=8a2f", "user_id=b13c", "user_id=nobody", *FEATURES)["rows"]
    assert [row["user_id"] for row in rows] == ["8a2f", "b13c", "nobody"]
    values = [[row["features"][name]["value"] for name in FEATURES] for row in rows]
    assert values == [["power_user", 47, "documentary"], ["casual", 5, "thriller"], ["new", 0, None]]
    assert {row["features"][name]["status"] for row in rows[:2] for name in FEATURES} == {"PRESENT"}
    assert {row["features"][name]["status"] for row in rows[2:] for name in FEATURES} == {"NOT_FOUND"}
    shown = fp(project, "get", "user_id=8a2f", "--service", "recommender").stdout
    assert "documentary" in shown
    assert "PRESENT" in shown


def test_why_follows_a_value_to_its_file_and_runs(project: Path) -> None:
    """The value, its partition file, what that file says, the runs with links to the UI, and the definition."""
    settings = Settings(project="shop", root=project)
    with open_online_store(settings) as online, duckdb.connect() as connection:
        store, now = OfflineStore(settings.offline_root), datetime.now(UTC)
        materialize_view(connection, activity, store=store, online=online, project="shop", now=now, run_id="0123456789")
    elsewhere = "https://dagster.example.org/"
    found = fp_json(project, "why", "user_id=8a2f", "watch_count_30d", "user_segment", FEATURE_PLATFORM_DAGSTER_URL=elsewhere)
    count, segment = found["features"]
    assert (found["entity"], count["value"], count["status"]) == ({"user_id": "8a2f"}, 47, "PRESENT")
    assert count["reason"].startswith(("unchanged since", "computed by the window"))
    assert (project / count["partition"]["path"]).is_file()
    assert count["partition"]["run_url"] is None
    assert count["push"]["run_url"] == "https://dagster.example.org/runs/0123456789"
    assert count["definition"]["text"] == "count(*) of watches over [end - 30 d, end)"
    assert all(one["in_file"]["agrees"] for one in (count, segment))
    assert "group by user_id" in segment["definition"]["text"]
    shown = fp(project, "why", "user_id=8a2f", "watch_count_30d", "user_segment").stdout
    for words in (
        "47 (PRESENT)",
        "run 01234567 (http://127.0.0.1:3000/runs/0123456789)",
        "the command line",
        "as in the online store",
        "from watches",
    ):
        assert words in shown
    assert "several entities" in fp(project, "why", "user_id=8a2f", "user_id=b13c", "user_segment", code=2).stderr
    assert "no feature" in fp(project, "why", "user_id=8a2f", code=2).stderr


def test_get_judges_age_by_now(project: Path) -> None:
    """`--now` far ahead puts the daily view past its ttl: the default, and the status that says so."""
    ahead = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    found = fp_json(project, "get", "user_id=8a2f", "user_segment", "--now", ahead)["rows"][0]["features"]["user_segment"]
    assert (found["value"], found["status"]) == ("new", "OUTSIDE_MAX_AGE")


def test_get_names_a_wrong_key(project: Path) -> None:
    """A key that no entity has is refused with the one that was meant."""
    assert "Did you mean 'user_id'?" in fp(project, "get", "userid=8a2f", "last_genre", code=1).stderr


def test_history_writes_a_training_set(project: Path) -> None:
    """Rows come back in their order with what they had, and one column more a feature."""
    end = datetime.fromisoformat(fp_json(project, "status")["views"][1]["history_until"])
    rows = pa.table(
        {"user_id": ["b13c", "8a2f", "nobody"], "label": [1, 0, 1], "event_timestamp": pa.array([end] * 3, pa.timestamp("us", tz="UTC"))}
    )
    pq.write_table(rows, project / "labels.parquet")
    document = fp_json(project, "history", "labels.parquet", *FEATURES, "--statuses", "--out", "out/training.parquet")
    assert document == {"rows": 3, "features": FEATURES, "path": "out/training.parquet"}
    table = pq.read_table(project / "out" / "training.parquet")
    assert table.column_names[:3] == ["user_id", "label", "event_timestamp"]
    assert table.select(["user_id", "label", "watch_count_30d", "last_genre"]).to_pylist() == [
        {"user_id": "b13c", "label": 1, "watch_count_30d": 5, "last_genre": "thriller"},
        {"user_id": "8a2f", "label": 0, "watch_count_30d": 47, "last_genre": "documentary"},
        {"user_id": "nobody", "label": 1, "watch_count_30d": 0, "last_genre": None},
    ]
    assert table["user_segment__status"].to_pylist() == ["PRESENT", "PRESENT", "NOT_FOUND"]


def test_history_takes_a_query_and_writes_labels_into_folders(project: Path) -> None:
    """Everything that Python does: rows from SQL over sources, labels of a later time, folders, and an explanation that writes nothing."""
    end = datetime.fromisoformat(fp_json(project, "status")["views"][1]["history_until"])
    moment = f"timestamptz '{end - timedelta(days=3)}'"
    query = f"select distinct user_id, {moment} as event_timestamp from watches where user_id in ('8a2f', 'b13c')"
    explained = fp_json(project, "history", query, *FEATURES, "--explain")
    assert (explained["entity_rows"], explained["buckets"]) == (2, 1)
    assert {view["view"] for view in explained["views"]} == {"user_profile", "user_activity", "user_last_watch"}
    assert all((project / file).is_file() for view in explained["views"] for file in view["files"])
    assert "rows of" in fp(project, "history", query, *FEATURES, "--explain").stdout
    labels = ["--label", "watch_count_30d", "--label-delay", "2d"]
    document = fp_json(project, "history", query, "user_segment", *labels, "--partition-by", "user_id", "--out", "out/folders")
    assert document == {"rows": 2, "features": ["user_segment", "label_watch_count_30d"], "path": "out/folders"}
    [file] = (project / "out" / "folders" / "user_id=8a2f").iterdir()
    later = pa.table({"user_id": ["8a2f"], "event_timestamp": pa.array([end - timedelta(days=1)], pa.timestamp("us", tz="UTC"))})
    pq.write_table(later, project / "later.parquet")
    fp(project, "history", "later.parquet", "watch_count_30d", "--out", "out/later.parquet")
    expected = pq.read_table(project / "out" / "later.parquet")["watch_count_30d"].to_pylist()
    assert pq.read_table(file, partitioning=None)["label_watch_count_30d"].to_pylist() == expected
    assert "Write 7d" in fp(project, "history", query, "user_segment", "--label-delay", "soon", "--out", "x", code=2).stderr


def test_compact_merges_and_changes_no_answer(project: Path) -> None:
    """What is served and joined is the same afterwards, from fewer files."""
    before = fp_json(project, "get", "user_id=8a2f", *FEATURES)
    found = {one["view"]: one for one in fp_json(project, "compact")["views"]}
    assert found["user_activity"]["days"] > 0
    assert found["user_activity"]["merged"] >= 24
    assert "user_activity" in fp(project, "compact").stdout
    fp(project, "materialize")
    assert fp_json(project, "get", "user_id=8a2f", *FEATURES) == before


def test_verify_says_whether_a_training_set_comes_out_the_same(project: Path) -> None:
    """Written with a card it is the same, by the card and joined again; changed labels, and a changed file, exit with 1."""
    end = datetime.fromisoformat(fp_json(project, "status")["views"][1]["history_until"])
    times = pa.array([end - timedelta(hours=1)] * 2, pa.timestamp("us", tz="UTC"))
    rows = pa.table({"user_id": ["8a2f", "nobody"], "event_timestamp": times, "label": [1, 0]})
    pq.write_table(rows, project / "chosen.parquet")
    fp(project, "history", "chosen.parquet", *FEATURES, "--statuses", "--card", "--out", "out/chosen.parquet")
    assert "The same today: code, partitions and labels" in fp(project / "out", "verify", "chosen.parquet").stdout
    found = fp_json(project, "verify", "out/chosen.parquet", "--recompute")
    assert (found["is_same"], found["is_recomputed"], found["rows"], found["differences"]) == (True, True, 2, [])
    pq.write_table(rows, project / "chosen.parquet", compression="gzip")  # the same rows in other bytes
    assert [one["kind"] for one in fp_json(project, "verify", "out/chosen.parquet", code=1)["differences"]] == ["entity_df"]
    settled = fp_json(project, "verify", "out/chosen.parquet", "--recompute")
    assert (settled["is_same"], [one["kind"] for one in settled["without_effect"]]) == (True, ["entity_df"])
    pq.write_table(rows.set_column(2, "label", pa.array([1, 1])), project / "chosen.parquet")
    said = fp(project, "verify", "out/chosen.parquet", "--recompute", code=1).stdout
    assert "Not the same today" in said
    assert "1 of 2 rows differ" in said
    (project / "chosen.parquet").unlink()  # then the dataset's own rows are asked about
    [gone] = fp_json(project, "verify", "out/chosen.parquet", "--recompute")["without_effect"]
    assert (gone["where"], gone["what"]) == ("../chosen.parquet", "it is not there any more")
    with (project / "out" / "chosen.parquet").open("ab") as file:
        file.write(b"x")
    for arguments in ([], ["--recompute"]):
        assert "SHA-256 differs" in fp(project, "verify", "out/chosen.parquet", *arguments, code=1).stdout
    assert fp_json(project, "verify", "labels.parquet", code=1)["error"]["type"] == "DatasetCardError"


def test_verify_tells_changed_code_and_changed_partitions(tmp_path: Path) -> None:
    """Edited features and a window that late data changed are named; the rows of the window are counted."""
    fp(tmp_path, "init", "shop")
    folder, sources = tmp_path / "shop", tmp_path / "shop" / "data" / "sources" / "watches"
    end = fp_json(folder, "sample", "--users", "200", "--events", "5000")["end"]
    day = datetime.fromisoformat(end).replace(hour=0, minute=0) - timedelta(days=1)
    fp(folder, "compute", "user_profile", "--start", day.isoformat())
    times = pa.array([day + timedelta(days=1)], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"user_id": ["b13c"], "event_timestamp": times}), folder / "labels.parquet")
    fp(folder, "history", "labels.parquet", "user_segment", "--card", "--out", "training.parquet")
    assert fp_json(folder, "verify", "training.parquet")["is_same"]
    newest = sorted(sources.glob("*.parquet"))[-2]
    watched = pq.read_table(newest)
    late = pa.table({name: [watched[name][0].as_py()] * 40 for name in watched.column_names}, schema=watched.schema)
    late = late.set_column(late.column_names.index("user_id"), "user_id", pa.array(["b13c"] * 40, late.schema.field("user_id").type))
    pq.write_table(pa.concat_tables([watched, late]), newest)
    fp(folder, "compute", "user_profile", "--start", day.isoformat())
    [changed] = fp_json(folder, "verify", "training.parquet", code=1)["differences"]
    assert (changed["kind"], changed["where"], changed["window"]) == ("partition", "user_profile", f"{day:%Y-%m-%dT%H%MZ}")
    assert changed["since"] is not None
    counted = fp_json(folder, "verify", "training.parquet", "--recompute", code=1)["differences"]
    assert ("column", "user_segment", 1) in [(one["kind"], one["where"], one["rows"]) for one in counted]
    streaming = folder / "features" / "streaming.py"
    streaming.write_text(streaming.read_text().replace(">= 30 then", ">= 31 then"))
    kinds = {one["kind"] for one in fp_json(folder, "verify", "training.parquet", code=1)["differences"]}
    assert kinds == {"code_version", "partition"}


def test_status_tells_what_is_online(project: Path, bare: Path) -> None:
    """Computed and pushed views are up to date; in a new project nothing is there, and no server is started to say so."""
    fp_json(project, "materialize")
    views = fp_json(project, "status")["views"]
    assert all(view["windows"] > 0 and view["windows_stale"] == 0 for view in views)
    assert all(view["online_generation"] == view["generation"] for view in views)
    assert "up to date" in fp(project, "status").stdout
    assert fp_json(bare, "status")["online_store"] == "embedded, not running"
    assert not (bare / "data" / "online").exists()


def test_rebuild_online_restores_what_was_lost(project: Path) -> None:
    """After the store was emptied, reads fail; rebuilt, they answer as before, and `down` tells whether one ran."""
    question = ("get", "user_id=8a2f", *FEATURES)
    before = fp_json(project, *question)
    assert fp_json(project, "down") == {"stopped": True}
    assert fp_json(project, "down") == {"stopped": False}
    for file in (project / "data" / "online").rglob("*.aof"):
        file.write_bytes(b"")
    assert fp_json(project, *question, code=1)["error"]["type"] == "NotMaterializedError"
    reports = fp_json(project, "rebuild-online")["views"]
    assert [report["view"] for report in reports] == ["user_profile", "user_activity", "user_last_watch"]
    assert fp_json(project, *question) == before


def test_compute_repeats_a_range_and_nothing_else(project: Path) -> None:
    """A range is computed again, window by window; its report names each file, and that its rows came out the same."""
    fp_json(project, "materialize")
    end = datetime.fromisoformat(fp_json(project, "status")["views"][1]["history_until"])
    start = end - timedelta(hours=3)
    found = fp_json(project, "compute", "user_activity", "--start", start.isoformat(), "--end", end.isoformat())["partitions"]
    assert [one["window"]["start"] for one in found] == [
        (start + timedelta(hours=hour)).isoformat().replace("+00:00", "Z") for hour in range(3)
    ]
    assert all((project / one["path"]).is_file() and one["outcome"] == "unchanged" for one in found)
    assert fp_json(project, "compute", "--changed")["partitions"] == []
    assert fp(project, "status").stdout.count("up to date") == 3


@pytest.mark.slow
def test_up_answers_at_three_addresses_and_ctrl_c_stops_everything(bare: Path, project: Path) -> None:
    """UI, API and online store answer; a Ctrl-C, even where a shell ignored it, ends every process and removes the socket."""
    ports = {"--ui-port": str(free_port()), "--api-port": str(free_port())}
    arguments = [word for pair in ports.items() for word in pair]
    # A shell starts its background commands with SIGINT ignored.
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *FP, "up", *arguments, "--json"]
    started = subprocess.Popen(command, cwd=project, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        document = json.loads(read_document(started))
        assert read_status(f"{document['ui']}/server_info") == 200
        assert read_status(f"{document['api']}/health") == 200
        path = document["online_store"].removeprefix("unix://")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
        group = set(descendants(document["pid"]))
        assert len(group) >= 4
        taken = fp(bare, "up", *arguments, code=1)
        assert "--ui-port" in taken.stderr
        started.send_signal(signal.SIGINT)
        assert started.wait(60) == 0
    finally:
        if started.poll() is None:
            started.terminate()
            started.wait(60)
        started.communicate()
    assert not [pid for pid in group if is_alive(pid)]
    assert not Path(path).exists()
    with pytest.raises(OSError, match="refused"):
        read_status(f"{document['api']}/health")
    assert (project / ".dagster" / "dagster.yaml").resolve() == project / "dagster.yaml"


def test_serve_refuses_the_network_without_a_token(bare: Path) -> None:
    """Beyond loopback a token is needed: refused with one document, and no address is printed."""
    assert fp_json(bare, "serve", "--host", "0.0.0.0", code=1)["error"]["field"] == "api_token"  # noqa: S104 - that is refused


def test_a_token_is_made_shown_once_and_revoked(bare: Path) -> None:
    """The token alone is on stdout; the list knows its limits and not itself; a revoked one is gone from it."""
    path = "made/tokens.json"
    made = fp(bare, "token", "create", "team", "--service", "recommender", "--expires", "90d", FEATURE_PLATFORM_API_TOKENS=path)
    (secret,) = made.stdout.split()
    assert "read of recommender until 2" in made.stderr
    other = fp_json(bare, "token", "create", "robot", "--scope", "metrics", "--scope", "write", FEATURE_PLATFORM_API_TOKENS=path)
    listed = (
        fp(bare, "token", "list", FEATURE_PLATFORM_API_TOKENS=path).stdout
        + fp(bare, "token", "list", "--json", FEATURE_PLATFORM_API_TOKENS=path).stdout
    )
    stored = (bare / path).read_text()
    for token in (secret, other["token"]):
        assert token.startswith("fpt_")
        assert token not in made.stderr + listed + stored
        assert token[4:] not in listed + stored
    robot, team = fp_json(bare, "token", "list", FEATURE_PLATFORM_API_TOKENS=path)["tokens"]
    assert (robot["name"], robot["scopes"], robot["services"], robot["expires_at"]) == ("robot", ["metrics", "write"], None, None)
    assert (team["name"], team["scopes"], team["services"], team["is_expired"]) == ("team", ["read"], ["recommender"], False)
    assert datetime.fromisoformat(team["expires_at"]) - datetime.fromisoformat(team["created_at"]) == timedelta(days=90)
    assert "'team' is revoked" in fp(bare, "token", "revoke", "team", FEATURE_PLATFORM_API_TOKENS=path).stdout
    assert [one["name"] for one in fp_json(bare, "token", "list", FEATURE_PLATFORM_API_TOKENS=path)["tokens"]] == ["robot"]
    assert fp_json(bare, "token", "revoke", "robot", FEATURE_PLATFORM_API_TOKENS=path) == {"revoked": "robot"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create", "taken"], 1, "there is a token 'taken' already.\nChoose another name"),
        (["create", "two words"], 1, "'two words' is no name for a token.\nUse"),
        (["create", "x", "--service", "recomender"], 1, "Did you mean 'recommender'?"),
        (["revoke", "takn"], 1, "no token 'takn'.\nDid you mean 'taken'?"),
        (["create", "x", "--scope", "reed"], 2, "'read'"),
        (["create", "x", "--expires", "soon"], 2, "Write 7d"),
        (["create", "x", "--expires", "0d"], 2, "Write 90d"),
        (["create", "x", "--service", "recommender", "--scope", "write"], 2, "Make a second token"),
        (["creat"], 2, "Did you mean 'create'?"),
    ],
    ids=["taken", "no-name", "no-service", "no-token", "no-scope", "no-span", "no-time", "service-and-write", "no-command"],
)
def test_a_token_that_cannot_be_made_is_told_why(bare: Path, arguments: list[str], code: int, said: str) -> None:
    """Each refusal says what to type instead, and nothing is made."""
    create_or_keep_token(bare / "kept.json", "taken")
    before = (bare / "kept.json").read_bytes()
    assert said in fp(bare, "token", *arguments, code=code, FEATURE_PLATFORM_API_TOKENS="kept.json").stderr
    assert (bare / "kept.json").read_bytes() == before


def create_or_keep_token(path: Path, name: str) -> None:
    """Make a token unless there is one."""
    if not read_tokens(path):
        create_token(path, name, now=datetime.now(UTC))


def test_tokens_need_a_file(bare: Path) -> None:
    """Without one, the message names the setting, in the environment and in pyproject.toml."""
    error = fp_json(bare, "token", "create", "x", code=1)["error"]
    assert error["field"] == "api_tokens"
    assert "FEATURE_PLATFORM_API_TOKENS" in error["message"]
    assert "api_tokens = " in error["message"]


def test_token_loads_no_engine(bare: Path) -> None:
    """`fp token` needs neither FastAPI nor an engine."""
    code = (
        "import sys; from feature_platform.cli import cli; cli(['token', 'list'], standalone_mode=False); "
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    environment = clean_environment(FEATURE_PLATFORM_API_TOKENS="none.json")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=bare)
    assert not {"duckdb", "dagster", "fastapi", "redis", "pandas"} & set(done.stdout.partition("LOADED")[2].split())


def test_a_child_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    """Where a server ends by itself, the error names it, its code and the end of its output."""
    with Children() as children:
        child = children.start("the API", ["sh", "-c", "echo no such registry; exit 3"], folder=tmp_path, log=tmp_path / "logs" / "api.log")
        child.process.wait(10)
        with pytest.raises(ChildError, match=r"(?s)the API ended with code 3.*no such registry"):
            children.check()


@pytest.mark.parametrize("script", ["sleep 300 & sleep 300", "trap '' INT TERM; sleep 300 & sleep 300; sleep 300"], ids=["polite", "deaf"])
def test_children_take_theirs_with_them(tmp_path: Path, script: str) -> None:
    """Stopped, a child's own children end too; a second Ctrl-C cuts the wait for those that do not listen."""
    started = time.monotonic()
    with Children() as children:
        child = children.start("a server", ["sh", "-c", script], folder=tmp_path, log=tmp_path / "log")
        while len(group := [child.process.pid, *descendants(child.process.pid)]) < 3:
            time.sleep(0.05)
        children.stop(hurry=lambda: True)
    assert not [pid for pid in group if is_alive(pid)]
    assert time.monotonic() - started < 15


def test_signals_are_counted_even_where_they_were_ignored() -> None:
    """A shell's background command has SIGINT ignored; within StopSignals it counts, and afterwards it is as it was."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            assert not signals.wait(0)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.wait(5)
            assert signals.asked == 2
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def read_document(process: subprocess.Popen[str]) -> str:
    """Read one JSON document that a running process prints."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            return "".join(lines)
    raise AssertionError("".join(lines) + (process.stderr.read() if process.stderr else ""))


def read_status(url: str) -> int:
    """Return the HTTP status of a GET."""
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - an address of this machine
        return int(response.status)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and they in turn."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, queue = [], [pid]
    while queue:
        found += (queue := [child for parent in queue for child in children.get(parent, [])])
    return found


def is_alive(pid: int, seconds: float = 5.0) -> bool:
    """Say whether a process still runs; one that has ended and waits to be reaped does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if done.stdout.strip()[:1] in {"", "Z"}:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        (int, "9007199254740993", 9007199254740993),
        (int, "-5", -5),
        (str, "007", "007"),
        (str, "", ""),
        (str, "a=b", "a=b"),
        (bool, "True", True),
        (bytes, "AP8=", b"\x00\xff"),
        (date, "2026-01-31", date(2026, 1, 31)),
        (datetime, "2026-01-31T10:00:00+02:00", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        (Decimal, "12.50", Decimal("12.50")),
    ],
    ids=["int-past-2^53", "negative", "digits-stay-text", "empty", "equals-sign", "bool", "bytes", "date", "datetime", "decimal"],
)
def test_keys_are_read_as_declared(dtype: type, text: str, value: object) -> None:
    """The text of a key becomes a value of the dtype that the entity declares, and is never guessed."""
    assert parse_entity_rows([f"key={text}"], {"key": resolve(dtype)}) == [{"key": value}]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [(int, "5.0"), (int, ""), (int, "٣"), (int, "1" * 30), (bool, "1"), (date, "today"), (Decimal, "many")],
    ids=["float-for-int", "empty-int", "other-digits", "too-large", "number-for-bool", "word-for-date", "word-for-decimal"],
)
def test_a_key_of_another_dtype_is_refused(dtype: type, text: str) -> None:
    """A text that is not of the key's dtype is an error that names the key."""
    with pytest.raises(EntityRowsError, match="join key key=") as caught:
        parse_entity_rows([f"key={text}"], {"key": resolve(dtype)})
    assert caught.value.field == "key"


def test_composite_keys_make_rows() -> None:
    """Several keys fill one row until one is given again; a row that lacks one is refused; no key at all is one row."""
    keys = {"user": resolve(str), "shop": resolve(int)}
    assert parse_entity_rows(["user=a", "shop=1", "shop=2", "user=b"], keys) == [{"user": "a", "shop": 1}, {"shop": 2, "user": "b"}]
    with pytest.raises(EntityRowsError, match="'shop' is missing"):
        parse_entity_rows(["user=a", "user=b", "shop=1"], keys)
    assert parse_entity_rows([], {}) == [{}]


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(days=30), "30 d"),
        (timedelta(hours=26), "26 h"),
        (timedelta(days=3, hours=1, minutes=5), "3 d 1 h 5 min"),
        (timedelta(0), "0 s"),
        (None, ""),
    ],
    ids=["days", "a-day-and-some", "magnitudes", "zero", "none"],
)
def test_lengths_of_time_read_as_people_write_them(length: timedelta | None, text: str) -> None:
    """A timedelta is shown in days, hours, minutes and seconds, leaving out what is zero."""
    assert span(length) == text


def test_ages_have_two_magnitudes() -> None:
    """An age is as exact as people need it."""
    now = datetime(2026, 1, 3, 4, 5, 6, tzinfo=UTC)
    assert ago(datetime(2026, 1, 1, tzinfo=UTC), now) == "2 d 4 h ago"


def test_exit_codes_are_told_apart() -> None:
    """What the exit codes mean stands in one place."""
    assert set(EXIT_CODES) == {0, 1, 2, 3, 130}
