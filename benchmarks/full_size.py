"""The pipeline at the size of Mistral-7B on a machine without a GPU: time and peak anonymous memory of each part.

    python benchmarks/full_size.py FOLDER [--layers 32]

Makes a random base of that shape in FOLDER (14.5 GB; it is made once), and a copy of this commit beside it in which
the stages run with `profiles/mistral-7b.yaml`, blocks of 128 tokens and five optimizer steps of one block. The
training is killed (SIGKILL) after its third step and run again. Last, the merged model is loaded by transformers.
FOLDER needs 45 GB. Anonymous memory is what a process holds beside mapped files, which the kernel can drop.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
LENGTH, STEPS, KILLED_AFTER = 128, 5, 3
OVERRIDES = {
    "model.base": "local",
    "model.repository": None,
    "model.revision": None,
    "tokenize.max_length": LENGTH,
    "tokenize.max_share_truncated": 1.0,  # the sample's conversations were not written for 128 tokens
    "tokenize.max_share_dropped": 1.0,
    "finetune.max_steps": STEPS,
    "finetune.gradient_accumulation_steps": 1,
    "finetune.save_steps": 1,
    "finetune.eval_steps": STEPS,
    "finetune.logging_steps": 1,
    "merge.parity_blocks": 2,
    "merge.min_equal_next_tokens": 0.5,  # random weights prefer no token: rounding decides among many
}
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
turns = [{"role": "user", "content": "Co to jest?"}]
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
with torch.no_grad():
    print(tuple(model(**ids).logits.shape))
"""


@dataclass
class Part:
    """A process that ran: its name, seconds, and the largest anonymous memory in bytes."""

    name: str
    seconds: float
    peak: int


def main() -> None:
    """Run every part and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    base, house = folder / f"base-{arguments.layers}", folder / "house"
    parts: list[Part] = []
    try:
        rehearse(base, arguments.layers, house, parts)
    finally:
        print(f"\n{arguments.layers} layers, blocks of {LENGTH} tokens, {os.cpu_count()} cores")
        print(f"{'part':40} {'seconds':>8} {'peak anonymous GB':>18}")
        for part in parts:
            print(f"{part.name:40} {part.seconds:8,.0f} {part.peak / 1e9:18.2f}")


def rehearse(base: Path, layers: int, house: Path, parts: list[Part]) -> None:
    """Run every part in `house`, a clone that is made anew, and add what it took to `parts`."""
    if not (base / "model.safetensors.index.json").is_file():
        script = [sys.executable, str(ROOT / "benchmarks/random_mistral.py"), str(base)]
        parts.append(run("make the random base", [*script, "--layers", str(layers)], ROOT))
    shutil.rmtree(house, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(house)], check=True)
    subprocess.run(
        [sys.executable, "-m", "wronai.profiles", "mistral-7b"], cwd=house, check=True, stdout=subprocess.DEVNULL
    )
    override(house / "params.yaml", base)
    for stage in ("download_corpus", "clean_text", "prepare_base", "tokenize_text"):
        parts.append(run(stage, stage_command(stage), house))
    shorten(house)
    parts.append(
        run(f"finetune_qlora, killed after step {KILLED_AFTER}", stage_command("finetune_qlora"), house, kill=True)
    )
    parts.append(run("finetune_qlora, resumed", stage_command("finetune_qlora"), house))
    parts.append(run("merge_adapters", stage_command("merge_adapters"), house))
    parts.append(run("load the merged model", [sys.executable, "-c", LOAD, str(house / "models/merged")], house))


def stage_command(stage: str) -> list[str]:
    return [sys.executable, "-m", f"stages.{stage}"]


def override(path: Path, base: Path) -> None:
    """Write OVERRIDES over the params.yaml at `path`, with the folder `base` for the base."""
    yaml = YAML()
    yaml.width = 4096
    values = yaml.load(path)
    for key, value in {**OVERRIDES, "model.path": str(base), "model.built_from": str(base)}.items():
        section, last = values, key.split(".")
        for name in last[:-1]:
            section = section[name]
        section[last[-1]] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(values, file)


def shorten(house: Path) -> None:
    """Keep two validation blocks: an evaluation of all 75 takes a quarter of an hour."""
    import pyarrow.parquet as pq

    path = house / "data/tokens/validation.parquet"
    pq.write_table(pq.read_table(path).slice(0, 2), path)


def run(name: str, command: list[str], cwd: Path, kill: bool = False) -> Part:
    """Run `command` to its end, or with `kill` until its checkpoint of step KILLED_AFTER is whole, then SIGKILL."""
    print(f"== {name}", flush=True)
    started, peak, killed = time.monotonic(), 0, False
    environment = {**os.environ, "PYTHONPATH": str(cwd)}
    process = subprocess.Popen(command, cwd=cwd, env=environment)
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        done = (cwd / ".checkpoints").glob(f"*/checkpoint-{KILLED_AFTER}/.complete") if kill else iter(())
        if next(done, None):
            os.kill(process.pid, signal.SIGKILL)
            killed = True
            process.wait()
        time.sleep(0.02)
    if process.returncode != (-signal.SIGKILL if kill else 0) or kill != killed:
        sys.exit(f"{name}: exit code {process.returncode}")
    return Part(name, time.monotonic() - started, peak)


def anonymous(pid: int) -> int:
    """The anonymous memory of a process in bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
