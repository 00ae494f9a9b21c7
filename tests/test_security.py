"""Secrets of the environment are in nothing that the pipeline leaves behind, and what listens, listens on loopback."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML
from servers import served

ROOT = Path(__file__).parent.parent
STAGE = """
import os
from pathlib import Path
from wronai import graph, params, tracking
with tracking.stage("{name}") as (config, report):
    report.log(1, loss=2.5)
    {body}
    report({{"rows": 3}})
    Path("{name}.txt").write_text("out")
"""
PARENT = """made = graph.made(Path("dvc.yaml"), config)
    report.parent({"first": made["first"]}, {"params.yaml": Path("params.yaml")})"""
GRAPH = {
    "stages": {
        "first": {
            "cmd": "python first.py",
            "deps": ["first.py"],
            "params": ["seed"],
            "outs": ["first.txt"],
            "metrics": [{"metrics/first.json": {"cache": False}}],
        },
        "last": {"cmd": "python last.py", "deps": ["last.py", "first.txt"], "params": ["seed"], "outs": ["last.txt"]},
        "broken": {"cmd": "python broken.py", "deps": ["broken.py"], "params": ["seed"], "outs": ["broken.txt"]},
    }
}
SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub",
    "MLFLOW_TRACKING_PASSWORD": "PlantedPasswordOfMlflow",
    "AWS_SECRET_ACCESS_KEY": "PlantedSecretOfS3",
    "OPENAI_API_KEY": "sk-PlantedKeyOfTheServer",
    "PGPASSWORD": "PlantedPasswordOfPostgres",
}
IN_URL = "PlantedPasswordInTheAddress"
IN_REMOTE = "PlantedTokenOfTheRemote"
USER = {"MLFLOW_TRACKING_USERNAME": "someone", "AWS_ACCESS_KEY_ID": "AKIAPLANTED"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A pipeline of two stages and one that fails, in a repository whose remote has a token in its address."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump(GRAPH, file)
    fail = "raise ValueError('no answer from ' + ' '.join(os.environ[name] for name in os.environ['PLANTED'].split()))"
    for name, body in (("first", "pass"), ("last", PARENT), ("broken", fail)):
        (folder / f"{name}.py").write_text(STAGE.format(name=name, body=body))
    for command in (("git", "init", "-q"), ("dvc", "init", "-q"), ("git", "add", "-A"), ("git", "commit", "-qm", "s")):
        assert run(folder, *command).returncode == 0
    run(folder, "git", "remote", "add", "origin", f"https://oauth2:{IN_REMOTE}@git.example/wronai.git")
    return folder


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call `command` with all secrets in its environment; what it prints is kept beside the folder, to be searched."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env |= {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", **SECRETS, **USER, **environment}
    env |= {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env["PLANTED"] = " ".join([*SECRETS, *(["MLFLOW_TRACKING_URI"] if "MLFLOW_TRACKING_URI" in environment else [])])
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    with (folder.parent / "printed.log").open("a") as log:
        log.write(done.stdout + done.stderr)
    return done


def leaks(folder: Path) -> dict[str, list[str]]:
    """The secrets that stand in a file below `folder`, by the file; git's own record of its remote is the user's."""
    planted = [*SECRETS.values(), IN_URL, IN_REMOTE]
    found: dict[str, list[str]] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and not name.endswith(".git/config"):
            content = path.read_bytes()
            found[name] = [secret for secret in planted if secret.encode() in content]
    assert any("mlflow.db" in name or "server.db" in name or ".tracking/" in name for name in found), "nothing ran"
    return {name: secrets for name, secrets in found.items() if secrets}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server, whose address has a user and a password in it."""
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--workers", "1"]
    with served(tmp_path / "server.log", *command, cwd=tmp_path) as listening:
        yield listening.address.replace("//", f"//someone:{IN_URL}@")


def test_a_whole_pipeline_on_a_server_leaves_no_secret(project: Path, server: str) -> None:
    done = run(project, "dvc", "exp", "run", "last", "--name", "planted", MLFLOW_TRACKING_URI=server)
    assert done.returncode == 0, done.stderr
    assert "did not take" not in done.stderr
    with sqlite3.connect(project.parent / "server.db") as store:
        assert store.execute("select count(*) from runs where status = 'FINISHED'").fetchone()[0] >= 2
    assert (project / "dvc.lock").exists() and json.loads((project / "metrics/first.json").read_text())
    assert leaks(project.parent) == {}


AWAY = f"http://someone:{IN_URL}@127.0.0.1:9"


def test_a_store_that_is_away_is_named_without_its_password(project: Path) -> None:
    done = run(project, sys.executable, "first.py", MLFLOW_TRACKING_URI=AWAY)
    assert done.returncode == 0 and done.stderr.count("did not take") == 1
    run(project, sys.executable, "-m", "wronai.tracking", "sync", MLFLOW_TRACKING_URI=AWAY)
    assert leaks(project.parent) == {}


def test_a_stage_that_fails_with_a_secret_in_its_message_does_not_show_it(project: Path) -> None:
    done = run(project, "dvc", "repro")
    assert done.returncode != 0 and "broken: no answer from " in done.stderr
    assert (project / "mlflow.db").exists() and (project / "last.txt").exists(), "the stages before it ran"
    assert leaks(project.parent) == {}


def test_an_error_of_ours_does_not_show_it_in_its_traceback(project: Path) -> None:
    code = (project / "broken.py").read_text().replace("ValueError(", "KeyError(")
    (project / "broken.py").write_text(code)
    done = run(project, sys.executable, "broken.py", MLFLOW_TRACKING_URI=AWAY)
    assert done.returncode != 0 and "Traceback" in done.stderr and "KeyError" in done.stderr
    assert leaks(project.parent) == {}


def test_a_secret_in_a_file_would_be_found(project: Path) -> None:
    (project / ".tracking").mkdir()
    (project / ".tracking/told.json").write_text(json.dumps(SECRETS))
    assert leaks(project.parent) == {"project/.tracking/told.json": list(SECRETS.values())}


def test_the_ui_listens_on_loopback_alone(project: Path) -> None:
    with served(project.parent / "ui.log", "wronai.tracking", "ui", cwd=project) as ui:
        family = [psutil.Process(ui.pid), *psutil.Process(ui.pid).children(recursive=True)]
        listening = {
            connection.laddr.ip
            for member in family
            for connection in member.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
