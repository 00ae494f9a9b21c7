"""The real graph in a temporary clone, with smaller parameters: what it makes, what it skips, and that bytes repeat."""

import json
from pathlib import Path
from urllib.parse import quote

import browser
import pytest
from clones import add_riddles, commit, copy, graph, ran, record, run
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML
from servers import served

from wronai import params, tracking


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    clone = copy(tmp_path_factory.mktemp("clone"))
    return clone, run(clone, "dvc", "repro")


@pytest.fixture(scope="module")
def experiment(reproduced: tuple[Path, str]) -> tuple[Path, str]:
    clone, _ = reproduced
    commit(clone)
    return clone, run(clone, "dvc", "exp", "run", "--set-param", "finetune.lora.r=8")


def runs(clone: Path, kind: str) -> list:
    client = MlflowClient(tracking.default_uri(clone))
    ids = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.`wronai.kind` = '{kind}'", order_by=["attributes.start_time ASC"]))


def test_every_stage_runs_and_leaves_what_it_promises(reproduced: tuple[Path, str]) -> None:
    clone, output = reproduced
    assert sorted(ran(output)) == graph(clone)
    assert {"score_text@base", "score_benchmarks@base-language", "score_benchmarks@merged-language"} < {*ran(output)}
    for out in ("models/merged/model.safetensors", "models/merged/chat_template.jinja", "report/index.html"):
        assert (clone / out).stat().st_size > 0
    measured = json.loads((clone / "metrics/merge_adapters.json").read_text())
    assert measured["parity"]["equal_next_tokens"] >= 0.99
    assert len((clone / "metrics/samples.jsonl").read_text().splitlines()) == 2
    compared = json.loads((clone / "metrics/evaluate_benchmarks.json").read_text())
    assert "partial" not in compared and "wronai_grammar" in compared["benchmarks"]


def test_the_stages_say_nothing_of_paths_hosts_or_times(reproduced: tuple[Path, str]) -> None:
    clone, _ = reproduced
    for path in [*(clone / "metrics").iterdir(), *(clone / "models").rglob("*.json")]:
        assert str(clone) not in path.read_text(encoding="utf-8"), path


def test_a_second_run_does_nothing(reproduced: tuple[Path, str]) -> None:
    clone, _ = reproduced
    before = record(clone)
    assert ran(run(clone, "dvc", "repro")) == []
    assert "up to date" in run(clone, "dvc", "status")
    assert record(clone) == before


def test_an_experiment_runs_only_what_its_parameter_changes(experiment: tuple[Path, str]) -> None:
    clone, output = experiment
    assert ran(output)[:2] == ["finetune_qlora", "merge_adapters"]
    assert sorted(ran(output)[2:-2]) == ["score_benchmarks@merged-language", "score_text@merged"]
    assert ran(output)[-2:] == ["evaluate_benchmarks", "publish_report"]
    assert json.loads((clone / "models/adapter/adapter_config.json").read_text())["r"] == 8


def test_each_state_is_one_mlflow_run_with_all_parameters_and_metrics(
    reproduced: tuple[Path, str], experiment: tuple[Path, str]
) -> None:
    clone, output = experiment
    parents = runs(clone, "parent")
    assert [parent.data.params["finetune.lora.r"] for parent in parents] == ["16", "8"]
    declared = params.flatten(params.load(clone / "params.yaml"))
    stages = runs(clone, "stage")
    for parent, executed in zip(parents, (reproduced[1], output), strict=True):
        assert set(parent.data.params) == set(declared)
        for stage in set(graph(clone)) - {"publish_report"}:
            assert f"{stage.replace('@', '_')}.measured.seconds" in parent.data.metrics
        assert "evaluate_benchmarks.benchmarks.wronai_grammar.acc.tuned" in parent.data.metrics
        nested = [run.info.run_name for run in stages if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert nested == ran(executed)
    assert {run.info.status for run in stages} == {"FINISHED"}


PARAMETER = """(() => {
  const name = [...document.querySelectorAll("th")].find(head => head.textContent === %s);
  return name && [...name.parentElement.querySelectorAll("td")].map(cell => cell.textContent);
})()"""
# The table of metrics shows a few rows of a thousand, in two grids that scroll together.
METRIC = """(() => {
  const shown = [...document.querySelectorAll('a[title="Plot chart"]')].find(link => link.textContent === %s);
  const all = [...document.querySelectorAll(".ReactVirtualized__Grid")];
  const grids = all.filter(grid => grid.scrollHeight > grid.clientHeight);
  if (shown) {
    const name = shown.closest(".ReactVirtualized__Grid > div > div");
    const cells = grids.flatMap(grid => [...grid.firstElementChild.children]);
    return cells.filter(cell => cell !== name && cell.style.top === name.style.top).map(cell => cell.textContent);
  }
  for (const grid of grids) grid.scrollTop += 200;
})()"""


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium; `apt-get install chromium` brings one")
def test_the_ui_shows_two_runs_side_by_side(experiment: tuple[Path, str], tmp_path: Path) -> None:
    """Their LoRA rank, quantization type and a benchmark, in the browser of a user of `make ui`."""
    clone, _ = experiment
    parents = runs(clone, "parent")[:2]
    compared = quote(json.dumps([parent.info.run_id for parent in parents]))
    benchmark = "evaluate_benchmarks.benchmarks.wronai_grammar.acc.tuned"
    with served(tmp_path / "ui.log", "wronai.tracking", "ui", cwd=clone) as ui:
        address = f"{ui.address}/#/compare-runs?runs={compared}&experiments={quote(json.dumps(['1']))}"
        rank, kind, accuracy = browser.visit(
            address,
            [
                PARAMETER % json.dumps("finetune.lora.r"),
                PARAMETER % json.dumps("finetune.quantization.bnb_4bit_quant_type"),
                METRIC % json.dumps(benchmark),
            ],
            tmp_path / "compared.png",
        )
    assert rank == ["16", "8"]
    assert kind == ["nf4", "nf4"]
    assert [float(value) for value in accuracy] == [
        pytest.approx(parent.data.metrics[benchmark], abs=5e-4 + 1e-9) for parent in parents
    ]
    assert (tmp_path / "compared.png").stat().st_size > 20_000


def test_a_benchmark_more_is_scored_and_nothing_is_trained_for_it(experiment: tuple[Path, str]) -> None:
    clone, _ = experiment
    add_riddles(clone)
    yaml = YAML()
    values = yaml.load(clone / "params.yaml")
    values["evaluate"]["tasks"].append("riddles")
    yaml.dump(values, clone / "params.yaml")
    assert sorted(ran(run(clone, "dvc", "repro"))) == [
        "clean_text",
        "evaluate_benchmarks",
        "prepare_benchmarks",
        "publish_report",
        "score_benchmarks@base-riddles",
        "score_benchmarks@merged-riddles",
    ]
    found = json.loads((clone / "metrics/evaluate_benchmarks.json").read_text())["benchmarks"]
    assert found["riddles"]["acc"]["items"] == 4 and "wronai_grammar" in found


def test_another_folder_and_one_thread_give_the_same_bytes(
    reproduced: tuple[Path, str], experiment: tuple[Path, str], tmp_path: Path
) -> None:
    clone, _ = reproduced
    run(clone, "git", "checkout", "-q", "--force", "HEAD")
    again = copy(tmp_path / "elsewhere")
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**one_thread, "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    assert sorted(ran(run(again, "dvc", "repro", "--force", **environment))) == graph(again)
    first, second = record(clone), record(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert (again / "dvc.lock").read_bytes() == (clone / "dvc.lock").read_bytes()
