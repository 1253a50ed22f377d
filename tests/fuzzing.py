"""How many cases the fuzzers try: hundreds in `make test`; `.ci/run` says thousands by FUZZ_CASES."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

__all__ = ["CASES", "fuzz"]

CASES = int(os.environ.get("FUZZ_CASES", "300"))

fuzz = settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
