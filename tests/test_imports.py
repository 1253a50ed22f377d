"""What importing the package costs and promises: no framework, true names, one tree of errors."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import subprocess
import sys

import pytest

import feature_platform
from feature_platform import errors
from feature_platform.errors import FeaturePlatformError, NotMaterializedError, UnknownNameError, suggest

FRAMEWORKS = {
    "dagster",
    "dagster_duckdb",
    "duckdb",
    "redis",
    "fastapi",
    "starlette",
    "uvicorn",
    "pandas",
    "polars",
    "click",
    "rich",
}
GROUND_FLOOR = ["errors", "dtypes", "model", "registry", "windows", "settings", "tokens"]
ERRORS = {name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, FeaturePlatformError)}
# As drawn: indentation, name, the built-in in parentheses.
DRAWN = re.compile(r"^    (?P<bars>[│ ]*[├└]── )?(?P<name>\w+Error)(?: \((?P<builtin>\w+)\))?", re.MULTILINE)


def loaded(program: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after a program."""
    program += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "program",
    [
        "import feature_platform",
        "from feature_platform import Registry, Settings",
        *(f"import feature_platform.{module}" for module in GROUND_FLOOR),
        "from feature_platform import FeatureService; import features.streaming",
    ],
)
def test_declaring_loads_no_framework(program: str) -> None:
    """A feature author's import, and the API process, pay for neither Dagster nor DuckDB."""
    assert loaded(program) & FRAMEWORKS == set()


def test_the_feature_store_is_loaded_when_it_is_named() -> None:
    """The one public name that needs DuckDB."""
    assert "duckdb" in loaded("from feature_platform import FeatureStore")


@pytest.mark.parametrize("module", ["feature_platform", *(f"feature_platform.{name}" for name in GROUND_FLOOR)])
def test_all_tells_the_truth(module: str) -> None:
    """Every name in `__all__` exists and stands there once, sorted; every public class and function that a module defines is in it."""
    imported = importlib.import_module(module)
    names = imported.__all__
    assert all(hasattr(imported, name) for name in names)
    assert len(set(names)) == len(names)
    own = {
        name
        for name, one in vars(imported).items()
        if (inspect.isclass(one) or inspect.isfunction(one)) and one.__module__ == module and not name.startswith("_")
    }
    assert own <= set(names)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    """Loading on demand hides no misspelling."""
    with pytest.raises(AttributeError, match="no attribute 'FeatureStor'"):
        feature_platform.FeatureStor  # noqa: B018 - the access is the test


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """Every error is in the module's docstring, below its parent, with the built-in that it also is, and in `__all__`."""
    drawn = {match["name"]: match for match in DRAWN.finditer(errors.__doc__ or "")}
    assert drawn.keys() == ERRORS.keys() == set(errors.__all__) - {"suggest"}
    path: dict[int, str] = {}
    for name, match in drawn.items():
        depth = len(match["bars"] or "")
        if depth:
            parent = path[max(level for level in path if level < depth)]
            assert ERRORS[name].__bases__[0] is ERRORS[parent], name
        path = {level: one for level, one in path.items() if level < depth} | {depth: name}
        if match["builtin"]:
            assert getattr(builtins, match["builtin"]) in ERRORS[name].__mro__, name


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_every_error_is_a_built_in_too(error: type[FeaturePlatformError]) -> None:
    """Code that knows nothing of us can catch it; its text stays as written (KeyError would quote it)."""
    assert error.__doc__
    assert not issubclass(error, KeyError)
    if error is not FeaturePlatformError:
        assert any(base.__module__ == "builtins" and base not in {Exception, BaseException, object} for base in error.__mro__)


@pytest.mark.parametrize(
    ("error", "text", "suggestion"),
    [
        (
            UnknownNameError("feature", "watch_count_30", ["watch_minutes_7d", "watch_count_30d"], where="view 'user_activity'"),
            (
                "no feature 'watch_count_30' in view 'user_activity'.\n"
                "Did you mean 'watch_count_30d'? The view has: watch_count_30d, watch_minutes_7d."
            ),
            "watch_count_30d",
        ),
        (UnknownNameError("view", "x", ["profile"]), "no view 'x'.\nKnown: profile.", None),
        (UnknownNameError("service", "x", []), "no service 'x'.\nKnown: nothing.", None),
        (UnknownNameError("source", "watch", iter(["watches"])), "no source 'watch'.\nDid you mean 'watches'? Known: watches.", "watches"),
    ],
    ids=["in-a-view", "far-from-all", "nothing-known", "an-iterator"],
)
def test_an_unknown_name_says_what_was_meant(error: UnknownNameError, text: str, suggestion: str | None) -> None:
    """What, where and the next step; the parts stay as attributes."""
    assert (str(error), error.suggestion) == (text, suggestion)
    assert error.kind in text
    assert error.name in text


def test_a_long_list_of_names_is_cut() -> None:
    """A registry of a thousand features does not fill the terminal."""
    assert suggest("x", [f"n{number:03}" for number in range(25)]).endswith("n019 and 5 more.")


def test_a_view_that_was_never_materialized_names_the_commands() -> None:
    """An empty store never answers defaults for everyone."""
    error = NotMaterializedError("profile")
    assert error.view == "profile"
    assert "fp materialize profile" in str(error)
    assert "fp rebuild-online" in str(error)
