"""
The tokens file: who may ask the API, and what.

Knows JSON and how a file is changed safely. Knows no HTTP, and no token itself: only its SHA-256 is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from feature_platform.errors import SettingsError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Token", "TokenScope", "create_token", "digest_of", "read_tokens", "revoke_token"]

_SECRET_BYTES = 32
# Scanners for secrets that were committed by mistake find a token by how it begins.
_PREFIX = "fpt_"


class TokenScope(StrEnum):
    """What a token may do; a route asks for one of these."""

    READ = "read"
    METRICS = "metrics"
    WRITE = "write"


_Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


# Unknown fields are refused: a limit that this version does not know would let in more than was meant.
class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    One entry of the file.

    Attributes:
        name: For people; unique.
        sha256: Of the token, in hexadecimal digits.
        scopes: What it may do.
        services: The only services that it may ask for; None for no such limit.
        created_at: When it was made.
        expires_at: From when on it is refused; None for never.
    """

    name: _Name
    sha256: _Hex
    scopes: Annotated[tuple[TokenScope, ...], msgspec.Meta(min_length=1)]  # a set would hash an enum in every request, slowly
    services: Annotated[frozenset[str], msgspec.Meta(min_length=1)] | None = None
    created_at: _Moment
    expires_at: _Moment | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that would not hold."""
        if self.services is not None and self.scopes != (TokenScope.READ,):
            raise ValueError("a token limited to services has the scope 'read' and no other")

    def is_expired(self, now: datetime) -> bool:
        """Say whether its time is over."""
        return self.expires_at is not None and self.expires_at <= now


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: list[Token]

    def __post_init__(self) -> None:
        for field in ("name", "sha256"):
            if len({getattr(one, field) for one in self.tokens}) < len(self.tokens):
                message = f"two tokens have one {field}"
                raise ValueError(message)


def digest_of(secret: bytes) -> str:
    """
    Return what the file keeps of a token.

    Slow and salted hashes make passwords hard to guess. 256 random bits cannot be guessed at any speed, and every request pays for
    the hash, so it is a plain fast one.
    """
    return hashlib.sha256(secret).hexdigest()


def read_tokens(path: Path) -> tuple[Token, ...]:
    """
    Return the tokens of a file, none where there is no file.

    Raises:
        SettingsError: It cannot be read, or is broken. The message repeats nothing of it: somebody may have pasted a token into it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as exc:
        message = f"the file of the setting api_tokens cannot be read: {exc.strerror}.\nName a file that the server's user may read."
        raise SettingsError(message, field="api_tokens") from None
    try:
        return tuple(msgspec.json.decode(content, type=_File).tokens)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        what = _without_content(exc)
        message = (
            f"the file of the setting api_tokens is broken: {what}.\nPut it right, or remove it and make tokens with 'fp token create'."
        )
        raise SettingsError(message, field="api_tokens") from None


def create_token(
    path: Path,
    name: str,
    *,
    now: datetime,
    scopes: Iterable[TokenScope] = (TokenScope.READ,),
    services: Iterable[str] = (),
    expires_after: timedelta | None = None,
) -> tuple[Token, str]:
    """
    Add a token to a file, which is made if there is none.

    Args:
        path: The file.
        name: Of letters, digits, `_`, `-` and `.`.
        now: When it is made.
        scopes: What it may do.
        services: The only ones that it may ask for; none for no such limit.
        expires_after: How long it is good for.

    Returns:
        The entry, and the token itself, which is kept nowhere.

    Raises:
        SettingsError: The name is taken or not safe, the limits contradict, or the file cannot be changed.
    """
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    entry = {
        "name": name,
        "sha256": digest_of(secret.encode()),
        "scopes": sorted(set(scopes)),
        "services": sorted(services) or None,
        "created_at": now,
        "expires_at": None if expires_after is None else now + expires_after,
    }
    try:
        token = msgspec.convert(entry, Token)
    except msgspec.ValidationError as exc:
        if "$.name" in str(exc):
            message = f"{name!r} is no name for a token.\nUse up to 64 letters, digits, '_', '-' and '.'; begin with a letter or a digit."
            raise SettingsError(message, field="name") from None
        message = f"token {name!r}: {exc}."
        raise SettingsError(message) from None
    with _changing(path) as tokens:
        if any(one.name == name for one in tokens):
            message = f"there is a token {name!r} already.\nChoose another name, or 'fp token revoke {name}' first."
            raise SettingsError(message, field="name")
        tokens.append(token)
    return token, secret


def revoke_token(path: Path, name: str) -> Token:
    """
    Take a token out of a file.

    Raises:
        UnknownNameError: There is none of that name; with the nearest.
        SettingsError: The file cannot be changed.
    """
    with _changing(path) as tokens:
        by_name = {one.name: one for one in tokens}
        if name not in by_name:
            raise UnknownNameError("token", name, by_name, field="name")
        tokens.remove(by_name[name])
    return by_name[name]


def _without_content(error: Exception) -> str:
    """Return what is wrong with a file: the text of our own checks, else no more than the place, for msgspec repeats what it found."""
    if not isinstance(error, msgspec.ValidationError):
        return "it is not JSON"
    _, is_placed, place = str(error).rpartition(" - at ")
    said = f"{error.__cause__} " if type(error.__cause__) is ValueError else "not as expected "
    return said + f"at {place if is_placed else '$'}".replace("`", "")


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[Token]]:
    """Give the tokens of a file to change, and write them in the end unless an error came."""
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # The folder is locked, since the file itself is replaced: of two commands at once, the second would undo a revocation.
            fcntl.flock(folder, fcntl.LOCK_EX)
            tokens = list(read_tokens(path))
            yield tokens
            _write(path, msgspec.json.format(msgspec.json.encode(_File(tokens), order="sorted"), indent=2) + b"\n")
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        message = f"{path} cannot be written: {exc.strerror}.\nSee the setting api_tokens."
        raise SettingsError(message, field="api_tokens") from exc


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader, and a machine that fails, see the old one or the new one."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if os.geteuid() == 0 and path.exists():
                # Root may change what the server's user owns, and that user must go on reading it.
                owner = path.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
