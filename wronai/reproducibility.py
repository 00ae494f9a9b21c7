"""Whether this commit gives the bytes that it records, from nothing but itself.

    python -m wronai.reproducibility [--stages data] [--threads 1] [--tolerance 0.05] [--keep]

Clones HEAD into a temporary folder, runs `dvc repro --force` there with an empty cache and a tracking store of its own,
and compares dvc.lock and metrics/ with the commit. Each out that differs is named with its file, the tensor or row, and
how far apart; the recorded bytes come from this project's DVC cache or from its workspace.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from wronai import discrepancies, environment, params

DATA = ("download_corpus", "prepare_benchmarks", "clean_text")  # what `--stages data` stands for: all without a model
GRAPH = ("dvc.yaml", "dvc.lock", "params.yaml", "constraints.txt", environment.RECORD)
# Variables that would lead the clone out of its folder: a stage's, a user's tracking store, those of a git hook.
FOREIGN = (
    "DVC_",
    "MLFLOW_",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)
POOLS = (
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
FILES_SHOWN = 4  # differing files of an out that are opened
BEYOND_SHOWN = 5  # values beyond the tolerance
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Difference:
    """Something of a stage that is not as recorded, in a word and in detail."""

    stage: str
    path: str
    summary: str
    lines: list[str] = field(default_factory=list)
    excused: bool = False  # by --tolerance


@dataclass(frozen=True)
class Locked:
    """What dvc.lock says of a stage: its command and parameters, and the md5 of each dep and out by path."""

    cmd: str
    values: Mapping[str, Any]
    deps: Mapping[str, str]
    outs: Mapping[str, str]


def locked(path: Path) -> dict[str, Locked]:
    """The stages of a dvc.lock. Raises ValueError, as `params.read`."""
    found = {}
    for name, entry in params.read(path).get("stages", {}).items():
        deps, outs = ({item["path"]: item.get("md5", "") for item in entry.get(kind, [])} for kind in ("deps", "outs"))
        given = entry.get("params", {})
        values = {f"{file}:{key}": value for file, keys in given.items() for key, value in keys.items()}
        found[name] = Locked(str(entry.get("cmd")), values, deps, outs)
    return found


def git(folder: Path, *arguments: str) -> bytes:
    """What git prints. Raises ValueError with its message."""
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, env=_domestic(), capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"git {arguments[0]} in {folder}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _domestic() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def names(listed: bytes) -> list[str]:
    """The paths that git prints with -z."""
    return [name for name in listed.decode().split("\0") if name]


def changed(root: Path, lock: Mapping[str, Locked]) -> list[str]:
    """The files that the graph reads or records and that are not as they are committed, new ones included."""
    used = {*GRAPH, *(path for stage in lock.values() for paths in (stage.deps, stage.outs) for path in paths)}
    touched = names(git(root, "diff", "--name-only", "--no-renames", "-z", "HEAD"))
    touched += names(git(root, "ls-files", "--others", "--exclude-standard", "-z"))
    return sorted(name for name in touched if any(name == path or name.startswith(f"{path}/") for path in used))


def stale(clone: Path, lock: Mapping[str, Locked]) -> list[str]:
    """The committed files that a stage of dvc.lock was not made of: it would be another lock whatever the run gives."""
    found = []
    for name, stage in lock.items():
        for path, md5 in stage.deps.items():
            if (clone / path).is_file() and environment.md5(clone / path) != md5:
                found.append(f"{path} ({name})")
    return found


class Execution:
    """`dvc repro --force` in the clone: what it executed, and the stage that failed."""

    def __init__(self) -> None:
        self.executed: list[str] = []
        self.failed: str | None = None

    def run(self, clone: Path, stages: list[str], variables: dict[str, str]) -> None:
        """Run it and pass on what it prints, line by line. Whatever ends this process ends those below it too."""
        command = [sys.executable, "-m", "dvc", "repro", "--force", *stages]
        process = subprocess.Popen(
            command,
            cwd=clone,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        reason = None
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                if started := re.match(r"Running stage '(.+)':", line):
                    self.executed.append(started[1])
                if failure := re.search(r"failed to reproduce '([^']+)'", line):
                    reason = failure[1]
            code = process.wait()
        finally:
            _end(process.pid)
        if code:
            self.failed = reason or (self.executed[-1] if self.executed else "dvc repro")


def _end(pid: int) -> None:
    """End a process that this one started, and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        for member in psutil.wait_procs(family, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def variables(clone: Path, apart: Path, threads: int | None) -> dict[str, str]:
    """The environment of the run: the clone's modules and this interpreter first, none of the user's DVC or MLflow."""
    found = _domestic() | {
        "PATH": os.pathsep.join(filter(None, (str(Path(sys.executable).parent), os.environ.get("PATH")))),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(clone), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(apart / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(apart / "config"),
        "DVC_SYSTEM_CONFIG_DIR": str(apart / "config"),
    }
    return found | (dict.fromkeys(POOLS, str(threads)) if threads else {})


class Recorded:
    """The recorded bytes: in git, in the DVC cache of the project, or in its workspace."""

    def __init__(self, root: Path, commit: str, apart: Path) -> None:
        self._root, self._commit, self._apart = root, commit, apart

    @functools.cached_property
    def _cache(self) -> Path:
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        done = subprocess.run(command, cwd=self._root, env=_domestic(), capture_output=True, text=True, check=False)
        return self._root / (done.stdout.strip() if done.returncode == 0 else ".dvc/cache") / "files/md5"

    def file(self, path: str, md5: str) -> Path | None:
        """A file that has these bytes, which `path` had when they were recorded; None if there is none."""
        for place in (self._cache / md5[:2] / md5[2:], self._root / path):
            if place.is_file() and environment.md5(place) == md5:
                return place
        with contextlib.suppress(ValueError):
            self._apart.mkdir(exist_ok=True)
            kept = self._apart / f"{md5}{Path(path).suffix}"
            kept.write_bytes(git(self._root, "show", f"{self._commit}:{path}"))
            if environment.md5(kept) == md5:
                return kept
        return None

    def files(self, path: str, md5: str) -> dict[str, str] | None:
        """The md5 of each file of an out, by its path; None if the list of a folder is in no cache."""
        if not md5.endswith(".dir"):
            return {path: md5}
        listed = self._cache / md5[:2] / md5[2:]
        if listed.is_file():
            return {f"{path}/{item['relpath']}": item["md5"] for item in json.loads(listed.read_text(encoding="utf-8"))}
        found = contents(self._root, path)
        return found if found and _folder_md5(path, found) == md5 else None


def contents(root: Path, out: str) -> dict[str, str]:
    """The md5 of each file of the out of that name, as it lies in a workspace."""
    where = root / out
    files = [where] if where.is_file() else sorted(path for path in where.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): environment.md5(path) for path in files}


def _folder_md5(out: str, files: Mapping[str, str]) -> str:
    """The hash that DVC gives a folder of these files."""
    items = [{"md5": md5, "relpath": path.removeprefix(f"{out}/")} for path, md5 in files.items()]
    listed = json.dumps(sorted(items, key=lambda item: tuple(item["relpath"].split("/"))), sort_keys=True)
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest() + ".dir"


def opened(out: str, md5: str, clone: Path, recorded: Recorded) -> tuple[str, list[str]]:
    """What differs inside an out: in a word, and line by line."""
    old, new = recorded.files(out, md5), contents(clone, out)
    if old is None:
        return "hashes alone compared", [
            f"its recorded bytes ({md5}) are in no cache here: `dvc pull`, or `dvc checkout`"
        ]
    differing = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    lines = []
    for path in differing[:FILES_SHOWN]:
        if path not in new or path not in old:
            lines.append(f"{path}: {'recorded, not made' if path in old else 'made, not recorded'}")
        elif (reference := recorded.file(path, old[path])) is None:
            lines.append(
                f"{path}: md5 {old[path]} recorded, {new[path]} found; the recorded bytes are in no cache here"
            )
        else:
            comparison = discrepancies.compare(_named(reference, path, clone), clone / path)
            lines += [f"{path}: {comparison}", *(f"  {shown}" for shown in comparison.shown)]
    if len(differing) > FILES_SHOWN:
        lines.append(f"and {len(differing) - FILES_SHOWN:,} files more")
    return f"{len(differing):,} of {len(old.keys() | new.keys()):,} files", lines


def _named(reference: Path, path: str, clone: Path) -> Path:
    """The recorded file under a name that tells what it holds, which a file of the cache has not."""
    if reference.suffix == Path(path).suffix:
        return reference
    link = clone.parent / "recorded" / f"{environment.md5(reference)}{Path(path).suffix}"
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(reference)
    return link


def compare(
    clone: Path, before: Mapping[str, Locked], recorded: Recorded, executed: list[str], tolerance: float | None
) -> list[Difference]:
    """Everything in the clone that is not as the commit records it, in the order in which the stages ran."""
    after = locked(clone / "dvc.lock")
    found = []
    for name in [*executed, *sorted((before.keys() | after.keys()) - {*executed})]:
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            found.append(Difference(name, "dvc.lock", "not in it before" if old is None else "no longer in it"))
            continue
        found += _inputs(name, old, new, [path for stage in before.values() for path in stage.outs])
        for path in sorted(old.outs.keys() | new.outs.keys()):
            if path not in old.outs or path not in new.outs:
                found.append(Difference(name, path, "not recorded" if path in new.outs else "not made"))
            elif old.outs[path] != new.outs[path]:
                found.append(_out(name, path, old.outs[path], clone, recorded, tolerance))
    explained = {difference.path for difference in found}
    touched = names(git(clone, "diff", "--name-only", "-z", "HEAD"))
    if touched == ["dvc.lock"] and not found:
        return [Difference("", "dvc.lock", "the same hashes in another form: another version of DVC?")]
    made = names(git(clone, "ls-files", "--others", "--exclude-standard", "-z", "metrics"))
    for paths, summary in ((touched, "a file of the commit that the run changed"), (made, "not recorded")):
        found += [Difference("", path, summary) for path in paths if path not in explained | {"dvc.lock"}]
    return found


def _inputs(name: str, old: Locked, new: Locked, produced: list[str]) -> Iterator[Difference]:
    """What a stage was made of and is not any more, without the outs of other stages, which speak for themselves."""
    for kind, was, now in (("command", {"cmd": old.cmd}, {"cmd": new.cmd}), ("parameter", old.values, new.values)):
        for path, left, right in discrepancies.walk(dict(was), dict(now)):
            lines = [f"{name}: {discrepancies.discrepancy(path, left, right)}"]
            yield Difference(name, path, f"another {kind}", lines)
    for path in sorted(old.deps.keys() | new.deps.keys()):
        inside = any(path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/") for out in produced)
        if old.deps.get(path) != new.deps.get(path) and not inside:
            yield Difference(name, path, "dvc.lock was made of another")


def _out(stage: str, path: str, md5: str, clone: Path, recorded: Recorded, tolerance: float | None) -> Difference:
    """What differs inside an out, and whether `tolerance` allows it: of all outs it judges metrics/*.json alone."""
    summary, lines = opened(path, md5, clone, recorded)
    if tolerance is None:
        return Difference(stage, path, summary, lines)
    if not _is_metrics(path):
        return Difference(stage, path, summary, lines, excused=True)
    if (reference := recorded.file(path, md5)) is None:
        return Difference(stage, path, summary, lines)
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in (reference, clone / path))
    beyond = discrepancies.outside(old, new, tolerance)
    if not beyond:
        return Difference(stage, path, f"within {tolerance:g}", lines, excused=True)
    lines = [f"{path}: {len(beyond)} beyond {tolerance:g}", *(f"  {shown}" for shown in beyond[:BEYOND_SHOWN])]
    return Difference(stage, path, f"{len(beyond)} values beyond {tolerance:g}", lines)


def _is_metrics(path: str) -> bool:
    return path.startswith("metrics/") and path.endswith(".json")


def began(before: Mapping[str, Locked], after: Mapping[str, Locked], executed: list[str]) -> list[str]:
    """The stages that gave other outs from the same deps: the others only follow."""
    return [
        name
        for name in executed
        if name in before and before[name].outs != after[name].outs and before[name].deps == after[name].deps
    ]


def forewarn(clone: Path, given: Mapping[str, str]) -> None:
    """Print what differs from the recorded environment, and what to expect of it."""
    record = clone / environment.RECORD
    if not record.is_file():
        print(f"environment: the commit has no {environment.RECORD}, so nothing is known of where its bytes were made")
        return
    lock, was = environment.read(record)
    if lock != environment.md5(clone / "dvc.lock"):
        print(f"environment: {environment.RECORD} belongs to another dvc.lock; `python -m wronai.environment record`")
    numerics: Literal["pinned", "native"] = "native"
    with contextlib.suppress(ValueError):
        numerics = "pinned" if params.read(clone / "params.yaml").get("numerics") == "pinned" else "native"
    found = environment.differences(was, environment.observe(given), numerics)
    print(f"environment, {numerics} numerics: {counted(len(found), 'difference')} from {environment.RECORD}")
    for difference in found:
        print(f"  {difference}")
    if count := sum(difference.severity == environment.MAY for difference in found):
        print(
            f"warning: {count} of them may change bytes: expect outs that differ; --tolerance compares metrics instead"
        )


def report(found: list[Difference], starts: list[str]) -> None:
    """Print the table of what differs, and under it where inside each out."""
    if not found:
        return
    rows = [
        ("stage", "what", "differs"),
        *((item.stage or "-", item.path, item.summary + (", allowed" if item.excused else "")) for item in found),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if starts:
        print(f"\nIt starts at {', '.join(starts)}: what that stage reads is as recorded, what it makes is not.")
    for item in found:
        if item.lines:
            print("\n" + "\n".join(item.lines))


def check(root: Path, options: argparse.Namespace) -> int:
    """Clone, run, compare; the exit status."""
    for name in ("dvc.yaml", "dvc.lock"):
        if not (root / name).is_file():
            raise ValueError(f"{name}: not found; run this at the root of the project, after `dvc repro`")
    commit = git(root, "rev-parse", "HEAD").decode().strip()
    lock = locked(root / "dvc.lock")
    touched = changed(root, lock)
    if touched and not options.ignore_changes:
        more = f" and {len(touched) - 5} more" if len(touched) > 5 else ""
        raise ValueError(
            f"{', '.join(touched[:5])}{more}: not as committed, and what is checked is the commit; "
            "commit, or check HEAD without them by --ignore-changes"
        )
    with folder(options.keep) as apart:
        clone = apart / "clone"
        git(root, "clone", "--quiet", "--no-checkout", str(root), str(clone))
        git(clone, "checkout", "--quiet", "--detach", commit)
        (clone / ".dvc").mkdir(exist_ok=True)
        # Over whatever the committed configuration says: a cache that others use is not empty.
        (clone / ".dvc/config.local").write_text(f"[cache]\n    dir = {clone / '.dvc/cache'}\n", encoding="utf-8")
        lock = locked(clone / "dvc.lock")
        stages = chosen(options.stages, lock)
        if old := stale(clone, {name: lock[name] for name in stages} if stages else lock):
            raise ValueError(
                f"dvc.lock was made of another {', '.join(old[:5])}{' and more' if len(old) > 5 else ''} than this "
                "commit has; `dvc repro`, and commit dvc.lock and metrics/"
            )
        given = variables(clone, apart, options.threads)
        print(f"checking commit {commit[:12]} in {clone}", flush=True)
        forewarn(clone, given)
        sys.stdout.flush()
        execution = Execution()
        execution.run(clone, stages, given)
        if execution.failed:
            print(f"\nstage {execution.failed} failed, so nothing was compared", flush=True)
            return 1
        found = compare(clone, lock, Recorded(root, commit, apart / "recorded"), execution.executed, options.tolerance)
        report(found, began(lock, locked(clone / "dvc.lock"), execution.executed))
        outs = sum(len(lock[name].outs) for name in execution.executed if name in lock)
        print(f"\n{verdict(found, len(execution.executed), outs, options.tolerance)}")
        return int(not all(item.excused for item in found))


def verdict(found: list[Difference], stages: int, outs: int, tolerance: float | None) -> str:
    """The last line but one: what was checked and how it ended."""
    ran = f"{counted(stages, 'stage')}, {counted(outs, 'out')}"
    if not found:
        return f"reproduced: {ran}; dvc.lock and metrics/ are the same bytes"
    if failed := sum(not item.excused for item in found):
        return f"NOT reproduced: {ran}; {counted(failed, 'difference')}"
    return f"within {tolerance:g}: {ran}, of which {len(found)} differ in bytes"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def chosen(given: list[str], lock: Mapping[str, Locked]) -> list[str]:
    """The stages to run, `data` spelled out; none means all. Raises ValueError for one that is not there."""
    wanted = [name for word in given for name in (DATA if word == "data" else (word,))]
    if unknown := [name for name in wanted if name not in lock]:
        raise ValueError(f"--stages: {', '.join(unknown)} not in dvc.lock; it has {', '.join(lock)}, and `data`")
    return wanted


@contextlib.contextmanager
def folder(keep: bool) -> Iterator[Path]:
    """A temporary folder that is gone however this ends, unless it is to be kept."""
    path = Path(tempfile.mkdtemp(prefix="wronai-check-")).resolve()
    try:
        yield path
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave half of it
        if keep:
            print(f"kept: {path}", flush=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _interrupted(number: int, _: object) -> None:
    sys.exit(128 + number)


def main(arguments: list[str] | None = None) -> None:
    """Exit with 0 if all is identical or within the tolerance, with 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m wronai.reproducibility", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--stages", nargs="+", default=[], help=f"only these; data: {', '.join(DATA)}")
    parser.add_argument("--threads", type=int, help="threads of every library that counts them by a variable")
    parser.add_argument("--tolerance", type=float, help="compare numbers in metrics/*.json alone, within this bound")
    parser.add_argument("--keep", action="store_true", help="leave the clone where it is")
    parser.add_argument("--ignore-changes", action="store_true", help="check HEAD, whatever is not committed")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads: expected at least 1, found {options.threads}")
    if options.tolerance is not None and not 0 <= options.tolerance < float("inf"):
        parser.error(f"--tolerance: expected a number from 0 on, found {options.tolerance}")
    for number in ENDING:
        signal.signal(number, _interrupted)
    started = time.monotonic()
    try:
        status = check(Path.cwd().resolve(), options)
    except (ValueError, OSError) as error:
        sys.exit(f"repro-check: {error}")
    print(f"{time.monotonic() - started:.0f} s in all")
    sys.exit(status)


if __name__ == "__main__":
    main()
