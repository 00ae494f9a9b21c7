"""Run a stage: check its parameters, record its metrics in metrics/ and mirror them to MLflow.

metrics/*.json is the record; MLflow is a copy of it. So a tracking server that is away costs one warning: what it
missed waits in .tracking/ until `publish_report`, or `python -m wronai.tracking sync`, mirrors it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from filelock import FileLock

from wronai import numerics, params

# No library reports usage, and none opens a connection that params.yaml did not ask for.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DAFT_ANALYTICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# One call to a server that is away blocks for minutes under MLflow's own defaults.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# How a cluster tells a pod its place among several: torch would wait for the others. Every stage starts as one process,
# and those that it starts itself are told theirs.
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SAMPLING_INTERVAL = 10.0  # seconds between two samples of the machine; MLflow's own default
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "lm_eval", "daft")
VALUE_LIMIT = 6000  # characters of a parameter that MLflow stores


@dataclass
class Record:
    """What MLflow should hold of one run; kept on disk until it does."""

    name: str
    params: dict[str, Any]
    tags: dict[str, str]
    pid: int = field(default_factory=os.getpid)
    pid_started: float = field(default_factory=lambda: psutil.Process().create_time())
    started: int = field(default_factory=lambda: int(time.time() * 1000))
    ended: int | None = None
    status: str = "RUNNING"
    run_id: str | None = None
    described: bool = False  # whether the store has the parameters
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, step, ms since 1970
    logged: int = 0  # how many points of the history the store has
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def is_alive(self) -> bool:
        """Whether the process that writes this record still runs."""
        try:
            return psutil.Process(self.pid).create_time() == self.pid_started
        except psutil.NoSuchProcess:
            return False


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
        self._root = root
        flat = params.select(config, sections)
        self._store = _Store(root, config.tracking.experiment)
        tags = {"wronai.kind": "stage", "wronai.stage": name, **_provenance(root)}
        self._record = Record(self.name, flat, tags)
        self._store.open(self._record)
        self._machine = _Machine(self._record)

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
        self._record.metrics |= {f"measured.{key}": float(value) for key, value in values.items()}

    def parent(self, stages: Mapping[str, Made]) -> None:
        """Record the pipeline's state as one parent run over the stage runs that this execution made.

        `stages` is what `made` gives, without the stage that calls this. Stages that DVC restored are there too, with
        what was measured when they ran.
        """
        self._store.publish(self._config, stages, self._record)

    def finish(self, status: str) -> None:
        """Write metrics/<stage>.json if the stage ended well, then close its MLflow run."""
        self._machine.stop()
        if status == "FINISHED" and self.metrics is not None:
            if self._kept.parent == Path("metrics"):
                write_json(self._kept, self.metrics)
            self._record.tags["wronai.state"] = _state(self.name, self._kept, self._config, self._sections)
            self._record.metrics |= _numbers(self.metrics)
        self._record.metrics["measured.seconds"] = time.time() - self._record.started / 1000
        self._record.metrics["measured.peak_memory_bytes"] = float(_peak_memory())
        self._record.status, self._record.ended = status, int(time.time() * 1000)
        self._store.close(self._record)


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
        graph = declared(Path("dvc.yaml"))
        if name not in graph:
            raise ValueError(f"dvc.yaml: no stage {name!r}; it has {', '.join(graph)}")
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
    before = _sources(graph[name].sources)
    report = Report(name, config, graph[name].sections, store_root(), instance)
    try:
        yield config, report
        if changed := [path for path, digest in _sources(graph[name].sources).items() if before.get(path) != digest]:
            raise ValueError(
                f"{', '.join(changed)} changed while the stage ran, so its outs belong to no version; run it again"
            )
    except (ValueError, OSError) as error:
        report.finish("FAILED")
        if os.environ.get("WRONAI_TRACEBACK"):
            traceback.print_exc()
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        report.finish("KILLED")
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
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


def made(path: Path, config: params.Params) -> dict[str, Made]:
    """Every stage of the dvc.yaml at `path`, those with a matrix once for each instance, named as DVC names them.

    A stage's metrics stand in metrics/, an instance's in the summary.json of its first out.
    """
    flat = params.flatten(config)
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
                out = out.replace(f"${{item.{axis}}}", value)
            found[f"{name}@{'-'.join(chosen)}"] = Made(Path(out) / "summary.json", sections)
    return found


def store_root() -> Path:
    """The folder that holds the tracking store and the checkpoints: the main checkout, also in a temporary experiment.

    DVC runs `exp run --temp` in a copy below .dvc/tmp, with DVC_ROOT still at the main checkout. A DVC_ROOT that the
    working directory does not lie in is left over from another project, and not believed.
    """
    here = Path.cwd().resolve()
    root = os.environ.get("DVC_ROOT")
    return Path(root).resolve() if root and here.is_relative_to(Path(root).resolve()) else here


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all, with sorted keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


class _Machine:
    """Samples of the machine under MLflow's own names (system/cpu_utilization_percentage and others), until `stop`.

    They go into the history of `record`, and with it to the store. MLflow's SystemMetricsMonitor would send each sample
    from its own thread, where a server that is away makes it wait and then end. MLflow's switch is heeded:
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false; so is MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL, in seconds.
    """

    def __init__(self, record: Record) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(record,), name="system metrics", daemon=True)
        wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0")
        if wanted and record.run_id:  # else the store is away, and mlflow may not even be imported
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _sample(self, record: Record) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            with contextlib.suppress(Exception):  # of the GPU: there is none; of the others: this machine does not say
                monitors.append(kind())
        psutil.cpu_percent()  # the first call has nothing to compare with
        interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or SAMPLING_INTERVAL)
        step = 0
        while not self._over.wait(interval):
            now = int(time.time() * 1000)
            for monitor in monitors:
                with contextlib.suppress(Exception):
                    monitor.collect_metrics()
                    values = monitor.aggregate_metrics()
                    record.history.extend((f"system/{key}", float(value), step, now) for key, value in values.items())
                monitor.clear_metrics()
            step += 1


class _Store:
    """The MLflow store, or the lack of it: every call works, and what the store missed waits on disk."""

    def __init__(self, root: Path, experiment: str) -> None:
        self._pending = root / ".tracking"
        self._root = root
        self._experiment = experiment
        self._client: Any = None
        self._experiment_id = ""
        self._away = False

    def open(self, record: Record) -> None:
        self._keep(record)
        self._try(lambda: self._create(record))
        self._keep(record)

    def log(self, record: Record) -> None:
        if record.run_id:
            self._try(lambda: self._catch_up(record))

    def close(self, record: Record) -> None:
        self._keep(record)
        self._try(lambda: self._mirror(record))

    def publish(self, config: params.Params, stages: Mapping[str, Made], record: Record) -> None:
        execution = record.tags["wronai.execution"]
        parent = Record(
            name=os.environ.get("DVC_EXP_NAME") or record.tags.get("wronai.commit", "uncommitted")[:9],
            params=params.flatten(config),
            tags={**record.tags, "wronai.kind": "parent"},
        )
        del parent.tags["wronai.stage"]
        states = {}
        for name, stage in stages.items():
            if stage.metrics.exists():
                states[name] = _state(name, stage.metrics, config, stage.sections)
                if "@" not in name:  # what instances found, a later stage brings together
                    read = json.loads(stage.metrics.read_text(encoding="utf-8"))
                    parent.metrics |= {f"{name}.{key}": value for key, value in _numbers(read).items()}
        parent.tags["wronai.state"] = hashlib.sha256("".join(states.values()).encode()).hexdigest()
        parent.tags["wronai.states"] = json.dumps(states)
        parent.tags["wronai.execution"] = execution
        parent.status, parent.ended = "FINISHED", int(time.time() * 1000)
        self._keep(parent)
        self._try(lambda: self.sync(with_alive=parent))

    def sync(self, with_alive: Record | None = None) -> int:
        """Mirror every record on disk whose process has ended, and `with_alive`; returns how many were mirrored."""
        records = [Record(**json.loads(path.read_text())) for path in sorted(self._pending.glob("*.json"))]
        waiting = [record for record in records if not record.is_alive()]
        for record in waiting:
            if record.ended is None:
                record.status = "KILLED"
        if with_alive:
            waiting.append(with_alive)
        for record in sorted(waiting, key=lambda record: record.tags["wronai.kind"] == "parent"):
            self._mirror(record)
        return len(waiting)

    def _mirror(self, record: Record) -> None:
        """Bring the store up to `record`, then forget it."""
        self._create(record)
        self._catch_up(record)
        now = record.ended or int(time.time() * 1000)
        if record.tags["wronai.kind"] == "parent":
            self._adopt(record)
        self._points(record.run_id, [(key, value, 0, now) for key, value in record.metrics.items()])
        client = self._connect()
        for key, value in record.tags.items():
            client.set_tag(record.run_id, key, value)
        if record.status != "RUNNING":
            client.set_terminated(record.run_id, record.status, now)
            (self._pending / f"{record.id}.json").unlink(missing_ok=True)

    def _adopt(self, parent: Record) -> None:
        """Nest under `parent` the stage runs of its execution, and copy what was measured as each stage ran."""
        client = self._connect()
        tag = parent.tags["wronai.execution"]
        for run in self._search(f"tags.`wronai.execution` = '{tag}' and tags.`wronai.kind` = 'stage'"):
            client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.run_id)
        for name, state in json.loads(parent.tags["wronai.states"]).items():
            made_it = self._search(f"tags.`wronai.state` = '{state}' and tags.`wronai.kind` = 'stage'")
            if made_it:
                measured = {key: value for key, value in made_it[0].data.metrics.items() if key.startswith("measured.")}
                parent.metrics |= {_accepted(f"{name}.{key}"): value for key, value in measured.items()}

    def _search(self, query: str) -> list[Any]:
        """The runs that match `query`, latest first."""
        found = self._connect().search_runs([self._experiment_id], query, order_by=["attributes.start_time DESC"])
        return list(found)

    def _create(self, record: Record) -> None:
        from mlflow.entities import Param

        client = self._connect()
        if record.run_id is None:
            run = client.create_run(self._experiment_id, record.started, record.tags, record.name)
            record.run_id = run.info.run_id
        if not record.described:
            pairs = [Param(key, str(value)[:VALUE_LIMIT]) for key, value in record.params.items()]
            for start in range(0, len(pairs), 100):  # the most that one request takes
                client.log_batch(record.run_id, params=pairs[start : start + 100])
            record.described = True

    def _catch_up(self, record: Record) -> None:
        """Give the store the points of the history that it lacks: a server may go away in the middle of a run."""
        known = len(record.history)  # `_Machine` may add to it meanwhile
        self._points(record.run_id, record.history[record.logged : known])
        record.logged = known

    def _points(self, run_id: str | None, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        batch = [Metric(key, value, timestamp, step) for key, value, step, timestamp in points]
        for start in range(0, len(batch), 1000):
            self._connect().log_batch(run_id, metrics=batch[start : start + 1000])

    def _connect(self) -> Any:
        if self._client is None:
            uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(self._root)
            _probe(uri)
            for name, value in PATIENCE.items():
                os.environ.setdefault(name, value)
            from mlflow.tracking import MlflowClient

            logging.getLogger("alembic").setLevel(logging.WARNING)
            logging.getLogger("mlflow").setLevel(logging.WARNING)
            self._pending.mkdir(exist_ok=True)
            with FileLock(self._pending / "store.lock"):  # processes that create one SQLite store at once break it
                client = MlflowClient(uri)
                experiment = client.get_experiment_by_name(self._experiment)
                local = uri.startswith("sqlite:")
                self._experiment_id = (
                    experiment.experiment_id
                    if experiment
                    else client.create_experiment(
                        self._experiment, artifact_location=(self._root / "mlruns").as_uri() if local else None
                    )
                )
            self._client = client
        return self._client

    def _keep(self, record: Record) -> None:
        write_json(self._pending / f"{record.id}.json", asdict(record))

    def _try(self, call: Callable[[], object]) -> None:
        """Call the store; on a failure warn once, and let what it missed wait on disk."""
        if self._away:
            return
        try:
            call()
        except Exception as error:  # whatever a store raises, tracking never stops a stage
            self._away = True
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(
                f"tracking: the MLflow store did not answer ({first}); the run waits in .tracking/ and is mirrored by "
                "the next publish_report or `python -m wronai.tracking sync`",
                file=sys.stderr,
            )


def default_uri(root: Path) -> str:
    """The SQLite store at the root of the project."""
    return f"sqlite:///{root / 'mlflow.db'}"


def _probe(uri: str) -> None:
    """Raise ConnectionError at once if nobody listens at an HTTP `uri`."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), timeout=3).close()
        except OSError as error:
            raise ConnectionError(f"{parts.hostname}:{port}: {error}") from None


