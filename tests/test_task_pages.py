"""The items of the WronAI suite are what its pages say, and the pages say how each task is asked, scored and filled."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from wronai import register, suite

ROOT = Path(__file__).parent.parent
FOLDER, PAGES = ROOT / "benchmarks/tasks", ROOT / "docs/tasks"
ENTRIES = ("language", "understanding", "generation")
SENTENCES = FOLDER / "register_sentences.jsonl"
RUN = 8  # words that no item may share with the sample


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Task:
    """A task of the suite: its YAML, and the items that it asks."""

    config: dict[str, Any]
    data: Path

    @property
    def name(self) -> str:
        return str(self.config["task"])

    @property
    def page(self) -> Path:
        """Named after the data, which two tasks may share."""
        return PAGES / f"{self.data.stem}.md"

    @property
    def docs(self) -> Any:
        docs = datasets.Dataset.from_list(rows_of(self.data))
        process = self.config.get("process_docs")
        return getattr(suite, process.rpartition(".")[2])(docs) if process else docs

    @property
    def items(self) -> list[dict[str, Any]]:
        return list(self.docs)

    @property
    def is_raw(self) -> bool:
        return bool(self.config["metadata"].get("format") == "raw")


def defined() -> Iterator[Task]:
    for entry in ENTRIES:
        for path in sorted((FOLDER / entry).rglob("*.yaml")):
            config = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # functions stay names
            yield Task(config, ROOT / config["dataset_kwargs"]["data_files"]["test"])


TASKS = list(defined())
DATA = sorted({task.data for task in TASKS})
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
each_file = pytest.mark.parametrize("data", DATA, ids=lambda path: path.stem)


def tables(page: Path) -> list[list[list[str]]]:
    """The cells of each table of a page, its first row being the head."""
    found = re.findall(r"(?:^\|.*\|\n)+", page.read_text(encoding="utf-8") + "\n", re.MULTILINE)
    cells = [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]
    return [[head, *rows] for head, _, *rows in cells]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1)}


def places(task: Task) -> list[int]:
    """Where the right answer of each item stands; nothing for a task without choices."""
    if task.config["output_type"] != "multiple_choice":
        return []
    if task.is_raw:
        formal = task.name.endswith("_formal")
        return [doc["formal_at"] if formal else 1 - doc["formal_at"] for doc in task.items]
    return [item["answer"] for item in task.items]


def choices(task: Task) -> int:
    (count,) = {len(item["contexts" if task.is_raw else "choices"]) for item in task.items}
    return count


def floor(task: Task) -> float:
    """Guessing, or what „Tak.” gets as every answer; for restoration, the sentence handed back."""
    if places(task):
        return 1 / choices(task)
    score = getattr(suite, task.config["process_results"].rpartition(".")[2])
    leading = task.config["metric_list"][0]["metric"]
    scores = [score(item, [item.get("text", "Tak.")])[leading] for item in task.items]
    return float(sum(scores) / len(scores))


@each_task
def test_a_task_has_one_row_of_the_overview_and_it_is_true(task: Task) -> None:
    (overview,) = tables(PAGES / "README.md")
    assert overview[0] == ["task", "page", "entry", "items", "leading metric", "floor"]
    assert [row for row in overview if row[0] == task.name] == [
        [
            task.name,
            f"[{task.data.stem}]({task.page.name})",
            task.data.parent.name,
            str(len(task.items)),
            task.config["metric_list"][0]["metric"],
            f"{floor(task):.3f}",
        ]
    ]


def test_the_overview_and_the_pages_are_of_tasks_that_there_are() -> None:
    (overview,) = tables(PAGES / "README.md")
    assert {row[0] for row in overview[1:]} == {task.name for task in TASKS}
    assert {page for page in PAGES.glob("*.md") if page.name != "README.md"} == {task.page for task in TASKS}


@each_task
def test_a_page_names_its_task_and_every_metric(task: Task) -> None:
    page = task.page.read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert re.search(rf"\b{task.name}\b", page.partition("\n")[0])
    assert [metric["metric"] for metric in task.config["metric_list"] if f"`{metric['metric']}`" not in page] == []


@each_task
def test_a_page_shows_how_the_task_is_asked(task: Task) -> None:
    page = task.page.read_text(encoding="utf-8")
    template, told = task.config["doc_to_text"], task.config["metadata"]
    choice = "{{choice}}" if places(task) else ""
    if task.is_raw:
        asked = suite.with_contexts(datasets.Dataset.from_list([{"question": "{{question}}"}]))["contexts"][0]
    elif "messages" in told:
        asked = [f"{template} {choice}"]  # in the WronAI format the turns are shown
    else:
        opened = f"<polish><{told['register']}>" if "register" in told else "<polish>"
        asked = [
            f"{template} {choice}".rstrip(),
            f"{opened}<question>{template}</question><answer>{choice}",
        ]
    assert [text for text in asked if f"\n{text}\n" not in page] == []


@each_file
def test_a_page_shows_a_whole_item(data: Path) -> None:
    page = (PAGES / f"{data.stem}.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(.*)\n```", page)
    assert shown in data.read_text(encoding="utf-8").splitlines()


@each_file
def test_what_a_page_counts_is_what_the_file_holds(data: Path) -> None:
    items = rows_of(data)
    counted = {table[0][0]: table[1:] for table in tables(PAGES / f"{data.stem}.md") if table[0][1:] == ["items"]}
    assert {"phenomenon", "kind", "format"} & set(items[0]) <= set(counted)
    assert f"\n{len(items)} " in (PAGES / f"{data.stem}.md").read_text(encoding="utf-8")
    for field, rows in counted.items():
        values = [item[field] for item in items]
        if field == "answer" and len({tuple(item["choices"]) for item in items}) == 1:
            values = [item["choices"][item["answer"]] for item in items]  # the same for all: the page names them
        found = Counter("null" if value is None else str(value) for value in values)
        assert {value: int(count) for value, count in rows} == found, field


@each_task
def test_a_task_has_a_hundred_items_or_is_the_part_of_hygiene_that_asks_for_a_format(task: Task) -> None:
    if task.name == "wronai_format":
        hygiene = {item["id"] for item in rows_of(task.data)}
        assert len(task.items) == 80
        assert {item["id"] for item in task.items} < hygiene
    else:
        assert len(task.items) >= 100


@each_file
def test_ids_are_unique_and_named_after_their_file(data: Path) -> None:
    ids = [item["id"] for item in rows_of(data)]
    assert len(set(ids)) == len(ids)
    assert [name for name in ids if not re.fullmatch(rf"{data.stem}-\d{{3}}", name)] == []


@each_task
def test_right_answers_are_spread_evenly(task: Task) -> None:
    found = Counter(places(task))
    if not found:
        assert task.config["output_type"] == "generate_until"
        return
    even = 1 / choices(task)
    shares = {place: found[place] / found.total() for place in range(choices(task))}
    assert found.total() == len(task.items)
    assert all(abs(share - even) <= 0.08 for share in shares.values()), shares


@pytest.fixture(scope="module")
def sampled() -> set[tuple[str, ...]]:
    files = sorted((ROOT / "data/sample").rglob("*.jsonl"))
    found = {run for path in files for row in rows_of(path) for text in strings(row) for run in runs(text)}
    assert len(found) > 10_000
    return found


@pytest.mark.parametrize("data", [*DATA, SENTENCES], ids=lambda path: path.stem)
def test_no_item_shares_eight_words_in_a_row_with_the_sample(data: Path, sampled: set[tuple[str, ...]]) -> None:
    shared = {
        item["id"]: found for item in rows_of(data) for text in strings(item) if (found := sorted(runs(text) & sampled))
    }
    assert shared == {}


def test_runs_are_of_words_and_know_no_case() -> None:
    text = "Ala ma kota, a kot ma Alę i psa."
    assert runs(text) == {
        ("ala", "ma", "kota", "a", "kot", "ma", "alę", "i"),
        ("ma", "kota", "a", "kot", "ma", "alę", "i", "psa"),
    }
    assert list(strings({"a": ["x", {"b": "y"}], "c": 1})) == ["x", "y"]


@pytest.fixture(scope="module")
def detected() -> dict[str, dict[str, float]]:
    sentences = rows_of(SENTENCES)
    assert len({row["text"] for row in sentences}) == len(sentences) == 480
    return register.score([row["register"] for row in sentences], [register.detect(row["text"]) for row in sentences])


@pytest.mark.parametrize("label", ["formal", "informal"])
def test_the_detector_is_right_about_sentences_of_another_author(
    label: str, detected: dict[str, dict[str, float]]
) -> None:
    assert detected[label]["precision"] >= 0.93
    assert detected[label]["recall"] >= 0.93


def test_the_page_shows_how_good_the_detector_is(detected: dict[str, dict[str, float]]) -> None:
    (shown,) = [table[1:] for table in tables(PAGES / "register.md") if "precision" in table[0]]
    assert shown == [
        [label, f"{of['precision']:.2f}", f"{of['recall']:.2f}", f"{of['number']:.0f}"]
        for label, of in detected.items()
    ]
