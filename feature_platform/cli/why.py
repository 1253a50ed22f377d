"""
`fp why`: where a served value comes from, down to the partition file, the runs and the SQL.

Shows what `tracing` finds, which loads DuckDB when the command runs and not before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.syntax import Syntax

from feature_platform.cli.arguments import Project, examples, json_option, now_option, parse_entity_rows, pass_project
from feature_platform.cli.output import ago, count, instant, iso, shown_path
from feature_platform.dtypes import from_micros
from feature_platform.wording import definition_text, span

if TYPE_CHECKING:
    from feature_platform.cli.tracing import Trace
    from feature_platform.online.answers import FeatureValue
    from feature_platform.settings import Settings

__all__ = ["why"]

_COMMAND_LINE = "the command line"


@click.command(epilog=examples("fp why user_id=8a2f watch_count_30d", "fp why user_id=8a2f user_segment last_genre --json"))
@click.argument("words", nargs=-1, required=True, metavar="KEY=VALUE... FEATURE...")
@now_option("Judge the value's age by it.")
@json_option
@pass_project
def why(project: Project, *, words: tuple[str, ...], now: datetime | None) -> None:
    """
    Say where a served value comes from.

    Its status and age in words, the partition file that holds it and what that file says, the runs that computed and pushed
    it, and the SQL. For one entity.
    """
    from feature_platform.cli.tracing import trace_value  # noqa: PLC0415 - loads DuckDB
    from feature_platform.online.opening import open_online_store  # noqa: PLC0415 - loads redis-py

    registry, settings = project.registry, project.settings
    features = [word for word in words if "=" not in word]
    if not features:
        raise click.UsageError("no feature is asked for: name some.")
    refs = [registry.resolve([name])[0] for name in features]  # one by one: two views may have features of one name
    rows = parse_entity_rows([word for word in words if "=" in word], registry.join_keys(refs))
    if len(rows) > 1:
        raise click.UsageError("several entities are named: ask for one at a time.")
    moment = now or datetime.now(UTC)
    with open_online_store(settings) as online:
        traces = [trace_value(registry, settings, online, ref, rows[0], moment) for ref in refs]
    for index, trace in enumerate(traces):
        if index:
            project.output.line()
        _show(project, trace, moment)
    keys = registry.join_keys(refs)
    entity = {name: value if (to_json := keys[name].to_json) is None else to_json(value) for name, value in rows[0].items()}
    project.output.document({"now": iso(moment), "entity": entity, "features": [_document(settings, one, moment) for one in traces]})


def _show(project: Project, trace: Trace, now: datetime) -> None:
    output, settings, view = project.output, project.settings, trace.ref.view
    served, push, partition = trace.served, trace.push, trace.partition
    heading = "not in the online store" if served is None else f"{_text(trace, served)} ({served.status})"
    output.line(f"{trace.ref}: {heading}", style="bold cyan")
    moment = served.event_timestamp if served else None
    facts: dict[str, object] = {
        "why": trace.reason,
        "event time": moment and f"{instant(moment)} UTC, {ago(moment, now)}",
        "ttl": span(view.ttl) or "none: a value holds for ever",
    }
    if push:
        facts["age of the data"] = _age(push.age_seconds)
        behind = f"; the history was written since: fp materialize {view.name}" if trace.is_behind else ""
        facts["pushed by"] = f"{_run(settings, push.run_id)}, as of {instant(push.materialized_at)} UTC{behind}"
    if partition and trace.path:
        rows = f"{'full' if partition.is_full else 'changes'}, {count(partition.rows)} rows, generation {partition.generation}"
        stale = "" if partition.definition == view.definition_hash else f"; of an earlier definition ({partition.definition})"
        computed = f" at {instant(from_micros(partition.computed_at))} UTC" if partition.computed_at is not None else ""
        facts["partition"] = shown_path(trace.path, settings.root)
        facts["its footer"] = f"{rows}; {partition.window}{stale}"
        facts["computed by"] = f"{_run(settings, partition.run_id)}{computed}"
    if trace.agrees is not None:
        held = _text(trace, trace.in_file) if trace.in_file else "no row of this entity at that time"
        facts["in the file"] = f"{held}, {'as in the online store' if trace.agrees else trace.advice}"
    facts["definition"] = view.definition_hash
    output.facts(facts)
    text = definition_text(view, trace.ref.feature)
    output.show(Syntax(text, "sql", background_color="default", word_wrap=True) if isinstance(view.query, str) else f"  {text}")


def _document(settings: Settings, trace: Trace, now: datetime) -> dict[str, object]:
    served, push, partition, view = trace.served, trace.push, trace.partition, trace.ref.view
    moment = served.event_timestamp if served else None
    return {
        "feature": str(trace.ref),
        "value": _json(trace, served),
        "status": served.status if served else None,
        "reason": trace.reason,
        "event_timestamp": iso(moment),
        "value_age_seconds": None if moment is None else (now - moment).total_seconds(),
        "ttl_seconds": None if view.ttl is None else view.ttl.total_seconds(),
        "push": push
        and {
            **_run_document(settings, push.run_id),
            "partition": push.partition,
            "code_version": push.code_version,
            "as_of": iso(push.as_of),
            "materialized_at": iso(push.materialized_at),
            "age_seconds": push.age_seconds,
            "is_behind": trace.is_behind,
        },
        "partition": partition
        and trace.path
        and {
            "path": shown_path(trace.path, settings.root),
            "window": {"start": iso(partition.window.start), "end": iso(partition.window.end)},
            "kind": "full" if partition.is_full else "changes",
            "rows": partition.rows,
            "generation": partition.generation,
            "code_version": partition.definition,
            "is_stale": partition.definition != view.definition_hash,
            "computed_at": None if partition.computed_at is None else iso(from_micros(partition.computed_at)),
            **_run_document(settings, partition.run_id),
        },
        "in_file": None
        if trace.agrees is None
        else {"value": _json(trace, trace.in_file), "is_there": trace.in_file is not None, "agrees": trace.agrees, "advice": trace.advice},
        "definition": {
            "code_version": view.definition_hash,
            "is_sql": isinstance(view.query, str),
            "text": definition_text(view, trace.ref.feature),
        },
    }


def _run(settings: Settings, run_id: str | None) -> str:
    return f"run {run_id[:8]} ({_run_url(settings, run_id)})" if run_id else _COMMAND_LINE


def _run_document(settings: Settings, run_id: str | None) -> dict[str, object]:
    return {"run_id": run_id, "run_url": run_id and _run_url(settings, run_id)}


def _run_url(settings: Settings, run_id: str) -> str:
    return f"{settings.dagster_url.rstrip('/')}/runs/{run_id}"


def _age(seconds: float) -> str:
    whole = ago(from_micros(0), from_micros(max(int(seconds), 0) * 1_000_000))
    return f"its newest source row is from {whole}"


def _json(trace: Trace, found: FeatureValue | None) -> Any:  # noqa: ANN401 - any dtype, as JSON
    to_json = trace.ref.feature.type.to_json
    value = None if found is None else found.value
    return value if value is None or to_json is None else to_json(value)


def _text(trace: Trace, found: FeatureValue) -> str:
    value = _json(trace, found)
    return "null" if value is None else str(value)
