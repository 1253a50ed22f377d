"""
Bearer tokens: who may ask.

Knows one token for everybody. Knows nothing of users or rights; those belong to a gateway in front.
"""

from __future__ import annotations

import hmac
import ipaddress

from starlette.types import Scope

from feature_platform.api.problems import Problem
from feature_platform.errors import SettingsError
from feature_platform.settings import Settings

__all__ = ["OPEN_PATHS", "BearerAuth", "check_binding", "is_loopback"]

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Asked by load balancers and orchestrators, which carry no token; they tell names of views and no values."""


class BearerAuth:
    """Lets in what carries the token."""

    def __init__(self, token: str) -> None:
        self._expected = b"Bearer " + token.strip().encode()

    def refusal(self, scope: Scope) -> Problem | None:
        """Return why a request is not let in; None where it carries the token, or needs none."""
        if scope["path"] in OPEN_PATHS or self._is_allowed(scope):
            return None
        detail = "this needs a token.\nSend the header 'Authorization: Bearer <token>', with the server's FEATURE_PLATFORM_API_TOKEN."
        # The body is not read, so the connection cannot carry another request.
        headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        return Problem(401, detail, field="Authorization", headers=headers)

    def _is_allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        # In constant time: the moment of the first difference would tell the token letter by letter.
        return hmac.compare_digest(scheme.capitalize() + b" " + token.strip(), self._expected)


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
        SettingsError: Says which setting to write.
    """
    if settings.api_token is not None and not settings.api_token.strip():
        raise SettingsError("api_token is empty, so anybody would have it.\nLeave it out, or write a long random text.", field="api_token")
    if settings.api_token is None and not is_loopback(host):
        message = f"the API would answer anybody who reaches {host!r}: no token is set.\nSet FEATURE_PLATFORM_API_TOKEN, or bind 127.0.0.1."
        raise SettingsError(message, field="api_token")
