"""What the tests of faults share: one small graph that has run, traps for its stages, and a look into DVC's cache."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import clones
import pytest
from filelock import FileLock
from ruamel.yaml import YAML

TRAP = Path(__file__).parent / "trap"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two are slower here, and bytes are the same


@dataclass(frozen=True)
class Trap:
    """See tests/trap/sitecustomize.py."""

    event: str
    path: str = ""
    count: int = 1
    then: str = "kill"
    bytes: int = 0


def prepared(factory: pytest.TempPathFactory) -> Path:
    """A clone of its own in which everything has run.

    The graph runs once a session: of the workers of pytest-xdist the first one makes it, and the others copy it.
    """
    shared = factory.getbasetemp().parent if factory.getbasetemp().name.startswith("popen-") else factory.getbasetemp()
    with FileLock(shared / "faults.lock"):
        if not (shared / "faults").exists():
            making = factory.mktemp("making")
            clones.copy(making, clones.SMALLEST, [clones.add_riddles])
            clones.run(making, "dvc", "repro", **ONE_THREAD)
            clones.commit(making)
            making.rename(shared / "faults")
    return Path(shutil.copytree(shared / "faults", factory.mktemp("clone") / "clone", symlinks=True))


def module_of(stage: str) -> list[str]:
    """The arguments of the Python process that runs a stage, as `dvc stage list` names it."""
    name, _, instance = stage.partition("@")
    return ["-m", f"stages.{name}", *(instance.split("-") if instance else [])]


def trapped(clone: Path, stage: str, trap: Trap, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Run `stage` alone with `trap` in it, in a process group of its own."""
    told = json.dumps({"command": module_of(stage), **asdict(trap)})
    env = clones.environment(WRONAI_TRAP=told, PYTHONPATH=str(TRAP), **ONE_THREAD)
    command = [*prefix, "dvc", "repro", "--single-item", stage]
    with subprocess.Popen(
        command, cwd=clone, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def killed(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether DVC says that its stage was killed: -9 from a shell that the command replaces, 137 from dash."""
    return done.returncode == 255 and ("exited with -9" in done.stderr or "exited with 137" in done.stderr)


def for_all(trap: Trap) -> Trap:
    """`trap`, but dvc and its shell are killed with the stage."""
    return replace(trap, then=trap.then.replace("kill", "kill all"))


def damaged(clone: Path) -> list[str]:
    """The objects of DVC's cache that are not what their name says, and those that a folder names and that lack."""
    cache = clone / ".dvc/cache/files/md5"
    found = []
    for path in cache.glob("??/*"):
        content, name = path.read_bytes(), path.parent.name + path.name
        if hashlib.md5(content).hexdigest() != name.removesuffix(".dir"):
            found.append(name)
        elif name.endswith(".dir"):
            entries: list[dict[str, Any]] = json.loads(content)
            found += [f"{name}: {entry['relpath']}" for entry in entries if not object_of(clone, entry["md5"]).exists()]
    return found


def object_of(clone: Path, digest: str) -> Path:
    return clone / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


def forget(clone: Path, stage: str) -> None:
    """Let DVC know nothing of a run of `stage`, in dvc.lock or its run cache: else its outs are only restored."""
    shutil.rmtree(clone / ".dvc/cache/runs", ignore_errors=True)
    yaml = YAML()
    lock = yaml.load(clone / "dvc.lock")
    del lock["stages"][stage]
    yaml.dump(lock, clone / "dvc.lock")


def recovers(clone: Path, stage: str, expected: dict[str, str], *prefix: str) -> str:
    """The next `dvc repro` runs `stage` alone, and ends in what was `expected`, with nothing half-made left.

    Returns what it printed.
    """
    output = clones.run(clone, *prefix, "dvc", "repro", **ONE_THREAD)
    assert clones.ran(output) == [stage], output
    assert clones.record(clone) == expected
    assert damaged(clone) == []
    for folder in ("data", "metrics", "models", "report"):
        assert not [path for path in (clone / folder).rglob("*") if path.suffix in (".partial", ".unfinished")]
    left = clone / ".checkpoints"
    assert not left.exists() or list(left.iterdir()) == []
    return output


class SmallDisk:
    """A copy of a clone on a tmpfs of its own mount namespace: nothing is left of it when this process is gone."""

    def __init__(self, clone: Path, place: Path, size: str = "192m") -> None:
        place.mkdir()
        script = f'mount -t tmpfs -o size={size} none "$1" && cp -a "$0/." "$1" && echo ready && cat'
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(clone), str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout and self._holder.stderr
        if self._holder.stdout.readline() != "ready\n":
            pytest.skip(f"no mount namespace or tmpfs may be made here: {self._holder.stderr.read().strip()}")
        self.clone = Path(f"/proc/{self._holder.pid}/root{place}")  # how this process sees it
        enter = ("nsenter", "--target", str(self._holder.pid), "--mount")
        self.prefix = (*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(place))  # before a command

    def close(self) -> None:
        self._holder.communicate(timeout=30)
