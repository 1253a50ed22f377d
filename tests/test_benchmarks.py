"""The benchmarks at sizes too small to time: they run, their JSON has its shape, and their answers are checked."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster_shared.error import SerializableErrorInfo
from rich.console import Console

from benchmarks.__main__ import BENCHMARKS, main, run_benchmarks
from benchmarks.checksums import checksum_of_batches
from benchmarks.daemon import ended_ticks
from benchmarks.histories import History, ensure_history
from benchmarks.measuring import REFERENCE, BenchmarkError, Context, Run, Subject, Tally, measure, percentile_ms, size_text
from benchmarks.report import print_document, to_markdown
from feature_platform import FeatureStore

SUBJECTS = {
    "pit": {"R=2k E=500 K=2 ttl=1d": {REFERENCE, "duckdb_asof", "polars", "pandas"}},
    "materialize": {"2k keys x 3 features": {REFERENCE, "redis_cli_pipe"}},
    "sdk": {"1 x 3": {REFERENCE, "redis_py"}, "100 x 10": {REFERENCE, "redis_py"}},
    "http": {
        "1 x 3 c=16": {REFERENCE, "redis_benchmark"},
        "100 x 10 c=16": {REFERENCE, "redis_benchmark"},
        "1 x 3 at 1000/s": {REFERENCE},
    },
    "graph": {
        "10 features": {REFERENCE, "empty"},
        "10 features: schedules": {REFERENCE},
        "10 features: late_data": {REFERENCE},
        "10 features: freshness": {REFERENCE},
        "10 features: automation": {REFERENCE},
    },
    "backfill": {
        "aggregate 4 hours": {REFERENCE, "run_per_partition", "bare_compute"},
        "snapshot 3 days": {REFERENCE, "run_per_partition", "bare_compute"},
    },
    "latency": {"1 arrivals": {REFERENCE, "until_looked", "tick", "queue", "launch", "compute", "push"}},
}
MAY_BE_ABSENT = {"redis_cli_pipe", "redis_benchmark"}
SOME_HAVE = {"p50_ms", "p90_seconds"}
FIELDS = ["case", "subject", "seconds", "spread", "peak_rss_mb", "rate", "p99_ms", "equal"]


def run_tiny(name: str, cache: Path, peers: str = "duckdb,polars,pandas") -> tuple[dict[str, Any], list[str]]:
    """Run a benchmark at the size of tests; return its document as read from JSON."""
    console = Console(file=io.StringIO())
    document, left_out = run_benchmarks([name], size="tiny", peers=peers, console=console, cache=cache)
    return json.loads(json.dumps(document)), list(left_out)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_compares_equal_answers_and_writes_the_one_shape(name: str, tmp_path: Path) -> None:
    """Every benchmark names its cases and subjects as agreed, and each subject gives the right answers."""
    document, left_out = run_tiny(name, tmp_path)
    assert list(document) == ["machine", "versions", "cases"]
    assert document["machine"]["cores"] >= 1
    assert {"python", "duckdb", "dagster"} <= document["versions"].keys()
    found: dict[str, set[str]] = {}
    for row in document["cases"]:
        assert [field for field in row if field not in SOME_HAVE] == FIELDS
        assert row["equal"] is True
        assert 0 < row["spread"][0] <= row["seconds"] <= row["spread"][1]
        found.setdefault(row["case"], set()).add(row["subject"])
    absent = {subject for case, subjects in SUBJECTS[name].items() for subject in subjects - found[case]}
    assert found == {case: subjects - absent for case, subjects in SUBJECTS[name].items()}
    assert absent <= MAY_BE_ABSENT
    assert all(any(subject in line for line in left_out) for subject in absent), "what is left out is said"


def test_without_peers_only_the_platform_is_measured(tmp_path: Path) -> None:
    """`--peers none` leaves out libraries and limits alike."""
    document, _ = run_tiny("materialize", tmp_path, peers="none")
    assert {row["subject"] for row in document["cases"]} == {REFERENCE}


def context(said: list[str]) -> Context:
    """Return a context that keeps what it is told."""
    return Context(size="tiny", peers=frozenset(), limits=True, cache=Path(), say=said.append)


def test_subjects_run_in_turn_and_medians_and_spreads_are_over_all_runs() -> None:
    """A busy minute falls on all subjects, and every run counts."""
    said: list[str] = []
    seconds = iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])
    tally = Tally()
    subjects = [Subject(name, lambda: Run(seconds=next(seconds), checksum="same")) for name in (REFERENCE, "peer")]
    measure(context(said), tally, "case", subjects, runs=3)
    assert [line.split()[1] for line in said] == [REFERENCE, "peer"] * 3
    ours, peer = (result.to_json() for result in tally.results)
    assert (ours["seconds"], ours["spread"]) == (2.0, [1.0, 3.0])
    assert (peer["seconds"], peer["spread"]) == (20.0, [10.0, 30.0])


def test_one_different_answer_is_not_equal() -> None:
    """One wrong run among right ones is enough."""
    tally = Tally()
    answers = iter(["right", "right", "wrong"])
    subjects = [
        Subject(REFERENCE, lambda: Run(seconds=1, checksum="right")),
        Subject("peer", lambda: Run(seconds=1, checksum=next(answers))),
    ]
    measure(context([]), tally, "case", subjects, runs=3)
    assert [result.equal for result in tally.results] == [True, False]


def test_the_platform_itself_is_held_to_the_expected_answer() -> None:
    """Where the right answer is known, being the reference is no excuse."""
    tally = Tally()
    subjects = [Subject(REFERENCE, lambda: Run(seconds=1, checksum="wrong"))]
    measure(context([]), tally, "case", subjects, runs=1, expected="right")
    assert [result.equal for result in tally.results] == [False]


def fail() -> Run:
    """Fail as a subject does."""
    message = "out of memory"
    raise BenchmarkError(message)


def test_a_peer_that_fails_is_left_out_and_said_but_the_platform_may_not_fail() -> None:
    """A peer out of memory is a line below the table; our own failure ends the run."""
    tally = Tally()
    subjects = [Subject(REFERENCE, lambda: Run(seconds=1, checksum="a")), Subject("peer", fail)]
    measure(context([]), tally, "case", subjects, runs=2)
    assert [result.subject for result in tally.results] == [REFERENCE]
    assert tally.left_out == ["case: peer failed: out of memory"]
    with pytest.raises(BenchmarkError, match="out of memory"):
        measure(context([]), tally, "case", [Subject(REFERENCE, fail)], runs=1)


def test_checksums_see_values_nulls_and_order_but_not_chunks_widths_or_nan_for_null() -> None:
    """Equal checksums mean equal answers, in whatever form a library holds them."""
    checksum = partial(checksum_of_batches, columns=["a", "b_int"])
    table = pa.table({"a": [1.0, None, 0.0], "b_int": [1, 2, None]})
    same = pa.table({"a": pa.chunked_array([[1.0], [float("nan"), 0.0]]), "b_int": [1.0, 2.0, float("nan")]})
    assert checksum([table]) == checksum([same]) == checksum(table.to_batches(1))
    assert checksum([table]) == checksum([table.slice(0, 1), table.slice(1)])
    others = [
        table.slice(0, 2),
        table.take([1, 0, 2]),
        pa.table({"a": [1.0, 0.0, None], "b_int": [1, 2, None]}),
        pa.table({"a": [1.0, None, 0.0], "b_int": [1, 2, 0]}),
        pa.table({"a": [1.0, None, 0.5], "b_int": [1, 2, None]}),
    ]
    assert len({checksum([one]) for one in [table, *others]}) == 1 + len(others)


def test_sizes_are_named_as_people_say_them() -> None:
    """Sizes that are not round keep their digits."""
    assert [size_text(number) for number in (500, 2000, 100_000, 1_000_000, 1_500_000, 1_234)] == [
        "500",
        "2k",
        "100k",
        "1M",
        "1.5M",
        "1234",
    ]


def test_percentiles_are_the_nearest_rank() -> None:
    """A percentile is a latency that was measured."""
    latencies = [number / 1000 for number in range(1, 101)]
    assert percentile_ms(latencies, 50) == pytest.approx(50)
    assert percentile_ms(latencies, 99) == pytest.approx(99)
    assert percentile_ms([0.004], 99) == pytest.approx(4)


DOCUMENT = {
    "machine": {"cpu": "A processor", "cores": 2, "load_1m": 0.5},
    "versions": {"python": "3.11.7"},
    "cases": [
        dict(zip(FIELDS, ["1 x 3", REFERENCE, 0.002, [0.001, 0.003], 90.5, 500.0, 3.5, True], strict=True)) | {"p50_ms": 1.5},
        dict(zip(FIELDS, ["1 x 3", "redis_py", 0.001, [0.001, 0.001], None, 1000.0, None, True], strict=True)),
    ],
}


def test_the_report_shows_machine_versions_figures_and_ratios() -> None:
    """Both the terminal's table and the Markdown have times with units and ratios."""
    console = Console(file=io.StringIO(), width=160)
    print_document(console, DOCUMENT)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for text in ("A processor", "3.11.7", "2 ms", "1 ms - 3 ms", "1 x 3: feature_platform takes 2 times as long as redis_py"):
        assert text in shown
    assert "| 1 x 3 | redis_py | 1 ms | 1 ms - 1 ms |  | 1,000 |  |  | yes | 0.5 |" in to_markdown([DOCUMENT])


