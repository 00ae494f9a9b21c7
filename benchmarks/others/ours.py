"""`finetune_qlora` as the stage trains: quantize, attach, tune on packed blocks, with the parameters of params.yaml."""

from pathlib import Path
from typing import Any

import meter

from wronai import numerics, params


def train(run: dict[str, Any]) -> None:
    numerics.choose("native")
    from wronai import qlora, tokens

    numerics.deterministic("native", run["seed"])
    settings = params.load(Path("params.yaml")).finetune
    quantization = settings.quantization.model_copy(update={"bnb_4bit_compute_dtype": run["dtype"]})
    changed = {
        "max_steps": run["steps"],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": run["learning_rate"],
        "eval_steps": run["steps"] + 1,
        "save_steps": run["steps"] + 1,
        "logging_steps": run["steps"],
        "optim": run["optim"],
        "gradient_checkpointing": True,
        "quantization": quantization,
    }
    settings = settings.model_copy(update=changed)
    work = Path(run["work"])
    tokenizer = tokens.load(Path(run["base"]))
    blocks = tokens.read(work / "blocks.parquet")
    model = qlora.load_quantized(Path(run["base"]), tokenizer, quantization, run["seed"])
    model = qlora.attach(model, tokenizer, settings)
    qlora.tune(
        model,
        blocks,
        blocks.select([0]),  # evaluated at the end, and not measured
        settings,
        run["seed"],
        Path(run["scratch"]),
        pad_token_id=tokenizer.pad_token_id,
        log=lambda *_, **__: None,
    )


if __name__ == "__main__":
    numerics.choose("native")
    meter.measured("torch", train)
