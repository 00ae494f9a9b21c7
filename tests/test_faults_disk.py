"""The disk is full as a stage writes: one line says so, and once there is room `dvc repro` ends in the same bytes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import clones
import pytest
from faults import SmallDisk, Trap, damaged, forget, recovers, trapped

pytestmark = pytest.mark.faults
# When the rest of the disk is taken: as the stage begins to write what this names.
MOMENTS = {
    "download_corpus": Trap("os.mkdir", "data/raw"),
    "prepare_benchmarks": Trap("open", "riddles/test.parquet"),
    "clean_text": Trap("os.mkdir", "data/clean/documents"),
    "prepare_base": Trap("os.mkdir", "models/base"),
    "tokenize_text": Trap("os.mkdir", "data/tokens"),
    "finetune_qlora": Trap("os.mkdir", "checkpoint-4"),
    "merge_adapters": Trap("open", "model.safetensors.unfinished"),
    "score_text@base": Trap("os.mkdir", "data/scores/base/text"),
    "score_benchmarks@merged-riddles": Trap("os.mkdir", "data/scores/merged/riddles"),
    "evaluate_benchmarks": Trap("open", "metrics/samples.jsonl"),
    "publish_report": Trap("os.mkdir", "report"),
}


@pytest.fixture
def disk(clone: Path, tmp_path: Path) -> Iterator[SmallDisk]:
    small = SmallDisk(clone, tmp_path / "disk")
    yield small
    small.close()


def test_the_disk_fills_up_in_every_stage(disk: SmallDisk) -> None:
    assert {stage.partition("@")[0] for stage in MOMENTS} == {
        stage.partition("@")[0] for stage in clones.graph(disk.clone)
    }


@pytest.mark.parametrize("stage", MOMENTS)
def test_a_full_disk_is_one_line_and_no_byte_differs_once_there_is_room(disk: SmallDisk, stage: str) -> None:
    expected = clones.record(disk.clone)
    forget(disk.clone, stage)
    if stage == "publish_report":
        shutil.rmtree(disk.clone / "report")  # else it is written over, and needs no room
    done = trapped(disk.clone, stage, replace(MOMENTS[stage], then="fill"), *disk.prefix)
    name = stage.partition("@")[0]
    assert done.returncode == 255 and "exited with 1" in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert f"\n{name}: no space left on the disk of " in f"\n{done.stderr}", done.stderr
    assert "bytes free; nothing half-written" in done.stderr
    assert damaged(disk.clone) == []
    (disk.clone / "ballast").unlink()
    recovers(disk.clone, stage, expected, *disk.prefix)
