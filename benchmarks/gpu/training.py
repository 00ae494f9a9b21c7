"""Fine-tune Mistral-7B's shape with WronAI's parameters: speed, peak memory and the plan, with and without each saving.

    python benchmarks/gpu/training.py

Random weights, 30 steps of one block at each length, and at 2,048 tokens each saving left out alone. Under 8 minutes on
one GPU. Without a GPU it runs too: `--layers 1 --steps 2 --lengths 64`.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rehearsal

PEFT_ROWS = "PEFT's rows, transformers' loss"
SAVINGS: dict[str, dict[str, Any]] = {
    PEFT_ROWS: {},
    "no gradient checkpointing": {"gradient_checkpointing": False},
    "AdamW in float32": {"optim": "adamw_torch_fused"},
    "activations offloaded as well": {"activation_offloading": True},
}
ALL = "all savings"


def main() -> None:
    """Run all cases, or the one that `--case` names."""
    asked = rehearsal.arguments(__doc__)
    if asked.case:
        name, length = json.loads(asked.case)
        print("measured", json.dumps(asdict(measure(asked.base, name, length, asked.steps))))
        return
    cases = [rehearsal.Case(ALL, length) for length in asked.lengths]
    apart = 2048 if 2048 in asked.lengths else asked.lengths[-1]
    rehearsal.run(__file__, [*cases, *(rehearsal.Case(name, apart) for name in SAVINGS)], asked)


def settings_of(name: str, steps: int) -> Any:
    """`finetune` of the profile mistral-7b, for so many steps of one block, with what the case changes."""
    from wronai import profiles

    settings = profiles.load(rehearsal.ROOT / "profiles/mistral-7b.yaml", rehearsal.ROOT / "params.yaml").finetune
    never = {"eval_steps": 10**6, "save_steps": 10**6, "logging_steps": steps}
    changes = {"max_steps": steps, "gradient_accumulation_steps": 1, **never, **SAVINGS.get(name, {})}
    return settings.model_copy(update=changes)


def measure(base: Path, name: str, length: int, steps: int) -> rehearsal.Measured:
    """Train as `finetune_qlora` does."""
    from wronai import numerics

    numerics.choose("native")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    import torch

    from wronai import plan, qlora, tokens, vocabulary

    plan.give_freed_memory_back()
    if name == PEFT_ROWS:
        vocabulary.install = lambda model: None
    settings = settings_of(name, steps)
    tokenizer = tokens.extend(tokens.load(base))
    numerics.deterministic("native", 0)
    blocks = rehearsal.blocks(length, steps, len(tokenizer))
    context = plan.here().context
    with rehearsal.Peak() as peak, tempfile.TemporaryDirectory() as work:
        model = qlora.attach(qlora.load_quantized(base, tokenizer, settings.quantization, 0), tokenizer, settings)
        outcome = qlora.tune(
            model,
            blocks,
            blocks.select([0]),
            settings,
            0,
            Path(work),
            pad_token_id=tokenizer.pad_token_id,
            log=lambda *_, **__: None,
        )
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    planned = plan.make(plan.read(base), settings, length, kind, context).total
    flops = rehearsal.flops_per_token(model.config, length)
    return rehearsal.Measured(outcome.tokens_per_second, peak.bytes, None if name == PEFT_ROWS else planned, flops)


if __name__ == "__main__":
    main()
