"""What dvc.yaml declares and dvc.lock records: the stages, what they are made of, and the bytes that they left."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from wronai import params

PUBLISHER = "publish_report"  # the last stage: a view of what the others left, no part of the pipeline's state
VIEWS = ("tracking.",)  # keys of params.yaml that say where a run is shown, not what it is
RECORD = ("dvc.yaml", "dvc.lock", "params.yaml", "metrics")  # what git has of a state


@dataclass(frozen=True)
class Declared:
    """What dvc.yaml says of a stage: the sections of params.yaml that it reads, and the Python files it is made of."""

    sections: list[str]
    sources: list[str]


def declared(path: Path) -> dict[str, Declared]:
    """The stages of the dvc.yaml at `path`, in its order."""
    return {
        name: Declared(
            sections=[str(section) for section in entry.get("params", [])],
            sources=[dep for dep in entry.get("deps", []) if dep.endswith(".py")],
        )
        for name, entry in params.read(path)["stages"].items()
    }


@dataclass(frozen=True)
class Made:
    """Where a stage, or an instance of one, leaves its metrics, and the sections of params.yaml that it reads."""

    metrics: Path
    sections: list[str]


def made(path: Path, values: params.Params | Mapping[str, Any]) -> dict[str, Made]:
    """Every stage of the dvc.yaml at `path`, those with a matrix once for each instance, named as DVC names them.

    `values` are the parameters. A stage's metrics stand in metrics/, an instance's in the summary.json
    of its first out.
    """
    flat = params.flatten(values)
    found: dict[str, Made] = {}
    for name, entry in params.read(path)["stages"].items():
        sections = [str(section) for section in entry.get("params", [])]
        if "matrix" not in entry:
            found[name] = Made(Path("metrics") / f"{name}.json", sections)
            continue
        axes = {
            axis: flat[values[2:-1]] if isinstance(values, str) else values for axis, values in entry["matrix"].items()
        }
        for chosen in itertools.product(*axes.values()):
            out = str(entry["outs"][0])
            for axis, value in zip(axes, chosen, strict=True):
                out = out.replace(f"${{item.{axis}}}", str(value))
            found[f"{name}@{'-'.join(map(str, chosen))}"] = Made(Path(out) / "summary.json", sections)
    return found


@dataclass(frozen=True)
class Lock:
    """A dvc.lock: its bytes, and for each stage the md5 of what it read and left, as DVC's cache names them."""

    content: bytes = b""
    outs: dict[str, dict[str, str]] = field(default_factory=dict)  # stage → path → md5
    deps: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def md5(self) -> str:
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()

    def data(self, stage: str) -> dict[str, str]:
        """What the stage read that is no code: path → md5."""
        return {path: md5 for path, md5 in self.deps.get(stage, {}).items() if not path.endswith(".py")}


def parse(content: bytes) -> Lock:
    """The Lock in the bytes of a dvc.lock; an empty one where there are none."""
    stages = (yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}).get("stages") or {}

    def hashes(entry: Mapping[str, Any], kind: str) -> dict[str, str]:
        return {item["path"]: item["md5"] for item in entry.get(kind) or [] if "md5" in item}

    return Lock(
        content,
        {name: hashes(entry, "outs") for name, entry in stages.items()},
        {name: hashes(entry, "deps") for name, entry in stages.items()},
    )


def read_lock(folder: Path) -> Lock:
    """The dvc.lock in `folder`; an empty Lock if there is none."""
    path = folder / "dvc.lock"
    return parse(path.read_bytes() if path.exists() else b"")


def settled(stage: str) -> Lock:
    """The dvc.lock of the working directory as DVC will leave it when `stage`, which runs now, ends well.

    DVC writes a stage into dvc.lock after the stage ended, when nobody can tell MLflow of it any more. So its own code
    hashes the outs, which must be complete, and writes them into a copy. An empty Lock if there is no DVC project here.
    """
    if not Path(".dvc").is_dir():
        return Lock()
    from dvc.repo import Repo
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import modify_yaml

    with Repo() as repo, tempfile.TemporaryDirectory() as folder:
        loaded = repo.stage.load_one(name=stage)
        loaded.save(run_cache=False)
        copy = Path(folder) / "dvc.lock"
        if Path("dvc.lock").exists():
            copy.write_bytes(Path("dvc.lock").read_bytes())
        with modify_yaml(copy) as data:
            data.setdefault("schema", "2.0")
            data.setdefault("stages", {}).update(to_lockfile(loaded))
        return parse(copy.read_bytes())


