"""
A line of JSON for a request: its route, what became of it, how long it took.

No path, no query, no body, no token: a path that nobody declared may be anything, and values are somebody's data.
Knows Python's logging. Knows nothing of how a request is answered.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec

from feature_platform.settings import API_LOGS

if TYPE_CHECKING:
    from starlette.types import Scope

__all__ = ["LOGGER_NAME", "RequestLog", "print_lines"]

LOGGER_NAME: Final = "feature_platform.requests"

_LINES_A_SECOND: Final = 50
"""Of refusals: a client that is refused a thousand times a second shall not fill a disk. What is left out is counted."""

_SAFE_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(LOGGER_NAME)


def print_lines() -> None:
    """Let the lines go to standard error, unless somebody has configured their logger."""
    if not _log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
        _log.propagate = False


class RequestLog:
    """
    Names requests and writes their lines.

    Args:
        which: "errors" for those that are not answered with a success, "all", or "none".
    """

    def __init__(self, which: str) -> None:
        assert which in API_LOGS  # noqa: S101 - settings have checked it
        self._which = which
        self._prefix, self._numbers = secrets.token_hex(4), count(1)
        self._second, self._lines, self._omitted = 0, 0, 0

    def name(self, scope: Scope) -> bytes:
        """Return the id of a request: the client's `X-Request-ID` if it is a plain one, else a new one."""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _SAFE_ID.fullmatch(value):
                return bytes(value)
        return f"{self._prefix}-{next(self._numbers):x}".encode()

    def wants(self, status: int) -> bool:
        """Say whether an answer of some status is written down."""
        return self._which == "all" or (status >= 400 and self._which == "errors")  # noqa: PLR2004 - HTTP's

    def write(self, request_id: bytes, scope: Scope, route: str, status: int, seconds: float) -> None:
        """Write the line of one request."""
        if status >= 400 and self._is_too_much():  # noqa: PLR2004 - HTTP's
            return
        line: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": request_id.decode(),
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
        }
        if self._omitted:
            line["omitted_before"], self._omitted = self._omitted, 0
        _log.info("%s", msgspec.json.encode(line).decode())

    def _is_too_much(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        self._omitted += self._lines > _LINES_A_SECOND
        return self._lines > _LINES_A_SECOND
