"""Tracking on what a team runs: MLflow on PostgreSQL with artifacts in S3 and a password; and four workers at once."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pgserver
import pytest
import short
from mlflow.tracking import MlflowClient
from servers import served

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret", "AWS_DEFAULT_REGION": "us-east-1"}
USER = {"MLFLOW_TRACKING_USERNAME": "ania", "MLFLOW_TRACKING_PASSWORD": "haslo-do-testow-1"}
WORKERS = 4


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server with a bucket `wronai`."""
    with served(tmp_path_factory.mktemp("s3") / "log", "moto.server", "--host", "127.0.0.1") as server:
        s3 = boto3.client(
            "s3",
            endpoint_url=server.address,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_DEFAULT_REGION"],
        )
        s3.create_bucket(Bucket="wronai")
        yield server.address


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URI of an empty PostgreSQL database, in a folder that its own user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="module")
def server(database: str, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server with basic authentication on that database and bucket."""
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "auth.ini").write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\n"
        f"admin_username = {USER['MLFLOW_TRACKING_USERNAME']}\n"
        f"admin_password = {USER['MLFLOW_TRACKING_PASSWORD']}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    command = ["mlflow", "server", "--app-name", "basic-auth", "--backend-store-uri", database]
    command += ["--artifacts-destination", "s3://wronai/mlflow", "--host", "127.0.0.1", "--workers", "1"]
    told = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-the-tests"}
    with served(folder / "log", *command, MLFLOW_S3_ENDPOINT_URL=bucket, **KEYS, **told) as listening:
        yield listening.address


@pytest.fixture
def told(server: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that a user sets for that server, here and for stages."""
    variables = {"MLFLOW_TRACKING_URI": server, **USER}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def test_a_pipeline_on_a_server_with_postgresql_s3_and_a_password(
    tmp_path: Path, told: dict[str, str], bucket: str
) -> None:
    project = short.make(tmp_path)
    output = short.run(project, "dvc", "exp", "run", "-n", "served", "-S", "tracking.log_adapter=true", **told)
    assert "tracking:" not in output
    (parent,) = short.runs(project, "parent", told["MLFLOW_TRACKING_URI"])
    short.complete(project, parent)
    assert parent.info.run_name == "served"
    assert short.nested(project, parent, told["MLFLOW_TRACKING_URI"]) == short.STAGES
    client = MlflowClient(told["MLFLOW_TRACKING_URI"])
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert names == {"params.yaml", "dvc.lock", "report", "adapter", "adapter_config.json"}
    s3 = boto3.client("s3", endpoint_url=bucket, aws_access_key_id="testing", aws_secret_access_key="testing-secret")
    stored = [item["Key"] for item in s3.list_objects_v2(Bucket="wronai")["Contents"]]
    assert any(key.endswith("artifacts/adapter/weights.txt") for key in stored)
    assert not (project / "mlflow.db").exists() and not (project / "mlruns").exists()
    assert not list((project / ".tracking").glob("*.json*"))


def test_a_wrong_password_costs_one_warning_and_loses_nothing(tmp_path: Path, told: dict[str, str]) -> None:
    project = short.make(tmp_path)
    wrong = {**told, "MLFLOW_TRACKING_PASSWORD": "inne-haslo"}
    output = short.run(project, "dvc", "repro", "-s", "train", **wrong)
    assert output.count("tracking: the MLflow store") == 1
    assert "inne-haslo" not in output
    known = {run.info.run_id for run in short.runs(project, "stage", told["MLFLOW_TRACKING_URI"])}
    assert "mirrored 1 runs" in short.run(project, sys.executable, "-m", "wronai.tracking", "sync", **told)
    found = short.runs(project, "stage", told["MLFLOW_TRACKING_URI"])
    assert [run.info.run_name for run in found if run.info.run_id not in known] == ["train"]


@pytest.mark.parametrize("store", ["new", "existing", "served"])
def test_four_workers_start_at_once_and_no_run_is_lost(
    store: str, tmp_path: Path, told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes of four pipelines of one project folder, as queued experiments are."""
    project = short.make(tmp_path)
    if store != "served":
        told = {}
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    uri = told.get("MLFLOW_TRACKING_URI")
    if store == "existing":
        short.run(project, sys.executable, "train.py")
    known = len(short.runs(project, "stage", uri)) if store != "new" else 0
    processes = []
    for number in range(WORKERS):
        folder = project / ".dvc/tmp/exps" / str(number)
        folder.mkdir(parents=True)
        for name in ("params.yaml", "dvc.yaml", "train.py"):
            (folder / name).write_bytes((project / name).read_bytes())
        environment = short.environment(DVC_ROOT=str(project), **told)
        processes.append(subprocess.Popen([sys.executable, "train.py"], cwd=folder, env=environment))
    assert [process.wait(300) for process in processes] == [0] * WORKERS
    found = short.runs(project, "stage", uri)[known:]
    assert [run.info.status for run in found] == ["FINISHED"] * WORKERS
    assert len({run.data.metrics["loss"] for run in found}) == 1
    assert not list((project / ".tracking").glob("*.json"))
