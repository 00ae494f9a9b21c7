"""A short graph of tiny stages in a repository of its own, with real DVC and the project's own tracking."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import clones
from clones import ROOT, commit, ran
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML

from wronai import graph, params, tracking

TRAIN = """
import json
from pathlib import Path
from wronai import tracking
if __name__ == "__main__":
    with tracking.stage("train") as (config, report):
        r = config.finetune.lora.r
        report.source("corpus", {"sha256": "ab"}, {"licence": "CC0-1.0"})
        for step in range(3):
            report.log(step, loss=r / (1 + step))
        report.measure(tokens_per_second=100 * r)
        out = Path("models/adapter")
        out.mkdir(parents=True, exist_ok=True)
        (out / "adapter_config.json").write_text(json.dumps({"r": r}))
        (out / "weights.txt").write_text(f"{r} {config.seed} " * 100)
        report({"loss": r / 3})
"""
SCORE = """
import sys
from pathlib import Path
from wronai import files, tracking
if __name__ == "__main__":
    model = sys.argv[1]
    with tracking.stage("score", model) as (config, report):
        held = Path("models/adapter/weights.txt").read_text() if model == "merged" else ""
        out = Path("data/scores") / model / "summary.json"
        files.write_json(out, {"acc": len(held) / 1000 + config.seed})
        report.read(out)
"""
PUBLISH = """
import json
from pathlib import Path
from wronai import graph, tracking
if __name__ == "__main__":
    with tracking.stage("publish_report") as (config, report):
        stages = graph.made(Path("dvc.yaml"), config)
        del stages["publish_report"]
        Path("report").mkdir(exist_ok=True)
        Path("report/report.md").write_text(Path("metrics/train.json").read_text())
        report.parent(
            stages,
            {"report": Path("report"), "adapter_config.json": Path("models/adapter/adapter_config.json")},
            uploads=["models/adapter"] if config.tracking.log_adapter else [],
        )
"""
GRAPH = {
    "stages": {
        "train": {
            "desc": "Train",
            "cmd": "python train.py",
            "deps": ["train.py"],
            "params": ["seed", "finetune.lora.r"],
            "outs": ["models/adapter"],
            "metrics": [{"metrics/train.json": {"cache": False}}],
        },
        "score": {
            "desc": "Score",
            "matrix": {"model": ["base", "merged"]},
            "cmd": "python score.py ${item.model}",
            "deps": ["score.py", "models/adapter"],
            "params": ["seed"],
            "outs": ["data/scores/${item.model}"],
        },
        "publish_report": {
            "desc": "Publish",
            "cmd": "python publish.py",
            "deps": ["publish.py", "metrics/train.json", "data/scores", "models/adapter"],
            "params": ["seed", "finetune", "tracking"],
            "outs": [{"report": {"persist": True}}],
        },
    }
}
__all__ = ["commit", "ran"]
STAGES = ["train", "score@base", "score@merged", "publish_report"]


def make(folder: Path) -> Path:
    """The short graph in `folder`, committed, with nothing run yet."""
    for name, code in (("train", TRAIN), ("score", SCORE), ("publish", PUBLISH)):
        (folder / f"{name}.py").write_text(code)
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump(GRAPH, file)
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    shutil.copyfile(ROOT / ".gitignore", folder / ".gitignore")
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "config", "core.autostage", "false")
    (folder / "models").mkdir()
    (folder / "models/.gitignore").write_text("/adapter\n")
    (folder / "data/scores").mkdir(parents=True)
    (folder / "data/scores/.gitignore").write_text("/base\n/merged\n")
    commit(folder)
    return folder


def environment(**more: str) -> dict[str, str]:
    """The environment of a user, without what this test run was told, who finds this checkout's modules."""
    return clones.environment(PYTHONPATH=str(ROOT), **more)


def run(folder: Path, *command: str, **more: str) -> str:
    """What a command in the folder printed; the test fails with that if the command does."""
    return clones.run(folder, *command, PYTHONPATH=str(ROOT), **more)


def runs(folder: Path, kind: str, uri: str | None = None) -> list[Any]:
    """The MLflow runs of a kind, parent or stage, oldest first."""
    client = MlflowClient(uri or opened(folder))
    ids = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.`wronai.kind` = '{kind}'", order_by=["attributes.start_time ASC"]))


def opened(folder: Path) -> str:
    """The URI of the project's store under a name of its own: MLflow keeps the file of a deleted one open by name."""
    store = Path(tracking.default_uri(folder).removeprefix("sqlite:///"))
    link = store.with_name(f"mlflow.db-{store.stat().st_ino}")
    if not link.exists():
        link.hardlink_to(store)
    return f"sqlite:///{link}"


def nested(folder: Path, parent: Any, uri: str | None = None) -> list[str]:
    """The names of the stage runs under a parent run, in the order of the graph."""
    found = runs(folder, "stage", uri)
    names = [run.info.run_name for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return sorted(names, key=STAGES.index)


def complete(folder: Path, parent: Any) -> None:
    """Fail unless the parent run has every parameter, every stage's metrics, and its bytes in DVC's cache."""
    values = params.flatten(params.load(folder / "params.yaml"))
    assert set(parent.data.params) == set(values)
    assert float(parent.data.params["finetune.lora.r"]) == 3 * parent.data.metrics["train.loss"]
    for stage in ("train", "score_base", "score_merged"):
        assert f"{stage}.measured.seconds" in parent.data.metrics
    assert parent.info.status == "FINISHED"
    tags = parent.data.tags
    for path in ("models/adapter", "data/scores/base", "data/scores/merged", "report"):
        md5 = tags[f"out.{path}"]
        assert (folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).exists()


def lock_of(folder: Path, name: str) -> graph.Lock:
    """The dvc.lock of HEAD, or of the experiment with that name."""
    found = run(folder, "git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}").split()
    revision = name if name == "HEAD" else found[0]
    done = subprocess.run(["git", "show", f"{revision}:dvc.lock"], cwd=folder, capture_output=True, check=True)
    return graph.parse(done.stdout)
