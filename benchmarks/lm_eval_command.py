"""The numbers and the seconds of the plain `lm_eval` command beside those of score_benchmarks, on the same model.

    python benchmarks/lm_eval_command.py [--model FOLDER] [--entry NAME ...] [--num-fewshot N] [--limit N]

Both are run as commands of their own, on the tasks of each entry of benchmarks/tasks, in plain text and with the chat
template, each twice in turn; the shorter time counts. Both batch as params.yaml says. Tasks that need what lm_eval's
command has no word for (turns, a raw prompt) are asked in plain text alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from wronai import benchmarks, params

ROOT = Path(__file__).resolve().parent.parent
OURS = """\
import json, sys
from pathlib import Path
from wronai import numerics, params
model, bundle, out, shots, limit, chat = sys.argv[1:]
config = params.load(Path("params.yaml"))
numerics.choose(config.numerics)
numerics.deterministic(config.numerics, config.seed)
from wronai import backends, scoring
settings = config.evaluate.scoring.model_copy(update={"limit": json.loads(limit)})
engine = backends.open_model(Path(model), settings)
formats = ["wronai" if chat == "chat" else "plain"]
scoring.score_bundle(engine, Path(bundle), settings, int(shots), config.seed, formats).write(Path(out))
"""


def main() -> None:
    """Print a table of every metric from both, and one of the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/merged"))
    parser.add_argument("--entry", nargs="+", default=["language", "understanding"])
    parser.add_argument("--num-fewshot", type=int, default=0)
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()
    config = params.load(ROOT / "params.yaml")
    scores, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for entry in asked.entry:
            source = ROOT / config.evaluate.include_path
            benchmarks.prepare([entry], source, ROOT / "data" / "downloads" / "benchmarks", work)
            for chat in (False, True):
                tasks = [
                    name
                    for name in benchmarks.manifest(work / entry)["tasks"]
                    if not chat or can_chat(work / entry, name)
                ]
                times: dict[str, list[float]] = {"ours": [], "lm_eval": []}
                for _ in range(2):
                    times["ours"].append(ours(asked, work, entry, chat))
                    times["lm_eval"].append(theirs(asked, config, work, source / entry, tasks, chat))
                scores += beside(work, tasks, chat)
                found = {who: min(of_who) for who, of_who in times.items()}
                seconds.append(
                    {
                        "entry": entry,
                        "format": "wronai" if chat else "plain",
                        **found,
                        "ours / lm_eval": found["ours"] / found["lm_eval"],
                    }
                )
    print(pd.DataFrame(scores).round(6).to_string(index=False))
    print()
    print(pd.DataFrame(seconds).round(2).to_string(index=False))


def can_chat(bundle: Path, name: str) -> bool:
    """Whether the plain command asks the task as score_benchmarks does with the chat template."""
    with benchmarks.fresh_cache():
        told = benchmarks.load(bundle)[name].config.metadata
    return not {"format", "messages", "register"} & set(told)


def ours(asked: argparse.Namespace, work: Path, entry: str, chat: bool) -> float:
    """Seconds of scoring the bundle in a process of its own."""
    arguments = [
        asked.model,
        work / entry,
        work / "ours",
        asked.num_fewshot,
        json.dumps(asked.limit),
        "chat" if chat else "plain",
    ]
    return seconds_of([sys.executable, "-c", OURS, *map(str, arguments)], {})


def theirs(
    asked: argparse.Namespace, config: params.Params, work: Path, folder: Path, tasks: list[str], chat: bool
) -> float:
    """Seconds of the plain command."""
    settings = config.evaluate
    command = [
        "lm_eval", "run", "--model", "hf", "--device", "cpu", "--include_path", str(folder), "--tasks", *tasks,
        "--model_args", f"pretrained={asked.model},dtype={settings.dtype},max_length={settings.max_length}",
        "--batch_size", str(settings.batch_size), "--num_fewshot", str(asked.num_fewshot),
        "--seed", str(config.seed), "--output_path", str(work / "theirs"),
        *(["--limit", str(asked.limit)] if asked.limit else []),
        *(["--apply_chat_template"] if chat else []),
    ]  # fmt: skip
    return seconds_of(command, {"HF_DATASETS_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"})


def seconds_of(command: list[str], environment: dict[str, str]) -> float:
    """Seconds that a command takes; its output shows only if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began


def beside(work: Path, tasks: list[str], chat: bool) -> list[dict[str, Any]]:
    """A row for each task and metric, from the newest results of both."""
    newest = max((work / "theirs").rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    results = json.loads(newest.read_text(encoding="utf-8"))["results"]
    table = pd.read_parquet(work / "ours" / "scores.parquet")
    rows = []
    for (task, metric), of_task in table[table["task"].isin(tasks)].groupby(["task", "metric"]):
        theirs, found = results[task][f"{metric},none"], of_task["value"].mean()
        rows.append({"task": task, "metric": metric, "format": "wronai" if chat else "plain", "items": len(of_task),
                     "ours": found, "lm_eval": theirs, "difference": found - theirs})  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
