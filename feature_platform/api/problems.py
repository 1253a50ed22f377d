"""
Problem bodies (RFC 9457): what a request that is not answered gets instead.

Knows the platform's errors and their HTTP status. Knows no route.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from feature_platform.errors import (
    FeaturePlatformError,
    NotMaterializedError,
    OnlineStoreError,
    UnknownNameError,
)

__all__ = ["PROBLEM_MEDIA_TYPE", "Problem", "ProblemBody", "defect", "nearest", "problem_of"]

PROBLEM_MEDIA_TYPE = "application/problem+json"
# An error repeats what was sent; what was sent may be a megabyte.
_LONGEST_DETAIL = 1000
_LONGEST_NAME = 100


class ProblemBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    The body of every answer that is not a success.

    Attributes:
        type: Which problem, for machines.
        title: Which problem, for people.
        status: The HTTP status.
        detail: What, where, and the next step.
        field: The part of the request that is wrong, where one can be named.
        suggestion: What was probably meant, where something is near.
        missing: Views that the online store does not hold (`/ready` only).
    """

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    suggestion: str | None = None
    missing: list[str] | None = None


class Problem(Exception):  # noqa: N818 - the RFC's word for it
    """
    A request that is not answered; becomes a problem body.

    Attributes:
        status: The HTTP status.
        detail: What, where, and the next step.
        kind: The last part of the body's `type`; the status's phrase if not given.
        field: The part of the request that is wrong.
        suggestion: What was probably meant.
        missing: Views that the online store does not hold.
        headers: Further response headers.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        field: str | None = None,
        suggestion: str | None = None,
        missing: list[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.kind, self.field = status, detail, kind, field
        self.suggestion, self.missing, self.headers = suggestion, missing, headers

    @property
    def phrase(self) -> str:
        """The status in words."""
        return HTTPStatus(self.status).phrase

    def response(self) -> Response:
        """Return the answer: members without a value are left out."""
        kind = self.kind or self.phrase.lower().replace(" ", "-")
        body = ProblemBody(
            type=f"urn:feature-platform:problem:{kind}",
            title=kind.replace("-", " ").capitalize(),
            status=self.status,
            detail=_printable(self.detail, _LONGEST_DETAIL),
            field=None if self.field is None else _printable(self.field, _LONGEST_NAME),
            suggestion=self.suggestion,
            missing=self.missing,
        )
        return Response(msgspec.json.encode(body), self.status, self.headers, PROBLEM_MEDIA_TYPE)


def problem_of(error: FeaturePlatformError) -> Problem:
    """Return the problem that an error of the platform is to a client."""
    retry = {"Retry-After": "1"}
    match error:
        case UnknownNameError():
            return Problem(404, str(error), kind=f"unknown-{error.kind}", field=error.field, suggestion=error.suggestion)
        case NotMaterializedError():
            return Problem(503, str(error), kind="not-materialized", missing=[error.view], headers=retry)
        case OnlineStoreError():
            return Problem(503, str(error), kind="online-store-unavailable", headers=retry)
        case _:
            return Problem(422, str(error), kind="invalid-request", field=error.field)


def defect() -> Problem:
    """Return the problem that is ours."""
    return Problem(500, "this is a defect of the server; its log has the traceback.")


def nearest(name: str, known: list[str]) -> str | None:
    """Return the known name that was probably meant, if one is near."""
    close = get_close_matches(name[:_LONGEST_NAME], known, n=1)
    return close[0] if close else None


def _printable(text: str, longest: int) -> str:
    """Shorten what a client sent, and spell out what UTF-8 cannot carry."""
    short = text if len(text) <= longest else text[:longest] + "..."
    return short.encode("utf-8", "backslashreplace").decode("utf-8")
