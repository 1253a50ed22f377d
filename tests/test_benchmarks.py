"""The benchmarks at sizes too small to time: they run, their JSON has its shape, and their answers are checked."""

from __future__ import annotations

import io
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click
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

from benchmarks import page
from benchmarks.__main__ import BENCHMARKS, main, run_benchmarks
from benchmarks.checksums import checksum_of_batches
from benchmarks.daemon import ended_ticks
from benchmarks.histories import History, ensure_history
from benchmarks.measuring import REFERENCE, BenchmarkError, Context, Point, Run, Subject, Tally, measure, percentile_ms, size_text
from benchmarks.plots import Bar, Curve, bars, curves
from benchmarks.report import print_document, to_markdown
from benchmarks.slopes import slope, with_slopes
from feature_platform import FeatureStore

GROWTH = {
    "join E=R/10": {REFERENCE, "duckdb_asof"},
    "join E=R/10 memory=1GB": {REFERENCE, "duckdb_asof"},
    "one week asked E=100": {REFERENCE, "duckdb_asof"},
    "newest": {REFERENCE, "scan"},
    "compute": {REFERENCE, "duckdb"},
}

SUBJECTS = {
    "pit": {"R=2k E=500 K=2 ttl=1d": {REFERENCE, "duckdb_asof", "polars", "pandas"}},
    "windows": {
        "one hour 20k events": {REFERENCE, "from_nothing", "raw"},
        "4 hours 20k events": {REFERENCE, "raw", "per_partition"},
        "one hour 20k events, extremes and sets": {REFERENCE, "from_nothing", "raw"},
        "4 hours 20k events, extremes and sets": {REFERENCE, "raw", "per_partition"},
        "4 hours 20k events memory=1GB": {REFERENCE, "unbounded"},
    },
    "newest": {
        "2k rows 40 keys": {REFERENCE, "scan", "arg_max"},
        "2k rows 40 keys, nothing kept, memory=1GB": {REFERENCE, "unbounded"},
    },
    "compute": {
        "snapshot 3 days 3k events": {REFERENCE, "duckdb", "polars", "pandas"},
        "event 3 days 3k events": {REFERENCE, "duckdb", "polars", "pandas"},
        "event 1 day 3k events memory=1GB": {REFERENCE, "duckdb", "unbounded"},
        "wide 50 features 1 day 3k events memory=1GB": {REFERENCE, "duckdb", "unbounded"},
    },
    "materialize": {"2k keys x 3 features": {REFERENCE, "redis_cli_pipe"}},
    "sdk": {"1 x 3": {REFERENCE, "redis_py"}, "100 x 10": {REFERENCE, "redis_py"}},
    "http": {
        "1 x 3 c=16": {REFERENCE, "redis_benchmark"},
        "100 x 10 c=16": {REFERENCE, "redis_benchmark"},
        "1 x 3 at 1000/s": {REFERENCE},
        "1 x 3 at 500/s": {REFERENCE, "while_materializing"},
        "1 x 3 seen inside": {REFERENCE, "unobserved"},
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
    "growth": {f"{curve} R={rows}": subjects for rows in ("1k", "2k") for curve, subjects in GROWTH.items()},
}
MAY_BE_ABSENT = {"redis_cli_pipe", "redis_benchmark"}
SOME_HAVE = {"p50_ms", "p90_seconds", "ratio", "ratio_spread", "curve", "rows", "slope", "memory_slope"}
FIELDS = ["case", "subject", "seconds", "spread", "peak_rss_mb", "rate", "p99_ms", "equal"]


def run_tiny(name: str, cache: Path, peers: str = "duckdb,polars,pandas") -> tuple[dict[str, Any], list[str]]:
    """Run a benchmark at the size of tests; return its document as read from JSON."""
    console = Console(file=io.StringIO())
    document, tally = run_benchmarks([name], size="tiny", peers=peers, console=console, cache=cache)
    assert not tally.failed
    return json.loads(json.dumps(document)), tally.left_out


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
        assert [field for field in row if field not in SOME_HAVE] == [*FIELDS, "benchmark"]
        assert row["benchmark"] == name
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


def test_ratios_are_of_one_turn_each_and_have_a_spread_of_their_own() -> None:
    """A turn in which the machine was busy slows both sides, so that its ratio stays."""
    seconds = iter([1.0, 2.0, 2.0, 2.0, 4.0, 12.0])
    tally = Tally()
    subjects = [Subject(name, lambda: Run(seconds=next(seconds), checksum="same")) for name in (REFERENCE, "peer")]
    measure(context([]), tally, "case", subjects, runs=3)
    ours, peer = (result.to_json() for result in tally.results)
    assert "ratio" not in ours
    assert (peer["ratio"], peer["ratio_spread"]) == (2.0, [1.0, 3.0])
    document = {"machine": {}, "versions": {}, "cases": [ours, peer]}
    assert "| yes | 2 [1 - 3] |" in to_markdown([document])
    console = Console(file=io.StringIO(), width=200)
    print_document(console, document)
    assert isinstance(console.file, io.StringIO)
    assert "case: feature_platform takes 1/2 of the time of peer [1/3 - 1]" in console.file.getvalue()


def test_what_was_measured_is_kept_when_a_later_case_or_benchmark_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed benchmark is said at the end, after the others; even what nobody foresaw loses no case that was done."""
    kept = tmp_path / "kept" / "run.json"

    def cases() -> list[str]:
        return [f"{row['benchmark']}: {row['case']}" for row in json.loads(kept.read_text())["cases"]]

    def fails(context: Context, tally: Tally) -> None:
        measure(context, tally, "first", [Subject(REFERENCE, lambda: Run(seconds=1, checksum="a"))], runs=1)
        assert cases() == ["one: first"], "kept before the second begins"
        measure(context, tally, "second", [Subject(REFERENCE, fail)], runs=1)

    def goes_on(context: Context, tally: Tally) -> None:
        measure(context, tally, "third", [Subject(REFERENCE, lambda: Run(seconds=1, checksum="a"))], runs=1)

    def is_broken(_context: Context, _tally: Tally) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("benchmarks.__main__.BENCHMARKS", {"one": fails, "two": goes_on})
    ended = CliRunner().invoke(main, ["all", "--quick", "--json", str(kept)])
    assert ended.exit_code == 1
    assert "one failed: out of memory" in ended.output
    assert cases() == ["one: first", "two: third"]
    monkeypatch.setattr("benchmarks.__main__.BENCHMARKS", {"two": goes_on, "three": is_broken})
    ended = CliRunner().invoke(main, ["all", "--quick", "--json", str(kept)])
    assert isinstance(ended.exception, ZeroDivisionError)
    assert cases() == ["two: third"]


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


DOCUMENT: dict[str, Any] = {
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
    assert CliRunner().invoke(main, ["oldest"]).exit_code == 2
    refused = CliRunner().invoke(main, ["pit", "--peers", "spark"])
    assert refused.exit_code == 2
    assert "'spark' is no peer" in refused.output


def test_slopes_are_those_of_powers_and_each_row_has_the_slope_of_its_curve_so_far() -> None:
    """Twice the rows and four times the time is a slope of 2; one size has none, and curves and subjects do not mix."""
    assert slope([(1, 3), (2, 12), (4, 48)]) == pytest.approx(2)
    assert slope([(10, 5), (1000, 5)]) == pytest.approx(0)
    assert slope([(10, 5), (10, 6)]) is None
    tally = Tally()
    for size in (10, 100, 1000):
        subjects = [
            Subject(REFERENCE, partial(Run, seconds=size, peak_rss_mb=size**2, checksum="")),
            Subject("peer", partial(Run, seconds=7, checksum="")),
        ]
        measure(context([]), tally, f"curve R={size}", subjects, runs=1, point=Point("curve", size))
    rows = with_slopes([result.to_json() for result in tally.results])
    assert [(row.get("slope"), row.get("memory_slope")) for row in rows] == [(None, None)] * 2 + [(1.0, 2.0), (0.0, None)] * 2
    markdown = to_markdown([{"machine": {}, "versions": {}, "cases": rows}])
    assert "x feature_platform | time slope | MB slope |" in markdown
    assert "|  | 1 | 2 |" in markdown


def texts(svg: str) -> dict[str, ET.Element]:
    """Return the texts of a picture that are as wide as they look and lie within it."""
    picture = ET.fromstring(svg)  # noqa: S314 - ours
    width, found = float(picture.attrib["width"]), {}
    for one in picture.iter("{http://www.w3.org/2000/svg}text"):
        text, x = one.text or "", float(one.attrib["x"])
        begin = x - len(text) * 6.7 * {"start": 0, "middle": 0.5, "end": 1}[one.get("text-anchor", "start")]
        assert "transform" in one.attrib or (begin >= 0 and begin + len(text) * 6.7 <= width), f"{text!r} lies outside"
        found[text] = one
    return found


def shapes(svg: str, name: str) -> list[dict[str, str]]:
    """Return the attributes of a picture's elements of one kind."""
    return [one.attrib for one in ET.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{name}")]  # noqa: S314 - ours


def test_bars_begin_at_one_and_are_as_long_as_the_logarithm_of_the_ratio() -> None:
    """Twice as long goes as far right as half as long goes left; names, values and the axis are text, in light and dark."""
    found = [
        Bar(case="10 < 20", subject="slow", ratio=2, least=1.5, greatest=3),
        Bar(case="10 < 20", subject="fast", ratio=0.5, least=0.4, greatest=0.6),
        Bar(case="other", subject="very slow", ratio=8, least=8, greatest=8),
    ]
    svg = bars("A title", "ratio (no unit)", found)
    assert {"A title", "10 < 20", "other", "slow", "fast", "very slow", "0.5", "2", "8", "ratio (no unit)"} <= texts(svg).keys()
    slow, fast, slower = ((float(one["x"]), float(one["width"])) for one in shapes(svg, "rect"))
    assert fast[0] + fast[1] == pytest.approx(slow[0], abs=0.2), "both touch 1"
    assert slow[1] == pytest.approx(fast[1], abs=0.2)
    assert slower[1] == pytest.approx(3 * slow[1], abs=0.4)
    assert "prefers-color-scheme: dark" in svg
    assert svg == bars("A title", "ratio (no unit)", found)


def test_curves_are_straight_where_a_power_is_measured() -> None:
    """Both axes are logarithms; sizes are written as people say them, and each line's name stands below."""
    points = [(1e6, 2.0), (1e7, 20.0), (1e8, 200.0)]
    found = [Curve(of="join", name="join: a", points=points), Curve(of="join", name="join: b", points=[(1e6, 5.0), (1e8, 5.0)])]
    svg = curves("Growth", "rows", "seconds", found, size=size_text)
    assert {"Growth", "rows", "seconds", "1M", "10M", "100M", "join: a", "join: b"} <= texts(svg).keys()
    line, flat = ([tuple(map(float, one.split(","))) for one in shape["points"].split()] for shape in shapes(svg, "polyline"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2
    assert flat[0][1] == flat[1][1]


def test_the_page_and_its_plots_are_what_the_command_writes_from_the_kept_runs(tmp_path: Path) -> None:
    """No figure of the page was typed: `python -m benchmarks docs` changes nothing."""
    copy = tmp_path / "benchmarks.md"
    shutil.copy(page.PAGE, copy)
    page.write(page.read(page.kept()), copy)
    assert copy.read_text() == page.PAGE.read_text()
    committed = {path.name: path.read_text() for path in (page.PAGE.parent / "images").glob("benchmark-*.svg")}
    assert {path.name: path.read_text() for path in (tmp_path / "images").iterdir()} == committed
    assert committed
    for svg in committed.values():
        texts(svg)


def test_the_page_follows_the_runs_and_refuses_to_write_without_its_markers(tmp_path: Path) -> None:
    """Other runs give other figures; what people wrote around them stays, and plots of no run go."""
    copy = tmp_path / "benchmarks.md"
    copy.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "benchmark-gone.svg").touch()
    cases = [{**row, "benchmark": "sdk"} for row in DOCUMENT["cases"]]
    page.write([{**DOCUMENT, "cases": cases}], copy)
    text = copy.read_text()
    assert text.startswith(f"before\n{page.BEGIN}\n")
    assert text.endswith(f"\n{page.END}\nafter\n")
    assert "old" not in text
    assert "| 1 x 3 | redis_py | 1 ms |" in text
    assert "(images/benchmark-sdk.svg)" in text
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["benchmark-sdk.svg"]
    copy.write_text("no markers")
    with pytest.raises(click.ClickException, match="lacks a marker"):
        page.write([DOCUMENT], copy)
    assert copy.read_text() == "no markers"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_page_explains_every_benchmark_and_its_subjects(name: str) -> None:
    """Whoever reads a figure finds what its subject is in the section of its benchmark, above the figures."""
    written = page.PAGE.read_text().partition(page.BEGIN)[0]
    sections = dict(re.findall(r"^### `(\w+)`:.*?\n(.*?)(?=^##|\Z)", written, re.MULTILINE | re.DOTALL))
    subjects = {subject for case in SUBJECTS[name].values() for subject in case} - {REFERENCE}
    assert not [subject for subject in subjects if f"`{subject}`" not in sections[name]]
    names = {*GROWTH} - {"one week asked E=100"} if name == "growth" else set()
    assert not [curve for curve in names if f"`{curve}`" not in sections[name]]


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
