"""
`fp materialize`, `fp get`, `fp rebuild-online` and `fp status`: the commands around the online store.

`get` loads no DuckDB: it reads what the API reads.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from feature_platform.cli.arguments import Project, examples, json_option, now_option, parse_entity_rows, pass_project
from feature_platform.cli.history import asked_features
from feature_platform.cli.output import ago, count, instant, iso
from feature_platform.dtypes import from_micros
from feature_platform.model import FeatureStatus, FeatureView

if TYPE_CHECKING:
    from feature_platform.materialization import MaterializationReport
    from feature_platform.offline.due import Pending
    from feature_platform.offline.store import Partition
    from feature_platform.online.answers import OnlineFeatures
    from feature_platform.online.meta import ViewMeta

__all__ = ["answer_document", "get", "materialize", "online_address", "rebuild_online", "show_answer", "status"]

_STYLES = {FeatureStatus.PRESENT: "green", FeatureStatus.NULL_VALUE: "yellow"}


@click.command(epilog=examples("fp materialize", "fp materialize user_activity"))
@click.argument("views", nargs=-1)
@now_option("Push what was visible then; a moment before the last one that was pushed changes nothing.")
@json_option
@pass_project
def materialize(project: Project, *, views: tuple[str, ...], now: datetime | None) -> None:
    """
    Push the newest values to the online store.

    From the Parquet history; computes nothing: see `fp compute`.
    """
    from feature_platform.feature_store import FeatureStore  # noqa: PLC0415 - loads DuckDB

    with FeatureStore(project.registry, project.settings) as store, project.output.progress("materializing") as progress:
        reports = store.materialize(list(views) or None, now, progress=progress)
    _show_reports(project, reports)


@click.command("rebuild-online", epilog=examples("fp rebuild-online", "fp rebuild-online user_activity"))
@click.argument("views", nargs=-1)
@now_option("Push what was visible then.")
@json_option
@pass_project
def rebuild_online(project: Project, *, views: tuple[str, ...], now: datetime | None) -> None:
    """
    Fill the online store anew from the history.

    Whatever it holds. Readers keep the old values of a view until its new ones are complete.
    """
    from feature_platform.feature_store import FeatureStore  # noqa: PLC0415 - loads DuckDB

    with FeatureStore(project.registry, project.settings) as store, project.output.progress("rebuilding") as progress:
        reports = store.rebuild_online(list(views) or None, now, progress=progress)
    _show_reports(project, reports)


def _show_reports(project: Project, reports: list[MaterializationReport]) -> None:
    numbers = ["read", "written", "removed", "skipped", "seconds"]
    rows: list[list[object]] = []
    for one in reports:
        counts = [count(number) for number in (one.rows_read, one.rows_written, one.rows_removed, one.rows_skipped)]
        rows.append([one.view, instant(one.as_of), *counts, instant(one.newest_event_timestamp), f"{one.seconds:.1f}"])
    project.output.table(["view", "as of (UTC)", *numbers[:-1], "newest value", "seconds"], rows, right=numbers)
    project.output.document(
        {
            "views": [
                {
                    "view": one.view,
                    "now": iso(one.now),
                    "as_of": iso(one.as_of),
                    "generation": one.generation,
                    "rows_read": one.rows_read,
                    "rows_written": one.rows_written,
                    "rows_removed": one.rows_removed,
                    "rows_skipped": one.rows_skipped,
                    "newest_event_timestamp": iso(one.newest_event_timestamp),
                    "newest_source_timestamp": iso(one.newest_source_timestamp),
                    "seconds": one.seconds,
                }
                for one in reports
            ]
        }
    )


@click.command(
    epilog=examples("fp get user_id=8a2f user_segment watch_count_30d", "fp get user_id=8a2f user_id=b13c --service recommender")
)
@click.argument("words", nargs=-1, required=True, metavar="KEY=VALUE... FEATURE...")
@click.option("--service", help="The features of this service instead.")
@now_option("Judge the values' age by it.")
@click.option("--full-feature-names", is_flag=True, help="Name the features <view>__<feature>.")
@json_option
@pass_project
def get(project: Project, *, words: tuple[str, ...], service: str | None, now: datetime | None, full_feature_names: bool) -> None:
    """
    Read features from the online store.

    Values of keys are read as the dtypes that the entity declares. A key that is given again begins the next entity.
    """
    from feature_platform.online.opening import open_online_store  # noqa: PLC0415 - loads redis-py
    from feature_platform.online.retrieval import read_online  # noqa: PLC0415 - slow to import, as the next one

    asked = asked_features(tuple(word for word in words if "=" not in word), service)
    registry, settings = project.registry, project.settings
    keys = registry.join_keys(registry.resolve(asked, full_feature_names=full_feature_names))
    rows = parse_entity_rows([word for word in words if "=" in word], keys)
    with open_online_store(settings) as store:
        answer = read_online(registry, store, settings.project, asked, rows, now=now, full_feature_names=full_feature_names, patient=True)
    show_answer(project, answer)
    project.output.document({"rows": answer_document(answer)})


def show_answer(project: Project, answer: OnlineFeatures) -> None:
    """Print one line a value; the entity stands in the first line of its own only."""
    keys = [name for name in answer.dtypes if name not in answer.names]
    rows: list[list[object]] = []
    for entity, row in zip(answer.entity_rows, answer.rows, strict=True):
        for index, name in enumerate(answer.names):
            found = row[name]
            value = Text(_shown(answer, name, found.value), style="bold" if found.status == FeatureStatus.PRESENT else "dim")
            named = [Text(_shown(answer, key, entity[key]), style="bold cyan") if index == 0 else None for key in keys]
            status = Text(found.status, style=_STYLES.get(found.status, "red"))
            rows.append([*named, name, value, status, instant(found.event_timestamp)])
    project.output.table([*keys, "feature", "value", "status", "event time (UTC)"], rows)


def answer_document(answer: OnlineFeatures) -> list[dict[str, object]]:
    """Return the answer for machines, each value as the API spells it."""
    keys = [name for name in answer.dtypes if name not in answer.names]
    return [
        {
            **{key: _json(answer, key, entity[key]) for key in keys},
            "features": {
                name: {
                    "value": _json(answer, name, row[name].value),
                    "status": str(row[name].status),
                    "event_timestamp": iso(row[name].event_timestamp),
                }
                for name in answer.names
            },
        }
        for entity, row in zip(answer.entity_rows, answer.rows, strict=True)
    ]


def _json(answer: OnlineFeatures, name: str, value: object) -> object:
    to_json = answer.dtypes[name].to_json
    return value if value is None or to_json is None else to_json(value)


def _shown(answer: OnlineFeatures, name: str, value: object) -> str:
    return "null" if value is None else str(_json(answer, name, value))


@click.command(epilog=examples("fp status"))
@now_option("Judge ages by it.")
@json_option
@pass_project
def status(project: Project, *, now: datetime | None) -> None:
    """
    Show what is computed and online, and how old.

    Starts no server.
    """
    from feature_platform.offline.due import pending_windows  # noqa: PLC0415 - loads Parquet
    from feature_platform.offline.inputs import source_files  # noqa: PLC0415 - as above
    from feature_platform.offline.store import OfflineStore  # noqa: PLC0415 - as above

    moment, offline, output = now or datetime.now(UTC), OfflineStore(project.settings.offline_root), project.output
    where, metas = _online_metas(project)
    views = project.registry.views.values()
    found = [
        {
            **_view_status(view, offline.partitions(view), offline.generation(view), metas.get(view.name)),
            **_pending_status(pending_windows(view, offline, source_files(view, project.settings.root, offline.source_footers), moment)),
        }
        for view in views
    ]
    output.table(
        ["view", "windows", "stale", "changed", "rejected", "history up to", "newest source row", "online as of", "online"],
        [_status_row(one, moment) for one in found],
        right=["windows", "stale", "changed", "rejected"],
        optional=["online as of", "newest source row", "stale", "rejected", "changed"],
    )
    output.line(f"online store: {where}", style="dim")
    if any(one["windows_stale"] for one in found):
        output.line("Stale windows were computed by another definition: run `fp compute VIEW --start ...` for them.")
    if any(one["windows_changed"] for one in found):
        output.line("Source files of changed windows are others now: run `fp compute --changed`.")
    if any(one["windows_rejected"] for one in found):
        output.line("Rejected windows break an expectation: readers see what they saw before. `fp compute VIEW` says which and why.")
    document = [{name: iso(value) if isinstance(value, datetime) else value for name, value in one.items()} for one in found]
    output.document({"now": iso(moment), "online_store": where, "views": document})


def _online_metas(project: Project) -> tuple[str, dict[str, ViewMeta]]:
    """Return where the online store is, and what it says of each view."""
    from feature_platform.online.codec import ViewCodec  # noqa: PLC0415 - slow to import
    from feature_platform.online.embedded import server_status  # noqa: PLC0415 - loads redis-py
    from feature_platform.online.meta import ViewMeta  # noqa: PLC0415 - beside its only use
    from feature_platform.online.opening import open_online_store  # noqa: PLC0415 - loads redis-py

    settings = project.settings
    if settings.redis_url is None:
        server = server_status(settings.online_root)
        if server is None:
            return "embedded, not running", {}
        where = f"embedded, {server.socket}, {count(server.keys)} keys, {server.used_memory_bytes / 1e6:.0f} MB"
    else:
        where = online_address(settings.redis_url)
    views = list(project.registry.views.values())
    with open_online_store(settings) as store:
        values = store.get_many([ViewCodec(settings.project, view).meta_key for view in views], patient=True)
    return where, {view.name: ViewMeta.from_bytes(value) for view, value in zip(views, values, strict=True) if value is not None}


def online_address(url: str) -> str:
    """Return a URL of Redis without its password."""
    from feature_platform.online.connections import Address  # noqa: PLC0415 - loads redis-py
    from feature_platform.online.opening import MEMORY_URL  # noqa: PLC0415 - as above

    return url if url == MEMORY_URL else Address.parse(url).shown


def _view_status(view: FeatureView, partitions: list[Partition], generation: int, meta: ViewMeta | None) -> dict[str, Any]:
    newest = [one.newest_source_timestamp for one in partitions if one.newest_source_timestamp is not None]
    events = [one.max_event_timestamp for one in partitions if one.max_event_timestamp is not None]
    ends = [one.end for one in partitions] if view.is_window_view else events
    as_of = None if meta is None else meta.as_of if meta.as_of is not None else meta.materialized_at
    return {
        "view": view.name,
        "windows": len(partitions),
        "windows_stale": sum(one.definition != view.definition_hash for one in partitions),
        "history_until": from_micros(max(ends)) if ends else None,
        "newest_source_timestamp": from_micros(max(newest)) if newest else None,
        "freshness_seconds": None if view.freshness is None else view.freshness.total_seconds(),
        "generation": generation,
        "online_generation": None if meta is None else meta.generation,
        "online_as_of": None if as_of is None else from_micros(as_of),
        "materialized_at": None if meta is None else from_micros(meta.materialized_at),
    }


def _pending_status(pending: Pending) -> dict[str, Any]:
    return {"windows_changed": len(pending.late) + len(pending.waiting), "windows_rejected": len(pending.rejected)}


def _status_row(one: dict[str, Any], now: datetime) -> list[object]:
    source, promise = one["newest_source_timestamp"], one["freshness_seconds"]
    is_late = source is not None and promise is not None and now - source > timedelta(seconds=promise)
    if one["online_generation"] is None:
        online = Text("absent: fp materialize", style="yellow")
    elif one["online_generation"] < one["generation"]:
        online = Text("behind: fp materialize", style="yellow")
    else:
        online = Text("up to date", style="green")
    return [
        Text(one["view"], style="bold cyan"),
        count(one["windows"]),
        one["windows_stale"] or None,
        Text(count(one["windows_changed"]) if one["windows_changed"] else "", style="yellow"),
        Text(count(one["windows_rejected"]) if one["windows_rejected"] else "", style="red"),
        ago(one["history_until"], now),
        Text(ago(source, now), style="red" if is_late else ""),
        ago(one["online_as_of"], now),
        online,
    ]
