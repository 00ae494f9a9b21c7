"""What .github/workflows/ calls is there, may do no more than it must, and its comparison of metrics works."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from wronai import params

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
ALLOWED = {"actions/checkout", "actions/setup-python", "actions/cache", "actions/github-script"}


def jobs(path: Path) -> dict[str, Any]:
    return params.read(path)["jobs"]


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


def scripts(path: Path) -> list[str]:
    return [step["run"] for step in steps(path) if "run" in step]


def test_the_workflows_that_a_user_expects_are_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "metrics", "reproducibility"]
    called = {path.stem: " ; ".join(scripts(path)) for path in WORKFLOWS}
    assert ".ci/run" in called["ci"] and "make lint types" in called["ci"]
    assert "make repro-check DATA=1" in called["reproducibility"] and "dvc metrics diff --md" in called["metrics"]
    assert {"push", "schedule"} <= params.read(ROOT / ".github/workflows/reproducibility.yml")["on"].keys()


def assert_are_made(text: str) -> None:
    """Every `make` in the text names targets that are there, and variables that they read."""
    calls = re.findall(r"^make ([^#\n]+)", text, re.M)
    assert calls
    for word in " ".join(calls).split():
        name, is_variable, _ = word.partition("=")
        pattern = rf"\$\(if \$\({name}\)" if is_variable else rf"^{name}:"
        assert re.search(pattern, MAKEFILE, re.M), word


def test_the_page_on_reproducibility_calls_what_is_there() -> None:
    assert_are_made((ROOT / "docs/reproducibility.md").read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_target_and_script_that_is_called_exists(path: Path) -> None:
    assert_are_made("\n".join(scripts(path)))
    for script in scripts(path):
        for name in re.findall(r"^\.ci/\w+", script, re.M):
            assert os.access(ROOT / name, os.X_OK)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_python_is_the_one_that_the_project_asks_for(path: Path) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    given = [step["with"]["python-version"] for step in steps(path) if "setup-python" in step.get("uses", "")]
    assert given and all(wanted.startswith(f">={version},") for version in given)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_only_actions_of_github_itself_are_used_at_a_major_version(path: Path) -> None:
    for step in steps(path):
        if "uses" in step:
            name, _, version = step["uses"].partition("@")
            assert name in ALLOWED and re.fullmatch(r"v\d+", version), step["uses"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_may_write_but_the_comment_which_runs_no_code_of_the_pull_request(path: Path) -> None:
    assert params.read(path)["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        assert 0 < job["timeout-minutes"] <= 60
        if granted := job.get("permissions"):
            assert (name, granted) == ("comment", {"pull-requests": "write"})
            assert not any("uses" in step for step in job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_script_has_text_of_others_pasted_into_it(path: Path) -> None:
    assert not [script for script in scripts(path) if "${{" in script]


def run(folder: Path, *command: str, **variables: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "DVC_NO_ANALYTICS": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "state")


@pytest.mark.parametrize(
    ("loss", "told"), [(1.5, "| metrics.json | loss | 2.0 | 1.5 | -0.5 |"), (2.0, "No metric differs from `main`.")]
)
def test_the_comparison_of_metrics_is_a_table_for_the_comment(loss: float, told: str, tmp_path: Path) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    run(origin, "git", "init", "-q", "--initial-branch=main")
    run(origin, "dvc", "init", "-q")
    (origin / "dvc.yaml").write_text("metrics: [metrics.json]\n")
    (origin / "metrics.json").write_text('{"loss": 2.0}')
    commit(origin)
    run(tmp_path, "git", "clone", "-q", f"file://{origin}", str(clone))
    (clone / "metrics.json").write_text(f'{{"loss": {loss}}}')
    (clone / "notes.md").write_text("the branch\n")
    commit(clone)
    (script,) = (step["run"] for step in steps(ROOT / ".github/workflows/metrics.yml") if step.get("id") == "diff")
    summary, output = tmp_path / "summary", tmp_path / "output"
    run(clone, "bash", "-c", script, BASE="main", GITHUB_STEP_SUMMARY=str(summary), GITHUB_OUTPUT=str(output))
    first, *table, last = output.read_text().splitlines()
    assert first == f"table<<{last}" and last.startswith("end-")
    assert summary.read_text().splitlines() == table
    assert told in table
