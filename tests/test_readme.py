"""The README and docs, executed: blocks run, commands exist, nothing public is left out, generated pages are fresh."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest

from feature_platform import Settings, errors
from feature_platform.cli import cli
from feature_platform.cli.project import project_files
from feature_platform.cli.reference import all_commands, page

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALL_TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:`|^ *|\$ |&& )(?:fp|feature-platform) ([a-z][a-z-]*)", re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the blocks of a language: where each stands, and its text."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{path.relative_to(ROOT)}:{line}", match[2]))
    return found


@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=[where for where, _ in blocks("python")])
def test_python_blocks_run_alone(where: str, code: str, tmp_path: Path) -> None:
    """Each block runs in a process of its own, in an empty folder, without a warning."""
    script = tmp_path / "block.py"
    script.write_text(code, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEATURE_PLATFORM_")}
    done = subprocess.run([sys.executable, "-W", "error", script], cwd=tmp_path, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}\n{done.stderr}"


def test_there_are_python_blocks() -> None:
    """The pages that promise running blocks have some."""
    pages = {where.partition(":")[0] for where, _ in blocks("python")}
    assert {"README.md", "docs/declaring.md", "docs/production.md"} <= pages


def test_commands_of_the_docs_exist() -> None:
    """Every `fp word` in README and docs is a command."""
    mentioned = {name for path in PAGES for name in COMMAND.findall(path.read_text(encoding="utf-8"))}
    assert {"demo", "up", "list", "get", "init"} <= mentioned
    assert mentioned <= set(cli.commands)


def test_make_recipes_of_the_docs_exist() -> None:
    """Every `make word` in README and docs is a recipe."""
    recipes = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    mentioned = set(re.findall(r"(?:`|^|\$ )make ([a-z]+)", ALL_TEXT, re.MULTILINE))
    assert {"demo", "up", "test"} <= mentioned <= recipes


def test_every_command_and_option_is_documented() -> None:
    """A command or an option that no page shows would be found by nobody."""
    for path, command in all_commands().items():
        assert path in ALL_TEXT
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.opts[0] in ALL_TEXT, f"{path} {option.opts[0]}"


@pytest.mark.parametrize("name", [one.name for one in fields(Settings)])
def test_every_setting_is_documented(name: str) -> None:
    """Each setting stands in the docs under the name of its variable."""
    assert f"FEATURE_PLATFORM_{name.upper()}" in ALL_TEXT


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_error_is_documented(name: str) -> None:
    """Each error class stands in the docs."""
    assert re.search(rf"\b{name}\b", ALL_TEXT)


def test_the_command_line_page_is_fresh() -> None:
    """docs/cli.md is what `python -m feature_platform.cli.reference` writes."""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page()


def test_a_new_project_has_every_file_of_the_example() -> None:
    """What is in features/ and at the root of this project is in a new one, word for word."""
    files = project_files("shop")
    for path in [*(ROOT / "features").glob("*.py"), ROOT / "definitions.py", ROOT / "dagster.yaml"]:
        assert files[str(path.relative_to(ROOT))] == path.read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    """Every relative link of README and docs names a file that exists."""
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_list_of_the_readme_is_real() -> None:
    """The README's output of `fp list` is what the command prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEATURE_PLATFORM_")}
    done = subprocess.run(
        [sys.executable, "-m", "feature_platform.cli", "list"],
        cwd=ROOT,
        env={**kept, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    assert printed in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_fits() -> None:
    """The README stays a page that people read."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
