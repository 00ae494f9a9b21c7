"""What dvc.yaml says for people and for DVC's own views: plots that draw what is there, artifacts, readable tables."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc_render.vega_templates import get_template
from ruamel.yaml import YAML

from wronai import params

ROOT = Path(__file__).parent.parent
GRAPH = params.read(ROOT / "dvc.yaml")
FILES = {
    "metrics/loss_curve.csv": "step,loss,eval_loss,learning_rate\n10,5.25,,0.002\n20,4.75,5.125,0.001\n30,,4.875,\n",
    "metrics/differences.csv": (
        "name,what,metric,base,tuned,difference,difference_low,difference_high,verdict\n"
        "answers bits_per_byte,answers,bits_per_byte,2.75,2.5,-0.25,-0.375,-0.125,better\n"
    ),
    "metrics/document_lengths.csv": (
        "source,from_characters,below_characters,documents\nsample,861,1024,17\nsample,1024,1218,19\n"
    ),
}


def plots() -> Iterator[tuple[str, dict[str, Any], dict[str, set[str]]]]:
    """The name of each plot of dvc.yaml, its properties, and by file the columns that it draws."""
    for entry in GRAPH["stages"].values():
        for plot in entry.get("plots", []):
            ((path, given),) = plot.items()
            yield path, given, {path: {given["x"], given["y"]}}
    for plot in GRAPH["plots"]:
        ((name, given),) = plot.items()
        yield name, given, {path: {given["x"], *fields} for path, fields in given["y"].items()}


PLOTS = list(plots())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's parameters, metrics, and graph without code, in a repository with the small files to draw."""
    folder = tmp_path_factory.mktemp("plots")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    for name in ("params.yaml", "Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(ROOT / "metrics", folder / "metrics")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)
    for path, text in FILES.items():
        (folder / path).write_text(text)
    stages = {
        name: {key: value for key, value in entry.items() if key not in ("deps", "outs")}
        for name, entry in GRAPH["stages"].items()
        if "matrix" not in entry
    }
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump({**GRAPH, "stages": stages}, file)
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (folder / ".gitignore").write_text("/.venv\n")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "state")
    (folder / ".venv/.installed").touch()
    return folder


def run(folder: Path, *command: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "COLUMNS"))}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "DVC_NO_ANALYTICS": "1", **environment}
    env |= {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("name", "given"), [(name, given) for name, given, _ in PLOTS])
def test_a_plot_says_what_it_shows_by_a_template_that_is_there(name: str, given: dict[str, Any]) -> None:
    assert {"template", "x", "y", "title", "x_label", "y_label"} - set(given) <= {"y_label"}
    template = get_template(given["template"], ROOT / ".dvc/plots")
    assert template.has_anchor("data")


@pytest.mark.parametrize(("name", "columns"), [(name, columns) for name, _, columns in PLOTS])
def test_a_plot_draws_columns_that_the_committed_files_have(name: str, columns: dict[str, set[str]]) -> None:
    for path, wanted in columns.items():
        with (ROOT / path).open(encoding="utf-8") as file:
            assert wanted <= set(next(csv.reader(file)))


def test_the_plots_draw_every_file_that_stages_leave_for_them() -> None:
    left = {path for entry in GRAPH["stages"].values() for plot in entry.get("plots", []) for path in plot}
    assert left == {path for _, _, columns in PLOTS for path in columns} == set(FILES)


def test_the_page_of_all_plots_holds_the_numbers(project: Path) -> None:
    run(project, "dvc", "plots", "show", "--out", "shown")
    page = (project / "shown/index.html").read_text()
    for number in ("5.25", "5.125", "0.002", "-0.375", "1218"):
        assert number in page, number
    for _, given, _ in PLOTS:
        assert given["title"] in page


