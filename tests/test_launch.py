"""Several processes train as one: real ones, on this machine, with gloo between them."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import launched
import psutil
import pytest
import tiny

from wronai import launch, params, tokens

# The same four rows a step: two by two in one process, or two in each of two. Dropout draws other places there.
LORA = tiny.FINETUNE.lora.model_copy(update={"lora_dropout": 0.0})
ONE = tiny.FINETUNE.model_copy(update={"gradient_accumulation_steps": 4, "num_train_epochs": 8.0, "lora": LORA})
TWO = ONE.model_copy(
    update={"gradient_accumulation_steps": 2, "launch": ONE.launch.model_copy(update={"processes": 2})}
)
SHARDED = TWO.model_copy(
    update={
        "launch": TWO.launch.model_copy(update={"strategy": "fsdp"}),
        "quantization": TWO.quantization.model_copy(
            update={"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "bfloat16"}
        ),
    }
)
KILLED_AT = 5


@dataclass
class Told:
    """What a stage was told by its processes."""

    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def log(self, step: int, **values: float) -> None:
        self.logged.append((step, values))

    def measure(self, **values: float) -> None:
        self.measured |= values


def run(function: Any, settings: params.Launch, told: Told | None = None) -> Any:
    told = told or Told()
    return launch.run(function, settings, "pinned", tiny.SEED, log=told.log, measure=told.measure)


def curve(folder: Path) -> dict[int, tuple[float, float]]:
    """Loss and validation loss by step, 0 for one that is not there."""
    rows = csv.DictReader((folder / "loss_curve.csv").open(encoding="utf-8"))
    return {int(row["step"]): (float(row["loss"] or 0), float(row["eval_loss"] or 0)) for row in rows}


def assert_close(left: Path, right: Path) -> None:
    assert curve(left).keys() == curve(right).keys()
    for step, values in curve(left).items():
        assert curve(right)[step] == pytest.approx(values, abs=1.0e-3), f"step {step}"


@pytest.fixture(scope="module")
def folders(blocks_folder: Path, base_folder: Path, tokenizer_folder: Path) -> launched.Folders:
    return blocks_folder, base_folder, tokenizer_folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, folders: launched.Folders) -> tuple[Path, dict[str, Any]]:
    """The training in one process, and its metrics."""
    out = tmp_path_factory.mktemp("one")
    return out, run(partial(launched.train, folders, out, ONE, tiny.SEED, None), ONE.launch)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, folders: launched.Folders) -> tuple[Path, list[list[Any]]]:
    """The training on two "machines" of one process each, and the lines that the stage of each printed."""
    out = tmp_path_factory.mktemp("machines")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    place = TWO.launch.model_copy(update={"machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": port})
    settings = TWO.model_copy(update={"launch": place})
    stages = [stage(out, settings, folders, {launch.MACHINE_RANK: str(rank)}) for rank in (0, 1)]
    printed = [process.communicate(timeout=120) for process in stages]
    assert [process.returncode for process in stages] == [0, 0], printed
    return out, [[json.loads(line) for line in lines.splitlines()] for lines, _ in printed]


def stage(
    out: Path, settings: params.Finetune, folders: launched.Folders | None, environment: dict[str, str]
) -> subprocess.Popen[str]:
    """The stage in a process of its own."""
    told = {
        "settings": settings.model_dump(),
        "out": str(out),
        "seed": tiny.SEED,
        "folders": list(map(str, folders or [])),
    }
    paths = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])}
    return subprocess.Popen(
        [sys.executable, "-m", "launched", json.dumps(told)],
        env={**os.environ, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory, folders: launched.Folders) -> tuple[Told, Exception]:
    """What two processes told that met and then disagreed, and how that ended."""
    told = Told()
    with pytest.raises(ValueError) as caught:
        run(partial(launched.meet, folders, tmp_path_factory.mktemp("met"), SHARDED), TWO.launch, told)
    return told, caught.value


def test_one_process_is_this_one() -> None:
    told = Told()
    assert run(lambda log, measure: log(1, loss=0.5) or os.getpid(), ONE.launch, told) == os.getpid()
    assert told.logged == [(1, {"loss": 0.5})]
    launch.agree("alone")


def test_what_rank_0_logs_and_measures_arrives_and_nothing_of_the_others(met: tuple[Told, Exception]) -> None:
    assert met[0].logged == [(7, {"loss": 2.0})]
    assert (met[0].measured["processes"], met[0].measured["rank"]) == (2.0, 0)


def test_a_process_with_other_data_ends_all_with_its_error(met: tuple[Told, Exception]) -> None:
    assert str(met[1]) == (
        "process 1 of 2 has other data, parameters, code or GPUs than process 0 (run run 1, expected run 0); give "
        "every machine the same project folder and hardware"
    )


def test_four_bits_are_sharded_by_fsdp_and_compute_the_same(met: tuple[Told, Exception]) -> None:
    measured = met[0].measured
    assert measured["packed"] == 1.0
    assert measured["share"] == pytest.approx(0.5, abs=0.05)
    assert measured["sharded"] == pytest.approx(measured["whole"], abs=1.0e-6)
    assert measured["trained"] < measured["whole"] - 0.05


def test_the_adapter_of_a_sharded_model_is_saved_whole(met: tuple[Told, Exception]) -> None:
    assert met[0].measured["read back"] == pytest.approx(met[0].measured["trained"], abs=1.0e-6)


def test_two_machines_give_the_curve_of_one_process(
    one: tuple[Path, dict[str, Any]], machines: tuple[Path, list[list[Any]]]
) -> None:
    assert len(curve(one[0])) > 6
    assert_close(one[0], machines[0])
    returned = machines[1][0][-1]
    assert returned.keys() == one[1].keys()
    for key, value in one[1].items():
        assert returned[key] == pytest.approx(value, abs=1.0e-3), key


def test_the_first_machine_alone_logs_and_returns(machines: tuple[Path, list[list[Any]]]) -> None:
    of_first, of_second = machines[1]
    steps = [step for step, values in of_first[:-1] if "loss" in values]
    assert steps == [step for step, (loss, _) in curve(machines[0]).items() if loss]
    assert of_second == [None]


def test_each_row_of_a_step_is_seen_by_one_process(
    one: tuple[Path, dict[str, Any]], machines: tuple[Path, list[list[Any]]], blocks_folder: Path
) -> None:
    alone = json.loads((one[0] / "rows.0.json").read_text())
    first, second = (json.loads((machines[0] / f"rows.{rank}.json").read_text()) for rank in (0, 1))
    assert len(alone) == 4 * one[1]["steps"] == len(first) + len(second)
    for step in range(one[1]["steps"]):
        of_both = first[2 * step : 2 * step + 2] + second[2 * step : 2 * step + 2]
        assert sorted(of_both) == sorted(alone[4 * step : 4 * step + 4])
    ids = [row["input_ids"] for row in tokens.read(blocks_folder / "train.parquet")]
    assert sorted(alone[: len(ids)]) == sorted(map(ids.index, ids)), "each once in the first epoch; some are equal"


def test_each_process_drops_out_other_places(machines: tuple[Path, list[list[Any]]]) -> None:
    first, second = (json.loads((machines[0] / f"dropped.{rank}.json").read_text()) for rank in (0, 1))
    assert first != second


def test_the_norm_of_sharded_gradients_is_that_of_the_whole_ones(met: tuple[Told, Exception]) -> None:
    assert met[0].measured["norm"] == pytest.approx(met[0].measured["norm of parts"], rel=1.0e-5)
    assert met[0].measured["norm known"] == 1.0


def test_a_killed_process_ends_all_and_the_next_run_goes_on_to_the_same_curve(
    one: tuple[Path, dict[str, Any]], folders: launched.Folders, tmp_path: Path
) -> None:
    with pytest.raises(ChildProcessError, match=r"^process 1 of 2 was killed by SIGKILL .*; all others were ended$"):
        run(partial(launched.train, folders, tmp_path, TWO, tiny.SEED, KILLED_AT), TWO.launch)
    assert not (tmp_path / "adapter").exists()
    told = Told()
    run(partial(launched.train, folders, tmp_path, TWO, tiny.SEED, None), TWO.launch, told)
    assert min(step for step, _ in told.logged) == 4, "it went on from step 3"
    assert_close(one[0], tmp_path)
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_stage_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = stage(tmp_path, TWO, None, {})
    pids = [tmp_path / f"{rank}.pid" for rank in (0, 1)]
    until(lambda: all(path.exists() for path in pids) or process.poll() is not None, 60)
    children = [psutil.Process(int(path.read_text())) for path in pids]
    process.send_signal(number)
    process.communicate(timeout=15)
    assert process.returncode == code
    until(lambda: not any(child.is_running() for child in children), 15)


def until(holds: Any, seconds: float) -> None:
    """Wait until it `holds`, at most so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_an_interrupt_stays_one_and_another_signal_is_an_exit_code() -> None:
    assert isinstance(launch._ended_by(signal.SIGINT), KeyboardInterrupt)
    assert str(launch._ended_by(signal.SIGTERM)) == "143"


