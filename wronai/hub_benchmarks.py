"""Brings the data sets of lm_eval tasks to this machine, once and at a pinned commit, for evaluation without a network.

The files of a repository come as `downloads` brings them: resumed, and checked against their digests. `datasets` reads
that copy, so it asks the hub for nothing itself, and a mirror on the disk takes the same way.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from rapidfuzz import fuzz, process, utils

from wronai import downloads, files, locks, params

FOLDER = Path("data/downloads/benchmarks")
PINS = Path("benchmarks/tasks/revisions.json")
LOADERS = ("json", "csv", "text", "parquet")  # values of dataset_path whose data the task itself brings along
FORMATS = ("json", "csv", "text", "parquet", "arrow")  # of files in a repository: none that could run code
CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")  # what `datasets` reads before the data
MANIFEST = "manifest.json"
NAME = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
ALIASES = {"task", "task_alias"}  # what a group may say of a member without changing it

Say = Callable[[str], None]


@dataclass(frozen=True)
class DataSet:
    """A configuration of a repository (None: its default one), and the splits of it that `task` reads."""

    repository: str
    configuration: str | None
    splits: tuple[str, ...]
    task: str

    @property
    def name(self) -> str:
        return self.repository if self.configuration is None else f"{self.repository} {self.configuration}"

    def __str__(self) -> str:
        return f"task {self.task}: {self.name}"


def fetch(
    wanted: Sequence[DataSet],
    folder: Path,
    pins: Path,
    say: Say,
    mirror: Path | None = None,
    patience: downloads.Patience = downloads.PATIENT,
) -> None:
    """Bring each data set to `folder` as a Parquet file a split, and say a line for each that came.

    `pins` is a JSON file {repository: commit}; of a repository that it lacks comes the commit that `main` is now, which
    is then written to it. What is there at that commit, whole and with these splits, is not brought again. `mirror` is
    a folder of repositories, `owner/name` or `owner--name`, to take instead of the hub; it has no commits, so what came
    from it is known by a digest of its files and pins nothing. Raises ValueError and OSError, with one message.
    """
    if mirror is not None and not mirror.is_dir():
        raise FileNotFoundError(f"{mirror}: no such folder; expected one with data set repositories as owner/name")
    folder.mkdir(parents=True, exist_ok=True)
    with locks.alone(folder / ".lock", f"{folder}: another run is fetching to it", say):
        unfinished = folder / ".partial"
        unfinished.mkdir(exist_ok=True)
        commits = _read_pins(pins)
        brought = 0
        for one in _merged(wanted):
            pinned = commits.get(one.repository)
            source = mirror or pinned or _main(one, patience)
            commit = pinned or (source if isinstance(source, str) else None)
            if commit is None or not _is_there(one, commit, folder, say):
                brought += _bring(one, source, folder, unfinished, say, patience)
            if commit is not None and pinned is None:  # not before its data is here
                commits[one.repository] = commit
                files.write_json(pins, commits)
        shutil.rmtree(unfinished)
    if not brought:
        say(f"nothing needs fetching: {folder} has the data of every task")


def located(wanted: DataSet, folder: Path) -> dict[str, Path]:
    """The Parquet file of each split that was fetched to `folder`.

    Raises FileNotFoundError if one is missing, and ValueError if one is not what its manifest says.
    """
    home = _home(wanted, folder)
    noted = (_manifest(home) or {"splits": {}})["splits"]
    found = {split: home / f"{split}.parquet" for split in wanted.splits}
    missing = [split for split, path in found.items() if split not in noted or not path.is_file()]
    if missing:
        parts = "" if len(missing) == len(found) else f" (split {', '.join(missing)})"
        raise FileNotFoundError(f"{wanted}{parts}: not in {folder}; `make benchmarks-fetch` brings it")
    for split, path in found.items():
        if (digest := _sha256(path)) != noted[split]["sha256"]:
            raise ValueError(
                f"{wanted}: {path} has the sha256 {digest}, expected {noted[split]['sha256']} as in its {MANIFEST}; "
                "`make benchmarks-fetch` brings it again"
            )
    return found


def known() -> list[str]:
    """The names of lm_eval's own tasks, groups and tags."""
    return sorted(_index())


