"""The report says what the metrics say, on one page that needs nothing else."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.publish_report import publish_report
from wronai import files, graph, params, report

ROOT = Path(__file__).parent.parent
CONFIG = params.load(ROOT / "params.yaml")
STAGES = graph.made(ROOT / "dvc.yaml", CONFIG)
MEASURED = [name for name in STAGES if name != "publish_report" and "@" not in name]
VERDICT = {"difference_low": -0.6, "difference_high": -0.4, "verdict": "better"}
BITS = {"texts": 3, "bytes": 90, "base": 3.0, "tuned": 2.5, "difference": -0.5, "relative": -1 / 6, **VERDICT}
HELP = {"texts": 3, "base": 0.1, "tuned": 0.3, "difference": 0.2, "difference_low": 0.1, "difference_high": 0.3}
ACC = {
    "items": 8, "base": 0.5, "base_stderr": 0.1, "tuned": 0.75, "tuned_stderr": 0.1, "tuned_plain": 0.625,
    "difference": 0.25, "difference_stderr": 0.05, "difference_low": 0.125, "difference_high": 0.375,
}  # fmt: skip
TOLD = {
    "version": "1.0",
    "num_fewshot": 2,
    "seed": 42,
    "items": 8,
    "items_of_task": 8,
    "leading": "acc_norm",
    "higher_is_better": {"acc": True, "acc_norm": True},
    "floors": {"chance": 0.125, "majority": 0.25},
    "formats": {"plain": {"cut": 0}, "wronai": {"cut": 2}},
}
EVALUATED: dict[str, Any] = {
    "benchmarks": {
        "wronai_topic": {"acc": {**ACC, "verdict": "better"}, "acc_norm": {**ACC, "verdict": "no difference"}}
    },
    "mean": {"tasks": 1, **{key: ACC[key] for key in ACC if "stderr" not in key}, "verdict": "better"},
    "tasks": {"wronai_topic": TOLD},
    "bits_per_byte": {
        "documents": {**BITS, "by_source": {"press": BITS, "books": BITS}},
        "answers": {**BITS, "tuned_plain": 2.75, "by_source": {"press": BITS}},
        "retention": {**BITS, "tuned": 3.5, "verdict": "worse", "by_source": {"english": {**BITS, "verdict": "worse"}}},
        "help_of_question": {**HELP, "verdict": "better"},
        "documents_xz": 3.7,
    },
    "generations": {
        "answers": 4, "closed": 1.0, "closed_greedy": 0.75, "ended_greedy": 0.75, "mean_tokens": 30.0,
    },
    "verdict": "better",
}  # fmt: skip
FOUND: dict[str, Any] = {
    "download_corpus": {"documents": 3},
    "clean_text": {
        "documents": {"kept": 2, "read": 3, "dropped": {"not_polish": 1}},
        "instructions": {"kept": 4, "read": 4, "dropped": {}},
        "contamination": {"wronai_topic": {"items": 8, "items_too_short": 1, "documents": 2, "instructions": 1}},
    },
    "prepare_base": {"parameters": 3_500_000},
    "tokenize_text": {"vocab_size": 4106},
    "finetune_qlora": {
        "steps": 9,
        "tokens_seen": 1000,
        "trainable_parameters": 275_200,
        "validation_loss_before": 6.0,
        "validation_loss": 5.0,
    },
    "merge_adapters": {
        "parity": {"equal_next_tokens": 1.0, "positions": 512, "mean_kl": 1e-9, "max_logit_difference": 4e-6}
    },
    "prepare_benchmarks": {"tasks": {"wronai_topic": {"items": 8}}},
    "evaluate_benchmarks": EVALUATED,
}
SAMPLE = {
    "id": "a",
    "register": "formal",
    "question": "Co znaczy <b>tekst</b>?",
    "reference": "Pogrubienie.",
    "tuned": "<script>alert(1)</script>",
    "closed": True,
    "formal": "Proszę Pani",
    "informal": "Cześć",
    "base": "Nic",
}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    for stage, found in FOUND.items():
        files.write_json(tmp_path / f"{stage}.json", found)
    (tmp_path / "samples.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    (tmp_path / "loss_curve.csv").write_text("step,loss,eval_loss\n1,6.0,\n2,5.5,5.9\n3,5.0,\n4,,5.2\n")
    (tmp_path / "differences.csv").write_text(
        "what,metric,base,tuned,difference,difference_low,difference_high,verdict\n"
        "documents,bits_per_byte,3.0,2.5,-0.5,-0.6,-0.4,better\n"
        "retention,bits_per_byte,3.0,3.5,0.5,0.4,0.6,worse\n"
        "wronai_topic,acc,0.5,0.75,0.25,-0.125,0.375,no difference\n"
    )
    return tmp_path


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_report_holds_the_bits_of_each_source_first(metrics: Path) -> None:
    text = report.markdown(report.read(metrics, MEASURED), CONFIG)
    tables = [
        list(lines) for is_row, lines in itertools.groupby(text.splitlines(), lambda line: line[:1] == "|") if is_row
    ]
    interval = "-0.500 | -0.600 to -0.400 | -16.7 %"
    assert tables[0][2:] == [
        f"| documents | 3 | 3.000 | 2.500 | {interval} | better |",
        f"| documents: books | 3 | 3.000 | 2.500 | {interval} | better |",
        f"| documents: press | 3 | 3.000 | 2.500 | {interval} | better |",
        f"| answers | 3 | 3.000 | 2.500 | {interval} | better |",
        f"| retention: english | 3 | 3.000 | 2.500 | {interval} | worse |",
    ]
    assert tables[1][2].startswith(
        "| held-out Polish | bits per byte, less is better |  | 3 |  | 3.000 | 2.500 |  | -0.500 |"
    )
    assert tables[1][3].startswith("| held-out Polish: books |")


def test_the_report_holds_every_benchmark_with_floor_interval_verdict_and_contamination(metrics: Path) -> None:
    text = report.markdown(report.read(metrics, MEASURED), CONFIG)
    values = "2 | 8 | 0.250 | 0.500 ± 0.100 | 0.625 | 0.750 ± 0.100 | +0.250 | +0.125 to +0.375"
    found = [line for line in rows(text) if line.startswith("| wronai_topic")]
    assert found == [
        f"| wronai_topic | acc_norm | {values} | no difference | 3 |",
        f"| wronai_topic | acc | {values} | better | 3 |",
    ]
    assert "Of 2 intervals at 95 %" in text
    assert "Counted: wronai_topic wronai: 2 cut to fit into the context." in text


def test_the_report_gives_its_verdict_and_what_it_is_made_of(metrics: Path) -> None:
    text = report.markdown(report.read(metrics, MEASURED), CONFIG)
    assert "Verdict: **better**. held-out answers better; held-out documents better; use of the question better" in text
    assert "the mean over 1 tasks better (0.500 to 0.750, +0.250, +0.125 to +0.375). No benchmark is worse." in text
    assert "at temperature zero 75 %." in text
    worse = {**EVALUATED, "benchmarks": {"wronai_topic": {"acc": {**ACC, "verdict": "worse"}}}}
    files.write_json(metrics / "evaluate_benchmarks.json", worse)
    assert "Worse: wronai_topic acc." in report.markdown(report.read(metrics, MEASURED), CONFIG)


def test_a_part_of_the_items_marks_every_number(metrics: Path) -> None:
    files.write_json(metrics / "evaluate_benchmarks.json", {"partial": EVALUATED})
    text = report.markdown(report.read(metrics, MEASURED), CONFIG)
    of_evaluation = text[text.index("Verdict:") : text.index("## Training")]
    numbers = [line for line in rows(of_evaluation) if re.search(r"\d\.\d{3}", line)]
    assert len(numbers) == 5 + 3 + 2
    assert all("(partial)" in line.split(" | ")[0] for line in numbers)
    assert "Verdict: **better** (partial)" in text and "wants (partial); at temperature zero 75 % (partial)" in text


def test_answers_stand_beside_each_other(metrics: Path) -> None:
    text = report.markdown(report.read(metrics, MEASURED), CONFIG)
    assert "| documents | not_polish | 1 |" in text
    assert "*formal, closed*" in text
    assert "- tuned, formal: Proszę Pani\n- tuned, informal: Cześć\n- base: Nic\n- reference: Pogrubienie.\n" in text


PARITY = FOUND["merge_adapters"]["parity"]


@pytest.mark.parametrize(
    ("quantization", "says", "held"),
    [
        ({}, "lora_alpha 32.0, nf4 with double quantization, 9 steps", "4 bits"),
        ({"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}, "lora_alpha 32.0, fp4, 9 steps", "4 bits"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "lora_alpha 32.0, 8 bits (LLM.int8()), 9 steps", "8 bits"),
        ({"load_in_4bit": False}, "lora_alpha 32.0, not quantized, float32, 9 steps", "the base"),
    ],
)
def test_the_report_says_what_the_adapter_was_trained_on(
    metrics: Path, quantization: dict[str, Any], says: str, held: str
) -> None:
    changed = CONFIG.finetune.quantization.model_copy(update=quantization)
    config = CONFIG.model_copy(update={"finetune": CONFIG.finetune.model_copy(update={"quantization": changed})})
    text = report.markdown(report.read(metrics, MEASURED), config)
    assert says in text
    assert (
        f"\n## Merge\n\n100.00 % of next tokens are those of the adapter on {held} (512 positions), "
        "mean KL 1.0e-09 nats, largest logit difference 4.0e-06.\n\n## Data\n" in text
    )


@pytest.mark.parametrize(
    ("base_weights", "merged", "says", "compared"),
    [
        (
            "original",
            {"parity_on_original": PARITY},
            "Merged into the original weights, not",
            ["4 bits", "the original"],
        ),
        (
            "auto",
            {"base_weights": {"chosen": "original"}, "parity_on_original": PARITY},
            "Merged into the original weights, of the lower validation loss: 2.5000 dequantized, 2.2500 original.",
            ["4 bits", "the original"],
        ),
        (
            "auto",
            {"base_weights": {"chosen": "dequantized"}},
            "Merged into the dequantized weights, of the lower validation loss: 2.5000 dequantized, 2.2500 original.",
            ["4 bits"],
        ),
    ],
)
def test_the_report_says_which_weights_were_merged_into_and_every_parity(
    metrics: Path, base_weights: str, merged: dict[str, Any], says: str, compared: list[str]
) -> None:
    if "base_weights" in merged:
        losses = {"dequantized": {"validation_loss": 2.5}, "original": {"validation_loss": 2.25}}
        merged = merged | {"base_weights": merged["base_weights"] | losses}
    files.write_json(metrics / "merge_adapters.json", FOUND["merge_adapters"] | merged)
    config = CONFIG.model_copy(update={"merge": CONFIG.merge.model_copy(update={"base_weights": base_weights})})
    text = report.markdown(report.read(metrics, MEASURED), config)
    assert f"\n## Merge\n\n{says}" in text
    assert re.findall("those of the adapter on (4 bits|the original)", text) == compared


def test_the_page_needs_no_other_file_and_runs_nothing(metrics: Path, tmp_path: Path) -> None:
    publish_report(metrics, CONFIG, MEASURED, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("<svg") == 2 and "<table>" in page
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', 'href="#'))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_same_metrics_give_the_same_bytes(metrics: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish_report(metrics, CONFIG, MEASURED, tmp_path / name)
    for file in ("report.md", "loss_curve.svg", "differences.svg", "index.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_stage_without_metrics_is_named(metrics: Path) -> None:
    (metrics / "merge_adapters.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"merge_adapters\.json: not found; the stage merge_adapters writes it"):
        report.read(metrics, MEASURED)


def test_a_page_without_a_place_for_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no place for loss_curve\.svg"):
        report.page("# Title", {"loss_curve.svg": "<svg></svg>"})


def test_the_picture_of_differences_shows_each_interval(metrics: Path) -> None:
    picture = report.differences(metrics / "differences.csv")
    for colour in ("#1a7f37", "#b3261e", "#777777"):
        assert picture.count(colour) >= 2, "a line and its dot"
