"""Which files are opened, by whatever part of the process: Linux tells by inotify."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_IN_OPEN = 0x20
_IN_ISDIR = 0x40000000
_HEADER = struct.Struct("iIII")


@contextlib.contextmanager
def opened_files(*folders: Path) -> Iterator[set[str]]:
    """Fill a set with the names of the Parquet files in some folders that are opened meanwhile; complete when the block has ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    names: set[str] = set()
    try:
        for folder in folders:
            assert libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN) >= 0, os.strerror(ctypes.get_errno())
        yield names
        with contextlib.suppress(BlockingIOError):
            while data := os.read(descriptor, 1 << 20):
                at = 0
                while at < len(data):
                    _, mask, _, length = _HEADER.unpack_from(data, at)
                    name = data[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0").decode()
                    at += _HEADER.size + length
                    if not mask & _IN_ISDIR and name.endswith(".parquet"):
                        names.add(name)
    finally:
        os.close(descriptor)