def state(lock: Lock, flat: Mapping[str, Any], stages: Iterable[str]) -> str:
    """A digest of what the pipeline was told and what it made: equal if the parameters and the bytes of all outs are.

    `flat` are all parameters under dotted keys, `stages` those of the graph. Code that gives the same bytes, the report
    and where it was tracked are no part of it.
    """
    told = {key: value for key, value in flat.items() if not key.startswith(VIEWS)}
    left = {name: lock.outs.get(name, {}) for name in stages if name != PUBLISHER}
    return hashlib.sha256(json.dumps([told, left], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Revision:
    """A commit that git keeps of a state: `name` of the experiment, or None of a commit of a branch or a tag."""

    commit: str
    name: str | None
    baseline: str | None
    committed: int  # ms since 1970


def revisions(root: Path, *, all_commits: bool) -> list[Revision]:
    """Every experiment of DVC in the repository at `root`, and the commits that hold a state, oldest first.

    Those are HEAD and the tips of branches and tags, or with `all_commits` every one in which dvc.lock changed.
    """
    from dvc.repo import Repo

    wanted: dict[str, tuple[str | None, str | None]] = {}
    if all_commits:
        tips = _git(root, "log", "--branches", "--tags", "HEAD", "--format=%H", "--", "dvc.lock").split()
    else:
        tips = _git(root, "for-each-ref", "--format=%(objectname)^0", "refs/heads", "refs/tags").split()
        tips = [_git(root, "rev-parse", tip).strip() for tip in [*tips, "HEAD"]]
    wanted |= dict.fromkeys(tips, (None, None))
    with Repo(str(root)) as repo:
        for baseline, experiments in repo.experiments.ls(all_commits=True).items():
            wanted |= {commit: (name, baseline) for name, commit in experiments}
    found = []
    for commit, (name, baseline) in wanted.items():
        seconds = int(_git(root, "show", "-s", "--format=%ct", commit))
        found.append(Revision(commit, name, baseline, seconds * 1000))
    return sorted(found, key=lambda revision: revision.committed)


@contextmanager
def checked_out(root: Path, commit: str) -> Iterator[Path | None]:
    """A temporary folder with what git has of the state at `commit`; None where that lacks a dvc.lock."""
    kept = _git(root, "ls-tree", "--name-only", commit, *RECORD).split()
    if not {"dvc.yaml", "dvc.lock", "params.yaml"} <= set(kept):
        yield None
        return
    command = ["git", "archive", "--format=zip", commit, *kept]
    archive = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(io.BytesIO(archive)) as packed:
        packed.extractall(folder)
        yield Path(folder)


@contextmanager
def from_cache(path: str, md5: str, root: Path) -> Iterator[Path]:
    """A folder named as `path` with the out `md5` of DVC's cache in it, as links; FileNotFoundError if it lacks any.

    The cache is that of the project at `root`.
    """
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        cache = Path(repo.cache.local_cache_dir)

    def held(name: str) -> Path:
        found = cache / "files" / "md5" / name[:2] / name[2:]
        if not found.exists():
            raise FileNotFoundError(f"{path}: {name} is not in the DVC cache; `dvc pull` or `dvc repro` brings it")
        return found.resolve()

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / Path(path).name
        out.mkdir()
        for entry in json.loads(held(md5).read_text()):
            (out / entry["relpath"]).parent.mkdir(parents=True, exist_ok=True)
            (out / entry["relpath"]).symlink_to(held(entry["md5"]))
        yield out


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {arguments[0]}: {done.stderr.strip() or 'failed'}")
    return done.stdout
