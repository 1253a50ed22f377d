"""
The throw-away environment of Feast: a peer, not a dependency, and its pins would fight with ours.

Knows pip. Knows nothing of what Feast is asked.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.measuring import Context, Tally

__all__ = ["REQUIREMENT", "feast_python"]

REQUIREMENT: Final = "feast[duckdb,redis]==0.67.0"


def feast_python(context: Context, tally: Tally) -> Path | None:
    """Return the interpreter of an environment with Feast, made on first use; None, and a line that says so, where pip cannot."""
    folder = context.cache / "feast-0.67.0"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        context.say(f"installing {REQUIREMENT} into an environment of its own")
        shutil.rmtree(folder, ignore_errors=True)
        commands = [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "--quiet", REQUIREMENT]]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no message"])[-1]
                line = f"feast is left out: {REQUIREMENT} cannot be installed: {said}"
                if line not in tally.left_out:
                    tally.left_out.append(line)
                shutil.rmtree(folder, ignore_errors=True)
                return None
        (folder / "complete").touch()
    return python
