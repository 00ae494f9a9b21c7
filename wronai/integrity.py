"""Find what is damaged in DVC's cache and in the outs, and put it aside: `python -m wronai.integrity`.

DVC trusts a file of its cache that is read-only, and an out whose time stamp it knows: a byte that the disk lost passes
unseen into every later checkout. This reads all of it once. Nothing is deleted: what is damaged moves to `ASIDE`, and
the next `dvc pull` or `dvc repro` makes it again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wronai import params
from wronai.progress import Progress

ASIDE = Path(".dvc/tmp/damaged")
BLOCK = 1 << 20  # bytes read at once
FOLDER = ".dir"  # how the names of objects end that list a folder's files
UNKNOWN = "no out of dvc.lock, so to another commit or experiment"


@dataclass(frozen=True)
class Finding:
    """A damaged or missing file, whose it is, and what was found."""

    path: Path
    found: str
    belongs_to: str

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; it belongs to {self.belongs_to}"


def check(cache: Path, lock: Path, believed: Callable[[Path], str | None], say: Callable[[int], None]) -> list[Finding]:
    """What is damaged below `cache` (DVC's files/md5) and among the outs of `lock`; `say` is told the bytes read.

    An object is damaged if its bytes have not the digest that it is named after, and missing if a folder lists it.
    The file of an out is damaged if its bytes have not the digest that DVC has `believed` it to have since it wrote it:
    one that was edited since, or belongs to another commit, DVC sees itself.
    """
    findings, listed = list[tuple[Path, str]](), dict[str, dict[str, str]]()
    for path in sorted(cache.glob("??/*")):
        name = path.parent.name + path.name
        if _digest(path, say) != name.removesuffix(FOLDER):
            findings.append((path, f"damaged ({path.stat().st_size:,} bytes)"))
        elif name.endswith(FOLDER):
            listed[name] = {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))}
    for name, entries in listed.items():
        for relpath, digest in entries.items():
            if not (path := cache / digest[:2] / digest[2:]).exists():
                findings.append((path, f"missing, though {name} lists it as {relpath}"))
    owners = _owners(lock, listed)
    found = [Finding(path, what, owners.get(path.parent.name + path.name, UNKNOWN)) for path, what in findings]
    for out, stage, _ in _outs(lock):
        for path in _files(Path(out)):
            if (trusted := believed(path)) is not None and trusted != _digest(path, say):
                found.append(Finding(path, "damaged, and DVC takes it for whole", f"stage {stage}"))
    return found


def size(cache: Path, lock: Path) -> int:
    """The bytes that `check` will read."""
    files = [*cache.glob("??/*"), *(path for out, *_ in _outs(lock) for path in _files(Path(out)))]
    return sum(path.stat().st_size for path in files)


def put_aside(findings: list[Finding], aside: Path) -> None:
    """Move what is damaged to the folder `aside`, under its path with dashes; what is missing is left alone."""
    aside.mkdir(parents=True, exist_ok=True)
    for item in findings:
        if item.path.exists():
            item.path.rename(aside / "-".join(item.path.parts[-4:]))


def _outs(lock: Path) -> Iterator[tuple[str, str, str]]:
    """The path, stage and digest of each out in `lock`."""
    stages: dict[str, Any] = params.read(lock)["stages"] if lock.exists() else {}
    for stage, entry in stages.items():
        for out in entry.get("outs", []):
            yield out["path"], stage, out["md5"]


def _owners(lock: Path, listed: dict[str, dict[str, str]]) -> dict[str, str]:
    """Whose each object is, by its name."""
    owners: dict[str, str] = {}
    for out, stage, digest in _outs(lock):
        owners.setdefault(digest, f"{out} of stage {stage}")
        for relpath, inner in listed.get(digest, {}).items():
            owners.setdefault(inner, f"{out}/{relpath} of stage {stage}")
    return owners


def _files(out: Path) -> list[Path]:
    return [path for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file()]


def _digest(path: Path, say: Callable[[int], None]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            say(len(block))
    return digest.hexdigest()


def main() -> int:
    """Check the project of this folder; 1 if anything was damaged."""
    from dvc.fs import localfs
    from dvc.repo import Repo

    repo = Repo()

    def believed(path: Path) -> str | None:
        _, known = repo.state.get(str(path.absolute()), localfs)
        return known.value if known else None

    cache, lock = Path(repo.cache.local.path), Path("dvc.lock")
    cache = cache.relative_to(Path.cwd()) if cache.is_relative_to(Path.cwd()) else cache
    progress = Progress("checking", size(cache, lock), "B")
    findings = check(cache, lock, believed, progress.add)
    progress.close()
    if not findings:
        print("every object of DVC's cache and every out is whole")
        return 0
    put_aside(findings, ASIDE)
    for item in findings:
        print(item, file=sys.stderr)
    print(
        f"{len(findings)} damaged or missing; what was damaged is in {ASIDE}. `dvc pull` fetches it from a remote, and "
        "`dvc repro` makes it again; then remove that folder",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
