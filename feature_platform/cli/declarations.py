"""
`fp list`, `fp describe` and `fp check`: what is declared, and whether it holds.

Knows the registry. Opens no store; only `check --sources` loads DuckDB.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.syntax import Syntax
from rich.text import Text

from feature_platform.cli.arguments import Project, examples, json_option, pass_project
from feature_platform.cli.output import iso, shown_path
from feature_platform.errors import FeaturePlatformError, UnknownNameError
from feature_platform.model import Aggregate, Feature, FeatureService, FeatureView
from feature_platform.wording import definition_text, span

if TYPE_CHECKING:
    from feature_platform.registry import FeatureRef, Registry

__all__ = ["check", "describe", "list_features", "show_features", "view_document"]


@click.command("list", epilog=examples("fp list"))
@json_option
@pass_project
def list_features(project: Project) -> None:
    """List every declared feature, by view."""
    show_features(project)
    document: dict[str, Any] = {
        "views": [view_document(view) for view in project.registry.views.values()],
        "services": [_service_document(project.registry, service) for service in project.registry.services.values()],
    }
    project.output.document(document)


def show_features(project: Project) -> None:
    """Print the table of features; the view's own columns stand in its first row only."""
    rows: list[list[object]] = []
    for view in project.registry.views.values():
        for index, feature in enumerate(view.features):
            of_view: list[object] = [Text(view.name, style="bold cyan"), str(view.kind)]
            times: list[object] = [view.schedule, span(view.ttl), span(view.freshness), ", ".join(view.owners)]
            if index:
                of_view, times = [None] * len(of_view), [None] * len(times)
            rows.append([*of_view, Text(feature.name, style="bold"), str(feature.type), *times, feature.description])
    columns = ["view", "kind", "feature", "dtype", "schedule", "ttl", "freshness", "owners", "description"]
    project.output.table(columns, rows, optional=["owners", "description", "freshness", "ttl"])


@click.command(epilog=examples("fp describe user_activity", "fp describe user_activity:watch_count_30d", "fp describe recommender"))
@click.argument("name", metavar="VIEW|VIEW:FEATURE|SERVICE")
@json_option
@pass_project
def describe(project: Project, name: str) -> None:
    """Describe a view, a feature or a service."""
    registry = project.registry
    if name in registry.views:
        _describe_view(project, registry.views[name])
    elif name in registry.services:
        _describe_service(project, registry.services[name])
    else:
        _describe_feature(project, _feature_named(registry, name))


def _feature_named(registry: Registry, name: str) -> FeatureRef:
    try:
        return registry.resolve([name])[0]
    except UnknownNameError:
        if ":" in name:
            raise
        features = [feature for view in registry.views.values() for feature in view.feature_by_name]
        known = [*registry.views, *registry.services, *features]
        raise UnknownNameError("view, feature or service", name, known, field="name") from None


def _describe_view(project: Project, view: FeatureView) -> None:
    output, keys = project.output, ", ".join(f"{name} ({dtype})" for name, dtype in view.entity.keys.items())
    output.line(f"{view.name}: {view.kind} view", style="bold cyan")
    output.facts(
        {
            "description": view.description,
            "entity": f"{view.entity.name}: {keys or 'no join keys, one value for everybody'}",
            "schedule": view.schedule or "none: one table, computed as one",
            "timezone": view.timezone if view.timezone != "UTC" else None,
            "start": iso(view.start) if view.start and view.start.tzinfo else view.start,
            "lookback": span(view.lookback),
            "delay": span(view.delay) if view.delay else None,
            "ttl": span(view.ttl) or "none: a value holds for ever",
            "freshness": span(view.freshness),
            "owners": ", ".join(view.owners),
            "sources": ", ".join(f"{source.name} ({source.path})" for source in view.sources),
            "history": shown_path(project.settings.offline_root / view.name, project.settings.root),
            "definition": view.definition_hash,
        }
    )
    output.line()
    rows = [[feature.name, feature.type, _meaning(feature), _default(feature), feature.description] for feature in view.features]
    output.table(["feature", "dtype", "value", "default", "description"], rows)
    if isinstance(view.query, str):
        output.line()
        output.show(Syntax(definition_text(view, view.features[0]), "sql", background_color="default", word_wrap=True))
    output.document({"type": "view", **view_document(view), "query": view.query if isinstance(view.query, str) else None})


def _describe_feature(project: Project, ref: FeatureRef) -> None:
    view, feature, output = ref.view, ref.feature, project.output
    output.line(str(ref), style="bold cyan")
    services = [service.name for service in project.registry.services.values() if _is_in(service, ref)]
    output.facts(
        {
            "description": feature.description,
            "dtype": feature.type,
            "value": _meaning(feature),
            "default": _default(feature),
            "view": f"{view.name} ({view.kind}, {view.schedule or 'no schedule'})",
            "entity": f"{view.entity.name}: {', '.join(view.entity.join_keys)}",
            "ttl": span(view.ttl) or "none: a value holds for ever",
            "freshness": span(view.freshness),
            "owners": ", ".join(view.owners),
            "services": ", ".join(services),
        }
    )
    output.document({"type": "feature", "view": view.name, **_feature_document(feature), "services": services})


