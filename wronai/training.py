"""Train a causal language model with transformers' Trainer: the same bytes each time, resumable, with progress."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from wronai import tokens
from wronai.progress import Progress

CURVES = ("loss", "eval_loss", "learning_rate", "grad_norm")
COMPLETE = ".complete"  # marks a checkpoint that was written to its end
Log = Callable[..., None]  # log(step, loss=…, learning_rate=…)


@dataclass(frozen=True)
class Outcome:
    """What a training was: its losses by step, the tokens of all its steps, and how fast this process trained."""

    history: list[dict[str, float]]
    tokens: int
    tokens_per_second: float


def collate(rows: list[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Blocks as int64 tensors of shape (rows, longest), padded at the end with positions that start again at 0."""
    longest = max(len(row["input_ids"]) for row in rows)
    padded: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        missing = longest - len(row["input_ids"])
        padded["input_ids"].append(row["input_ids"] + [pad_token_id] * missing)
        padded["labels"].append(row["labels"] + [tokens.IGNORED] * missing)
        padded["position_ids"].append([*row["position_ids"], *range(missing)])
    return {key: torch.tensor(values) for key, values in padded.items()}


@torch.no_grad()
def mean_loss(model: Any, blocks: Any, pad_token_id: int, progress: Progress | None = None) -> float:
    """Cross entropy in nats per supervised token of `blocks`, each token counting the same."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for block in blocks:
        batch = {key: value.to(model.device) for key, value in collate([block], pad_token_id).items()}
        supervised = int((batch["labels"][:, 1:] != tokens.IGNORED).sum())
        total += float(model(**batch, use_cache=False).loss) * supervised
        count += supervised
        if progress:
            progress.add(1)
    model.train(was_training)
    return total / count


def train(
    model: Any,
    blocks: Any,
    validation: Any,
    order: list[int],
    arguments: dict[str, Any],
    work: Path,
    *,
    pad_token_id: int,
    what: str,
    log: Log,
) -> Outcome:
    """Train `model` in place on `blocks` in the given `order` of rows.

    `arguments` are TrainingArguments; those that make a run repeatable are set here. Checkpoints go to `work`; if it
    holds a complete one, training goes on from there. A loss that is not finite raises ValueError with its step.
    """
    last = _last_checkpoint(work)
    settings = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,  # `order` holds all of them
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_total_limit=2,
        logging_nan_inf_filter=False,
        per_device_eval_batch_size=1,
        prediction_loss_only=True,
        **arguments,
    )
    rows = blocks.select(order)
    count = [sum(label != tokens.IGNORED for label in labels) for labels in blocks["labels"]]
    lengths = [len(ids) for ids in blocks["input_ids"]]
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    if not sum(count):
        raise ValueError(f"{what}: no token of the training blocks is supervised")
    trainer = _Trainer(
        model=model,
        args=settings,
        train_dataset=rows,
        eval_dataset=validation,
        data_collator=lambda batch: collate(batch, pad_token_id),
        callbacks=[_MarkComplete()],
    )
    trainer.pad_token_id = pad_token_id
    trainer.remove_callback(PrinterCallback)  # the line of progress says it better
    line = _Line(what, [lengths[row] for row in order], per_step, log)
    trainer.add_callback(line)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return Outcome(
        [
            {key: value for key, value in entry.items() if key in ("step", *CURVES)}
            for entry in trainer.state.log_history
            if "loss" in entry or "eval_loss" in entry
        ],
        sum(lengths[row] for row in order),
        line.tokens_per_second,
    )


def _last_checkpoint(work: Path) -> Path | None:
    """The latest complete checkpoint below `work`; those that a kill left half-written are removed."""
    complete = []
    for checkpoint in work.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class _Trainer(Trainer):  # type: ignore[misc]
    """Takes the rows in the order that they have, and weighs each validation token the same."""

    pad_token_id: int

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_loss": mean_loss(self.model, self.eval_dataset, self.pad_token_id)}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Line(TrainerCallback):  # type: ignore[misc]
    """The line of progress, the live curves, and the end of a training that diverges."""

    tokens_per_second = 0.0

    def __init__(self, what: str, lengths: list[int], per_step: int, log: Log) -> None:
        self._what, self._log = what, log
        self._steps = [sum(lengths[start : start + per_step]) for start in range(0, len(lengths), per_step)]
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        resumed = f" (resumed at step {state.global_step})" if state.global_step else ""
        self._left = sum(self._steps[state.global_step :])
        self._started = time.monotonic()
        self._progress = Progress(self._what + resumed, self._left, "tok")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.add(self._steps[state.global_step - 1], f"step {state.global_step:05d}{self._note}")
        if control.should_save or state.global_step == state.max_steps:
            # A logged loss is the mean since the last one, and no checkpoint holds half of it: a run that goes on
            # from here would log another. And a training that ends in NaN fails only where its last steps are logged.
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        points = {key: value for key, value in (logs or {}).items() if key in CURVES}
        for key in ("loss", "eval_loss"):
            if not math.isfinite(points.get(key, 0.0)):
                raise ValueError(
                    f"{key} is {points[key]} at step {state.global_step}: the training diverged; lower learning_rate "
                    "or max_grad_norm"
                )
        if "loss" in points:
            self._note = f" | loss {points['loss']:.3f}"
        if points:
            self._log(state.global_step, **points)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tokens_per_second = self._left / (time.monotonic() - self._started)
        self._progress.close(f"step {state.global_step:05d}{self._note}")


class _MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Mark each checkpoint once all of it is on disk, so that a kill while it is written costs only that one."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
