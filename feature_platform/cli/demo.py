"""
`fp demo`: the whole path on sample data, from watch events to the prompt of an LLM.

Knows the running example's users and what they must answer. Does nothing that the other commands, Dagster and the API do not
do: each step says which of them it stands for.
"""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from feature_platform.cli.arguments import Project, examples, json_option, pass_project
from feature_platform.cli.declarations import show_features, view_document
from feature_platform.cli.online import answer_document, show_answer
from feature_platform.cli.output import count, instant, iso, shown_path
from feature_platform.cli.processes import LOOPBACK, ChildError, Children, StopSignals, answers, free_port
from feature_platform.cli.servers import api_command, dagster_home
from feature_platform.errors import SettingsError, UnknownNameError
from feature_platform.model import FeatureStatus, FeatureView, ViewKind

if TYPE_CHECKING:
    from feature_platform.feature_store import FeatureStore
    from feature_platform.registry import FeatureRef
    from feature_platform.sample import SampleReport

__all__ = ["demo"]

FEATURES: Final = ["user_segment", "watch_count_30d", "last_genre"]
_UNKNOWN_USER: Final = "nobody"
# Windows to run, newest last; an event view has few enough to run them all.
_WINDOWS: Final = {ViewKind.SNAPSHOT: 2, ViewKind.AGGREGATE: 48, ViewKind.EVENT: None}
_API_SECONDS: Final = 60.0
# What `sample` writes last: its time is the sample's.
_MARKER: Final = "_sample.json"


@dataclass
class _Demo:
    """What the steps share, and the JSON document that they fill."""

    project: Project
    now: datetime
    document: dict[str, Any] = field(default_factory=dict)
    steps: int = 0

    def say(self, title: str, detail: str) -> None:
        """Begin a step."""
        self.steps += 1
        self.project.output.line()
        self.project.output.line(f"{self.steps}. {title}", style="bold green")
        self.project.output.line(f"   {detail}", style="dim")


@click.command(epilog=examples("fp demo"))
@click.option("--users", type=int, default=10_000, show_default=True, help="Of the sample.")
@click.option("--events", type=int, default=1_000_000, show_default=True, help="Of the sample.")
@click.option("--days", type=int, default=60, show_default=True, help="Of the sample.")
@click.option("--seed", type=int, default=7, show_default=True, help="Of the sample.")
@json_option
@pass_project
def demo(project: Project, *, users: int, events: int, days: int, seed: int) -> None:
    """
    Walk the whole path on sample data.

    Watch events, Dagster runs, a training frame without a leak, an online read, an HTTP answer, and the prompt of an LLM made
    from it. Run again, it gives the same answers.
    """
    from feature_platform.feature_store import FeatureStore  # noqa: PLC0415 - loads DuckDB

    began, run = time.perf_counter(), _Demo(project, datetime.now(UTC))
    try:
        refs = project.registry.resolve(FEATURES)
    except UnknownNameError as error:
        message = (
            f"the demo walks through the running example, and this project has no feature {error.name!r}.\n'fp init' makes one with it."
        )
        raise SettingsError(message, field="registry") from error
    report = _sample(run, users=users, events=events, days=days, seed=seed)
    _features(run)
    with FeatureStore(project.registry, project.settings) as store:
        _run_assets(run, store, list({ref.view.name: ref.view for ref in refs}.values()), report)
        _training_frame(run, store, report)
        _online_read(run, store)
    answer = _http_answer(run)
    _prompt(run, refs, answer)
    _files(run, report)
    seconds = time.perf_counter() - began
    project.output.line(f"Done in {seconds:.0f} s. Next: `fp up` shows these runs in Dagster's UI.", style="bold")
    project.output.document({**run.document, "seconds": seconds})


def _sample(run: _Demo, *, users: int, events: int, days: int, seed: int) -> SampleReport:
    from feature_platform.sample import generate  # noqa: PLC0415 - loads numpy's random numbers

    run.say("Sample data", "Watch events of a streaming service, as `fp sample` generates them.")
    root = run.project.settings.root
    with run.project.output.progress("generating") as progress:
        report = generate(
            root,
            users=users,
            events=events,
            days=days,
            seed=seed,
            now=run.now,
            progress=lambda done, wanted: progress("events", done, wanted),
        )
    how = "was there already" if report.skipped else f"generated in {report.seconds:.1f} s"
    what = f"{count(report.events)} events of {count(report.users)} users, {instant(report.start)} to {instant(report.end)} UTC"
    run.project.output.line(f"{what}: {how}.")
    run.document["sample"] = {"users": report.users, "events": report.events, "start": iso(report.start), "end": iso(report.end)}
    return report


