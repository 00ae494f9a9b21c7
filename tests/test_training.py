import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import get_length_grouped_indices

from wronai import base, qlora, tokens, training

ARGUMENTS = {
    "max_steps": 6,
    "per_device_train_batch_size": 1,
    "learning_rate": 1.0e-3,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "seed": tiny.SEED,
    "use_cpu": True,
}
SAVING = {"save_strategy": "steps", "save_steps": 1}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 1}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
OPTIONS = ("loraplus_lr_ratio", "early_stopping", "max_loss_ratio")


@pytest.fixture
def model(base_folder: Path) -> Any:
    """The base with rows for the ten tokens, in float32 and not quantized."""
    return base.load(base_folder, torch.float32)


@pytest.fixture
def four_bits(base_folder: Path, tokenizer: Any, pinned: None) -> Any:
    """The base in 4 bits with a fresh adapter, as training starts from it."""
    model = qlora.load_quantized(base_folder, tokenizer, tiny.FINETUNE.quantization, tiny.SEED)
    return qlora.attach(model, tokenizer, tiny.FINETUNE)


@pytest.fixture
def examples(tokenizer: Any) -> list[dict[str, list[int]]]:
    """Three conversations, each a block of its own."""
    return [tokens.blocks(tokenizer, [row], tiny.BLOCK)[0][0] for row in tiny.CONVERSATIONS[3:6]]


def run(
    model: Any, blocks: Any, work: Path, log: Callable[..., None] = tiny.ignore, validation: Any = None, **changes: Any
) -> training.Outcome:
    options = {key: changes.pop(key) for key in OPTIONS if key in changes}
    arguments = ARGUMENTS | changes
    order = [step % len(blocks) for step in range(arguments["max_steps"])]
    return training.train(
        model, blocks, validation, order, arguments, work, pad_token_id=0, what="training", log=log, **options
    )


def logged(key: str, seen: dict[int, float]) -> Callable[..., None]:
    """A log that keeps the points of one curve in `seen`."""
    return lambda step, **values: seen.update({step: values[key]}) if key in values else None


@pytest.fixture
def blocks(blocks_folder: Path) -> Any:
    return tokens.read(blocks_folder / "train.parquet")


def logits(model: Any, rows: list[dict[str, list[int]]]) -> list[torch.Tensor]:
    """The logits of each row, its padding cut off."""
    batch = training.collate(rows, pad_token_id=0)
    batch.pop("labels")
    with torch.no_grad():
        found = model(**batch, use_cache=False).logits
    return [found[number, : len(row["input_ids"])] for number, row in enumerate(rows)]


def packed(rows: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    return {key: [value for row in rows for value in row[key]] for key in rows[0]}


def test_collate_pads_at_the_end_with_ignored_labels_and_restarted_positions() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "position_ids": [0, 1, 2]},
        {"input_ids": [8], "labels": [-100], "position_ids": [0]},
    ]
    found = training.collate(rows, pad_token_id=9)
    assert found["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert found["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]
    assert found["position_ids"].tolist() == [[0, 1, 2], [0, 0, 1]]
    assert {value.dtype for value in found.values()} == {torch.int64}


@pytest.mark.parametrize("window", [8, tiny.SCRATCH.sliding_window, None])
def test_packed_and_separate_passes_agree(
    base_folder: Path, tokenizer: Any, examples: list[dict[str, list[int]]], window: int | None
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, sliding_window=window).eval()
    qlora.add_rows(model, tokenizer, base_folder, tiny.SEED)
    assert all(len(row["input_ids"]) > (window or 0) for row in examples)
    separate = torch.cat([logits(model, [row])[0] for row in examples])
    torch.testing.assert_close(logits(model, [packed(examples)])[0], separate, atol=1e-5, rtol=1e-5)


def test_examples_in_a_block_would_see_each_other_if_positions_ran_on(
    base_folder: Path, tokenizer: Any, model: Any, examples: list[dict[str, list[int]]]
) -> None:
    qlora.add_rows(model, tokenizer, base_folder, tiny.SEED)
    joined = packed(examples)
    running = joined | {"position_ids": list(range(len(joined["input_ids"])))}
    assert float((logits(model, [joined])[0] - logits(model, [running])[0]).abs().max()) > 0.01


