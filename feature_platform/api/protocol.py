"""
The HTTP protocol of the server, with a bound on what comes before a body.

Knows uvicorn. uvicorn's fast parser reads a request's line and headers without end: one client could fill the memory.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from feature_platform.api.problems import PROBLEM_MEDIA_TYPE, Problem

__all__ = ["MAX_HEAD_BYTES", "BoundedHeadProtocol"]

MAX_HEAD_BYTES: Final = 65_536
"""Request line and headers together; what arrives in one read may be more."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's protocol that answers 431 to a head that is too large."""

    _is_in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; refuse a head that is still not over."""
        super().data_received(data)
        # Counted afterwards: a short head and a long body may arrive together.
        if self._is_in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Cease to count."""
        self._is_in_head = False
        super().on_headers_complete()

    def _refuse(self) -> None:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        body = bytes(Problem(status, f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes.").response().body)
        head = (
            f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