def _features(run: _Demo) -> None:
    run.say("Features", "Declared once, in features/streaming.py. `fp list` shows them.")
    show_features(run.project)
    run.document["views"] = [view_document(view) for view in run.project.registry.views.values()]


def _run_assets(run: _Demo, store: FeatureStore, views: list[FeatureView], report: SampleReport) -> None:
    from feature_platform.cli.runs import AssetRun, AssetRuns  # noqa: PLC0415 - loads Dagster
    from feature_platform.offline.due import requested_windows  # noqa: PLC0415 - loads DuckDB

    settings, output = run.project.settings, run.project.output
    home = dagster_home(settings)
    run.say("Dagster runs", f"The feature assets of each view, one run for all their partitions, then the online assets. Kept in {home}.")
    forgotten = sum(_forget_older(store, view, report) for view in views)
    if forgotten:
        output.line(f"{count(forgotten)} partitions of an earlier sample are removed.")
    runs: list[AssetRun] = []
    with output.progress("running") as progress, AssetRuns(run.project.registry, settings, home) as dagster:
        for view in views:
            progress("assets", len(runs), 2 * len(views))
            wanted = requested_windows(view, None, None, run.now)[-(_WINDOWS[view.kind] or 0) :]
            runs.append(dagster.compute(view, wanted))
        for view in views:
            progress("assets", len(runs), 2 * len(views))
            runs.append(dagster.push(view))
    rows = []
    for one in runs:
        partitions = " to ".join(dict.fromkeys(one.partitions)) if one.partitions else ""
        rows.append(["\n".join(one.assets), partitions, f"{one.seconds:.1f}", one.run_id[:8]])
    output.table(["assets", "partitions", "seconds", "run"], rows, right=["seconds"], optional=["run", "seconds"])
    run.document["runs"] = [{"assets": one.assets, "partitions": one.partitions, "run_id": one.run_id} for one in runs]


def _forget_older(store: FeatureStore, view: FeatureView, report: SampleReport) -> int:
    """
    Remove the partitions that were computed from an earlier sample; return how many.

    A new sample is another past: what is left of the old one would be joined to it.
    """
    written = (report.folder / _MARKER).stat().st_mtime
    older = [path for path in store.offline.folder(view).glob("*.parquet") if path.stat().st_mtime < written]
    for path in older:
        path.unlink()
    return len(older)


def _training_frame(run: _Demo, store: FeatureStore, report: SampleReport) -> None:
    import pandas as pd  # noqa: PLC0415 - slow to import, and only the demo shows a frame

    from feature_platform.sample import LATE_EXAMPLE, PINNED_USERS  # noqa: PLC0415 - as above

    run.say("Training frame", "store.get_historical_features(entity_df, features): each row gets what was known at its own time.")
    busy, casual = PINNED_USERS
    leak_at = report.end - LATE_EXAMPLE.before_end + LATE_EXAMPLE.lag / 2
    rows = [(busy, report.end - timedelta(days=1)), (busy, report.end), (casual, report.end), (casual, leak_at)]
    entity_df = pd.DataFrame(rows, columns=["user_id", "event_timestamp"])
    right = store.get_historical_features(entity_df, FEATURES, statuses=True).to_arrow().to_pylist()
    by_event_time = store.get_historical_features(entity_df, ["last_genre"], "latest").to_arrow().to_pylist()
    newest_df = entity_df.assign(event_timestamp=report.end)
    newest = store.get_historical_features(newest_df, ["last_genre"]).to_arrow().to_pylist()
    shown: list[list[object]] = []
    frame: list[dict[str, object]] = []
    for row, timed, last in zip(right, by_event_time, newest, strict=True):
        answer = row["last_genre"]
        naive = {"naive_by_event_time": timed["last_genre"], "naive_newest": last["last_genre"]}
        values = [Text(str(row[name]), style="bold" if row[f"{name}__status"] == "PRESENT" else "dim") for name in FEATURES]
        wrong = [Text(str(value), style="" if value == answer else "bold red") for value in naive.values()]
        shown.append([row["user_id"], instant(row["event_timestamp"]), *values, *wrong])
        frame.append({**row, "event_timestamp": iso(row["event_timestamp"]), **naive})
    run.project.output.table(["user_id", "event_timestamp", *FEATURES, "naive (time)", "naive (last)"], shown, optional=["watch_count_30d"])
    run.project.output.line(
        f"The last row is the leak. {casual} watched {LATE_EXAMPLE.genre} before that moment, but the row arrived "
        f"{LATE_EXAMPLE.lag // timedelta(hours=1)} hours late: nobody knew it yet. What was known is {LATE_EXAMPLE.genre_before}. "
        "One naive join goes by the event's time alone, the other takes the last value whatever the row's time."
    )
    if right[-1]["user_segment__status"] == FeatureStatus.NOT_FOUND:
        run.project.output.line("Its other two features are defaults, NOT_FOUND: the demo computes no windows that far back.", style="dim")
    run.document["training_frame"] = frame