def resolve(name: str) -> list[str]:
    """The tasks of lm_eval that a name stands for: a task, a group, a tag, or a pattern with * and ? of these.

    Raises ValueError for an unknown name, and for a group that changes its tasks, since a name would not say so.
    """
    index = _index()
    names = [name] if name in index else [each for each in sorted(index) if fnmatchcase(each, name)]
    if not names:
        near = process.extract(name, sorted(index), scorer=fuzz.ratio, processor=utils.default_process, limit=3)
        raise ValueError(
            f"{name!r} is no task, group or tag of lm_eval; the nearest are {', '.join(match for match, _, _ in near)}"
        )
    found: dict[str, None] = {}
    for each in names:
        found |= dict.fromkeys(_expand(each))
    return list(found)


def config(task: str) -> dict[str, Any]:
    """The YAML of one of lm_eval's own tasks with what it includes; functions are the paths of these."""
    return copy.deepcopy(_entry(task).cfg or {})


def yaml_of(task: str) -> Path:
    """The file that defines one of lm_eval's own tasks."""
    return Path(_entry(task).yaml_path)


def library() -> Path:
    """The folder of lm_eval's own tasks."""
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def data_set(task: str, described: Mapping[str, Any]) -> DataSet | None:
    """What a task needs of the hub, by its YAML; None if its data is on this machine.

    Raises ValueError for a task whose data does not come as one configuration of a repository.
    """
    path, options = described.get("dataset_path"), dict(described.get("dataset_kwargs") or {})
    options.pop("trust_remote_code", None)  # `datasets` knows it no more
    if "class" in described or described.get("custom_dataset") is not None:
        raise ValueError(f"task {task}: gets its data by code of its own; only data sets of the hub can be fetched")
    if not isinstance(path, str) or not path:
        raise ValueError(f"task {task}: has no dataset_path")
    if path in LOADERS:
        remote = [text for text in _texts(options.get("data_files")) if "://" in text]
        if remote:
            raise ValueError(
                f"task {task}: dataset_kwargs.data_files: {remote[0]} is on the network; expected a file on this disk"
            )
        return None
    if Path(path).is_dir():
        return None
    if not NAME.fullmatch(path):
        raise ValueError(
            f"task {task}: dataset_path: {path!r} is neither a folder of this machine, nor one of "
            f"{', '.join(LOADERS)}, nor owner/name of a data set on the hub"
        )
    if options:
        raise ValueError(
            f"task {task}: dataset_kwargs: {', '.join(sorted(options))} of {path} cannot be fetched; only whole "
            "configurations can"
        )
    splits = splits_of(described)
    if not splits:
        raise ValueError(f"task {task}: names no split of {path}; expected test_split or validation_split")
    configuration = described.get("dataset_name")
    return DataSet(path, None if configuration is None else str(configuration), splits, task)


