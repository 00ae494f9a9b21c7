"""Run a stage: check its parameters, record its metrics in metrics/ and mirror them to MLflow.

metrics/*.json is the record; MLflow is a copy of it. So a tracking server that is away costs one warning: what it
missed waits in .tracking/ until `publish_report`, or `make mlflow-sync`, mirrors it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from wronai import environment, files, graph, machine, numerics, params
from wronai.redaction import redact
from wronai.store import DIGEST_LIMIT, MEASURED, Record, Store, accepted, default_uri, dvc_inputs, first_line, shown

# No library reports usage, and none opens a connection that params.yaml did not ask for.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DAFT_ANALYTICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the address of a run, with the password that is in the store's
    "RAY_USAGE_STATS_ENABLED": "0",
}
# How a cluster tells a pod its place among several: torch would wait for the others. Every stage starts as one process,
# and those that it starts itself are told theirs.
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


class Report:
    """Takes the metrics of a running stage: `report(metrics)` once, `log` as it goes, `measure` for what varies."""

    def __init__(
        self, name: str, config: params.Params, sections: list[str], root: Path, instance: str | None = None
    ) -> None:
        self.name = name if instance is None else f"{name}@{instance}"
        self.metrics: dict[str, Any] | None = None
        self._kept = Path("metrics") / f"{self.name}.json"
        self._config = config
        self._sections = sections
        flat = params.select(config, sections)
        self._store = Store(root, config.tracking.experiment)
        tags = {"wronai.kind": "stage", "wronai.stage": name, **_provenance(root)}
        self._record = Record(self.name, flat, tags)
        self._store.open(self._record)
        # A store that is away may be so because mlflow cannot even be imported.
        self._machine = machine.Sampler(self._sample) if self._record.run_id else None

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """State the stage's metrics: nested mappings of numbers and short strings, the same on every run."""
        self.metrics = dict(metrics)

    def read(self, path: Path) -> None:
        """State the metrics that an instance of a stage left in the JSON file `path`, which is part of its out."""
        self.metrics, self._kept = json.loads(path.read_text(encoding="utf-8")), path

    def log(self, step: int, **values: float) -> None:
        """Add a point to each live curve in MLflow, such as the loss at optimizer step `step`."""
        now = int(time.time() * 1000)
        self._record.history += [(key, float(value), step, now) for key, value in values.items()]
        self._store.log(self._record)

    def measure(self, **values: float) -> None:
        """Note what differs from run to run (seconds, tokens/s, bytes of memory): for MLflow, not for metrics/."""
        self._record.metrics |= {f"{MEASURED}{key}": float(value) for key, value in values.items()}

    def source(self, name: str, content: Any, where: Mapping[str, Any]) -> None:
        """Log a data set from outside as an input of this run, and of the parent run.

        Its digest is that of `content`, JSON that tells the bytes, such as the SHA-256 of each file; `where` says what
        it is and where it comes from.
        """
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGEST_LIMIT]
        source = json.loads(redact(json.dumps({"kind": "source", **where})))
        self._record.inputs.append({"name": name, "digest": digest, "source": source, "context": "source"})

    def parent(
        self,
        stages: Mapping[str, graph.Made],
        artifacts: Mapping[str, Path],
        *,
        uploads: Collection[str] = (),
        model: Mapping[str, str] | None = None,
    ) -> None:
        """Record the pipeline's state as the one parent run that it has, over the stage runs that made it.

        `stages` is what `graph.made` gives, without the stage that calls this and whose outs must be complete. Stages
        that DVC restored are there too, with what was measured when they ran. `artifacts` are files and folders by
        their path in the run; a file that is not there is left out. `uploads` are outs of DVC to log whole; `model` is
        one to register, with the arguments of `Store.register`.
        """
        try:
            lock = graph.settled(self._record.tags["wronai.stage"])
        except Exception as error:  # of DVC's own code: the state is known without the last stage
            print(f"tracking: dvc.lock could not be told in advance ({first_line(error)})", file=sys.stderr)
            lock = graph.read_lock(Path())
        parent = _parent(Path(), params.flatten(self._config), stages, lock, self._record.tags)
        left = {path: md5 for outs in lock.outs.values() for path, md5 in outs.items()}
        parent.uploads = {path: left[path] for path in uploads if path in left}
        if model and model["path"] in left:
            parent.model = {**model, "md5": left[model["path"]]}
        files_of_run: dict[str, bytes | Path] = {name: path for name, path in artifacts.items() if path.exists()}
        self._store.publish(parent, {**files_of_run, "params.yaml": Path("params.yaml"), "dvc.lock": lock.content})

    def finish(self, status: str) -> None:
        """Write metrics/<stage>.json if the stage ended well, then close its MLflow run."""
        if self._machine:
            self._machine.stop()
        if status == "FINISHED" and self.metrics is not None:
            if self._kept.parent == Path("metrics"):
                files.write_json(self._kept, self.metrics)
            told = params.select(self._config, self._sections)
            self._record.tags["wronai.state"] = _state(self.name, self._kept.read_bytes(), told)
            self._record.metrics |= _numbers(self.metrics)
        self._record.metrics[f"{MEASURED}seconds"] = time.time() - self._record.started / 1000
        self._record.metrics[f"{MEASURED}peak_memory_bytes"] = float(machine.peak_memory())
        self._record.status, self._record.ended = status, int(time.time() * 1000)
        self._store.close(self._record)

    def _sample(self, key: str, value: float, step: int, now: int) -> None:
        self._record.history.append((key, value, step, now))


