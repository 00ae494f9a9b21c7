"""A bare script as tutorials write it: transformers' Trainer with PEFT, an example a row, padded to the longest."""

from pathlib import Path
from typing import Any

import meter


def train(run: dict[str, Any]) -> None:
    import datasets
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(run["seed"])
    tokenizer = AutoTokenizer.from_pretrained(run["base"])
    dtype = getattr(torch, run["dtype"])
    model = AutoModelForCausalLM.from_pretrained(
        run["base"],
        dtype=dtype,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
    )
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
            output_dir=run["scratch"],
            max_steps=run["steps"],
            per_device_train_batch_size=run["batch"],
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
        train_dataset=datasets.load_dataset("json", data_files=str(Path(run["work"], "examples.jsonl")), split="train"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    trainer.train()


if __name__ == "__main__":
    meter.measured("transformers", train)
