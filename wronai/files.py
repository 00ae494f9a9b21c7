"""Write a file whole or not at all, and say where there was no room for it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all, with sorted keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def disk_is_full(error: BaseException) -> str | None:
    """One line on the disk that `error` says is full, in whichever library's words; None if it speaks of no such disk.

    safetensors and torch raise errors of their own with the words of the system, and some raise another error over it.
    """
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    for found in chain:
        if getattr(found, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(found):
            where = Path(getattr(found, "filename", None) or ".").absolute()
            while not where.exists():
                where = where.parent
            free = shutil.disk_usage(where).free
            return (
                f"no space left on the disk of {where}, which has {free:,} bytes free; nothing half-written is kept: "
                "make room, then run `dvc repro` again"
            )
    return None
