"""`feast serve` with one worker, until it is stopped; runs in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from benchmarks.subjects.feast_members import open_store


def run(*, repository: str, port: int) -> None:
    """Serve, as the command does."""
    open_store(Path(repository)).serve(host="127.0.0.1", port=port, type_="http", no_access_log=True, workers=1)
