from pathlib import Path
from typing import Any

import pytest
import tiny

from stages.prepare_base import prepare_base
from wronai import base, corpus, numerics, params, tokens

MODEL = params.Model(
    base="scratch", built_from="data/clean", path=None, repository=None, revision=None, scratch=tiny.SCRATCH
)


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
    metrics = prepare_base(clean, MODEL, tiny.SEED, tmp_path / "out", lambda step, **values: logged.append(values))
    assert metrics["base"] == "scratch"
    assert metrics["parameters"] == base.check(tmp_path / "out")["parameters"]
    assert metrics["validation_loss"] < 6
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (base_folder / "model.safetensors").read_bytes()


def test_a_base_is_taken_from_a_folder(base_folder: Path, tmp_path: Path) -> None:
    local = MODEL.model_copy(update={"base": "local", "path": str(base_folder), "built_from": str(base_folder)})
    metrics = prepare_base(tmp_path / "unused", local, tiny.SEED, tmp_path / "out", tiny.ignore)
    assert metrics == {"base": "local", **base.check(base_folder)}
    assert (tmp_path / "out/model.safetensors").read_bytes() == (base_folder / "model.safetensors").read_bytes()


def test_a_folder_that_holds_no_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    local = MODEL.model_copy(update={"base": "local", "path": str(tmp_path / "empty")})
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        prepare_base(tmp_path, local, tiny.SEED, tmp_path / "out", tiny.ignore)


def test_a_tokenizer_that_does_not_fit_the_base_is_refused(base_copy: Path, tmp_path: Path) -> None:
    larger = tokens.load(base_copy)
    larger.add_tokens(["nowy"])
    larger.save_pretrained(base_copy)
    local = MODEL.model_copy(update={"base": "local", "path": str(base_copy)})
    with pytest.raises(ValueError, match="they do not belong together"):
        prepare_base(tmp_path, local, tiny.SEED, tmp_path / "out", tiny.ignore)


def test_clean_text_that_is_missing_names_its_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the stage clean_text makes it"):
        prepare_base(tmp_path, MODEL, tiny.SEED, tmp_path / "out", tiny.ignore)


def test_no_documents_are_an_error(clean: Path, tmp_path: Path) -> None:
    empty: list[dict[str, Any]] = []
    corpus.write_table(empty, corpus.DOCUMENTS, clean / "documents" / "train.parquet")
    with pytest.raises(ValueError, match="add documents"):
        prepare_base(clean, MODEL, tiny.SEED, tmp_path / "out", tiny.ignore)
