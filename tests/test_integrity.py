"""What the disk lost in DVC's cache is found, named and made again; without `make fsck` DVC does not see it."""

import json
import subprocess
import sys
from pathlib import Path

import clones
import pytest
from faults import object_of
from ruamel.yaml import YAML

from wronai import integrity

GRAPH = """\
stages:
  make:
    cmd: mkdir made && echo one > made/one && echo two > made/two
    outs:
      - made
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    clones.run(tmp_path, "git", "init", "-q")
    clones.run(tmp_path, "dvc", "init", "-q")
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    clones.run(tmp_path, "dvc", "repro", "-q")
    return tmp_path


def digests(project: Path) -> dict[str, str]:
    """The digest of each file of the out, and of the out itself under the name of its folder."""
    lock = YAML(typ="safe").load(project / "dvc.lock")
    folder = lock["stages"]["make"]["outs"][0]["md5"]
    listed = json.loads(object_of(project, folder).read_text())
    return {"made": folder} | {entry["relpath"]: entry["md5"] for entry in listed}


def damage(path: Path, content: bytes) -> None:
    """Other bytes, under the read-only mode by which DVC trusts a file of its cache."""
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


def fsck(project: Path) -> subprocess.CompletedProcess[str]:
    env = clones.environment(PYTHONPATH=str(clones.ROOT))
    command = [sys.executable, "-m", "wronai.integrity"]
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=120)


def test_whole_files_are_said_to_be_whole(project: Path) -> None:
    done = fsck(project)
    assert (done.returncode, done.stdout) == (0, "every object of DVC's cache and every out is whole\n")
    assert "B/s" in done.stderr


@pytest.mark.parametrize("content", [b"onf\n", b"on"], ids=["a byte flipped", "truncated"])
def test_what_dvc_checks_out_damaged_is_named_and_made_again(project: Path, content: bytes) -> None:
    damage(object_of(project, digests(project)["one"]), content)
    (project / "made/one").unlink()
    clones.run(project, "dvc", "checkout", "-q")
    assert (project / "made/one").read_bytes() == content
    assert "up to date" in clones.run(project, "dvc", "status"), "DVC itself does not see it"
    done = fsck(project)
    assert done.returncode == 1
    assert f"damaged ({len(content):,} bytes); it belongs to made/one of stage make" in done.stderr
    assert "made/one: damaged, and DVC takes it for whole; it belongs to stage make" in done.stderr
    assert {path.read_bytes() for path in (project / integrity.ASIDE).iterdir()} == {content}, "moved, not deleted"
    assert clones.ran(clones.run(project, "dvc", "repro")) == ["make"]
    assert (project / "made/one").read_text() == "one\n"
    assert fsck(project).returncode == 0


def test_an_object_that_is_gone_is_named_and_made_again(project: Path) -> None:
    object_of(project, digests(project)["two"]).unlink()
    done = fsck(project)
    assert done.returncode == 1
    assert f"missing, though {digests(project)['made']} lists it as two; it belongs to made/two of" in done.stderr
    assert clones.ran(clones.run(project, "dvc", "repro")) == ["make"]
    assert fsck(project).returncode == 0


def test_a_damaged_list_of_a_folder_is_named_and_made_again(project: Path) -> None:
    damage(object_of(project, digests(project)["made"]), b"[")
    done = fsck(project)
    assert done.returncode == 1 and "it belongs to made of stage make" in done.stderr
    assert clones.ran(clones.run(project, "dvc", "repro")) == ["make"]
    assert fsck(project).returncode == 0


def test_what_belongs_to_another_commit_says_so(project: Path) -> None:
    old = object_of(project, digests(project)["one"])
    (project / "dvc.yaml").write_text(GRAPH.replace("echo one", "echo other"))
    clones.run(project, "dvc", "repro", "-q")
    damage(old, b"lost")
    done = fsck(project)
    assert done.returncode == 1 and f"it belongs to {integrity.UNKNOWN}" in done.stderr


def test_an_out_that_somebody_edited_is_left_alone(project: Path) -> None:
    (project / "made/one").write_text("edited\n")
    assert fsck(project).returncode == 0
    assert (project / "made/one").read_text() == "edited\n"