def _online_read(run: _Demo, store: FeatureStore) -> None:
    from feature_platform.sample import PINNED_USERS  # noqa: PLC0415 - loads numpy's random numbers

    users = [*PINNED_USERS, _UNKNOWN_USER]
    run.say(
        "Online read", f"store.get_online_features(...), or: fp get {' '.join(f'user_id={user}' for user in users)} {' '.join(FEATURES)}"
    )
    answer = store.get_online_features(FEATURES, {"user_id": users})
    show_answer(run.project, answer)
    run.document["online"] = answer_document(answer)


def _http_answer(run: _Demo) -> dict[str, Any]:
    from feature_platform.sample import PINNED_USERS  # noqa: PLC0415 - loads numpy's random numbers

    settings, output, port = run.project.settings, run.project.output, free_port()
    url = f"http://{LOOPBACK}:{port}"
    body = {"user_id": PINNED_USERS[0], "features": FEATURES}
    run.say("HTTP", f"POST /get-online-features, answered by the real API (`fp serve`), started for this on port {port}.")
    output.show(Syntax(json.dumps(body), "json", background_color="default"))
    with StopSignals() as signals, Children() as children:
        log = settings.root / ".dagster" / "up" / "demo-api.log"
        with output.progress("starting the API"):
            children.start("the API", api_command(port), folder=settings.root, log=log)
            deadline = time.monotonic() + _API_SECONDS
            while not answers(f"{url}/health"):
                children.check()
                if signals.wait(0.1):
                    raise KeyboardInterrupt
                if time.monotonic() > deadline:
                    message = f"the API has not answered for {_API_SECONDS:.0f} s.\nSee {log}."
                    raise ChildError(message)
        answer = _post(f"{url}/get-online-features", body, settings.api_token)
        children.stop()
    if signals.asked:
        raise KeyboardInterrupt
    output.show(Syntax(json.dumps(answer, indent=2), "json", background_color="default"))
    run.document["http"] = {"request": body, "response": answer}
    return answer


def _post(url: str, body: dict[str, Any], token: str | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - an address of this machine
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _prompt(run: _Demo, refs: list[FeatureRef], answer: dict[str, Any]) -> None:
    run.say("Prompt", "What the recommender's LLM reads, made from that answer.")
    lines = [f"- {ref.feature.description.rstrip('.')}: {answer['features'][ref.column]}" for ref in refs]
    prompt = "\n".join(
        [
            "You recommend titles on the homepage of a streaming service.",
            f"What is known of viewer {answer['user_id']}:",
            *lines,
            "Recommend three titles, each with one sentence that says why this viewer would like it.",
        ]
    )
    run.project.output.show(Panel(Text(prompt), expand=False))
    run.document["prompt"] = prompt


def _files(run: _Demo, report: SampleReport) -> None:
    settings = run.project.settings
    files = {
        "events": shown_path(report.folder, settings.root),
        "history": shown_path(settings.offline_root, settings.root),
        "dagster": shown_path(dagster_home(settings), settings.root),
    }
    if settings.redis_url is None:
        files["online_store"] = shown_path(settings.online_root, settings.root)
    run.say("Files", f"In {settings.root}. The online store runs on; `fp down` stops it.")
    run.project.output.facts({name.replace("_", " "): path for name, path in files.items()})
    run.document["files"] = files
