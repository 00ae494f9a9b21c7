"""The line of progress says how far, how fast and how long still."""

import io
import re

import pytest

from wronai import progress


def test_the_line_has_units_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 20.0, 20.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    line = progress.Progress("training", 4000, "tok", out)
    line.add(1000, "loss 2.310")
    assert out.getvalue() == "training | 1,000 of 4,000 tok | loss 2.310 | 50 tok/s | 60 s left\n"


def test_a_log_gets_a_line_only_now_and_then() -> None:
    out = io.StringIO()
    line = progress.Progress("reading", None, "documents", out)
    for _ in range(1000):
        line.add(1)
    assert out.getvalue() == ""
    line.close()
    assert re.fullmatch(r"reading \| 1,000 documents \| [\d,]+ documents/s \| 0 s\n", out.getvalue())


def test_a_total_that_only_shows_underway_counts_from_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 20.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    line = progress.Progress("download", None, "bytes", out)
    line.add(1000)
    line.expect(3000)
    line.add(1000)
    assert out.getvalue() == (
        "download | 1,000 bytes | 50 bytes/s | 20 s\ndownload | 2,000 of 4,000 bytes | 50 bytes/s | 40 s left\n"
    )
