"""What a training did, measured at the one call that all systems share: Trainer.training_step of transformers.

Each script beside this one runs in its own process and environment, as `python SCRIPT.py RUN.json OUT.json`: it reads
the run that `benchmarks/training.py` describes, trains, and writes what the meter saw.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any


class Meter:
    """When each training step began and ended, in wall and processor time, and the tokens that it was given."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad = pad_token_id
        self.marks: list[dict[str, float]] = []
        self.trainable = 0
        self.peak = 0
        threading.Thread(target=self._sample, daemon=True).start()

    def install(self) -> Meter:
        """Mark every step of every Trainer of this process."""
        from transformers import Trainer

        step = Trainer.training_step

        def marked(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            ids = inputs["input_ids"]
            self.trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
            mark = {"useful": int((ids != self.pad).sum()), "given": ids.numel()}
            mark |= {"began": time.perf_counter(), "processor": time.process_time()}
            loss = step(trainer, model, inputs, *args, **kwargs)
            self.marks.append(mark | {"ended": time.perf_counter()})
            return loss

        Trainer.training_step = marked
        return self

    def _sample(self) -> None:
        """Keep the largest anonymous memory of this process, in bytes: what it holds beside mapped files."""
        while True:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
            self.peak = max(self.peak, held * 1024)
            time.sleep(0.05)


def quantized(run: dict[str, Any]) -> Any:
    """The base in 4 bits on the CPU, as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, run["dtype"])
    return AutoModelForCausalLM.from_pretrained(
        run["base"],
        dtype=dtype,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
    )


def arguments(run: dict[str, Any]) -> dict[str, Any]:
    """The TrainingArguments of every script that makes a Trainer itself; how it batches is its own."""
    return {
        "output_dir": run["scratch"],
        "max_steps": run["steps"],
        "learning_rate": run["learning_rate"],
        "lr_scheduler_type": "cosine",
        "optim": run["optim"],
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": run["dtype"] == "bfloat16",
        "logging_steps": run["steps"],
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": run["seed"],
    }


def measured(package: str, train: Callable[[dict[str, Any]], Any]) -> None:
    """Run `train` on the run of the command line and write what the steps after the warm-up took.

    From the start of the first to the start of the last of them, so that the optimizer and the loading of data count.
    """
    run = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(run["threads"])
    meter = Meter(run["pad_token_id"]).install()
    train(run)
    marks = meter.marks[run["warm_up"] :]
    if len(marks) < 2:
        raise ValueError(f"{len(meter.marks)} training steps, of which {run['warm_up']} warm up: nothing to measure")
    counted = marks[:-1]
    found = {
        "version": metadata.version(package),
        "seconds": marks[-1]["began"] - marks[0]["began"],
        "processor": marks[-1]["processor"] - marks[0]["processor"],
        "useful": sum(mark["useful"] for mark in counted),
        "given": sum(mark["given"] for mark in counted),
        "steps": len(counted),
        "trainable": meter.trainable,
        "peak": meter.peak,
    }
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
