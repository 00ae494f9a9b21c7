"""The report says what the metrics say, on one page that needs nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.publish_report import publish_report
from wronai import params, report, tracking

ROOT = Path(__file__).parent.parent
MEASURED = [name for name in tracking.declared(ROOT / "dvc.yaml") if name != "publish_report"]
CONFIG = params.load(ROOT / "params.yaml")
BITS = {"texts": 3, "bytes": 90, "base": 3.0, "tuned": 2.5, "difference": -0.5, "relative": -1 / 6}
INTERVAL = {"difference_low": -0.6, "difference_high": -0.4}
SCORES = {"items": 8, "base": 0.5, "base_stderr": 0.1, "tuned": 0.75, "tuned_stderr": 0.1}
FOUND: dict[str, Any] = {
    "download_corpus": {"documents": 3},
    "clean_text": {
        "documents": {"kept": 2, "read": 3, "dropped": {"not_polish": 1}},
        "instructions": {"kept": 4, "read": 4, "dropped": {}},
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
    "evaluate_benchmarks": {
        "benchmarks": {"wronai_topic": {"acc": {**SCORES, "difference": 0.25, "difference_stderr": 0.05}}},
        "num_fewshot": 0,
        "bits_per_byte": {"documents": {**BITS, **INTERVAL}, "answers": {**BITS, **INTERVAL}, "documents_xz": 3.7},
        "generations": {"answers": 4, "closed": 1.0, "mean_tokens": 30.0},
    },
}
SAMPLE = {
    "id": "a",
    "register": "formal",
    "question": "Co znaczy <b>tekst</b>?",
    "reference": "Pogrubienie.",
    "tuned": "<script>alert(1)</script>",
    "closed": True,
    "base": "Nic",
}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    for stage, found in FOUND.items():
        tracking.write_json(tmp_path / f"{stage}.json", found)
    (tmp_path / "samples.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    (tmp_path / "loss_curve.csv").write_text("step,loss,eval_loss\n1,6.0,\n2,5.5,5.9\n3,5.0,\n4,,5.2\n")
    return tmp_path


def test_the_report_holds_the_benchmarks_the_bits_and_the_answers(metrics: Path) -> None:
    text = report.markdown(report.read(metrics, MEASURED), CONFIG)
    assert "| wronai_topic | acc | 8 | 0.500 ± 0.100 | 0.750 ± 0.100 | +0.250 ± 0.050 |" in text
    assert "| answers | 3 | 3.000 | 2.500 | -0.500 | -0.600 to -0.400 | -16.7 % |" in text
    assert "| documents | not_polish | 1 |" in text
    assert "*formal, closed*" in text


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
    tracking.write_json(metrics / "merge_adapters.json", FOUND["merge_adapters"] | merged)
    config = CONFIG.model_copy(update={"merge": CONFIG.merge.model_copy(update={"base_weights": base_weights})})
    text = report.markdown(report.read(metrics, MEASURED), config)
    assert f"\n## Merge\n\n{says}" in text
    assert re.findall("those of the adapter on (4 bits|the original)", text) == compared


def test_the_page_needs_no_other_file_and_runs_nothing(metrics: Path, tmp_path: Path) -> None:
    publish_report(metrics, CONFIG, MEASURED, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert "<svg" in page and "<table>" in page
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', 'href="#'))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_same_metrics_give_the_same_bytes(metrics: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish_report(metrics, CONFIG, MEASURED, tmp_path / name)
    for file in ("report.md", "loss_curve.svg", "index.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_stage_without_metrics_is_named(metrics: Path) -> None:
    (metrics / "merge_adapters.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"merge_adapters\.json: not found; the stage merge_adapters writes it"):
        report.read(metrics, MEASURED)


def test_a_page_without_a_place_for_the_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the loss curve"):
        report.page("# Title", "<svg></svg>")
