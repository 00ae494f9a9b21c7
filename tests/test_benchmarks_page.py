"""What docs/benchmarks.md tells a reader to write is what the code takes."""

import re
import textwrap
from pathlib import Path

import pytest

from stages.prepare_benchmarks import prepare_benchmarks
from wronai import hub_benchmarks, params

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first block of code in `language`, without its indentation."""
    found = re.search(rf"^ *```{language}\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return textwrap.dedent(found[1])


def test_one_yaml_and_one_data_file_are_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("benchmarks/tasks/rhymes")
    folder.mkdir(parents=True)
    (folder / "rhymes.jsonl").write_text(block("json"), encoding="utf-8")
    (folder / "rhymes.yaml").write_text(block("yaml"), encoding="utf-8")
    found = prepare_benchmarks(["rhymes"], folder.parent, Path("fetched"), Path("out"))
    assert {task: (told["items"], told["entry"]) for task, told in found["tasks"].items()} == {"rhymes": (2, "rhymes")}


def test_the_tasks_that_are_named_are_there() -> None:
    table = PAGE[PAGE.index("## What is run") : PAGE.index("## Data sets of the hub")]
    entries = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    folders = {name for names in entries for name in re.findall(r"`(\S+?)`", names)}
    include_path = ROOT / params.load(ROOT / "params.yaml").evaluate.include_path
    assert folders == {path.name for path in include_path.iterdir() if path.is_dir()}
    own = re.findall(r"`(\w+)`", table[table.index("by name:") : table.index("| entry")])
    assert len(own) >= 8
    assert all(hub_benchmarks.resolve(name) for name in own)
