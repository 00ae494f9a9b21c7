"""How long `dvc repro` takes when nothing is to do, against the same with YAML read in Python, and the start alone.

    python benchmarks/nothing_to_do.py [--rounds N]

In this checkout, whose outs must be up to date. DVC reads params.yaml once a stage, dvc.yaml and dvc.lock twice; with
ruamel.yaml.clib that is done by libyaml. The three commands run in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
MASK = "import sys\nsys.modules['_ruamel_yaml'] = None\n"  # its import fails then, and ruamel.yaml does without


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(MASK, encoding="utf-8")
        commands = {
            "dvc repro": (["repro"], ""),
            "YAML in Python": (["repro"], folder),
            "dvc version, the start alone": (["version"], ""),
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, (arguments, path) in commands.items():
                taken[name].append(seconds(arguments, path))
    stages = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]
    print(f"{len(stages)} stages with {sum(len(stage['deps']) for stage in stages.values())} dependencies")
    ours = statistics.median(taken["dvc repro"])
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:30} {median:.2f} s (from {min(times):.2f} to {max(times):.2f}), {median / ours:.2f} x")


def seconds(arguments: list[str], path: str) -> float:
    """The time of a dvc command in this checkout; it ends this script if the command has something to do."""
    environment = {**os.environ, "PYTHONPATH": path}
    command = [str(Path(sys.executable).parent / "dvc"), *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    taken = time.perf_counter() - began
    if arguments == ["repro"] and "up to date" not in done.stdout:
        sys.exit("dvc repro had something to do; run it again")
    return taken


if __name__ == "__main__":
    main()
