"""
`fp init`: a new project from the running example.

Knows the files of a project. The example's own are taken as they are, so a new project is what this one's tests run.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import click

from feature_platform.cli.arguments import Project, examples, json_option, pass_project
from feature_platform.errors import SettingsError

__all__ = ["init", "project_files"]

_PYPROJECT = """[project]
name = "{name}"
version = "0.1.0"
description = "Features of {name}."
requires-python = ">=3.11"
dependencies = ["feature-platform"]

# Every setting can stand here, and in the environment as FEATURE_PLATFORM_<NAME>.
[tool.feature_platform]
project = "{name}"
registry = "features.streaming:registry"
"""
_GITIGNORE = """# Generated at run time
/data/
/.dagster/

# Environments and caches
.venv/
__pycache__/
"""
_COPIED = {
    "features/__init__.py": "features.__init__.py.txt",
    "features/streaming.py": "features.streaming.py.txt",
    "features/training.py": "features.training.py.txt",
    "definitions.py": "definitions.py.txt",
    "workspace.yaml": "workspace.yaml",
    "dagster.yaml": "dagster.yaml",
}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9]+")


def project_files(name: str) -> dict[str, str]:
    """Return the files of a new project, by path."""
    template = files("feature_platform.cli") / "template"
    copied = {path: (template / source).read_text(encoding="utf-8") for path, source in _COPIED.items()}
    copied["workspace.yaml"] = copied["workspace.yaml"].replace("location_name: feature_platform", f"location_name: {name}")
    return {"pyproject.toml": _PYPROJECT.format(name=name), ".gitignore": _GITIGNORE, **copied}


@click.command(epilog=examples("fp init my_features"))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", help="Of the project: a prefix of its keys in the online store. [default: the folder's]")
@json_option
@pass_project
def init(project: Project, *, folder: Path, name: str | None) -> None:
    """
    Make a new project from the running example.

    Writes pyproject.toml, features/, definitions.py, workspace.yaml, dagster.yaml and .gitignore, and overwrites nothing.
    """
    folder = folder.absolute()
    name = _NOT_IN_NAMES.sub("_", name or folder.name).strip("_").lower() or "features"
    wanted = project_files(name)
    present = [path for path in wanted if (folder / path).exists() or (folder / path).is_symlink()]
    if present:
        message = f"{folder} has {', '.join(present)} already, and nothing is overwritten.\nName a new folder."
        raise SettingsError(message, field="folder")
    for path, text in wanted.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    project.output.line(f"Project {name!r} in {folder}:")
    project.output.facts({f"  {path}": _PURPOSES.get(path, " ") for path in wanted})
    project.output.line("Next:")
    project.output.line(
        f"  cd {folder.name if folder.parent == Path.cwd() else folder}\n  fp demo    # or: fp sample, fp compute, fp materialize\n  fp up"
    )
    project.output.document({"project": name, "folder": str(folder), "files": list(wanted)})


_PURPOSES = {
    "features/streaming.py": "the features: the file to edit",
    "features/training.py": "a training set, as an asset of your own",
    "pyproject.toml": "the settings; names the registry",
    "definitions.py": "what Dagster loads",
    "workspace.yaml": "where Dagster finds it",
    "dagster.yaml": "the local Dagster instance",
}
