"""
What an attacker sends to the API, whole and by kind: not HTTP, not quite HTTP, hostile bodies, wrong tokens and paths.

Knows one right token and one right question. Knows nothing of how it is sent, nor of what is answered.
"""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Mapping, Sequence
from itertools import permutations, product
from random import Random
from typing import Any

from test_serving import BODY, TOKEN

from feature_platform.tokens import digest_of

__all__ = ["SECRET", "UNAUTHORIZED", "Kinds", "bodies", "framing", "raw", "requests"]

SECRET = "Zq7-nobodys-business"  # in whatever is somebody's data
UNAUTHORIZED = frozenset({"no-token", "wrong-tokens", "near-tokens", "two-tokens"})  # kinds that are never answered 200

Kinds = Mapping[str, Sequence[bytes]]


def raw(line: str, *headers: str | bytes, body: bytes = b"", token: str | bytes | None = TOKEN) -> bytes:
    """Return a request with these headers, whatever its body needs."""
    given = [] if token is None else [b"authorization: Bearer " + (token if isinstance(token, bytes) else token.encode())]
    given += [header.encode("latin-1") if isinstance(header, str) else header for header in headers]
    return b"\r\n".join([line.encode("latin-1"), b"host: x", *given, b"", body])


def post(body: object, *headers: str, path: str = "/get-online-features", token: str | bytes | None = TOKEN) -> bytes:
    """Return a request that is whole, and whose body may be anything."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fixed = ("content-type: application/json", f"content-length: {len(content)}")
    return raw(f"POST {path} HTTP/1.1", *fixed, *headers, body=content, token=token)


def chunked(body: bytes, size: int = 10_000) -> bytes:
    """Return a request whose body comes in chunks."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    content = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return raw(LINE, "content-type: application/json", "transfer-encoding: chunked", body=content)


LINE = "POST /get-online-features HTTP/1.1"
GOOD = post(BODY)
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n" + GOOD


def framing(random: Random) -> Kinds:
    """Return what is not HTTP, or not quite."""
    lengths = ["-1", "+5", "5x", "", "0x10", "1, 2", "9" * 30, "0" * 5000 + "5", "²"]
    codings = [
        "chunked, identity",
        "identity",
        "gzip, chunked",
        "xchunked",
        "chunked\t",
        " chunked",
        "chunked\r\ntransfer-encoding: chunked",
    ]
    chunk_sizes = [b"F" * 20, b"-1", b"zz", b"", b"5;" + b"x" * 100_000, b"5\n", b"0x5", b"7fffffffffffffff"]
    odd = [b"x: a\0b", b"x: a\rb", b"x: a\nb", b"x\0: a", b": a", b"x : a", b" folded", b"x", b"x: \xff\xfe", b"\xff: x", b"x: a\r\n\tb"]
    methods = ["BREW", "get", "G\0T", "", "A" * 5000, "PROPFIND", "PURGE", "M-SEARCH", "TRACE", "CONNECT", "PRI", "SOURCE", "é"]
    targets = [
        "http://x/health",
        "http://x",
        "//x//health",
        "*",
        "x:80",
        "/\0",
        "/é",
        "/health?" + "a=b&" * 5000,
        "/" + "a" * 300_000,
        "",
        "/%",
        "?",
        "/ /",
    ]
    upgrades = ["websocket", "h2c", "TLS/1.0", ""]
    return {
        "nothing": [b""],
        "noise": [random.randbytes(random.randrange(1, 3000)) for _ in range(50)],
        "line-ends": [b"\r\n" * 50, b"\n" * 50, b"\r" * 50],
        "http2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", post(BODY, "connection: upgrade", "upgrade: h2c")],
        "tls": [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + random.randbytes(508)],
        "lengths": [raw(LINE, f"content-length: {one}", body=BODY) for one in lengths],
        "two-lengths": [post(BODY, "content-length: 5"), post(BODY, f"content-length: {len(BODY)}")],
        "length-and-chunks": [raw(LINE, *pair, body=CHUNKS) for pair in permutations(["content-length: 5", "transfer-encoding: chunked"])],
        "codings": [raw(LINE, f"transfer-encoding: {one}", body=CHUNKS) for one in codings],
        "chunk-sizes": [raw(LINE, "transfer-encoding: chunked", body=one + b"\r\nhello\r\n0\r\n\r\n") for one in chunk_sizes],
        "huge-header": [raw("GET /health HTTP/1.1", "x: " + "a" * size) for size in (60_000, 100_000, 1_000_000)],
        "many-headers": [raw("GET /health HTTP/1.1", *["a:"] * n) for n in (1000, 14_000, 50_000)],
        "odd-headers": [raw("GET /health HTTP/1.1", one) for one in odd],
        "methods": [raw(f"{one} /health HTTP/1.1") for one in methods],
        "targets": [raw(f"GET {one} HTTP/1.1") for one in targets],
        "versions": [raw(f"GET /health HTTP/{one}") for one in ("0.9", "1.0", "1.2", "2.0", "9.9", "", "1.1.1", "x")]
        + [b"GET /health\r\n"],
        "upgrades": [raw("GET /health HTTP/1.1", "connection: upgrade", f"upgrade: {one}") for one in upgrades],
        "no-body": [raw(LINE, "content-length: 1000"), raw(LINE, "content-length: 100", "expect: 100-continue")],
        "pipelined": [GOOD * 50, GOOD * 5 + b"\0", GOOD * 2 + raw(LINE, "x: " + "a" * 70_000), GOOD + GOOD[:-5]],
    }


