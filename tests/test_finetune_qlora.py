import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest
import tiny

from stages.finetune_qlora import finetune_qlora
from wronai import launch, numerics, params, plan, qlora, tokens, training

# Kills itself as its fifth step is logged; a checkpoint of step 3, in the middle of an epoch, is there by then.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from wronai import numerics, params

numerics.choose("pinned")
from stages.finetune_qlora import finetune_qlora

def log(step, **values):
    if step >= 4:
        os.kill(os.getpid(), signal.SIGKILL)

paths = [Path(argument) for argument in sys.argv[1:7]]
numerics.deterministic("pinned", int(sys.argv[7]))
settings = params.Finetune.model_validate_json(sys.argv[8])
finetune_qlora(*paths[:3], settings, int(sys.argv[7]), *paths[3:], log, lambda **_: None)
"""

# Trains in a child that kills itself at the n-th batch that it takes, for each n in turn: in an epoch, between two
# optimizer steps, or in an evaluation.
KILLED_AGAIN = """
import json, os, signal, sys
from pathlib import Path
from wronai import numerics, params

numerics.choose("pinned")
from stages.finetune_qlora import finetune_qlora
from wronai import training

paths = [Path(argument) for argument in sys.argv[1:7]]
settings = params.Finetune.model_validate_json(sys.argv[8])
collate = training.collate
for last in json.loads(sys.argv[9]):
    child = os.fork()
    if not child:
        taken = 0

        def count(*arguments):
            global taken
            taken += 1
            if taken == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return collate(*arguments)

        training.collate = count
        numerics.deterministic("pinned", int(sys.argv[7]))
        finetune_qlora(*paths[:3], settings, int(sys.argv[7]), *paths[3:], lambda *_, **__: None, lambda **_: None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), sorted(path.name for path in paths[3].glob("*/checkpoint-*")))
