"""LLaMA-Factory's SFT with its packing that keeps examples apart; the ten tokens are not trained."""

import sys
from types import ModuleType
from typing import Any

import meter


def train(run: dict[str, Any]) -> None:
    # It imports torchaudio for data that holds sound; the registry's builds are for CUDA and a torch for the CPU cannot
    # load them.
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    from llamafactory.train.tuner import run_exp

    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": run["base"],
            "dataset_dir": run["work"],
            "dataset": "wronai",
            "template": "empty",
            "cutoff_len": run["block"],
            "packing": True,
            "neat_packing": True,
            "flash_attn": "sdpa",
            "finetuning_type": "lora",
            "lora_rank": run["lora"]["r"],
            "lora_alpha": run["lora"]["lora_alpha"],
            "lora_dropout": run["lora"]["lora_dropout"],
            "lora_target": ",".join(run["lora"]["target_modules"]),
            "quantization_bit": 4,
            "quantization_type": "nf4",
            "double_quantization": True,
            "output_dir": run["scratch"],
            "max_steps": run["steps"],
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": run["learning_rate"],
            "lr_scheduler_type": "cosine",
            "optim": run["optim"],
            "bf16": run["dtype"] == "bfloat16",
            "logging_steps": run["steps"],
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": run["seed"],
            "overwrite_cache": True,
            "preprocessing_num_workers": 1,
        }
    )


if __name__ == "__main__":
    meter.measured("llamafactory", train)
