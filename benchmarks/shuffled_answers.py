"""A deliberate regression: the default run, tuned on shuffled answers.

    python benchmarks/shuffled_answers.py [--words]

In a copy of this checkout, whose `dvc repro` must be up to date: training answers of one turn are exchanged within
their register, so that text, style and format stay as they are and only the sense between question and answer is
gone; or, with --words, the words of every answer are shuffled. Then the stages from tokenize_text on run as they stand.
Printed are the verdicts on both models against the base, and on the shuffled one against the model as it is.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsspec

from wronai import corpus, experiments, graph, params

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Train on shuffled answers and print what is said of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", action="store_true", help="shuffle the words of each answer instead")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
        for name in ("data/clean", "data/benchmarks", "data/scores/base", "models/base"):
            shutil.copytree(ROOT / name, copy / name)
        shuffle(copy / "data/clean/instructions/train.parquet", 1, words=asked.words)
        config = params.load(copy / "params.yaml")
        for name in graph.made(copy / "dvc.yaml", config):
            stage, _, instance = name.partition("@")
            if (
                stage in ("tokenize_text", "finetune_qlora", "merge_adapters", "evaluate_benchmarks")
                or "@merged" in name
            ):
                model, _, task = instance.partition("-")
                words = [word for word in (model, task) if word]
                subprocess.run([sys.executable, "-m", f"stages.{stage}", *words], cwd=copy, check=True)
        worse = json.loads((copy / "metrics/evaluate_benchmarks.json").read_text(encoding="utf-8"))
        files = fsspec.filesystem("file")
        both = [experiments.read(files, str(root / experiments.FOLDER)) for root in (ROOT, copy)]
        against, verdict = experiments.compare(both[0], both[1], config.evaluate.bootstrap_resamples, config.seed)
    print(against[against["verdict"] != "no difference"].to_string(index=False, float_format="{:.3f}".format))
    print(f"verdict on shuffled answers against the model as it is: {verdict}\n")
    print(table(json.loads((ROOT / "metrics/evaluate_benchmarks.json").read_text(encoding="utf-8")), worse))


def shuffle(path: Path, seed: int, *, words: bool) -> None:
    """Exchange the answers of the conversations of one turn within each register, or shuffle the words of each."""
    rows = corpus.read_table(path, corpus.INSTRUCTIONS, "clean_text")
    chance = random.Random(seed)
    if words:
        for row in rows:
            for message in row["messages"][1::2]:
                said = message["content"].split()
                message["content"] = " ".join(chance.sample(said, len(said)))
        corpus.write_table(rows, corpus.INSTRUCTIONS, path)
        return
    for register in corpus.REGISTERS:
        alike = [row for row in rows if row["register"] == register and len(row["messages"]) == 2]
        answers = [row["messages"][1] for row in alike]
        chance.shuffle(answers)
        for row, answer in zip(alike, answers, strict=True):
            row["messages"][1] = answer
    corpus.write_table(rows, corpus.INSTRUCTIONS, path)


def table(right: dict[str, Any], shuffled: dict[str, Any]) -> str:
    """The parts of the verdict of both runs."""
    lines = [f"{'':<22}{'as it is':>34}{'answers shuffled':>36}"]
    for name, of in (
        ("answers", lambda found: found["bits_per_byte"]["answers"]),
        ("documents", lambda found: found["bits_per_byte"]["documents"]),
        ("help of the question", lambda found: found["bits_per_byte"]["help_of_question"]),
        ("mean over tasks", lambda found: found["mean"]),
    ):
        cells = [
            f"{entry['difference']:+.3f} ({entry['difference_low']:+.3f} to {entry['difference_high']:+.3f}) "
            + entry["verdict"]
            for entry in (of(right), of(shuffled))
        ]
        lines.append(f"{name:<22}{cells[0]:>40}{cells[1]:>44}")
    lines.append(f"{'verdict':<22}{right['verdict']:>40}{shuffled['verdict']:>44}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
