"""Training tokens per second over packed blocks: attention by example against transformers' own over the whole block.

    dvc repro tokenize_text && python benchmarks/packed_attention.py

Takes the base and the blocks that the pipeline made; QLoRA with gradient checkpointing, as `finetune_qlora` does. The
two take turns step by step, so that both meet the machine in the same state.
"""

import time
from pathlib import Path

from wronai import numerics, params

STEPS = 40


def main() -> None:
    """Print the table: tokens per second of each, and their ratio."""
    config = params.load(Path("params.yaml"))
    numerics.choose(config.numerics)
    import torch

    from wronai import attention, qlora, tokens, training

    numerics.deterministic(config.numerics, config.seed)
    tokenizer = tokens.load(Path("models/tokenizer"))
    blocks = tokens.read(Path("data/tokens/train.parquet"))
    model = qlora.load_quantized(Path("models/base"), tokenizer, config.finetune.quantization, config.seed)
    model = qlora.attach(model, tokenizer, config.finetune)
    model.train()
    seconds = {"sdpa": 0.0, attention.NAME: 0.0}
    count = 0
    for step in range(STEPS + 4):
        batch = training.collate([blocks[step % len(blocks)]], tokenizer.pad_token_id)
        for name in seconds:
            model.base_model.model.set_attn_implementation(name)
            started = time.monotonic()
            model(**batch, use_cache=False).loss.backward()
            if step >= 4:
                seconds[name] += time.monotonic() - started
        model.zero_grad()
        count += batch["input_ids"].numel() if step >= 4 else 0
    examples = sum(block["position_ids"].count(0) for block in blocks) / len(blocks)
    print(f"{examples:.1f} examples a block of {config.tokenize.max_length} tokens, {torch.get_num_threads()} threads")
    print(f"{'attention':12} {'tok/s':>8} {'ratio':>6}")
    for name, spent in seconds.items():
        print(f"{name:12} {count / spent:8,.0f} {seconds['sdpa'] / spent:6.2f}")


if __name__ == "__main__":
    main()
