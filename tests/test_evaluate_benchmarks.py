import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from small_tasks import GENERATED, TURNS, YAML, bundle_of

from stages.evaluate_benchmarks import evaluate_benchmarks
from stages.score_benchmarks import score_benchmarks
from stages.score_text import read_retention, score_text
from wronai import corpus, numerics, params
from wronai.comparison import bits_per_byte

Evaluated = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as clean_text leaves it."""
    folder = tmp_path_factory.mktemp("clean")
    documents = [
        {**tiny.document(number, text), "source": source}
        for number, (text, source) in enumerate(zip(tiny.texts()[:4], ("a", "a", "b", "b"), strict=True))
    ]
    corpus.write_table(documents, corpus.DOCUMENTS, folder / "documents" / "test.parquet")
    corpus.write_table(tiny.CONVERSATIONS[:5], corpus.INSTRUCTIONS, folder / "instructions" / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def retention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retention")
    lines = Path("data/sample/retention/english.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    (folder / "english.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("benchmarks"), colours=YAML, talk=GENERATED, turns=TURNS)


def score(
    models: dict[str, Path], clean: Path, retention: Path, bundle: Path, scores: Path, **changes: Any
) -> params.Evaluate:
    """Score both models as the stages do, into `scores`."""
    settings: params.Evaluate = tiny.EVALUATE.model_copy(update={"max_length": 128, **changes})
    for model, folder in models.items():
        numerics.deterministic("pinned", tiny.SEED)
        tuned = model == "merged"
        score_text(
            folder, clean, retention, settings.scoring, settings.answers, settings.max_bytes_per_source, tiny.SEED,
            tuned=tuned, out=scores / model / "text",
        )  # fmt: skip
        score_benchmarks(
            folder, bundle, settings.scoring, settings.num_fewshot, tiny.SEED, tuned=tuned, out=scores / model / "mine"
        )
    return settings


def evaluate(scores: Path, out: Path, tasks: tuple[str, ...] = ("mine",)) -> dict[str, Any]:
    return evaluate_benchmarks(scores, tasks, 200, tiny.SEED, out / "samples.jsonl", out / "differences.csv")


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory,
    base_folder: Path,
    merged_folder: Path,
    clean: Path,
    retention: Path,
    bundle: Path,
) -> Evaluated:
    out = tmp_path_factory.mktemp("evaluated")
    score({"base": base_folder, "merged": merged_folder}, clean, retention, bundle, out / "scores")
    return out, evaluate(out / "scores", out)


def test_base_and_tuned_are_compared_on_every_item(evaluated: Evaluated) -> None:
    _, found = evaluated
    assert {task: set(metrics) for task, metrics in found["benchmarks"].items()} == {
        "colours": {"acc", "acc_norm"},
        "turns": {"acc", "acc_norm"},
        "talk": {"exact_match"},
    }
    for metrics in found["benchmarks"].values():
        for entry in metrics.values():
            assert entry["items"] == 4
            assert 0 <= entry["base"] <= 1 and 0 <= entry["tuned"] <= 1 and 0 <= entry["tuned_plain"] <= 1
            assert entry["difference"] == pytest.approx(entry["tuned"] - entry["base"])
            assert entry["difference_low"] <= entry["difference"] <= entry["difference_high"]
            assert entry["verdict"] in ("better", "worse", "no difference")
    assert found["mean"]["tasks"] == 3
    assert found["tasks"]["talk"]["version"] == "2.0"
    assert "partial" not in found


def test_the_scores_compared_are_base_in_plain_text_and_tuned_in_the_format(evaluated: Evaluated) -> None:
    out, found = evaluated
    for model, format_, key in (
        ("base", "plain", "base"),
        ("merged", "wronai", "tuned"),
        ("merged", "plain", "tuned_plain"),
    ):
        table = pd.read_parquet(out / "scores" / model / "mine" / "scores.parquet")
        rows = table[(table["format"] == format_) & (table["task"] == "colours") & (table["metric"] == "acc_norm")]
        assert found["benchmarks"]["colours"]["acc_norm"][key] == pytest.approx(rows["value"].mean())


def test_bits_per_byte_stand_for_each_source_and_each_model_in_its_own_format(evaluated: Evaluated) -> None:
    out, found = evaluated
    bits = found["bits_per_byte"]
    assert {
        kind: (bits[kind]["texts"], set(bits[kind]["by_source"])) for kind in ("documents", "answers", "retention")
    } == {
        "documents": (4, {"a", "b"}),
        "answers": (5, {"tiny"}),
        "retention": (2, {"english"}),
    }
    for model, key, format_ in (("base", "base", "plain"), ("merged", "tuned", "wronai")):
        table = pd.read_parquet(out / "scores" / model / "text" / "text.parquet")
        rows = table[(table["kind"] == "answers") & (table["format"] == format_)]
        assert bits["answers"][key] == pytest.approx(bits_per_byte(rows["nats"], rows["bytes"]))
        rows = table[(table["kind"] == "documents") & (table["source"] == "b")]
        assert bits["documents"]["by_source"]["b"][key] == pytest.approx(bits_per_byte(rows["nats"], rows["bytes"]))
    assert 1 < bits["documents_xz"] < 8
    assert bits["answers"]["tuned_plain"] != bits["answers"]["tuned"]


def test_answers_to_read_stand_side_by_side(evaluated: Evaluated) -> None:
    out, found = evaluated
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == tiny.EVALUATE.answers.samples == 2
    for row in rows:
        assert list(row) == ["id", "register", "question", "reference", "tuned", "closed", "formal", "informal", "base"]
        assert all(isinstance(row[key], str) for key in ("tuned", "formal", "informal", "base"))
        (example,) = (example for example in tiny.CONVERSATIONS if example["id"] == row["id"])
        assert (row["question"], row["reference"]) == tuple(turn["content"] for turn in example["messages"][:2])
    assert found["generations"]["answers"] == tiny.EVALUATE.answers.generations
    assert 0 <= found["generations"]["closed_greedy"] <= 1


def test_every_difference_is_in_the_plot(evaluated: Evaluated) -> None:
    out, found = evaluated
    table = pd.read_csv(out / "differences.csv")
    expected = {(task, metric) for task, metrics in found["benchmarks"].items() for metric in metrics}
    expected |= {(kind, "bits_per_byte") for kind in ("documents", "answers", "retention")} | {("mean", "leading")}
    assert set(table[["what", "metric"]].itertuples(index=False, name=None)) == expected
    row = table[(table["what"] == "colours") & (table["metric"] == "acc")].iloc[0]
    assert row["difference_low"] == found["benchmarks"]["colours"]["acc"]["difference_low"]


def test_evaluation_repeats_to_the_byte(
    evaluated: Evaluated,
    base_folder: Path,
    merged_folder: Path,
    clean: Path,
    retention: Path,
    bundle: Path,
    tmp_path: Path,
) -> None:
    out, found = evaluated
    score({"base": base_folder, "merged": merged_folder}, clean, retention, bundle, tmp_path / "scores")
    assert evaluate(tmp_path / "scores", tmp_path) == found
    names = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert len(names) == 2 * (3 + 3) + 2
    for name in names:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


def test_a_limit_marks_every_number_as_partial(
    base_folder: Path, merged_folder: Path, clean: Path, retention: Path, bundle: Path, tmp_path: Path
) -> None:
    score({"base": base_folder, "merged": merged_folder}, clean, retention, bundle, tmp_path / "scores", limit=1)
    found = evaluate(tmp_path / "scores", tmp_path)
    assert list(found) == ["partial"]
    assert {entry["items"] for metrics in found["partial"]["benchmarks"].values() for entry in metrics.values()} == {1}
    assert found["partial"]["bits_per_byte"]["documents"]["texts"] == 2, "one of each source"
    assert found["partial"]["generations"]["answers"] == 1


def test_a_model_that_was_made_worse_is_flagged(
    evaluated: Evaluated,
    base_folder: Path,
    clean: Path,
    retention: Path,
    bundle: Path,
    merged_folder: Path,
    tmp_path: Path,
) -> None:
    """The tuned model with its embeddings in another order, so that it reads other words than are there."""
    import torch
    from safetensors.torch import load_file, save_file

    worse = Path(shutil.copytree(merged_folder, tmp_path / "worse"))
    (file,) = worse.glob("*.safetensors")
    weights = load_file(file)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    weights["model.embed_tokens.weight"][:600] = weights["model.embed_tokens.weight"][:600][order].clone()
    save_file(weights, file, metadata={"format": "pt"})
    out, _ = evaluated
    shutil.copytree(out / "scores" / "base", tmp_path / "scores" / "base")
    score({"merged": worse}, clean, retention, bundle, tmp_path / "scores")
    found = evaluate(tmp_path / "scores", tmp_path)
    bits = found["bits_per_byte"]
    assert bits["documents"]["verdict"] == bits["retention"]["verdict"] == "worse"
    assert found["verdict"] in ("worse", "mixed")


def test_what_is_left_of_an_entry_that_is_gone_is_removed(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, found = evaluated
    shutil.copytree(out / "scores", tmp_path / "scores")
    shutil.copytree(out / "scores" / "base" / "mine", tmp_path / "scores" / "base" / "old")
    shutil.copytree(out / "scores" / "base", tmp_path / "scores" / "another")
    (tmp_path / "scores" / "left.parquet").write_bytes(b"")
    assert evaluate(tmp_path / "scores", tmp_path) == found
    left = [path.relative_to(tmp_path / "scores").as_posix() for path in (tmp_path / "scores").glob("*/*")]
    assert sorted(left) == ["base/mine", "base/text", "merged/mine", "merged/text"]
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["base", "merged"]
    assert "base/old: of no entry of evaluate.tasks any more; removed" in capsys.readouterr().out


@pytest.mark.parametrize(("part", "stage"), [("mine", "score_benchmarks"), ("text", "score_text")])
def test_scores_that_are_not_there_name_their_stage(
    evaluated: Evaluated, tmp_path: Path, part: str, stage: str
) -> None:
    out, _ = evaluated
    shutil.copytree(out / "scores", tmp_path / "scores")
    shutil.rmtree(tmp_path / "scores" / "merged" / part)
    with pytest.raises(FileNotFoundError, match=f"merged/{part}: no scores; the stage {stage} writes them"):
        evaluate(tmp_path / "scores", tmp_path)


def test_scores_of_different_items_are_not_compared(evaluated: Evaluated, tmp_path: Path) -> None:
    out, _ = evaluated
    shutil.copytree(out / "scores", tmp_path / "scores")
    path = tmp_path / "scores" / "base" / "mine" / "scores.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    with pytest.raises(
        ValueError, match="base and tuned were not scored on the same: 19 and 20 rows, 19 of them agree"
    ):
        evaluate(tmp_path / "scores", tmp_path)


@pytest.mark.parametrize("missing", ["documents", "instructions"])
def test_nothing_held_out_is_an_error_that_names_the_key(
    base_folder: Path, clean: Path, retention: Path, tmp_path: Path, missing: str
) -> None:
    shutil.copytree(clean, tmp_path / "clean")
    schema = {"documents": corpus.DOCUMENTS, "instructions": corpus.INSTRUCTIONS}[missing]
    corpus.write_table([], schema, tmp_path / "clean" / missing / "test.parquet")
    settings = tiny.EVALUATE
    with pytest.raises(ValueError, match=rf"\b0 {missing}.* in the test split.*raise clean.share_test"):
        score_text(
            base_folder, tmp_path / "clean", retention, settings.scoring, settings.answers, None, 1,
            tuned=False, out=tmp_path / "out",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"english.jsonl line 2: expected a JSON object with id and text, found '\{'"),
        ('{"id": 1}', "english.jsonl line 2: expected a JSON object with id and text"),
        ("[]", "english.jsonl line 2: expected a JSON object with id and text"),
    ],
)
def test_a_text_of_another_language_that_is_none_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "english.jsonl").write_text('{"id": "a", "text": "One."}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_retention(tmp_path)


def test_a_folder_without_texts_of_other_languages_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(evaluate.retention\) holds no .jsonl file with documents"):
        read_retention(tmp_path)