def test_packed_separate_and_padded_passes_agree_in_4_bits(
    four_bits: Any, examples: list[dict[str, list[int]]]
) -> None:
    four_bits.eval()
    separate = [logits(four_bits, [row])[0] for row in examples]
    torch.testing.assert_close(logits(four_bits, [packed(examples)])[0], torch.cat(separate), atol=1e-5, rtol=1e-5)
    both = [packed(examples[:2]), examples[2]]
    assert len(both[0]["input_ids"]) != len(both[1]["input_ids"])
    for found, expected in zip(logits(four_bits, both), [torch.cat(separate[:2]), separate[2]], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_loss_that_training_takes_is_that_of_separate_examples(
    four_bits: Any, examples: list[dict[str, list[int]]]
) -> None:
    """As the Trainer calls the model: gradients on, checkpointing on, no word about the cache."""
    for module in four_bits.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    four_bits.train()
    batch = training.collate([packed(examples), examples[0]], pad_token_id=0)
    whole = float(four_bits(**batch).loss.detach())
    rows = [*examples, examples[0]]
    supervised = [sum(label != tokens.IGNORED for label in row["labels"]) for row in rows]
    losses = [training.mean_loss(four_bits, [row], 0) for row in rows]
    expected = sum(loss * count for loss, count in zip(losses, supervised, strict=True)) / sum(supervised)
    assert whole == pytest.approx(expected, rel=1e-5)


def test_the_mean_loss_counts_each_supervised_token_the_same(model: Any) -> None:
    rows = [
        {"input_ids": [1, 5, 6, 7], "labels": [-100, 5, 6, 7], "position_ids": [0, 1, 2, 3]},
        {"input_ids": [1, 9], "labels": [-100, 9], "position_ids": [0, 1]},
    ]
    total = 0.0
    for row in rows:
        logprobs = logits(model, [row])[0].log_softmax(-1)
        total -= sum(float(logprobs[place, id_]) for place, id_ in enumerate(row["input_ids"][1:]))
    assert training.mean_loss(model, rows, 0) == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mean_loss_leaves_the_model_in_its_mode(model: Any, mode: bool) -> None:
    model.train(mode)
    training.mean_loss(model, [{"input_ids": [1, 2], "labels": [-100, 2], "position_ids": [0, 1]}], 0)
    assert model.training is mode


def test_training_has_a_pulse(
    model: Any, blocks_folder: Path, tmp_path: Path, base_folder: Path, tokenizer: Any
) -> None:
    qlora.add_rows(model, tokenizer, base_folder, tiny.SEED)
    blocks = tokens.read(blocks_folder / "validation.parquet").select([0])
    before = training.mean_loss(model, blocks, 0)
    outcome = run(model, blocks, tmp_path, learning_rate=5.0e-3, max_steps=10)
    losses = [entry["loss"] for entry in outcome.history]
    assert losses[0] == pytest.approx(before, rel=1e-4)
    assert training.mean_loss(model, blocks, 0) < 0.8 * before
    assert outcome.tokens == 10 * len(blocks[0]["input_ids"])
    assert outcome.tokens_per_second > 0


def test_the_losses_reach_the_log_as_they_come(four_bits: Any, blocks_folder: Path, tmp_path: Path) -> None:
    blocks = tokens.read(blocks_folder / "train.parquet")
    seen: list[tuple[int, dict[str, float]]] = []
    outcome = run(
        four_bits,
        blocks,
        tmp_path,
        lambda step, **values: seen.append((step, values)),
        blocks.select([0]),
        eval_strategy="steps",
        eval_steps=3,
        max_steps=3,
    )
    assert [(step, "loss" in values, "eval_loss" in values) for step, values in seen] == [
        (1, True, False),
        (2, True, False),
        (3, True, False),
        (3, False, True),
    ]
    assert [entry["loss"] for entry in outcome.history if "loss" in entry] == [
        values["loss"] for _, values in seen if "loss" in values
    ]
    points = seen[1][1]
    assert {"learning_rate", "grad_norm"} < set(points)
    assert points["tokens_per_second"] > 0 and points["memory_bytes"] > 50e6
    measured = {"tokens_per_second", "memory_bytes"}
    assert not any(measured & set(entry) for entry in outcome.history), "what is measured is in no out"


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_the_tokens_per_second_leave_evaluations_out(
    four_bits: Any, blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logging_steps: int
) -> None:
    pauses: list[float] = []

    def slow(*_: Any) -> float:
        pauses.append(0.4)
        time.sleep(0.4)
        return 1.0

    monkeypatch.setattr(training, "mean_loss", slow)
    speeds: dict[int, float] = {}
    log = logged("tokens_per_second", speeds)
    outcome = run(four_bits, blocks, tmp_path, log, blocks, max_steps=3, logging_steps=logging_steps, **EVALUATING)
    assert len(pauses) == 3
    with_pauses = outcome.tokens / sum(pauses)  # what no training is as fast as that counts them
    assert outcome.tokens_per_second > 1.5 * with_pauses
    assert min(speeds.values()) <= outcome.tokens_per_second <= max(speeds.values())


def test_the_last_step_is_logged_even_between_two_logging_steps(
    four_bits: Any, blocks_folder: Path, tmp_path: Path
) -> None:
    blocks = tokens.read(blocks_folder / "train.parquet")
    outcome = run(four_bits, blocks, tmp_path, max_steps=3, logging_steps=2)
    assert [entry["step"] for entry in outcome.history] == [2, 3]


def test_evaluations_in_the_middle_change_nothing(
    base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path
) -> None:
    """On processors with AVX512-BF16 an evaluation made bitsandbytes repack the weights, and gradients were cut."""
    blocks = tokens.read(blocks_folder / "train.parquet")
    losses, rows = [], []
    for every in (1, 100):
        torch.manual_seed(tiny.SEED)
        model = qlora.load_quantized(base_folder, tokenizer, tiny.FINETUNE.quantization, tiny.SEED)
        model = qlora.attach(model, tokenizer, tiny.FINETUNE)
        outcome = run(model, blocks, tmp_path / str(every), validation=blocks, eval_strategy="steps", eval_steps=every)
        losses.append([entry["loss"] for entry in outcome.history if "loss" in entry])
        rows.append({name: value.detach() for name, value in model.named_parameters() if value.requires_grad})
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0])


