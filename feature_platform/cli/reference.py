"""
docs/cli.md, generated from `--help`: `python -m feature_platform.cli.reference` writes it.

Knows click's help. A test fails where the page is stale.
"""

from __future__ import annotations

from pathlib import Path

import click

from feature_platform.cli import cli
from feature_platform.cli.output import EXIT_CODES

__all__ = ["all_commands", "help_text", "page"]

_HEAD = """# Command line

`feature-platform`, or `fp` for short. Generated from `--help`: run `python -m feature_platform.cli.reference` after changing a command.

- Commands work from any folder of a project: they look upward for a `pyproject.toml` with `[tool.feature_platform]`.
- Every command takes `--json`: stdout then gets one JSON document and nothing else. Where the command fails it is
  `{"error": {"type": ..., "message": ..., "field": ...}}`. Progress and messages go to stderr.
- A table leaves out what does not fit the terminal (owners and descriptions first); the JSON has it all.
- Times are ISO 8601, in UTC unless they name an offset. In JSON, times are UTC and lengths of time are seconds.

## Exit codes

| code | meaning |
| --- | --- |
"""


def page() -> str:
    """Return the page's text."""
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    parts = [_HEAD + codes, "## fp\n\n" + help_text(cli, "fp")]
    parts += [f"## {path}\n\n{help_text(command, path)}" for path, command in all_commands().items()]
    return "\n\n".join(parts) + "\n"


def all_commands(group: click.Group = cli, path: str = "fp") -> dict[str, click.Command]:
    """Return every command by how it is typed, those of groups after their group."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[f"{path} {name}"] = command
        if isinstance(command, click.Group):
            found |= all_commands(command, f"{path} {name}")
    return found


def help_text(command: click.Command, path: str) -> str:
    """Return the help of a command as a block."""
    # One width, whatever the terminal, so that the page is the same everywhere.
    context = click.Context(command, info_name=path, terminal_width=100, max_content_width=100, help_option_names=["-h", "--help"])
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "docs" / "cli.md"
    target.write_text(page(), encoding="utf-8")
