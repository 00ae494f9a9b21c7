"""The embedded corpus is as large, as varied and as clean as its users are told."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SAMPLE = Path(__file__).parent.parent / "data/sample"
TOPICS = ["film", "historia", "jedzenie", "medycyna", "motoryzacja", "praca", "sport", "technologia"]


def rows(folder: str) -> list[dict[str, Any]]:
    lines = [
        line for path in sorted((SAMPLE / folder).glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]
    return [json.loads(line) for line in lines]


DOCUMENTS, INSTRUCTIONS, ITEMS = rows("documents"), rows("instructions"), rows("benchmarks")


def texts(row: dict[str, Any]) -> list[str]:
    values = [value for value in row.values() if isinstance(value, str)] + row.get("choices", [])
    return values + [message["content"] for message in row.get("messages", [])]


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
    assert len(ITEMS) >= 320
    tasks = Counter(item["id"].rpartition("-")[0] for item in ITEMS)
    assert len(tasks) >= 5
    for task in tasks:
        answers = Counter(item["answer"] for item in ITEMS if item["id"].startswith(task))
        assert max(answers.values()) - min(answers.values()) <= 1, task


def test_the_choices_of_an_item_differ_and_hold_its_answer() -> None:
    for item in ITEMS:
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
    for row in DOCUMENTS + INSTRUCTIONS + ITEMS:
        for text in [text for key, text in row.items() if key in ("text", "passage", "context")] + [
            message["content"] for message in row.get("messages", [])
        ]:
            words = re.findall(r"\w+", text.lower())
            for start in range(len(words) - 7):
                gram = " ".join(words[start : start + 8])
                assert owner.setdefault(gram, row["id"]) == row["id"], gram
