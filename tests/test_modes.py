"""Each mode in which DVC runs a pipeline leaves one complete parent run in MLflow for each state that ran.

What these tests see is the table of docs/dvc.md: `test_the_page_says_what_was_seen` holds it to them.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import short
from mlflow.tracking import MlflowClient

from wronai import tracking

ROOT = Path(__file__).parent.parent
KINDS = ("parent", "stage")
SEEN: dict[str, tuple[str, str]] = {}  # mode, as the test's docstring says it → what ran, what MLflow shows


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short graph, with nothing run yet."""
    return short.make(tmp_path_factory.mktemp("project"))


@pytest.fixture
def before(project: Path, request: pytest.FixtureRequest) -> Iterator[set[str]]:
    """The parent runs from before; afterwards what the test saw is kept, and the workspace is again as committed."""
    there = (project / "mlflow.db").exists()
    parents, stages = ({run.info.run_id for run in short.runs(project, kind)} if there else set() for kind in KINDS)
    yield parents
    executed = [run.info.run_name for run in short.runs(project, "stage") if run.info.run_id not in stages]
    SEEN[request.function.__doc__] = (ran(executed), shown(len(new(project, parents)), executed))
    short.run(project, "git", "checkout", "-q", "--force", "main")
    short.run(project, "dvc", "checkout", "-q")


def ran(executed: list[str]) -> str:
    """The stages by how often each was executed, in the order of the graph."""
    counts = {stage: executed.count(stage) for stage in short.STAGES if stage in executed}
    return (
        ", ".join(f"{count} × `{stage}`" if count > 1 else f"`{stage}`" for stage, count in counts.items()) or "nothing"
    )


def shown(parents: int, executed: list[str]) -> str:
    """What is new in MLflow."""
    if not executed:
        return "nothing new"
    if not parents:
        return f"no new parent run; {len(executed)} more below the one of the state"
    return f"{parents} parent run{'s' * (parents > 1)}, {len(executed)} stage runs below"


def new(project: Path, before: set[str]) -> list[Any]:
    return [run for run in short.runs(project, "parent") if run.info.run_id not in before]


def experiments(project: Path) -> set[str]:
    return set(short.run(project, "dvc", "exp", "list", "--name-only", "--all-commits").split())


def lead_both_ways(project: Path, parents: list[Any]) -> None:
    """Each row is named after an experiment whose dvc.lock has the hash and the outs that the row tells."""
    for parent in parents:
        short.complete(project, parent)
        name = parent.info.run_name
        assert parent.data.tags["wronai.experiment"] == name
        lock = short.lock_of(project, name)
        assert parent.data.tags["wronai.lock"] == lock.md5
        told = {tag[4:]: md5 for tag, md5 in parent.data.tags.items() if tag.startswith("out.")}
        assert told == {path: md5 for outs in lock.outs.values() for path, md5 in outs.items()}


def test_repro(project: Path, before: set[str]) -> None:
    """`dvc repro`"""
    output = short.run(project, "dvc", "repro")
    assert sorted(short.ran(output)) == sorted(short.STAGES)
    short.commit(project)
    (parent,) = short.runs(project, "parent")
    short.complete(project, parent)
    assert short.nested(project, parent) == short.STAGES
    assert parent.data.tags["wronai.lock"] == short.lock_of(project, "HEAD").md5
    assert parent.info.run_name == parent.data.tags["wronai.commit"][:9]


def test_repro_with_nothing_to_do(project: Path, before: set[str]) -> None:
    """`dvc repro` once more"""
    assert short.ran(short.run(project, "dvc", "repro")) == []
    assert new(project, before) == []


def test_repro_by_force_adds_its_runs_to_the_parent_of_the_state(project: Path, before: set[str]) -> None:
    """`dvc repro --force`"""
    assert len(short.ran(short.run(project, "dvc", "repro", "--force"))) == 4
    assert new(project, before) == []
    (parent,) = short.runs(project, "parent")[:1]
    assert short.nested(project, parent) == sorted(2 * short.STAGES, key=short.STAGES.index)
    history = MlflowClient(tracking.default_uri(project)).get_metric_history(parent.info.run_id, "train.loss")
    assert len(history) == 1


def test_exp_run(project: Path, before: set[str]) -> None:
    """`dvc exp run -S …`"""
    output = short.run(project, "dvc", "exp", "run", "-S", "finetune.lora.r=2")
    assert "score@merged" in short.ran(output)
    parents = new(project, before)
    assert [parent.data.params["finetune.lora.r"] for parent in parents] == ["2"]
    lead_both_ways(project, parents)
    assert {parent.info.run_name for parent in parents} <= experiments(project)


def test_exp_run_in_a_temporary_folder(project: Path, before: set[str]) -> None:
    """`dvc exp run --temp -S …`"""
    short.run(project, "dvc", "exp", "run", "--temp", "--name", "in-temp", "-S", "finetune.lora.r=3")
    parents = new(project, before)
    assert [parent.info.run_name for parent in parents] == ["in-temp"]
    lead_both_ways(project, parents)


