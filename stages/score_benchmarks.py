"""Score one model on the tasks of one bundle: `python -m stages.score_benchmarks base language`."""

from __future__ import annotations

import sys
from pathlib import Path

from wronai import numerics, params, tracking


def score_benchmarks(
    model: Path,
    bundle: Path,
    settings: params.Scoring,
    num_fewshot: int | None,
    seed: int,
    *,
    tuned: bool,
    out: Path,
) -> None:
    """Write what the model in the folder `model` scores on `bundle` to `out`, item by item.

    The base is asked in plain text; the tuned model in plain text and in the WronAI format.
    """
    from wronai import backends, scoring

    engine = backends.open_model(model, settings)
    formats: list[scoring.Format] = ["plain", "wronai"] if tuned else ["plain"]
    scoring.score_bundle(engine, bundle, settings, num_fewshot, seed, formats).write(out)


if __name__ == "__main__":
    model, task = sys.argv[1:]
    with tracking.stage("score_benchmarks", f"{model}-{task}") as (config, report):
        numerics.deterministic(config.numerics, config.seed)
        out = Path("data/scores") / model / task
        score_benchmarks(
            Path("models") / model,
            Path("data/benchmarks") / task,
            config.evaluate.scoring,
            config.evaluate.num_fewshot,
            config.seed,
            tuned=model == "merged",
            out=out,
        )
        report.read(out / "summary.json")
