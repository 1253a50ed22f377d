"""
The settings of one project, read once and passed down.

Knows the environment's names and where the project folder is. Opens nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from feature_platform.errors import SettingsError, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feature_platform.registry import Registry

__all__ = ["API_LOGS", "ENVIRONMENT_PREFIX", "Settings", "load_registry"]

ENVIRONMENT_PREFIX = "FEATURE_PLATFORM_"
API_LOGS = ("errors", "all", "none")
_LAST_PORT = 65_535
_SAFE_PROJECT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    Where a project lives and how its servers are reached; `from_env` reads `FEATURE_PLATFORM_<NAME>`.

    Attributes:
        project: Prefix of every key in the online store; projects may share a server.
        root: The project folder; relative paths (sources' too) hang off it.
        offline_root: Folder of the Parquet history.
        online_root: Folder of the embedded online store.
        redis_url: A server to use instead of the embedded one.
        read_deadline_ms: For one read of the online store, in milliseconds.
        registry: Where the registry is, as `module:attribute`.
        memory_limit: DuckDB's, as in "1GB"; None leaves its default.
        threads: DuckDB's; None is one a core. A push takes one less.
        run_schedules: Whether schedules start switched on; else they are switched on in the UI, or they would fire on every laptop.
        dagster_url: Where people reach the Dagster UI; links to runs begin with it.
        api_host: Address that the API binds; anything but loopback needs a token.
        api_port: Port of the API.
        api_workers: Processes that share the port.
        api_max_connections: Connections that one of them takes at once.
        api_token: A bearer token that may do everything; None on loopback, or where there is a tokens file.
        api_tokens: The file that `fp token` keeps; relative to `root`.
        api_log: Which requests the API writes a line of JSON for: "errors", "all" or "none".
        max_entities: Entity rows of one request at most.
        max_body_bytes: Size of one request's body at most.
    """

    project: str = "feature_platform"
    root: Path = field(default_factory=Path)
    offline_root: Path = Path("data/features")
    online_root: Path = Path("data/online")
    redis_url: str | None = field(default=None, repr=False)
    read_deadline_ms: int = 50
    registry: str | None = None
    memory_limit: str | None = None
    threads: int | None = None
    run_schedules: bool = False
    dagster_url: str = "http://127.0.0.1:3000"
    api_host: str = "127.0.0.1"
    api_port: int = 8000
    api_workers: int = 1
    api_max_connections: int = 2000
    api_token: str | None = field(default=None, repr=False)
    api_tokens: Path | None = None
    api_log: str = "errors"
    max_entities: int = 1000
    max_body_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        """Make paths absolute and refuse what cannot work."""
        for one in fields(self):
            _check_type(one.name, str(one.type), getattr(self, one.name))
        object.__setattr__(self, "root", Path(self.root).absolute())
        for name in ("offline_root", "online_root"):
            object.__setattr__(self, name, self.root / Path(getattr(self, name)))
        if self.api_tokens is not None:
            object.__setattr__(self, "api_tokens", self.root / self.api_tokens)
        if not self.project or not set(self.project) <= _SAFE_PROJECT:
            message = f"project {self.project!r} is not safe as a key prefix.\nUse letters, digits, '_', '-' and '.'."
            raise SettingsError(message, field="project")
        for name in ("max_entities", "max_body_bytes", "read_deadline_ms", "api_workers", "api_max_connections"):
            if getattr(self, name) < 1:
                message = f"{name} must be at least 1, not {getattr(self, name)}."
                raise SettingsError(message, field=name)
        if self.threads is not None and self.threads < 1:
            message = f"threads must be at least 1, not {self.threads}."
            raise SettingsError(message, field="threads")
        if not 0 <= self.api_port <= _LAST_PORT:
            message = f"api_port {self.api_port} is not a port.\nUse 1 to {_LAST_PORT}; 0 takes a free one."
            raise SettingsError(message, field="api_port")
        self._check_api()

    def _check_api(self) -> None:
        if self.api_log not in API_LOGS:
            message = f"api_log {self.api_log!r} is not known.\n{suggest(self.api_log, API_LOGS)}"
            raise SettingsError(message, field="api_log")
        if not self.api_host:
            message = "api_host is empty, which would bind every address.\nWrite 127.0.0.1, or the address that you mean."
            raise SettingsError(message, field="api_host")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, start: Path | None = None) -> Settings:
        """
        Read the environment, over `[tool.feature_platform]` of the nearest pyproject.toml.

        Args:
            environ: Instead of the process's environment.
            start: Where the search for the project folder begins; the working directory.

        Raises:
            SettingsError: A name or value that is not understood.
        """
        environ = os.environ if environ is None else environ
        root, declared = _project_folder(start or Path.cwd(), environ.get(ENVIRONMENT_PREFIX + "ROOT"))
        known = {one.name: one for one in fields(cls)}
        values: dict[str, object] = {}
        for name, value in declared.items():
            if name not in known or name == "root":
                message = f"pyproject.toml: [tool.feature_platform] has no setting {name!r}.\n{suggest(name, known.keys() - {'root'})}"
                raise SettingsError(message, field=name)
            if not isinstance(value, (str, int, float)):
                message = f"pyproject.toml: {name} is a {type(value).__name__}.\nWrite one value."
                raise SettingsError(message, field=name)
            values[name] = _parse(f"pyproject.toml: {name}", str(known[name].type), str(value))
        for variable, text in environ.items():
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            if not variable.startswith(ENVIRONMENT_PREFIX) or name == "root":
                continue
            if name not in known:
                message = f"{variable} is not a setting.\n{suggest(variable, [ENVIRONMENT_PREFIX + one.upper() for one in known])}"
                raise SettingsError(message, field=variable)
            values[name] = _parse(variable, str(known[name].type), text)
        return replace(cls(root=root), **{k: Path(str(v)) if k.endswith("root") else v for k, v in values.items()})  # type: ignore[arg-type]

    def path(self, relative: str) -> Path:
        """Return a path of the project as an absolute one."""
        return self.root / relative


