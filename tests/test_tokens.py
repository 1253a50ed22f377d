"""The tokens file and the tokens in force: what is kept of a token, how the file is changed, and when it is looked at again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from feature_platform.api.live_tokens import LiveTokens
from feature_platform.errors import SettingsError, UnknownNameError
from feature_platform.tokens import TokenScope, create_token, read_tokens, revoke_token

NOW = datetime(2026, 1, 2, 3, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return where the file will be, in a folder of its own."""
    return tmp_path / "own" / "tokens.json"


def test_only_the_digest_of_a_token_is_kept(file: Path) -> None:
    """256 random bits, of which the file has the SHA-256; it is the owner's alone."""
    tokens = [create_token(file, name, now=NOW) for name in ("one", "two")]
    content = file.read_text()
    assert tokens[0][1] != tokens[1][1]
    for token, secret in tokens:
        assert secret.startswith("fpt_")
        assert len(secret) == len("fpt_") + 43  # 32 bytes in base64
        assert token.sha256 == hashlib.sha256(secret.encode()).hexdigest()
        assert token.sha256 in content
        assert secret not in content + repr(token)
        assert secret[4:] not in content
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    revoke_token(file, "one")
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_is_written_is_read(file: Path) -> None:
    """Scopes, services and both times come back; without a file there are no tokens."""
    assert read_tokens(file) == ()
    limited, _ = create_token(file, "a.b-c_1", now=NOW, services=["y", "x"], expires_after=timedelta(hours=1))
    free, _ = create_token(file, "free", now=NOW, scopes=list(TokenScope))
    assert read_tokens(file) == (limited, free)
    assert (limited.services, limited.scopes) == (frozenset({"x", "y"}), (TokenScope.READ,))
    assert [limited.is_expired(NOW + timedelta(minutes=minutes)) for minutes in (59, 60)] == [False, True]
    assert not free.is_expired(NOW + timedelta(days=10_000))
    assert revoke_token(file, "free") == free
    assert read_tokens(file) == (limited,)


def test_a_token_that_is_not_there_cannot_be_revoked(file: Path) -> None:
    """The nearest name is told."""
    create_token(file, "reader", now=NOW)
    with pytest.raises(UnknownNameError, match="Did you mean 'reader'"):
        revoke_token(file, "raeder")


ENTRY: dict[str, Any] = {"name": "pasted-secret", "sha256": "0" * 64, "scopes": ["read"], "created_at": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "not JSON"),
        (b'{"tokens": [{"name": "pasted-secret"', "not JSON"),
        (b'\xff{"tokens": []}', "not JSON"),
        (b'["pasted-secret"]', r"at \$"),
        (b'{"tokens": [], "pasted-secret": 1}', r"at \$"),
        (ENTRY | {"sha256": "pasted-secret"}, "sha256"),
        (ENTRY | {"sha256": ENTRY["sha256"] + "\n"}, "sha256"),
        (ENTRY | {"name": "pasted secret"}, "name"),
        (ENTRY | {"scopes": ["pasted-secret"]}, "scopes"),
        (ENTRY | {"scopes": []}, "scopes"),
        (ENTRY | {"services": []}, "services"),
        (ENTRY | {"services": ["x"], "scopes": ["write"]}, "limited to services"),
        (ENTRY | {"pasted-secret": 1}, r"tokens\[0\]"),
        (ENTRY | {"expires_at": "2026-01-01T00:00:00"}, "expires_at"),
    ],
    ids=[
        "empty",
        "cut-off",
        "no-utf8",
        "a-list",
        "other-field",
        "no-digest",
        "line-feed",
        "no-name",
        "no-scope",
        "no-scopes",
        "no-services",
        "a-service-to-write",
        "unknown-limit",
        "naive-time",
    ],
)
def test_a_broken_file_is_refused_and_not_repeated(file: Path, content: bytes | dict[str, Any], place: str) -> None:
    """The message says where, and nothing that stands in the file; no command changes it."""
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else json.dumps({"tokens": [content]}).encode())
    before = file.read_bytes()
    for action in (lambda: read_tokens(file), lambda: create_token(file, "x", now=NOW), lambda: LiveTokens(file)):
        with pytest.raises(SettingsError, match=place) as refusal:
            action()
        assert "pasted" not in str(refusal.value)
        assert refusal.value.field == "api_tokens"
    assert file.read_bytes() == before


