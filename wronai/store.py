"""Mirror what stages found to an MLflow store, completely and once, also if the store is away for a while.

One parent run stands for each state of the pipeline (`graph.state`), whatever mode of DVC made it and how often: a
second execution of the same state adds its stage runs to the parent that is there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pkgutil
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from filelock import FileLock

from wronai import files, graph
from wronai.redaction import redact

# One call to a server that is away blocks for minutes under MLflow's own defaults.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}  # where servers listen by default
VALUE_LIMIT = 6000  # characters of a parameter that MLflow stores
TAG_LIMIT = 5000  # and of a tag
DIGEST_LIMIT = 36  # and of a data set's digest
ABANDONED = 60  # seconds after which nobody writes a file of some kB any more
MEASURED = "measured."  # metrics that differ from run to run; they belong to the run that made the outs


@dataclass
class Record:
    """What MLflow should hold of one run; kept on disk until it does."""

    name: str
    params: dict[str, Any]
    tags: dict[str, str]
    pid: int = field(default_factory=os.getpid)
    pid_started: float = field(default_factory=lambda: psutil.Process().create_time())
    host: str = field(default_factory=socket.gethostname)
    started: int = field(default_factory=lambda: int(time.time() * 1000))
    ended: int | None = None
    status: str = "RUNNING"
    run_id: str | None = None
    described: bool = False  # whether the store has the parameters
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, step, ms since 1970
    logged: int = 0  # how many points of the history the store has
    inputs: list[dict[str, Any]] = field(default_factory=list)  # data sets: name, digest, source, context
    made: dict[str, str] = field(default_factory=dict)  # of a parent: stage → the state that its run left
    outs: dict[str, dict[str, str]] = field(default_factory=dict)  # of a parent: stage → path → md5
    data: dict[str, dict[str, str]] = field(default_factory=dict)  # of a parent: what each stage read that is no code
    uploads: dict[str, str] = field(default_factory=dict)  # of a parent: out → md5, to log as artifacts
    model: dict[str, Any] | None = None  # of a parent: the model to register (see `Store.register`)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def is_parent(self) -> bool:
        return self.tags["wronai.kind"] == "parent"

    def may_write(self) -> bool:
        """Whether a process may still write this record: one that runs here, or an unfinished one of another host."""
        if self.host != socket.gethostname():
            return self.ended is None
        try:
            return psutil.Process(self.pid).create_time() == self.pid_started
        except psutil.NoSuchProcess:
            return False


@dataclass
class Synced:
    """What `Store.sync` did."""

    mirrored: int = 0
    elsewhere: list[str] = field(default_factory=list)  # "name on host" of unfinished runs of other hosts
    damaged: list[Path] = field(default_factory=list)  # records that could not be read, set aside
    refused: list[str] = field(default_factory=list)  # "run: why" of what the store did not take, though it answers
    rebuilt: int = 0
    present: int = 0


class Store:
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

    def log(self, record: Record) -> None:
        if record.run_id:
            self._try(lambda: self._catch_up(record))

    def close(self, record: Record) -> None:
        self._keep(record)
        self._try(lambda: self._mirror(record))

    def publish(self, parent: Record, artifacts: Mapping[str, bytes | Path]) -> None:
        """Mirror the parent run and all that waits; `artifacts` are files or folders by their path in the run."""
        self._keep(parent)
        for name, source in artifacts.items():
            target = self._artifacts(parent) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            elif source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)

        def mirror_all() -> None:
            for refused in self._sync(parent).refused:
                self._warn(refused)

        self._try(mirror_all)

    def sync(self, *, close_other_hosts: bool = False) -> Synced:
        """Mirror every record on disk that no process writes any more; raises what a store raises that is away."""
        return self._sync(None, close_other_hosts=close_other_hosts)

    @contextlib.contextmanager
    def refusals(self, what: str, done: Synced) -> Iterator[None]:
        """Note in `done` why the body failed for `what`, so that others go on; a store that is away raises instead."""
        try:
            yield
        except Exception as error:
            self._connect().get_experiment(self._experiment_id)
            done.refused.append(f"{what}: {first_line(error)}")

    def rebuild(self, parent: Record, stages: list[Record]) -> bool:
        """Whether the store lacked the state of `parent`, and has it now, with the runs of its `stages`.

        What differs from run to run is lost with the store; parameters and metrics are those that git kept. A run that
        is there is told the commit and the experiment.
        """
        lacked = not self._runs(("wronai.kind", "parent"), ("wronai.state", parent.tags["wronai.state"]))
        if lacked:
            for record in stages:
                if not self._runs(("wronai.kind", "stage"), ("wronai.state", record.tags["wronai.state"])):
                    self._mirror(record)
        self._mirror(parent)
        return lacked

    def _sync(self, own: Record | None, *, close_other_hosts: bool = False) -> Synced:
        done = Synced()
        waiting = [] if own is None else [own]
        for record in self._records(done):
            if own and record.id == own.id:
                continue
            if record.may_write() and not (close_other_hosts and record.host != socket.gethostname()):
                if record.host != socket.gethostname():
                    done.elsewhere.append(f"{record.name} on {record.host}")
                continue
            if record.ended is None:
                record.status = "KILLED"
            waiting.append(record)
        for record in sorted(waiting, key=lambda record: record.is_parent):
            with self.refusals(record.name, done):
                self._mirror(record)
                done.mirrored += 1
        return done

    def _records(self, done: Synced) -> list[Record]:
        for path in self._pending.glob("*.partial"):
            with contextlib.suppress(FileNotFoundError):  # its process renamed it meanwhile
                if time.time() - path.stat().st_mtime > ABANDONED:  # by a kill as it was written
                    path.unlink()
        found = []
        for path in sorted(self._pending.glob("*.json")):
            try:
                found.append(Record(**json.loads(path.read_text())))
            except FileNotFoundError:  # its process mirrored it meanwhile
                continue
            except (ValueError, TypeError) as error:
                aside = path.with_suffix(".damaged")
                path.replace(aside)
                done.damaged.append(aside)
                print(f"tracking: {aside}: not the record of a run ({error}); set aside", file=sys.stderr)
        return found

    def _mirror(self, record: Record) -> None:
        """Bring the store up to `record`, then forget it."""
        self._create(record)
        self._catch_up(record)
        now = record.ended or int(time.time() * 1000)
        if record.is_parent:
            self._adopt(record)
        run = self._connect().get_run(record.run_id)
        news = [(key, value, 0, now) for key, value in record.metrics.items() if run.data.metrics.get(key) != value]
        self._points(record.run_id, news)
        self._tag(record.run_id, _told_more(run.data.tags, record.tags) if record.is_parent else record.tags)
        self._log_inputs(record.run_id, record.inputs, _inputs(run))
        try:
            if record.is_parent:
                self._deliver(record)
        finally:  # a run whose artifacts wait is not one that runs
            if record.status != "RUNNING":
                self._connect().set_terminated(record.run_id, record.status, now)
        if record.status != "RUNNING":
            (self._pending / f"{record.id}.json").unlink(missing_ok=True)
            shutil.rmtree(self._artifacts(record), ignore_errors=True)

    def _create(self, record: Record) -> None:
        from mlflow.entities import Param

        if record.is_parent and record.run_id is None:
            self._find_or_create(record)
        if record.run_id is None:
            record.run_id = self._create_run(record)
            self._keep(record)  # else the next try creates another
        if not record.described:
            pairs = [Param(key, str(value)[:VALUE_LIMIT]) for key, value in record.params.items()]
            for start in range(0, len(pairs), 100):  # the most that one request takes
                self._connect().log_batch(record.run_id, params=pairs[start : start + 100])
            record.described = True
            self._keep(record)

    def _create_run(self, record: Record) -> str:
        client = self._connect()
        run = client.create_run(self._experiment_id, record.started, _fitting(record.tags), redact(record.name))
        return str(run.info.run_id)

    def _find_or_create(self, parent: Record) -> None:
        """Give `parent` the run of its state: the oldest there is, or a new one that starts as its stages did.

        Of processes on one machine a lock lets one look and create at a time; of two machines at once, the later run is
        deleted again by whoever created it.
        """
        state = (("wronai.kind", "parent"), ("wronai.state", parent.tags["wronai.state"]))
        self._connect()
        with FileLock(self._pending / "parents.lock"):
            found = self._runs(*state)
            if not found:
                executed = self._runs(("wronai.kind", "stage"), ("wronai.execution", parent.tags["wronai.execution"]))
                parent.started = min([parent.started, *(run.info.start_time for run in executed)])
                created = self._create_run(parent)
                found = self._runs(*state)
                if found[-1].info.run_id == created:
                    parent.run_id = created
                    return
                self._connect().delete_run(created)
        oldest = found[-1]
        parent.run_id, parent.described = oldest.info.run_id, True
        if "wronai.experiment" in parent.tags and "wronai.experiment" not in oldest.data.tags:
            self._connect().update_run(parent.run_id, name=parent.name)

    def _adopt(self, parent: Record) -> None:
        """Nest the runs that made this state under `parent`, and copy what was measured as each stage ran.

        Those are the runs of its execution, and of executions that a kill ended before they came to a parent. A stage
        that DVC restored is nested where it ran; a tag says which run that is.
        """
        own = self._runs(("wronai.kind", "stage"), ("wronai.execution", parent.tags["wronai.execution"]))
        nested = {run.info.run_id for run in own}
        for run in own:
            self._nest(run, parent)
        for name, state in parent.made.items():
            made_it = self._runs(("wronai.kind", "stage"), ("wronai.state", state))
            if not made_it:
                continue
            for run in made_it:
                if "mlflow.parentRunId" not in run.data.tags and run.info.run_id not in nested:
                    self._nest(run, parent)
            latest = made_it[0]
            parent.tags[f"made.{accepted(name)}"] = latest.info.run_id
            measured = {key: value for key, value in latest.data.metrics.items() if key.startswith(MEASURED)}
            parent.metrics |= {accepted(f"{name}.{key}"): value for key, value in measured.items()}
            parent.inputs += [
                entry for entry in _inputs(latest) if entry["context"] == "source" and entry not in parent.inputs
            ]

    def _nest(self, run: Any, parent: Record) -> None:
        """Put a stage run under `parent`, with the md5 of each of its outs and of the data that it read."""
        tags = {"mlflow.parentRunId": str(parent.run_id)}
        name = run.data.tags.get("mlflow.runName", "")
        if run.info.status != "FAILED":
            tags |= {f"out.{path}": md5 for path, md5 in parent.outs.get(name, {}).items()}
        self._tag(run.info.run_id, tags)
        self._log_inputs(run.info.run_id, dvc_inputs({name: parent.data.get(name, {})}), _inputs(run))

    def _deliver(self, parent: Record) -> None:
        """Log the artifacts of `parent`; from the DVC cache where the working directory has moved on."""
        client = self._connect()
        if self._artifacts(parent).is_dir():
            client.log_artifacts(parent.run_id, str(self._artifacts(parent)))
        for path, md5 in parent.uploads.items():
            if not any(True for _ in client.list_artifacts(parent.run_id, Path(path).name)):
                with graph.from_cache(path, md5, self._root) as folder:
                    client.log_artifacts(parent.run_id, str(folder), folder.name)
        if parent.model:
            self.register(parent, **parent.model)

    def register(
        self, parent: Record, *, path: str, md5: str, name: str, question: str, answer: str, card: str
    ) -> None:
        """Register the out `path` as a version of the model `name`, unless the run's version is there already.

        `question` and `answer` are the input example and, with the parameters of generation, the signature; `card` is
        the model card in Markdown.
        """
        import mlflow
        from huggingface_hub import ModelCard
        from mlflow.models import infer_signature

        client = self._connect()
        if any(version.run_id == parent.run_id for version in client.search_model_versions(f"name = '{name}'")):
            return
        mlflow.set_tracking_uri(self._uri())
        with graph.from_cache(path, md5, self._root) as folder, _named_classes(), mlflow.start_run(parent.run_id):
            info = mlflow.transformers.log_model(
                str(folder),
                name=Path(path).name,
                task="text-generation",
                signature=infer_signature([question], [answer], {"max_new_tokens": 256}),
                input_example=[question],
                model_card=ModelCard(card),
                pip_requirements=["transformers", "torch", "accelerate"],
                metadata={"md5": md5, "state": parent.tags["wronai.state"]},
                registered_model_name=name,
            )
        client.set_model_version_tag(name, info.registered_model_version, f"out.{path}", md5)

    def _runs(self, *tags: tuple[str, str]) -> list[Any]:
        """The runs with these tags, latest first."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags)
        found: list[Any] = []
        token = None
        while True:
            page = self._connect().search_runs(
                [self._experiment_id],
                query,
                order_by=["attributes.start_time DESC", "attributes.run_id DESC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def _tag(self, run_id: str | None, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        pairs = [RunTag(key, value) for key, value in _fitting(tags).items()]
        for start in range(0, len(pairs), 100):
            self._connect().log_batch(run_id, tags=pairs[start : start + 100])

    def _log_inputs(self, run_id: str | None, inputs: list[dict[str, Any]], present: list[dict[str, Any]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        news = [entry for entry in inputs if entry not in present]
        if news:
            self._connect().log_inputs(
                run_id,
                [
                    DatasetInput(
                        Dataset(entry["name"], entry["digest"], entry["source"]["kind"], json.dumps(entry["source"])),
                        [InputTag("mlflow.data.context", entry["context"])],
                    )
                    for entry in news
                ],
            )

    def _catch_up(self, record: Record) -> None:
        """Give the store the points of the history that it lacks: a server may go away in the middle of a run."""
        known = len(record.history)  # a sampler may add to it meanwhile
        self._points(record.run_id, record.history[record.logged : known])
        record.logged = known

    def _points(self, run_id: str | None, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        batch = [Metric(key, value, timestamp, step) for key, value, step, timestamp in points]
        for start in range(0, len(batch), 1000):
            self._connect().log_batch(run_id, metrics=batch[start : start + 1000])

    def _uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(self._root)

    def _connect(self) -> Any:
        if self._client is None:
            uri = self._uri()
            _probe(uri)
            for name, value in PATIENCE.items():
                os.environ.setdefault(name, value)
            from mlflow.tracking import MlflowClient

            logging.getLogger("alembic").setLevel(logging.WARNING)
            logging.getLogger("mlflow").setLevel(logging.WARNING)
            self._pending.mkdir(exist_ok=True)
            with FileLock(self._pending / "store.lock"):  # processes that create one SQLite store at once break it
                client = MlflowClient(uri)
                self._experiment_id = self._find_experiment(client, served=uri.startswith(("http:", "https:")))
            self._client = client
        return self._client

    def _find_experiment(self, client: Any, *, served: bool) -> str:
        """The id of the experiment, which is created if there is none; its artifacts stay with the project.

        A server says itself where artifacts go.
        """
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            where = None if served else (self._root / "mlruns").as_uri()
            try:
                return str(client.create_experiment(self._experiment, artifact_location=where))
            except MlflowException:  # another machine was faster
                found = client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise ValueError(
                f"the experiment {self._experiment!r} is deleted; restore it, or set another `tracking.experiment`"
            )
        return str(found.experiment_id)

    def _artifacts(self, record: Record) -> Path:
        return self._pending / f"{record.id}.artifacts"

    def _keep(self, record: Record) -> None:
        """Write `record` to disk; where that fails, as on a full disk, tracking warns once and stops no stage."""
        try:
            files.write_json(self._pending / f"{record.id}.json", asdict(record))
        except OSError as error:
            if not self._away:
                self._away = True
                print(
                    f"tracking: {self._pending} cannot keep the record of this run ({error.strerror})", file=sys.stderr
                )

    def _try(self, call: Callable[[], object]) -> None:
        """Call the store; on a failure warn once, and let what it missed wait on disk."""
        if self._away:
            return
        try:
            call()
        except Exception as error:  # whatever a store raises, tracking never stops a stage
            self._away = True
            self._warn(first_line(error))

    def _warn(self, why: str) -> None:
        print(
            f"tracking: the MLflow store {shown(self._uri())} did not take this run ({why}); it waits in .tracking/ "
            "and is mirrored by the next publish_report or `make mlflow-sync`",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _named_classes() -> Iterator[None]:
    """Let MLflow 3.17 save a folder of weights unloaded: it expects a class where transformers 5 has its name."""
    import transformers

    task = transformers.pipelines.SUPPORTED_TASKS["text-generation"]
    name = task["impl"]
    task["impl"] = pkgutil.resolve_name(name) if isinstance(name, str) else name
    try:
        yield
    finally:
        task["impl"] = name


def default_uri(root: Path) -> str:
    """The SQLite store at the root of the project."""
    return f"sqlite:///{root / 'mlflow.db'}"


def shown(uri: str) -> str:
    """`uri` as it may be printed: of a file its name, else without user and password."""
    return Path(uri.removeprefix("sqlite:///")).name if uri.startswith("sqlite:///") else redact(uri)


def first_line(error: Exception) -> str:
    """The first line of an error's message, without secrets."""
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])


def dvc_inputs(data: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """The data sets that stages read, for `Record.inputs`, from stage → path → md5."""
    return [
        {
            "name": path,
            "digest": md5[:DIGEST_LIMIT],
            "source": {"kind": "dvc", "path": path, "md5": md5},
            "context": stage,
        }
        for stage, read in data.items()
        for path, md5 in read.items()
    ]


def _inputs(run: Any) -> list[dict[str, Any]]:
    """The data sets that the store has of `run`, as in `Record.inputs`."""
    return [
        {
            "name": entry.dataset.name,
            "digest": entry.dataset.digest,
            "source": json.loads(entry.dataset.source),
            "context": next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), ""),
        }
        for entry in (run.inputs.dataset_inputs if run.inputs else [])
    ]


def _told_more(present: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a parent run that is told of another execution: the first experiment stays, all are listed."""
    more = dict(tags)
    for many, one in (("wronai.experiments", "wronai.experiment"), ("wronai.locks", "wronai.lock")):
        known = present.get(many, present.get(one, "")).split()
        if one in tags:
            more[many] = " ".join(known if tags[one] in known else [*known, tags[one]])
    if "wronai.experiment" in present:
        more["wronai.experiment"] = present["wronai.experiment"]
    return more


def _fitting(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: redact(value)[:TAG_LIMIT] for key, value in tags.items()}


def accepted(key: str) -> str:
    """`key` as MLflow accepts it for a metric: no @ of an instance, no bracket."""
    return re.sub(r"[^\w\-./ :]", "_", key)


def _probe(uri: str) -> None:
    """Raise ConnectionError at once if nobody listens at the `uri` of a server."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme in PORTS and parts.hostname:
        port = parts.port or PORTS[scheme]
        try:
            socket.create_connection((parts.hostname, port), timeout=3).close()
        except OSError as error:
            raise ConnectionError(f"{parts.hostname}:{port}: {error}") from None
