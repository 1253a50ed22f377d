"""
`fp token`: who may ask the API.

Knows the commands. What a token is, and how the file is kept, is `tokens`'.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.text import Text

from feature_platform.cli.arguments import SPAN, Commands, Project, examples, json_option, pass_project
from feature_platform.cli.output import instant, iso, shown_path
from feature_platform.errors import SettingsError
from feature_platform.tokens import Token, TokenScope, create_token, read_tokens, revoke_token

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["token"]


@click.group(cls=Commands, epilog=examples("fp token create recommender-team --service recommender --expires 90d", "fp token list"))
def token() -> None:
    """
    Make, list and revoke tokens of the API.

    They are in the file of the setting api_tokens. A running server sees a change within a second. Each command takes --json.
    """


@token.command(
    epilog=examples(
        "fp token create training",
        "fp token create recommender-team --service recommender --expires 90d",
        "fp token create prometheus --scope metrics",
    )
)
@click.argument("name")
@click.option("--service", "services", multiple=True, help="Limit it to this service; may be given several times.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([str(one) for one in TokenScope]),
    multiple=True,
    default=["read"],
    show_default=True,
    help="What it may do; may be given several times. No route asks for write yet.",
)
@click.option("--expires", type=SPAN, metavar="SPAN", help="How long it is good for, such as 90d. [default: until it is revoked]")
@json_option
@pass_project
def create(project: Project, name: str, *, services: tuple[str, ...], scopes: tuple[str, ...], expires: timedelta | None) -> None:
    """
    Make a token, and show it this once.

    Only its SHA-256 is kept. A token that is limited to services asks POST /services/NAME and nothing else.
    """
    if expires is not None and not expires:
        raise click.UsageError("--expires is no time at all. Write 90d, 12h or 90min.")
    if services and set(scopes) != {TokenScope.READ}:
        raise click.UsageError("a token with --service reads and does nothing else. Make a second token for the other scope.")
    path = _file(project)
    for service in services:
        project.registry.service(service)
    wanted = [TokenScope(one) for one in scopes]
    made, secret = create_token(path, name, now=datetime.now(UTC), scopes=wanted, services=services, expires_after=expires)
    # Alone on stdout, so that a script can take it.
    project.output.line(secret)
    until = "" if made.expires_at is None else f" until {instant(made.expires_at)} UTC"
    project.output.note(f"{_limits(made)}{until}. It is not shown again: {shown_path(path, project.settings.root)} has its SHA-256 only.")
    project.output.document({"token": secret, **_document(made)})


@token.command("list", epilog=examples("fp token list"))
@json_option
@pass_project
def list_tokens(project: Project) -> None:
    """List the tokens: what each may do, and until when."""
    tokens, now = sorted(read_tokens(_file(project)), key=lambda one: one.name), datetime.now(UTC)
    rows: list[list[object]] = [
        [
            Text(one.name, style="bold cyan"),
            ", ".join(one.scopes),
            ", ".join(sorted(one.services)) if one.services else "all",
            instant(one.created_at),
            Text("expired", style="red") if one.is_expired(now) else instant(one.expires_at) or "never",
        ]
        for one in tokens
    ]
    project.output.table(["token", "scopes", "services", "created", "expires"], rows)
    project.output.document({"tokens": [{**_document(one), "is_expired": one.is_expired(now)} for one in tokens]})


@token.command(epilog=examples("fp token revoke recommender-team"))
@click.argument("name")
@json_option
@pass_project
def revoke(project: Project, name: str) -> None:
    """Refuse a token from now on."""
    revoke_token(_file(project), name)
    project.output.line(f"Token {name!r} is revoked. Running servers refuse it within a second.")
    project.output.document({"revoked": name})


def _file(project: Project) -> Path:
    path = project.settings.api_tokens
    if path is None:
        message = 'no file is set for tokens.\nSet FEATURE_PLATFORM_API_TOKENS, or write api_tokens = "data/tokens.json" in pyproject.toml.'
        raise SettingsError(message, field="api_tokens")
    return path


def _limits(made: Token) -> str:
    what = " and ".join(made.scopes)
    return f"Token {made.name!r} is for {what}" + (f" of {', '.join(sorted(made.services))}" if made.services else "")


def _document(one: Token) -> dict[str, object]:
    return {
        "name": one.name,
        "scopes": list(one.scopes),
        "services": None if one.services is None else sorted(one.services),
        "created_at": iso(one.created_at),
        "expires_at": iso(one.expires_at),
    }
