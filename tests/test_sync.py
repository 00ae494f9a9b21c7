"""What the store missed is mirrored, what it lost is rebuilt from git and the experiments, and nothing is doubled."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import short
from mlflow.tracking import MlflowClient

from wronai import tracking

AWAY = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


def sync(project: Path, *options: str) -> list[str]:
    return short.run(project, sys.executable, "-m", "wronai.tracking", "sync", *options).splitlines()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short graph, run and committed, with two experiments, while the MLflow server was away all the time."""
    folder = short.make(tmp_path_factory.mktemp("project"))
    output = short.run(folder, "dvc", "repro", **AWAY)
    assert output.count("tracking: the MLflow store") == len(short.STAGES), "one warning a stage"
    short.commit(folder)
    for r in (2, 3):
        told = {"-S": f"finetune.lora.r={r}", "-n": f"r{r}"}
        short.run(folder, "dvc", "exp", "run", *[word for pair in told.items() for word in pair], **AWAY)
        short.run(folder, "git", "checkout", "-q", "--force", "main")
    short.run(folder, "dvc", "checkout", "-q")
    return folder


def content(project: Path) -> dict[str, Any]:
    """What the store has of each state and stage, without what differs from run to run."""
    found: dict[str, Any] = {}
    for run in [*short.runs(project, "parent"), *short.runs(project, "stage")]:
        metrics = {
            key: value
            for key, value in run.data.metrics.items()
            if "measured." not in key and not key.startswith("system/")
        }
        key = (run.data.tags.get("wronai.stage", "parent"), run.data.tags.get("wronai.state"))
        found[str(key)] = (run.data.params, metrics, run.info.status)
    return found


def test_what_a_server_missed_is_mirrored_once_and_complete(project: Path) -> None:
    waiting = len(list((project / ".tracking").glob("*.json")))
    assert waiting >= 3 * 4, "a run of each stage that ran, and three parents"
    assert sync(project) == [
        f"mirrored {waiting} runs that waited in .tracking/",
        "rebuilt 0 parent runs from git; 3 were there",
    ]
    parents = short.runs(project, "parent")
    assert sorted(parent.info.run_name for parent in parents if "wronai.experiment" in parent.data.tags) == ["r2", "r3"]
    assert len(parents) == 3
    for parent in parents:
        short.complete(project, parent)
        artifacts = MlflowClient(tracking.default_uri(project)).list_artifacts(parent.info.run_id)
        assert {file.path for file in artifacts} == {"params.yaml", "dvc.lock", "report", "adapter_config.json"}
    assert {"train", "publish_report"} <= {*short.nested(project, parents[1])}
    assert not list((project / ".tracking").glob("*.json")) and not list((project / ".tracking").glob("*.artifacts"))
    assert "mirrored 0 runs" in sync(project)[0]
    assert len(short.runs(project, "parent")) == 3


def test_a_deleted_store_is_rebuilt_from_git_and_the_experiments(project: Path) -> None:
    before = content(project)
    (project / "mlflow.db").unlink()
    assert sync(project)[1] == "rebuilt 3 parent runs from git; 0 were there"
    assert sync(project)[1] == "rebuilt 0 parent runs from git; 3 were there"
    after = content(project)
    assert {key: told for key, told in after.items() if "score" not in key and "publish" not in key} == {
        key: told for key, told in before.items() if "score" not in key and "publish" not in key
    }, "an instance's metrics are in its out, which git has not"
    for parent in short.runs(project, "parent"):
        assert parent.data.tags["wronai.rebuilt"] == "true"
        assert parent.data.tags["wronai.lock"] in {short.lock_of(project, name).md5 for name in ("HEAD", "r2", "r3")}
        assert "train" in short.nested(project, parent)


def test_commits_that_no_branch_ends_in_are_rebuilt_on_demand(project: Path) -> None:
    short.run(project, "dvc", "exp", "apply", "r2")
    short.commit(project)
    (project / "mlflow.db").unlink()
    assert sync(project, "--all-commits")[1] == "rebuilt 3 parent runs from git; 1 were there"
    named = {run.info.run_name: run for run in short.runs(project, "parent")}
    assert {"r2", "r3"} < {*named}


def test_a_stage_that_was_killed_is_closed_and_its_run_belongs_to_no_state(project: Path) -> None:
    train = (project / "train.py").read_text()
    (project / "train.py").write_text(
        train.replace("        report({", "        import os; os.kill(os.getpid(), 9)\n        report({")
    )
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=project, env=short.environment(), capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (project / "train.py").write_text(train)
    assert [run.info.status for run in short.runs(project, "stage")].count("RUNNING") == 1
    assert sync(project)[0] == "mirrored 1 runs that waited in .tracking/"
    (killed,) = [run for run in short.runs(project, "stage") if run.info.status == "KILLED"]
    assert "mlflow.parentRunId" not in killed.data.tags
