"""Compare the tuned models of two revisions or experiments on the same items: `python -m wronai.experiments A [B]`.

`dvc metrics diff` shows how two means differ; this says whether the difference is more than the choice of items. The
scores come out of DVC's cache, so nothing is run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from wronai import comparison, params

FOLDER = "data/scores/merged"
WORKSPACE = "workspace"  # what DVC calls the files as they are
COLUMNS = ("what", "metric", "items", "before", "after", "difference", "difference_low", "difference_high", "verdict")


@dataclass(frozen=True)
class Scores:
    """Of a tuned model: the scores of all tasks, what is told of each task, and the nats of held-out texts."""

    tasks: pd.DataFrame
    told: dict[str, Any]
    text: pd.DataFrame

    def of_text(self, kind: str, format_: str) -> pd.DataFrame:
        """The texts of a kind, with columns id, nats, bytes."""
        rows = self.text[(self.text["kind"] == kind) & (self.text["format"] == format_)]
        return rows[["id", "nats", "bytes"]]

    def of_tasks(self, names: set[str]) -> pd.DataFrame:
        """The scores of these tasks in the WronAI format, with columns task, metric, item, value."""
        rows = self.tasks[self.tasks["task"].isin(names) & (self.tasks["format"] == "wronai")]
        return rows.drop(columns="format")


def compare(before: Scores, after: Scores, resamples: int, seed: int) -> tuple[pd.DataFrame, str]:
    """A row for each thing that both were scored on, `after` less `before`, and the verdict on the whole.

    Columns are COLUMNS. The verdict is that of bits per byte on answers and documents, of how much the question helps,
    and of the mean over the leading metrics of the tasks that both have. Raises ValueError if they have none in common.
    """
    rows: list[dict[str, Any]] = []
    for kind, format_ in (("documents", "plain"), ("answers", "wronai"), ("retention", "plain")):
        found = comparison.compare_bits(
            before.of_text(kind, format_), after.of_text(kind, format_), resamples, seed, kind
        )
        rows.append({"what": kind, "metric": "bits_per_byte", "items": found["texts"], **found})
    own, others = (
        (before.of_text(kind, "wronai"), after.of_text(kind, "wronai")) for kind in ("answers", "answers to others")
    )
    if len(others[0]):
        found = comparison.compare_help(own, others, resamples, seed)
        rows.append({"what": "help_of_question", "metric": "bits_per_byte", "items": found["texts"], **found})
    common = set(before.tasks["task"]) & set(after.tasks["task"])
    if not common:
        raise ValueError("the two have no task in common")
    both = comparison.paired(before.of_tasks(common), after.of_tasks(common), ["task", "metric", "item"])
    by_task, leading = comparison.compare_tasks(both, after.told, resamples, seed)
    if leading:
        found = comparison.compare_mean(leading, resamples, seed)
        rows.append({"what": "mean", "metric": "leading", "items": found["tasks"], **found})
    verdict = comparison.overall(row["verdict"] for row in rows if row["what"] != "retention")
    rows += [
        {"what": task, "metric": metric, **entry}
        for task, by_metric in by_task.items()
        for metric, entry in by_metric.items()
    ]
    table = pd.DataFrame(rows).rename(columns={"base": "before", "tuned": "after"})
    return table[list(COLUMNS)], verdict


def read(files: Any, folder: str) -> Scores:
    """What score_benchmarks and score_text left in `folder` of the file system `files`, as fsspec has them."""
    told: dict[str, Any] = {}
    tasks = []
    for name in sorted(files.ls(folder, detail=False)):
        if Path(name).name == "text":
            continue
        with files.open(f"{name}/summary.json", mode="rb") as file:
            told |= json.load(file)
        with files.open(f"{name}/scores.parquet", mode="rb") as file:
            tasks.append(pd.read_parquet(file))
    with files.open(f"{folder}/text/text.parquet", mode="rb") as file:
        text = pd.read_parquet(file)
    if not tasks:
        raise ValueError(f"{folder} holds the scores of no task")
    return Scores(pd.concat(tasks, ignore_index=True), told, text)


def at(revision: str) -> Scores:
    """The scores of the tuned model at a commit, branch, tag or DVC experiment. ValueError if DVC cannot read them."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from dvc_data.index import DataIndexError

    try:
        return read(DVCFileSystem(rev=None if revision == WORKSPACE else revision), FOLDER)
    except (DvcException, SCMError, DataIndexError, OSError) as error:
        found = " ".join(str(error).split())
        raise ValueError(
            f"{revision}: its scores cannot be read ({found}); expected a commit, branch or experiment whose "
            f"{FOLDER} is in DVC's cache (`dvc pull` brings it from a remote)"
        ) from None


def main(arguments: list[str]) -> int:
    """Print the comparison as a table."""
    parser = argparse.ArgumentParser(prog="python -m wronai.experiments", description=__doc__)
    parser.add_argument("before", help="a commit, branch, tag or DVC experiment")
    parser.add_argument("after", nargs="?", default=WORKSPACE, help="another; by default the workspace")
    asked = parser.parse_args(arguments)
    try:
        config = params.load(Path("params.yaml"))
        resamples = config.evaluate.bootstrap_resamples
        table, verdict = compare(at(asked.before), at(asked.after), resamples, config.seed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(table.to_string(index=False, float_format="{:.4f}".format))
    print(f"verdict on {asked.after} against {asked.before}: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