def test_the_command_reports_kept_runs_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """Kept JSON becomes Markdown; unknown benchmarks and peers are usage errors."""
    kept = tmp_path / "run.json"
    kept.write_text(json.dumps(DOCUMENT))
    reported = CliRunner().invoke(main, ["report", str(kept)])
    assert reported.exit_code == 0
    assert "| 1 x 3 | feature_platform | 2 ms |" in reported.output
    assert CliRunner().invoke(main, ["newest"]).exit_code == 2
    refused = CliRunner().invoke(main, ["pit", "--peers", "spark"])
    assert refused.exit_code == 2
    assert "'spark' is no peer" in refused.output


def test_a_kept_history_that_the_platform_no_longer_reads_is_made_again(tmp_path: Path) -> None:
    """Else a change of the files' layout would be measured as a very fast join that finds nothing."""
    history = History(rows=200, views=1, features=1, days=2)
    folder = ensure_history(history, tmp_path)
    (file,) = history.files(folder, 0)
    assert pq.read_metadata(file).num_rows == 200
    kept = Path(file).stat().st_mtime_ns
    assert ensure_history(history, tmp_path) == folder
    assert Path(file).stat().st_mtime_ns == kept
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    ensure_history(history, tmp_path)
    with FeatureStore(history.registry(), history.settings(folder)) as store:
        assert [one.rows for one in store.offline.partitions(store.registry.view("v0"))] == [200]


