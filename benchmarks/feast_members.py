"""
Feast beside us online: its repository, and its values in the same server, pushed once.

Knows where Feast's interpreter is. What runs there is `subjects/feast_members.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.feast_environment import feast_python
from benchmarks.measuring import Context, Tally, in_worker
from benchmarks.members import WIDTHS
from feature_platform.online.embedded import ensure_server

__all__ = ["Feast", "ensure_feast"]


@dataclass(frozen=True)
class Feast:
    """
    Feast, ready to be asked.

    Attributes:
        python: Its interpreter.
        arguments: Of its subjects: where its repository is.
    """

    python: Path
    arguments: dict[str, Any]


def ensure_feast(context: Context, tally: Tally, folder: Path, online_root: Path) -> Feast | None:
    """Return Feast with all keys pushed into the server; None where it is not wanted, or cannot be installed."""
    python = feast_python(context, tally) if "feast" in context.peers else None
    if python is None:
        return None
    context.say("pushing the same keys with Feast")
    repository, server = online_root / "feast", ensure_server(online_root)
    in_worker(
        "materialize_feast",
        python=python,
        folder=str(folder),
        repository=str(repository),
        socket=str(server),
        views=[f"view_{width}" for width in WIDTHS],
        keys=1,
    )
    return Feast(python, {"repository": str(repository)})