"""
# Everything at once that has a state of its own.
ALL = tiny.FINETUNE.model_copy(
    update={
        "train_sampling_strategy": "group_by_length",
        "loraplus_lr_ratio": 4.0,
        "neftune_noise_alpha": 5.0,
        "eval_steps": 1,
        "save_steps": 2,
        "logging_steps": 3,
        "load_best_model_at_end": True,
        "early_stopping_patience": 4,
        "learning_rate": 5.0e-2,
        "num_train_epochs": 8,
    }
)

Folders = tuple[Path, Path, Path]  # blocks, base, tokenizer


@pytest.fixture
def folders(blocks_folder: Path, base_folder: Path, tokenizer_folder: Path) -> Folders:
    return blocks_folder, base_folder, tokenizer_folder


def run(folders: Folders, out: Path, settings: params.Finetune = tiny.FINETUNE, **logs: Any) -> dict[str, Any]:
    numerics.deterministic("pinned", tiny.SEED)
    outs = (out / "checkpoints", out / "adapter", out / "loss_curve.csv")
    log, measure = logs.get("log", tiny.ignore), logs.get("measure", tiny.ignore)
    return finetune_qlora(*folders, settings, tiny.SEED, *outs, log, measure)


def made(folder: Path) -> dict[str, bytes]:
    files = [folder / "loss_curve.csv", *sorted((folder / "adapter").iterdir())]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory, blocks_folder: Path, base_folder: Path, tokenizer_folder: Path
) -> Path:
    """What a training left that was killed (SIGKILL) after its fourth step."""
    out = tmp_path_factory.mktemp("killed")
    paths = [blocks_folder, base_folder, tokenizer_folder, out / "checkpoints", out / "adapter", out / "loss_curve.csv"]
    command = [sys.executable, "-c", KILLED, *map(str, paths), str(tiny.SEED), tiny.FINETUNE.model_dump_json()]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return out


def test_it_writes_an_adapter_and_its_metrics(tuned: tuple[Path, dict[str, Any]], blocks_folder: Path) -> None:
    folder, metrics = tuned
    blocks = tokens.read(blocks_folder / "train.parquet")
    assert len(qlora.adapter_tensors(folder / "adapter")) == 2 + 2 * 2 * len(params.TARGET_MODULES)
    assert metrics["steps"] == qlora.optimizer_steps(len(blocks), tiny.FINETUNE)
    assert metrics["epochs"] == metrics["steps"] * 2 / len(blocks)
    assert metrics["tokens_seen"] == 4 * sum(len(row["input_ids"]) for row in blocks)
    assert metrics["validation_loss"] < metrics["validation_loss_before"] - 0.1


def test_the_curve_has_a_row_for_each_step_that_was_logged_or_evaluated(tuned: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = tuned
    rows = list(csv.DictReader((folder / "loss_curve.csv").open(encoding="utf-8")))
    last = metrics["steps"]
    assert [int(row["step"]) for row in rows if row["loss"]] == sorted({*range(2, last + 1, 2), *range(3, last + 1, 3)})
    assert [int(row["step"]) for row in rows if row["eval_loss"]] == sorted({*range(4, last + 1, 4), last})
    assert float(rows[-1]["eval_loss"]) == metrics["validation_loss"]
    rates = [(row["loss"] != "", float(row["learning_rate"])) for row in rows if row["learning_rate"]]
    assert all(has_loss and 0 <= rate <= tiny.FINETUNE.learning_rate for has_loss, rate in rates)
    assert len({rate for _, rate in rates}) > 1 and len(rates) == len([row for row in rows if row["loss"]])
    assert float(rows[-1]["loss"]) == metrics["train_loss"]


def test_the_checkpoints_are_gone_after_a_good_end(tuned: tuple[Path, dict[str, Any]]) -> None:
    assert list((tuned[0] / "checkpoints").iterdir()) == []


def test_a_second_run_writes_the_same_bytes(
    folders: Folders, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    measured: dict[str, float] = {}
    assert run(folders, tmp_path, measure=measured.update) == tuned[1]
    assert made(tmp_path) == made(tuned[0])
    assert measured["tokens_per_second"] > 0


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(
    folders: Folders, killed: Path, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "killed"))
    assert not (out / "adapter").exists()
    (work,) = (out / "checkpoints").glob("*/")
    assert (work / "checkpoint-3" / training.COMPLETE).exists()
    steps: list[int] = []
    metrics = run(folders, out, log=lambda step, **_: steps.append(step))
    assert min(steps) == 4, "it went on from step 3"
    assert made(out) == made(tuned[0])
    assert metrics == tuned[1]
    assert list((out / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("settings", [tiny.FINETUNE, ALL], ids=["plain", "all"])
def test_three_kills_at_random_batches_change_no_byte(
    folders: Folders, tmp_path: Path, settings: params.Finetune
) -> None:
    kills = random.Random(tiny.SEED).sample(range(8, 24), 3)
    out = tmp_path / "killed"
    paths = [*folders, out / "checkpoints", out / "adapter", out / "loss_curve.csv"]
    command = [sys.executable, "-c", KILLED_AGAIN, *map(str, paths), str(tiny.SEED), settings.model_dump_json()]
    done = subprocess.run([*command, json.dumps(kills)], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["-9"] * 3, done.stderr
    assert "checkpoint" in lines[-1]
    assert run(folders, out, settings) == run(folders, tmp_path / "whole", settings)
    assert made(out) == made(tmp_path / "whole")


def test_a_training_that_stops_early_says_so_and_keeps_the_best(folders: Folders, tmp_path: Path) -> None:
    metrics = run(folders, tmp_path, ALL)
    rows = list(csv.DictReader((tmp_path / "loss_curve.csv").open(encoding="utf-8")))
    losses = {int(row["step"]): float(row["eval_loss"]) for row in rows}
    blocks = tokens.read(folders[0] / "train.parquet")
    assert metrics["steps"] == len(losses) < qlora.optimizer_steps(len(blocks), ALL)
    assert metrics["best_step"] < metrics["steps"]
    assert metrics["validation_loss"] == losses[metrics["best_step"]]
    assert metrics["epochs"] == metrics["steps"] * 2 / len(blocks)
    assert metrics["trainable_parameters"] > 0


def test_what_changes_no_byte_does_not_part_a_run_from_its_checkpoints(
    folders: Folders, killed: Path, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "killed"))
    steps: list[int] = []
    other = tiny.FINETUNE.model_copy(update={"save_total_limit": 1, "max_loss_ratio": 5.0})
    run(folders, out, other, log=lambda step, **_: steps.append(step))
    assert min(steps) == 4
    assert made(out) == made(tuned[0])


def test_a_half_written_checkpoint_is_not_gone_on_from(
    folders: Folders, killed: Path, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "killed"))
    (work,) = (out / "checkpoints").glob("*/")
    half = Path(shutil.copytree(work / "checkpoint-3", work / "checkpoint-6"))
    (half / training.COMPLETE).unlink()
    (half / "optimizer.pt").write_bytes(b"half")
    steps: list[int] = []
    run(folders, out, log=lambda step, **_: steps.append(step))
    assert min(steps) == 4
    assert made(out) == made(tuned[0])


def test_a_training_killed_after_its_last_step_only_writes_what_is_missing(
    folders: Folders, tuned: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(qlora, "save", die)
        with pytest.raises(KeyboardInterrupt):
            run(folders, tmp_path)
    steps: list[int] = []
    assert run(folders, tmp_path, log=lambda step, **_: steps.append(step)) == tuned[1]
    assert steps == []
    assert made(tmp_path) == made(tuned[0])


def test_a_run_with_other_parameters_does_not_go_on_from_the_checkpoint(
    folders: Folders, killed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "killed"))
    steps: list[int] = []
    other = tiny.FINETUNE.model_copy(update={"learning_rate": 1.0e-3, "max_steps": 2})
    run(folders, out, other, log=lambda step, **_: steps.append(step))
    assert min(steps) == 2


def test_fewer_steps_than_the_logging_saving_and_evaluation_steps_are_enough(folders: Folders, tmp_path: Path) -> None:
    few = tiny.FINETUNE.model_copy(update={"max_steps": 1, "logging_steps": 50, "save_steps": 50, "eval_steps": 50})
    metrics = run(folders, tmp_path, few)
    rows = list(csv.DictReader((tmp_path / "loss_curve.csv").open(encoding="utf-8")))
    assert [row["step"] for row in rows] == ["1"]
    assert float(rows[0]["loss"]) == metrics["train_loss"]


def test_a_training_that_diverges_fails_with_its_step_and_leaves_no_adapter(folders: Folders, tmp_path: Path) -> None:
    wild = tiny.FINETUNE.model_copy(update={"learning_rate": 1.0e20, "max_grad_norm": 1.0e20, "max_steps": 4})
    with pytest.raises(ValueError, match=r"(nan|inf) at step \d: the training diverged; lower learning_rate"):
        run(folders, tmp_path, wild)
    assert not (tmp_path / "adapter").exists()


def test_missing_blocks_name_the_stage_that_makes_them(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.parquet is missing; tokenize_text makes it"):
        run((tmp_path, *folders[1:]), tmp_path)


def test_a_tokenizer_without_the_ten_tokens_is_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks <polish>, .*; tokenize_text writes one"):
        run((*folders[:2], folders[1]), tmp_path)


def test_the_parameters_of_lora_reach_the_adapter(folders: Folders, tmp_path: Path) -> None:
    lora = tiny.FINETUNE.lora.model_copy(update={"r": 2, "target_modules": ["q_proj", "v_proj"]})
    metrics = run(folders, tmp_path, tiny.FINETUNE.model_copy(update={"lora": lora, "max_steps": 1}))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], sorted(config["target_modules"])) == (2, ["q_proj", "v_proj"])
    q_and_v = 2 * (64 + 64) + 2 * (64 + 32)
    assert metrics["trainable_parameters"] == 2 * q_and_v + 2 * 10 * 64


def test_what_does_not_fit_ends_before_anything_is_loaded(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "here", lambda: plan.Device("cpu", 10**8, 10**8 + 1000))
    monkeypatch.setattr(qlora, "load_quantized", None)
    with pytest.raises(ValueError, match=r"does not fit into the memory(.|\n)*change one of these in params\.yaml"):
        run(folders, tmp_path)


def test_processes_that_disagree_end_before_anything_is_loaded(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(key: str) -> None:
        raise ValueError(f"other data than {key}")

    monkeypatch.setattr(launch, "agree", refuse)
    monkeypatch.setattr(qlora, "load_quantized", None)
    with pytest.raises(ValueError, match="other data"):
        run(folders, tmp_path)


def test_no_other_run_trains_in_the_same_folder_meanwhile(folders: Folders, tmp_path: Path) -> None:
    seen: list[Path] = []

    def log(step: int, **_: float) -> None:
        (work,) = (tmp_path / "checkpoints").glob("*/")
        seen.append(work)
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(work.with_name(f"{work.name}.lock")).acquire(blocking=False)

    run(folders, tmp_path, tiny.FINETUNE.model_copy(update={"max_steps": 1}), log=log)
    assert seen


def test_the_planned_memory_is_measured_beside_the_rest(folders: Folders, tmp_path: Path) -> None:
    measured: dict[str, float] = {}
    few = tiny.FINETUNE.model_copy(update={"max_steps": 1, "check_memory": False})
    run(folders, tmp_path, few, measure=lambda **values: measured.update(values))
    assert measured["planned_memory_bytes"] > 10**8
