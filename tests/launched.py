"""What the tests of wronai.launch run in several processes, by name; as a program it is one machine of two."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wronai import launch, params

Folders = tuple[Path, Path, Path]  # blocks, base, tokenizer


def train(
    folders: Folders,
    out: Path,
    settings: params.Finetune,
    seed: int,
    killed_at: int | None,
    *,
    log: Callable[..., None],
    measure: Callable[..., None],
) -> dict[str, Any]:
    """The stage itself, which notes the rows that each process trains on; the last is killed after a step."""
    import torch
    from transformers import TrainerCallback

    from stages.finetune_qlora import finetune_qlora
    from wronai import tokens, training

    known = [row["input_ids"] for row in tokens.read(folders[0] / "train.parquet")]
    seen: list[int] = []
    collate = training.collate

    def noting(rows: list[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
        if torch.is_grad_enabled():  # not an evaluation
            seen.extend(known.index(row["input_ids"]) for row in rows)
        return collate(rows, pad_token_id)

    class Killer(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            with torch.random.fork_rng():
                dropped = torch.nn.functional.dropout(torch.ones(64)) == 0
            (out / f"dropped.{os.environ.get('RANK', 0)}.json").write_text(json.dumps(dropped.tolist()))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == killed_at and os.environ["RANK"] == str(settings.launch.processes - 1):
                os.kill(os.getpid(), signal.SIGKILL)

    started = training._Trainer.__init__

    def start(self: Any, *values: Any, **named: Any) -> None:
        started(self, *values, **named)
        self.add_callback(Killer())

    training.collate, training._Trainer.__init__ = noting, start
    try:
        outs = (out / "checkpoints", out / "adapter", out / "loss_curve.csv")
        return finetune_qlora(*folders, settings, seed, *outs, log, measure)
    finally:
        training.collate, training._Trainer.__init__ = collate, started
        (out / f"rows.{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seen))


def meet(
    folders: Folders,
    out: Path,
    settings: params.Finetune,
    *,
    log: Callable[..., None],
    measure: Callable[..., None],
) -> None:
    """Each process logs, sees the others, and shards a model with them; then one has something else than the first."""
    import torch

    ones = torch.ones(1)
    torch.distributed.all_reduce(ones)
    launch.agree("the same")
    log(7, loss=float(ones))
    measure(processes=float(ones), rank=int(os.environ["RANK"]))
    measure(**shard(folders, out, settings))
    launch.agree(f"run {os.environ['RANK']}")


def shard(folders: Folders, out: Path, settings: params.Finetune) -> dict[str, float]:
    """Validation losses of a 4-bit model: whole, sharded as accelerate shards it, trained so, and read back."""
    import torch
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel
    from torch.distributed.tensor import DTensor
    from transformers import TrainingArguments

    from wronai import attention, lora, qlora, tokens, training

    tokenizer = tokens.load(folders[2])
    rows = tokens.read(folders[0] / "train.parquet").select(range(4))
    pad = tokenizer.pad_token_id
    base = qlora.load_quantized(folders[1], tokenizer, settings.quantization, 1)
    base.activation_checkpointing_enable({"use_reentrant": False})  # as the Trainer does
    model = qlora.attach(base, tokenizer, settings)
    whole = training.mean_loss(model, rows, pad)
    arguments = TrainingArguments(str(out), use_cpu=True, **launch.arguments(model, settings.launch))
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    accelerator = SimpleNamespace(  # its own constructor takes no plugin on a CPU
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", is_main_process=True, device="cpu"
    )
    fsdp2_prepare_model(accelerator, model)
    values = [value for value in model.parameters() if isinstance(value, DTensor)]
    packed = [module.weight for module in model.modules() if isinstance(module, Linear4bit)]
    found = {
        "whole": whole,
        "sharded": training.mean_loss(model, rows, pad),
        "share": sum(value.to_local().numel() for value in values) / sum(value.numel() for value in model.parameters()),
        "packed": sum(isinstance(value, DTensor) for value in packed) / len(packed),
    }
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1.0e-2)
    for step in range(3):
        batch = training.collate([rows[(2 * step + int(os.environ["RANK"])) % 4]], pad)
        model(**batch, use_cache=False).loss.backward()
        found |= norms(model)
        optimizer.step()
        optimizer.zero_grad()
    trained = [value for value in model.parameters() if value.requires_grad]
    found["finite"] = float(torch.stack([value.isfinite().all() for value in trained]).all())  # as training asks
    found["trained"] = training.mean_loss(model, rows, pad)
    qlora.save(model, out / "adapter")
    torch.distributed.barrier()
    again = qlora.load_quantized(folders[1], tokenizer, settings.quantization, 1)
    again.set_attn_implementation(attention.NAME)
    read = PeftModel.from_pretrained(again, out / "adapter")
    lora.install(read)
    found["read back"] = training.mean_loss(read, rows, pad)
    return found


def norms(model: Any) -> dict[str, float]:
    """The norm of the gradients of a sharded `model`: as training takes it, and summed up over the processes' parts."""
    import torch
    from torch.distributed.tensor import DTensor

    from wronai import training

    trained = [value for value in model.parameters() if value.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(trained, math.inf)
    parts = torch.stack([value.grad.to_local().square().sum() for value in trained]).sum()
    torch.distributed.all_reduce(parts)
    taken = training.whole(norm)
    return {
        "norm": float(taken),
        "norm known": float(isinstance(norm, DTensor) and not isinstance(taken, DTensor)),
        "norm of parts": float(parts.sqrt()),
    }


def sleep(folder: Path, *, log: Callable[..., None], measure: Callable[..., None]) -> None:
    """Say who this is and wait for the end."""
    partial_file = folder / f"{os.environ['RANK']}.partial"
    partial_file.write_text(str(os.getpid()))
    partial_file.rename(folder / f"{os.environ['RANK']}.pid")
    time.sleep(600)


def main(told: dict[str, Any]) -> None:
    """Be the stage of one machine: print what `launch.run` returns, after each point that it logs."""
    settings = params.Finetune.model_validate(told["settings"])
    out = Path(told["out"])
    function = (
        partial(train, tuple(map(Path, told["folders"])), out, settings, told["seed"], None)
        if told["folders"]
        else partial(sleep, out)
    )
    returned = launch.run(
        function,
        settings.launch,
        "pinned",
        told["seed"],
        log=lambda step, **values: print(json.dumps([step, values])),
        measure=lambda **_: None,
    )
    print(json.dumps(returned))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
