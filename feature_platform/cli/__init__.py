"""
The command line: `feature-platform`, or `fp` for short.

Knows which commands there are. Each loads what it needs when it runs, so that `fp --help` answers at once.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from feature_platform.cli.arguments import Commands, examples
from feature_platform.cli.declarations import check, describe, list_features
from feature_platform.cli.demo import demo
from feature_platform.cli.history import compact, compute, history, sample
from feature_platform.cli.online import get, materialize, rebuild_online, status
from feature_platform.cli.project import init
from feature_platform.cli.servers import down, serve, up
from feature_platform.cli.tokens import token
from feature_platform.cli.verify import verify
from feature_platform.cli.why import why

__all__ = ["cli", "main"]


def _version() -> str:
    try:
        return version("feature-platform")
    except PackageNotFoundError:  # run from a folder of sources
        return "0+unknown"


_START = examples(
    "fp init my_features    a new project",
    "fp demo                the whole path on sample data",
    "fp up                  online store, Dagster and API",
)


@click.group(cls=Commands, epilog=_START, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(_version(), prog_name="feature-platform")
def cli() -> None:
    """
    Run a feature store that lives inside Dagster.

    Run it anywhere in a project: the folder of the nearest pyproject.toml with [tool.feature_platform].
    """


for command in (
    init,
    sample,
    demo,
    up,
    down,
    list_features,
    describe,
    check,
    compute,
    compact,
    materialize,
    get,
    why,
    history,
    verify,
    serve,
    token,
    rebuild_online,
    status,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    cli(prog_name="fp")
