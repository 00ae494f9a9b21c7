"""The scripts of benchmarks/ take hours, so no test runs them; what they name in the library must be there."""

import ast
import dataclasses
import importlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from stages.prepare_benchmarks import prepare_benchmarks
from wronai import benchmarks, hub_benchmarks
from wronai.benchmarks import Item
from wronai.hub_benchmarks import DataSet

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


def named(path: Path) -> set[tuple[str, str]]:
    """Each module of wronai that the script imports, with each name that it takes from it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "wronai"
        for alias in node.names
    }
    return {
        (modules[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_benchmark_takes_from_the_library_is_there(path: Path) -> None:
    missing = [
        f"{module}.{name}"
        for module, name in sorted(named(path))
        if not hasattr(importlib.import_module(f"wronai.{module}"), name)
    ]
    assert missing == []


def test_the_walk_finds_what_scripts_name() -> None:
    assert ("qlora", "attach") in named(ROOT / "benchmarks/gpu/training.py")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_benchmark_says_how_it_is_run_or_who_imports_it(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    name = path.relative_to(ROOT).as_posix()
    imported = path.stem in {"rehearsal", "meter"} or path.parent.name == "others"
    assert imported or f"python {name}" in said


# From here on the bundles of wronai/benchmarks.py.

SEED = 42
ROWS = [
    {"id": f"q{number}", "question": f"Czy {number} to dużo?", "choices": ["tak", "nie"], "answer": number % 2}
    for number in range(4)
]
ITEMS = [Item(f"q{number}", f"Czy {number} to dużo?", ("tak", "nie"), number % 2) for number in range(4)]
TRAIN = [row | {"id": f"t{number}", "question": f"Ćwiczenie {number}?"} for number, row in enumerate(ROWS * 3)]
QUIZ: dict[str, Any] = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.5},
}
Rows = Sequence[Mapping[str, Any]]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here needs a network."""

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """The folder that `evaluate.include_path` names."""
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def yaml(described: Mapping[str, Any]) -> str:
    """A key a line, but for those that are None; functions with their tag."""
    return "".join(
        f"{key}: {value if str(value).startswith('!function') else json.dumps(value, ensure_ascii=False)}\n"
        for key, value in described.items()
        if value is not None
    )


