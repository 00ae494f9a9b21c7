"""Decide where the tuned model is better than its base, and where it is not: paired differences with intervals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wronai import comparison, tracking

MODELS = ("base", "merged")


def evaluate_benchmarks(
    scores: Path, tasks: Sequence[str], resamples: int, seed: int, samples: Path, differences: Path
) -> dict[str, Any]:
    """Compare what score_text and score_benchmarks left below `scores` for the base and for the tuned model.

    Answers to read go to the JSON Lines `samples`, every difference with its interval to the CSV file `differences`.
    What is left of entries that `tasks` no longer names is removed. With a limit on the items, all that was found
    stands under "partial". Raises FileNotFoundError for scores that are not there.
    """
    _forget(scores, tasks)
    base, tuned = ([_read(scores / model / task) for task in tasks] for model in MODELS)
    text = {model: _text(scores / model / "text") for model in MODELS}
    told = {name: entry for _, summary in tuned for name, entry in summary.items()}
    frames = [pd.concat([frame for frame, _ in of_model], ignore_index=True) for of_model in (base, tuned)]
    compared, leading = _benchmarks(frames[0], frames[1], told, resamples, seed)
    bits = _bits(text["base"][0], text["merged"][0], resamples, seed)
    bits["documents_xz"] = text["base"][2]["xz_bits_per_byte"]
    mean = comparison.compare_mean(leading, resamples, seed) if leading else None
    found = {
        "bits_per_byte": bits,
        "benchmarks": compared,
        **({"mean": mean} if mean else {}),
        "tasks": told,
        "generations": _generations(text["merged"][1]),
        "verdict": comparison.overall(
            [
                bits["answers"]["verdict"],
                bits["documents"]["verdict"],
                *([bits["help_of_question"]["verdict"]] if "help_of_question" in bits else []),
                *([mean["verdict"]] if mean else []),
            ]
        ),
    }
    _write_samples(text["base"][1], text["merged"][1], samples)
    _write_differences(found, differences)
    partial = text["base"][2]["partial"] or any(entry["items"] < entry["items_of_task"] for entry in told.values())
    return {"partial": found} if partial else found


def _forget(scores: Path, tasks: Sequence[str]) -> None:
    """Remove what no stage of now has made: DVC hashes the folder as a whole, on a fresh clone without it."""
    kept = {scores / model / name for model in MODELS for name in (*tasks, "text")}
    for path in sorted([*scores.glob("*"), *scores.glob("*/*")]):
        if path not in kept and not any(path in inner.parents for inner in kept):
            print(f"{path}: of no entry of evaluate.tasks any more; removed", flush=True)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _read(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    if not (folder / "summary.json").is_file():
        raise FileNotFoundError(f"{folder}: no scores; the stage score_benchmarks writes them")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return pd.read_parquet(folder / "scores.parquet"), summary


def _text(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    if not (folder / "summary.json").is_file():
        raise FileNotFoundError(f"{folder}: no scores; the stage score_text writes them")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return pd.read_parquet(folder / "text.parquet"), pd.read_parquet(folder / "answers.parquet"), summary


def _benchmarks(
    base: pd.DataFrame, tuned: pd.DataFrame, told: dict[str, Any], resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """By task and metric the comparison of the base in plain text with the tuned model in the WronAI format.

    And for each task whose leading metric is a share of which more is better, the frame of that metric.
    """
    own = tuned[tuned["format"] == "wronai"]
    both = comparison.paired(base.drop(columns="format"), own.drop(columns="format"), ["task", "metric", "item"])
    found, leading = comparison.compare_tasks(both, told, resamples, seed)
    for key, rows in tuned[tuned["format"] == "plain"].groupby(["task", "metric"]):
        task, metric = (str(part) for part in key)
        found[task][metric]["tuned_plain"] = float(rows["value"].mean())
    return found, leading


def _bits(base: pd.DataFrame, tuned: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """Bits per byte of held-out answers, each model in its own format, and of documents and retention by source."""

    def part(frame: pd.DataFrame, kind: str, format_: str) -> pd.DataFrame:
        return frame[(frame["kind"] == kind) & (frame["format"] == format_)]

    def compared(before: pd.DataFrame, after: pd.DataFrame, name: str) -> dict[str, Any]:
        columns = ["id", "nats", "bytes"]
        return comparison.compare_bits(before[columns], after[columns], resamples, seed, name)

    found: dict[str, Any] = {}
    for kind, format_ in (("answers", "wronai"), ("documents", "plain"), ("retention", "plain")):
        before, after = part(base, kind, "plain"), part(tuned, kind, format_)
        found[kind] = compared(before, after, kind)
        found[kind]["by_source"] = {
            str(source): compared(of_source, after[after["source"] == source], f"{kind} {source}")
            for source, of_source in before.groupby("source")
        }
    own, others = (
        (part(base, kind, "plain"), part(tuned, kind, "wronai")) for kind in ("answers", "answers to others")
    )
    if len(others[0]):
        found["help_of_question"] = comparison.compare_help(own, others, resamples, seed)
    plain = part(tuned, "answers", "plain")
    found["answers"]["tuned_plain"] = comparison.bits_per_byte(plain["nats"], plain["bytes"])
    return found


def _generations(answers: pd.DataFrame) -> dict[str, Any]:
    """How the tuned model's answers to held-out questions end, as it would be asked and at temperature zero."""
    own, greedy = (answers[answers["way"] == way] for way in ("own", "own greedy"))
    return {
        "answers": len(own),
        "closed": float(own["closed"].mean()),
        "closed_greedy": float(greedy["closed"].mean()),
        "ended_greedy": float(greedy["ended"].mean()),
        "mean_tokens": float(own["tokens"].mean()),
    }


def _write_samples(base: pd.DataFrame, tuned: pd.DataFrame, path: Path) -> None:
    """Each question with the tuned model's answers in its own register, formal and informal, and the base's."""
    said = {way: rows.set_index("id") for way, rows in pd.concat([base, tuned], ignore_index=True).groupby("way")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in base.to_dict("records"):
            name = row["id"]
            line = {
                "id": name,
                "register": row["register"],
                "question": row["question"],
                "reference": row["reference"],
                "tuned": said["own"].at[name, "answer"],
                "closed": bool(said["own"].at[name, "closed"]),
                "formal": said["formal"].at[name, "answer"],
                "informal": said["informal"].at[name, "answer"],
                "base": row["answer"],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_differences(found: dict[str, Any], path: Path) -> None:
    """A row for each difference: what, metric, both models, the difference, its interval and the verdict."""
    rows = [
        {"name": f"{what} {metric}", "what": what, "metric": metric, **entry}
        for what, metric, entry in [
            *(
                (kind, "bits_per_byte", found["bits_per_byte"][kind])
                for kind in ("documents", "answers", "help_of_question", "retention")
                if kind in found["bits_per_byte"]
            ),
            *([("mean", "leading", found["mean"])] if "mean" in found else []),
            *(
                (task, metric, entry)
                for task, by_metric in sorted(found["benchmarks"].items())
                for metric, entry in sorted(by_metric.items())
            ),
        ]
    ]
    columns = ["name", "what", "metric", "base", "tuned", "difference", "difference_low", "difference_high", "verdict"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows)[columns].to_csv(path, index=False)


if __name__ == "__main__":
    with tracking.stage("evaluate_benchmarks") as (config, report):
        report(
            evaluate_benchmarks(
                Path("data/scores"),
                config.evaluate.tasks,
                config.evaluate.bootstrap_resamples,
                config.seed,
                Path("metrics/samples.jsonl"),
                Path("metrics/differences.csv"),
            )
        )