def test_a_sweep_from_the_queue_on_two_workers(project: Path, before: set[str]) -> None:
    """A sweep of three, `dvc exp run --queue -S …=4,8,12`, then `dvc queue start -j 2`"""
    known = experiments(project)
    short.run(project, "dvc", "exp", "run", "--queue", "-S", "finetune.lora.r=4,8,12")
    short.run(project, "dvc", "queue", "start", "-j", "2")
    wait(project)
    parents = new(project, before)
    assert sorted(parent.data.params["finetune.lora.r"] for parent in parents) == ["12", "4", "8"]
    lead_both_ways(project, parents)
    assert {parent.info.run_name for parent in parents} == experiments(project) - known
    for parent in parents:
        assert short.nested(project, parent)[0] == "train" and len(short.nested(project, parent)) >= 3


def test_run_all(project: Path, before: set[str]) -> None:
    """Two in the queue, then `dvc exp run --run-all`"""
    known = experiments(project)
    short.run(project, "dvc", "exp", "run", "--queue", "-S", "finetune.lora.r=9,10")
    short.run(project, "dvc", "exp", "run", "--run-all")
    parents = new(project, before)
    assert sorted(parent.data.params["finetune.lora.r"] for parent in parents) == ["10", "9"]
    lead_both_ways(project, parents)
    assert {parent.info.run_name for parent in parents} == experiments(project) - known


def test_exp_apply_brings_a_state_back_and_no_new_run(project: Path, before: set[str]) -> None:
    """`dvc exp apply`, then `dvc repro`"""
    short.run(project, "dvc", "exp", "apply", "in-temp")
    assert short.ran(short.run(project, "dvc", "repro")) == []
    assert json.loads((project / "models/adapter/adapter_config.json").read_text()) == {"r": 3}
    assert new(project, before) == []


def test_a_restore_from_the_run_cache_finds_the_run_of_its_state(project: Path, before: set[str]) -> None:
    """`dvc repro` of a state that the run cache has"""
    text = (project / "params.yaml").read_text()
    lines = [line for line in text.splitlines() if line.strip().startswith("r: ")]
    (project / "params.yaml").write_text(text.replace(lines[0], lines[0].replace("16", "3")))
    output = short.run(project, "dvc", "repro")
    assert short.ran(output) == ["publish_report"], "the others come from the run cache"
    assert new(project, before) == []
    (parent,) = [run for run in short.runs(project, "parent") if run.info.run_name == "in-temp"]
    assert "in-temp" in experiments(project)
    assert short.nested(project, parent).count("publish_report") == 2


def test_two_experiments_of_the_same_state_are_one_run(project: Path, before: set[str]) -> None:
    """`dvc exp run --force` of a state that ran under another name"""
    short.run(project, "dvc", "exp", "run", "--force", "--name", "again", "-S", "finetune.lora.r=3")
    assert new(project, before) == []
    (parent,) = [run for run in short.runs(project, "parent") if run.info.run_name == "in-temp"]
    assert parent.data.tags["wronai.experiments"] == "in-temp again"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("dvc repro --dry", "Data and pipelines are up to date."),
        ("dvc repro --single-item train", "Stage 'train' didn't change"),
        ("dvc queue status", "Success"),
        ("dvc queue logs in-queue", "Running stage 'train'"),
        ("dvc exp branch in-temp rank-3", "Git branch 'rank-3' has been created from experiment 'in-temp'"),
        ("dvc params diff HEAD in-temp", "finetune.lora.r"),
        ("dvc metrics diff HEAD in-temp --md", "| metrics/train.json | loss"),
        ("dvc config cache.type reflink,hardlink,copy", ""),
        ("dvc checkout --relink", "Relinked successfully"),
        (
            "dvc gc --workspace --all-commits --all-experiments --dry",
            "This will remove all cache except items used",
        ),
        ("dvc exp remove in-queue", "Removed experiments: 'in-queue'"),
    ],
)
def test_the_other_commands_of_the_page(project: Path, command: str, said: str) -> None:
    if command == "dvc queue logs in-queue":
        short.run(project, "dvc", "exp", "run", "--queue", "--name", "in-queue", "-S", "finetune.lora.r=11")
        short.run(project, "dvc", "queue", "start", "-j", "1")
        wait(project)
    assert said in short.run(project, *command.split())
    page = (ROOT / "docs/dvc.md").read_text(encoding="utf-8")
    assert " ".join(command.split()[:2]) in page and all(word in page for word in command.split() if word[:2] == "--")


def test_the_page_says_what_was_seen() -> None:
    if len(SEEN) < 10:
        pytest.skip("only some of the modes were tried")
    page = (ROOT / "docs/dvc.md").read_text(encoding="utf-8")
    table = page.split("<!-- modes -->\n")[1].split("<!-- /modes -->")[0]
    rows = [f"| {mode} | {what} | {seen} |" for mode, (what, seen) in SEEN.items()]
    assert table.splitlines() == ["| mode | what ran | what MLflow shows |", "| --- | --- | --- |", *rows]


def queued(project: Path) -> set[str]:
    listed = short.run(project, "dvc", "queue", "status").splitlines()
    return {line.split()[0] for line in listed if "Queued" in line or "Running" in line}


def wait(project: Path) -> None:
    for _ in range(240):
        if not queued(project):
            return
        time.sleep(1)
    raise AssertionError(short.run(project, "dvc", "queue", "status"))
