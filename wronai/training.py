"""Train a causal language model with transformers' Trainer: the same bytes each time, resumable, with progress."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc
import torch
from accelerate.utils import broadcast_object_list, wait_for_everyone
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from wronai import tokens
from wronai.progress import Progress

CURVES = ("loss", "eval_loss", "learning_rate", "grad_norm")
COMPLETE = ".complete"  # marks a checkpoint that was written to its end: `sha256sum -c` reads it
Log = Callable[..., None]  # log(step, loss=…, learning_rate=…)


@dataclass(frozen=True)
class Outcome:
    """What a training was: its losses by step, its steps and their tokens, and how fast this process took those.

    `tokens_per_second` leaves evaluations and checkpoints out; it is 0 if none was left to take.
    `best_step` is the step whose weights the model has now, if the best were asked for, and None otherwise.
    """

    history: list[dict[str, float]]
    steps: int
    best_step: int | None
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class EarlyStopping:
    """Stop once `patience` evaluations in a row did not lower the best loss before them by more than `threshold`."""

    patience: int
    threshold: float


def processes() -> int:
    """How many processes train together: what the launcher says, and 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that prints, logs, and writes outs."""
    return int(os.environ.get("RANK", "0")) == 0


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
    """Cross entropy in nats per supervised token of `blocks`, each token counting the same.

    Where processes train together, each takes its share of the blocks and all get the same mean.
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=model.device)  # nats and tokens, read once: no wait at each block
    for start in range(0, len(blocks), world):
        # All processes evaluate equally often, as sharded models need; what is beyond the last block counts nothing.
        number = start + rank
        block = blocks[min(number, len(blocks) - 1)]
        batch = collate([block], pad_token_id)
        supervised = int((batch["labels"][:, 1:] != tokens.IGNORED).sum()) * (number < len(blocks))
        loss = model(**{key: value.to(model.device) for key, value in batch.items()}, use_cache=False).loss
        found = torch.stack([loss.double() * supervised, torch.full_like(loss, supervised, dtype=torch.float64)])
        sums += found.to(sums.device)  # parameters that FSDP offloads are on the CPU, and the loss is not
        if progress:
            progress.add(min(world, len(blocks) - start))
    if world > 1:
        torch.distributed.all_reduce(sums)
    model.train(was_training)
    return float(sums[0] / sums[1])


def lengths(blocks: Any) -> list[int]:
    """The tokens of each block."""
    return list(pc.list_value_length(_column(blocks, "input_ids")).to_pylist())