@pytest.fixture
def ready(model: Any, base_folder: Path, tokenizer: Any) -> Any:
    """The float32 base with a row for every token of the blocks."""
    qlora.add_rows(model, tokenizer, base_folder, tiny.SEED)
    return model


def spoil(model: Any, value: float) -> None:
    with torch.no_grad():
        model.model.norm.weight.mul_(value)


def test_a_loss_that_is_not_a_number_ends_the_training_at_its_step_also_between_two_logs(
    ready: Any, blocks: Any, tmp_path: Path
) -> None:
    calls: list[int] = []

    def count(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            spoil(ready, math.nan)

    ready.register_forward_pre_hook(count)
    says = "loss is nan and grad_norm is nan at step 3: the training diverged; lower learning_rate.*no checkpoint"
    with pytest.raises(ValueError, match=says):
        run(ready, blocks, tmp_path, logging_steps=5)


def test_a_learning_rate_that_is_far_too_high_is_such_a_loss(ready: Any, blocks: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"grad_norm is (nan|inf) at step \d: the training diverged"):
        run(ready, blocks, tmp_path, learning_rate=1.0e20, max_grad_norm=0.0)


def test_a_validation_loss_that_is_not_a_number_ends_the_training(ready: Any, blocks: Any, tmp_path: Path) -> None:
    def log(step: int, **values: float) -> None:
        if step == 2 and "loss" in values:  # after the last gradient, before the evaluation
            spoil(ready, math.nan)

    with pytest.raises(ValueError, match="eval_loss is nan at step 2"):
        run(ready, blocks, tmp_path, log, blocks, max_steps=2, **EVALUATING)


def test_weights_that_are_not_finite_reach_no_checkpoint_and_the_last_good_one_is_named(
    ready: Any, blocks: Any, tmp_path: Path
) -> None:
    def log(step: int, **_: float) -> None:
        if step == 2:
            spoil(ready, math.inf)

    with pytest.raises(ValueError, match=r"weights are not finite at step 2.*checkpoint-1 is the last good checkpoint"):
        run(ready, blocks, tmp_path, log, **SAVING)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_gradient_on_a_gpu_is_noted_at_its_step_and_read_at_the_next_log(tmp_path: Path) -> None:
    guard = training._Guard("training", None, tmp_path)
    for step, norm in enumerate([1.0, math.inf, math.nan, 1.0], start=1):
        guard.note(torch.tensor(norm), step)
    with pytest.raises(ValueError, match=r"grad_norm is not finite \(loss 2.5\) at step 2"):
        guard.on_log(None, None, None, {"loss": 2.5})


def test_a_loss_that_explodes_ends_the_training_and_the_same_checkpoint_is_gone_on_from(
    ready: Any, blocks: Any, tmp_path: Path
) -> None:
    steps: list[int] = []

    def log(step: int, **_: float) -> None:
        steps.append(step)
        if step == 4:
            spoil(ready, 1000.0)

    says = r"times the median before it \(max_loss_ratio 3.0\), at step 5: .*, or max_loss_ratio, .*checkpoint-3 is the"
    with pytest.raises(ValueError, match=says):
        run(ready, blocks, tmp_path, log, save_strategy="steps", save_steps=3, max_loss_ratio=3.0)
    steps.clear()
    run(ready, blocks, tmp_path, lambda step, **_: steps.append(step), save_strategy="steps", save_steps=3)
    assert steps[0] == 4


@pytest.mark.parametrize(
    ("losses", "times"), [([2.0], 1.0), ([2.0, 4.0], 2.0), ([2.0, 0.1, 2.0, 2.0], 1.0), ([4.0, 2.0, 3.0, 1.5], 0.5)]
)
def test_a_loss_is_compared_with_the_median_before_it(losses: list[float], times: float) -> None:
    assert training.times_the_median(losses) == times


def test_blocks_without_a_supervised_token_are_refused(model: Any, blocks_folder: Path, tmp_path: Path) -> None:
    blocks = tokens.read(blocks_folder / "train.parquet")
    silent = blocks.map(lambda row: {"labels": [tokens.IGNORED] * len(row["labels"])})
    with pytest.raises(ValueError, match="no token of the training blocks is supervised"):
        run(model, silent, tmp_path)


def test_the_last_checkpoint_is_the_latest_that_is_complete(tmp_path: Path) -> None:
    assert training._last_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        seal(tmp_path / f"checkpoint-{step}")
    assert training._last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-20").exists(), "half-written, so it must not be in the way"


def seal(checkpoint: Path, best: int | None = None) -> None:
    """A checkpoint as far as the choice of the last one reads it."""
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "optimizer.pt").write_bytes(b"moments")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    (checkpoint / training.COMPLETE).write_text(training._sums(checkpoint))


