"""The same as `training.py` for a bare script of transformers' Trainer with PEFT, as tutorials write it.

    python benchmarks/gpu/bare_trainer.py

`prepare_model_for_kbit_training`, LoRA and the ten tokens' rows by PEFT, paged 8-bit AdamW, gradient checkpointing, one
example of the full length a step.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import rehearsal


def main() -> None:
    """Run all cases, or the one that `--case` names."""
    asked = rehearsal.arguments(__doc__)
    if asked.case:
        _, length = json.loads(asked.case)
        print("measured", json.dumps(asdict(measure(asked.base, length, asked.steps))))
        return
    rehearsal.run(__file__, [rehearsal.Case("bare Trainer", length) for length in asked.lengths], asked)


def measure(base: Path, length: int, steps: int) -> rehearsal.Measured:
    """Train as a tutorial does."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments

    from wronai import params, tokens

    tokenizer = tokens.extend(tokens.load(base))
    rows = rehearsal.blocks(length, steps, len(tokenizer)).remove_columns("position_ids")
    gpu = torch.cuda.is_available()

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: object, **__: object) -> None:
            self.started = time.monotonic()

        def on_train_end(self, *_: object, **__: object) -> None:
            self.seconds = time.monotonic() - self.started

    clock = Clock()
    with rehearsal.Peak() as peak, tempfile.TemporaryDirectory() as work:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.bfloat16,
            device_map={"": "cuda" if gpu else "cpu"},
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            ),
        )
        model.resize_token_embeddings(len(tokenizer))
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
        added = tokens.added_ids(tokenizer)
        model = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=16,
                lora_alpha=32,
                lora_dropout=0.1,
                target_modules=list(params.TARGET_MODULES),
                trainable_token_indices={"embed_tokens": added, "lm_head": added},
            ),
        )
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=work,
                max_steps=steps,
                per_device_train_batch_size=1,
                learning_rate=2.0e-4,
                optim="paged_adamw_8bit",
                activation_checkpointing=True,
                activation_checkpointing_kwargs={"use_reentrant": False},
                bf16=gpu,
                use_cpu=not gpu,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=lambda batch: {
                key: torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels")
            },
            callbacks=[clock],
        )
        trainer.train()
    flops = rehearsal.flops_per_token(model.config, 4 * length)  # no packing: one example of the whole length
    return rehearsal.Measured(steps * length / clock.seconds, peak.bytes, None, flops)


if __name__ == "__main__":
    main()