def failure(when: float, rank: int, mistake: bool) -> dict[str, Any]:
    return {"when": when, "rank": rank, "mistake": mistake, "message": f"of {rank}", "traceback": f"Traceback {rank}"}


def test_the_error_that_came_first_is_the_one_that_is_raised() -> None:
    errors = [failure(2.0, 0, True), failure(1.0, 1, False)]
    error = launch._explain(0, 1, errors, TWO.launch)
    assert isinstance(error, RuntimeError)
    assert str(error) == "process 1 of 2 failed:\nTraceback 1"
    error = launch._explain(0, 1, [failure(0.0, 0, True), *errors], TWO.launch)
    assert isinstance(error, ValueError)
    assert str(error) == "of 0"


def test_a_process_that_ends_without_a_word_is_named() -> None:
    assert "process 1 of 2 ended with exit code 3 and no word" in str(launch._explain(1, 3, [], TWO.launch))
    assert "process 1 of 2 was killed by SIGSEGV; all" in str(launch._explain(1, -11, [], TWO.launch))


def test_a_point_that_cannot_be_logged_fails_the_stage_at_its_end() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"), launch._Mail(1, refuse, tiny.ignore) as mail:
        for step in range(1000):
            mail.senders[0].send(("log", (step,), {"loss": 1.0}))


