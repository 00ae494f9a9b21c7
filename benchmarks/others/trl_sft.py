"""TRL's SFTTrainer with packing, its own strategy and loss; the ten tokens are not trained, which it cannot."""

from pathlib import Path
from typing import Any

import meter


def train(run: dict[str, Any]) -> None:
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = meter.quantized(run)
    rows = datasets.load_dataset("json", data_files=str(Path(run["work"], "examples.jsonl")), split="train")
    trainer = SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(run["base"]),
        args=SFTConfig(
            per_device_train_batch_size=1,
            packing=True,
            max_length=run["block"],
            **meter.arguments(run),
        ),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **run["lora"]),
    )
    trainer.train()


if __name__ == "__main__":
    meter.measured("trl", train)
