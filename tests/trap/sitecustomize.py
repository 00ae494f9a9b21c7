"""A trap for a stage: at the call that WRONAI_TRAP describes it is killed, or its disk is full (tests/faults.py).

Python imports this module as it starts where its folder is on PYTHONPATH: in dvc and in every stage that dvc starts.
WRONAI_TRAP is JSON: the arguments of the Python process that is meant (`command`), the audit `event` and a part of its
`path` (or the event "progress", a call of Progress.add), the how many-th such event counts (`count`), and `then`:

- kill: SIGKILL for the process; kill all: for its process group, as a machine does that loses its power
- kill at byte, kill all at byte: SIGKILL by the write that would take a file beyond `bytes`, whichever library writes
- fill: a file "ballast" beside params.yaml takes what the file system has left but for `bytes`
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any


def set_trap(trap: dict[str, Any]) -> None:
    left = trap["count"]

    def kill(*_: object) -> None:
        if "all" in trap["then"]:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def fire() -> None:
        if trap["then"] == "fill":
            room = os.statvfs(".")
            with Path("ballast").open("wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, room.f_bavail * room.f_frsize - trap["bytes"])
        elif trap["then"].endswith("at byte"):
            # The kernel signals a write beyond the limit within the call. Python ignores that signal, and a handler of
            # Python's own would run too late: when the library has seen its write fail.
            trap["handler"] = ctypes.CFUNCTYPE(None, ctypes.c_int)(kill)
            ctypes.CDLL(None).signal(int(signal.SIGXFSZ), trap["handler"])
            resource.setrlimit(resource.RLIMIT_FSIZE, (trap["bytes"], resource.RLIM_INFINITY))
        else:
            kill()

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            fire()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == trap["event"] and left > 0:
            paths = [os.fsdecode(item) for item in arguments[:2] if isinstance(item, str | bytes | os.PathLike)]
            if any(trap["path"] in path for path in paths):
                count()

    if trap["event"] != "progress":
        sys.addaudithook(watch)
        return
    sys.path.insert(0, str(Path.cwd()))  # which `python -m` adds later
    from wronai.progress import Progress

    del sys.path[0]
    add = Progress.add

    def counted(*arguments: Any, **named: Any) -> None:
        count()
        add(*arguments, **named)

    Progress.add = counted  # type: ignore[method-assign]


if "WRONAI_TRAP" in os.environ and sys.orig_argv[1:] == json.loads(os.environ["WRONAI_TRAP"])["command"]:
    set_trap(json.loads(os.environ["WRONAI_TRAP"]))
