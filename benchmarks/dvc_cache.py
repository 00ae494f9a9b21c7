"""Time and disk of a big DVC out under each cache.type: `dvc add`, a repeated `dvc commit`, and `dvc checkout`.

An out of `--gigabytes` of random bytes in a few files, as models are, is made anew for each type in a repository below
`--folder`. Disk is what the file system has less after a step than before the out was made.

    python benchmarks/dvc_cache.py [--gigabytes 2] [--folder /somewhere/with/room]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TYPES = ("reflink", "hardlink", "symlink", "copy")
FILES = 4
PIECE = 1 << 24  # bytes written at once
GB = 10**9
FULL = 15  # GB of Mistral-7B with its tokenizer


@dataclass(frozen=True)
class Measured:
    """Seconds of each step, and GB of disk that the out takes with its cache, at its most."""

    add: float
    commit: float
    checkout: float
    disk: float


def dvc(project: Path, *arguments: str) -> float:
    """The seconds that a dvc command takes."""
    started = time.monotonic()
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=project, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("ERROR")]
        raise OSError(f"dvc {' '.join(arguments)}: {' '.join(said) or done.stderr.strip()}")
    os.sync()
    return time.monotonic() - started


def used(folder: Path) -> int:
    """Bytes of the file system that are not free."""
    usage = shutil.disk_usage(folder)
    return usage.total - usage.free


def measure(project: Path, kind: str, size: int) -> Measured:
    """What an out of `size` bytes costs in a fresh repository at `project`; raises OSError if `kind` cannot be had."""
    project.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    dvc(project, "init")
    dvc(project, "config", "cache.type", kind)
    os.sync()
    before = used(project)
    model = project / "model"
    model.mkdir()
    for number in range(FILES):
        with (model / f"{number}.safetensors").open("wb") as file:
            left = size // FILES
            while left:
                left -= file.write(os.urandom(min(PIECE, left)))
    os.sync()
    add = dvc(project, "add", "model")
    disk = used(project) - before
    commit = dvc(project, "commit", "--force", "model.dvc")
    shutil.rmtree(model)
    checkout = dvc(project, "checkout")
    return Measured(add, commit, checkout, max(disk, used(project) - before) / GB)


def main() -> int:
    """Print a row for each type that the file system supports, and why another has none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    size = int(options.gigabytes * GB)
    scale = FULL / options.gigabytes
    with tempfile.TemporaryDirectory(prefix="dvc-cache-", dir=options.folder) as work:
        free = shutil.disk_usage(work).free
        if free < 3 * size:
            print(f"{options.gigabytes:g} GB need {3 * size / GB:.1f} GB free, and there are {free / GB:.1f}")
            return 1
        print(f"an out of {options.gigabytes:g} GB in {FILES} files; {free / GB:.1f} GB free before", flush=True)
        print("| cache.type | dvc add, s | dvc commit again, s | dvc checkout, s | disk, GB | at 15 GB, by scale |")
        print("| --- | ---: | ---: | ---: | ---: | --- |")
        for kind in TYPES:
            project = Path(work) / kind
            try:
                found = measure(project, kind, size)
                full = f"{scale * found.add:.0f} s, {scale * found.disk:.0f} GB"
                steps = (found.add, found.commit, found.checkout, found.disk)
                print(f"| {kind} | {' | '.join(f'{value:.1f}' for value in steps)} | {full} |", flush=True)
            except OSError as error:
                print(f"| {kind} | {error} | | | | |", flush=True)
            shutil.rmtree(project)
            os.sync()
        print(f"{shutil.disk_usage(work).free / GB:.1f} GB free after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
