"""Settings: read once from the environment over pyproject.toml, strictly, and without telling secrets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from feature_platform import Registry, Settings
from feature_platform.errors import SettingsError
from feature_platform.settings import load_registry

SECRET = "hunter2-do-not-print"


def project(folder: Path, table: str = "") -> Path:
    """Write a pyproject.toml and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(f"[tool.feature_platform]\n{table}\n", encoding="utf-8")
    return folder


def test_defaults_need_nothing(tmp_path: Path) -> None:
    """An empty folder and an empty environment give the embedded server, loopback and paths below the folder."""
    settings = Settings.from_env({}, start=tmp_path)
    assert settings == Settings(root=tmp_path)
    assert (settings.project, settings.redis_url, settings.registry, settings.threads) == ("feature_platform", None, None, None)
    assert settings.offline_root == tmp_path / "data/features"
    assert (settings.api_host, settings.api_port, settings.run_schedules) == ("127.0.0.1", 8000, False)


def test_the_environment_wins_over_pyproject(tmp_path: Path) -> None:
    """What neither names keeps its default."""
    project(tmp_path, 'project = "ours"\nthreads = 2\nrun_schedules = true\noffline_root = "history"')
    settings = Settings.from_env({"FEATURE_PLATFORM_THREADS": "3", "FEATURE_PLATFORM_API_PORT": "9", "OTHER": "x"}, start=tmp_path)
    assert (settings.project, settings.threads, settings.api_port, settings.run_schedules) == ("ours", 3, 9, True)
    assert settings.offline_root == tmp_path / "history"
    assert settings.max_entities == 1000


def test_the_process_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not while importing."""
    monkeypatch.setenv("FEATURE_PLATFORM_PROJECT", "from_env")
    monkeypatch.setenv("FEATURE_PLATFORM_ROOT", str(tmp_path))
    assert (Settings.from_env().project, Settings().project) == ("from_env", "feature_platform")


def test_the_project_folder_is_the_nearest_with_our_table(tmp_path: Path) -> None:
    """A pyproject.toml without the table belongs to something else; the search goes on upwards."""
    project(tmp_path)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.ruff]\nline-length = 1\n")
    assert Settings.from_env({}, start=inner).root == tmp_path
    project(inner)
    assert Settings.from_env({}, start=inner).root == inner


def test_the_environment_may_name_the_project_folder(tmp_path: Path) -> None:
    """Then nothing is searched, and its pyproject.toml counts."""
    project(tmp_path / "outer", 'project = "outer"')
    named = project(tmp_path / "named", 'project = "named"')
    settings = Settings.from_env({"FEATURE_PLATFORM_ROOT": str(named)}, start=tmp_path / "outer")
    assert (settings.root, settings.project) == (named, "named")


def test_paths_are_absolute_and_absolute_paths_stay(tmp_path: Path) -> None:
    """Relative ones hang off the project folder."""
    settings = Settings(root=tmp_path, online_root=Path("/srv/online"), offline_root="history")  # type: ignore[arg-type]
    assert (settings.online_root, settings.offline_root) == (Path("/srv/online"), tmp_path / "history")
    assert settings.path("data/x.parquet") == tmp_path / "data/x.parquet"
    assert settings.path("/srv/x.parquet") == Path("/srv/x.parquet")
    assert Settings(root=Path("here")).root.is_absolute()
    tokens = Settings.from_env({"FEATURE_PLATFORM_API_TOKENS": "data/tokens.json"}, start=tmp_path).api_tokens
    assert (tokens, Settings(root=tmp_path).api_tokens) == (tmp_path / "data/tokens.json", None)


@pytest.mark.parametrize("text", ["1", "true", "True", "yes", "ON"])
def test_yes_has_many_spellings(text: str, tmp_path: Path) -> None:
    """As has no."""
    assert Settings.from_env({"FEATURE_PLATFORM_RUN_SCHEDULES": text}, start=tmp_path).run_schedules
    assert not Settings.from_env({"FEATURE_PLATFORM_RUN_SCHEDULES": "off"}, start=tmp_path).run_schedules


def test_empty_text_is_none_where_none_is_allowed(tmp_path: Path) -> None:
    """An unset variable of a compose file arrives as an empty one."""
    names = ["REDIS_URL", "REGISTRY", "MEMORY_LIMIT", "THREADS", "API_TOKEN", "API_TOKENS"]
    assert Settings.from_env({f"FEATURE_PLATFORM_{name}": "" for name in names}, start=tmp_path) == Settings(root=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("REDIS_URI", "x", ["FEATURE_PLATFORM_REDIS_URI is not a setting", "Did you mean 'FEATURE_PLATFORM_REDIS_URL'?"]),
        ("THREADS", "two", ["FEATURE_PLATFORM_THREADS='two'", "whole number"]),
        ("THREADS", "1.5", ["FEATURE_PLATFORM_THREADS='1.5'", "whole number"]),
        ("THREADS", "0", ["threads", "at least 1"]),
        ("MAX_ENTITIES", "-1", ["max_entities", "at least 1"]),
        ("MAX_BODY_BYTES", "", ["FEATURE_PLATFORM_MAX_BODY_BYTES", "whole number"]),
        ("RUN_SCHEDULES", "maybe", ["FEATURE_PLATFORM_RUN_SCHEDULES='maybe'", "true or false"]),
        ("PROJECT", "a{b}", ["project 'a{b}'", "not safe", "letters"]),
        ("PROJECT", "", ["project ''", "not safe"]),
        ("API_PORT", "65536", ["api_port 65536", "not a port"]),
        ("API_WORKERS", "0", ["api_workers", "at least 1"]),
        ("API_HOST", "", ["api_host is empty", "127.0.0.1"]),
    ],
    ids=[
        "misspelt",
        "words",
        "fraction",
        "zero-threads",
        "negative",
        "empty-int",
        "maybe",
        "braces",
        "empty-project",
        "port",
        "no-workers",
        "empty-host",
    ],
)
def test_a_wrong_variable_is_refused_by_name(name: str, value: str, words: list[str], tmp_path: Path) -> None:
    """The message names the variable or setting and what it takes, and is a ValueError."""
    with pytest.raises(SettingsError) as refusal:
        Settings.from_env({f"FEATURE_PLATFORM_{name}": value}, start=tmp_path)
    assert isinstance(refusal.value, ValueError)
    assert refusal.value.field
    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('redis_uri = "x"', ["has no setting 'redis_uri'", "Did you mean 'redis_url'?"]),
        ('root = "."', ["has no setting 'root'"]),
        ('threads = "two"', ["pyproject.toml: threads='two'", "whole number"]),
        ("threads = 1.5", ["pyproject.toml: threads='1.5'", "whole number"]),
        ('registry = ["a:b"]', ["pyproject.toml: registry is a list", "one value"]),
        ("run_schedules = 7", ["pyproject.toml: run_schedules='7'", "true or false"]),
        ("threads = ", ["pyproject.toml cannot be read"]),
    ],
    ids=["misspelt", "root", "words", "fraction", "list", "seven", "broken"],
)
def test_a_wrong_line_of_pyproject_is_refused_by_name(table: str, words: list[str], tmp_path: Path) -> None:
    """As in the environment."""
    with pytest.raises(SettingsError) as refusal:
        Settings.from_env({}, start=project(tmp_path, table))
    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize("text", ["[tool]\nfeature_platform = 5", 'tool = "x"', "\xff"], ids=["number", "tool-is-text", "latin-1"])
def test_a_pyproject_of_another_shape_is_refused_or_passed_over(text: str, tmp_path: Path) -> None:
    """It never ends in a traceback of ours."""
    (tmp_path / "pyproject.toml").write_bytes(text.encode("latin-1"))
    if text.startswith("tool"):
        assert Settings.from_env({}, start=tmp_path).project == "feature_platform"
    else:
        with pytest.raises(SettingsError, match=r"pyproject\.toml"):
            Settings.from_env({}, start=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("threads", "2", "threads is a str, not a int"),
        ("threads", True, "threads is a bool, not a int"),
        ("max_entities", 1.5, "max_entities is a float, not a int"),
        ("max_entities", None, "max_entities is a NoneType, not a int"),
        ("run_schedules", "false", "run_schedules is a str, not a bool"),
        ("project", 5, "project is a int, not a str"),
        ("redis_url", 5, "redis_url is a int, not a str"),
        ("root", 5, "root is a int, not a Path"),
        ("offline_root", None, "offline_root is a NoneType, not a Path"),
        ("api_port", "80", "api_port is a str, not a int"),
        ("api_token", SECRET.encode(), "api_token is a bytes, not a str"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_setting_of_another_type_is_refused(name: str, value: Any, words: str) -> None:
    """Text where a number belongs would fail far from here; the value itself may be a secret and is not told."""
    with pytest.raises(SettingsError, match=words) as refusal:
        Settings(**{name: value})
    assert refusal.value.field == name
    assert SECRET not in str(refusal.value)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """Neither the token nor a password in the server's address is in the repr."""
    settings = Settings(root=tmp_path, api_token=SECRET, redis_url=f"redis://:{SECRET}@host:6379")
    assert SECRET not in repr(settings)
    assert SECRET not in f"{settings}"


