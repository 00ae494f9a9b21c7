"""One line of progress with units and the time left, rewritten on a terminal and spaced out in a log."""

import sys
import time
from typing import TextIO

INTERVAL = {True: 0.5, False: 10.0}  # seconds between lines, on a terminal and elsewhere


class Progress:
    """Counts towards `total` units (None where it is not known) and says how far, how fast and how long still."""

    def __init__(self, what: str, total: int | None, unit: str, stream: TextIO = sys.stderr) -> None:
        self._what, self._total, self._unit, self._stream = what, total, unit, stream
        self._done = 0
        self._started = self._shown = time.monotonic()

    def expect(self, left: int | None) -> None:
        """Take the total to be what is done and `left` units more, where it only shows underway."""
        self._total = None if left is None else self._done + left

    def add(self, units: int, note: str = "") -> None:
        """Count `units` more; `note` (a loss, a file name) stands in the line."""
        self._done += units
        now = time.monotonic()
        if now - self._shown >= INTERVAL[self._stream.isatty()]:
            self._shown = now
            self._show(note, end="\r" if self._stream.isatty() else "\n")

    def close(self, note: str = "") -> None:
        """Say the last line."""
        self._show(note, end="\n")

    def _show(self, note: str, end: str) -> None:
        seconds = time.monotonic() - self._started
        rate = self._done / seconds if seconds else 0.0
        parts = [self._what, f"{self._done:,}" + (f" of {self._total:,}" if self._total else "") + f" {self._unit}"]
        if note:
            parts.append(note)
        parts.append(f"{rate:,.0f} {self._unit}/s")
        left = (self._total - self._done) / rate if self._total and rate else 0.0
        parts.append(f"{left:.0f} s left" if left else f"{seconds:.0f} s")
        print(" | ".join(parts), end=end, file=self._stream, flush=True)
