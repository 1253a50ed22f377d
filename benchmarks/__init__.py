"""Benchmarks: the feature platform beside its peers and its limits, measured side by side and checked equal. See docs/benchmarks.md."""
