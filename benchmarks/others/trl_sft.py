"""TRL's SFTTrainer with packing, its own strategy and loss; the ten tokens are not trained, which it cannot."""

from pathlib import Path
from typing import Any

import meter


def train(run: dict[str, Any]) -> None:
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    dtype = getattr(torch, run["dtype"])
    model = AutoModelForCausalLM.from_pretrained(
        run["base"],
        dtype=dtype,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
    )
    rows = datasets.load_dataset("json", data_files=str(Path(run["work"], "examples.jsonl")), split="train")
    trainer = SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(run["base"]),
        args=SFTConfig(
            output_dir=run["scratch"],
            max_steps=run["steps"],
            per_device_train_batch_size=1,
            packing=True,
            max_length=run["block"],
            learning_rate=run["learning_rate"],
            lr_scheduler_type="cosine",
            optim=run["optim"],
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            bf16=run["dtype"] == "bfloat16",
            logging_steps=run["steps"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=run["seed"],
        ),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **run["lora"]),
    )
    trainer.train()


if __name__ == "__main__":
    meter.measured("trl", train)
