"""Fine-tune the base with QLoRA: NF4 weights, LoRA on the projections, and the rows of the ten tokens."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wronai import numerics, params, tracking


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
    """Write the adapter to `out` and the losses by step to the CSV file `curve`.

    Checkpoints go below `checkpoints`, in a folder named by what determines the run: a run that was killed goes on
    from there, and ends in the same bytes. They are removed once the adapter is written.
    """
    from wronai import qlora, tokens, training

    tokenizer = tokens.load(tokenizer_path)
    train, validation = (tokens.read(blocks / f"{split}.parquet") for split in ("train", "validation"))
    model = qlora.load_quantized(base, tokenizer, settings.quantization, seed)
    model = qlora.attach(model, tokenizer, settings)
    pad = tokenizer.pad_token_id
    before = training.mean_loss(model, validation, pad)
    work = checkpoints / qlora.run_key(settings, seed, blocks, base, tokenizer_path, *qlora.VERSIONS)
    outcome = qlora.tune(model, train, validation, settings, seed, work, pad_token_id=pad, log=log)
    after = training.mean_loss(model, validation, pad)
    qlora.save(model, out)
    _write_curve(outcome.history, curve)
    shutil.rmtree(work)
    steps = qlora.optimizer_steps(len(train), settings)
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    measure(tokens_per_second=outcome.tokens_per_second)
    return {
        "steps": steps,
        "epochs": steps * per_step / len(train),
        "tokens_seen": outcome.tokens,
        "trainable_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "train_loss": [entry["loss"] for entry in outcome.history if "loss" in entry][-1],
        "validation_loss_before": before,
        "validation_loss": after,
    }


def _write_curve(history: list[dict[str, float]], curve: Path) -> None:
    """One row a logged step: step, loss, eval_loss; empty where a step has only one of them."""
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        rows.setdefault(int(entry["step"]), {}).update(entry)
    curve.parent.mkdir(parents=True, exist_ok=True)
    with curve.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "loss", "eval_loss"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()))


if __name__ == "__main__":
    with tracking.stage("finetune_qlora") as (config, report):
        numerics.deterministic(config.numerics, config.seed)
        metrics = finetune_qlora(
            Path("data/tokens"),
            Path("models/base"),
            Path("models/tokenizer"),
            config.finetune,
            config.seed,
            tracking.store_root() / ".checkpoints",
            Path("models/adapter"),
            Path("metrics/loss_curve.csv"),
            report.log,
            report.measure,
        )
        report(metrics)