def whole(value: Any) -> Any:
    """`value`, put together if each process has a part of it; then every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def group_by_length(order: list[int], lengths: Sequence[int], batch: int) -> list[int]:
    """`order`, epochs over `len(lengths)` rows, with rows of similar length in each `batch`: less padding.

    As transformers groups them: each epoch is cut into mega-batches of 50 batches, fewer if that makes less than four,
    and each is sorted, longest first. The epoch's longest row is its first: if it does not fit, that shows at once.
    """
    rows = len(lengths)
    size = batch * max(1, min(rows // (4 * batch), 50))
    grouped = []
    for first in range(0, len(order), rows):
        epoch = order[first : first + rows]
        sorted_ = [
            sorted(epoch[start : start + size], key=lambda row: -lengths[row]) for start in range(0, len(epoch), size)
        ]
        longest = max(sorted_, key=lambda mega: lengths[mega[0]])
        sorted_[0][0], longest[0] = longest[0], sorted_[0][0]
        grouped += [row for mega in sorted_ for row in mega]
    return grouped


def evaluations_without_gain(losses: Sequence[float], threshold: float) -> int:
    """How many of `losses` stand after the last one that was lower by more than `threshold` than all before it."""
    best, waited = math.inf, 0
    for loss in losses:
        waited = 0 if loss < best - threshold else waited + 1
        best = min(best, loss)
    return waited


def times_the_median(losses: Sequence[float]) -> float:
    """The last of `losses` over the median of those before it, 1 if there are none.

    The median, since one easy batch makes a minimum that any other batch exceeds.
    """
    return losses[-1] / statistics.median(losses[:-1]) if len(losses) > 1 else 1.0


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
    loraplus_lr_ratio: float | None = None,
    early_stopping: EarlyStopping | None = None,
    max_loss_ratio: float | None = None,
) -> Outcome:
    """Train `model` in place on `blocks` in the given `order` of rows.

    `arguments` are TrainingArguments; those that make a run repeatable are set here. Checkpoints go to `work`, at most
    `save_total_limit` of them (and always the last and the best); if it holds a complete one, training goes on from
    there. Under a launcher every process calls this alike: step k takes the next rows of `order`, as many as all
    processes together take, and they are dealt out, so the step is that of one process with a batch as large. Only the
    main process prints, logs and marks checkpoints.

    Raises ValueError with its step when a loss or gradient is not finite, or a logged loss exceeds `max_loss_ratio`
    times the median of those before it; the checkpoints before that step stay.
    """
    settings = TrainingArguments(
        **{
            "output_dir": str(work),
            "num_train_epochs": 1,  # `order` holds all of them
            "remove_unused_columns": False,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "logging_nan_inf_filter": False,
            "per_device_eval_batch_size": 1,
            "prediction_loss_only": True,
            "ddp_find_unused_parameters": False,
            **arguments,
        }
    )
    # More GPUs are used by more processes: DataParallel would multiply the batch, and take no quantized model.
    settings._n_gpu = min(1, settings.n_gpu)
    limit, settings.save_total_limit = settings.save_total_limit, None  # `_Checkpoints` counts the complete ones alone
    last = _agreed_checkpoint(work)
    if not _supervises(blocks):
        raise ValueError(f"{what}: no token of the training blocks is supervised")
    size = lengths(blocks)
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * settings.world_size
    line = _Line(what, [size[row] for row in order], per_step, log)
    guard = _Guard(what, max_loss_ratio, work)
    trainer = _Trainer(
        model=model,
        args=settings,
        train_dataset=blocks.select(order),
        eval_dataset=validation,
        data_collator=lambda batch: collate(batch, pad_token_id),
        callbacks=[_Checkpoints(limit), guard, line],
    )
    trainer.guard, trainer.pad_token_id, trainer.loraplus_lr_ratio = guard, pad_token_id, loraplus_lr_ratio
    trainer.remove_callback(PrinterCallback)  # the line of progress says it better
    if early_stopping:
        trainer.add_callback(_EarlyStop(early_stopping))
    if settings.world_size > 1:
        torch.manual_seed(settings.seed + settings.process_index)  # else all would drop out the same places
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except pickle.UnpicklingError:  # torch reads tensors and numbers alone (`weights_only`)
        raise ValueError(
            f"{last}: a state of the optimizer, the schedule or the generators is damaged or holds more than tensors "
            "and numbers; nothing of it was run; remove that checkpoint, and training goes on from the one before it"
        ) from None
    wait_for_everyone()
    return Outcome(
        [
            {key: value for key, value in entry.items() if key in ("step", *CURVES)}
            for entry in trainer.state.log_history
            if "loss" in entry or "eval_loss" in entry
        ],
        trainer.state.global_step,
        trainer.state.best_global_step if settings.load_best_model_at_end else None,
        sum(size[row] for row in order[: per_step * trainer.state.global_step]),
        line.tokens_per_second,
    )


def _column(blocks: Any, name: str) -> Any:
    """A column of blocks as Arrow holds it: as Python lists, those of a large corpus would not fit into memory."""
    return blocks.with_format("arrow")[name][:]


def _supervises(blocks: Any) -> bool:
    return bool(pc.any(pc.not_equal(pc.list_flatten(_column(blocks, "labels")), tokens.IGNORED)).as_py())


def _agreed_checkpoint(work: Path) -> Path | None:
    """What `_last_checkpoint` finds in the main process, in each of them."""
    found = [_last_checkpoint(work) if is_main_process() else None]
    broadcast_object_list(found)
    return found[0]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _last_checkpoint(work: Path) -> Path | None:
    """The latest checkpoint below `work` that is whole, and whose best one is; half-written and damaged ones go."""
    for checkpoint in work.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).exists():
            shutil.rmtree(checkpoint)
    for checkpoint in sorted(work.glob("checkpoint-*"), key=_step, reverse=True):
        if _is_whole(checkpoint):
            best = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"]
            if not best or _is_whole(work / f"checkpoint-{best}"):
                return checkpoint
        if checkpoint.exists():
            shutil.rmtree(checkpoint)
    return None


def _sums(checkpoint: Path) -> str:
    """A line with the sha256 and the name of each file of `checkpoint`, sorted."""
    lines = []
    for path in sorted(checkpoint.iterdir()):
        if path.name != COMPLETE:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)


def _is_whole(checkpoint: Path) -> bool:
    """Whether `checkpoint` has the bytes it was marked with; one that has not is named and removed."""
    if not (checkpoint / COMPLETE).exists():
        return False
    odd = {*(checkpoint / COMPLETE).read_text(encoding="utf-8").splitlines()} ^ {*_sums(checkpoint).splitlines()}
    if odd:
        names = ", ".join(sorted({line.partition("  ")[2] for line in odd}))
        sys.stderr.write(f"{checkpoint}: {names} damaged; it is removed, and training goes on from one before it\n")
        shutil.rmtree(checkpoint)
    return not odd


def _prune(work: Path, limit: int | None, best: int | None) -> None:
    """Remove the oldest checkpoints below `work` beyond `limit`, but not the last and not that of the step `best`."""
    checkpoints = sorted(work.glob("checkpoint-*"), key=_step)
    surplus = len(checkpoints) - limit if limit else 0
    for checkpoint in checkpoints[:-1]:
        if surplus > 0 and _step(checkpoint) != best:
            (checkpoint / COMPLETE).unlink()  # first, so that a kill leaves none that is marked and half there
            shutil.rmtree(checkpoint)
            surplus -= 1


def _memory() -> int:
    """Bytes: the most allocated on the GPU so far, or the anonymous memory that this process has on a CPU now."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    held = psutil.Process().memory_info()
    return int(held.rss - getattr(held, "shared", 0))


