"""Two revisions are compared by what DVC's cache holds of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wronai import experiments, files


def run(*command: str) -> None:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    subprocess.run(command, check=True, capture_output=True, env={**environment, **names})


def write(right: int, nats: float, task: str = "animals") -> None:
    """What score_benchmarks and score_text leave, with `right` of 40 items right and `nats` for each text."""
    folder = Path(experiments.FOLDER)
    (folder / "mine").mkdir(parents=True, exist_ok=True)
    (folder / "text").mkdir(exist_ok=True)
    values = (np.arange(40) < right).astype(float)
    rows = {"task": task, "format": "wronai", "metric": "acc", "item": range(40), "value": values}
    pd.DataFrame(rows).to_parquet(folder / "mine" / "scores.parquet", index=False)
    told = {task: {"higher_is_better": {"acc": True}, "leading": "acc"}}
    files.write_json(folder / "mine" / "summary.json", told)
    texts = [
        {"kind": kind, "format": format_, "id": f"{kind}{n}", "nats": nats + n, "bytes": 100}
        for kind, format_ in (("documents", "plain"), ("answers", "wronai"), ("retention", "plain"))
        for n in range(10)
    ]
    texts += [{**row, "kind": "answers to others", "nats": 220.0} for row in texts if row["kind"] == "answers"]
    pd.DataFrame(texts).to_parquet(folder / "text" / "text.parquet", index=False)


def commit(name: str) -> None:
    run("dvc", "add", "--quiet", "data/scores")
    run("git", "add", ".")
    run("git", "commit", "--quiet", "-m", name)
    run("git", "tag", name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    write(right=10, nats=200.0)
    commit("before")
    write(right=30, nats=210.0)
    commit("after")
    return tmp_path


def test_each_difference_has_its_interval_and_verdict(project: Path) -> None:
    table, verdict = experiments.compare(experiments.at("before"), experiments.at("after"), 200, 1)
    assert verdict == "mixed", "more items right, and more bits"
    found = table.set_index(["what", "metric"])
    assert found.loc[("mean", "leading")]["difference"] == 0.5
    assert found.loc[("help_of_question", "bits_per_byte")]["verdict"] == "worse", "others' answers stayed as they were"
    acc = found.loc[("animals", "acc")]
    assert (acc["before"], acc["after"], acc["difference"], acc["items"]) == (0.25, 0.75, 0.5, 40)
    assert 0.2 < acc["difference_low"] < 0.5 < acc["difference_high"] < 0.8
    assert acc["verdict"] == "better"
    for kind in ("documents", "answers", "retention"):
        assert found.loc[(kind, "bits_per_byte")]["verdict"] == "worse", "more bits"
    backward, _ = experiments.compare(experiments.at("after"), experiments.at("before"), 200, 1)
    backward = backward.set_index(["what", "metric"])
    assert backward.loc[("animals", "acc")]["difference"] == -0.5


def test_the_workspace_is_a_revision_too(project: Path) -> None:
    write(right=10, nats=200.0)
    table, verdict = experiments.compare(experiments.at("before"), experiments.at(experiments.WORKSPACE), 200, 1)
    assert set(table["verdict"]) == {verdict} == {"no difference"}


def test_a_revision_that_is_not_there_says_what_is_expected(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match=r"nowhere: its scores cannot be read .*expected a commit, branch or experiment"
    ):
        experiments.at("nowhere")


def test_scores_that_the_cache_has_lost_say_so(project: Path) -> None:
    run("dvc", "gc", "--workspace", "--force")
    with pytest.raises(ValueError, match=r"before: its scores cannot be read .*dvc pull"):
        experiments.at("before")


def test_a_regression_is_flagged(project: Path) -> None:
    write(right=5, nats=230.0)
    _, verdict = experiments.compare(experiments.at("after"), experiments.at(experiments.WORKSPACE), 200, 1)
    assert verdict == "worse"


def test_revisions_without_a_task_in_common_are_not_compared(project: Path) -> None:
    write(right=10, nats=200.0, task="plants")
    with pytest.raises(ValueError, match="the two have no task in common"):
        experiments.compare(experiments.at("before"), experiments.at(experiments.WORKSPACE), 200, 1)


def test_the_command_prints_a_table_or_one_message(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent
    (project / "params.yaml").write_text((root / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert experiments.main(["before", "after"]) == 0
    said = capsys.readouterr().out
    assert "animals" in said and said.endswith("verdict on after against before: mixed\n")
    assert experiments.main(["nowhere"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("nowhere: ")
