import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hub
import pytest
import tiny
from ruamel.yaml import YAML

from stages.prepare_base import prepare_base
from wronai import base, corpus, numerics, params, tokens

MODEL = params.Model(
    base="scratch", built_from="data/clean", path=None, repository=None, revision=None, scratch=tiny.SCRATCH
)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def prepare(
    clean: Path,
    model: params.Model,
    folder: Path,
    log: Any = tiny.ignore,
    target_modules: Sequence[str] = params.TARGET_MODULES,
) -> dict[str, Any]:
    return prepare_base(clean, model, target_modules, tiny.SEED, folder / "downloads", folder / "out", log, tiny.ignore)


def local(folder: Path) -> params.Model:
    return MODEL.model_copy(update={"base": "local", "path": str(folder), "built_from": str(folder)})


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A folder as clean_text leaves it."""
    texts = tiny.texts()
    for split, some in (("train", texts[5:]), ("validation", texts[:5])):
        rows = [tiny.document(number, text) for number, text in enumerate(some)]
        corpus.write_table(rows, corpus.DOCUMENTS, tmp_path / "clean" / "documents" / f"{split}.parquet")
    return tmp_path / "clean"


def test_a_base_is_made_from_the_clean_documents(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []
    numerics.deterministic("pinned", tiny.SEED)
    metrics = prepare(clean, MODEL, tmp_path, lambda step, **values: logged.append(values))
    assert metrics["base"] == "scratch"
    assert metrics["parameters"] == base.check(tmp_path / "out")["parameters"]
    assert metrics["validation_loss"] < 6
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (base_folder / "model.safetensors").read_bytes()


def test_a_base_is_taken_from_a_folder(base_folder: Path, tmp_path: Path) -> None:
    metrics = prepare(tmp_path / "unused", local(base_folder), tmp_path)
    assert metrics == {"base": "local", **base.check(base_folder)}
    assert (tmp_path / "out/model.safetensors").read_bytes() == (base_folder / "model.safetensors").read_bytes()


def test_a_folder_that_holds_no_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        prepare(tmp_path, local(tmp_path / "empty"), tmp_path)


def test_a_tokenizer_that_does_not_fit_the_base_is_refused(base_copy: Path, tmp_path: Path) -> None:
    larger = tokens.load(base_copy)
    larger.add_tokens(["nowy"])
    larger.save_pretrained(base_copy)
    with pytest.raises(ValueError, match="they do not belong together"):
        prepare(tmp_path, local(base_copy), tmp_path)


def test_clean_text_that_is_missing_names_its_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the stage clean_text makes it"):
        prepare(tmp_path, MODEL, tmp_path)


def test_no_documents_are_an_error(clean: Path, tmp_path: Path) -> None:
    empty: list[dict[str, Any]] = []
    corpus.write_table(empty, corpus.DOCUMENTS, clean / "documents" / "train.parquet")
    with pytest.raises(ValueError, match="add documents"):
        prepare(clean, MODEL, tmp_path)


def test_a_base_is_taken_from_the_hub(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODEL.model_copy(update={"base": "hub", "repository": "wronai/tiny", "revision": COMMIT})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub.serve(base_folder, "wronai/tiny", COMMIT, {}, large=["model.safetensors"]) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        metrics = prepare(tmp_path / "unused", model, tmp_path)
    assert metrics == {"base": "hub", "repository": "wronai/tiny", "revision": COMMIT, **base.check(base_folder)}


@pytest.mark.parametrize("kind", ["scratch", "local", "hub"])
def test_layers_that_the_base_lacks_are_told_before_any_work(
    kind: str, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {
        "scratch": MODEL,
        "local": local(base_folder),
        "hub": MODEL.model_copy(update={"base": "hub", "repository": "wronai/tiny", "revision": COMMIT}),
    }[kind]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub.serve(base_folder, "wronai/tiny", COMMIT, {}) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(
            ValueError, match=r"^finetune\.lora\.target_modules: the base has no linear layer c_attn; it"
        ):
            prepare(tmp_path / "unused", model, tmp_path, target_modules=["q_proj", "c_attn"])


def test_nothing_is_written_through_the_links_of_an_earlier_run(clean: Path, base_copy: Path, tmp_path: Path) -> None:
    before = (base_copy / "model.safetensors").read_bytes()
    prepare(tmp_path / "unused", local(base_copy), tmp_path)
    changed = MODEL.model_copy(update={"scratch": tiny.SCRATCH.model_copy(update={"max_steps": 1})})
    prepare(clean, changed, tmp_path)
    assert (tmp_path / "out/model.safetensors").read_bytes() != before
    assert (base_copy / "model.safetensors").read_bytes() == before


def test_the_folder_that_the_base_is_put_to_is_no_local_base(base_copy: Path, tmp_path: Path) -> None:
    base_copy.rename(tmp_path / "out")
    with pytest.raises(ValueError, match=r"model\.path: .*out is where this stage puts the base"):
        prepare(tmp_path, local(tmp_path / "out"), tmp_path)
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_branch_ends_the_stage_with_one_message_and_exit_code_1(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = YAML().load(Path("params.yaml"))
    values["model"] |= {
        "base": "hub",
        "built_from": "stages/prepare_base.py",
        "repository": "wronai/tiny",
        "revision": "main",
    }
    YAML().dump(values, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text(Path("dvc.yaml").read_text())
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub.serve(base_folder, "wronai/tiny", COMMIT, {}, names={"main": COMMIT}) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setenv(
            "MLFLOW_TRACKING_URI", "http://127.0.0.1:9"
        )  # nobody there, which is faster than a new store
        done = subprocess.run(
            [sys.executable, "-m", "stages.prepare_base"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("prepare_base: model.revision: 'main' is a branch")
    assert f"revision: {COMMIT}" in done.stderr
    assert "Traceback" not in done.stderr
