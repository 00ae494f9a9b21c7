"""Outs travel by a remote, a folder or S3: a fresh clone pulls them and runs nothing, or pulls only what it needs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer
from ruamel.yaml import YAML

BUCKET = "wronai"
KEY, SECRET = "AKIAWRONAITEST", "secret-of-the-test"  # the server takes any, unless it is told to look
STAGE = """
import json, pathlib, sys
text = pathlib.Path("params.yaml").read_text() + "".join(
    path.read_text() for folder in sys.argv[3:] for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()
)
out = pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
(out / "a.txt").write_text(sys.argv[1] + text)
(out / "b.txt").write_text(sys.argv[1])
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path(f"metrics/{sys.argv[1]}.json").write_text(json.dumps({"bytes": len(text)}))
"""
# In small what the project's graph is made of: a chain, a matrix whose outs lie in one folder that a stage depends on,
# metrics in git, and a last out that is never restored from the run cache.
GRAPH = {
    "stages": {
        "corpus": {
            "cmd": "python stage.py corpus data/raw",
            "deps": ["stage.py"],
            "params": ["seed"],
            "outs": ["data/raw"],
        },
        "model": {
            "cmd": "python stage.py model models/base data/raw",
            "deps": ["stage.py", "data/raw"],
            "params": ["rank"],
            "outs": ["models/base"],
            "metrics": [{"metrics/model.json": {"cache": False}}],
        },
        "score": {
            "matrix": {"task": ["x", "y"]},
            "cmd": "python stage.py score-${item.task} data/scores/${item.task} models/base",
            "deps": ["stage.py", "models/base"],
            "outs": ["data/scores/${item.task}"],
        },
        "compare": {
            "cmd": "python stage.py compare data/compared data/scores",
            "deps": ["stage.py", "data/scores"],
            "params": ["resamples"],
            "outs": ["data/compared"],
        },
        "report": {
            "cmd": "python stage.py report report models/base",
            "deps": ["stage.py", "models/base"],
            "params": ["title"],
            "outs": [{"report": {"persist": True}}],
        },
    }
}
OUTS = ("data/raw", "models/base", "data/scores/x", "data/scores/y", "data/compared", "report")


@dataclass(frozen=True)
class Remote:
    """Where a project pushes to: `options` of `dvc remote modify --local`."""

    url: str
    options: dict[str, str]

    def add(self, project: Path) -> None:
        """Make it the remote of the project, for this checkout alone."""
        dvc(project, "remote", "add", "--local", "--default", "there", self.url)
        for name, value in self.options.items():
            dvc(project, "remote", "modify", "--local", "there", name, value)


def environment() -> dict[str, str]:
    """This one without credentials, and without a service of a cloud that would be asked for some."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "AWS_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env | {"PATH": path, "DVC_NO_ANALYTICS": "1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}


def call(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = environment() | {"HOME": str(project.parent), "AWS_CONFIG_FILE": "", "AWS_SHARED_CREDENTIALS_FILE": ""}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=120)


def dvc(project: Path, *arguments: str) -> str:
    done = call(project, "dvc", *arguments)
    assert done.returncode == 0, f"dvc {arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def git(project: Path, *arguments: str) -> None:
    done = call(project, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)
    assert done.returncode == 0, done.stderr


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage ")]


def cached(project: Path) -> set[str]:
    """The outs of the project whose content its cache holds."""
    lock = YAML(typ="safe").load(project / "dvc.lock")["stages"]
    outs = [out for stage in lock.values() for out in stage["outs"] if not out["path"].startswith("metrics/")]
    cache = project / ".dvc/cache/files/md5"
    return {out["path"] for out in outs if (cache / out["md5"][:2] / out["md5"][2:]).exists()}


def contents(project: Path) -> dict[str, bytes]:
    files = [path for out in OUTS for path in (project / out).rglob("*") if path.is_file()]
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server on loopback, with one empty bucket."""
    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    address = f"http://{host}:{port}"
    client(address).create_bucket(Bucket=BUCKET)
    yield address
    s3.stop()


def client(address: str, service: str = "s3") -> "boto3.client":
    return boto3.client(
        service,
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )


def in_s3(address: str, bucket: str = BUCKET, **options: str) -> Remote:
    keys = {"access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}
    return Remote(f"s3://{bucket}/cache", {"endpointurl": address, **keys, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose graph has run, with its state committed and nothing pushed."""
    project = tmp_path_factory.mktemp("made") / "project"
    project.mkdir()
    (project / "stage.py").write_text(STAGE)
    with (project / "params.yaml").open("w") as file:
        YAML().dump({"seed": 1, "rank": 16, "resamples": 100, "title": "WronAI"}, file)
    with (project / "dvc.yaml").open("w") as file:
        YAML().dump(GRAPH, file)
    # As in the project: DVC's own .gitignore in data/scores would make the folder be there, and differ, in a clone.
    (project / ".gitignore").write_text("/data/scores\n")
    git(project, "init", "-q")
    dvc(project, "init", "-q")
    dvc(project, "repro")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "state")
    return project


