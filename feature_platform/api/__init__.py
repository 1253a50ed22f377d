"""
The retrieval API: a user's features over HTTP, from the registry and the online store alone.

Loads neither Dagster nor DuckDB: an API process starts in under a second and stays small.
"""

from feature_platform.api.app import create_app, serve
from feature_platform.api.workers import WorkerError, serve_workers

__all__ = ["WorkerError", "create_app", "serve", "serve_workers"]
