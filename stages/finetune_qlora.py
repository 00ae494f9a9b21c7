"""Fine-tune the base with QLoRA: NF4 weights, LoRA on the projections, and the rows of the ten tokens."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from wronai import launch, params, plan, tracking


def finetune_qlora(
    blocks: Path,
    base: Path,
    tokenizer_path: Path,
    settings: params.Finetune,
    seed: int,
    checkpoints: Path,
    out: Path,
    curve: Path,
    log: Callable[..., None],
    measure: Callable[..., None],
) -> dict[str, Any]:
    """Write the adapter to `out`, the losses and the learning rate by step to the CSV file `curve`.

    Checkpoints go below `checkpoints`, in a folder named by what determines the run: a run that was killed goes on
    from there, and ends in the same bytes. They are removed once the adapter is written. Another run of the same folder
    waits for it. Of several processes that train together the main one writes; all return the same metrics.
    """
    from wronai import qlora, tokens, training

    tokenizer = tokens.load(tokenizer_path)
    train, validation = (tokens.read(blocks / f"{split}.parquet") for split in ("train", "validation"))
    longest = max(training.lengths(train))
    planned = plan.check(plan.read(base), settings, longest, plan.here(), len(tokenizer))
    measure(planned_memory_bytes=planned.total)
    determines = settings.model_dump(exclude=qlora.CHANGES_NO_BYTE)
    work = checkpoints / qlora.run_key(determines, seed, blocks, base, tokenizer_path, *qlora.VERSIONS)
    launch.agree(work.name)  # before one loads what another would find missing in its plan
    with qlora.alone(work):
        model = qlora.load_quantized(base, tokenizer, settings.quantization, seed)
        model = qlora.attach(model, tokenizer, settings)
        pad = tokenizer.pad_token_id
        before = training.mean_loss(model, validation, pad)
        outcome = qlora.tune(model, train, validation, settings, seed, work, pad_token_id=pad, log=log)
        evaluated = {entry["step"]: entry["eval_loss"] for entry in outcome.history if "eval_loss" in entry}
        kept = outcome.best_step or outcome.steps
        after = evaluated[kept] if kept in evaluated else training.mean_loss(model, validation, pad)
        qlora.save(model, out)
        if training.is_main_process():
            _write_curve(outcome.history, curve)
            shutil.rmtree(work)
    measure(tokens_per_second=outcome.tokens_per_second)
    metrics = {
        "steps": outcome.steps,
        "epochs": outcome.steps * qlora.global_batch(settings) / len(train),
        "tokens_seen": outcome.tokens,
        "trainable_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "train_loss": [entry["loss"] for entry in outcome.history if "loss" in entry][-1],
        "validation_loss_before": before,
        "validation_loss": after,
    }
    return metrics if outcome.best_step is None else {**metrics, "best_step": outcome.best_step}


def _write_curve(history: list[dict[str, float]], curve: Path) -> None:
    """One row a logged step; losses and learning rate are empty where a step has none."""
    columns = ["step", "loss", "eval_loss", "learning_rate"]
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        rows.setdefault(int(entry["step"]), {}).update(entry)
    curve.parent.mkdir(parents=True, exist_ok=True)
    with curve.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()))


if __name__ == "__main__":
    with tracking.stage("finetune_qlora") as (config, report):
        settings = config.finetune
        train = partial(
            finetune_qlora,
            Path("data/tokens"),
            Path("models/base"),
            Path("models/tokenizer"),
            settings,
            config.seed,
            tracking.store_root() / ".checkpoints",
            Path("models/adapter"),
            Path("metrics/loss_curve.csv"),
        )
        if config.numerics == "native":
            plan.give_freed_memory_back()
        metrics = launch.run(
            train, settings.launch, config.numerics, config.seed, log=report.log, measure=report.measure
        )
        if metrics is not None:  # not on a machine that helps another
            report(metrics)
