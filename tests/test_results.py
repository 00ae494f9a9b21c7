"""What the README promises of the default run is what metrics/ records of it, and is good enough to promise."""

import re
from pathlib import Path
from typing import Any

from wronai import graph, params, report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIG = params.load(ROOT / "params.yaml")
STAGES = [name for name in graph.made(ROOT / "dvc.yaml", CONFIG) if name != "publish_report" and "@" not in name]
FOUND: dict[str, Any] = report.read(ROOT / "metrics", STAGES)
SCORES = FOUND["evaluate_benchmarks"]
BITS = SCORES["bits_per_byte"]


def test_the_tuned_model_needs_eight_percent_fewer_bits_for_held_out_answers() -> None:
    assert BITS["answers"]["relative"] <= -0.08
    assert BITS["answers"]["difference_high"] < 0, "the 95 % interval of the paired difference"


def test_the_base_is_worth_tuning() -> None:
    assert BITS["documents"]["base"] < BITS["documents_xz"]


def test_answers_close() -> None:
    assert SCORES["generations"]["answers"] >= 48
    assert SCORES["generations"]["closed"] >= 0.95


def test_the_benchmarks_are_those_of_params_whole_and_with_intervals() -> None:
    tasks = FOUND["prepare_benchmarks"]["tasks"]
    assert set(SCORES["benchmarks"]) == set(SCORES["tasks"]) == set(tasks)
    assert {entry["entry"] for entry in tasks.values()} == set(CONFIG.evaluate.tasks)
    for task, metrics in SCORES["benchmarks"].items():
        for score in metrics.values():
            assert score["items"] == tasks[task]["items"] == SCORES["tasks"][task]["items_of_task"]
            assert score["difference_low"] <= score["difference"] <= score["difference_high"]


def test_the_tuned_model_is_not_worse_over_all_tasks() -> None:
    assert SCORES["mean"]["verdict"] != "worse"
    assert SCORES["verdict"] == "better"


def test_the_merged_model_says_what_the_adapter_says() -> None:
    assert FOUND["merge_adapters"]["parity"]["equal_next_tokens"] >= 0.99


def test_nothing_of_the_sample_is_lost_on_the_way_to_training() -> None:
    kept = FOUND["clean_text"]["instructions"]
    assert FOUND["download_corpus"]["instructions"] == kept["read"] == kept["kept"]
    for split in ("train", "validation"):
        ledger = FOUND["tokenize_text"][split]
        assert ledger["examples"] == ledger["examples_kept"] == kept[split]
        assert ledger["tokens"] == ledger["tokens_kept"] > ledger["tokens_supervised"] > 0
    assert FOUND["merge_adapters"]["contract_examples"] == kept["train"]


def test_the_readme_shows_the_tables_of_the_report() -> None:
    text = report.markdown(FOUND, CONFIG)
    shown = [line for line in text[text.index("Verdict:") : text.index("## Training")].splitlines() if line]
    assert sum(line.startswith("| ") for line in shown) >= 2 * 2 + 3 + 1 + len(SCORES["benchmarks"])
    shown = [line for line in shown if not line.startswith(("#", "!["))]
    assert [line for line in shown if line not in README.splitlines()] == []


def test_every_make_target_of_the_readme_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documented = README + (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", documented, re.MULTILINE))
    assert {"repro", "test", "profile", "ui"} <= named <= targets


def test_every_entry_of_the_tree_is_there() -> None:
    tree = README[README.index("## The tree") :]
    entries = [name for row in re.findall(r"^\| (`.*?) \|", tree, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)]
    assert len(entries) > 10
    assert [name for name in entries if not (ROOT / name).exists() and name != "report/"] == []
