import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

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
    arguments = ARGUMENTS | changes
    order = [step % len(blocks) for step in range(arguments["max_steps"])]
    return training.train(model, blocks, validation, order, arguments, work, pad_token_id=0, what="training", log=log)


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


def test_a_loss_that_is_not_a_number_ends_the_training_with_its_step(
    model: Any, blocks_folder: Path, tmp_path: Path, base_folder: Path, tokenizer: Any
) -> None:
    qlora.add_rows(model, tokenizer, base_folder, tiny.SEED)
    blocks = tokens.read(blocks_folder / "train.parquet")

    def spoil(step: int, **_: float) -> None:
        if step == 2:
            model.model.norm.weight.data.fill_(math.nan)

    with pytest.raises(ValueError, match="loss is nan at step 3: the training diverged; lower learning_rate"):
        run(model, blocks, tmp_path, spoil)


def test_a_learning_rate_that_is_far_too_high_is_such_a_loss(
    model: Any, blocks_folder: Path, tmp_path: Path, base_folder: Path, tokenizer: Any
) -> None:
    qlora.add_rows(model, tokenizer, base_folder, tiny.SEED)
    blocks = tokens.read(blocks_folder / "train.parquet")
    with pytest.raises(ValueError, match=r"loss is (nan|inf) at step \d: the training diverged"):
        run(model, blocks, tmp_path, learning_rate=1.0e20, max_grad_norm=0.0)


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
        (tmp_path / f"checkpoint-{step}" / training.COMPLETE).touch()
    assert training._last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-20").exists(), "half-written, so it must not be in the way"