def splits_of(described: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits of the data set that a task reads, the one of its items first."""
    named = [described.get(key) for key in SPLITS] + [(described.get("fewshot_config") or {}).get("split")]
    return tuple(dict.fromkeys(str(split) for split in named if split))


def in_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The YAML of each task that is defined in `folder`, with what it includes. Raises ValueError if there is none."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = {}
    for file in sorted(folder.rglob("*.yaml")):
        try:
            described = load_yaml(file, resolve_func=False)
        except Exception as error:  # YAML's, the file system's, and its own for what includes itself
            raise ValueError(f"{file}: {_line(error)}") from None
        if isinstance(described.get("task"), str):
            found[described["task"]] = described
    if not found:
        raise ValueError(f"{folder}: no .yaml file in it defines a task")
    return found


@functools.cache
def _index() -> dict[str, Any]:
    """lm_eval's entries by name: 6 s, nearly all for the YAML of 14,000 tasks, which need neither data nor torch."""
    from lm_eval.tasks import TaskManager

    return dict(TaskManager().task_index)


def _entry(task: str) -> Any:
    entry = _index().get(task)
    if entry is None or entry.kind.name not in ("TASK", "PY_TASK"):
        raise ValueError(f"{task!r} is no task of lm_eval; resolve() gives the tasks of a group, a tag or a pattern")
    return entry


def _expand(name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    index = _index()
    entry = index.get(name)
    if entry is None or name in above:
        raise ValueError(f"{name!r}, of the group {above[-1]}, is {'that group' if entry else 'no task'} in lm_eval")
    if entry.kind.name == "TAG":
        yield from sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        yield from _members(name, entry.cfg, (*above, name))
    else:
        yield name


def _members(group: str, described: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[str]:
    from lm_eval.config.group import GroupConfig

    changes = set(described) - {field.name for field in dataclasses.fields(GroupConfig)} - {"tag"}
    members = described.get("task")
    for member in members if isinstance(members, list) else [members]:
        entry = {"task": member} if isinstance(member, str) else dict(member or {})
        if "group" in entry and entry["group"] not in _index():
            yield from _members(group, entry, above)
            continue
        name = entry.pop("group", None) or entry.get("task")
        odd = sorted(changes | (set(entry) - ALIASES))
        if not isinstance(name, str) or odd:
            raise ValueError(
                f"the group {group} has its own {', '.join(odd)} for {name}, which is lost with the group; name the "
                "tasks that you want"
            )
        yield from _expand(name, above)


def _merged(wanted: Iterable[DataSet]) -> list[DataSet]:
    """One for each configuration, with the splits of all its tasks."""
    found: dict[tuple[str, str | None], DataSet] = {}
    for one in wanted:
        key = (one.repository, one.configuration)
        first = found.setdefault(key, one)
        found[key] = dataclasses.replace(first, splits=tuple(dict.fromkeys((*first.splits, *one.splits))))
    return list(found.values())


def _home(one: DataSet, folder: Path) -> Path:
    return folder / one.repository.replace("/", "--") / (one.configuration or "default")


def _manifest(home: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise ValueError(f"{home / MANIFEST}: not JSON; delete {home}, and `make benchmarks-fetch` fills it") from None
    return found


def _is_there(one: DataSet, revision: str, folder: Path, say: Say) -> bool:
    home = _home(one, folder)
    noted = _manifest(home)
    if noted is None or noted["revision"] != revision or not set(one.splits) <= set(noted["splits"]):
        return False
    for split, about in noted["splits"].items():
        path = home / f"{split}.parquet"
        if not path.is_file() or _sha256(path) != about["sha256"]:
            say(f"{path}: damaged on the disk; fetched again")
            return False
    return True


def _read_pins(pins: Path) -> dict[str, str]:
    if not pins.is_file():
        return {}
    try:
        found = json.loads(pins.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{pins}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{pins}: expected a mapping of repositories to commits, found {type(found).__name__}")
    for repository, commit in found.items():
        if not isinstance(commit, str) or not downloads.COMMIT.fullmatch(commit):
            raise ValueError(f"{pins}: {repository}: expected the 40 hex digits of a commit, found {commit!r}")
    return found


def _main(one: DataSet, patience: downloads.Patience) -> str:
    """The commit that `main` of the repository is now."""
    import httpx2
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    endpoint = (os.environ.get("HF_ENDPOINT") or downloads.HUB).rstrip("/")
    unknown = f"{one}: no such data set on the hub, or a private one that HF_TOKEN does not open"
    try:
        return str(HfApi(endpoint=endpoint).repo_info(one.repository, repo_type="dataset", timeout=patience.idle).sha)
    except GatedRepoError:
        raise ValueError(f"{one}: {downloads.GATED}") from None
    except RepositoryNotFoundError:
        raise ValueError(unknown) from None
    except HFValidationError as error:
        raise ValueError(f"{one}: {_line(error)}") from None
    except OfflineModeIsEnabled:
        raise OSError(f"{one}: not on this machine yet, and HF_HUB_OFFLINE forbids to ask the hub") from None
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise ValueError(f"{one}: {downloads.WRONG_TOKEN}" if get_token() else unknown) from None
        raise OSError(f"{one}: {downloads.public(endpoint)}: HTTP {error.response.status_code}") from None
    except httpx2.HTTPError as error:
        reason = downloads.public(_line(error))
        raise OSError(f"{one}: no connection to {downloads.public(endpoint)}: {reason}") from None


def _bring(
    one: DataSet, source: Path | str, folder: Path, unfinished: Path, say: Say, patience: downloads.Patience
) -> bool:
    """Put the data set in its place from a mirror or from a commit of the hub; False if it was from that mirror."""
    with tempfile.TemporaryDirectory(dir=unfinished) as scratch:
        # `datasets` caches by path and time stamp, and this one by nothing else.
        cache = Path(scratch) / "cache"
        if isinstance(source, Path):
            root = _in_mirror(one, source)
            revision = _fingerprint(root, _files(one, root, cache))
            if _is_there(one, revision, folder, say):
                return False
        else:
            revision = source
            root = _copied(one, source, Path(scratch), unfinished, cache, say, patience)
        home = _home(one, folder)
        noted = _manifest(home)
        # Other tasks keep the splits that they fetched before.
        kept = noted["splits"] if noted is not None and noted["revision"] == revision else {}
        one = dataclasses.replace(one, splits=tuple(dict.fromkeys((*one.splits, *kept))))
        manifest, size = _tables(one, revision, root, cache, Path(scratch) / "tables")
        home.parent.mkdir(parents=True, exist_ok=True)
        if home.exists():
            home.rename(Path(scratch) / "replaced")
        (Path(scratch) / "tables").rename(home)
    rows = ", ".join(f"{split} {about['rows']:,}" for split, about in manifest["splits"].items())
    say(f"{one.name} at {revision.removeprefix('mirror-')[:8]}: {rows} rows, {size / 1e6:,.2f} MB")
    return True


def _tables(one: DataSet, revision: str, root: Path, cache: Path, out: Path) -> tuple[dict[str, Any], int]:
    """Write the splits to `out` with their manifest; gives it, and their bytes."""
    import datasets
    from huggingface_hub import DatasetCard

    datasets.disable_progress_bars()
    try:
        read = datasets.load_dataset(
            str(root), one.configuration, cache_dir=str(cache), verification_mode="no_checks"
        )  # the bytes are those of the commit, and counts in its card may be older than they
    except Exception as error:  # of any kind that a parser of any format has
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        raise ValueError(f"{one}: its files cannot be read: {type(error).__name__}: {_line(error)[:300]}") from None
    out.mkdir()
    splits, size = {}, 0
    for split in one.splits:
        path = out / f"{split}.parquet"
        read[split].to_parquet(path)
        splits[split] = {"rows": len(read[split]), "sha256": _sha256(path)}
        size += path.stat().st_size
    manifest: dict[str, Any] = {"repository": one.repository, "revision": revision, "configuration": one.configuration}
    card = root / CARDS[0]
    about = DatasetCard.load(card).data.to_dict() if card.is_file() else {}
    if licence := about.get("license_name") or about.get("license"):
        manifest["licence"] = licence
    manifest["splits"] = splits
    files.write_json(out / MANIFEST, manifest)
    return manifest, size


def _files(one: DataSet, root: Path, cache: Path) -> list[str]:
    """The files that the configuration is made of, by their names in the repository whose copy is in `root`.

    Their content is not read: a copy may hold empty files instead. Raises ValueError if there is no such configuration
    or split, or if it needs code.
    """
    import datasets

    if f"{one.repository.split('/')[-1]}.py" in {path.name for path in root.iterdir()}:
        raise ValueError(
            f"{one}: needs the loading script {one.repository.split('/')[-1]}.py, and no code of others is run here; "
            "leave the task out, or name a copy of the data as files in its dataset_path"
        )
    try:
        names = datasets.get_dataset_config_names(str(root))
        if one.configuration is not None and one.configuration not in names:
            near = process.extract(one.configuration, names, processor=utils.default_process, limit=5)
            listed = [name for name, _, _ in near] if len(names) > 10 else names
            more = f" or {len(names) - len(listed)} more" if len(names) > len(listed) else ""
            raise ValueError(f"no such configuration (dataset_name); expected {' or '.join(listed)}{more}")
        if one.configuration is None and len(names) > 1 and datasets.get_dataset_default_config_name(str(root)) is None:
            raise ValueError(f"has no default configuration; dataset_name must be one of {', '.join(names)}")
        builder = datasets.load_dataset_builder(str(root), one.configuration, cache_dir=str(cache))
    except Exception as error:
        text = _line(error).replace(str(root.resolve()), one.repository).replace(str(root), one.repository)
        text = text.partition(" with any supported extension")[0]  # a hundred of them
        raise ValueError(f"{one}: {text[:600]}") from None
    if builder.name not in FORMATS:
        raise ValueError(f"{one}: its files are read as {builder.name}; expected one of {', '.join(FORMATS)}")
    data = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    missing = [split for split in one.splits if split not in data]
    if missing:
        raise ValueError(f"{one}: no split {', '.join(missing)}; there are {', '.join(data) or 'none'}")
    here = root.resolve()
    outside = [file for files in data.values() for file in files if not Path(file).is_relative_to(here)]
    if outside:
        raise ValueError(f"{one}: its card names data outside of the repository: {outside[0]}")
    return sorted({Path(file).relative_to(here).as_posix() for files in data.values() for file in files})


def _copied(
    one: DataSet, commit: str, scratch: Path, unfinished: Path, cache: Path, say: Say, patience: downloads.Patience
) -> Path:
    """A copy of the repository at `commit` in which the files of the configuration are whole and all others empty."""
    source = downloads.Repository(f"task {one.task}", one.repository, commit)
    listed = {file.name: file for file in downloads.list_hub(source, unfinished, say, patience).files}
    root = scratch / "repository" / one.repository
    root.mkdir(parents=True)
    for name in listed:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{source}: a file is named {name!r}, which leads out of the repository")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()

    def bring(names: Sequence[str]) -> None:
        chosen = [listed[name] for name in names]
        brought = downloads.fetch_files(source, chosen, unfinished, say, patience=patience)
        for name, path in zip(names, brought, strict=True):
            (root / name).unlink()
            (root / name).symlink_to(path.resolve())

    # What format is inside an archive shows only in it.
    bring([name for name in listed if name in CARDS or name.endswith(".zip")])
    bring([name for name in _files(one, root, cache) if name not in CARDS and not name.endswith(".zip")])
    return root


def _in_mirror(one: DataSet, mirror: Path) -> Path:
    places = [mirror / one.repository, mirror / one.repository.replace("/", "--")]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{one}: not in the mirror; there is neither {' nor '.join(map(str, places))}")


def _fingerprint(root: Path, files: Sequence[str]) -> str:
    """What stands for a commit where there is none."""
    present = sorted({*files, *(name for name in CARDS if (root / name).is_file())})
    listed = "".join(f"{_sha256(root / name)} {name}\n" for name in present)
    return f"mirror-{hashlib.sha256(listed.encode()).hexdigest()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value that may be one, a list or a mapping."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _named(name: str, include_path: Path | None) -> list[DataSet]:
    """What the tasks need that `name` stands for: those in a folder, or lm_eval's own."""
    folder = Path(name) if include_path is None else include_path / name
    described = in_folder(folder) if folder.is_dir() else {task: config(task) for task in resolve(name)}
    found = [data_set(task, yaml) for task, yaml in described.items()]
    return [one for one in found if one is not None]


def _wanted(names: Sequence[str]) -> list[DataSet]:
    if names:
        return [one for name in names for one in _named(name, None)]
    evaluate: Any = params.read(Path("params.yaml")).get("evaluate")
    try:
        entries, include_path = [str(entry) for entry in evaluate["tasks"]], Path(evaluate["include_path"])
    except (KeyError, TypeError):
        raise params.ParamsError("params.yaml: expected evaluate.tasks, a list, and evaluate.include_path") from None
    return [one for entry in entries for one in _named(entry, include_path)]


def main(arguments: list[str]) -> int:
    """Fetch what the tasks that are named, or those of params.yaml in the working directory, need of the hub."""
    parser = argparse.ArgumentParser(
        prog="python -m wronai.hub_benchmarks", description="bring the data sets of lm_eval tasks to this machine"
    )
    parser.add_argument(
        "--mirror", type=Path, metavar="FOLDER", help="of data set repositories, owner/name, instead of the hub"
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a task, group or tag of lm_eval, a pattern of these, or a folder of tasks; by default evaluate.tasks",
    )
    asked = parser.parse_args(arguments)
    try:
        fetch(_wanted(asked.names), FOLDER, PINS, functools.partial(print, flush=True), asked.mirror)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
