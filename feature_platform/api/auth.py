"""
Bearer tokens: who may ask, and for what.

Knows scopes and services. Knows nothing of people; those belong to a gateway in front.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from starlette.types import Scope

from feature_platform.api.live_tokens import LiveTokens
from feature_platform.api.problems import Problem
from feature_platform.errors import SettingsError
from feature_platform.settings import Settings
from feature_platform.tokens import Token, TokenScope, digest_of, read_tokens

__all__ = ["OPEN_PATHS", "ROUTE_SCOPES", "BearerAuth", "check_binding", "is_loopback", "needed_scope"]

OPEN_PATHS: Final = frozenset({"/health", "/ready"})
"""Asked by load balancers and orchestrators, which carry no token; they tell names of views and no values."""

ROUTE_SCOPES: Final[Mapping[str, TokenScope]] = {"/get-online-features": TokenScope.READ, "/metrics": TokenScope.METRICS}
"""Routes that need another scope than their method says."""

_SERVICES: Final = "/services/"
_LOOKS: Final = frozenset({"GET", "HEAD"})


def needed_scope(method: str, path: str) -> TokenScope:
    """
    Return what a token needs for a request.

    To look is to read, and all else is to write, unless `ROUTE_SCOPES` names the route or it asks for a service: a route that is
    forgotten there is closed to those who read, not open.
    """
    named = ROUTE_SCOPES.get(path)
    if named is not None:
        return named
    return TokenScope.READ if method in _LOOKS or _service(method, path) else TokenScope.WRITE


class BearerAuth:
    """Lets in what carries a token that may do what is asked."""

    def __init__(self, tokens: LiveTokens) -> None:
        self._tokens = tokens

    @classmethod
    def from_settings(cls, settings: Settings) -> BearerAuth | None:
        """
        Return who may ask; None where that is everybody.

        Raises:
            SettingsError: The tokens file is broken.
        """
        if settings.api_token is None:
            return None if settings.api_tokens is None else cls(LiveTokens(settings.api_tokens))
        digest = digest_of(settings.api_token.strip().encode())
        everything = Token(name="api_token", sha256=digest, scopes=tuple(TokenScope), created_at=datetime.now(UTC))
        return cls(LiveTokens(settings.api_tokens, [everything]))

    def refusal(self, scope: Scope) -> Problem | None:
        """Return why a request is not let in; None where it carries a token that may ask this, or needs none."""
        if scope["path"] in OPEN_PATHS:
            return None
        secret = _secret(scope)
        token = None if secret is None else self._tokens.find(secret)
        if token is None:
            how = "Send the header 'Authorization: Bearer <token>', with one that 'fp token create' made or the server's"
            return _unknown(f"this needs a token.\n{how} FEATURE_PLATFORM_API_TOKEN.")
        if token.expires_at is not None and token.is_expired(datetime.now(UTC)):
            return _unknown(f"token {token.name!r} has expired.\nMake another one with 'fp token create'.")
        return _limit(token, scope["method"], scope["path"])


def _secret(scope: Scope) -> bytes | None:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1:
        return None
    scheme, _, secret = given[0].partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else None


def _limit(token: Token, method: str, path: str) -> Problem | None:
    """Return what keeps a token from a request."""
    needed = needed_scope(method, path)
    if needed not in token.scopes:
        has = ", ".join(token.scopes)
        return _forbidden(f"{method} {path} needs the scope {needed!s}, and token {token.name!r} has: {has}.\nMake one that has it", needed)
    if token.services is None or _service(method, path) in token.services:
        return None
    # Also where a body names one of the services: who may ask is known before a body is read, and the answer is the same.
    open_to_it = ", ".join(f"POST {_SERVICES}{name}" for name in sorted(token.services))
    return _forbidden(f"token {token.name!r} may not ask {method} {path}.\nAsk {open_to_it}, or make a token without that limit", needed)


def _service(method: str, path: str) -> str | None:
    """Return the service whose features a request asks for by its path."""
    name = path[len(_SERVICES) :] if method == "POST" and path.startswith(_SERVICES) else ""
    return name if name and "/" not in name else None


def _forbidden(detail: str, needed: TokenScope) -> Problem:
    how = f": 'fp token create NAME --scope {needed!s}'."
    # The body is not read, so the connection cannot carry another request.
    return Problem(403, detail + how, field="Authorization", headers={"Connection": "close"})


def _unknown(detail: str) -> Problem:
    # As above.
    return Problem(401, detail, field="Authorization", headers={"WWW-Authenticate": "Bearer", "Connection": "close"})


def is_loopback(host: str) -> bool:
    """Say whether an address is reached from this machine only; a name other than localhost counts as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_binding(settings: Settings, host: str) -> None:
    """
    Refuse to serve a network without a token.

    Raises:
        SettingsError: Says which setting to write, or that the tokens file is empty or broken.
    """
    if settings.api_token is not None and not settings.api_token.strip():
        raise SettingsError("api_token is empty, so anybody would have it.\nLeave it out, or write a long random text.", field="api_token")
    if settings.api_token is not None or is_loopback(host):
        return
    if settings.api_tokens is None:
        message = (
            f"the API would answer anybody who reaches {host!r}: no token is set.\n"
            "Set FEATURE_PLATFORM_API_TOKENS and run 'fp token create', or set FEATURE_PLATFORM_API_TOKEN, or bind 127.0.0.1."
        )
        raise SettingsError(message, field="api_token")
    if not read_tokens(settings.api_tokens):
        message = "the API would answer nobody: there is no token in the file of the setting api_tokens.\nMake one with 'fp token create'."
        raise SettingsError(message, field="api_tokens")