def drawn(project: Path, *command: str) -> dict[str, dict[str, Any]]:
    """The Vega-Lite specification of each plot, by its name."""
    found = json.loads(run(project, "dvc", "plots", *command, "--json"))
    assert not found.get("errors")
    return {name: of[0]["content"] for name, of in found["data"].items()}


def test_both_losses_are_in_one_plot_and_a_step_without_one_is_no_zero(project: Path) -> None:
    spec = drawn(project, "show")["Loss"]
    values = [(row["step"], row["field"], row["dvc_inferred_y_value"]) for row in spec["data"]["values"]]
    assert ("20", "loss", "4.75") in values and ("20", "eval_loss", "5.125") in values
    assert ("10", "eval_loss", "") in values, "Vega draws the empty text as 0"
    assert spec["transform"] == [{"filter": "datum['dvc_inferred_y_value'] !== ''"}]


def test_an_interval_is_drawn_from_its_low_to_its_high_end(project: Path) -> None:
    spec = drawn(project, "show")["metrics/differences.csv"]
    ends = [(layer["encoding"]["x"]["field"], layer["encoding"]["x2"]["field"]) for layer in spec["layer"][1:2]]
    assert ends == [("difference_low", "difference_high")]
    assert {"difference_low", "difference_high", "name"} <= set(spec["data"]["values"][0])


def test_a_difference_of_plots_shows_both_states(project: Path) -> None:
    path = project / "metrics/loss_curve.csv"
    path.write_text(FILES["metrics/loss_curve.csv"].replace("5.25", "5.5"))
    try:
        specs = drawn(project, "diff", "HEAD")
    finally:
        path.write_text(FILES["metrics/loss_curve.csv"])
    assert set(specs) == {name for name, _, _ in PLOTS}
    for spec in specs.values():
        assert {row["rev"] for row in spec["data"]["values"]} == {"HEAD", "workspace"}


def test_artifacts_are_models_that_a_stage_makes() -> None:
    outs = {out for entry in GRAPH["stages"].values() for out in entry.get("outs", []) if isinstance(out, str)}
    assert {entry["path"] for entry in GRAPH["artifacts"].values()} == {"models/adapter", "models/merged"} <= outs
    for name, entry in GRAPH["artifacts"].items():
        assert entry["type"] == "model" and len(entry["desc"]) > 20 and entry["labels"], name


@pytest.fixture(scope="module")
def experiment(project: Path) -> str:
    """An experiment with another rank, whose every number is a hundredth higher; the workspace is as it was."""
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"^    r: \d+", "    r: 7", text, count=1, flags=re.MULTILINE))
    kept = {}
    for path in (project / "metrics").glob("*.json"):
        kept[path] = path.read_text()
        path.write_text(json.dumps(higher(json.loads(kept[path]))))
    run(project, "dvc", "exp", "save", "--name", "rank-7")
    for path, old in {**kept, project / "params.yaml": text}.items():
        path.write_text(old)
    return "rank-7"


def higher(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: higher(value) for key, value in found.items()}
    return found + 0.01 if isinstance(found, float) else found


def test_the_table_of_experiments_fits_on_a_screen_and_has_what_differs(project: Path, experiment: str) -> None:
    shown = run(project, "make", "--silent", "exp-show", COLUMNS="170")
    assert "…" not in shown and experiment in shown
    assert max(len(line) for line in shown.splitlines()) <= 170
    for column in ("answers.tuned", "documents.tuned", "mean.tuned", "finetune.lora.r"):
        assert column in shown, shown
    assert "wronai_grammar" not in shown and "seed" not in shown


def test_the_difference_of_two_experiments_is_their_parameters_and_a_dozen_metrics(
    project: Path, experiment: str
) -> None:
    shown = run(project, "make", "--silent", "exp-diff", f"A={experiment}").splitlines()
    assert any(re.fullmatch(r"params.yaml +finetune.lora.r +7 +\d+ *", line) for line in shown)
    assert len(shown) <= 14 and any("bits_per_byte.answers.tuned " in line for line in shown)