@pytest.mark.parametrize("damage", [b"moment", b"moMents", None])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes | None
) -> None:
    seal(tmp_path / "checkpoint-2")
    seal(tmp_path / "checkpoint-4")
    file = tmp_path / "checkpoint-4" / "optimizer.pt"
    file.unlink() if damage is None else file.write_bytes(damage)
    assert training._last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-4: optimizer.pt damaged; it is removed" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint-4").exists()


def test_a_checkpoint_whose_best_one_is_damaged_is_not_taken(tmp_path: Path) -> None:
    seal(tmp_path / "checkpoint-2")
    seal(tmp_path / "checkpoint-4", best=4)
    seal(tmp_path / "checkpoint-6", best=4)
    (tmp_path / "checkpoint-4" / "optimizer.pt").write_bytes(b"other")
    assert training._last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_the_oldest_checkpoints_go_but_the_last_and_the_best(tmp_path: Path) -> None:
    def left(limit: int | None, best: int | None) -> list[int]:
        for step in (2, 10, 4, 6):
            (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
            (tmp_path / f"checkpoint-{step}" / training.COMPLETE).touch()
        training._prune(tmp_path, limit, best)
        return sorted(training._step(path) for path in tmp_path.glob("checkpoint-*"))

    assert left(None, None) == [2, 4, 6, 10]
    assert left(2, None) == [6, 10]
    assert left(2, 2) == [2, 10]
    assert left(1, 4) == [4, 10]
    assert left(1, 10) == [10]


def test_no_more_checkpoints_are_kept_than_asked_for(ready: Any, blocks: Any, tmp_path: Path) -> None:
    run(ready, blocks, tmp_path, save_total_limit=1, **SAVING)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_checkpoint_of_an_adapter_holds_no_whole_embedding(four_bits: Any, blocks: Any, tmp_path: Path) -> None:
    run(four_bits, blocks, tmp_path, max_steps=1, **SAVING)
    assert (tmp_path / "checkpoint-1/adapter_model.safetensors").stat().st_size < 100_000


def optimizer_states(checkpoint: Path) -> list[tuple[float, list[dict[str, Any]]]]:
    """For each group of the optimizer in `checkpoint` its learning rate, and the states of its parameters."""
    stored = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    states = {
        number: state.get("__bnb_optimizer_quant_state__", {}) | state for number, state in stored["state"].items()
    }
    return [(group["lr"], [states[number] for number in group["params"]]) for group in stored["param_groups"]]


WARM = 2  # steps
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda _: 1.0,
    "constant_with_warmup": lambda done: min(1.0, done / WARM),
    "linear": lambda done: done / WARM if done < WARM else (6 - done) / (6 - WARM),
    "cosine": lambda done: done / WARM if done < WARM else (1 + math.cos(math.pi * (done - WARM) / (6 - WARM))) / 2,
    "inverse_sqrt": lambda done: done / WARM if done < WARM else math.sqrt(WARM / done),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_warms_up_and_follows_its_schedule(
    ready: Any, blocks: Any, tmp_path: Path, schedule: str
) -> None:
    rates: dict[int, float] = {}
    run(ready, blocks, tmp_path, logged("learning_rate", rates), lr_scheduler_type=schedule, warmup_steps=WARM)
    assert rates == pytest.approx({step: 1.0e-3 * SCHEDULES[schedule](step - 1) for step in range(1, 7)})


@pytest.mark.parametrize("bound", [0.01, 0.05])
def test_no_step_is_longer_than_the_clipped_gradient(ready: Any, blocks: Any, tmp_path: Path, bound: float) -> None:
    norms: dict[int, float] = {}
    before = [value.detach().clone() for value in ready.parameters()]
    plain = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1}
    run(ready, blocks, tmp_path, logged("grad_norm", norms), max_grad_norm=bound, **plain)
    moved = sum(
        float((value - old).detach().square().sum()) for value, old in zip(ready.parameters(), before, strict=True)
    )
    assert norms[1] > bound, "what is logged is the norm before"
    assert math.sqrt(moved) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize(
    ("optim", "bits"), [("adamw_torch_fused", 32), ("adamw_torch", 32), ("adamw_8bit", 8), ("paged_adamw_8bit", 8)]
)
def test_each_optimizer_trains_with_the_states_that_its_name_says(
    ready: Any, blocks: Any, tmp_path: Path, optim: str, bits: int
) -> None:
    losses: dict[int, float] = {}
    run(ready, blocks.select([0]), tmp_path, logged("loss", losses), optim=optim, learning_rate=5.0e-3, **SAVING)
    assert losses[6] < 0.9 * losses[1]
    states = [state for _, group in optimizer_states(tmp_path / "checkpoint-6") for state in group]
    large = [value for state in states for value in state.values() if torch.is_tensor(value) and value.numel() > 4096]
    assert any(value.dtype == torch.uint8 for value in large) is (bits == 8)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
