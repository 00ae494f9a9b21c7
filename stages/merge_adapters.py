"""Merge the adapter into the base, and prove that the merged model says and reads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wronai import corpus, numerics, params, tracking


def merge_adapters(
    adapter: Path,
    base: Path,
    tokenizer_path: Path,
    blocks: Path,
    examples: Path,
    quantization: params.Quantization,
    settings: params.Merge,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Write the merged model to `out`; parity is measured on validation `blocks`, the contract on `examples`.

    Raises ValueError if parity is worse than `settings` allow, or serving gives other ids than training.
    """
    import torch

    from wronai import base as base_model
    from wronai import merging, qlora, tokens

    tokenizer = tokens.load(tokenizer_path)
    metrics: dict[str, Any] = {}
    metrics |= merging.merge(base, adapter, tokenizer, quantization, seed, settings, out)
    merged = base_model.load(out, torch.float32)
    live = qlora.load_adapter(qlora.load_quantized(base, tokenizer, quantization, seed), adapter)
    validation = tokens.read(blocks / "validation.parquet")
    sample = validation.select(range(min(settings.parity_blocks, len(validation))))
    parity = merging.parity(live, merged, sample, tokenizer.pad_token_id)
    merging.check_parity(parity, settings)
    conversations = corpus.read_table(examples, corpus.INSTRUCTIONS, "clean_text")
    return metrics | {"parity": parity} | merging.check_contract(out, conversations, tokenizer)


if __name__ == "__main__":
    with tracking.stage("merge_adapters") as (config, report):
        numerics.deterministic(config.numerics, config.seed)
        metrics = merge_adapters(
            Path("models/adapter"),
            Path("models/base"),
            Path("models/tokenizer"),
            Path("data/tokens"),
            Path("data/clean/instructions/train.parquet"),
            config.finetune.quantization,
            config.merge,
            config.seed,
            Path("models/merged"),
        )
        report(metrics)
