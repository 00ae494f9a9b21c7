"""`make plan` knows the base of params.yaml before anything has run, and the device that the stage will have."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub
import pytest
import tiny

from wronai import numerics, params, plan, planner, profiles

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model(**values: Any) -> params.Model:
    empty = {"path": None, "repository": None, "revision": None}
    return params.Model.model_validate({"scratch": tiny.SCRATCH, **empty, **values})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, where the command runs."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A base on the hub, as far as the plan may look."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.MISTRAL_7B))
    (folder / "model.safetensors").write_bytes(b"not to be fetched")
    return folder


HUB = {"base": "hub", "built_from": "stages/prepare_base.py", "repository": "wronai/tiny", "revision": COMMIT}


def test_a_base_from_scratch_has_the_shape_of_its_parameters(base_folder: Path, tmp_path: Path) -> None:
    assert planner.shape(model(base="scratch", built_from="data/clean"), tmp_path) == plan.read(base_folder)


def test_a_local_base_is_read_where_it_lies(base_folder: Path, tmp_path: Path) -> None:
    local = model(base="local", built_from=str(base_folder), path=str(base_folder))
    assert planner.shape(local, tmp_path) == plan.read(base_folder)
    empty = model(base="local", built_from="absent", path="absent")
    with pytest.raises(FileNotFoundError, match=r"^model\.path: absent: no config\.json; expected a folder"):
        planner.shape(empty, tmp_path)


def test_of_a_base_on_the_hub_the_configuration_alone_is_fetched_and_only_once(
    project: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, dict[str, str]]] = []
    with hub.serve(repository, "wronai/tiny", COMMIT, {}, log=asked) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        found = planner.shape(model(**HUB), project / "downloads")
    assert found == plan.from_config(tiny.MISTRAL_7B)
    assert any("config.json" in path for _, path, _ in asked)
    assert not any("safetensors" in path for _, path, _ in asked)
    assert planner.shape(model(**HUB), project / "downloads") == found


def test_a_repository_without_a_configuration_says_what_it_has(
    project: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "config.json").unlink()
    with hub.serve(repository, "wronai/tiny", COMMIT, {}) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(FileNotFoundError, match=r"no config\.json; there is model\.safetensors$"):
            planner.shape(model(**HUB), project / "downloads")


def test_a_hub_that_refuses_is_one_message(
    project: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles.apply(ROOT / "profiles/mistral-7b.yaml", project / "params.yaml")
    with hub.serve(repository, "wronai/tiny", COMMIT, {}) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert planner.main(["--memory", "8GB"]) == 1
    assert capsys.readouterr().err.startswith(
        "model: mistralai/Mistral-7B-v0.1 at 7231864981174d9bee8c7687c24c8344414e"
    )


def test_the_command_prints_the_plan_of_the_default_before_anything_has_run(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planner.main(["--memory", "8GB", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "5 layers of 192" in out and "of 8.00 GB on the CPU" in out and "to spare" in out


def test_the_command_says_what_to_change_where_it_does_not_fit(
    project: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles.apply(ROOT / "profiles/mistral-7b.yaml", project / "params.yaml")
    local = project / "local.yaml"
    local.write_text("model:\n  base: local\n  built_from: repository\n  path: repository\n")
    profiles.apply(local, project / "params.yaml")
    assert planner.main(["--memory", "8GB"]) == 0
    assert planner.main(["--memory", "5GB"]) == 1
    assert "tokenize.max_length: " in capsys.readouterr().out


def test_pinned_numerics_hide_the_gpu_from_the_plan_as_from_the_stage(project: Path) -> None:
    code = (
        "import os, sys; from wronai import plan, planner; here = plan.here; "
        "plan.here = lambda: (print('visible:', os.environ.get('CUDA_VISIBLE_DEVICES')), here())[1]; "
        "sys.exit(planner.main([]))"
    )
    env = {name: value for name, value in os.environ.items() if name not in numerics.PINNED}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "visible: \n" in done.stdout and "on the CPU" in done.stdout


def test_a_device_that_this_machine_lacks_needs_its_memory(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "here", lambda: plan.Device("cpu", 0, 10**10))
    assert planner.main(["--device", "cuda"]) == 1
    assert capsys.readouterr().err == "--device cuda: this machine has none to ask; say --memory too, such as 8GB\n"


def test_an_amount_that_is_none_ends_the_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planner.main(["--memory", "much"]) == 1
    assert "memory: found 'much'" in capsys.readouterr().err