class _Trainer(Trainer):  # type: ignore[misc]
    """Takes the rows in the order that they have, weighs each validation token the same, and watches each gradient."""

    guard: _Guard
    pad_token_id: int
    loraplus_lr_ratio: float | None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_loss": mean_loss(self.model, self.eval_dataset, self.pad_token_id)}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None and self.loraplus_lr_ratio is not None:
            trained = self.model if model is None else model
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer_cls_and_kwargs = optimizer, {**options, "params": self._groups(trained)}
        return super().create_optimizer(model)

    def _groups(self, model: Any) -> list[dict[str, Any]]:
        """LoRA+: lora_B, and DoRA's magnitudes as in PEFT, learn `loraplus_lr_ratio` times as fast as the rest.

        The first group has the plain learning rate, which is the one that is logged.
        """
        decaying = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[bool, bool], list[Any]] = {}
        for name, value in model.named_parameters():
            if value.requires_grad:
                groups.setdefault(("lora_B" in name or value.ndim == 1, name not in decaying), []).append(value)
        return [
            {
                "params": values,
                "lr": self.args.learning_rate * ((self.loraplus_lr_ratio or 1.0) if fast else 1.0),
                "weight_decay": 0.0 if constant else self.args.weight_decay,
            }
            for (fast, constant), values in sorted(groups.items(), key=lambda item: item[0])
        ]

    def floating_point_ops(self, inputs: Any) -> float:
        return 0.0  # nobody reads them, and counting walks through all parameters at each batch

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = whole(super()._get_grad_norm(model, grad_norm))
        step = self.state.global_step + 1
        if norm.device.type != "cpu":
            self.guard.note(norm, step)
        elif not math.isfinite(norm):
            loss = float(self._tr_loss) / (step - self._globalstep_last_logged)
            raise self.guard.diverged(f"loss is {loss:.4g} and grad_norm is {float(norm)}", step)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trained = [value for value in self.model.parameters() if value.requires_grad]
        if trained and not torch.stack([value.isfinite().all() for value in trained]).all():
            raise self.guard.diverged("weights are not finite", self.state.global_step)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not hasattr(self.model, "peft_config"):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            # PEFT would add the whole embedding and head, a gigabyte of a 7B model, none of it trained.
            self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The best is sought among the evaluations whose weights a checkpoint holds."""
        return bool(self.control.should_save and super()._determine_best_metric(metrics, trial))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint, self.model)  # as a resumed run, still trainable

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # a run that was killed after it had stopped takes no step more
            super()._run_epoch(*args, **kwargs)


class _Guard(TrainerCallback):  # type: ignore[misc]
    """The end of a training that diverges. Every checkpoint is logged before it is written, so the kept ones are good.

    A gradient on a GPU is not read at each step, which would wait for it: the first step whose norm is not finite is
    noted there, and read when the next loss is.
    """

    def __init__(self, what: str, max_loss_ratio: float | None, work: Path) -> None:
        self._what, self._ratio, self._work = what, max_loss_ratio, work
        self._first: Any = None  # the first step with a bad gradient, on the device; 0 for none

    def note(self, norm: torch.Tensor, step: int) -> None:
        """Take the norm of the gradient of `step`, without waiting for it."""
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=norm.device)
        self._first = torch.where(torch.isfinite(norm) | (self._first > 0), self._first, step)

    def diverged(self, found: str, step: int, otherwise: str = "") -> ValueError:
        """The error that says what was `found` at `step`, what to change, and what is left."""
        kept = max(
            (path for path in self._work.glob("checkpoint-*") if (path / COMPLETE).exists()), key=_step, default=""
        )
        left = f"{kept} is the last good checkpoint" if kept else "no checkpoint was written before"
        return ValueError(
            f"{self._what}: {found} at step {step}: the training diverged; lower learning_rate or max_grad_norm, or "
            f"raise warmup_ratio{otherwise}; {left}"
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self._first is not None and (step := int(self._first)):
            raise self.diverged(f"grad_norm is not finite (loss {(logs or {}).get('loss', math.nan):.4g})", step)
        for key in ("loss", "eval_loss"):
            if key not in (logs or {}):
                continue
            if not math.isfinite(logs[key]):
                raise self.diverged(f"{key} is {logs[key]}", state.global_step)
            times = times_the_median([entry[key] for entry in state.log_history if key in entry])
            if self._ratio is not None and times > self._ratio:
                raise self.diverged(
                    f"{key} is {logs[key]:.4g}, {times:.1f} times the median before it (max_loss_ratio {self._ratio}),",
                    state.global_step,
                    ", or max_loss_ratio, if such a loss is to be expected",
                )


class _Line(TrainerCallback):  # type: ignore[misc]
    """The line of progress and the live curves, of the main process; a loss is logged wherever the run may end."""

    def __init__(self, what: str, lengths: list[int], per_step: int, log: Log) -> None:
        self._what, self._log = what, log
        self._steps = [sum(lengths[start : start + per_step]) for start in range(0, len(lengths), per_step)]
        self._note = ""
        self._taken, self._seconds = 0, 0.0  # tokens of all logged steps, and what they took without the pauses

    @property
    def tokens_per_second(self) -> float:
        return self._taken / self._seconds if self._taken else 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        resumed = f" (resumed at step {state.global_step})" if state.global_step else ""
        self._logged = state.global_step
        self._main = state.is_world_process_zero
        self._since = self._worked = time.monotonic()
        self._progress = Progress(self._what + resumed, sum(self._steps[state.global_step :]), "tok")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._worked = time.monotonic()
        if self._main:
            self._progress.add(self._steps[state.global_step - 1], f"step {state.global_step:05d}{self._note}")
        if control.should_save or state.global_step == state.max_steps:
            # A logged loss is the mean since the last one, and no checkpoint holds half of it: a run that goes on
            # from here would log another. And a training that ends in NaN fails only where its last steps are logged.
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        points = {key: value for key, value in (logs or {}).items() if key in CURVES}
        if "loss" in points:
            self._note = f" | loss {points['loss']:.3f}"
            taken, now = sum(self._steps[self._logged : state.global_step]), time.monotonic()
            seconds = now - self._since
            # Measured, so not in the history that the stage's outs are made of.
            points |= {"tokens_per_second": taken / seconds, "memory_bytes": _memory()}
            self._taken, self._seconds = self._taken + taken, self._seconds + seconds
            self._logged, self._since, self._worked = state.global_step, now, now
        if points and self._main:
            self._log(state.global_step, **points)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._pause()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._pause()

    def _pause(self) -> None:
        """Leave what was done since the step, or its loss was logged, out of the tokens per second."""
        now = time.monotonic()
        self._since, self._worked = self._since + now - self._worked, now

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._main:
            self._progress.close(f"step {state.global_step:05d}{self._note}")


class _Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Mark each checkpoint once all of it is on disk, so that a kill while it is written costs only that one."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.best_global_step:  # its folder may have another place than when the checkpoint was written
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for_everyone()  # each process writes the state of its own generators
        if state.is_world_process_zero:
            work = Path(args.output_dir)
            checkpoint = work / f"checkpoint-{state.global_step}"
            (checkpoint / COMPLETE).write_text(_sums(checkpoint), encoding="utf-8")
            _prune(work, self._limit, state.best_global_step)


class _EarlyStop(TrainerCallback):  # type: ignore[misc]
    """Stops by the evaluations logged so far, which a checkpoint holds: a resumed run stops where the first would."""

    def __init__(self, rule: EarlyStopping) -> None:
        self._rule = rule

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= self._is_over(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log |= control.should_evaluate  # it may be the last step

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._is_over(state):
            control.should_training_stop = control.should_save = True

    def _is_over(self, state: Any) -> bool:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        return evaluations_without_gain(losses, self._rule.threshold) >= self._rule.patience
