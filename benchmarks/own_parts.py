"""Training tokens per second with each part of a step that is this project's own, beside the library's in its place.

    dvc repro tokenize_text && python benchmarks/own_parts.py [--dtype bfloat16]

Takes the base and the blocks that the pipeline made; QLoRA with gradient checkpointing, as `finetune_qlora` does. All
take turns step by step, so that they meet the machine in the same state. bfloat16 is computed with native numerics.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from wronai import numerics, params

STEPS, WARM_UP = 40, 4
OURS, ATTENTION, LORA = "ours", "attention by transformers' SDPA over the block", "LoRA by PEFT"


def main() -> None:
    """Print the table: tokens per second of each, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    dtype = parser.parse_args().dtype
    config = params.load(Path("params.yaml"))
    kind = config.numerics if dtype == "float32" else "native"
    numerics.choose(kind)
    import torch

    from wronai import attention, lora, qlora, tokens, training

    numerics.deterministic(kind, config.seed)
    tokenizer = tokens.load(Path("models/tokenizer"))
    blocks = tokens.read(Path("data/tokens/train.parquet"))
    quantization = config.finetune.quantization.model_copy(update={"bnb_4bit_compute_dtype": dtype})
    model = qlora.load_quantized(Path("models/base"), tokenizer, quantization, config.seed)
    model = qlora.attach(model, tokenizer, config.finetune).train()
    model.base_model.model.activation_checkpointing_enable({"use_reentrant": False})
    layers: list[Any] = [module for module in model.modules() if isinstance(module, lora.Added)]
    owns = [type(layer) for layer in layers]
    classes = {type(layer): type(layer).__bases__[-1] for layer in layers}  # ours, and PEFT's below it

    def choose(name: str) -> None:
        model.base_model.model.set_attn_implementation("sdpa" if name == ATTENTION else attention.NAME)
        for layer, own in zip(layers, owns, strict=True):
            layer.__class__ = classes[own] if name == LORA else own

    seconds = dict.fromkeys((OURS, ATTENTION, LORA), 0.0)
    count = 0
    for step in range(STEPS + WARM_UP):
        batch = training.collate([blocks[step % len(blocks)]], tokenizer.pad_token_id)
        for name in seconds:
            choose(name)
            started = time.monotonic()
            model(**batch, use_cache=False).loss.backward()
            if step >= WARM_UP:
                seconds[name] += time.monotonic() - started
        model.zero_grad()
        count += batch["input_ids"].numel() if step >= WARM_UP else 0
    examples = sum(block["position_ids"].count(0) for block in blocks) / len(blocks)
    print(
        f"{examples:.1f} examples a block of {config.tokenize.max_length} tokens, {dtype}, {kind} numerics, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'':50} {'tok/s':>8} {'ours to it':>10}")
    for name, spent in seconds.items():
        print(f"{name:50} {count / spent:8,.0f} {spent / seconds[OURS]:10.2f}")


if __name__ == "__main__":
    main()
