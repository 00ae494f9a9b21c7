"""Servers that the tests start on loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
import short

from wronai import tracking


@dataclass(frozen=True)
class Server:
    """A server that listens: its address, and the process group that is killed in the end."""

    address: str
    pid: int


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def served(log: Path, *module: str, cwd: Path | None = None, **more: str) -> Iterator[Server]:
    """`python -m module... --port` of a free one, from when it answers until the block ends.

    `more` are variables of its environment.
    """
    port = free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *module, "--port", str(port)],
            cwd=cwd,
            env=short.environment(**tracking.QUIET, **more),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}", process, log)
        yield Server(f"http://127.0.0.1:{port}", process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        with contextlib.suppress(requests.ConnectionError):
            requests.get(f"{address}/health", timeout=60)
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"nobody listens at {address}: {log.read_text()}")
