"""What the scripts of this folder share: a random base of Mistral-7B's shape, random blocks, peaks, the table."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wronai import plan

ROOT = Path(__file__).parent.parent.parent
LENGTHS = (512, 1024, 2048, 4096)
STEPS = 30
# Dense bfloat16 products a second, by the makers' data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}


@dataclass(frozen=True)
class Case:
    """A training to measure: what is special about it, and the tokens of a block."""

    name: str
    length: int


@dataclass(frozen=True)
class Measured:
    """What a case took; bytes are those of the device, on a CPU anonymous memory."""

    tokens_per_second: float
    peak: int
    planned: int | None
    flops_per_token: float


def arguments(description: str | None) -> argparse.Namespace:
    """The command line that all of them take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--base", type=Path, help="a base made before; by default one is made and removed")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # for the process of one case
    return parser.parse_args()


def run(script: str, cases: Sequence[Case], asked: argparse.Namespace) -> None:
    """Run each case in a process of its own, one after another, and print the table last."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    rows = []
    with base(asked) as folder:
        for case in cases:
            command = [sys.executable, script, "--case", json.dumps([case.name, case.length]), "--base", str(folder)]
            started = time.monotonic()
            done = subprocess.run([*command, "--steps", str(asked.steps)], cwd=ROOT, capture_output=True, text=True)
            print(f"{case.name}, {case.length} tokens: {time.monotonic() - started:.0f} s", flush=True)
            found = re.findall(r"^measured (.*)$", done.stdout, re.MULTILINE)
            rows.append((case, Measured(**json.loads(found[-1])) if found else _why(done.stderr)))
    print(f"\n{asked.layers} layers of Mistral-7B on {device}, {asked.steps} steps, one block a step")
    print(f"{'case':34} {'tokens':>6} {'tok/s':>8} {'MFU':>6} {'peak GB':>8} {'plan GB':>8}")
    for case, measured in rows:
        print(
            f"{case.name:34} {case.length:6} " + (measured if isinstance(measured, str) else _cells(measured, device))
        )


def _why(stderr: str) -> str:
    """The last line of what a process that failed said."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "OutOfMemory" in line), lines[-1] if lines else "failed")[:90]


def _cells(measured: Measured, device: str) -> str:
    most = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    used = f"{measured.tokens_per_second * measured.flops_per_token / most:6.1%}" if most else f"{'-':>6}"
    planned = f"{measured.planned / 1e9:8.2f}" if measured.planned else f"{'-':>8}"
    return f"{measured.tokens_per_second:8,.0f} {used} {measured.peak / 1e9:8.2f} {planned}"


@contextmanager
def base(asked: argparse.Namespace) -> Iterator[Path]:
    """The folder of the base with as many layers as asked for."""
    if asked.base:
        yield asked.base
        return
    folder = Path(tempfile.mkdtemp())
    script = [sys.executable, str(ROOT / "benchmarks/random_mistral.py"), str(folder), "--layers", str(asked.layers)]
    try:
        subprocess.run(script, cwd=ROOT, check=True)
        yield folder
    finally:
        shutil.rmtree(folder)


def blocks(length: int, count: int, vocabulary: int) -> Any:
    """`count` blocks of `length` random ids, four examples in each, the second half of each example supervised."""
    import datasets
    import torch

    from wronai import tokens

    ids = torch.randint(3, vocabulary, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    example = length // 4
    places = [place % example for place in range(length)]
    return datasets.Dataset.from_list(
        [
            {
                "input_ids": row,
                "labels": [
                    id_ if place >= example // 2 else tokens.IGNORED for id_, place in zip(row, places, strict=True)
                ],
                "position_ids": places,
            }
            for row in ids
        ]
    )


def flops_per_token(config: Any, length: int) -> float:
    """Of the model: 2 a weight forward and 2 for the gradient of its input, as frozen weights have none of their own.

    Linear layers, head, and attention over half of an example on average; recomputation counts nothing.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_key_value_heads / config.num_attention_heads
    layer = 2 * hidden * hidden * (1 + heads) + 3 * hidden * inner
    attention = 2 * hidden * (length / 4) / 2
    return float(4 * (config.num_hidden_layers * (layer + attention) + config.vocab_size * hidden))


class Peak:
    """The most held while this was open: on a GPU by torch and CUDA's context, on a CPU as anonymous memory."""

    def __enter__(self) -> Peak:
        import torch

        self.bytes = 0
        self._gpu = torch.cuda.is_available()
        self._done = threading.Event()
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.bytes = max(self.bytes, plan.anonymous())

    def __exit__(self, *_: object) -> None:
        import torch

        self._done.set()
        if self._gpu:
            free, total = torch.cuda.mem_get_info()
            context = total - free - torch.cuda.memory_reserved()
            self.bytes = torch.cuda.max_memory_reserved() + context
        else:
            self._thread.join()
