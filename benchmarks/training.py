"""Useful tokens per second of training: `finetune_qlora` beside what people train with otherwise.

    python benchmarks/training.py [--venvs FOLDER] [--shape embedded|small|medium] [--dtype float32|bfloat16]

Useful is a token of an example; padding is not. All get the same random Mistral, the sample instructions in the WronAI
format, LoRA, optimizer, precision and threads, with gradient checkpointing and native numerics, and about as many
tokens a step: a block of packed examples, or for the script that does not pack as many examples as a block holds on
average. Each runs in a process of its own, in turn, for several rounds, so that all meet the machine in the same
state; the first steps of each are not counted. The ten added tokens' rows are trained by ours and the bare script
alone. Virtual environments are made in FOLDER on first use; what cannot be installed or run is named with its error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ROOT / "benchmarks" / "others"
LIMIT = 1800  # seconds that one system may take in one round
SHAPES = {
    # The base of the embedded default: small products, so what surrounds them counts.
    "embedded": {"vocab_size": 2058, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5, "heads": 6},
    "small": {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 8, "heads": 8},
    # The proportions of Mistral-7B at a quarter of its width: the products of the model take most of the time.
    "medium": {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 8, "heads": 8},
}
# What each of the others pins, as far as it is imported here; the rest of their requirements is for GPUs and services.
PINS = ("torch==2.13.0", "bitsandbytes==0.50.2")


@dataclass(frozen=True)
class System:
    """A way to train: its script, and the packages of its environment; none is this project's own environment.

    `alone` is installed without its requirements, which would bring what is for GPUs and services.
    """

    name: str
    script: str
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


SYSTEMS = (
    System("finetune_qlora", "ours.py"),
    System("Trainer + PEFT, padded", "bare.py"),
    System(
        "TRL, packed",
        "trl_sft.py",
        (*PINS, "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0", "trl==1.16.0"),
    ),
    System(
        "LLaMA-Factory, packed",
        "llamafactory_sft.py",
        (
            *PINS,
            *("transformers==5.6.0", "peft==0.18.1", "accelerate==1.11.0", "datasets==4.0.0", "trl==0.24.0"),
            *("av==16.0.0", "einops", "fastapi", "fire", "matplotlib", "omegaconf", "pandas", "pydantic", "pyyaml"),
            *("scipy", "sentencepiece", "sse-starlette", "tiktoken", "torchdata==0.11.0", "tyro<0.9", "uvicorn"),
        ),
        ("llamafactory==0.9.5",),
    ),
    System(
        "Axolotl, packed",
        "axolotl_sft.py",
        (
            *PINS,
            *("transformers==5.16.1", "peft==0.20.0", "accelerate==1.13.0", "datasets==4.8.4", "trl==1.9.0"),
            *("addict", "art", "colorama", "einops", "evaluate", "fire", "huggingface_hub==1.17.0", "jsonschema"),
            *("kernels>=0.16.0,<0.17.0", "numba", "pillow", "posthog==6.7.11", "pycountry", "pydantic==2.12.5"),
            *("pydantic-extra-types", "python-dotenv==1.0.1", "PyYAML==6.0.3", "requests", "schedulefree==1.4.1"),
            *("scipy", "sentencepiece", "tiktoken", "tokenizers==0.23.1", "triton", "typer==0.25.1", "wandb"),
        ),
        (
            *("axolotl==0.19.0", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6", "fastcore"),
            *("immutabledict", "langdetect==1.0.9", "mistral-common==1.11.5", "optimum==1.16.2", "zstandard==0.22.0"),
        ),
    ),
)


def main() -> None:
    """Run every system in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, help="folder of the others' virtual environments; a temporary one")
    parser.add_argument("--shape", choices=SHAPES, default="medium")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--block", type=int, default=1024, help="tokens in a packed block")
    parser.add_argument("--steps", type=int, default=8, help="steps that count, in each round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[Path(system.script).stem for system in SYSTEMS])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = prepare(work, arguments)
        venvs = arguments.venvs.resolve() if arguments.venvs else work / "venvs"
        chosen = [system for system in SYSTEMS if not arguments.only or Path(system.script).stem in arguments.only]
        found: dict[str, list[dict[str, Any]]] = {}
        failed: dict[str, str] = {}
        pythons: dict[str, Path] = {}
        for system in chosen:
            try:
                pythons[system.name] = environment(system, venvs)
            except subprocess.CalledProcessError as error:
                failed[system.name] = f"does not install: {last_line(error.stderr)}"
        for round_ in range(arguments.rounds):
            for system in chosen:
                if system.name in failed:
                    continue
                started = time.monotonic()
                try:
                    answer = measure(system, pythons[system.name], run, work)
                except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                    failed[system.name] = f"does not run: {last_line(error.stderr) or error}"
                    print(f"round {round_ + 1} | {system.name} | {failed[system.name]}", flush=True)
                    continue
                found.setdefault(system.name, []).append(answer)
                speed = answer["useful"] / answer["seconds"]
                took = time.monotonic() - started
                print(f"round {round_ + 1} | {system.name} | {speed:,.0f} useful tok/s | {took:.0f} s", flush=True)
    print(table(found, failed))


def prepare(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write base, examples and blocks to `work`; returns the run that all are given."""
    sys.path.insert(0, str(ROOT))
    import torch
    from transformers import MistralConfig, MistralForCausalLM
    from transformers.utils.logging import disable_progress_bar

    # Before what imports bitsandbytes, which warns of a kernel that is there for inference alone.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from wronai import params, pretraining, prompt, tokens

    config = params.load(ROOT / "params.yaml")
    sample = ROOT / "data" / "sample"
    documents = [json.loads(line)["text"] for file in sorted(sample.glob("documents/*.jsonl")) for line in file.open()]
    tokenizer = tokens.extend(pretraining.train_tokenizer(documents, config.model.scratch.vocab_size))
    shape = dict(SHAPES[arguments.shape])
    heads = shape.pop("heads")
    torch.manual_seed(config.seed)
    model = MistralForCausalLM(
        MistralConfig(
            **shape,
            num_attention_heads=heads,
            num_key_value_heads=2,
            sliding_window=None,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    disable_progress_bar()
    model.to(getattr(torch, arguments.dtype)).save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    examples = [json.loads(line) for file in sorted(sample.glob("instructions/*.jsonl")) for line in file.open()]
    blocks, ledger = tokens.blocks(tokenizer, examples, arguments.block)
    tokens.write(blocks, work / "blocks.parquet")
    count = 0
    with (work / "examples.jsonl").open("w") as file, (work / "texts.jsonl").open("w") as texts:
        for example in examples:
            ids, labels = tokens.encode(tokenizer, example["messages"], example["register"])
            if len(ids) > arguments.block or tokens.forges(tokenizer, example["messages"]):
                continue
            row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
            file.write(json.dumps(row) + "\n")
            # LLaMA-Factory tokenizes itself: a question and an answer, and its template adds the begin token.
            text = prompt.render(example["messages"], example["register"], "", "</s>")
            answer = text.rindex(prompt.ANSWER) + len(prompt.ANSWER)
            texts.write(json.dumps({"instruction": text[:answer], "input": "", "output": text[answer:]}) + "\n")
            count += len(ids)
    (work / "dataset_info.json").write_text(json.dumps({"wronai": {"file_name": "texts.jsonl"}}), encoding="utf-8")
    per_block = ledger.kept / ledger.blocks
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads; {arguments.dtype}; "
        f"{model.num_parameters() / 1e6:.1f}M parameters ({arguments.shape}); {ledger.kept:,} examples of "
        f"{count / ledger.kept:.0f} tokens; {ledger.blocks} blocks of {arguments.block}, {per_block:.1f} examples each",
        flush=True,
    )
    lora = config.finetune.lora
    return {
        "work": str(work),
        "base": str(work / "base"),
        "block": arguments.block,
        "batch": round(per_block),
        "dtype": arguments.dtype,
        "steps": arguments.warm_up + arguments.steps + 1,
        "warm_up": arguments.warm_up,
        "threads": arguments.threads,
        "seed": config.seed,
        "learning_rate": config.finetune.learning_rate,
        "optim": config.finetune.optim,
        "pad_token_id": tokenizer.pad_token_id,
        "added_ids": tokens.added_ids(tokenizer),
        "lora": {
            "r": lora.r,
            "lora_alpha": lora.lora_alpha,
            "lora_dropout": lora.lora_dropout,
            "target_modules": list(lora.target_modules),
        },
    }


def environment(system: System, venvs: Path) -> Path:
    """The interpreter that has the packages of `system`, made in `venvs` unless it is there already."""
    if not system.packages:
        return Path(sys.executable)
    home = venvs / Path(system.script).stem
    python = home / "bin" / "python"
    done = home / ".installed"
    wanted = "\n".join((*system.packages, *system.alone))
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {system.name} in {home}", flush=True)
    venv.create(home, with_pip=True, clear=True)  # what an interrupted install left
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *system.packages], check=True, capture_output=True, text=True)
    if system.alone:
        subprocess.run([*pip, "--no-deps", *system.alone], check=True, capture_output=True, text=True)
    done.write_text(wanted, encoding="utf-8")
    return python


def measure(system: System, python: Path, run: dict[str, Any], work: Path) -> dict[str, Any]:
    """What the script of `system` measured in a process of its own."""
    scratch = work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    described, answer = work / "run.json", work / "answer.json"
    described.write_text(json.dumps(run | {"scratch": str(scratch)}), encoding="utf-8")
    path = str(ROOT) if not system.packages else ""
    subprocess.run(
        [str(python), str(OTHERS / system.script), str(described), str(answer)],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(run["threads"]),
            "GOMP_SPINCOUNT": "20000",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(work / "hub"),
            "CUDA_VISIBLE_DEVICES": "",
            "ACCELERATE_USE_CPU": "true",
            "AXOLOTL_DO_NOT_TRACK": "1",
            "DO_NOT_TRACK": "1",
            "WANDB_MODE": "disabled",
        },
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return dict(json.loads(answer.read_text(encoding="utf-8")))


def last_line(text: str | bytes | None) -> str:
    """The last line of what a process wrote, which of a traceback is the error."""
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    lines = [line.strip() for line in decoded.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def table(found: dict[str, list[dict[str, Any]]], failed: dict[str, str]) -> str:
    """One row a system: useful tokens a second over all rounds, the slowest and fastest round, and what else counts."""
    speed = {
        name: sum(row["useful"] for row in rows) / sum(row["seconds"] for row in rows) for name, rows in found.items()
    }
    best = max((value for name, value in speed.items() if name != SYSTEMS[0].name), default=float("nan"))
    lines = [
        "| system | version | useful tok/s (rounds) | to the best other | useful tok a core-second | padding "
        "| peak memory, GB | trained |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in found.items():
        rounds = [row["useful"] / row["seconds"] for row in rows]
        useful, given = (sum(row[key] for row in rows) for key in ("useful", "given"))
        lines.append(
            f"| {name} | {rows[0]['version']} | {speed[name]:,.0f} ({min(rounds):,.0f} to {max(rounds):,.0f}) "
            f"| {speed[name] / best:.2f} | {useful / sum(row['processor'] for row in rows):,.0f} "
            f"| {1 - useful / given:.1%} | {max(row['peak'] for row in rows) / 1e9:.2f} | {rows[0]['trainable']:,} |"
        )
    return "\n".join(["", *lines, *(f"{name}: {why}" for name, why in failed.items())])


if __name__ == "__main__":
    main()
