"""Two revisions are compared by what DVC's cache holds of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wronai import experiments, tracking


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
    tracking.write_json(folder / "mine" / "summary.json", {task: {"higher_is_better": {"acc": True}}})
    texts = [
        {"kind": kind, "format": format_, "id": f"{kind}{n}", "nats": nats + n, "bytes": 100}
        for kind, format_ in (("documents", "plain"), ("answers", "wronai"), ("retention", "plain"))
        for n in range(10)
    ]
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
    found = experiments.compare("before", "after", 200, 1).set_index(["what", "metric"])
    acc = found.loc[("animals", "acc")]
    assert (acc["before"], acc["after"], acc["difference"], acc["items"]) == (0.25, 0.75, 0.5, 40)
    assert 0.2 < acc["difference_low"] < 0.5 < acc["difference_high"] < 0.8
    assert acc["verdict"] == "better"
    for kind in ("documents", "answers", "retention"):
        assert found.loc[(kind, "bits_per_byte")]["verdict"] == "worse", "more bits"
    backward = experiments.compare("after", "before", 200, 1).set_index(["what", "metric"])
    assert backward.loc[("animals", "acc")]["difference"] == -0.5


def test_the_workspace_is_a_revision_too(project: Path) -> None:
    write(right=10, nats=200.0)
    found = experiments.compare("before", experiments.WORKSPACE, 200, 1)
    assert set(found["verdict"]) == {"no difference"}


def test_a_revision_that_is_not_there_says_what_is_expected(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match=r"nowhere: its scores cannot be read .*expected a commit, branch or experiment"
    ):
        experiments.compare("nowhere", "after", 200, 1)


def test_scores_that_the_cache_has_lost_say_so(project: Path) -> None:
    run("dvc", "gc", "--workspace", "--force")
    with pytest.raises(ValueError, match=r"before: its scores cannot be read .*dvc pull"):
        experiments.compare("before", "after", 200, 1)


def test_revisions_without_a_task_in_common_are_not_compared(project: Path) -> None:
    write(right=10, nats=200.0, task="plants")
    with pytest.raises(ValueError, match="before and workspace have no task in common"):
        experiments.compare("before", experiments.WORKSPACE, 200, 1)


def test_the_command_prints_a_table_or_one_message(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent
    (project / "params.yaml").write_text((root / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert experiments.main(["before", "after"]) == 0
    assert "animals" in capsys.readouterr().out
    assert experiments.main(["nowhere"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("nowhere: ")