def push(project: Path, remote: Remote) -> None:
    """Bring what the project's cache holds to the remote, which it forgets then: it is shared by the tests."""
    remote.add(project)
    said = dvc(project, "push", "--run-cache")
    dvc(project, "remote", "remove", "--local", "there")
    assert "pushed" in said


@pytest.fixture(scope="module", params=["folder", "s3"])
def pushed(request: pytest.FixtureRequest, made: Path, server: str, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    """A remote, of either kind, that holds what `made` made."""
    remote = Remote(str(tmp_path_factory.mktemp("remote")), {}) if request.param == "folder" else in_s3(server)
    before = client(server).list_objects_v2(Bucket=BUCKET)["KeyCount"]
    push(made, remote)
    after = client(server).list_objects_v2(Bucket=BUCKET)["KeyCount"]
    assert (after > before) == (request.param == "s3")
    return remote


@pytest.fixture
def clone(made: Path, pushed: Remote, tmp_path: Path) -> Path:
    """A fresh clone that knows the remote."""
    git(made, "clone", "-q", str(made), str(tmp_path / "clone"))
    pushed.add(tmp_path / "clone")
    return tmp_path / "clone"


def change(project: Path, **values: object) -> None:
    yaml = YAML()
    known = yaml.load(project / "params.yaml")
    known.update(values)
    yaml.dump(known, project / "params.yaml")


def test_a_fresh_clone_pulls_every_out_and_runs_nothing(made: Path, clone: Path) -> None:
    assert contents(clone) == {}
    dvc(clone, "pull")
    assert contents(clone) == contents(made) and len(contents(made)) == 2 * len(OUTS)
    assert ran(dvc(clone, "repro")) == []
    assert "up to date" in dvc(clone, "status")
    assert "in sync" in dvc(clone, "status", "--cloud")
    changed = call(clone, "git", "status", "--porcelain").stdout
    assert changed == "", "what is secret, and the cache, are no part of the repository"


def test_what_does_not_change_is_not_fetched(clone: Path) -> None:
    assert ran(dvc(clone, "repro", "--allow-missing")) == []
    assert ran(dvc(clone, "repro", "--pull", "--allow-missing")) == []
    assert cached(clone) == set()
    change(clone, title="Another title")
    assert ran(dvc(clone, "repro", "--pull", "--allow-missing")) == ["report"]
    assert cached(clone) == {"models/base", "report"}


def test_outs_in_one_folder_that_a_stage_depends_on_are_pulled_by_their_stage_first(clone: Path) -> None:
    """DVC pulls a missing dep by its name, and of a folder that holds several outs it knows none."""
    change(clone, resamples=50)
    failed = call(clone, "dvc", "repro", "--pull", "--allow-missing")
    assert failed.returncode != 0 and "'data/scores' does not exist as an output" in failed.stderr
    dvc(clone, "pull", "score")
    assert ran(dvc(clone, "repro", "--pull", "--allow-missing")) == ["compare"]
    assert cached(clone) == {"data/scores/x", "data/scores/y", "data/compared"}


@pytest.mark.parametrize("pushed", ["folder"], indirect=True)
def test_a_run_cache_that_was_pushed_restores_what_has_no_metrics_in_git(
    made: Path, pushed: Remote, clone: Path
) -> None:
    """DVC pushes none of the files that git holds, and a stage is restored with all of its outs or not at all."""
    change(made, rank=8)
    assert ran(dvc(made, "repro")) == ["model", "score@x", "score@y", "compare", "report"]
    push(made, pushed)
    computed = contents(made)
    git(made, "checkout", "-q", "--force", "HEAD")
    dvc(made, "checkout")
    change(clone, rank=8)
    assert ran(dvc(clone, "repro", "--pull")) == ["model", "report"]
    assert contents(clone) == computed


@pytest.mark.parametrize("pushed", ["folder"], indirect=True)
def test_an_experiment_travels_by_git_and_the_remote(made: Path, pushed: Remote, clone: Path, tmp_path: Path) -> None:
    dvc(clone, "pull")
    dvc(clone, "exp", "run", "--name", f"rank-{tmp_path.name}", "--set-param", "rank=2")
    dvc(clone, "exp", "push", "origin", f"rank-{tmp_path.name}")
    other = tmp_path / "other"
    git(made, "clone", "-q", str(made), str(other))
    pushed.add(other)
    dvc(other, "exp", "pull", "origin", f"rank-{tmp_path.name}")
    dvc(other, "exp", "apply", f"rank-{tmp_path.name}")
    assert ran(dvc(other, "repro")) == []
    assert contents(other) == contents(clone)


def test_keys_stand_in_the_file_that_git_does_not_see(made: Path, server: str, tmp_path: Path) -> None:
    project = tmp_path / "clone"
    git(made, "clone", "-q", str(made), str(project))
    in_s3(server).add(project)
    assert SECRET in (project / ".dvc/config.local").read_text()
    assert (
        call(project, "git", "grep", "--untracked", "--exclude-standard", "-lF", "-e", SECRET, "-e", KEY).stdout == ""
    )
    assert call(project, "git", "check-ignore", ".dvc/config.local").returncode == 0


def refused(made: Path, folder: Path, remote: Remote) -> str:
    """What `dvc push` says of a remote that it cannot push to."""
    project = folder / "clone"
    git(made, "clone", "-q", str(made), str(project))
    dvc(project, "config", "--local", "cache.dir", str(made / ".dvc/cache"))
    remote.add(project)
    done = call(project, "dvc", "push")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert SECRET not in done.stdout + done.stderr
    return said


def test_a_bucket_that_is_not_there_is_one_message(made: Path, server: str, tmp_path: Path) -> None:
    assert "bucket does not exist" in refused(made, tmp_path, in_s3(server, "nowhere"))


def test_a_server_that_does_not_answer_is_one_message(made: Path, tmp_path: Path) -> None:
    assert "Could not connect" in refused(made, tmp_path, in_s3("http://127.0.0.1:9"))


def test_no_credentials_at_all_are_one_message(made: Path, server: str, tmp_path: Path) -> None:
    bare = Remote(f"s3://{BUCKET}/cache", {"endpointurl": server})
    assert "Unable to locate credentials" in refused(made, tmp_path, bare)


def test_wrong_credentials_are_one_message(made: Path, server: str, tmp_path: Path) -> None:
    requests.post(f"{server}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()  # from now on it looks
    try:
        said = refused(made, tmp_path, in_s3(server, secret_access_key=f"not {SECRET}"))
    finally:
        requests.post(f"{server}/moto-api/reset-auth", data=b"inf", timeout=10).raise_for_status()
    assert "Forbidden" in said