def test_settings_are_frozen() -> None:
    """One value, read once and passed down."""
    with pytest.raises(FrozenInstanceError):
        Settings().project = "other"  # type: ignore[misc]


# The registry that a project names


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what a test imports."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.usefixtures("importing")
def test_the_registry_is_found_by_module_and_attribute(tmp_path: Path) -> None:
    """From the project folder; `registry` is the attribute's name unless another one is written."""
    (tmp_path / "declared_here.py").write_text("from feature_platform import Registry\nregistry = Registry()\nother = Registry()\n")
    found = load_registry(Settings(root=tmp_path, registry="declared_here"))
    assert isinstance(found, Registry)
    assert load_registry(Settings(root=tmp_path, registry="declared_here:registry")) is found
    assert load_registry(Settings(root=tmp_path, registry="declared_here:other")) is not found


@pytest.mark.usefixtures("importing")
@pytest.mark.parametrize(
    ("named", "words"),
    [
        (None, "no registry is named"),
        ("no_such_module:registry", "there is no module 'no_such_module'"),
        ("declared_there:nothing", "'nothing' in declared_there is NoneType, not a Registry"),
        ("declared_there:number", "'number' in declared_there is int, not a Registry"),
        (":registry", "'' is not a module's name"),
        (".declared_there:registry", "is not a module's name"),
        ("features/streaming.py:registry", "is not a module's name"),
    ],
    ids=["none", "no-module", "no-attribute", "a-number", "no-name", "relative", "a-path"],
)
def test_a_registry_that_is_not_there_is_refused(named: str | None, words: str, tmp_path: Path) -> None:
    """The message says what is named and how to name it."""
    (tmp_path / "declared_there.py").write_text("number = 5\n")
    with pytest.raises(SettingsError, match=words) as refusal:
        load_registry(Settings(root=tmp_path, registry=named))
    assert refusal.value.field == "registry"


@pytest.mark.usefixtures("importing")
def test_an_import_error_inside_the_registry_is_told_as_it_is(tmp_path: Path) -> None:
    """A module that the declarations miss is not the registry's own name."""
    (tmp_path / "declared_broken.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_registry(Settings(root=tmp_path, registry="declared_broken"))
