"""Compare the tuned models of two revisions or experiments on the same items: `python -m wronai.experiments A [B]`.

`dvc metrics diff` shows how two means differ; this says whether the difference is more than the choice of items. The
scores come out of DVC's cache, so nothing is run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from wronai import comparison, params

FOLDER = "data/scores/merged"
WORKSPACE = "workspace"  # what DVC calls the files as they are


def compare(before: str, after: str, resamples: int, seed: int) -> pd.DataFrame:
    """A row for each thing that the tuned models of both revisions were scored on, `after` less `before`.

    Columns what, metric, items, before, after, difference, difference_low, difference_high, verdict. Raises ValueError
    for a revision that git does not know or whose scores DVC's cache does not hold, and for one without such scores.
    """
    old, new = _scores(before), _scores(after)
    rows: list[dict[str, Any]] = []
    for kind, format_ in (("documents", "plain"), ("answers", "wronai"), ("retention", "plain")):
        parts = [text[(text["kind"] == kind) & (text["format"] == format_)] for _, _, text in (old, new)]
        columns = ["id", "nats", "bytes"]
        found = comparison.compare_bits(parts[0][columns], parts[1][columns], resamples, seed, kind)
        rows.append({"what": kind, "metric": "bits_per_byte", "items": found["texts"], **found})
    tasks = sorted(set(old[0]["task"]) & set(new[0]["task"]))
    if not tasks:
        raise ValueError(f"{before} and {after} have no task in common")
    for task in tasks:
        earlier, later = (
            scores[(scores["task"] == task) & (scores["format"] == "wronai")].drop(columns="format")
            for scores, _, _ in (old, new)
        )
        both = comparison.paired(earlier, later, ["task", "metric", "item"])
        for metric, frame in both.groupby("metric"):
            better = bool(new[1][task]["higher_is_better"].get(str(metric), True))
            name = f"{task} {metric}"
            found = comparison.compare(frame, resamples, seed, name, higher_is_better=better)
            rows.append({"what": task, "metric": str(metric), **found})
    columns = ["what", "metric", "items", "base", "tuned", "difference", "difference_low", "difference_high", "verdict"]
    return pd.DataFrame(rows)[columns].rename(columns={"base": "before", "tuned": "after"})


def _scores(revision: str) -> tuple[pd.DataFrame, dict[str, Any], pd.DataFrame]:
    """Of the tuned model at `revision`: the scores of all tasks, what is told of each task, and its texts."""
    from dvc.api import DVCFileSystem  # type: ignore[import-untyped]
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]
    from dvc.scm import SCMError  # type: ignore[import-untyped]
    from dvc_data.index import DataIndexError

    try:
        files = DVCFileSystem(rev=None if revision == WORKSPACE else revision)
        folders = sorted(files.ls(FOLDER, detail=False))
        told: dict[str, Any] = {}
        scores = []
        for folder in folders:
            if Path(folder).name == "text":
                continue
            with files.open(f"{folder}/summary.json", encoding="utf-8", mode="r") as file:
                told |= json.load(file)
            with files.open(f"{folder}/scores.parquet", mode="rb") as file:
                scores.append(pd.read_parquet(file))
        with files.open(f"{FOLDER}/text/text.parquet", mode="rb") as file:
            text = pd.read_parquet(file)
    except (DvcException, SCMError, DataIndexError, OSError) as error:
        found = " ".join(str(error).split())
        raise ValueError(
            f"{revision}: its scores cannot be read ({found}); expected a commit, branch or experiment whose "
            f"{FOLDER} is in DVC's cache (`dvc pull` brings it from a remote)"
        ) from None
    if not scores:
        raise ValueError(f"{revision}: {FOLDER} holds the scores of no task")
    return pd.concat(scores, ignore_index=True), told, text


def main(arguments: list[str]) -> int:
    """Print the comparison as a table."""
    parser = argparse.ArgumentParser(prog="python -m wronai.experiments", description=__doc__)
    parser.add_argument("before", help="a commit, branch, tag or DVC experiment")
    parser.add_argument("after", nargs="?", default=WORKSPACE, help="another; by default the workspace")
    asked = parser.parse_args(arguments)
    try:
        config = params.load(Path("params.yaml"))
        found = compare(asked.before, asked.after, config.evaluate.bootstrap_resamples, config.seed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(found.to_string(index=False, float_format="{:.4f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