@pytest.mark.parametrize("field", ["name", "sha256"])
def test_names_and_digests_are_unique(file: Path, field: str) -> None:
    """Which of two entries counts would be a guess."""
    other = ENTRY | {"name": "other", "sha256": "1" * 64} | {field: ENTRY[field]}
    file.parent.mkdir()
    file.write_text(json.dumps({"tokens": [ENTRY, other]}))
    with pytest.raises(SettingsError, match=f"two tokens have one {field}"):
        read_tokens(file)


def test_a_write_that_fails_changes_nothing(file: Path) -> None:
    """Where the disk takes no more, the old file stays whole, nothing is left beside it, and no token is shown."""
    create_token(file, "kept", now=NOW)
    before = file.read_bytes()
    script = f"""
import resource
from datetime import UTC, datetime
from pathlib import Path
from feature_platform.tokens import create_token
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
print(create_token(Path({str(file)!r}), "lost", now=datetime.now(UTC)))
"""
    done = subprocess.run([sys.executable, "-B", "-c", script], capture_output=True, text=True, check=False)
    assert "SettingsError" in done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert done.stdout == ""
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["tokens.json"]


def test_readers_see_whole_files_and_no_change_is_lost(file: Path) -> None:
    """Commands at once wait for one another; who reads meanwhile sees a file from before or after each."""
    create_token(file, "first", now=NOW)
    is_over, seen = threading.Event(), list[int]()

    def read() -> None:
        while not is_over.is_set():
            seen.append(len(read_tokens(file)))

    with ThreadPoolExecutor(5) as pool:
        reading = pool.submit(read)
        list(pool.map(lambda number: create_token(file, f"t{number}", now=NOW), range(20)))
        revoke_token(file, "first")
        is_over.set()
        reading.result()
    assert {one.name for one in read_tokens(file)} == {f"t{number}" for number in range(20)}
    assert min(seen) >= 1


def test_the_file_stays_its_owners(file: Path) -> None:
    """A server that runs as another user can still read what root changed; who is not root can only give it to themselves."""
    create_token(file, "one", now=NOW)
    owner = (12_345, 12_345) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(file, *owner)
    create_token(file, "two", now=NOW)
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (*owner, 0o600)


def test_the_file_is_looked_at_once_a_second(file: Path) -> None:
    """Within a second it is left alone, found tokens and others alike; then a change counts, one of equal size too."""
    seconds = 100.0
    _, first = create_token(file, "aaaa", now=NOW)
    live = LiveTokens(file, clock=lambda: seconds)
    assert live.find(first.encode()) is not None
    revoke_token(file, "aaaa")
    _, second = create_token(file, "bbbb", now=NOW)
    seconds += 0.99
    assert live.find(first.encode()) is not None
    assert live.find(second.encode()) is None
    seconds += 0.02
    assert live.find(first.encode()) is None
    found = live.find(second.encode())
    assert found is not None
    assert found.name == "bbbb"


def test_only_a_whole_token_is_found(file: Path) -> None:
    """Neither its digest, nor a part of it, nor nothing at all; among several each is itself."""
    secrets = {name: create_token(file, name, now=NOW)[1] for name in ("one", "two", "three")}
    live = LiveTokens(file)
    for name, secret in [*secrets.items(), *secrets.items()]:
        found = live.find(secret.encode())
        assert found is not None
        assert found.name == name
        for wrong in (found.sha256, secret[:-1], secret + "A", secret.lower(), ""):
            assert live.find(wrong.encode()) is None


def test_a_file_that_cannot_be_read_is_tried_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whether or not it changes: the last tokens are in force until then, and the log says so once."""
    seconds = 0.0
    _, secret = create_token(file, "one", now=NOW)
    live = LiveTokens(file, clock=lambda: seconds)
    kept = file.rename(file.with_name("kept"))
    file.mkdir()  # root may read every file, but no folder as one
    for _ in range(3):
        seconds += 1
        assert live.find(secret.encode()) is not None
    assert [record.getMessage().count("cannot be read") for record in caplog.records] == [1]
    file.rmdir()
    seconds += 1
    assert live.find(secret.encode()) is None
    kept.rename(file)
    seconds += 1
    assert live.find(secret.encode()) is not None