@contextlib.contextmanager
def stage(name: str, instance: str | None = None) -> Iterator[tuple[params.Params, Report]]:
    """Run the body as the stage `name`, in the root of the project; yields the parameters and where to report.

    `instance` tells the runs of a stage with a matrix apart, as DVC does after the @.

    A user's mistake (ValueError or OSError) ends the process with exit code 1 and its message, without a traceback
    unless WRONAI_TRACEBACK is set. The sources of the stage are checked to be unchanged at the end, since DVC hashes
    them only then, and would record edited code as what made the outs.
    """
    try:
        config = params.load(Path("params.yaml"))
        declared = graph.declared(Path("dvc.yaml"))
        if name not in declared:
            raise ValueError(f"dvc.yaml: no stage {name!r}; it has {', '.join(declared)}")
    except ValueError as error:
        sys.exit(f"{name}: {error}")
    os.environ.update(QUIET)
    for place in PLACE:
        os.environ.pop(place, None)
    os.environ.setdefault("TQDM_DISABLE", "1")  # stages say how far they are in lines of their own
    if config.model.base != "hub" and all(source.kind != "hub" for source in config.data.sources):
        os.environ["HF_HUB_OFFLINE"] = "1"
    hush()
    numerics.choose(config.numerics)
    before = _sources(declared[name].sources)
    report = Report(name, config, declared[name].sections, store_root(), instance)
    try:
        yield config, report
        if changed := [path for path, digest in _sources(declared[name].sources).items() if before.get(path) != digest]:
            raise ValueError(
                f"{', '.join(changed)} changed while the stage ran, so its outs belong to no version; run it again"
            )
    except (ValueError, OSError) as error:
        report.finish("FAILED")
        if os.environ.get("WRONAI_TRACEBACK"):
            print(redact(traceback.format_exc()), file=sys.stderr)
        sys.exit(redact(f"{name}: {files.disk_is_full(error) or error}"))
    except KeyboardInterrupt:
        report.finish("KILLED")
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except Exception as error:
        report.finish("FAILED")
        if full := files.disk_is_full(error):
            sys.exit(redact(f"{name}: {full}"))
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)
    except BaseException:
        report.finish("FAILED")
        raise
    report.finish("FINISHED")


