"""The memory plan beside what a training takes: random Mistrals, quantized and trained two steps, each in its process.

    python benchmarks/plan.py            # hidden 256 to 4,096, one to four layers; needs 4 GB and 3 GB of disk
    python benchmarks/plan.py 256x4      # that width and depth alone

Prints for each case the anonymous memory of loading and of training, planned and measured. File pages are not in it:
the weights in the page cache can be given back at any time.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("256x4", "1024x4", "4096x1", "4096x2")  # hidden size x layers
LENGTHS = (128, 512)
EVERY = 0.002  # seconds between two looks at the memory


class Peak:
    """The most anonymous memory that this process held since `phase` was last told of a new one, in bytes."""

    def __init__(self) -> None:
        from wronai import plan

        self._look, self._most, self._ended = plan.anonymous, 0, False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended:
            self._most = max(self._most, self._look())
            time.sleep(EVERY)

    def phase(self) -> int:
        """The peak so far; the next phase starts here."""
        most, self._most = max(self._most, self._look()), 0
        return most


def make_base(folder: Path, hidden: int, layers: int) -> None:
    """A base of random weights in `folder`, and its tokenizer with the ten tokens."""
    import random_mistral

    from wronai import tokens

    random_mistral.write(folder / "base", layers, hidden)
    tokens.extend(tokens.load(folder / "base")).save_pretrained(folder / "tokenizer")


def train(folder: Path, length: int, batch: int, settings_json: str) -> dict[str, int]:
    """The anonymous memory of the phases of a training of two steps on random blocks of `length` tokens."""
    from wronai import numerics, params, plan

    numerics.choose("native")
    plan.give_freed_memory_back()
    import datasets

    from wronai import qlora, tokens, training

    settings = params.Finetune.model_validate_json(settings_json)
    tokenizer = tokens.load(folder / "tokenizer")
    ids = [(7 * place) % 500 + 3 for place in range(length)]
    row = {"input_ids": ids, "labels": ids, "position_ids": list(range(length))}
    blocks = datasets.Dataset.from_list([row] * (2 * batch))
    peak, context = Peak(), plan.anonymous()
    model = qlora.load_quantized(folder / "base", tokenizer, settings.quantization, seed=42)
    loading = peak.phase()
    model = qlora.attach(model, tokenizer, settings)
    pad = tokenizer.pad_token_id
    training.mean_loss(model, blocks.select([0]), pad)
    work = folder / "work"
    qlora.tune(model, blocks, blocks.select([0]), settings, 42, work, pad_token_id=pad, log=lambda *_, **__: None)
    return {"context": context, "loading": loading, "training": peak.phase()}


def measured(folder: Path, length: int, batch: int, settings: Any) -> dict[str, int]:
    """`train` in a process of its own."""
    command = [sys.executable, __file__, "--train", str(folder), str(length), str(batch), settings.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    shutil.rmtree(folder / "work")  # or the next case would go on from its checkpoint
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def settings_of(**values: Any) -> Any:
    """WronAI's own parameters in bfloat16, with `values` over them."""
    from wronai import params

    finetune = params.read(ROOT / "params.yaml")["finetune"]
    finetune |= {"max_steps": 2, "gradient_accumulation_steps": 1, "eval_steps": 100, "save_steps": 100}
    finetune["quantization"] |= {"bnb_4bit_compute_dtype": "bfloat16"}
    return params.Finetune.model_validate(finetune | values)


def main(sizes: list[str]) -> None:
    """Print a row for each case."""
    from wronai import plan

    titles = ("hidden x layers", "tokens", "batch", "checkpointing", "loading", "training", "planned", "error")
    print(f"| {' | '.join(titles)} |\n{'| ---: ' * len(titles)}|")
    for size in sizes or SIZES:
        hidden, layers = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make = [sys.executable, __file__, "--make", name, str(hidden), str(layers)]
            subprocess.run(make, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
            shape = plan.read(folder / "base")
            for length, batch, checkpointing in itertools.product(LENGTHS, (1, 2), (True, False)):
                settings = settings_of(per_device_train_batch_size=batch, gradient_checkpointing=checkpointing)
                found = measured(folder, length, batch, settings)
                planned = plan.make(shape, settings, length, "cpu", found["context"])
                most = max(found["loading"], found["training"])
                row = [size, f"{length:,}", batch, "on" if checkpointing else "off"]
                row += map(plan.amount, (found["loading"], found["training"], planned.total))
                print(f"| {' | '.join(map(str, row))} | {planned.total / most - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_base(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["--train"]:
        print(json.dumps(train(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])))
    else:
        main(sys.argv[1:])
