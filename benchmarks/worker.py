"""The fresh process of one run: `python -m benchmarks.worker SUBJECT`, arguments as JSON on stdin, the run as JSON on stdout."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict

from benchmarks.measuring import MARK, Run


def main() -> None:
    """Run one subject once."""
    module = importlib.import_module(f"benchmarks.subjects.{sys.argv[1]}")
    run = module.run(**json.load(sys.stdin))
    if isinstance(run, Run):
        print(MARK + json.dumps(asdict(run)), flush=True)


if __name__ == "__main__":
    main()
