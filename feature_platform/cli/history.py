"""
`fp sample`, `fp compute`, `fp compact` and `fp history`: the commands around the Parquet history.

Each loads DuckDB when it runs and not before.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from feature_platform.cli.arguments import INSTANT, SPAN, Project, examples, json_option, now_option, pass_project
from feature_platform.cli.output import count, instant, iso, shown_path

if TYPE_CHECKING:
    from feature_platform.offline.compute import PartitionReport
    from feature_platform.offline.explanation import JoinExplanation

__all__ = ["asked_features", "compact", "compute", "history", "sample"]


@click.command(epilog=examples("fp sample --users 1000 --events 100000"))
@click.option("--users", type=int, default=10_000, show_default=True, help="User ids at most.")
@click.option("--events", type=int, default=1_000_000, show_default=True, help="Rows, exactly.")
@click.option("--days", type=int, default=60, show_default=True, help="How far the sample reaches back.")
@click.option("--end", type=INSTANT, help="The first instant after the sample. [default: the last full hour]")
@click.option("--seed", type=int, default=7, show_default=True, help="The same seed, sizes and end give the same rows.")
@json_option
@pass_project
def sample(project: Project, *, users: int, events: int, days: int, end: datetime | None, seed: int) -> None:
    """
    Generate the running example's watch events.

    Day files of Parquet in data/sources/watches; nothing is written where the same sample is there already.
    """
    from feature_platform.sample import generate  # noqa: PLC0415 - loads numpy's random numbers

    with project.output.progress("generating") as progress:
        report = generate(
            project.settings.root,
            users=users,
            events=events,
            days=days,
            end=end,
            seed=seed,
            progress=lambda done, wanted: progress("events", done, wanted),
        )
    folder = shown_path(report.folder, project.settings.root)
    done = "was there already" if report.skipped else f"generated in {report.seconds:.1f} s"
    project.output.line(
        f"{count(report.events)} watch events of {count(report.users)} users, {instant(report.start)} to {instant(report.end)} UTC: {done}."
    )
    project.output.line(f"{report.files} day files in {folder}", style="dim")
    project.output.document(
        {
            "folder": folder,
            "users": report.users,
            "events": report.events,
            "files": report.files,
            "start": iso(report.start),
            "end": iso(report.end),
            "seconds": report.seconds,
            "skipped": report.skipped,
        }
    )


@click.command(epilog=examples("fp compute", "fp compute user_activity --start 2026-01-31 --end 2026-02-01", "fp compute --changed"))
@click.argument("views", nargs=-1)
@click.option("--start", type=INSTANT, help="Compute the windows from here on, whether they were computed before or not.")
@click.option("--end", type=INSTANT, help="... up to here, exclusive.")
@click.option("--changed", is_flag=True, help="Only windows whose source files have changed since they were computed.")
@now_option("Leave windows alone that are not closed then.")
@json_option
@pass_project
def compute(
    project: Project, *, views: tuple[str, ...], start: datetime | None, end: datetime | None, changed: bool, now: datetime | None
) -> None:
    """
    Compute views, from sources to Parquet.

    Without a range: every closed window that is not there yet. With one: its windows, again. A window whose rows come out the
    same is left alone. Times are ISO 8601, in UTC unless they say otherwise.
    """
    from feature_platform.feature_store import FeatureStore  # noqa: PLC0415 - loads DuckDB

    with FeatureStore(project.registry, project.settings) as store, project.output.progress("computing") as progress:
        reports = store.compute(list(views) or None, start, end, now, changed=changed, progress=progress)
    root, rows = project.settings.root, []
    by_view: dict[str, list[PartitionReport]] = {}
    for report in reports:
        by_view.setdefault(report.view, []).append(report)
    for view, its in by_view.items():
        written, seconds = sum(one.partition.rows for one in its if one.outcome == "written"), sum(one.seconds for one in its)
        unchanged = sum(one.outcome == "unchanged" for one in its)
        span = ["the whole table", ""] if its[0].window.key == "all" else [instant(its[0].window.start), instant(its[-1].window.end)]
        rows.append([view, count(len(its)), *span, count(written), count(unchanged) if unchanged else None, f"{seconds:.1f}"])
    if rows:
        columns = ["view", "windows", "from (UTC)", "to", "rows", "unchanged", "seconds"]
        project.output.table(columns, rows, right=["windows", "rows", "unchanged", "seconds"], optional=["unchanged"])
        project.output.line(f"Written to {shown_path(project.settings.offline_root, root)}.", style="dim")
    else:
        nothing = "No closed window lies in that range." if start or end else "Nothing to do: every closed window is there."
        project.output.line("No window's source files have changed." if changed else nothing)
    project.output.document({"partitions": [_partition(report, root) for report in reports]})


def _partition(report: PartitionReport, root: Path) -> dict[str, object]:
    return {
        "view": report.view,
        "window": {"start": iso(report.window.start), "end": iso(report.window.end)},
        "kind": report.kind,
        "outcome": report.outcome,
        "path": shown_path(report.path, root),
        "rows": report.partition.rows,
        "tombstones": report.partition.tombstones,
        "dropped": report.partition.dropped,
        "nulls": report.partition.nulls,
        "generation": report.partition.generation,
        "seconds": report.seconds,
    }


@click.command(epilog=examples("fp compact", "fp compact user_activity"))
@click.argument("views", nargs=-1)
@now_option("Leave days alone that have not ended then.")
@json_option
@pass_project
def compact(project: Project, *, views: tuple[str, ...], now: datetime | None) -> None:
    """
    Merge the Parquet of closed days, and keep states.

    Joins and pushes read fewer files and rows then; no answer changes. What was merged is deleted by a later run, once a day has
    passed. Dagster's asset upkeep/compaction does the same every night.
    """
    from feature_platform.feature_store import FeatureStore  # noqa: PLC0415 - loads DuckDB

    with FeatureStore(project.registry, project.settings) as store, project.output.progress("merging") as progress:
        reports = store.compact(list(views) or None, now, progress=progress)
    columns = ["view", "days merged", "windows", "states kept", "files deleted", "files now", "seconds"]
    rows = [
        [one.view, count(one.days), count(one.merged), count(one.states), count(one.deleted), count(one.files), f"{one.seconds:.1f}"]
        for one in reports
    ]
    project.output.table(columns, rows, right=columns[1:])
    project.output.document({"views": [asdict(report) for report in reports]})


@click.command(
    epilog=examples(
        "fp history labels.parquet user_segment watch_count_30d --out training.parquet",
        "fp history labels.parquet --service recommender --statuses --card --out training.parquet",
        'fp history "select user_id, watched_at as event_timestamp from watches" user_segment --label watch_count_30d --label-delay 7d '
        "--out training.parquet",
        "fp history labels.parquet user_segment --explain",
    )
)
@click.argument("entity_df", metavar="ENTITY_DF")
@click.argument("features", nargs=-1)
@click.option("--service", help="The features of this service instead.")
@click.option("--out", type=click.Path(path_type=Path), help="The Parquet file to write; with --partition-by a folder.")
@click.option(
    "--as-of",
    type=click.Choice(["known", "latest"]),
    default="known",
    show_default=True,
    help="known: a row of an event view is seen once it was known. latest: from its own time on, for bulk-loaded history.",
)
@click.option("--label", "labels", multiple=True, help="A feature whose later value becomes a column label_<name>. May be given again.")
@click.option("--label-delay", type=SPAN, help="How much later: 7d, 12h, 90min.")
@click.option("--partition-by", multiple=True, help="A column whose values become folders. May be given again.")
@click.option("--statuses", is_flag=True, help="Add a column <feature>__status after each feature.")
@click.option("--full-feature-names", is_flag=True, help="Name the columns <view>__<feature>.")
@click.option("--card", is_flag=True, help="Write <out>.card.json too: what the rows were made of, for `fp verify`.")
@click.option("--explain", is_flag=True, help="Say what would be read and held, and write nothing.")
@json_option
@pass_project
def history(
    project: Project,
    *,
    entity_df: str,
    features: tuple[str, ...],
    service: str | None,
    out: Path | None,
    as_of: str,
    labels: tuple[str, ...],
    label_delay: timedelta | None,
    partition_by: tuple[str, ...],
    statuses: bool,
    full_feature_names: bool,
    card: bool,
    explain: bool,
) -> None:
    """
    Join features to rows: a training set.

    Each row gets what was known at its event_timestamp.

    ENTITY_DF has one row per question, with the join keys and event_timestamp; all its columns are kept. It is a Parquet file, a
    folder or a glob of them, or a SELECT over the declared sources, by their names.
    """
    from feature_platform.feature_store import FeatureStore  # noqa: PLC0415 - loads DuckDB

    if (out is None) != explain:
        raise click.UsageError("write --out FILE, or --explain to see what that would read.")
    asked = asked_features(features, service)
    with FeatureStore(project.registry, project.settings) as store, project.output.progress("training set:") as progress:
        joined = store.get_historical_features(
            entity_df,
            asked,
            "latest" if as_of == "latest" else "known",
            full_feature_names=full_feature_names,
            statuses=statuses,
            labels=labels,
            label_delay=label_delay,
        )
        if out is None:
            explained = joined.explain()
        else:
            rows = joined.to_parquet(out, partition_by=partition_by, card=card, progress=progress)
    if out is None:
        project.output.line(str(explained))
        project.output.document(_explained(explained, project.settings.root))
        return
    names = [ref.column for ref in project.registry.resolve(asked, full_feature_names=full_feature_names)]
    if labels:
        names += [f"label_{ref.column}" for ref in project.registry.resolve(list(labels), full_feature_names=full_feature_names)]
    project.output.line(f"{count(rows)} rows with {', '.join(names)}: {out}")
    project.output.document({"rows": rows, "features": names, "path": str(out)})


def _explained(explained: JoinExplanation, root: Path) -> dict[str, object]:
    return {
        "entity_rows": explained.entity_rows,
        "rows": explained.rows,
        "bytes": explained.bytes,
        "buckets": explained.buckets,
        "spills": explained.spills,
        "memory_bytes": explained.memory_bytes,
        "views": [
            {
                "view": view.view,
                "files": [shown_path(Path(file), root) for file in view.files],
                "rows": view.rows,
                "bytes": view.bytes,
                "partitions": view.partitions,
                "skipped": view.skipped,
                "ranges": view.ranges,
                "state": view.state,
                "window": {"start": iso(view.start), "end": iso(view.end)},
            }
            for view in explained.views
        ],
    }


def asked_features(features: tuple[str, ...], service: str | None) -> list[str] | str:
    """Return the features that a command was asked for: a list, or the name of a service."""
    if service is not None and features:
        raise click.UsageError("features and --service exclude each other: name one of them.")
    if service is None and not features:
        raise click.UsageError("no feature is asked for: name some, or write --service NAME.")
    return service if service is not None else list(features)