def hush() -> None:
    """Silence what the pinned libraries say of each other: names that one deprecates and another still calls."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
    for name in ("bitsandbytes", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


def store_root() -> Path:
    """The folder that holds the tracking store and the checkpoints: the main checkout, also in a temporary experiment.

    DVC runs `exp run --temp` in a copy below .dvc/tmp, with DVC_ROOT still at the main checkout. A DVC_ROOT that the
    working directory does not lie in is left over from another project, and not believed.
    """
    here = Path.cwd().resolve()
    root = os.environ.get("DVC_ROOT")
    return Path(root).resolve() if root and here.is_relative_to(Path(root).resolve()) else here


def _parent(
    folder: Path,
    flat: dict[str, Any],
    stages: Mapping[str, graph.Made],
    lock: graph.Lock,
    tags: Mapping[str, str],
) -> Record:
    """The parent run of the state in `folder`, from its metrics, its parameters `flat` and its `lock`."""
    parent = Record(tags.get("wronai.experiment") or tags.get("wronai.commit", "")[:9] or "uncommitted", flat, {**tags})
    parent.tags.pop("wronai.stage", None)
    parent.tags |= {"wronai.kind": "parent", "wronai.state": graph.state(lock, flat, stages)}
    if lock.content:
        parent.tags["wronai.lock"] = lock.md5
    parent.tags |= {f"out.{path}": md5 for outs in lock.outs.values() for path, md5 in outs.items()}
    parent.outs = lock.outs
    parent.data = {name: lock.data(name) for name in lock.deps}
    parent.inputs = dvc_inputs({name: read for name, read in parent.data.items() if "@" not in name})
    for name, stage in stages.items():
        kept = folder / stage.metrics
        if kept.exists():
            told = {key: value for key, value in flat.items() if _below(key, stage.sections)}
            parent.made[name] = _state(name, kept.read_bytes(), told)
            if "@" not in name:  # what instances found, a later stage brings together
                found = _numbers(json.loads(kept.read_text(encoding="utf-8")))
                parent.metrics |= {f"{name}.{key}": value for key, value in found.items()}
    parent.status, parent.ended = "FINISHED", int(time.time() * 1000)
    return parent


def _rebuilt(folder: Path, revision: graph.Revision) -> tuple[Record, list[Record]]:
    """The parent run of the state that git has in `folder`, and the runs of its stages."""
    try:
        flat = params.flatten(params.load(folder / "params.yaml"))
    except params.ParamsError:  # of a version with other keys: as it stands
        flat = params.flatten(params.read(folder / "params.yaml"))
    stages = graph.made(folder / "dvc.yaml", flat)
    stages.pop(graph.PUBLISHER, None)
    commit = revision.baseline or revision.commit
    tags = {"wronai.execution": f"git {revision.commit[:9]}", "wronai.commit": commit, "wronai.rebuilt": "true"}
    if revision.name:
        tags["wronai.experiment"] = revision.name
    parent = _parent(folder, flat, stages, graph.read_lock(folder), tags)
    records = []
    for name, state in parent.made.items():
        own = {"wronai.kind": "stage", "wronai.stage": name.split("@")[0], "wronai.state": state}
        told = {key: value for key, value in flat.items() if _below(key, stages[name].sections)}
        found = _numbers(json.loads((folder / stages[name].metrics).read_text(encoding="utf-8")))
        records.append(Record(name, told, {**tags, **own}, metrics=found, status="FINISHED"))
    for record in (parent, *records):
        record.started = record.ended = revision.committed
    return parent, records


def _below(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _provenance(root: Path) -> dict[str, str]:
    """Tags that lead from a run to the code, the experiment and what computed it."""
    tags = {"wronai.execution": _execution()}
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if git.returncode == 0:
        tags["wronai.commit"] = tags["mlflow.source.git.commit"] = git.stdout.strip()
    for variable, tag in (("DVC_EXP_NAME", "wronai.experiment"), ("DVC_EXP_BASELINE_REV", "wronai.baseline")):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    observed = environment.observe()
    return tags | {f"environment.{key}": value for key, value in observed.items() if value != environment.ABSENT}


def _execution() -> str:
    """A name for what all stages of one execution share, unique over hosts and time.

    It is the dvc process that they descend from and the experiment, since one process may run several.
    """
    process = psutil.Process()
    for ancestor in process.parents():
        with contextlib.suppress(psutil.Error):
            if any(Path(word).name == "dvc" for word in ancestor.cmdline()[:3]):
                process = ancestor
                break
    experiment = os.environ.get("DVC_EXP_NAME", "")
    identity = f"{socket.gethostname()} {process.pid} {process.create_time()} {experiment} {Path.cwd()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _state(name: str, metrics: bytes, told: Mapping[str, Any]) -> str:
    """A digest of what the stage `name` was told and what it found: equal for a run and for its restored copy."""
    content = name.encode() + b"\0" + metrics + b"\0" + json.dumps(told, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in nested `metrics` under dotted keys that MLflow accepts."""
    flat = params.flatten(dict(metrics))
    numbers = {key: value for key, value in flat.items() if isinstance(value, int | float)}
    return {accepted(key): float(value) for key, value in numbers.items()}


