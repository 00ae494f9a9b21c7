"""The ends of Mistral-7B (32,010 x 4,096), ten rows of each trained: `wronai.vocabulary` beside PEFT and transformers.

    python benchmarks/vocabulary.py [--steps 3]

Forward and backward of a Mistral whose one layer is next to nothing, every token supervised: as PEFT's trainable tokens
and transformers' loss do it, and after `vocabulary.install`. Each case is a process of its own with one thread. Prints
the median processor time of a step, which other programs on the machine change little, the peak of anonymous memory
above what the process held before (weights and libraries), and the ratios. Both ways must give the same loss and
gradients: the last column is their largest difference, each relative to the largest value of its tensor.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from wronai import plan

ROWS = list(range(32_000, 32_010))
HIDDEN = 4096
WAYS = ("PEFT", "ours")


class Peak(threading.Thread):
    """The largest anonymous memory of this process, looked at every two milliseconds, in bytes above the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes, self.bytes, self.ended = plan.anonymous(), 0, False

    def run(self) -> None:
        while not self.ended:
            self.bytes = max(self.bytes, plan.anonymous() - self.start_bytes)
            time.sleep(0.002)


def measure(way: str, dtype: str, tokens: int, steps: int, out: Path) -> None:
    """Print seconds and bytes as JSON; the loss and the gradients go to the file `out`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import MistralConfig, MistralForCausalLM

    from wronai import vocabulary

    torch.set_num_threads(1)
    torch.manual_seed(1)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    config = MistralConfig(vocab_size=len(ROWS) + ROWS[0], hidden_size=HIDDEN, intermediate_size=8, **shape)
    settings = {"embed_tokens": ROWS, "lm_head": ROWS}
    model = get_peft_model(
        MistralForCausalLM._from_config(config, dtype=getattr(torch, dtype)),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=settings),
    )
    if way == "ours":
        vocabulary.install(model)
    ids = torch.randint(0, ROWS[0], (1, tokens))
    ids[:, ::10] = torch.randint(ROWS[0], ROWS[0] + len(ROWS), ids[:, ::10].shape)
    peak, seconds = Peak(), []
    peak.start()
    for step in range(steps + 1):
        model.zero_grad()
        started = time.process_time()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if step:  # the first one also warms up
            seconds.append(time.process_time() - started)
    peak.ended = True
    trained = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    torch.save({"loss": loss.detach(), **trained}, out)
    print(json.dumps({"seconds": statistics.median(seconds), "bytes": peak.bytes}))


def difference(one: Path, other: Path) -> float:
    """The largest of all tensors: of their difference's largest absolute value to their own."""
    import torch

    left, right = torch.load(one), torch.load(other)
    if left.keys() != right.keys():
        sys.exit(f"gradients of {sorted(left.keys() ^ right.keys())} in one of them alone")
    return max(
        float((value - right[name]).abs().max() / value.abs().max()) for name, value in left.items() if value.any()
    )


def main(steps: int) -> None:
    """Print the table."""
    print(f"{'type':9} {'tokens':>6} {'seconds: PEFT':>13} {'ours':>6} {'ratio':>6}", end="")
    print(f" {'MB: PEFT':>9} {'ours':>6} {'ratio':>6} {'difference':>11}")
    for dtype in ("float32", "bfloat16"):
        for tokens in (128, 1024):
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder) / way for way in WAYS]
                peft, ours = (
                    run([way, dtype, str(tokens), str(steps), str(file)]) for way, file in zip(WAYS, files, strict=True)
                )
                apart = difference(*files)
            print(
                f"{dtype:9} {tokens:6,} {peft['seconds']:13.2f} {ours['seconds']:6.2f} "
                f"{peft['seconds'] / ours['seconds']:6.1f} {peft['bytes'] / 1e6:9,.0f} {ours['bytes'] / 1e6:6,.0f} "
                f"{peft['bytes'] / ours['bytes']:6.1f} {apart:11.1e}",
                flush=True,
            )


def run(arguments: list[str]) -> Any:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if len(sys.argv) == 6:
        measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--steps", type=int, default=3)
        main(parser.parse_args().steps)
