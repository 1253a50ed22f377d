"""
What the text of a query says, of SQL and of Python functions: whether it returns `event_timestamp`, and what makes two the same.

Knows how SQL is written, no dialect's meaning: the ground floor has no parser. What a query really returns is told by running it.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from datetime import date, timedelta

__all__ = ["one_spaced", "returns_event_timestamp", "source_code"]

_PLAIN = (bool, int, float, str, bytes, date, timedelta, type(None))
_TOKEN = re.compile(
    r"""
    (?P<space>   (?: \s+ | --[^\n]* | /\*.*?\*/ )+ )
    | (?P<text>  [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | (?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag) )
    | (?P<quoted> "(?:[^"]|"")*" )
    | \w+ | [^\s\w]
    """,
    re.DOTALL | re.VERBOSE,
)
_AFTER_SELECT_LIST = {"from", "where", "group", "having", "window", "qualify", "order", "limit", "union", "intersect", "except", ";"}
# An expression goes on after these, so the name behind them is no alias.
_OPERATORS = {"not", "and", "or", "like", "ilike", "in", "between", "is", "from", "when", "then", "else", "case", "glob"}


def returns_event_timestamp(query: str, *, through_star: bool = False) -> bool:
    """
    Say whether the outermost SELECT list of a query has a column named `event_timestamp`.

    Args:
        query: One SELECT; common table expressions stand in parentheses and do not count.
        through_star: Whether a `*` brings the column, as far as the sources tell; the query's own text is looked at too.
    """
    words = _words(query)
    items = _select_list(words)
    through_star |= "event_timestamp" in words
    if not items:  # `from watches`
        return through_star
    return any(_name_of(item) == "event_timestamp" or (through_star and _is_star(item)) for item in items)


def _words(query: str) -> list[str]:
    """Return a query's words in lower case; a quoted keyword keeps its quotes, a string literal is one quote."""
    words = []
    for token in _TOKEN.finditer(query):
        word = token[0].lower()
        if token["quoted"]:
            bare = word[1:-1].replace('""', '"')
            words.append(bare if re.fullmatch(r"\w+", bare) and bare not in _AFTER_SELECT_LIST | _OPERATORS | {"select"} else word)
        elif not token["space"]:
            words.append("'" if token["text"] else word)
    return words


def _select_list(words: Sequence[str]) -> list[list[str]]:
    """Return the words of each item of the outermost SELECT; empty where there is none."""
    items: list[list[str]] = []
    depth, previous = 0, ""
    for word in words:
        if depth == 0 and items and word in _AFTER_SELECT_LIST and previous != "distinct":  # `is distinct from`
            break
        if depth == 0 and not items and word == "(" and previous in {"", "(", ")"}:  # round the whole SELECT
            previous = word
            continue
        depth += (word in "([{") - (word in ")]}")
        if depth < 0:
            break
        if items and depth == 0 and word == ",":
            items.append([])
        elif items:
            items[-1].append(word)
        elif depth == 0 and word == "select":
            items = [[]]
        previous = word
    return items


def _name_of(item: Sequence[str]) -> str:
    """Return the name that DuckDB gives an item of a SELECT list; nothing where it is made of an expression."""
    match item:
        case [name, ":", after, *_] if after != ":":
            return name
        case [name] | [*_, "." | "as" | "distinct" | "all", name]:
            return name
        case [*_, before, name] if before not in _OPERATORS and (before in {")", "]", "}", "'"} or re.fullmatch(r'\w+|".*"', before)):
            return name
    return ""


def _is_star(item: Sequence[str]) -> bool:
    """Say whether an item is a `*` that may bring `event_timestamp`."""
    for index, word in enumerate(item):
        if word == "*" and (index == 0 or item[index - 1] in {".", "distinct", "all"}):
            rest = item[index + 1 :]
            return not ("event_timestamp" in rest and rest[0] in {"exclude", "rename"})
    return False


def one_spaced(sql: str) -> str:
    """Return SQL without comments and with single spaces, literals and quoted names as they are."""
    return "".join(" " if token["space"] else token[0] for token in _TOKEN.finditer(sql)).strip()


def source_code(function: Callable[..., object]) -> str:
    """Return what a function does, as text that is the same in every process: its code, and the plain values bound to it."""
    if isinstance(function, functools.partial):
        bound = [*enumerate(function.args), *sorted(function.keywords.items())]
        return "\n".join([source_code(function.func), *(f"{name} = {value!r}" for name, value in bound if isinstance(value, _PLAIN))])
    enclosed = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    try:
        code = inspect.getsource(function if inspect.isroutine(function) or inspect.isclass(function) else type(function))
    except (OSError, TypeError):  # defined at a prompt, or built in
        code = getattr(function, "__qualname__", type(function).__qualname__)
    return "\n".join([code, *(f"{name} = {value!r}" for name, value in sorted(enclosed.items()) if isinstance(value, _PLAIN))])