def bodies() -> Kinds:
    """Return bodies that no client of ours would send, with a token that may ask."""
    numbers = [b"1" + b"0" * 400, b"1" + b"0" * 5000, b"1e400", b"-1e400", b"NaN", b"-Infinity", b"-0", b"1.5", b"0" * 50, b"1e-999"]
    texts = [b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\\u0000"', b'"\0"', b'"\xef\xbb\xbf"', b'"\\x"', b'"']
    keys = [
        "*",
        "u?",
        "[a-z]",
        "\r\nFLUSHALL\r\n",
        "*1\r\n$8\r\nFLUSHALL\r\n",
        "a:b",
        "{u1}",
        "\0",
        "",
        " ",
        "u1\n",
        "é" * 1000,
        SECRET * 5000,
    ]
    types: list[Any] = [None, True, 1, 1.5, [], {}, [SECRET], {"a": SECRET}, "genre", [None], [[]], ["genre", 1]]
    nested = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900]
    asked = b'{"features": ["genre"], "user_id": %s}'
    many = {"features": ["genre"], "entities": {"user_id": [SECRET] * 1001}}
    fields = ["features", "feature_service", "entities", "user_id", "metadata", "full_feature_names", SECRET]
    return {
        "gzip-bomb": [post(gzip.compress(bytes(10_000_000)), "content-encoding: gzip")],
        "too-large": [post(b" " * 1_100_000 + BODY), post(b'{"' + SECRET.encode() * 100_000 + b'": 1}')],
        "too-large-in-chunks": [chunked(b" " * 1_100_000 + BODY)],
        "tiny-chunks": [chunked(b" " * 5000 + BODY, size=1)],
        "nested": [post(one) for one in nested] + [post(asked % one) for one in nested],
        "numbers": [post(asked % one) for one in numbers],
        "texts": [post(asked % one) for one in texts],
        "keys": [post({"features": ["genre"], "user_id": one}) for one in keys],
        "doubles": [post(b'{"features": ["genre"], "user_id": "u1", "user_id": "u2"}'), post(b"{" + b'"a": 1,' * 10_000 + b'"a": 1}')],
        "types": [post({"features": ["genre"], "user_id": "u1", field: one}) for field in fields for one in types],
        "features": [post({"features": [f"{SECRET}{i}" for i in range(n)], "user_id": "u1"}) for n in (1, 1000, 50_000)],
        "entities": [post(many), post({**many, "entities": {"user_id": ["u1"] * 90_000}}), post({**many, "entities": {"user_id": []}})],
        "fields": [post({f"{SECRET}{i}": i for i in range(10_000)})],
        "services": [
            post(body, path=f"/services/{one}") for body in (BODY, b'{"user_id": "u1"}') for one in ("before", SECRET, "%00", "é")
        ],
        "media-types": [
            raw(LINE, f"content-type: {one}", f"content-length: {len(BODY)}", body=BODY) for one in ("", "text/xml", "é", "a" * 9000)
        ],
    }


def requests(limited: str, routes: Sequence[str]) -> Kinds:
    """Return wrong tokens, and paths that are not there or are asked otherwise."""
    near = [
        TOKEN[:-1],
        TOKEN + "x",
        TOKEN.upper(),
        TOKEN.replace("a", "b", 1),
        digest_of(TOKEN.encode()),
        f"{TOKEN}, {TOKEN}",
        f"{TOKEN}\0",
    ]
    odd = [b"", b"\xff\xfe", TOKEN.encode("utf-16"), b"\xc3\xa9" * 50, b"\t", SECRET.encode() * 3000]
    up = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/features/..%2f..%2fetc%2fpasswd", "/docs/../../x", "/%00", "/features/%ff"]
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
    paths = [route.replace("{view}", one) for route in routes for one in ("last_watch", SECRET)]
    asked = [raw(f"{method} {path} HTTP/1.1", token=one) for method, path, one in product(methods, paths, [TOKEN, limited, None])]
    return {
        "no-token": [post(BODY, token=None), post(BODY, "authorization: Basic YTpi", token=None)],
        "wrong-tokens": [post(BODY, token=one) for one in [secrets.token_hex().encode(), SECRET.encode(), *odd]],
        "near-tokens": [post(BODY, token=one) for one in near],
        "two-tokens": [post(BODY, f"authorization: Bearer {TOKEN}"), post(BODY, "authorization: Bearer x")],
        "limited-tokens": [post(BODY, token=limited)],
        "traversals": [raw(f"GET {one} HTTP/1.1", token=token) for one in up for token in (TOKEN, None)],
        "unknown": [raw(f"GET /{SECRET}/{'x' * n} HTTP/1.1") for n in (1, 1000)],
        "routes": asked,
    }
