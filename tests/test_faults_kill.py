"""Each stage of the real graph is killed in each of its moments, and the next `dvc repro` ends in the same bytes."""

from pathlib import Path

import clones
import pytest
from faults import Trap, damaged, for_all, forget, killed, recovers, trapped

pytestmark = pytest.mark.faults
START = Trap("os.rename", ".tracking/", count=2)  # its record says that its run is open
# In the middle of its work (of training: half a checkpoint; of merging: half a shard), and as it writes its out.
MOMENTS = {
    "download_corpus": [
        Trap("open", "sample/instructions/formal.jsonl"),
        Trap("os.mkdir", "data/raw", then="kill at byte", bytes=4096),
    ],
    "prepare_benchmarks": [
        Trap("os.mkdir", "data/benchmarks/riddles/riddles"),
        Trap("open", "riddles/test.parquet", then="kill at byte", bytes=100),
    ],
    "clean_text": [
        Trap("os.mkdir", "data/clean/runs/instructions"),
        Trap("os.mkdir", "data/clean/documents", then="kill at byte", bytes=4096),
    ],
    "prepare_base": [Trap("progress", count=5), Trap("os.mkdir", "models/base", then="kill at byte", bytes=4096)],
    "tokenize_text": [
        Trap("os.mkdir", "models/tokenizer"),
        Trap("os.mkdir", "data/tokens", then="kill at byte", bytes=4096),
    ],
    "finetune_qlora": [
        Trap("os.mkdir", "checkpoint-4", then="kill at byte", bytes=20_000),
        Trap("os.mkdir", "models/adapter", then="kill at byte", bytes=4096),
    ],
    "merge_adapters": [
        Trap("open", "model.safetensors.unfinished", then="kill at byte", bytes=100_000),
        Trap("os.mkdir", "models/merged", then="kill at byte", bytes=500),
    ],
    "score_text@base": [
        Trap("progress", count=5),
        Trap("os.mkdir", "data/scores/base/text", then="kill at byte", bytes=1000),
    ],
    "score_benchmarks@merged-riddles": [
        Trap("progress", count=2),
        Trap("os.mkdir", "data/scores/merged/riddles", then="kill at byte", bytes=1000),
    ],
    "evaluate_benchmarks": [
        Trap("open", "metrics/differences.csv"),
        Trap("open", "metrics/samples.jsonl", then="kill at byte", bytes=100),
    ],
    "publish_report": [
        Trap("open", "metrics/loss_curve.csv"),
        Trap("os.mkdir", "report", then="kill at byte", bytes=4096),
    ],
}


CASES = [
    pytest.param(stage, trap, id=f"{stage}, {when}")
    for stage, (middle, writing) in MOMENTS.items()
    for when, trap in (("start", START), ("middle", middle), ("writing", for_all(writing)))
]


def test_every_stage_is_killed(clone: Path) -> None:
    assert set(MOMENTS) <= set(clones.graph(clone))
    assert {stage.partition("@")[0] for stage in MOMENTS} == {stage.partition("@")[0] for stage in clones.graph(clone)}


@pytest.mark.parametrize(("stage", "trap"), CASES)
def test_a_stage_that_is_killed_ends_in_the_same_bytes_when_it_runs_again(clone: Path, stage: str, trap: Trap) -> None:
    expected = clones.record(clone)
    forget(clone, stage)
    lock = (clone / "dvc.lock").read_bytes()
    done = trapped(clone, stage, trap)
    assert done.returncode == -9 if "all" in trap.then else killed(done), done.stdout + done.stderr
    assert damaged(clone) == []
    assert (clone / "dvc.lock").read_bytes() == lock
    recovers(clone, stage, expected)