def _provenance(root: Path) -> dict[str, str]:
    """Tags that lead from a run to the code, the experiment and the libraries that made it."""
    tags = {"wronai.execution": _execution()}
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if git.returncode == 0:
        tags["wronai.commit"] = git.stdout.strip()
    for variable, tag in (("DVC_EXP_NAME", "wronai.experiment"), ("DVC_EXP_BASELINE_REV", "wronai.baseline")):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            tags[f"version.{library}"] = metadata.version(library)
    return tags


def _execution() -> str:
    """A name for the dvc process that all stages of one execution descend from, unique over hosts and time."""
    process = psutil.Process()
    for ancestor in process.parents():
        with contextlib.suppress(psutil.Error):
            if any(Path(word).name == "dvc" for word in ancestor.cmdline()[:3]):
                process = ancestor
                break
    identity = f"{socket.gethostname()} {process.pid} {process.create_time()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _state(name: str, path: Path, config: params.Params, sections: list[str]) -> str:
    """A digest of what the stage `name` was told and what it found: equal for a run and for its restored copy."""
    told = json.dumps(params.select(config, sections), sort_keys=True).encode()
    return hashlib.sha256(name.encode() + b"\0" + path.read_bytes() + b"\0" + told).hexdigest()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in nested `metrics` under dotted keys that MLflow accepts."""
    flat = params.flatten(dict(metrics))
    numbers = {key: value for key, value in flat.items() if isinstance(value, int | float)}
    return {_accepted(key): float(value) for key, value in numbers.items()}


def _accepted(key: str) -> str:
    """`key` as MLflow accepts it for a metric: no @ of an instance, no bracket."""
    return re.sub(r"[^\w\-./ :]", "_", key)


def _sources(paths: list[str]) -> dict[str, str]:
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths if Path(path).is_file()}


def _peak_memory() -> int:
    """The most memory that this process held at once, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str]) -> int:
    """`sync`: mirror what waits in .tracking/; `ui`: open the MLflow UI on the project's store."""
    root = store_root()
    if arguments == ["sync"]:
        store = _Store(root, params.load(Path("params.yaml")).tracking.experiment)
        print(f"mirrored {store.sync()} runs to MLflow")
        return 0
    if arguments == ["ui"]:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)
        command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
        os.execve(command[0], command, {**os.environ, **QUIET})
    print("usage: python -m wronai.tracking sync|ui", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