def test_lora_plus_gives_each_matrix_the_learning_rate_that_peft_gives_it(
    four_bits: Any, blocks: Any, tmp_path: Path, optim: str
) -> None:
    reference = create_loraplus_optimizer(four_bits, torch.optim.AdamW, lr=1.0e-3, loraplus_lr_ratio=16.0)
    expected: dict[float, int] = {}
    for group in reference.param_groups:
        if group["params"]:
            expected[group["lr"]] = expected.get(group["lr"], 0) + sum(value.numel() for value in group["params"])
    rates: dict[int, float] = {}
    log = logged("learning_rate", rates)
    run(four_bits, blocks, tmp_path, log, optim=optim, loraplus_lr_ratio=16.0, max_steps=1, **SAVING)
    found: dict[float, int] = {}
    for rate, states in optimizer_states(tmp_path / "checkpoint-1"):
        size = sum(state.get("exp_avg", state.get("state1")).numel() for state in states)
        found[rate] = found.get(rate, 0) + size
    assert found == expected and set(found) == {1.0e-3, 16.0e-3}
    assert rates == {1: 1.0e-3}, "the plain one is logged"


def test_neftune_adds_noise_in_training_and_none_in_evaluation(four_bits: Any, blocks: Any, tmp_path: Path) -> None:
    losses: list[float] = []
    evaluations: list[float] = []
    for number, alpha in enumerate([None, 5.0, 5.0, 15.0]):
        torch.manual_seed(tiny.SEED)
        outcome = run(
            four_bits,
            blocks,
            tmp_path / str(number),
            validation=blocks,
            neftune_noise_alpha=alpha,
            learning_rate=0.0,
            max_steps=1,
            **EVALUATING,
        )
        losses += [entry["loss"] for entry in outcome.history if "loss" in entry]
        evaluations += [entry["eval_loss"] for entry in outcome.history if "eval_loss" in entry]
    assert losses[1] == losses[2] and len(set(losses)) == 3
    assert len(set(evaluations)) == 1


