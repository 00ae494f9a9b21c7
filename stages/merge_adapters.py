"""Merge the adapter into the base, and prove that the merged model says and reads what was trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wronai import corpus, numerics, params, plan, tracking


def merge_adapters(
    adapter: Path,
    base: Path,
    tokenizer_path: Path,
    blocks: Path,
    examples: Path,
    quantization: params.Quantization,
    settings: params.Merge,
    checkpoints: Path,
    out: Path,
) -> dict[str, Any]:
    """Write the merged model to `out`; parity is measured on validation `blocks`, the contract on `examples`.

    `parity` is always the distance from the model that was trained. The thresholds of `settings` hold for it where the
    delta was added to the dequantized weights. The original weights are another model by design: there they hold for
    the distance from the adapter on these weights (`parity_on_original`). Nothing is loaded whole. Finished shards
    wait below `checkpoints` until all of this has passed, so that a stage that was killed, or is run again with other
    thresholds, writes none of them twice. Raises ValueError if parity is worse than `settings` allow, or serving
    gives other ids than training.
    """
    from wronai import merging, qlora, tokens

    tokenizer = tokens.load(tokenizer_path)
    validation = tokens.read(blocks / "validation.parquet")
    sample = list(validation.select(range(min(settings.parity_blocks, len(validation)))))
    live = merging.trained(base, adapter, tokenizer, quantization)
    said = live.hidden(sample, f"the adapter on {quantization.held}")
    metrics: dict[str, Any] = {}
    if settings.base_weights == "auto":
        choice = merging.choose(live, said, base, adapter, tokenizer, quantization, settings, sample)
        settings = settings.model_copy(update={"base_weights": choice["chosen"]})
        metrics["base_weights"] = choice
    work = checkpoints / merging.run_key(base, adapter, tokenizer, quantization, settings)
    with qlora.alone(work):
        metrics |= merging.merge(base, adapter, tokenizer, quantization, settings, out, work=work)
        merged = merging.written(out)
        metrics["parity"] = merging.compare(live, said, merged, sample, "the merged model").parity()
        if settings.base_weights == "original":
            unquantized = merging.trained(base, adapter, tokenizer, merging.in_float32(quantization))
            expected = unquantized.hidden(sample, "the adapter on the original weights")
            parity = merging.compare(unquantized, expected, merged, sample, "the merged model").parity()
            merging.check_parity(parity, settings, "the original weights")
            metrics["parity_on_original"] = parity
        else:
            merging.check_parity(metrics["parity"], settings, quantization.held)
        conversations = corpus.read_table(examples, corpus.INSTRUCTIONS, "clean_text")
        metrics |= merging.check_contract(out, conversations, tokenizer)
        shutil.rmtree(work)
    return metrics


if __name__ == "__main__":
    with tracking.stage("merge_adapters") as (config, report):
        numerics.deterministic(config.numerics, config.seed)
        if config.numerics == "native":
            plan.give_freed_memory_back()
        metrics = merge_adapters(
            Path("models/adapter"),
            Path("models/base"),
            Path("models/tokenizer"),
            Path("data/tokens"),
            Path("data/clean/instructions/train.parquet"),
            config.finetune.quantization,
            config.merge,
            tracking.store_root() / ".checkpoints",
            Path("models/merged"),
        )
        report(metrics)