def _project_folder(start: Path, named: str | None) -> tuple[Path, dict[str, object]]:
    folders = [Path(named).absolute()] if named else [start.absolute(), *start.absolute().parents]
    for folder in folders:
        file = folder / "pyproject.toml"
        if file.is_file():
            try:
                tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool")
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as exc:
                message = f"{file} cannot be read: {exc}"
                raise SettingsError(message) from exc
            declared = tool.get("feature_platform") if isinstance(tool, dict) else None
            if isinstance(declared, dict):
                return folder, declared
            if declared is not None:
                message = f"{file}: tool.feature_platform is {declared!r}.\nWrite a table: [tool.feature_platform]."
                raise SettingsError(message)
    return folders[0], {}


def _check_type(name: str, type_name: str, value: object) -> None:
    """Refuse a value of another type than the setting's; a path may be text."""
    if value is None and "None" in type_name:
        return
    word = type_name.removesuffix(" | None")
    is_one = {"bool": isinstance(value, bool), "int": isinstance(value, int) and not isinstance(value, bool), "str": isinstance(value, str)}
    if not is_one.get(word, isinstance(value, (str, Path))):
        # No value: it may be a secret.
        message = f"{name} is a {type(value).__name__}, not a {word}.\nFrom text, use Settings.from_env()."
        raise SettingsError(message, field=name)


def _parse(variable: str, type_name: str, text: str) -> object:
    if "bool" in type_name:
        words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
        if text.lower() not in words:
            message = f"{variable}={text!r} is not a yes or no.\nWrite true or false."
            raise SettingsError(message, field=variable)
        return words[text.lower()]
    if "None" in type_name and not text:
        return None
    if "int" in type_name:
        try:
            return int(text)
        except ValueError as exc:
            message = f"{variable}={text!r} is not a whole number."
            raise SettingsError(message, field=variable) from exc
    return text


def load_registry(settings: Settings) -> Registry:
    """
    Import the registry that the project names.

    Raises:
        SettingsError: None is named, or what is named is not there or is no registry.
    """
    from feature_platform.registry import Registry  # noqa: PLC0415 - `registry` stands beside this module, not below it

    named = settings.registry
    if not named:
        message = (
            f"no registry is named for {settings.root}.\n"
            'Write [tool.feature_platform] registry = "features.streaming:registry" in pyproject.toml, or set FEATURE_PLATFORM_REGISTRY.'
        )
        raise SettingsError(message, field="registry")
    module_name, _, attribute = named.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        message = f"registry {named!r}: {module_name!r} is not a module's name.\nWrite it as 'features.streaming:registry'."
        raise SettingsError(message, field="registry")
    if str(settings.root) not in sys.path:
        sys.path.insert(0, str(settings.root))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (module_name + ".").startswith(exc.name + "."):
            raise
        message = f"registry {named!r}: there is no module {exc.name!r} in {settings.root}.\nName it as 'module:attribute'."
        raise SettingsError(message, field="registry") from exc
    found = getattr(module, attribute or "registry", None)
    if not isinstance(found, Registry):
        message = f"registry {named!r}: {attribute or 'registry'!r} in {module_name} is {type(found).__name__}, not a Registry."
        raise SettingsError(message, field="registry")
    return found
