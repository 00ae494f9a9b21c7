"""Axolotl with sample packing over the same tokens; the ten tokens are not trained."""

from pathlib import Path
from typing import Any

import meter


def train(run: dict[str, Any]) -> None:
    import yaml
    from axolotl.cli.train import do_cli

    config = Path(run["scratch"], "axolotl.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    described = {
        "base_model": run["base"],
        "load_in_4bit": True,
        "adapter": "qlora",
        "lora_r": run["lora"]["r"],
        "lora_alpha": run["lora"]["lora_alpha"],
        "lora_dropout": run["lora"]["lora_dropout"],
        "lora_target_modules": run["lora"]["target_modules"],
        "datasets": [{"path": str(Path(run["work"], "examples.jsonl")), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(Path(run["scratch"], "prepared")),
        "dataset_num_proc": 1,
        "val_set_size": 0,
        "output_dir": str(Path(run["scratch"], "out")),
        "sequence_len": run["block"],
        "sample_packing": True,
        "pad_to_sequence_len": False,
        "sdp_attention": True,
        # Its kernels for LoRA ask CUDA for a stream.
        **dict.fromkeys(("lora_qkv_kernel", "lora_o_kernel", "lora_mlp_kernel", "lora_embedding_kernel"), False),
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": run["steps"],
        "learning_rate": run["learning_rate"],
        "lr_scheduler": "cosine",
        "optimizer": run["optim"],
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": run["dtype"] == "bfloat16",
        "tf32": False,
        "logging_steps": run["steps"],
        "save_strategy": "no",
        "seed": run["seed"],
        "use_cpu": True,
        "device_map": {"": "cpu"},
    }
    config.write_text(yaml.safe_dump(described), encoding="utf-8")
    do_cli(str(config))


if __name__ == "__main__":
    meter.measured("axolotl", train)
