"""The real graph in a temporary clone, with smaller parameters: how tests make one, run it, and record what it made."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from wronai import params
from wronai.graph import made

ROOT = Path(__file__).parent.parent
SMALLER = {
    "model": {
        "scratch": {
            "vocab_size": 1024,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_steps": 30,
        }
    },
    "finetune": {"max_steps": 12, "eval_steps": 5, "save_steps": 5},
    "evaluate": {"tasks": ["language"], "answers": {"generations": 4, "samples": 2, "max_new_tokens": 24}},
}
SMALLEST = {  # what still trains, writes three checkpoints, merges and scores
    "model": {"scratch": {**SMALLER["model"]["scratch"], "vocab_size": 512, "max_steps": 8}},
    "finetune": {"max_steps": 6, "eval_steps": 3, "save_steps": 2, "logging_steps": 1},
    "merge": {"parity_blocks": 2},
    "evaluate": {
        "tasks": ["riddles"],
        "max_length": 64,
        "max_bytes_per_source": 2000,
        "answers": {"generations": 2, "samples": 2, "max_new_tokens": 8},
        "bootstrap_resamples": 100,
    },
}
ITEMS = 16  # of each benchmark; evaluate.limit would mark every number as partial
RIDDLES = """\
task: riddles
dataset_path: json
dataset_kwargs:
  data_files:
    test: benchmarks/tasks/riddles/riddles.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""


def overlay(values: dict[str, Any], smaller: Mapping[str, Any]) -> None:
    for key, value in smaller.items():
        if isinstance(value, Mapping):
            overlay(values[key], value)
        else:
            values[key] = value


def environment(**more: str) -> dict[str, str]:
    """The environment of a user who has activated the project's, and nothing else."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "OMP_"))}
    return env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "DVC_NO_ANALYTICS": "1", **more}


def run(clone: Path, *command: str, **more: str) -> str:
    """The output of a command in the clone; the test fails with that output if the command does."""
    done = subprocess.run(command, cwd=clone, env=environment(**more), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def ran(output: str) -> list[str]:
    """The stages that a dvc command executed, in their order, those with a matrix once for each instance."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage ")]


def graph(clone: Path) -> list[str]:
    """Every stage of the clone, by name, those with a matrix once for each instance."""
    return sorted(made(clone / "dvc.yaml", params.load(clone / "params.yaml")))


def copy(target: Path, smaller: Mapping[str, Any] = SMALLER, more: Sequence[Any] = ()) -> Path:
    """A repository with the project's files as they are now, and parameters and benchmarks that make it small.

    Each of `more` is called with the clone before its first commit.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    for path in (target / "benchmarks/tasks").rglob("*.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:ITEMS]))
    (target / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(target / "metrics", ignore_errors=True)
    yaml = YAML()
    values = yaml.load(target / "params.yaml")
    overlay(values, smaller)
    yaml.dump(values, target / "params.yaml")
    for change in more:
        change(target)
    run(target, "git", "init", "-q")
    commit(target)
    return target


def add_riddles(clone: Path) -> None:
    """A benchmark of four items in the clone, which no entry of evaluate.tasks names yet."""
    folder = clone / "benchmarks/tasks/riddles"
    folder.mkdir()
    rows = [
        {"id": f"r{number}", "question": f"Ile to {number} i 2?", "choices": [str(number + 2), "nic"], "answer": 0}
        for number in range(4)
    ]
    (folder / "riddles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "riddles.yaml").write_text(RIDDLES)


def commit(clone: Path) -> None:
    run(clone, "git", "add", "-A")
    run(clone, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "state")


def record(clone: Path) -> dict[str, str]:
    """What must repeat to the byte: the hash of every dependency and out in the lock file, and the metrics."""
    lock = YAML(typ="safe").load(clone / "dvc.lock")["stages"]
    hashes = {
        f"{stage} {kind} {entry['path']}": entry["md5"]
        for stage, locked in lock.items()
        for kind in ("deps", "outs")
        for entry in locked[kind]
    }
    return hashes | {path.name: path.read_text(encoding="utf-8") for path in sorted((clone / "metrics").iterdir())}
