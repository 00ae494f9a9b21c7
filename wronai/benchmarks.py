"""Benchmarks as bundles: each entry of `evaluate.tasks` with its items, checked before anything is trained or scored.

A bundle holds the YAML that defines its lm_eval tasks, and the items of every split that they use. So it can be scored
without a network, its bytes say what was scored, and another entry beside it changes none of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from rapidfuzz import process

from wronai import files, hub_benchmarks

MANIFEST = "bundle.json"
EMPTY = ("EmptyDatasetError", "EmptyDataError", "SchemaInferenceError")  # of datasets and pandas: files without rows
STRUCTURE = ("tag", "group", "task_list")  # keys of a YAML that are lm_eval's index's, and no task's


@dataclass(frozen=True)
class Definition:
    """A task before its data: its resolved YAML, and the file that it stands in."""

    name: str
    file: Path
    config: dict[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data set that the task reads, the one of its items first."""
        return hub_benchmarks.splits_of(self.config)


@dataclass(frozen=True)
class Item:
    """What a task asks: `text` before `choices`, of which `gold` is right; without choices `gold` is the answer."""

    id: str
    text: str
    choices: tuple[str, ...]
    gold: int | str | tuple[int, ...]


def prepare(names: Sequence[str], include_path: Path, fetched: Path, out: Path) -> dict[str, Any]:
    """Write a bundle for each of `names` to `out`/<name>; `fetched` holds the data sets of the hub.

    Returns by task its items, version, splits and the entry that it belongs to. Raises ValueError for a name that is
    neither a folder of `include_path` nor a task of lm_eval, for a YAML that lm_eval cannot use, and for items that
    cannot be scored: none at all, two of one id, a right answer that is none of the choices.
    """
    found: dict[str, Any] = {}
    for name in names:
        folder = out / name
        try:
            with fresh_cache():
                tasks = _bundle(definitions(name, include_path), include_path / name, fetched, folder)
            for task in tasks:
                if task in found:
                    raise ValueError(
                        f"evaluate.tasks: the task {task} stands in {found[task]['entry']} and in {name}; a "
                        "metric needs a name of its own, so leave one of them out"
                    )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        found |= {task: {"entry": name, **described} for task, described in tasks.items()}
    return found


def definitions(name: str, include_path: Path) -> list[Definition]:
    """The tasks that the entry `name` of `evaluate.tasks` stands for, by name."""
    folder = include_path / name
    if folder.is_dir():
        found = _in_folder(folder)
        if not found:
            raise ValueError(f"evaluate.tasks: {folder} holds no .yaml file that defines a task (`task: name`)")
        return found
    try:
        tasks = hub_benchmarks.resolve(name)
    except ValueError as error:
        folders = sorted(path.name for path in include_path.iterdir() if path.is_dir()) if include_path.is_dir() else []
        near = [match for match, _, _ in process.extract(name, folders, limit=2, score_cutoff=50)]
        raise ValueError(
            f"evaluate.tasks: {name!r} is no folder of {include_path} "
            f"({'nearest: ' + ', '.join(near) if near else 'it has ' + (', '.join(folders) or 'none')}), "
            f"and {error}"
        ) from None
    return [Definition(task, *_own(task)) for task in tasks]


def _own(task: str) -> tuple[Path, dict[str, Any]]:
    file = hub_benchmarks.yaml_of(task)
    return file, _resolved(file)


def _in_folder(folder: Path) -> list[Definition]:
    found: dict[str, Definition] = {}
    for file in sorted(folder.rglob("*.yaml")):
        _check_syntax(file)
        config = _resolved(file)
        if not isinstance(config.get("task"), str):
            continue  # a group, or what others include
        if config["task"] in found:
            raise ValueError(f"{file}: the task {config['task']} is also defined in {found[config['task']].file}")
        found[config["task"]] = Definition(config["task"], file, config)
    return [found[name] for name in sorted(found)]


