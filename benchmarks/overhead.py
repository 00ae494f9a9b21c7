"""What the pipeline adds around the steps of `dvc repro finetune_qlora`, and its share of a training of one hour.

    python benchmarks/overhead.py [--steps N]

In a clone of this commit, with a random base of the embedded default's shape, since the base does not matter here. The
stages before the training run unmeasured; then the command is timed as a whole, and inside it every training step and
every pass over the validation blocks. What is left is DVC, imports, loading and quantizing, the run key, tracking,
checkpoints and saving. Of it, what lies between the steps grows with their number, and the rest is there once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
HOUR = 3600.0


def main() -> None:
    """Print where the seconds of the command went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="optimizer steps; those of params.yaml")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        house = work / "house"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(house)], check=True)
        configure(house, work / "base", work / "steps.json", arguments.steps)
        make_base(house, work / "base")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
        dvc = ["dvc", "repro", "--quiet"]
        subprocess.run(
            [*dvc, "tokenize_text", "prepare_base"], cwd=house, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        began = time.perf_counter()
        subprocess.run([*dvc, "--single-item", "finetune_qlora"], cwd=house, env=environment, check=True)
        whole = time.perf_counter() - began
        found = json.loads((work / "steps.json").read_text(encoding="utf-8"))
    print(table(whole, found["steps"], found["validation"]))


def configure(house: Path, base: Path, out: Path, steps: int | None) -> None:
    """Let the clone train on the folder `base`, with the meter around its stage."""
    yaml = YAML()
    yaml.width = 4096
    values = yaml.load(house / "params.yaml")
    values["model"] |= {"base": "local", "path": str(base), "built_from": str(base)}
    if steps:
        values["finetune"]["max_steps"] = steps
    with (house / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    graph = yaml.load(house / "dvc.yaml")
    graph["stages"]["finetune_qlora"]["cmd"] = f"python benchmarks/others/steps.py {out}"
    with (house / "dvc.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(graph, file)


def make_base(house: Path, out: Path) -> None:
    """Write a random base in the shape of `model.scratch`, with a tokenizer of the sample's documents, to `out`."""
    sys.path.insert(0, str(ROOT))
    import torch
    from transformers import MistralConfig, MistralForCausalLM
    from transformers.utils.logging import disable_progress_bar

    # Before what imports bitsandbytes, which warns of a kernel that is there for inference alone.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from wronai import params, pretraining

    disable_progress_bar()
    scratch = params.load(house / "params.yaml").model.scratch
    lines = [line for file in sorted((ROOT / "data/sample/documents").glob("*.jsonl")) for line in file.open()]
    tokenizer = pretraining.train_tokenizer([json.loads(line)["text"] for line in lines], scratch.vocab_size)
    shape = scratch.model_dump(include=set(MistralConfig().to_dict()) - {"vocab_size"})
    torch.manual_seed(0)
    MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
            **shape,
        )
    ).save_pretrained(out)
    tokenizer.save_pretrained(out)


def table(whole: float, steps: list[list[float]], validation: list[list[float]]) -> str:
    """Seconds of each part, and the share of an hour; `steps` and `validation` are starts and ends.

    A step's mark ends before its optimizer: that is the usual gap to the next step, and what a longer gap holds beside
    validation is a checkpoint, a log or a curve.
    """
    gaps = [after - before for (_, before), (after, _) in pairwise(steps)]
    inside = sum(end - start for start, end in steps) + statistics.median(gaps) * len(steps)
    loop = steps[-1][1] - steps[0][0] + statistics.median(gaps)
    passes = [end - start for start, end in validation]
    within = sum(end - start for start, end in validation if steps[0][0] < start < steps[-1][1])
    between = loop - inside - within
    once = whole - loop - (sum(passes) - within)
    share = (once + between / inside * HOUR) / HOUR
    rows = {
        "the whole command": whole,
        f"{len(steps):,} training steps": inside,
        f"{len(passes)} passes over the validation blocks": sum(passes),
        "between the steps: checkpoints, logs, curves": between,
        "once: DVC, imports, loading, run key, tracking, saving": once,
    }
    lines = [f"{name:56} {seconds:8.1f} s" for name, seconds in rows.items()]
    return "\n".join([*lines, f"{'of a training of one hour, without validation':56} {share:8.2%}"])


if __name__ == "__main__":
    main()
