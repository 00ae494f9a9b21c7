"""Keep processes of this machine out of each other's way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def alone(file: Path, doing: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock `file`, whose folder must be there; who has to wait says first what the other run is `doing`."""
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"{doing}; waiting until it is done")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
