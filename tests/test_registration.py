"""The merged model becomes a version of a model in MLflow's registry, from DVC's cache, and loads from there."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from clones import run
from ruamel.yaml import YAML

from wronai import tracking
from wronai.store import Record, Store

QUESTION, ANSWER = "Gdzie leży Wrocław?", "Nad Odrą."
CARD = "---\nlanguage: pl\n---\n# WronAI\n"


@pytest.fixture
def project(tmp_path: Path, merged_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project whose cache has a tiny merged model, and whose workspace has moved on."""
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "dvc", "init", "-q")
    shutil.copytree(merged_folder, tmp_path / "models/merged")
    run(tmp_path, "dvc", "add", "-q", "models/merged")
    shutil.rmtree(tmp_path / "models/merged")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    mlflow.set_tracking_uri(None)


def parent(project: Path, md5: str) -> Record:
    """The parent run of a state that is to register `models/merged`."""
    tags = {"wronai.kind": "parent", "wronai.state": "a", "wronai.execution": "x"}
    record = Record("state", {"seed": 1}, tags, status="FINISHED", ended=1_700_000_000_000)
    told = {"path": "models/merged", "name": "wronai", "question": QUESTION, "answer": ANSWER, "card": CARD}
    record.model = {**told, "md5": md5}
    return record


def kept(project: Path) -> str:
    return str(YAML(typ="safe").load(project / "models/merged.dvc")["outs"][0]["md5"])


def test_the_merged_model_is_a_version_that_loads(project: Path) -> None:
    store = Store(project, "wronai")
    for _ in range(2):  # the state ran twice
        store.publish(parent(project, kept(project)), {})
    mlflow.set_tracking_uri(tracking.default_uri(project))
    client = mlflow.MlflowClient()
    (version,) = client.search_model_versions("name = 'wronai'")
    assert version.tags["out.models/merged"] == kept(project)
    assert client.get_run(version.run_id).info.status == "FINISHED"
    told = mlflow.models.get_model_info("models:/wronai/1")
    assert [column.type.name for column in told.signature.inputs] == ["string"]
    folder = Path(mlflow.artifacts.download_artifacts("models:/wronai/1"))
    assert json.loads((folder / "input_example.json").read_text()) == [QUESTION]
    assert "# WronAI" in (folder / "model_card.md").read_text(encoding="utf-8")
    assert (folder / "model/model.safetensors").exists()
    answer = mlflow.transformers.load_model("models:/wronai/1")(QUESTION, max_new_tokens=4)
    assert answer[0]["generated_text"].startswith(QUESTION[:5])


def test_a_model_that_the_cache_lacks_waits_and_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(project, "wronai").publish(parent(project, "0" * 32 + ".dir"), {})
    said = capsys.readouterr().err
    assert f"models/merged: {'0' * 32}.dir is not in the DVC cache; `dvc pull` or `dvc repro` brings it" in said
    assert len(list((project / ".tracking").glob("*.json"))) == 1