def _sources(paths: list[str]) -> dict[str, str]:
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths if Path(path).is_file()}


def sync(root: Path, store: Store, *, all_commits: bool, close_other_hosts: bool) -> tuple[list[str], list[str]]:
    """Bring the store up to the records that wait and to what git and DVC know.

    Returns lines that say what was done, and those that say what the store refused, which stops nothing else.

    The states are those of experiments, branches and tags, with `all_commits` of every commit.
    """
    done = store.sync(close_other_hosts=close_other_hosts)
    for revision in graph.revisions(root, all_commits=all_commits):
        what = f"commit {revision.commit[:9]}"
        with store.refusals(what, done), graph.checked_out(root, revision.commit) as folder:
            if folder:
                lacked = store.rebuild(*_rebuilt(folder, revision))
                done.rebuilt, done.present = done.rebuilt + lacked, done.present + (not lacked)
    lines = [
        f"mirrored {done.mirrored} runs that waited in .tracking/",
        f"rebuilt {done.rebuilt} parent runs from git; {done.present} were there",
    ]
    if done.elsewhere:
        lines.append(
            f"left alone, they may run still: {', '.join(done.elsewhere)}; --close-other-hosts closes them as killed"
        )
    return lines, [f"refused {line}" for line in done.refused]


def ui(root: Path, port: int | None) -> None:
    """Become the MLflow UI on the project's store, on loopback; of a store that is a server, say where it is."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)
    if uri.startswith(("http:", "https:")):
        print(f"MLFLOW_TRACKING_URI is a server, which has the UI itself: {shown(uri)}")
        return
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1"]
    command += [] if port is None else ["--port", str(port)]
    # In the environment, since others can read the arguments of a process, and a database has its password in its URI.
    os.execve(command[0], command, {**os.environ, **QUIET, "MLFLOW_BACKEND_STORE_URI": uri})


def main(arguments: list[str]) -> int:
    """`sync`: bring the store up to date; `ui`: open the MLflow UI on it. Exit code 1 with one line if that fails."""
    parser = argparse.ArgumentParser(prog="python -m wronai.tracking", description="The MLflow store of the project.")
    commands = parser.add_subparsers(dest="command", required=True)
    syncing = commands.add_parser("sync", help="mirror what the store missed, rebuild from git what it lost")
    syncing.add_argument("--all-commits", action="store_true", help="every commit, not only tips and experiments")
    syncing.add_argument("--close-other-hosts", action="store_true", help="unfinished runs of other hosts were killed")
    showing = commands.add_parser("ui", help="the MLflow UI on the project's store")
    showing.add_argument("--port", type=int, help="MLFLOW_PORT, or 5000")
    chosen = parser.parse_args(arguments)
    os.environ.update(QUIET)
    try:
        root = store_root()
        if chosen.command == "ui":
            ui(root, chosen.port)
            return 0
        store = Store(root, params.load(Path("params.yaml")).tracking.experiment)
        lines, refused = sync(root, store, all_commits=chosen.all_commits, close_other_hosts=chosen.close_other_hosts)
        print(*lines, sep="\n")
        for line in refused:
            print(f"tracking: {line}", file=sys.stderr)
        return 1 if refused else 0
    except Exception as error:  # whatever a store raises
        print(f"tracking: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
