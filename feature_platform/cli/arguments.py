"""
What commands are told: instants, join keys, and the project that they are about.

Knows click and the registry's dtypes. Values are typed by what is declared, never guessed.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from feature_platform.cli.output import Output
from feature_platform.errors import DtypeError, EntityRowsError, FeaturePlatformError, suggest
from feature_platform.settings import Settings, load_registry

if TYPE_CHECKING:
    from feature_platform.dtypes import Dtype
    from feature_platform.registry import Registry

__all__ = ["INSTANT", "SPAN", "Commands", "Project", "examples", "json_option", "now_option", "parse_entity_rows", "pass_project"]

F = TypeVar("F", bound=Callable[..., Any])

_INT = re.compile(r"[+-]?[0-9]{1,40}")
_SPAN = re.compile(r"(?:(?P<days>\d{1,5})d)?\s*(?:(?P<hours>\d{1,6})h)?\s*(?:(?P<minutes>\d{1,8})min)?\s*(?:(?P<seconds>\d{1,9})s)?")
_YES_NO = {"true": True, "false": False}
_SPELLED = {
    "int": "a whole number in its range, in digits",
    "bool": "true or false",
    "bytes": "base64",
    "date": "2026-01-31",
    "datetime": "2026-01-31T10:00:00Z",
    "decimal": "12.50",
}


class Project:
    """The project that the working directory lies in, and where output goes; nothing is read before it is needed."""

    def __init__(self) -> None:
        self.output = Output()

    @cached_property
    def settings(self) -> Settings:
        """The settings of the nearest project folder."""
        return Settings.from_env()

    @cached_property
    def registry(self) -> Registry:
        """What is declared; what the declarations print while they load is not this command's answer."""
        with contextlib.redirect_stdout(sys.stderr):
            return load_registry(self.settings)


pass_project = click.make_pass_decorator(Project, ensure=True)


class Commands(click.Group):
    """A group that answers errors of the platform in one line, and names what was probably meant."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that is named."""
        project = ctx.ensure_object(Project)
        try:
            return super().invoke(ctx)
        except click.UsageError:
            raise
        except (FeaturePlatformError, click.ClickException) as error:
            ctx.exit(project.output.failure(error))
        except KeyboardInterrupt:
            ctx.exit(130)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is named."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"no command {args[0]!r}. {suggest(args[0], self.list_commands(ctx), has='The commands are')}")
        return super().resolve_command(ctx, args)


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    ctx.ensure_object(Project).output.is_json = value


def json_option(command: F) -> F:
    """Add `--json`."""
    option = click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True, callback=_set_json, help="Print one JSON document and nothing else."
    )
    return option(command)


def examples(*lines: str) -> str:
    """Return a command's epilog, which click is told not to wrap."""
    return "\b\n" + "\n".join(["Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)])


class _Instant(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read ISO 8601; without an offset it is UTC."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is not a time. Write 2026-01-31 or 2026-01-31T10:00, in UTC unless it says otherwise (+02:00).", param, ctx
            )
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class _Span(click.ParamType[timedelta]):
    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read a length of time such as 7d or 12h30min."""
        if isinstance(value, timedelta):
            return value
        parts = _SPAN.fullmatch(str(value).strip())
        if parts is None or not any(parts.groups()):
            self.fail(f"{value!r} is not a length of time. Write 7d, 12h, 90min or 1d12h.", param, ctx)
        return timedelta(**{name: int(amount) for name, amount in parts.groupdict().items() if amount})


INSTANT = _Instant()
SPAN = _Span()


def now_option(help_text: str) -> Callable[[F], F]:
    """Return the option `--now`."""
    return click.option("--now", type=INSTANT, help=f"{help_text} [default: this moment]")


def parse_entity_rows(pairs: Sequence[str], keys: Mapping[str, Dtype]) -> list[dict[str, object]]:
    """
    Return the entity rows of `KEY=VALUE` arguments; a key that is given again begins the next row.

    Args:
        pairs: As typed.
        keys: The join keys that the features need.

    Raises:
        EntityRowsError: A key that is missing or not declared, or a value that is not of its dtype.
    """
    rows: list[dict[str, object]] = []
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in keys:
            message = f"{name!r} is no join key of these features.\n{suggest(name, keys, has='The join keys of these features are')}"
            raise EntityRowsError(message, field=name)
        if not rows or name in rows[-1]:
            rows.append({})
        rows[-1][name] = _parse(name, text, keys[name])
    for row in rows or [{}]:
        missing = next((name for name in keys if name not in row), None)
        if missing is not None:
            message = f"join key {missing!r} is missing.\nThese features need: {' '.join(f'{name}=...' for name in keys)}"
            raise EntityRowsError(message, field=missing)
    return rows or [{}]


def _parse(name: str, text: str, dtype: Dtype) -> object:
    value: object = text
    if dtype.family == "int" and _INT.fullmatch(text):
        value = int(text)
    elif dtype.family == "bool":
        value = _YES_NO.get(text.lower(), text)
    try:
        return dtype.from_json(value) if dtype.from_json else value
    except DtypeError as exc:
        how = _SPELLED.get(dtype.family, str(dtype))
        message = f"join key {name}={text!r} is not of dtype {dtype}, as its entity declares.\nWrite {how}."
        raise EntityRowsError(message, field=name) from exc
