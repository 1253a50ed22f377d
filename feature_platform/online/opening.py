"""
Which online store the settings name.

Knows every store by name, and loads the one that is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feature_platform.online.store import OnlineStore
    from feature_platform.settings import Settings

__all__ = ["MEMORY_URL", "open_online_store"]

MEMORY_URL = "memory://"


def open_online_store(settings: Settings) -> OnlineStore:
    """
    Return the store that the settings name: the embedded server, a Redis by URL, or memory (for tests).

    Raises:
        SettingsError: The URL is malformed.
    """
    from feature_platform.online.connections import Tuning  # noqa: PLC0415 - loads redis-py

    reads = Tuning(timeout_seconds=settings.read_deadline_ms / 1000)
    # Each store is imported where it is wanted: the embedded one needs a wheel that a server on the network does not.
    if settings.redis_url is None:
        from feature_platform.online.embedded import EmbeddedOnlineStore  # noqa: PLC0415

        return EmbeddedOnlineStore(settings.online_root, reads=reads)
    if settings.redis_url == MEMORY_URL:
        from feature_platform.online.memory import MemoryOnlineStore  # noqa: PLC0415

        return MemoryOnlineStore()
    from feature_platform.online.redis import RedisOnlineStore  # noqa: PLC0415

    return RedisOnlineStore.from_url(settings.redis_url, reads=reads)
