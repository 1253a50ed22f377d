"""Feast's repository of the members: the same views over the same source files, its online store in the same Redis."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType  # type: ignore[import-not-found]
from feast.repo_config import RepoConfig  # type: ignore[import-not-found]
from feast.types import Float64, Int64, String  # type: ignore[import-not-found]

from benchmarks.members import WIDTHS, feature_name

__all__ = ["BEGIN", "END", "open_store", "write_repository"]

BEGIN, END = datetime(2024, 12, 31, tzinfo=UTC), datetime(2025, 1, 3, tzinfo=UTC)
_CONFIG = """\
project: feast
provider: local
registry: registry.db
offline_store:
  type: file
online_store:
  type: redis
  connection_string: "localhost:1,unix_socket_path={socket}"
entity_key_serialization_version: 3
"""


def write_repository(repository: Path, folder: Path, socket: str) -> None:
    """
    Declare the views.

    Args:
        repository: Where Feast's own files go.
        folder: Holds the sources.
        socket: Of the server.
    """
    repository.mkdir(parents=True, exist_ok=True)
    (repository / "feature_store.yaml").write_text(_CONFIG.format(socket=socket))
    member = Entity(name="member", join_keys=["member_id"], value_type=ValueType.STRING)
    views = [
        FeatureView(
            name=f"view_{width}",
            entities=[member],
            schema=[Field(name=feature_name(width, index), dtype=(Int64, Float64, String)[index % 3]) for index in range(width)],
            source=FileSource(
                name=f"source_{width}", path=str((folder / "sources" / f"{width}.parquet").resolve()), timestamp_field="event_timestamp"
            ),
        )
        for width in WIDTHS
    ]
    open_store(repository).apply([member, *views])


def open_store(repository: Path) -> FeatureStore:
    """Open the repository."""
    return FeatureStore(config=RepoConfig(repo_path=repository, **_settings(repository)), repo_path=None)


def _settings(repository: Path) -> dict[str, object]:
    import yaml  # type: ignore[import-untyped]  # noqa: PLC0415 - Feast's own

    settings: dict[str, object] = yaml.safe_load((repository / "feature_store.yaml").read_text())
    settings["registry"] = str(repository / "registry.db")
    return settings