@pytest.mark.parametrize("told", [None, "2", "-1", "first"])
def test_a_machine_must_say_which_it_is(told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch.MACHINE_RANK, raising=False)
    if told is not None:
        monkeypatch.setenv(launch.MACHINE_RANK, told)
    several = TWO.launch.model_copy(update={"machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": 1})
    with pytest.raises(ValueError, match=rf"{launch.MACHINE_RANK} is (not set|'{told}'); .*machines: 2 .*0 to 1"):
        run(tiny.ignore, several)


def test_a_first_machine_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.MACHINE_RANK, "1")
    monkeypatch.setattr(launch, "WAIT", 1)
    several = TWO.launch.model_copy(update={"machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": 1})
    with pytest.raises(
        OSError, match=r"machine 1 of 2 found no common start at 127\.0\.0\.1:1 in 1 s .*main_process_ip"
    ):
        run(tiny.ignore, several)


def test_fsdp_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy is fsdp and torch sees no GPU; .*: ask for ddp"):
        run(tiny.ignore, SHARDED.launch)


def test_more_processes_than_gpus_are_refused() -> None:
    launch._can_run(SHARDED.launch, 2, 2)
    with pytest.raises(ValueError, match=r"processes is 2 on 1 machine\(s\), 2 on each, and torch sees 1 GPU"):
        launch._can_run(TWO.launch, 2, 1)


@pytest.mark.parametrize("offload", [False, True])
def test_the_arguments_of_fsdp_are_version_2_by_decoder_layer(offload: bool, base_folder: Path, tmp_path: Path) -> None:
    import torch
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    from wronai import base

    model = base.load(base_folder, torch.float32)
    settings = SHARDED.launch.model_copy(update={"cpu_offload": offload})
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, **launch.arguments(model, settings))
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert type(plugin.cpu_offload).__name__ == ("CPUOffloadPolicy" if offload else "OffloadPolicy")
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.cpu_ram_efficient_loading
    plugin.set_auto_wrap_policy(model)
    assert {layer.__name__ for layer in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]} == {
        "MistralDecoderLayer"
    }


def test_ddp_takes_no_arguments_of_fsdp() -> None:
    assert launch.arguments(None, ONE.launch) == {}
    assert "fsdp" not in launch.arguments(None, TWO.launch)


def test_a_model_without_one_stack_of_layers_cannot_be_sharded() -> None:
    from torch import nn

    with pytest.raises(ValueError, match="0 stacks of decoder layers named layers"):
        launch.arguments(nn.Linear(1, 1), SHARDED.launch)


def test_where_machines_meet_names_no_other_run() -> None:
    from wronai import qlora

    placed = TWO.launch.model_copy(update={"main_process_ip": "10.0.0.1", "main_process_port": 29500})
    here, there, other = (
        qlora.run_key(TWO.model_copy(update={"launch": place}).model_dump(exclude=qlora.CHANGES_NO_BYTE))
        for place in (TWO.launch, placed, ONE.launch)
    )
    assert here == there != other