def define(folder: Path, task: str = "quiz", splits: Mapping[str, Rows] | None = None, **changes: Any) -> Path:
    """A task as a user would write it: its YAML, QUIZ but for `changes`, beside a JSON Lines file for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, rows in ({"test": ROWS} if splits is None else splits).items():
        files[split] = str(folder / f"{task}-{split}.jsonl")
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        Path(files[split]).write_text("".join(lines), encoding="utf-8")
    file = folder / f"{task}.yaml"
    file.write_text(yaml({"task": task, "dataset_kwargs": {"data_files": files}, **QUIZ, **changes}), encoding="utf-8")
    return file


def prepare(tasks: Path, *names: str) -> dict[str, Any]:
    return benchmarks.prepare(names, tasks, tasks.parent / "fetched", tasks.parent / "out")


def items(bundle: Path) -> dict[str, list[Item]]:
    """What the tasks of the bundle ask."""
    with benchmarks.fresh_cache():
        return {
            name: benchmarks.items(benchmarks.Definition(name, bundle, {}), task)
            for name, task in benchmarks.load(bundle).items()
        }


def held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(tasks: Path, *names: str) -> str:
    """The message, of one line, with which `prepare` refuses."""
    with pytest.raises(ValueError) as told:
        prepare(tasks, *names)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_folder_of_tasks_becomes_a_bundle_that_needs_it_no_more(tasks: Path, out: Path) -> None:
    define(tasks / "polish")
    define(tasks / "polish/more", "other", {"test": TRAIN[:3]})
    assert prepare_benchmarks(["polish"], tasks, tasks.parent / "fetched", out) == {
        "tasks": {
            "other": {"entry": "polish", "items": 3, "asked": "test", "version": 1.5, "splits": {"test": 3}},
            "quiz": {"entry": "polish", "items": 4, "asked": "test", "version": 1.5, "splits": {"test": 4}},
        }
    }
    shutil.rmtree(tasks)
    bundle = out.rename(out.with_name("elsewhere")) / "polish"
    found = items(bundle)
    assert found["quiz"] == ITEMS
    assert [item.id for item in found["other"]] == ["t0", "t1", "t2"]
    assert list(benchmarks.manifest(bundle)["tasks"]) == ["other", "quiz"]


def test_what_is_included_may_include_too(tasks: Path, out: Path) -> None:
    define(tasks / "polish", include="first", doc_to_text=None)
    (tasks / "polish/first").write_text(yaml({"include": ["../second", "third"]}))
    (tasks / "second").write_text(yaml({"doc_to_text": "{{question}}", "description": "Odpowiedz."}))
    (tasks / "polish/third").write_text(yaml({"description": "Wybierz."}))
    prepare(tasks, "polish")
    shutil.rmtree(tasks)
    assert items(out / "polish")["quiz"] == ITEMS
    with benchmarks.fresh_cache():
        assert benchmarks.load(out / "polish")["quiz"].config.description == "Wybierz."


def test_what_a_task_includes_from_elsewhere_is_refused(tasks: Path) -> None:
    file = define(tasks / "polish", include="../../common.yaml")
    common = tasks.parent / "common.yaml"
    common.write_text("output_type: multiple_choice\n")
    assert refused(tasks, "polish").startswith(f"{file}: includes {common}, which is outside of {tasks}; ")


def test_another_bundle_changes_no_byte_of_the_first(tasks: Path, out: Path) -> None:
    define(tasks / "first")
    define(tasks / "second", "other")
    prepare(tasks, "first")
    alone = held(out / "first")
    prepare(tasks, "second", "first")
    assert held(out / "first") == alone
    assert held(out / "second") != alone


def test_the_same_input_gives_the_same_bytes(tasks: Path, out: Path) -> None:
    define(tasks / "polish", splits={"test": ROWS, "train": TRAIN}, training_split="train")
    prepare(tasks, "polish")
    first = held(out)
    prepare(tasks, "polish")
    assert held(out) == first
    assert {"bundle.json", "quiz/test.parquet", "quiz/train.parquet"} < {name.removeprefix("polish/") for name in first}


def test_what_is_no_longer_defined_goes_from_the_bundle(tasks: Path, out: Path) -> None:
    define(tasks / "polish")
    other = define(tasks / "polish", "other")
    prepare(tasks, "polish")
    other.unlink()
    assert list(prepare(tasks, "polish")) == ["quiz"]
    assert not [name for name in held(out) if "other" in name]


def test_items_that_changed_under_the_same_path_are_read_afresh(tasks: Path, out: Path) -> None:
    file = define(tasks / "polish").with_name("quiz-test.jsonl")
    prepare(tasks, "polish")
    told = file.stat()
    file.write_text(file.read_text(encoding="utf-8").replace("dużo", "mało"), encoding="utf-8")
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    prepare(tasks, "polish")
    assert items(out / "polish")["quiz"][0].text == "Czy 0 to mało?"


@pytest.mark.parametrize("named", [None, "/somewhere"])
def test_a_fresh_cache_leaves_the_process_as_it_was(named: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    if named is not None:
        monkeypatch.setenv("HF_DATASETS_CACHE", named)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = datasets.config.HF_DATASETS_CACHE
    with benchmarks.fresh_cache():
        inside = Path(datasets.config.HF_DATASETS_CACHE)
        assert os.environ["HF_DATASETS_CACHE"] == str(inside) != str(before)
    assert (datasets.config.HF_DATASETS_CACHE, os.environ.get("HF_DATASETS_CACHE")) == (before, named)
    assert not inside.exists() and not sys.dont_write_bytecode


def test_reading_a_bundle_changes_none_of_its_bytes(tasks: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    define(tasks / "polish", doc_to_text="!function utils.asked")
    (tasks / "polish/utils.py").write_text("def asked(doc):\n    return doc['question']\n")
    prepare(tasks, "polish")
    before = held(out)
    items(out / "polish")
    assert held(out) == before


@pytest.mark.parametrize("name", ["common.yaml", "shared/common.yaml", "_template_yaml", "../common.yaml"])
def test_what_a_task_includes_goes_with_it(tasks: Path, out: Path, name: str) -> None:
    common = tasks / "polish" / name
    common.parent.mkdir(parents=True, exist_ok=True)
    define(tasks / "polish", include=name, **dict.fromkeys(["doc_to_text", "output_type"]))
    common.write_text(yaml({"doc_to_text": "!function asking.text", "output_type": "multiple_choice"}))
    (common.parent / "asking.py").write_text("def text(doc):\n    return f'Pytanie: {doc[\"question\"]}'\n")
    prepare(tasks, "polish")
    shutil.rmtree(tasks)
    found = items(out / "polish")["quiz"]
    assert found == [dataclasses.replace(item, text=f"Pytanie: {item.text}") for item in ITEMS]


def test_functions_beside_the_yaml_go_with_it(tasks: Path, out: Path) -> None:
    define(
        tasks / "polish",
        process_docs="!function utils.asked",
        doc_to_text="!function utils.text",
        doc_to_choice="!function helpers.letters.choices",
        doc_to_target="!function utils.right",
    )
    (tasks / "polish/helpers").mkdir()
    (tasks / "polish/utils.py").write_text(
        "def asked(docs):\n    return docs.filter(lambda doc: doc['id'] != 'q1')\n\n\n"
        "def text(doc):\n    return doc['question'].upper()\n\n\n"
        "def right(doc):\n    return 'AB'[doc['answer']]\n"
    )
    (tasks / "polish/helpers/letters.py").write_text("def choices(doc):\n    return ['A', 'B']\n")
    assert prepare(tasks, "polish")["quiz"]["items"] == 3
    shutil.rmtree(tasks)
    assert items(out / "polish")["quiz"] == [
        Item(item.id, item.text.upper(), ("A", "B"), item.gold) for item in ITEMS if item.id != "q1"
    ]


TABLE = [("Czy dwa to dużo?", "nie"), ("Czy „sto”, no, to dużo?", "tak")]


@pytest.mark.parametrize("loader", ["csv", "tsv", "text", "parquet", "folder"])
def test_data_may_be_of_any_format(tasks: Path, out: Path, loader: str) -> None:
    import pandas as pd

    folder = tasks / "polish"
    (folder / "data").mkdir(parents=True)
    file = folder / "data" / f"test.{'parquet' if loader == 'folder' else loader}"
    frame = pd.DataFrame(TABLE, columns=["question", "answer"])
    options: dict[str, Any] = {"data_files": {"test": str(file)}}
    text, target = "{{question}}", "{{answer}}"
    if loader in ("csv", "tsv"):
        options |= {"sep": "\t"} if loader == "tsv" else {}
        frame.to_csv(file, index=False, sep=options.get("sep", ","))
    elif loader == "text":
        file.write_text("".join(f"{answer} {question}\n" for question, answer in TABLE), encoding="utf-8")
        text, target = "{{text[4:]}}", "{{text[:3]}}"
    else:
        frame.to_parquet(file)
    define(
        folder,
        splits={},
        dataset_path=str(folder / "data") if loader == "folder" else "csv" if loader == "tsv" else loader,
        dataset_kwargs=None if loader == "folder" else options,
        doc_to_text=text,
        doc_to_choice=["tak", "nie"],
        doc_to_target=target,
    )
    prepare(tasks, "polish")
    shutil.rmtree(tasks)
    assert items(out / "polish")["quiz"] == [
        Item(str(number), question, ("tak", "nie"), ["tak", "nie"].index(answer))
        for number, (question, answer) in enumerate(TABLE)
    ]


def test_every_split_that_a_task_reads_is_kept_and_no_other(tasks: Path, out: Path) -> None:
    define(
        tasks / "polish",
        splits={"dev": ROWS, "train": TRAIN, "few": TRAIN[:5], "shots": TRAIN[:3], "unused": TRAIN},
        test_split=None,
        validation_split="dev",
        training_split="train",
        fewshot_split="few",
        fewshot_config={"split": "shots"},
    )
    found = prepare(tasks, "polish")["quiz"]
    assert found["splits"] == {"dev": 4, "train": 12, "few": 5, "shots": 3}
    assert found["asked"] == "dev"
    assert not [name for name in held(out) if "unused" in name]
    shutil.rmtree(tasks)
    assert items(out / "polish")["quiz"] == ITEMS
    with benchmarks.fresh_cache():
        [task] = benchmarks.load(out / "polish").values()
        assert [item.id for item in benchmarks.labelled(task)] == [row["id"] for row in TRAIN]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [({"fewshot_split": "few"}, "t"), ({"fewshot_config": {"split": "few"}}, "t"), ({}, "q")],
)
def test_what_there_is_to_learn_from(tasks: Path, out: Path, splits: dict[str, Any], expected: str) -> None:
    define(tasks / "polish", splits={"test": ROWS, "few": TRAIN}, **splits)
    prepare(tasks, "polish")
    with benchmarks.fresh_cache():
        [task] = benchmarks.load(out / "polish").values()
        assert {item.id[0] for item in benchmarks.labelled(task)} == {expected}


def test_items_without_choices_have_their_answer(tasks: Path, out: Path) -> None:
    rows = [{"id": 7, "question": "Ile to 2 + 2?", "answer": "4"}]
    define(tasks / "polish", splits={"test": rows}, output_type="generate_until", doc_to_choice=None, metric_list=None)
    prepare(tasks, "polish")
    assert items(out / "polish")["quiz"] == [Item("7", "Ile to 2 + 2?", (), "4")]


def test_a_right_answer_may_be_a_text_one_of_several_or_a_context(tasks: Path, out: Path) -> None:
    define(tasks / "polish", "text", {"test": [ROWS[0] | {"answer": "nie"}]})
    define(tasks / "polish", "several", {"test": [ROWS[0] | {"answer": [0, 1]}]}, doc_to_target="answer")
    define(tasks / "polish", "context", {"test": [ROWS[0]]}, doc_to_text="{{1}}", doc_to_target="{{question}}")
    prepare(tasks, "polish")
    found = {name: item for name, [item] in items(out / "polish").items()}
    assert (found["text"].gold, found["several"].gold) == (1, (0, 1))
    assert (found["context"].gold, found["context"].text) == (1, "")


def test_what_only_lm_evals_index_reads_does_no_harm(tasks: Path, out: Path) -> None:
    define(tasks / "polish", tag="mine", group="all", task_list=[])
    prepare(tasks, "polish")
    assert items(out / "polish")["quiz"] == ITEMS


def test_what_only_groups_or_is_included_is_no_task(tasks: Path) -> None:
    define(tasks / "polish")
    (tasks / "polish/group.yaml").write_text("group: all\ntask: [quiz]\naggregate_metric_list:\n- metric: acc\n")
    (tasks / "polish/common.yaml").write_text("tag: mine\noutput_type: multiple_choice\n")
    assert list(prepare(tasks, "polish")) == ["quiz"]


def test_an_entry_that_is_nowhere_names_the_nearest(tasks: Path, out: Path) -> None:
    define(tasks / "language")
    define(tasks / "reading")
    told = refused(tasks, "langage")
    assert told.startswith(
        f"evaluate.tasks: 'langage' is no folder of {tasks} (nearest: language), and 'langage' is no "
    )
    assert refused(tasks, "8888").startswith(
        f"evaluate.tasks: '8888' is no folder of {tasks} (it has language, reading)"
    )
    assert "task, group or tag of lm_eval; the nearest are belebele_pol_Latn, " in refused(tasks, "belebele_pol_latin")
    shutil.rmtree(tasks)
    assert f"is no folder of {tasks} (it has none), and " in refused(tasks, "langage")
    assert held(out) == {}


def test_a_folder_without_tasks_says_so(tasks: Path) -> None:
    (tasks / "polish").mkdir()
    (tasks / "polish/common.yaml").write_text(yaml(QUIZ))
    folder = tasks / "polish"
    assert (
        refused(tasks, "polish") == f"evaluate.tasks: {folder} holds no .yaml file that defines a task (`task: name`)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: quiz\ndoc_to_text: [a\ntest_split: b\n", " line 3: not YAML: "),
        ("task: quiz\ndoc_to_text: {{question}}\n", ": "),
        (
            "task: quiz\ndoc_to_txt: a\n",
            " line 2: unknown key 'doc_to_txt'; the nearest that lm_eval knows is 'doc_to_t",
        ),
        ("task: quiz\n1: a\n", " line 2: unknown key '1'; "),
        ("- task: quiz\n", " line 1: expected a mapping that defines an lm_eval task, `task: name` and so on"),
        ("", " line 1: expected a mapping"),
        ("task: quiz\ninclude: common.yaml\n", ": [Errno 2] No such file or directory: '{folder}/common.yaml'"),
        ("task: quiz\ninclude: quiz.yaml\n", ": Include cycle at {folder}/quiz.yaml"),
        ("task: quiz\nprocess_docs: !function utils.gone\n", ": Module '{folder}/utils.py' has no function 'gone'"),
        ("task: quiz\nprocess_docs: !function nowhere.gone\n", ": Cannot import module 'nowhere' for function 'gone'"),
        ("task: quiz\nprocess_docs: !function broken.gone\n", ": no luck"),
        ("task: quiz\nprocess_docs: !function gone\n", ": Invalid function reference 'gone': no module path"),
    ],
)
def test_a_wrong_yaml_is_told_with_its_file_and_line(tasks: Path, out: Path, text: str, message: str) -> None:
    folder = tasks / "polish"
    folder.mkdir()
    (folder / "quiz.yaml").write_text(text)
    (folder / "utils.py").write_text("def asked(docs):\n    return docs\n")
    (folder / "broken.py").write_text("raise RuntimeError('no\\n luck')\n")
    assert refused(tasks, "polish").startswith(f"{folder}/quiz.yaml{message.replace('{folder}', str(folder))}")
    assert held(out) == {}


def test_a_yaml_that_is_no_text_is_told_with_its_file(tasks: Path) -> None:
    (tasks / "polish").mkdir()
    (tasks / "polish/quiz.yaml").write_bytes("task: jaźń".encode("cp1250"))
    assert refused(tasks, "polish").startswith(f"{tasks}/polish/quiz.yaml: not YAML: 'utf-8' codec can't decode byte")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_path": None}, "has no dataset_path"),
        ({"dataset_path": ["json"]}, "has no dataset_path"),
        ({"test_split": None}, "has neither test_split nor validation_split"),
        ({"test_split": None, "training_split": "test"}, "has neither test_split nor validation_split"),
        ({"class": "!function utils.Quiz"}, "is a Python class; only those in YAML are run"),
        ({"class": "!function utils.Quiz", "dataset_path": None}, "is a Python class; only those in YAML are run"),
        (
            {"dataset_kwargs": {"data_files": {"test": "/nowhere/quiz.jsonl"}}},
            "has a data set that is not there: Unable to find '/nowhere/quiz.jsonl'",
        ),
        ({"test_split": "dev"}, "cannot be used: KeyError: 'dev'"),
        ({"process_docs": "!function utils.none"}, "has no items"),
        ({"output_type": "choice"}, "cannot be used: ValueError: Got invalid output_type 'choice'"),
    ],
)
def test_a_task_that_cannot_be_used_is_told(tasks: Path, out: Path, changes: dict[str, Any], message: str) -> None:
    file = define(tasks / "polish", **changes)
    (file.parent / "utils.py").write_text("class Quiz: ...\n\n\ndef none(docs):\n    return docs.select([])\n")
    assert refused(tasks, "polish").startswith(f"{file}: the task quiz {message}")
    assert held(out) == {} and not (out / "polish").exists()


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    ("target", "gold", "found"),
    [
        ("answer", -1, "-1"),
        ("{{answer}}", -1, "'-1'"),
        ("answer", 2, "2"),
        ("{{answer}}", 2, "2"),
        ("answer", None, "None"),
        ("answer", "może", "'może'"),
        ("{{answer}}", "może", "'może'"),
        ("answer", [0, 2], "2"),
        ("answer", [], "[]"),
        ("{{answer / 2 if answer else 0}}", 1, "'0.5'"),
    ],
)
def test_a_right_answer_that_is_no_choice_is_told_with_its_item(
    tasks: Path, place: int, target: str, gold: Any, found: str
) -> None:
    good = {str: "tak", list: [0]}.get(type(gold), 0)
    rows = [row | {"answer": gold if number == place else good} for number, row in enumerate(ROWS)]
    file = define(tasks / "polish", splits={"test": rows}, doc_to_target=target)
    assert refused(tasks, "polish") == (
        f"{file}: the task quiz, item q{place}: the right answer is {found}; expected 0 to 1, or one of the 2 choices"
    )


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_text": "{{pytanie}}"}, "UndefinedError: 'pytanie' is undefined"),
        ({"doc_to_text": "{{question.strip()}}"}, "UndefinedError: 'None' has no attribute 'strip'"),
        ({"doc_to_text": "{{question"}, "TemplateSyntaxError: "),
        ({"doc_to_text": "!function utils.fail"}, "RuntimeError: the cache is empty"),
        ({"doc_to_choice": "{{id}} ?"}, "SyntaxError: "),
        ({"doc_to_choice": "id"}, "expected choices that are texts, none of them empty, found 'q"),
        ({"doc_to_choice": ["tak", ""]}, "expected choices that are texts, none of them empty, found ['tak', '']"),
    ],
)
def test_a_template_that_fails_names_the_item(
    tasks: Path, out: Path, changes: dict[str, Any], message: str, place: int
) -> None:
    rows = [row | {"question": None} if number == place else row for number, row in enumerate(ROWS)]
    file = define(tasks / "polish", splits={"test": rows}, **changes)
    (file.parent / "utils.py").write_text(
        "def fail(doc):\n    if doc['question'] is None:\n        raise RuntimeError('the cache is empty')\n"
        "    return '?'\n"
    )
    item = place if "utils" in str(changes) or "strip" in str(changes) else 0
    assert refused(tasks, "polish").startswith(f"{file}: the task quiz, item q{item}: {message}")
    assert held(out) == {}


@pytest.mark.parametrize("split", ["training_split", "fewshot_split"])
def test_what_is_learnt_from_is_checked_too(tasks: Path, split: str) -> None:
    rows = [*TRAIN[:3], TRAIN[3] | {"answer": 2}]
    define(tasks / "polish", splits={"test": ROWS, "train": rows}, **{split: "train"})
    assert "quiz, item t3: the right answer is 2; expected 0 to 1" in refused(tasks, "polish")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("json", "{nie JSON\n", "JSON parse error: Missing a name for object member"),
        ("csv", "a,b\n1,2\n1,2,3\n", "Error tokenizing data. C error: Expected 2 fields in line 3, saw 3"),
        ("parquet", "nic z tego", "Parquet magic bytes not found in footer"),
    ],
)
def test_data_that_cannot_be_read_is_told_with_what_is_wrong(tasks: Path, name: str, text: str, message: str) -> None:
    file = define(tasks / "polish", dataset_path=name)
    file.with_name("quiz-test.jsonl").write_text(text)
    told = refused(tasks, "polish")
    assert told.startswith(f"{file}: the task quiz cannot be used: ")
    assert message in told


@pytest.mark.parametrize("loader", ["json", "csv", "text"])
def test_an_empty_file_holds_no_items(tasks: Path, loader: str) -> None:
    file = define(tasks / "polish", splits={"test": []}, dataset_path=loader)
    assert refused(tasks, "polish").startswith(f"{file}: the task quiz has no items")


@pytest.mark.parametrize(
    "rows", [[*ROWS, ROWS[2]], [{**ROWS[0], "id": 2}, ROWS[1] | {"id": None}, {**ROWS[2], "id": None}]]
)
def test_two_items_of_one_id_are_told(tasks: Path, rows: Rows) -> None:
    file = define(tasks / "polish", splits={"test": rows})
    assert refused(tasks, "polish") == (
        f"{file}: the task quiz: two items have the id {'q2' if len(rows) > 3 else '2'!r}; what is scored is told "
        "apart by it"
    )


def test_a_task_that_is_defined_twice_in_a_folder_is_told(tasks: Path) -> None:
    first, second = define(tasks / "polish/a"), define(tasks / "polish/b")
    assert refused(tasks, "polish") == f"{second}: the task quiz is also defined in {first}"


def test_a_task_of_two_entries_is_told_and_only_the_first_is_left(tasks: Path, out: Path) -> None:
    define(tasks / "first")
    define(tasks / "second")
    assert refused(tasks, "first", "second") == (
        "evaluate.tasks: the task quiz stands in first and in second; a metric needs a name of its own, so leave one "
        "of them out"
    )
    assert items(out / "first") == {"quiz": ITEMS}
    assert not (out / "second").exists()


def test_an_entry_that_fails_leaves_nothing_and_those_before_it_whole(tasks: Path, out: Path) -> None:
    define(tasks / "first")
    define(tasks / "second", "other")
    prepare(tasks, "first", "second")
    before = held(out / "first")
    define(tasks / "second", "other")
    define(tasks / "second", "wrong", test_split=None)
    refused(tasks, "first", "second")
    assert held(out / "first") == before
    assert not (out / "second").exists()


def test_what_is_no_bundle_names_the_stage_that_makes_one(out: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"^{out}/bundle.json: not found; the stage prepare_benchmarks writes it$"
    ):
        benchmarks.load(out)


def fetch(tmp_path: Path, wanted: DataSet, splits: Mapping[str, Rows]) -> None:
    """Fetch a data set from a mirror on the disk."""
    repository = tmp_path / "mirror" / wanted.repository
    repository.mkdir(parents=True)
    lines = ["---", "configs:", f"- config_name: {json.dumps(wanted.configuration or 'default')}", "  data_files:"]
    for split, rows in splits.items():
        lines += [f"  - split: {split}", f"    path: {split}.jsonl"]
        (repository / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (repository / "README.md").write_text("\n".join([*lines, "---", ""]))
    hub_benchmarks.fetch([wanted], tmp_path / "fetched", tmp_path / "pins.json", lambda _: None, tmp_path / "mirror")


@pytest.mark.parametrize("configuration", [None, "łatwe", 2024])
def test_data_of_the_hub_comes_from_what_was_fetched(
    tasks: Path, out: Path, tmp_path: Path, configuration: str | int | None
) -> None:
    file = define(tasks / "polish", splits={}, dataset_path="kto/quiz", dataset_kwargs=None, training_split="train")
    if configuration is not None:
        file.write_text(f"{file.read_text(encoding='utf-8')}dataset_name: {configuration}\n", encoding="utf-8")
    name = None if configuration is None else str(configuration)
    fetch(tmp_path, DataSet("kto/quiz", name, ("test", "train"), "quiz"), {"test": ROWS, "train": TRAIN})
    assert prepare(tasks, "polish")["quiz"]["splits"] == {"test": 4, "train": 12}
    for folder in (tasks, tmp_path / "mirror", tmp_path / "fetched"):
        shutil.rmtree(folder)
    assert items(out / "polish") == {"quiz": ITEMS}


def test_data_of_the_hub_that_was_not_fetched_names_what_brings_it(tasks: Path, out: Path) -> None:
    define(tasks / "polish", splits={}, dataset_path="kto/quiz", dataset_kwargs=None)
    with pytest.raises(FileNotFoundError) as told:
        prepare(tasks, "polish")
    assert str(told.value) == (f"task quiz: kto/quiz: not in {tasks.parent}/fetched; `make benchmarks-fetch` brings it")
    assert held(out) == {} and not (out / "polish").exists()


def test_a_task_of_lm_eval_is_bundled_by_its_name(tasks: Path, out: Path, tmp_path: Path) -> None:
    rows = [
        {
            "flores_passage": f"Fragment {number}.",
            "question": "O czym mowa?",
            **{f"mc_answer{answer}": f"o {answer}" for answer in (1, 2, 3, 4)},
            "correct_answer_num": str(number + 1),
        }
        for number in range(3)
    ]
    with pytest.raises(
        FileNotFoundError, match=r"^task belebele_pol_Latn: facebook/belebele pol_Latn: not in .*benchmarks-f"
    ):
        prepare(tasks, "belebele_pol_Latn")
    fetch(tmp_path, DataSet("facebook/belebele", "pol_Latn", ("test",), "belebele_pol_Latn"), {"test": rows})
    found = prepare(tasks, "belebele_pol_Latn")
    assert found == {
        "belebele_pol_Latn": {
            "entry": "belebele_pol_Latn",
            "items": 3,
            "asked": "test",
            "version": 0.0,
            "splits": {"test": 3},
        }
    }
    shutil.rmtree(tmp_path / "fetched")
    asked = items(out / "belebele_pol_Latn")["belebele_pol_Latn"]
    assert [item.gold for item in asked] == [0, 1, 2]
    assert asked[1].text == "P: Fragment 1.\nQ: O czym mowa?\nA: o 1\nB: o 2\nC: o 3\nD: o 4\nAnswer:"


class Asked(LM):
    """A model that remembers what it is asked, by the number of the item."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: dict[int, str] = {}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.contexts |= {request.doc_id: request.args[0] for request in requests}
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("changes", "num_fewshot", "expected"),
    [
        ({"training_split": "train", "fewshot_split": "train"}, 3, 3),
        ({"training_split": "train"}, 3, 3),
        ({"fewshot_split": "train"}, 3, 3),
        ({"fewshot_config": {"split": "train", "sampler": "first_n"}}, 3, 3),
        ({"fewshot_config": {"samples": TRAIN[:4]}}, 3, 3),
        ({"fewshot_split": "test"}, 3, 3),
        ({"fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}}, 2, 2),
        ({"validation_split": "train"}, 3, 3),
        ({"test_split": None, "validation_split": "test"}, 3, 3),
        ({}, 3, 3),
        ({"num_fewshot": 2}, None, 2),
        ({"num_fewshot": 2}, 1, 1),
        ({"num_fewshot": 2}, 0, 0),
        ({"num_fewshot": 0}, 3, 0),
        ({}, None, 0),
    ],
)
def test_examples_are_those_that_lm_eval_puts_before_each_item(
    tasks: Path, out: Path, changes: dict[str, Any], num_fewshot: int | None, expected: int
) -> None:
    define(tasks / "polish", splits={"test": ROWS, "train": TRAIN}, **changes)
    prepare(tasks, "polish")
    for limit, seed in ((None, SEED), (2, 1)):
        model = Asked()
        with benchmarks.fresh_cache():
            [task] = benchmarks.load(out / "polish").values()
            found = benchmarks.examples(task, num_fewshot, limit, seed)
            simple_evaluate(
                model=model,
                tasks=[task],
                num_fewshot=num_fewshot,
                limit=limit,
                task_manager=TaskManager(include_defaults=False),
                bootstrap_iters=0,
                fewshot_random_seed=seed,
            )
        assert [len(shots) for shots in found] == [expected] * (limit or 4)
        drawn = {shot.text.split()[0] for shots in found for shot in shots}
        assert drawn <= ({"Ćwiczenie"} if {"train", "samples"} & set(re.findall(r"\w+", str(changes))) else {"Czy"})
        contexts = [
            "".join(f"{shot.text} {shot.choices[shot.gold]}\n\n" for shot in shots) + item.text  # type: ignore[index]
            for shots, item in zip(found, ITEMS, strict=False)
        ]
        assert model.contexts == dict(enumerate(contexts))


@pytest.mark.parametrize("splits", [{}, {"fewshot_split": "test"}, {"test_split": None, "validation_split": "test"}])
def test_no_item_is_among_its_own_examples(tasks: Path, out: Path, splits: dict[str, Any]) -> None:
    define(tasks / "polish", **splits)
    prepare(tasks, "polish")
    with benchmarks.fresh_cache():
        [task] = benchmarks.load(out / "polish").values()
        found = benchmarks.examples(task, 3, None, SEED)
    for item, shots in zip(ITEMS, found, strict=True):
        assert {shot.text for shot in shots} == {other.text for other in ITEMS if other != item}


def test_examples_without_ids_are_told_apart_and_the_same_are_not(tasks: Path, out: Path) -> None:
    rows = [row | {"id": None} for row in TRAIN]
    define(tasks / "polish", splits={"test": ROWS, "train": rows}, fewshot_split="train")
    prepare(tasks, "polish")
    with benchmarks.fresh_cache():
        [task] = benchmarks.load(out / "polish").values()
        shots = [shot for of_item in benchmarks.examples(task, 8, None, SEED) for shot in of_item]
    assert len({shot.id for shot in shots}) == len({shot.text for shot in shots}) == len(set(shots))
