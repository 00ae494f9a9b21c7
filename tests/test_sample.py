"""The embedded corpus is as large, as varied and as clean as its users are told."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TOPICS = ["film", "historia", "jedzenie", "medycyna", "motoryzacja", "praca", "sport", "technologia"]


def rows(folder: str) -> list[dict[str, Any]]:
    lines = [line for path in sorted((ROOT / folder).rglob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines]


DOCUMENTS, INSTRUCTIONS, RETENTION = (
    rows(f"data/sample/{role}") for role in ("documents", "instructions", "retention")
)
ITEMS = rows("benchmarks/tasks")
CHOICES = [item for item in ITEMS if "choices" in item]


def texts(value: Any) -> list[str]:
    """Every text in a row: its fields, its choices, its turns."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in texts(part)]


def test_documents_are_many_and_of_many_genres() -> None:
    assert len(DOCUMENTS) >= 180
    assert sum(len(document["text"].encode()) for document in DOCUMENTS) >= 180_000
    assert len({document["genre"] for document in DOCUMENTS}) >= 8
    assert all(set(document) == {"id", "genre", "title", "text"} for document in DOCUMENTS)


def test_instructions_are_balanced_over_registers_and_tasks() -> None:
    assert len(INSTRUCTIONS) >= 480
    registers = Counter(example["register"] for example in INSTRUCTIONS)
    assert set(registers) == {"formal", "informal", "neutral"}
    assert min(registers.values()) >= 0.9 * len(INSTRUCTIONS) / 3
    assert sum(len(example["messages"]) > 2 for example in INSTRUCTIONS) >= 60
    kinds = {"explain", "summarize", "rewrite", "correct", "extract", "classify", "advise", "compute", "refuse"}
    assert kinds <= {example["task"] for example in INSTRUCTIONS}


def test_conversations_alternate_and_end_with_an_answer() -> None:
    for example in INSTRUCTIONS:
        roles = [message["role"] for message in example["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2), example["id"]


def test_benchmark_items_are_many_and_their_answers_balanced() -> None:
    tasks = Counter(item["id"].rpartition("-")[0] for item in ITEMS)
    assert len(tasks) >= 12 and min(tasks.values()) >= 80
    for task in {item["id"].rpartition("-")[0] for item in CHOICES}:
        answers = Counter(item["answer"] for item in CHOICES if item["id"].rpartition("-")[0] == task)
        assert max(answers.values()) - min(answers.values()) <= 1, task


def test_the_choices_of_an_item_differ_and_hold_its_answer() -> None:
    for item in CHOICES:
        assert len(set(item["choices"])) == len(item["choices"]) > item["answer"] >= 0, item["id"]


def test_a_topic_is_not_named_in_its_text() -> None:
    stems = {topic[:5] for topic in TOPICS}
    for item in ITEMS:
        if item["id"].startswith("topic"):
            assert item["choices"] == TOPICS
            assert not any(stem in item["text"].lower() for stem in stems), item["id"]


@pytest.mark.parametrize(
    "collection", [DOCUMENTS, INSTRUCTIONS, ITEMS], ids=["documents", "instructions", "benchmarks"]
)
def test_ids_are_unique_and_text_is_normalized_and_typeset(collection: list[dict[str, Any]]) -> None:
    assert len({row["id"] for row in collection}) == len(collection)
    for row in collection:
        for text in texts(row):
            assert unicodedata.normalize("NFC", text) == text, row["id"]
            assert not re.search(r'["\t\u00ad]', text), row["id"]


def test_no_two_texts_share_eight_words_in_a_row() -> None:
    owner: dict[str, str] = {}
    for row in DOCUMENTS + INSTRUCTIONS + ITEMS + RETENTION:
        for text in texts(row):
            words = re.findall(r"\w+", text.lower())
            for start in range(len(words) - 7):
                gram = " ".join(words[start : start + 8])
                assert owner.setdefault(gram, row["id"]) == row["id"], gram