@pytest.mark.parametrize(
    ("losses", "threshold", "waited"),
    [
        ([], 0.0, 0),
        ([3.0], 0.0, 0),
        ([3.0, 2.0, 1.0], 0.0, 0),
        ([3.0, 2.0, 2.0, 2.5], 0.0, 2),
        ([3.0, 2.9, 2.8, 2.7], 0.15, 3),
        ([3.0, 2.0, 1.0, 2.0], 0.5, 1),
    ],
)
def test_evaluations_are_counted_since_the_last_gain(losses: list[float], threshold: float, waited: int) -> None:
    assert training.evaluations_without_gain(losses, threshold) == waited


def test_a_training_that_gains_nothing_stops_and_stays_stopped(four_bits: Any, blocks: Any, tmp_path: Path) -> None:
    """With a learning rate of zero each evaluation after the first one gains nothing."""
    changes = {
        **EVALUATING,
        **BEST,
        "save_strategy": "steps",
        "save_steps": 5,
        "learning_rate": 0.0,
        "logging_steps": 5,
    }
    seen: list[int] = []
    for _ in range(2):
        outcome = run(
            four_bits,
            blocks,
            tmp_path,
            lambda step, **_: seen.append(step),
            blocks.select([0]),
            early_stopping=training.EarlyStopping(2, 0.0),
            **changes,
        )
        assert outcome.steps == 3
        assert outcome.tokens == sum(training.lengths(blocks)[:3])
        assert [entry["step"] for entry in outcome.history if "loss" in entry] == [1, 2, 3]
    assert max(seen) == 3 and len(seen) == 6, "the second run took no step"


def test_the_best_checkpoint_is_what_is_left(four_bits: Any, blocks: Any, tmp_path: Path) -> None:
    def worsen(step: int, **_: float) -> None:
        if step == 3:
            with torch.no_grad():
                for value in filter(lambda value: value.requires_grad, four_bits.parameters()):
                    value.mul_(50.0)

    outcome = run(
        four_bits,
        blocks,
        tmp_path,
        worsen,
        validation=blocks,
        save_total_limit=1,
        save_strategy="steps",
        save_steps=2,
        **EVALUATING,
        **BEST,
    )
    losses = {entry["step"]: entry["eval_loss"] for entry in outcome.history if "eval_loss" in entry}
    saved = {step: loss for step, loss in losses.items() if step % 2 == 0}
    assert outcome.best_step == min(saved, key=lambda step: saved[step]) != outcome.steps
    assert training.mean_loss(four_bits, blocks, 0) == saved[outcome.best_step]
    assert any(value.requires_grad for value in four_bits.parameters())
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {f"checkpoint-{outcome.best_step}", "checkpoint-6"}
    assert training._last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    (tmp_path / f"checkpoint-{outcome.best_step}" / training.COMPLETE).unlink()
    assert training._last_checkpoint(tmp_path) is None, "no whole one whose best is there"


@pytest.mark.parametrize(("rows", "batch"), [(37, 4), (5, 2), (3, 4), (2000, 8)])
def test_rows_are_grouped_by_length_as_transformers_groups_them(rows: int, batch: int) -> None:
    drawn = torch.Generator().manual_seed(tiny.SEED)
    sizes = torch.randint(1, 500, (rows,), generator=drawn).tolist()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1)).tolist()
    expected = get_length_grouped_indices(sizes, batch, generator=torch.Generator().manual_seed(1))
    assert training.group_by_length(order, sizes, batch) == expected


def test_each_epoch_is_grouped_by_itself_and_covers_each_row_once() -> None:
    sizes = [3, 9, 1, 7, 5]
    order = [*tokens.epochs(5, 12, tiny.SEED)]
    found = training.group_by_length(order, sizes, 2)
    assert [sorted(found[start : start + 5]) for start in (0, 5)] == [list(range(5))] * 2
    assert sorted(found[10:]) == sorted(order[10:])
    assert found[0] == found[5] == 1, "the longest first"


def test_without_a_launcher_one_process_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (training.processes(), training.is_main_process()) == (1, True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (training.processes(), training.is_main_process()) == (4, False)
