"""
The command line: `python -m benchmarks NAME [--quick] [--peers ...] [--json PATH]`, and `report` for runs that were kept.

Knows which benchmarks there are. Knows nothing of what they measure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from benchmarks import backfill, event_to_redis, graph, http_api, materialize, pit, sdk
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.measuring import BenchmarkError, Context, Tally
from benchmarks.report import print_document, to_markdown

__all__ = ["BENCHMARKS", "PEERS", "main", "run_benchmarks"]

BENCHMARKS: Final = {
    "pit": pit.run,
    "materialize": materialize.run,
    "sdk": sdk.run,
    "http": http_api.run,
    "graph": graph.run,
    "backfill": backfill.run,
    "latency": event_to_redis.run,
}
PEERS: Final = ("duckdb", "polars", "pandas", "feast")
_INSTALLED: Final = "duckdb,polars,pandas"
_CACHE: Final = Path(__file__).parent / ".data"


def run_benchmarks(
    names: Sequence[str], *, size: str, peers: str, console: Console, cache: Path = _CACHE
) -> tuple[dict[str, Any], Sequence[str]]:
    """
    Run benchmarks one after another.

    Args:
        names: Of `BENCHMARKS`.
        size: "quick" or "full"; tests use "tiny".
        peers: "all", "none", or some of `PEERS` with commas between them.
        console: Where progress is shown.
        cache: Keeps generated data.

    Returns:
        The document of the runs, and why subjects are missing.
    """
    wanted = _peers(peers)
    machine = describe_machine()
    tally = Tally()
    cache.mkdir(parents=True, exist_ok=True)
    with console.status("") as status:
        context = Context(
            size=size, peers=wanted, limits=peers != "none", cache=cache, say=status.update if console.is_terminal else console.print
        )
        for name in names:
            BENCHMARKS[name](context, tally)
    has_feast = any(result.subject == "feast" for result in tally.results)
    document = {
        "machine": machine,
        "versions": describe_versions(cache / "feast-0.67.0" if has_feast else None),
        "cases": [result.to_json() for result in tally.results],
    }
    return document, tally.left_out


def _peers(text: str) -> frozenset[str]:
    if text in {"all", "none"}:
        return frozenset(PEERS if text == "all" else ())
    named = frozenset(one.strip() for one in text.split(","))
    if unknown := named - set(PEERS):
        message = f"{min(unknown)!r} is no peer. Write all, none, or some of {','.join(PEERS)}."
        raise click.BadParameter(message, param_hint="--peers")
    return named


@click.command()
@click.argument("name", type=click.Choice([*BENCHMARKS, "all", "report"]))
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--quick", is_flag=True, help="Smaller cases, named by their sizes: minutes instead of an hour.")
@click.option("--peers", default=_INSTALLED, show_default=True, help="all, none, or some of duckdb,polars,pandas,feast.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file, too.")
def main(name: str, files: tuple[Path, ...], *, quick: bool, peers: str, json_path: Path | None) -> None:
    """
    Measure the feature platform beside its peers and its limits.

    NAME is a benchmark, or all of them. Or report, which turns the FILES of --json into Markdown.
    """
    if name == "report":
        documents: list[Mapping[str, Any]] = [json.loads(file.read_text()) for file in files]
        click.echo(to_markdown(documents), nl=False)
        return
    if files:
        message = f"{files[0]}: only report takes files."
        raise click.UsageError(message)
    console = Console()
    progress = Console(stderr=True)
    names = list(BENCHMARKS) if name == "all" else [name]
    try:
        document, left_out = run_benchmarks(names, size="quick" if quick else "full", peers=peers, console=progress)
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    print_document(console if console.is_terminal else Console(width=160), document)
    for line in left_out:
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    if json_path is not None:
        json_path.write_text(json.dumps(document, indent=1) + "\n")
    wrong = [f"{row['case']}: {row['subject']}" for row in document["cases"] if not row["equal"]]
    if wrong:
        message = f"answers differ from feature_platform's: {'; '.join(wrong)}"
        raise click.ClickException(message)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
