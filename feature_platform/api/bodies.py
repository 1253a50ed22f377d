"""
Request bodies: bounded in size, strict in JSON.

Knows bytes. Knows nothing of what a body means.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from feature_platform.api.problems import Problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["JsonObject", "parse_object", "read_body"]

JsonObject = dict[str, Any]


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """
    Return the body of a request, whose headers say that it is JSON.

    Raises:
        Problem: 413 (too large, declared or streamed), 415 (not JSON, or compressed), or 499 (nobody is there any more to be answered).
    """
    for name, value in scope["headers"]:
        if name == b"content-type":
            if value != b"application/json":
                _check_media_type(value.decode("latin-1"))
        elif name == b"content-encoding":
            if value.decode("latin-1").strip().lower() != "identity":
                raise Problem(415, "compressed bodies are not understood.\nSend the JSON as it is.", suggestion="identity")
        elif name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
            raise _too_large(max_bytes)
    # A body in chunks declares no length, so what arrives is counted.
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(499, "the client went away before its body was read.", kind="client-closed-request")  # nginx's number
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def parse_object(body: bytes) -> JsonObject:
    """
    Return the JSON object that a body is.

    Raises:
        Problem: 400 (not JSON, or a field stands there twice) or 422 (no object).
    """
    try:
        parsed = _DECODER.decode(body.decode("utf-8"))
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except UnicodeError as exc:
        raise _malformed("it is not UTF-8 text") from exc
    except RecursionError as exc:
        raise _malformed("it is nested too deep") from exc
    except json.JSONDecodeError as exc:
        raise _malformed(str(exc)) from exc
    except ValueError as exc:  # CPython converts 4,300 digits at most: more take quadratic time
        raise _malformed("a number has too many digits") from exc
    if not isinstance(parsed, dict):
        detail = f"the body is a JSON {_json_type(parsed)}, not an object.\nSend {{...}}, with a field for every join key."
        raise Problem(422, detail, kind="invalid-request")
    return parsed


def _check_media_type(header: str) -> None:
    media_type = header.partition(";")[0].strip().lower()
    if media_type != "application/json" and not (media_type.startswith("application/") and media_type.endswith("+json")):
        detail = f"a body of type {media_type!r} is not understood.\nSend JSON, with the header Content-Type: application/json."
        raise Problem(415, detail, suggestion="application/json")


def _too_large(max_bytes: int) -> Problem:
    detail = f"the body is larger than {max_bytes} bytes.\nAsk for fewer entities at a time, or raise FEATURE_PLATFORM_MAX_BODY_BYTES."
    # The rest of the body is not read, so the connection cannot carry another request.
    return Problem(413, detail, headers={"Connection": "close"})


def _malformed(what: str) -> Problem:
    return Problem(400, f"the body is not valid JSON: {what}.", kind="malformed-json")


def _json_type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _unique_pairs(pairs: list[tuple[str, object]]) -> JsonObject:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        # Parsers disagree on which of the two counts, and a proxy in front may have checked the other one.
        raise _malformed(f"field {twice[:100]!r} stands there twice")
    return fields


def _no_constant(name: str) -> object:
    raise _malformed(f"{name} is not in it; write it as a string")


# As fast as msgspec's decoder, whose answer would have to be searched for fields that stood there twice.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique_pairs, parse_constant=_no_constant)
