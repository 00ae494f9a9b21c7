import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch

from stages.evaluate_benchmarks import evaluate_benchmarks
from wronai import base, corpus, numerics, params, scoring, tokens

Evaluated = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as clean_text leaves it."""
    folder = tmp_path_factory.mktemp("clean")
    documents = [tiny.document(number, text) for number, text in enumerate(tiny.texts()[:3])]
    corpus.write_table(documents, corpus.DOCUMENTS, folder / "documents" / "test.parquet")
    corpus.write_table(tiny.CONVERSATIONS[:5], corpus.INSTRUCTIONS, folder / "instructions" / "test.parquet")
    return folder


def run(base_folder: Path, merged: Path, clean: Path, out: Path, **changes: Any) -> dict[str, Any]:
    numerics.deterministic("pinned", tiny.SEED)
    settings: params.Evaluate = tiny.EVALUATE.model_copy(update=changes)
    return evaluate_benchmarks(
        base_folder, merged, clean, settings, tiny.SEED, out / "scores", out / "metrics" / "samples.jsonl"
    )


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, base_folder: Path, merged_folder: Path, clean: Path
) -> Evaluated:
    out = tmp_path_factory.mktemp("evaluated")
    return out, run(base_folder, merged_folder, clean, out)


def test_base_and_tuned_are_compared_on_every_item_of_an_embedded_task(evaluated: Evaluated) -> None:
    _, metrics = evaluated
    items = len(Path("data/sample/benchmarks/grammar.jsonl").read_text(encoding="utf-8").splitlines())
    found = metrics["benchmarks"]["wronai_grammar"]
    assert set(found) == {"acc", "acc_norm"}
    for scores in found.values():
        assert scores["items"] == items
        assert 0 <= scores["base"] <= 1
        assert 0 < scores["base_stderr"] < 0.5 > scores["tuned_stderr"] > 0
    assert metrics["num_fewshot"] == 0


def test_bits_per_byte_are_those_of_each_model_in_its_own_format(
    evaluated: Evaluated, base_folder: Path, merged_folder: Path
) -> None:
    _, metrics = evaluated
    bits = metrics["bits_per_byte"]
    assert (bits["documents"]["texts"], bits["answers"]["texts"]) == (3, 5)
    for found in (bits["documents"], bits["answers"]):
        assert 1 < found["tuned"] < 8
        assert found["difference_low"] <= found["difference"] <= found["difference_high"]
    for name, folder in (("base", base_folder), ("tuned", merged_folder)):
        scores = scoring.score_answers(
            base.load(folder, torch.float32).eval(),
            tokens.load(folder),
            tiny.CONVERSATIONS[:5],
            tiny.EVALUATE.max_length,
            chat=name == "tuned",
        )
        assert bits["answers"][name] == pytest.approx(scoring.bits_per_byte(scores), rel=1e-6)
    assert 1 < bits["documents_xz"] < 8


def test_every_single_score_is_kept(evaluated: Evaluated) -> None:
    out, metrics = evaluated
    for kind in ("documents", "answers"):
        table = pd.read_parquet(out / f"scores/{kind}.parquet")
        for name in ("base", "tuned"):
            bits = table[f"nats_{name}"].sum() / math.log(2) / table["bytes"].sum()
            assert metrics["bits_per_byte"][kind][name] == pytest.approx(bits)
    items = pd.read_parquet(out / "scores/benchmarks.parquet").query("metric == 'acc'")
    assert items["value_tuned"].mean() == pytest.approx(metrics["benchmarks"]["wronai_grammar"]["acc"]["tuned"])
    assert items["item"].is_unique


def test_the_samples_can_be_read(evaluated: Evaluated) -> None:
    out, metrics = evaluated
    lines = (out / "metrics/samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    known = {example["id"]: example for example in tiny.CONVERSATIONS[:5]}
    assert len({row["id"] for row in rows}) == 2
    for row in rows:
        asked = known[row["id"]]
        assert row["question"] == asked["messages"][0]["content"]
        assert row["reference"] == asked["messages"][1]["content"]
        assert row["register"] == asked["register"]
        assert "<" not in row["tuned"].replace("<0x", "")
        assert isinstance(row["closed"], bool)
        assert row["base"] != row["tuned"]
    assert metrics["generations"]["answers"] == 3
    assert 0 <= metrics["generations"]["closed"] <= 1
    assert 0 < metrics["generations"]["mean_tokens"] <= tiny.EVALUATE.max_new_tokens


def test_a_second_evaluation_says_the_same(
    evaluated: Evaluated, base_folder: Path, merged_folder: Path, clean: Path, tmp_path: Path
) -> None:
    assert run(base_folder, merged_folder, clean, tmp_path) == evaluated[1]
    for name in (
        "metrics/samples.jsonl",
        *(f"scores/{kind}.parquet" for kind in ("benchmarks", "documents", "answers")),
    ):
        assert (tmp_path / name).read_bytes() == (evaluated[0] / name).read_bytes()


def test_an_unknown_task_names_the_key(base_folder: Path, merged_folder: Path, clean: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.tasks: .* has no task wronai_gramar; it has wronai_grammar"):
        run(base_folder, merged_folder, clean, tmp_path, tasks=["wronai_gramar"])


@pytest.mark.parametrize("role", ["documents", "instructions"])
def test_an_empty_test_split_says_how_to_fill_it(
    base_folder: Path, merged_folder: Path, clean: Path, tmp_path: Path, role: str
) -> None:
    rows = {"documents": [tiny.document(0, "Ala.")], "instructions": tiny.CONVERSATIONS[:1]}
    for name, schema in (("documents", corpus.DOCUMENTS), ("instructions", corpus.INSTRUCTIONS)):
        corpus.write_table([] if name == role else rows[name], schema, tmp_path / "clean" / name / "test.parquet")
    with pytest.raises(ValueError, match=rf"0 {role} .*raise clean\.share_test, or add sources"):
        run(base_folder, merged_folder, tmp_path / "clean", tmp_path)


def test_a_merged_model_that_is_missing_is_one_clear_error(base_folder: Path, clean: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none: no \*\.safetensors"):
        run(base_folder, tmp_path / "none", clean, tmp_path)
