import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from wronai import locks


def test_who_comes_second_says_so_and_waits(tmp_path: Path) -> None:
    file, said, order = tmp_path / "x.lock", list[str](), list[str]()
    waiting = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    def second() -> None:
        with locks.alone(file, "another run is at it", say):
            order.append("second")

    thread = threading.Thread(target=second)
    with locks.alone(file, "another run is at it", say):
        assert said == []
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert said == ["another run is at it; waiting until it is done"]


def test_an_error_lets_go_of_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "x.lock"
    with pytest.raises(ValueError, match="diverged"), locks.alone(file, "", print):
        with pytest.raises(Timeout):
            FileLock(file).acquire(blocking=False)
        raise ValueError("diverged")
    FileLock(file).acquire(blocking=False)
