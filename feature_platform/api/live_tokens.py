"""
The tokens in force while a server runs.

Knows when to look at the tokens file again, and how to find a token without telling it. Knows nothing of what a token may do.
"""

from __future__ import annotations

import hmac
import logging
import time
from typing import TYPE_CHECKING, Final

from feature_platform.errors import SettingsError
from feature_platform.tokens import Token, digest_of, read_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["LiveTokens"]

_LOOK_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class LiveTokens:
    """
    Finds tokens, and looks once a second at most whether their file changed.

    Args:
        path: The tokens file; None for none.
        fixed: Tokens that stand elsewhere and do not change.
        clock: Seconds that never go back.

    Raises:
        SettingsError: The file is broken: there are no last good tokens yet.
    """

    def __init__(self, path: Path | None, fixed: Sequence[Token] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._fixed, self._clock = path, tuple(fixed), clock
        self._tokens, self._known = self._fixed, dict[str, Token]()
        self._seen: tuple[int, ...] | None = None
        self._said = ""
        self._next_look = clock() + _LOOK_SECONDS
        if path is not None:
            self._read(path)

    def find(self, secret: bytes) -> Token | None:
        """Return the token that this is, expired or not; None where it is none in force."""
        if self._path is not None and (moment := self._clock()) >= self._next_look:
            self._next_look = moment + _LOOK_SECONDS
            self._look(self._path)
        digest = digest_of(secret)
        # Only what was found once is in the dict. How long the lookup takes may tell something of SHA-256 digests: which of
        # them is near another cannot be chosen, and from a digest nobody gets back to 256 random bits.
        found = self._known.get(digest)
        if found is None:
            # All of them, each in constant time: the moment of the first difference would tell a digest letter by letter.
            for token in self._tokens:
                if hmac.compare_digest(token.sha256, digest):
                    found = token
            if found is not None:
                self._known[digest] = found
        return found

    def _look(self, path: Path) -> None:
        try:
            self._read(path)
        except SettingsError as error:
            self._seen = None  # what cannot be read is tried again, whether or not it changed
            self._say(f"{error} Until then the tokens that were read last are in force.")

    def _read(self, path: Path) -> None:
        seen = _version(path)
        if seen is not None and seen == self._seen:
            return
        # Looked at before it is read: what changes in between is read again.
        tokens = read_tokens(path)
        if (*self._fixed, *tokens) != self._tokens:
            self._tokens, self._known = (*self._fixed, *tokens), {}
        self._seen = seen
        self._say("" if seen is not None else "there is no file at the setting api_tokens, so its tokens are not let in.")

    def _say(self, what: str) -> None:
        """Log what is wrong, in one line, once."""
        if what and what != self._said:
            _log.warning("%s", what.replace("\n", " "))
        self._said = what


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