def test_the_parts_of_an_arrival_add_up_to_its_whole_way(tmp_path: Path) -> None:
    """What a file waits for is in one of the parts, and in no two of them; each has its 90th percentile."""
    document, (note,) = run_tiny("latency", tmp_path)
    whole, *parts = document["cases"]
    assert whole["subject"] == REFERENCE
    assert sum(part["seconds"] for part in parts) == pytest.approx(whole["seconds"], rel=0.01)
    assert all(row["p90_seconds"] == row["seconds"] for row in document["cases"]), "of one arrival"
    begin, end = "1 arrivals: 90 % of them within ", " s"
    assert float(note.removeprefix(begin).removesuffix(end)) == pytest.approx(whole["seconds"], rel=0.01)


def test_the_ticks_of_a_daemon_are_timed_and_one_that_failed_ends_the_benchmark(tmp_path: Path) -> None:
    """Ticks under way do not count, and no median hides an error."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("any"), "any"), "late_data")
        state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData())
        instance.add_instigator_state(state)

        def tick(status: TickStatus, seconds: float | None) -> None:
            instance.create_tick(
                TickData(
                    instigator_origin_id=state.instigator_origin_id,
                    instigator_name=state.name,
                    instigator_type=InstigatorType.SENSOR,
                    status=status,
                    timestamp=1000.0,
                    end_timestamp=None if seconds is None else 1000.0 + seconds,
                    selector_id=state.selector_id,
                    error=SerializableErrorInfo("out of time", [], None) if status is TickStatus.FAILURE else None,
                )
            )

        tick(TickStatus.SKIPPED, 1.5)
        tick(TickStatus.STARTED, None)
        assert ended_ticks(instance) == {"late_data": [1.5]}
        tick(TickStatus.FAILURE, 60.0)
        with pytest.raises(BenchmarkError, match="a tick of late_data failed: out of time"):
            ended_ticks(instance)
