"""`python -m feature_platform.cli`, for environments without the entry points."""

from feature_platform.cli import main

main()
