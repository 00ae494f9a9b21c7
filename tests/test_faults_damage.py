"""What else goes wrong around the real graph: two runs at once, and damage in the checkpoints and the MLflow store."""

import subprocess
import sys
from pathlib import Path

import clones
import pytest
from faults import ONE_THREAD, Trap, damaged, forget, killed, recovers, trapped

pytestmark = pytest.mark.faults


def test_of_two_runs_at_once_the_second_is_refused_and_the_first_makes_the_same_bytes(clone: Path) -> None:
    expected = clones.record(clone)
    forget(clone, "tokenize_text")
    command, env = ["dvc", "repro"], clones.environment(**ONE_THREAD, PYTHONUNBUFFERED="1")
    with subprocess.Popen(command, cwd=clone, env=env, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        while not first.stdout.readline().startswith("> python -m stages.tokenize_text"):
            assert first.poll() is None
        second = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=120)
        first.communicate(timeout=120)
    assert first.returncode == 0
    assert second.returncode == 255
    assert "is busy, it is being blocked by" in second.stderr or "Unable to acquire lock" in second.stderr
    assert clones.record(clone) == expected
    assert damaged(clone) == []


def test_a_damaged_checkpoint_is_named_and_training_ends_in_the_same_bytes(clone: Path) -> None:
    expected = clones.record(clone)
    forget(clone, "finetune_qlora")
    assert killed(trapped(clone, "finetune_qlora", Trap("os.mkdir", "models/adapter")))
    (file,) = (clone / ".checkpoints").glob("*/checkpoint-6/optimizer.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = recovers(clone, "finetune_qlora", expected)
    assert "checkpoint-6: optimizer.pt damaged; it is removed" in said
    assert "(resumed at step 4)" in said


@pytest.mark.parametrize("length", [None, 1000], ids=["random bytes", "truncated"])
def test_a_damaged_store_costs_one_warning(clone: Path, length: int | None) -> None:
    expected = clones.record(clone)
    forget(clone, "evaluate_benchmarks")
    store = clone / "mlflow.db"
    whole = store.read_bytes()
    store.write_bytes(whole[:length] if length else whole[:100] + b"\xa5" * (len(whole) - 100))
    try:
        said = recovers(clone, "evaluate_benchmarks", expected)
    finally:
        store.write_bytes(whole)
    (warning,) = [line for line in said.splitlines() if line.startswith("tracking: ")]
    assert ".tracking/" in warning
    command = [sys.executable, "-m", "wronai.tracking", "sync"]
    assert "mirrored" in clones.run(clone, *command), "nothing was lost"