def _describe_service(project: Project, service: FeatureService) -> None:
    output, document = project.output, _service_document(project.registry, service)
    output.line(f"{service.name}: service", style="bold cyan")
    refs = project.registry.resolve(service)
    output.facts({"description": service.description, "join keys": ", ".join(project.registry.join_keys(refs))})
    output.line()
    rows = [[ref.column, str(ref), ref.feature.type, _default(ref.feature), ref.feature.description] for ref in refs]
    output.table(["column", "feature", "dtype", "default", "description"], rows)
    output.document({"type": "service", **document})


@click.command(epilog=examples("fp check", "fp check --sources"))
@click.option("--sources", is_flag=True, help="Also read the sources: compute each view's newest window into a temporary folder.")
@json_option
@pass_project
def check(project: Project, *, sources: bool) -> None:
    """
    Check that the declarations load.

    With --sources, that they can be computed too. Nothing is kept: the history and the online store are left alone.
    """
    registry, output = project.registry, project.output
    results: list[dict[str, object]] = []
    if sources:
        with output.progress("checking") as progress:
            for done, view in enumerate(registry.views.values()):
                progress("views", done, len(registry.views))
                results.append(_try_view(project, view))
    features = sum(len(view.features) for view in registry.views.values())
    output.line(f"{len(registry.views)} views, {features} features, {len(registry.services)} services declared, without a contradiction.")
    if results:
        good, bad = Text("ok", style="green"), Text("failed", style="bold red")
        rows = [[one["view"], bad if one["problem"] else good, one["window"], one["rows"], one["problem"]] for one in results]
        output.table(["view", "sources", "window", "rows", "problem"], rows, right=["rows"])
    failed = [one for one in results if one["problem"] is not None]
    output.document({"views": len(registry.views), "features": features, "services": len(registry.services), "sources": results or None})
    if failed:
        click.get_current_context().exit(1)


def _try_view(project: Project, view: FeatureView) -> dict[str, object]:
    """Compute one window of a view where nobody looks."""
    import duckdb  # noqa: PLC0415 - slow to import, and only for --sources

    from feature_platform.offline.compute import compute_windows  # noqa: PLC0415 - as above
    from feature_platform.offline.due import requested_windows  # noqa: PLC0415 - as above
    from feature_platform.offline.store import OfflineStore  # noqa: PLC0415 - as above

    now = datetime.now(UTC)
    windows = requested_windows(view, None, None, now)[-1:]
    result: dict[str, object] = {
        "view": view.name,
        "window": str(windows[0]) if windows else "none is closed yet",
        "rows": 0,
        "problem": None,
    }
    try:
        with tempfile.TemporaryDirectory() as folder, duckdb.connect(":memory:") as connection:
            reports = compute_windows(connection, view, windows, store=OfflineStore(Path(folder)), root=project.settings.root, now=now)
            result["rows"] = sum(report.partition.rows for report in reports)
    except FeaturePlatformError as error:
        result["problem"] = str(error)
    return result


def view_document(view: FeatureView) -> dict[str, object]:
    """Return a view for machines; lengths of time are seconds."""
    return {
        "name": view.name,
        "kind": str(view.kind),
        "entity": view.entity.name,
        "join_keys": {name: str(dtype) for name, dtype in view.entity.keys.items()},
        "schedule": view.schedule,
        "timezone": view.timezone,
        "start": None if view.start is None else view.start.isoformat(),
        "lookback_seconds": _seconds(view.lookback),
        "delay_seconds": _seconds(view.delay),
        "ttl_seconds": _seconds(view.ttl),
        "freshness_seconds": _seconds(view.freshness),
        "owners": list(view.owners),
        "description": view.description,
        "sources": [{"name": source.name, "path": source.path} for source in view.sources],
        "definition": view.definition_hash,
        "features": [_feature_document(feature) for feature in view.features],
    }


def _feature_document(feature: Feature | Aggregate) -> dict[str, object]:
    default, to_json = feature.effective_default, feature.type.to_json
    return {
        "name": feature.name,
        "dtype": str(feature.type),
        "default": default if default is None or to_json is None else to_json(default),
        "description": feature.description,
    }


def _service_document(registry: Registry, service: FeatureService) -> dict[str, object]:
    refs = registry.resolve(service)
    return {
        "name": service.name,
        "description": service.description,
        "join_keys": {name: str(dtype) for name, dtype in registry.join_keys(refs).items()},
        "features": [{"column": ref.column, "feature": str(ref), "dtype": str(ref.feature.type)} for ref in refs],
    }


def _seconds(length: timedelta | None) -> float | None:
    return None if length is None else length.total_seconds()


def _meaning(feature: Feature | Aggregate) -> str:
    if not isinstance(feature, Aggregate):
        return "a column of the query"
    of = f" of {feature.column}" if feature.column else ""
    where = f" where {feature.where}" if feature.where else ""
    return f"{feature.function}{of} over {span(feature.window)}{where}"


def _default(feature: Feature | Aggregate) -> object:
    return "null" if feature.effective_default is None else repr(feature.effective_default)


def _is_in(service: FeatureService, ref: FeatureRef) -> bool:
    return any(one.view.name == ref.view.name and ref.feature.name in one.names for one in service.selections)
