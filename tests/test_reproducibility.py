"""The check clones, runs and compares for real, on a graph of three small stages; what drifts is named to the value."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from wronai import environment, params, reproducibility

ROOT = Path(__file__).parent.parent
GRAPH = """\
stages:
  gather:
    cmd: python -m stages.gather
    deps: [stages/gather.py]
    params: [rows]
    outs: [data/rows]
  train:
    cmd: python -m stages.train
    deps: [stages/train.py, stages/gather.py, data/rows]
    outs: [models/weights]
  score:
    cmd: python -m stages.score
    deps: [stages/score.py, models/weights]
    metrics: [metrics/score.json: {cache: false}]
    plots: [metrics/curve.csv: {cache: false}]
"""
GATHER = """\
import json, os, sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq

DRIFT = os.environ.get("DRIFT")
COUNT = 8

if __name__ == "__main__":
    print("tracking", os.environ.get("MLFLOW_TRACKING_URI"), "threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
    rows = [{"id": number, "text": f"zdanie {number}"} for number in range(COUNT)]
    if DRIFT == "gather":
        rows[5]["text"] = "zdanie 6"
    Path("data/rows").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), "data/rows/rows.parquet")
    Path("data/rows/rows.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    if DRIFT == "strays":
        Path("notes.txt").write_text("changed")
        Path("metrics/more.json").write_text("{}")
"""
TRAIN = """\
import sys, time
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import save_file
from stages.gather import COUNT, DRIFT

if DRIFT == "break":
    sys.exit("train: no rows")
if DRIFT == "sleep":
    print("asleep", flush=True)
    time.sleep(60)
rows = pq.read_table("data/rows/rows.parquet").to_pylist()
weights = np.array([[len(row["text"]), row["id"]] for row in rows], dtype=np.float32)
weights[:, 0] += sum(ord(letter) for row in rows for letter in row["text"])
if DRIFT == "train":
    weights[2, 1] += 0.5
Path("models/weights").mkdir(parents=True)
save_file({"bias": np.zeros(2, np.float32), "layer": weights}, "models/weights/model.safetensors")
Path("models/weights/config.json").write_text("{}")
"""
SCORE = """\
import json
from pathlib import Path
from safetensors.numpy import load_file

weights = load_file("models/weights/model.safetensors")["layer"]
Path("metrics").mkdir(exist_ok=True)
Path("metrics/score.json").write_text(json.dumps({"mean": float(weights.mean()), "size": {"rows": len(weights)}}))
rows = "".join(f"{step},{value}\\n" for step, value in enumerate(weights[:, 1].tolist()))
Path("metrics/curve.csv").write_text("step,loss\\n" + rows)
"""


def run(folder: Path, *command: str, **variables: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "DRIFT"))}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "DVC_NO_ANALYTICS": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def commit(root: Path) -> None:
    run(root, "git", "add", "-A")
    run(root, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "state")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have run and whose state is committed; its cache lies outside of it."""
    root = tmp_path_factory.mktemp("project") / "root"
    (root / "stages").mkdir(parents=True)
    for name, text in {
        "dvc.yaml": GRAPH,
        "params.yaml": "numerics: pinned\nrows: 8\n",
        "notes.txt": "as it was\n",
        "stages/__init__.py": "",
        "stages/gather.py": GATHER,
        "stages/train.py": TRAIN,
        "stages/score.py": SCORE,
        ".gitignore": "__pycache__/\n",
    }.items():
        (root / name).write_text(text)
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")
    run(root, "dvc", "config", "core.analytics", "false")
    run(root, "dvc", "cache", "dir", "../cache")
    run(root, "dvc", "repro", PYTHONPATH=str(root))
    environment.record(root)
    commit(root)
    return root


@pytest.fixture
def project(made: Path) -> Path:
    """A copy to change, beside the same cache."""
    root = made.parent / f"copy-{len(list(made.parent.iterdir()))}"
    return Path(shutil.copytree(made, root))


def started(root: Path, temporary: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "wronai.reproducibility", *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(root: Path, *options: str, **variables: str) -> tuple[int, str]:
    """The exit status and what it printed; the temporary folder must be empty again."""
    temporary = root.parent / f"tmp-{root.name}"
    process = started(root, temporary, *options, **variables)
    out, err = process.communicate(timeout=120)
    assert [*temporary.iterdir()] == []
    return process.returncode, out + err


def test_what_is_the_same_passes_and_leaves_no_trace(made: Path) -> None:
    status, output = check(made, MLFLOW_TRACKING_URI="http://elsewhere", DVC_ROOT="elsewhere", GIT_DIR="elsewhere")
    assert status == 0, output
    assert "environment, pinned numerics: 0 differences" in output
    assert "reproduced: 3 stages, 4 outs; dvc.lock and metrics/ are the same bytes" in output
    assert "tracking None threads" in output
    assert output.rstrip().endswith("s in all")
    assert run(made, "git", "status", "--porcelain") == ""


def test_the_tensor_that_drifts_and_the_stage_where_it_starts_are_named(made: Path) -> None:
    cached = sorted((made.parent / "cache").rglob("*"))
    status, output = check(made, DRIFT="train")
    assert status == 1
    assert sorted((made.parent / "cache").rglob("*")) == cached
    assert "It starts at train: what that stage reads is as recorded" in output
    assert (
        textwrap.dedent("""\
        models/weights/model.safetensors: 1 tensor differs
          layer float32 [8, 2] at [2, 1]: 2 recorded, 2.5 found, 0.5 apart at most, relative 0.25; 1 of 16 values
        """)
        in output
    )
    assert (
        "metrics/curve.csv: 1 row differs\n  row 3 loss: 2.0 recorded, 2.5 found, 0.5 apart (relative 0.25)" in output
    )
    assert "metrics/score.json: 1 value differs\n  mean: " in output
    assert "train  models/weights      1 of 2 files" in output
    assert "NOT reproduced: 3 stages, 4 outs; 3 differences" in output


def test_the_row_that_drifts_is_named_in_one_stage_alone(made: Path) -> None:
    status, output = check(made, "--stages", "gather", "--threads", "3", DRIFT="gather")
    assert status == 1
    assert "threads 3" in output and "Running stage 'train'" not in output
    assert (
        "rows.parquet: 1 row differs\n  row 5 text: 'zdanie 5' recorded, 'zdanie 6' found, from character 7 on"
        in output
    )
    assert "rows.jsonl: 1 row differs\n  line 6 text: " in output
    assert "NOT reproduced: 1 stage, 1 out; 1 difference" in output


def test_bytes_that_are_in_no_cache_are_compared_by_hash_and_those_in_the_workspace_opened(project: Path) -> None:
    (project / ".dvc/config.local").write_text("[cache]\n    dir = ../../nowhere\n")
    assert "layer float32 [8, 2] at [2, 1]" in check(project, DRIFT="train")[1]
    shutil.rmtree(project / "models/weights")
    status, output = check(project, DRIFT="train")
    assert status == 1
    assert "models/weights      hashes alone compared" in output
    assert "are in no cache here: `dvc pull`, or `dvc checkout`" in output
    assert "row 3 loss: 2.0 recorded, 2.5 found" in output  # those of metrics/ are in git


def test_a_tolerance_judges_metrics_and_reports_the_rest(made: Path) -> None:
    status, output = check(made, "--tolerance", "0.01", DRIFT="train")
    assert status == 0
    assert "within 0.01: 3 stages, 4 outs, of which 3 differ in bytes" in output
    assert "models/weights      1 of 2 files, allowed" in output and "layer float32 [8, 2] at [2, 1]" in output
    status, output = check(made, "--tolerance", "1e-9", DRIFT="train")
    assert status == 1
    assert "metrics/score.json: 1 beyond 1e-09\n  mean: " in output
    assert "NOT reproduced: 3 stages, 4 outs; 1 difference" in output


def test_what_is_not_committed_is_refused_unless_it_is_to_be_ignored(project: Path) -> None:
    (project / "notes.txt").write_text("no stage reads this")
    (project / "params.yaml").write_text("numerics: pinned\nrows: 9\n")
    (project / "data/rows/extra.txt").write_text("an ignored folder")
    status, output = check(project)
    assert status == 1
    assert output.startswith(
        "repro-check: params.yaml: not as committed, and what is checked is the commit; commit, or"
    )
    assert len(output.splitlines()) == 1
    status, output = check(project, "--ignore-changes")
    assert status == 0 and "reproduced: 3 stages" in output


def test_a_mismatch_of_environments_is_named_before_anything_runs(project: Path) -> None:
    recorded = json.loads((project / "environment.json").read_text())
    recorded["observed"] |= {"library.torch": "1.0.0", "cores": "128"}
    (project / "environment.json").write_text(json.dumps(recorded | {"lock": "of another"}))
    commit(project)
    status, output = check(project, "--stages", "gather")
    before, _, _ = output.partition("Running stage")
    assert status == 0  # the bytes decide
    assert "environment.json belongs to another dvc.lock" in before
    assert "environment, pinned numerics: 2 differences" in before
    assert "library.torch: 1.0.0 recorded" in before and "(may change bytes)" in before
    assert "cores: 128 recorded" in before and "(should not change bytes)" in before
    assert "warning: 1 of them may change bytes: expect outs that differ" in before
    (project / "environment.json").unlink()
    commit(project)
    assert "the commit has no environment.json" in check(project, "--stages", "gather")[1]


def test_a_stage_that_fails_is_named_and_nothing_is_compared(made: Path) -> None:
    status, output = check(made, DRIFT="break")
    assert status == 1
    assert "train: no rows" in output
    assert "stage train failed, so nothing was compared" in output and "reproduced" not in output


def test_a_lock_that_other_code_made_is_refused_before_the_run(project: Path) -> None:
    (project / "stages/train.py").write_text(TRAIN + "# edited\n")
    commit(project)
    status, output = check(project)
    assert status == 1 and "Running stage" not in output
    assert "repro-check: dvc.lock was made of another stages/train.py (train) than this commit has" in output


def test_parameters_that_the_lock_does_not_know_are_named(project: Path) -> None:
    (project / "params.yaml").write_text("numerics: pinned\nrows: 9\n")
    commit(project)
    status, output = check(project, "--stages", "gather")
    assert status == 1
    assert "gather  params.yaml:rows  another parameter" in output
    assert "gather: params.yaml:rows: 8 recorded, 9 found" in output


def test_what_a_stage_leaves_elsewhere_is_found(made: Path) -> None:
    status, output = check(made, "--stages", "gather", DRIFT="strays")
    assert status == 1
    assert "-      notes.txt          a file of the commit that the run changed" in output
    assert "-      metrics/more.json  not recorded" in output


def test_the_clone_is_kept_on_request(made: Path, tmp_path: Path) -> None:
    process = started(made, tmp_path / "tmp", "--stages", "gather", "--keep")
    out, _ = process.communicate(timeout=120)
    (kept,) = (tmp_path / "tmp").iterdir()
    assert f"kept: {kept}" in out and (kept / "clone/data/rows/rows.jsonl").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_neither_folder_nor_process(number: int, made: Path, tmp_path: Path) -> None:
    process = started(made, tmp_path / "tmp", DRIFT="sleep")
    assert process.stdout is not None
    assert any(line == "asleep\n" for line in process.stdout)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 2
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert [*(tmp_path / "tmp").iterdir()] == []
    until = time.monotonic() + 10
    while any(member.is_running() for member in below) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(member.is_running() for member in below)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "nothing"], "--stages: nothing not in dvc.lock; it has gather, train, score, and `data`"),
        (["--stages", "data"], "--stages: download_corpus, prepare_benchmarks, clean_text not in dvc.lock"),
        (["--threads", "0"], "--threads: expected at least 1, found 0"),
        (["--tolerance", "nan"], "--tolerance: expected a number from 0 on, found nan"),
    ],
)
def test_a_wrong_option_says_what_is_expected(options: list[str], message: str, made: Path) -> None:
    status, output = check(made, *options)
    assert status != 0 and message in output and "Traceback" not in output


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty") == (
        1,
        "repro-check: dvc.yaml: not found; run this at the root of the project, after `dvc repro`\n",
    )
    for name in ("dvc.yaml", "dvc.lock"):
        (tmp_path / "empty" / name).write_text("stages: {}\n")
    assert "repro-check: git rev-parse in" in check(tmp_path / "empty")[1]


def test_the_data_stages_are_those_that_need_no_model() -> None:
    graph = params.read(ROOT / "dvc.yaml")["stages"]
    without = {name for name, stage in graph.items() if not any("model" in dep for dep in stage["deps"])}
    assert {*reproducibility.DATA} == without - {
        "evaluate_benchmarks",
        "publish_report",
        "tokenize_text",
        "prepare_base",
    }


def test_the_hash_of_a_folder_is_the_one_that_dvc_gives(made: Path) -> None:
    lock = reproducibility.locked(made / "dvc.lock")
    files = reproducibility.contents(made, "data/rows")
    assert reproducibility._folder_md5("data/rows", files) == lock["gather"].outs["data/rows"]