def _check_syntax(file: Path) -> None:
    """Raise ValueError with the line of what is no YAML, or of a key that lm_eval's tasks do not have."""
    from lm_eval.config.group import GroupConfig
    from lm_eval.config.task import TaskConfig

    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{file}{where}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{file} line 1: expected a mapping that defines an lm_eval task, `task: name` and so on")
    known = {*TaskConfig.__dataclass_fields__, *GroupConfig.__dataclass_fields__, "include", "class", *STRUCTURE}
    for key, _ in node.value:
        if key.value not in known:
            near = process.extractOne(key.value, sorted(known))[0]
            raise ValueError(
                f"{file} line {key.start_mark.line + 1}: unknown key {key.value!r}; the nearest that lm_eval knows is "
                f"{near!r}"
            )


def _resolved(file: Path) -> dict[str, Any]:
    """The YAML in `file` with what it includes, its functions imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config = dict(load_yaml(file))
    except Exception as error:  # it imports what the file names, and that may raise anything
        raise ValueError(f"{file}: {' '.join(str(error).split()) or type(error).__name__}") from error
    for key in STRUCTURE:
        config.pop(key, None)
    return config


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
    """A cache of `datasets` for the time being: its own goes by path and time stamp, and may hold other rows.

    Functions of tasks are imported meanwhile without leaving bytecode beside them, since DVC tracks their folders.
    """
    import datasets

    before, named = datasets.config.HF_DATASETS_CACHE, os.environ.get("HF_DATASETS_CACHE")
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        os.environ["HF_DATASETS_CACHE"] = cache
        try:
            yield
        finally:
            sys.dont_write_bytecode = bytecode
            datasets.config.HF_DATASETS_CACHE = before
            del os.environ["HF_DATASETS_CACHE"]
            if named is not None:
                os.environ["HF_DATASETS_CACHE"] = named


def _bundle(found: Sequence[Definition], folder: Path, fetched: Path, out: Path) -> dict[str, Any]:
    described, definitions = {}, {}
    shutil.rmtree(out, ignore_errors=True)
    for definition in found:
        task = _task(definition, _data(definition, fetched))
        listed = items(definition, task)
        labelled(task)  # wrong examples stop a run as wrong items do, but only once a model is scored
        for split in definition.splits:
            path = out / definition.name / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            task.dataset[split].to_parquet(path)
        definitions[definition.name] = _kept(definition.file, folder, out)
        described[definition.name] = {
            "items": len(listed),
            "asked": definition.config.get("test_split") or definition.config["validation_split"],
            "version": task.VERSION,
            "splits": {split: len(task.dataset[split]) for split in definition.splits},
        }
    manifest = {"tasks": {name: {"file": definitions[name], **described[name]} for name in described}}
    files.write_json(out / MANIFEST, manifest)
    return described


def _kept(file: Path, folder: Path, out: Path) -> str:
    """Copy the YAML and Python files of a folder, and what they include, into its bundle; lm_eval's own are installed.

    They lie in it as below `evaluate.include_path`, for an `include` may lead out of the folder.
    """
    if not folder.is_dir():
        return file.relative_to(hub_benchmarks.library()).as_posix()
    root = folder.parent.resolve()
    files = {path.resolve() for kind in ("*.yaml", "*.py") for path in folder.rglob(kind)}
    for path in _included(file):
        if not path.is_relative_to(root):
            raise ValueError(f"{file}: includes {path}, which is outside of {folder.parent}; a bundle cannot hold it")
        files |= {path, *path.parent.glob("*.py")}
    for path in sorted(files):
        copy = out / "tasks" / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return (Path("tasks") / file.resolve().relative_to(root)).as_posix()


def _included(file: Path) -> Iterator[Path]:
    """The files that `file` includes, and those that these do."""
    from lm_eval.tasks._yaml_loader import load_yaml

    named = load_yaml(file, resolve_func=False, recursive=False).get("include", [])
    for name in named if isinstance(named, list) else [named]:
        path = (file.parent / name).resolve()
        yield path
        yield from _included(path)


def _data(definition: Definition, fetched: Path) -> dict[str, Any]:
    """What to change in the task's configuration for its data to come from this machine."""
    if "class" in definition.config:
        raise ValueError(f"{definition.file}: the task {definition.name} is a Python class; only those in YAML are run")
    path = definition.config.get("dataset_path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"{definition.file}: the task {definition.name} has no dataset_path")
    if not definition.config.get("test_split") and not definition.config.get("validation_split"):
        raise ValueError(f"{definition.file}: the task {definition.name} has neither test_split nor validation_split")
    _check_metrics(definition)
    wanted = hub_benchmarks.data_set(definition.name, definition.config)
    return {} if wanted is None else _from(hub_benchmarks.located(wanted, fetched))


def _check_metrics(definition: Definition) -> None:
    """Raise ValueError for a metric that lm_eval does not have; it would look for it on the hub."""
    import lm_eval.api.metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import METRIC_REGISTRY

    if definition.config.get("process_results") is not None:
        return  # whose function names what it gives
    known = sorted(METRIC_REGISTRY)
    for entry in definition.config.get("metric_list") or []:
        name = entry.get("metric") if isinstance(entry, dict) else entry
        if isinstance(name, str) and name not in known and not (isinstance(entry, dict) and entry.get("hf_evaluate")):
            near = process.extractOne(name, known)[0]
            raise ValueError(
                f"{definition.file}: the task {definition.name} has a metric {name!r}; the nearest that lm_eval knows "
                f"is {near!r}"
            )


def shots_of(task: Any, num_fewshot: int | None) -> int:
    """How many examples lm_eval puts before each item of `task`: with None as it says, and none where it says 0."""
    told = task.config.num_fewshot
    return (told or 0) if num_fewshot is None or told == 0 else num_fewshot


def _draws_from_items(task: Any) -> bool:
    """Whether the examples of `task` come from the split of its items, without the one that is asked."""
    return bool(task.fewshot_cfg.split == task.config.test_split)


def check_shots(task: Any, num_fewshot: int | None) -> None:
    """Raise ValueError if `task` has fewer examples to draw from than `num_fewshot` asks for."""
    shots = shots_of(task, num_fewshot)
    if not shots:
        return
    others = len(task.sampler.df) - _draws_from_items(task)
    if shots > others:
        raise ValueError(
            f"evaluate.num_fewshot asks for {shots} examples before each item of {task.config.task}, which has "
            f"{others} to draw from"
        )


def _from(splits: Mapping[str, Path]) -> dict[str, Any]:
    files = {split: str(path) for split, path in splits.items()}
    return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def _task(definition: Definition, changes: Mapping[str, Any]) -> Any:
    """The task with its data as lm_eval has it; ValueError says what is wrong with the YAML or the data."""
    from lm_eval.api.task import ConfigurableTask

    config = {**definition.config, **changes}
    config["metadata"] = dict(config.get("metadata") or {})
    # Without a split of its own lm_eval draws few-shot examples from the items, and leaves out the one that is asked
    # only where it knows that they are from the same split.
    config["test_split"] = config.get("test_split") or config["validation_split"]
    told = config.get("fewshot_config") or {}
    if not any((config.get("fewshot_split"), config.get("training_split"), told.get("split"), told.get("samples"))):
        config["fewshot_split"] = config.get("validation_split") or config["test_split"]
    where = f"{definition.file}: the task {definition.name}"
    task = ConfigurableTask.__new__(ConfigurableTask)
    try:
        task.__init__(config=config)
    except FileNotFoundError as error:
        raise ValueError(f"{where} has a data set that is not there: {error}") from None
    except Exception as error:  # lm_eval checks little itself: what is wrong shows as any error underneath
        while isinstance(error.__cause__, Exception):
            error = error.__cause__  # `datasets` says there what it could not read
        docs = getattr(task, "task_docs", None)
        if docs:  # it fell over the first item
            items(definition, task)
        if (docs is not None and not len(docs)) or isinstance(error, StopIteration) or type(error).__name__ in EMPTY:
            raise ValueError(f"{where} has no items: its {config['test_split']} split is empty") from None
        text = " ".join(str(error).split())
        raise ValueError(f"{where} cannot be used: {type(error).__name__}: {text[:300]}") from error
    return task


def items(definition: Definition, task: Any) -> list[Item]:
    """The items of `task` as they will be asked. Raises ValueError for the first that cannot be scored."""
    where = f"{definition.file}: the task {definition.name}"
    found = [item_of(task, doc, number, where) for number, doc in enumerate(task.eval_docs)]
    twice = [name for name, times in Counter(item.id for item in found).items() if times > 1]
    if twice:
        raise ValueError(f"{where}: two items have the id {twice[0]!r}; what is scored is told apart by it")
    return found


def item_of(task: Any, doc: Mapping[str, Any], number: int, where: str) -> Item:
    """What `task` asks with `doc`, row `number` of its items. ValueError, beginning with `where`, if it is wrong."""
    where = f"{where}, item {item_id(doc, number)}"
    try:
        text, gold = task.doc_to_text(doc), task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else []
    except Exception as error:  # templates and functions of the YAML run here
        found = " ".join(str(error).split())
        raise ValueError(f"{where}: {type(error).__name__}: {found[:300]}") from error
    if task.OUTPUT_TYPE == "multiple_choice":
        if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
            raise ValueError(f"{where}: expected choices that are texts, none of them empty, found {choices!r}")
        if task.multiple_input:
            gold, text = text, ""
        gold = _right(gold, choices, where)
    return Item(item_id(doc, number), str(text), tuple(choices), gold)


def labelled(task: Any, most: int | None = None) -> list[Item]:
    """The items that a task has to learn from: its training split, or its few-shot split, or the items themselves.

    With `most` every so manieth of them, so that there are hardly more.
    """
    docs = task.training_docs() if task.has_training_docs() else None
    if docs is None and task.fewshot_cfg.split is not None:
        docs = task.fewshot_docs()
    docs = task.eval_docs if docs is None else docs
    step = 1 if most is None else max(1, len(docs) // most)
    return [item_of(task, docs[number], number, task.config.task) for number in range(0, len(docs), step)]


def examples(task: Any, num_fewshot: int | None, limit: int | None, seed: int) -> list[list[Item]]:
    """The examples that lm_eval puts before each item of `task`, drawn as it draws them from `seed`."""
    shots = shots_of(task, num_fewshot)
    docs = [doc for _, doc in zip(range(limit or len(task.eval_docs)), task.eval_docs, strict=False)]
    if not shots:
        return [[] for _ in docs]
    task.set_fewshot_seed(seed)
    same = _draws_from_items(task)
    drawn = [task.sampler.sample(n=shots, eval_doc=doc if same else None) for doc in docs]
    names: dict[str, int] = {}
    return [
        [
            item_of(
                task, doc, names.setdefault(json.dumps(doc, sort_keys=True, default=str), len(names)), task.config.task
            )
            for doc in of_item
        ]
        for of_item in drawn
    ]


def item_id(doc: Mapping[str, Any], number: int) -> str:
    """What an item is called: its `id`, or its place in the data set."""
    return str(doc["id"]) if doc.get("id") is not None else str(number)


def _right(gold: Any, choices: Sequence[str], where: str) -> int | tuple[int, ...]:
    """The place of the right choice, or of each that is right; lm_eval scores one that is out of range as wrong."""
    if isinstance(gold, list) and gold:
        return tuple(int(_right(one, choices, where)) for one in gold)  # type: ignore[arg-type]
    if isinstance(gold, str) and gold in choices:
        return choices.index(gold)
    if isinstance(gold, int) and 0 <= gold < len(choices):
        return gold
    raise ValueError(
        f"{where}: the right answer is {gold!r}; expected 0 to {len(choices) - 1}, or one of the {len(choices)} choices"
    )


def load(bundle: Path) -> dict[str, Any]:
    """The tasks in `bundle` as lm_eval has them, by name. To be called, and its tasks used, within `fresh_cache`."""
    found = {}
    for name, held in manifest(bundle)["tasks"].items():
        inside = held["file"].startswith("tasks/")
        file = (bundle if inside else hub_benchmarks.library()) / held["file"]
        data = _from({split: bundle / name / f"{split}.parquet" for split in held["splits"]})
        found[name] = _task(Definition(name, file, _resolved(file)), data)
    return found


def manifest(bundle: Path) -> dict[str, Any]:
    """What `prepare` noted of `bundle`. Raises FileNotFoundError where it made none."""
    path = bundle / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; the stage prepare_benchmarks writes it")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
