"""The API as `fp serve` runs it: one uvicorn worker, until it is stopped."""

from __future__ import annotations

from pathlib import Path

from benchmarks.online_data import online_registry, online_settings
from feature_platform.api import serve


def run(*, folder: str, online_root: str, port: int) -> None:
    """Serve."""
    serve(online_registry(), online_settings(Path(folder), Path(online_root)), host="127.0.0.1", port=port)
