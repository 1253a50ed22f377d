"""
The command line: `python -m benchmarks NAME [--quick] [--peers ...] [--json PATH]`; `report` and `docs` for runs that were kept.

Knows which benchmarks there are. Knows nothing of what they measure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from benchmarks import backfill, compute, event_to_redis, graph, growth, http_api, materialize, newest, page, pit, sdk, windows
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.measuring import BenchmarkError, Context, Tally
from benchmarks.report import print_document, to_markdown
from benchmarks.slopes import with_slopes

__all__ = ["BENCHMARKS", "PEERS", "main", "run_benchmarks"]

BENCHMARKS: Final = {
    "pit": pit.run,
    "windows": windows.run,
    "newest": newest.run,
    "compute": compute.run,
    "materialize": materialize.run,
    "sdk": sdk.run,
    "http": http_api.run,
    "graph": graph.run,
    "backfill": backfill.run,
    "latency": event_to_redis.run,
    "growth": growth.run,
}
PEERS: Final = ("duckdb", "polars", "pandas", "feast")
_INSTALLED: Final = "duckdb,polars,pandas"
_CACHE: Final = Path(__file__).parent / ".data"


def run_benchmarks(
    names: Sequence[str],
    *,
    size: str,
    peers: str,
    console: Console,
    case: str = "",
    cache: Path = _CACHE,
    keep: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> tuple[dict[str, Any], Tally]:
    """
    Run benchmarks one after another; one that fails is said, and the others are run.

    Args:
        names: Of `BENCHMARKS`.
        size: "quick" or "full"; tests use "tiny".
        peers: "all", "none", or some of `PEERS` with commas between them.
        console: Where progress is shown.
        case: Part of the names of the cases wanted.
        cache: Keeps generated data.
        keep: Called after each case with the document so far.

    Returns:
        The document of the runs, and the tally, which tells why subjects are missing and what failed.
    """
    wanted = _peers(peers)
    machine = describe_machine()
    tally, benchmark_of = Tally(), list[str]()
    cache.mkdir(parents=True, exist_ok=True)

    def document() -> dict[str, Any]:
        benchmark_of.extend([name] * (len(tally.results) - len(benchmark_of)))
        has_feast = any(result.subject == "feast" for result in tally.results)
        rows = [result.to_json() | {"benchmark": its} for result, its in zip(tally.results, benchmark_of, strict=True)]
        versions = describe_versions(cache / "feast-0.67.0" if has_feast else None)
        return {"machine": machine, "versions": versions, "cases": with_slopes(rows)}

    tally.keep = lambda: keep(document())
    with console.status("") as status:
        context = Context(
            size=size,
            peers=wanted,
            limits=peers != "none",
            cache=cache,
            say=status.update if console.is_terminal else console.print,
            case=case,
        )
        for name in names:
            try:
                BENCHMARKS[name](context, tally)
            except BenchmarkError as error:
                tally.failed.append(f"{name} failed: {error}")
            tally.keep()
    return document(), tally


def _peers(text: str) -> frozenset[str]:
    if text in {"all", "none"}:
        return frozenset(PEERS if text == "all" else ())
    named = frozenset(one.strip() for one in text.split(","))
    if unknown := named - set(PEERS):
        message = f"{min(unknown)!r} is no peer. Write all, none, or some of {','.join(PEERS)}."
        raise click.BadParameter(message, param_hint="--peers")
    return named


@click.command()
@click.argument("name", type=click.Choice([*BENCHMARKS, "all", "report", "docs"]))
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--quick", is_flag=True, help="Smaller cases, named by their sizes: minutes instead of hours.")
@click.option("--peers", default=_INSTALLED, show_default=True, help="all, none, or some of duckdb,polars,pandas,feast.")
@click.option("--case", default="", help="Only the cases whose names hold this.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file, too.")
def main(name: str, files: tuple[Path, ...], *, quick: bool, peers: str, case: str, json_path: Path | None) -> None:
    """
    Measure the feature platform beside its peers and its limits.

    NAME is a benchmark, or all of them. Or report, which turns the FILES of --json into Markdown; or docs, which writes the figures
    and plots of docs/benchmarks.md from the FILES (benchmarks/figures/*.json if left out).
    """
    if name == "report":
        click.echo(to_markdown(page.read(files)), nl=False)
        return
    if name == "docs":
        page.write(page.read(files or page.kept()))
        return
    if files:
        message = f"{files[0]}: only report and docs take files."
        raise click.UsageError(message)
    console = Console()
    progress = Console(stderr=True)
    names = list(BENCHMARKS) if name == "all" else [name]

    def keep(document: Mapping[str, Any]) -> None:
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            temporary = json_path.with_suffix(".tmp")
            temporary.write_text(json.dumps(document, indent=1) + "\n")
            temporary.replace(json_path)

    document, tally = run_benchmarks(names, size="quick" if quick else "full", peers=peers, case=case, console=progress, keep=keep)
    print_document(console if console.is_terminal else Console(width=160), document)
    for line in tally.left_out:
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    wrong = [f"{row['case']}: {row['subject']}" for row in document["cases"] if not row["equal"]]
    problems = tally.failed + ([f"answers differ from feature_platform's: {'; '.join(wrong)}"] if wrong else [])
    if problems:
        raise click.ClickException("\n".join(problems))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
