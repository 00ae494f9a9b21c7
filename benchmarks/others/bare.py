"""A bare script as tutorials write it: transformers' Trainer with PEFT, an example a row, padded to the longest."""

from pathlib import Path
from typing import Any

import meter


def train(run: dict[str, Any]) -> None:
    import datasets
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(run["seed"])
    tokenizer = AutoTokenizer.from_pretrained(run["base"])
    model = meter.quantized(run)
    model.config.use_cache = False
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = run["added_ids"]
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            trainable_token_indices={"embed_tokens": rows, "lm_head": rows},
            **run["lora"],
        ),
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            per_device_train_batch_size=run["batch"],
            **meter.arguments(run),
        ),
        train_dataset=datasets.load_dataset("json", data_files=str(Path(run["work"], "examples.jsonl")), split="train"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    trainer.train()


if __name__ == "__main__":
    meter.measured("transformers", train)
