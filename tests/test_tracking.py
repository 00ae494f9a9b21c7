"""Stages are recorded in metrics/ and in MLflow, and a store that is away stops nothing."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML
from servers import Server, served

from wronai import files, graph, params, tracking
from wronai.store import Record, Store

ROOT = Path(__file__).parent.parent
CONFIG = params.load(ROOT / "params.yaml")
STAGE = """
from pathlib import Path
from wronai import tracking
with tracking.stage("{name}") as (config, report):
    report.log(1, loss=2.5)
    report.measure(tokens_per_second=100)
    {body}
    report({{"rows": 3, "by_source": {{"a": 1}}}})
"""
INSTANCE = """
from pathlib import Path
from wronai import files, tracking
with tracking.stage("many", "base-language") as (config, report):
    report.measure(tokens_per_second=7)
    out = Path("data/scores/base/language/summary.json")
    files.write_json(out, {"acc": 0.5, "by_task": {"grammar": {"items": 104}}})
    report.read(out)
"""
GRAPH = {
    "stages": {
        "first": {"cmd": "x", "desc": "d", "deps": ["first.py"], "params": ["seed", "finetune.lora"]},
        "many": {
            "matrix": {"model": ["base", "merged"], "task": "${evaluate.tasks}"},
            "cmd": "x ${item.model} ${item.task}",
            "desc": "d",
            "deps": ["many.py"],
            "params": ["seed", "evaluate.limit"],
            "outs": ["data/scores/${item.model}/${item.task}"],
        },
        "last": {"cmd": "x", "desc": "d", "deps": ["last.py"], "params": ["seed"]},
    }
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of three stages in the working directory, with nothing tracked yet."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with (tmp_path / "dvc.yaml").open("w") as file:
        YAML().dump(GRAPH, file)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(project: Path, name: str = "first", body: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    (project / f"{name}.py").write_text(body if name == "many" else STAGE.format(name=name, body=body))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, f"{name}.py"], cwd=project, env=env, capture_output=True, text=True)


def test_a_place_that_a_cluster_tells_its_pod_is_not_one_of_the_stage(project: Path) -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    body = f"import os; assert not {set(told)} & set(os.environ)"
    done = run(project, body=body, MLFLOW_TRACKING_URI="http://127.0.0.1:1", **told)
    assert done.returncode == 0, done.stderr


def runs(project: Path) -> list[Any]:
    client = MlflowClient(tracking.default_uri(project))
    ids = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(ids, order_by=["attributes.start_time ASC"]))


def test_a_stage_leaves_its_metrics_and_a_run_with_parameters_metrics_and_tags(project: Path) -> None:
    done = run(project)
    assert done.returncode == 0, done.stderr
    assert json.loads((project / "metrics/first.json").read_text()) == {"rows": 3, "by_source": {"a": 1}}
    (found,) = runs(project)
    assert found.info.run_name == "first" and found.info.status == "FINISHED"
    assert found.data.params["finetune.lora.r"] == str(CONFIG.finetune.lora.r)
    assert set(found.data.params) == set(params.select(CONFIG, ["seed", "finetune.lora"]))
    assert found.data.metrics["by_source.a"] == 1 and found.data.metrics["loss"] == 2.5
    assert found.data.metrics["measured.tokens_per_second"] == 100
    assert found.data.tags["wronai.stage"] == "first" and "environment.library.torch" in found.data.tags
    assert not list((project / ".tracking").glob("*.json"))


def test_a_users_mistake_is_one_message_and_exit_code_1(project: Path) -> None:
    done = run(project, body="raise ValueError('clean: nothing was kept')")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "first: clean: nothing was kept"
    assert "Traceback" not in done.stderr
    assert not (project / "metrics").exists()
    assert [found.info.status for found in runs(project)] == ["FAILED"]


def test_a_mistake_of_ours_keeps_its_traceback(project: Path) -> None:
    done = run(project, body="raise KeyError('oops')")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_an_interrupted_stage_says_so_without_a_traceback(project: Path) -> None:
    done = run(project, body="raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "first: interrupted\n")
    assert [found.info.status for found in runs(project)] == ["KILLED"]


def test_the_hub_is_shut_unless_a_parameter_asks_for_it(project: Path) -> None:
    body = "import os; print('offline', os.environ.get('HF_HUB_OFFLINE'))"
    assert "offline 1" in run(project, body=body, HF_HUB_OFFLINE="").stdout
    yaml = YAML()
    values = yaml.load(project / "params.yaml")
    fields = {"repository": "kto/zbior", "revision": "0" * 40, "files": "*.parquet", "role": "instructions"}
    values["data"]["sources"].append({"name": "zbior", "kind": "hub", "licence": "CC0-1.0", **fields})
    yaml.dump(values, project / "params.yaml")
    assert "offline 1" not in run(project, body=body, HF_HUB_OFFLINE="").stdout


def test_sources_edited_while_the_stage_runs_fail_it(project: Path) -> None:
    done = run(project, body="Path('first.py').write_text('# edited')")
    assert done.returncode == 1
    assert "first.py changed while the stage ran" in done.stderr
    assert not (project / "metrics").exists()


def test_a_stage_that_the_graph_lacks_is_refused(project: Path) -> None:
    done = run(project, "third")
    assert done.returncode == 1 and "no stage 'third'; it has first, many, last" in done.stderr


def test_a_store_that_is_away_costs_one_warning_and_loses_nothing(project: Path) -> None:
    done = run(project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0
    assert done.stderr.count("tracking: the MLflow store") == 1
    assert (project / "metrics/first.json").exists()
    store = Store(project, CONFIG.tracking.experiment)
    assert store.sync().mirrored == 1
    assert store.sync().mirrored == 0
    (found,) = runs(project)
    assert found.info.status == "FINISHED" and found.data.metrics["rows"] == 3 and found.data.metrics["loss"] == 2.5


@pytest.fixture
def server(project: Path) -> Iterator[tuple[Server, str]]:
    """A real MLflow server, and the store behind it."""
    store = f"sqlite:///{project / 'server.db'}"
    command = ["mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    with served(project / "server.log", *command, cwd=project) as listening:
        yield listening, store


def test_a_server_that_goes_away_in_the_middle_of_a_run_gets_what_it_missed(
    project: Path, server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, store = server
    body = f"import os; os.killpg({listening.pid}, 9); report.log(2, loss=1.5); report.log(3, loss=0.5)"
    done = run(project, body=body, MLFLOW_TRACKING_URI=listening.address)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tracking: the MLflow store") == 1
    assert (project / "metrics/first.json").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert Store(project, CONFIG.tracking.experiment).sync().mirrored == 1
    client = MlflowClient(store)
    (found,) = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert found.info.status == "FINISHED" and found.data.metrics["rows"] == 3
    assert [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, "loss")] == [
        (1, 2.5),
        (2, 1.5),
        (3, 0.5),
    ]


def test_a_killed_stage_is_closed_by_the_next_sync(project: Path) -> None:
    done = run(project, body="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -9
    assert [found.info.status for found in runs(project)] == ["RUNNING"]
    Store(project, CONFIG.tracking.experiment).sync()
    assert [found.info.status for found in runs(project)] == ["KILLED"]


def test_a_running_stage_is_not_taken_for_a_killed_one(project: Path) -> None:
    store = Store(project, CONFIG.tracking.experiment)
    tags = {"wronai.kind": "stage", "wronai.execution": "x"}
    files.write_json(project / ".tracking/a.json", asdict(Record("first", {}, tags, id="a")))
    assert store.sync().mirrored == 0
    assert (project / ".tracking/a.json").exists()


PARENT = "from wronai import graph; report.parent(graph.made(Path('dvc.yaml'), config), {})"


def test_the_parent_run_holds_every_parameter_and_the_metrics_of_restored_stages(project: Path) -> None:
    assert run(project).returncode == 0  # an earlier execution: here it stands for a stage that the cache restored
    assert run(project, "last", body=PARENT).returncode == 0
    by_kind = {(found.data.tags["wronai.kind"], found.data.tags.get("wronai.stage")): found for found in runs(project)}
    first, last, parent = by_kind["stage", "first"], by_kind["stage", "last"], by_kind["parent", None]
    assert set(parent.data.params) == set(params.flatten(CONFIG))
    assert parent.data.metrics["first.rows"] == 3
    assert parent.data.metrics["first.measured.tokens_per_second"] == 100
    assert last.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id, "its own execution came to no parent"
    assert parent.info.status == "FINISHED"


def test_an_instance_of_a_stage_has_a_run_of_its_own_and_its_metrics_in_its_out(project: Path) -> None:
    assert run(project, "many", INSTANCE).returncode == 0
    (found,) = runs(project)
    assert found.info.run_name == "many@base-language" and found.data.tags["wronai.stage"] == "many"
    assert set(found.data.params) == {"seed", "evaluate.limit"}
    assert (found.data.metrics["acc"], found.data.metrics["by_task.grammar.items"]) == (0.5, 104)
    assert found.data.metrics["measured.tokens_per_second"] == 7
    assert not (project / "metrics").exists()


def test_what_was_measured_of_a_restored_instance_reaches_the_parent_run(project: Path) -> None:
    assert run(project, "many", INSTANCE).returncode == 0
    done = run(project, "last", body=PARENT)
    assert (done.returncode, done.stderr) == (0, "")
    (parent,) = [found for found in runs(project) if found.data.tags["wronai.kind"] == "parent"]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["many_base-language.measured.tokens_per_second"] == 7
    assert "many_base-language.measured.seconds" in parent.data.metrics
    assert not any(key.endswith(".acc") for key in parent.data.metrics), "a later stage brings these together"
    assert not list((project / ".tracking").glob("*.json"))


def test_instances_that_found_the_same_are_told_apart(project: Path) -> None:
    for model, speed in (("base", 7), ("merged", 8)):
        code = INSTANCE.replace("base", model).replace("=7", f"={speed}")
        assert run(project, "many", code).returncode == 0
    assert run(project, "last", body=PARENT).returncode == 0
    (parent,) = [found for found in runs(project) if found.data.tags["wronai.kind"] == "parent"]
    speeds = [parent.data.metrics[f"many_{model}-language.measured.tokens_per_second"] for model in ("base", "merged")]
    assert speeds == [7, 8]


def test_a_stage_with_a_matrix_is_made_once_for_each_instance(project: Path) -> None:
    config = CONFIG.model_copy(
        update={"evaluate": CONFIG.evaluate.model_copy(update={"tasks": ["language", "polemo2"]})}
    )
    found = graph.made(project / "dvc.yaml", config)
    assert list(found) == [
        "first",
        "many@base-language",
        "many@base-polemo2",
        "many@merged-language",
        "many@merged-polemo2",
        "last",
    ]
    assert found["first"] == graph.Made(Path("metrics/first.json"), ["seed", "finetune.lora"])
    out = Path("data/scores/merged/polemo2/summary.json")
    assert found["many@merged-polemo2"] == graph.Made(out, ["seed", "evaluate.limit"])


MACHINE = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_usage_percentage"}
SAMPLED = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.1"}


def test_the_machine_is_sampled_under_the_names_of_mlflow(project: Path) -> None:
    assert run(project, body="import time; time.sleep(1.5)", **SAMPLED).returncode == 0
    (found,) = runs(project)
    assert {f"system/{name}" for name in MACHINE} <= set(found.data.metrics)
    assert any(name.startswith("system/network_") for name in found.data.metrics)
    points = MlflowClient(tracking.default_uri(project)).get_metric_history(
        found.info.run_id, "system/cpu_utilization_percentage"
    )
    assert [point.step for point in points] == list(range(len(points)))
    assert len(points) > 2 and all(0 <= point.value <= 100 for point in points)
    assert "system" not in (project / "metrics/first.json").read_text()


def test_mlflows_own_switch_stops_the_samples(project: Path) -> None:
    run(project, body="import time; time.sleep(0.5)", MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING="false", **SAMPLED)
    (found,) = runs(project)
    assert not any(name.startswith("system/") for name in found.data.metrics)


def test_two_processes_may_create_the_store_at_once(project: Path) -> None:
    for name in ("first", "last"):
        (project / f"{name}.py").write_text(STAGE.format(name=name, body="pass"))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, f"{name}.py"], cwd=project, env=env) for name in ("first", "last")]
    assert [process.wait(120) for process in both] == [0, 0]
    assert sorted(found.info.run_name for found in runs(project)) == ["first", "last"]


def test_dvc_root_is_believed_only_where_the_work_lies_inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = project / ".dvc/tmp/exps/temp"
    inside.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(inside)
    assert tracking.store_root() == project
    monkeypatch.setenv("DVC_ROOT", str(project / "elsewhere"))
    assert tracking.store_root() == inside


def test_json_is_written_whole_with_sorted_keys(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a/b.json", {"b": "ż", "a": 1})
    assert (tmp_path / "a/b.json").read_text(encoding="utf-8") == '{\n  "a": 1,\n  "b": "ż"\n}\n'
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_another_command_than_sync_and_ui_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tracking.main(["sink"])
    assert ended.value.code == 2
    assert "invalid choice: 'sink'" in capsys.readouterr().err


def test_the_ui_of_a_store_that_is_a_server_is_the_servers(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ania:sekretne@mlflow.example.org")
    assert tracking.main(["ui"]) == 0
    assert capsys.readouterr().out.endswith("https://***@mlflow.example.org\n")


def test_a_sync_with_a_store_that_is_away_is_one_line_and_exit_code_1(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert run(project, MLFLOW_TRACKING_URI="http://127.0.0.1:9").returncode == 0
    assert tracking.main(["sync"]) == 1
    assert capsys.readouterr().err == "tracking: 127.0.0.1:9: [Errno 111] Connection refused\n"


def test_an_unfinished_run_of_another_host_is_left_alone_unless_it_is_said_to_be_over(project: Path) -> None:
    store = Store(project, CONFIG.tracking.experiment)
    tags = {"wronai.kind": "stage", "wronai.execution": "x"}
    record = Record("first", {}, tags, pid=1, pid_started=0.0, host="elsewhere", id="a")
    files.write_json(project / ".tracking/a.json", asdict(record))
    done = store.sync()
    assert (done.mirrored, done.elsewhere) == (0, ["first on elsewhere"])
    assert store.sync(close_other_hosts=True).mirrored == 1
    assert [found.info.status for found in runs(project)] == ["KILLED"]


def test_a_damaged_record_is_named_and_set_aside(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".tracking").mkdir()
    (project / ".tracking/a.json").write_text('{"name": "fir')
    done = Store(project, CONFIG.tracking.experiment).sync()
    assert done.damaged == [project / ".tracking/a.damaged"] and done.damaged[0].exists()
    assert "a.damaged: not the record of a run" in capsys.readouterr().err


def keep(project: Path, *waiting: Record) -> None:
    """Records of processes that have ended."""
    for record in waiting:
        record.pid, record.pid_started = 1, 0.0
        files.write_json(project / f".tracking/{record.id}.json", asdict(record))


def test_what_the_store_refuses_stops_nothing_else_and_waits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"wronai.kind": "stage", "wronai.execution": "x"}
    parent = {"wronai.kind": "parent", "wronai.execution": "x", "wronai.state": "s"}
    keep(
        project,
        Record("unnameable", {"a@b": 1}, stage, id="a", status="FINISHED", ended=2),
        Record("whole", {}, stage, id="b", status="FINISHED", ended=2),
        Record("rank-8", {}, parent, id="c", status="FINISHED", ended=2, uploads={"models/adapter": "0" * 32}),
    )
    for command in (("git", "init", "-q"), ("dvc", "init", "-q")):
        subprocess.run(command, cwd=project, check=True)
    for mirrored in (1, 0):
        done = Store(project, CONFIG.tracking.experiment).sync()
        assert done.mirrored == mirrored
        unnameable, lacking = done.refused
        assert unnameable.startswith("unnameable: ") and "a@b" in unnameable
        assert lacking.startswith(f"rank-8: models/adapter: {'0' * 32} is not in the DVC cache; ")
        status = {run.data.tags["mlflow.runName"]: run.info.status for run in runs(project)}
        assert len(runs(project)) == 3, "none is doubled"
        assert status["whole"] == status["rank-8"] == "FINISHED"
        assert sorted(path.name for path in (project / ".tracking").glob("*.json")) == ["a.json", "c.json"]
    capsys.readouterr()


def test_a_refused_run_is_one_warning_of_the_next_publisher_whose_own_run_is_mirrored(project: Path) -> None:
    keep(project, Record("unnameable", {"a@b": 1}, {"wronai.kind": "stage", "wronai.execution": "x"}, id="a"))
    done = run(project, "last", PARENT)
    assert done.returncode == 0 and done.stderr.count("tracking: ") == 1
    assert "did not take this run (unnameable: " in done.stderr
    assert {run.data.tags["mlflow.runName"]: run.info.status for run in runs(project)} == {
        "unnameable": "RUNNING",
        "last": "FINISHED",
        "uncommitted": "FINISHED",
    }


def test_a_commit_that_the_store_refuses_stops_no_other_and_is_exit_code_1(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(project, Record("first", {}, {"wronai.kind": "stage", "wronai.execution": "x"}, id="a", status="FINISHED"))
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    (project / "dvc.yaml").write_text("stages: [")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (("init", "-q"), ("add", "dvc.lock", "dvc.yaml", "params.yaml"), (*identity, "commit", "-qm", "s")):
        subprocess.run(["git", *command], cwd=project, check=True)
    (project / "dvc.yaml").write_text("stages: {}")
    subprocess.run(["dvc", "init", "-q"], cwd=project, check=True)
    assert tracking.main(["sync"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("mirrored 1 runs") and said.err.startswith("tracking: refused commit ")


def test_what_a_kill_left_half_written_is_removed_once_nobody_can_be_writing_it(project: Path) -> None:
    (project / ".tracking").mkdir()
    for name, age in (("old", 3600), ("new", 0)):
        path = project / f".tracking/{name}.partial"
        path.write_text('{"name": "fir')
        os.utime(path, (time.time() - age,) * 2)
    Store(project, CONFIG.tracking.experiment).sync()
    assert [path.name for path in (project / ".tracking").glob("*.partial")] == ["new.partial"]


def test_an_experiment_deleted_in_the_store_is_named(project: Path) -> None:
    assert run(project).returncode == 0
    client = MlflowClient(tracking.default_uri(project))
    client.delete_experiment(client.get_experiment_by_name(CONFIG.tracking.experiment).experiment_id)
    done = run(project)
    assert done.returncode == 0
    assert f"the experiment '{CONFIG.tracking.experiment}' is deleted; restore it" in done.stderr
