"""What all tests share: a patient deadline of online reads, for a machine that runs tests is busy. Tests of the deadline set their own."""

import os

os.environ.setdefault("FEATURE_PLATFORM_READ_DEADLINE_MS", "2000")
