"""Check every benchmark before anything is trained for it, and bundle its tasks with their items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wronai import benchmarks, hub_benchmarks, tracking


def prepare_benchmarks(tasks: Sequence[str], include_path: Path, fetched: Path, out: Path) -> dict[str, Any]:
    """Write a bundle for each of `tasks` to `out`, from the folders of `include_path` or lm_eval's own tasks.

    The data sets of the latter lie in `fetched`, where `make benchmarks-fetch` brings them.
    """
    out.mkdir(parents=True, exist_ok=True)
    return {"tasks": benchmarks.prepare(tasks, include_path, fetched, out)}


if __name__ == "__main__":
    with tracking.stage("prepare_benchmarks") as (config, report):
        report(
            prepare_benchmarks(
                config.evaluate.tasks,
                Path(config.evaluate.include_path),
                tracking.store_root() / hub_benchmarks.FOLDER,
                Path("data/benchmarks"),
            )
        )
