"""A base comes from a folder or from the hub: linked where that is safe, whole, and nothing that is not its."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hub
import pytest
import torch
from transformers import AutoModelForCausalLM

from wronai import base, delivery, downloads, tokens

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUICK = downloads.Patience(attempts=3, pause=0.001, longest=0.01, connect=0.5, idle=5.0)
Requests = list[tuple[str, str, dict[str, str]]]


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no hub, no credentials, and no DVC project around but what a test sets."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HF_ENDPOINT", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """The tiny base in several shards, beside what repositories hold too: other layouts of the weights, code, notes."""
    folder = tmp_path_factory.mktemp("repository")
    base.load(base_folder, torch.float32).save_pretrained(folder, max_shard_size="100KB")
    tokens.load(base_folder).save_pretrained(folder)
    for name in ("consolidated.safetensors", "pytorch_model.bin", "modeling_wronai.py", "tokenizer.py", "README.md"):
        (folder / name).write_text("not wanted")
    (folder / "original").mkdir()
    (folder / "original/model-00001-of-00001.safetensors").write_text("not wanted")
    return folder


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


def wanted(folder: Path) -> list[str]:
    return sorted([*shards(folder), *(name for name in base.FILES if (folder / name).is_file())])


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def looks(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    """Of each file what a hard link to it, or a change of its mode or content, would change."""
    states = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (state.st_ino, state.st_mode, state.st_nlink, state.st_mtime_ns) for name, state in states.items()}


def ignore(*_: object) -> None:
    pass


# From a folder


def test_a_local_base_is_linked_without_what_is_not_its(sharded: Path, tmp_path: Path) -> None:
    said: list[str] = []
    delivery.from_local(sharded, tmp_path / "out", said.append)
    base.check(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == wanted(sharded)
    assert all(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert said == []


def test_a_link_names_the_file_itself_whatever_leads_to_it(base_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes((base_copy / "model.safetensors").read_bytes())
    (base_copy / "model.safetensors").unlink()
    (base_copy / "model.safetensors").symlink_to("../blob")
    delivery.from_local(Path("base"), tmp_path / "out", ignore)
    assert (tmp_path / "out/model.safetensors").readlink() == tmp_path / "blob"


def test_the_single_file_is_taken_where_there_is_no_index(base_copy: Path, tmp_path: Path) -> None:
    (base_copy / "adapter_model.safetensors").write_text("not wanted")
    delivery.from_local(base_copy, tmp_path / "out", ignore)
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_a_local_base_that_is_not_there_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.path: .*none: no such folder"):
        delivery.from_local(tmp_path / "none", tmp_path / "out", ignore)


def test_a_folder_with_pickles_alone_is_refused(base_copy: Path, tmp_path: Path) -> None:
    (base_copy / "model.safetensors").rename(base_copy / "pytorch_model.bin")
    says = r"model\.path: .*base: no \*\.safetensors \(there is pytorch_model\.bin\)"
    with pytest.raises(FileNotFoundError, match=says):
        delivery.from_local(base_copy, tmp_path / "out", ignore)


@pytest.mark.parametrize(
    ("cache_type", "hard"),
    [
        (None, False),
        ("hardlink", True),
        ("hardlink,symlink", True),
        ("symlink", False),
        ("reflink,hardlink,copy", False),
    ],
)
def test_a_hard_linked_cache_is_known_by_its_configuration(cache_type: str | None, hard: bool, tmp_path: Path) -> None:
    project(tmp_path, cache_type)
    assert delivery.hard_linked_cache() is hard


def test_without_a_project_no_cache_is_hard_linked() -> None:
    assert delivery.hard_linked_cache() is False


def project(folder: Path, cache_type: str | None) -> Any:
    """A DVC project whose one stage takes the folder `made` as its out."""
    from dvc.repo import Repo  # type: ignore[import-untyped]

    repo = Repo.init(str(folder), no_scm=True)
    if cache_type:
        (folder / ".dvc/config").write_text(f'[core]\n    no_scm = true\n[cache]\n    type = "{cache_type}"\n')
    (folder / "dvc.yaml").write_text("stages:\n  make:\n    cmd: mv made out\n    outs:\n      - out\n")
    repo.close()
    return Repo(str(folder))


@pytest.mark.parametrize("cache_type", [None, "hardlink", "symlink"])
def test_dvc_keeps_a_local_base_and_leaves_its_folder_alone(
    cache_type: str | None, base_copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "project").mkdir()
    os.chdir(tmp_path / "project")
    before = looks(base_copy)
    content = (base_copy / "model.safetensors").read_bytes()
    with project(tmp_path / "project", cache_type) as repo:
        delivery.from_local(base_copy, Path("made"), ignore)
        repo.reproduce()
        assert repo.status() == {}
        assert (Path("out") / "model.safetensors").read_bytes() == content
        shutil.rmtree("out")
        repo.checkout()
        assert repo.status() == {}
        assert (Path("out") / "model.safetensors").read_bytes() == content
    assert looks(base_copy) == before
    assert not any(path.resolve().is_relative_to(base_copy) for path in Path("out").iterdir())


def test_a_copy_that_does_not_fit_on_the_disk_is_not_begun(base_copy: Path, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with (base_copy / "model.safetensors").open("ab") as file:
        file.truncate(free + (1 << 40))  # a hole, which takes no disk
    with pytest.raises(OSError, match=r"out: [\d,]+ bytes are to be copied to it, and it has [\d,]+ free"):
        delivery.from_local(base_copy, tmp_path / "out", ignore, copy=True)
    assert list((tmp_path / "out").iterdir()) == []


# From the hub


@contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch, **faults: Any) -> Iterator[Requests]:
    """A hub with `folder` as the model wronai/tiny, which HF_ENDPOINT points to; gives the log of requests."""
    log: Requests = []
    large = [path.name for path in folder.glob("*.safetensors")]
    refusals = faults.pop("refusals", {})
    with hub.serve(folder, "wronai/tiny", COMMIT, refusals, large=large, log=log, **faults) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield log


def from_hub(
    folder: Path, name: str = "wronai/tiny", revision: str = COMMIT, fits: Callable[[Path], Any] = ignore
) -> Path:
    said: list[str] = []
    delivery.from_hub(name, revision, folder / "downloads", folder / "out", said.append, fits, QUICK)
    return folder / "out"


def asked(log: Requests) -> set[str]:
    """The names of the files whose bytes were asked for."""
    return {path.rpartition("/")[2] for _, path, _ in log if "/resolve/" in path}


def test_of_a_hub_base_only_its_files_come_and_come_once(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(sharded, monkeypatch) as log:
        out = from_hub(tmp_path, fits=base.outline)
        assert asked(log) == set(wanted(sharded))
        base.check(out)
        assert sorted(path.name for path in out.iterdir()) == wanted(sharded)
        assert all((out / name).read_bytes() == (sharded / name).read_bytes() for name in wanted(sharded))
        count = len(log)
        shutil.rmtree(out)
        from_hub(tmp_path)
        assert len(log) == count


def test_a_hub_base_is_on_the_disk_once(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(sharded, monkeypatch):
        out = from_hub(tmp_path)
    assert set(inodes(out).values()) <= set(inodes(tmp_path / "downloads").values())


def test_with_a_hard_linked_cache_dvc_has_it_once_too(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(base_folder, monkeypatch):
        from_hub(tmp_path).rename("made")
    with project(tmp_path, "hardlink") as repo:
        repo.reproduce()
        assert repo.status() == {}
    assert set(inodes(Path("out")).values()) <= set(inodes(tmp_path / "downloads").values())
    assert from_hub(tmp_path).joinpath("model.safetensors").stat().st_nlink >= 3


def test_where_no_link_is_possible_it_is_copied(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    with served(base_folder, monkeypatch):
        out = from_hub(tmp_path)
    assert not set(inodes(out).values()) & set(inodes(tmp_path / "downloads").values())
    base.check(out)


def test_what_the_disk_refuses_is_not_answered_with_a_copy(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    with served(base_folder, monkeypatch), pytest.raises(OSError, match="No space left on device"):
        from_hub(tmp_path)


def test_a_base_that_does_not_fit_is_refused_before_its_weights_come(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fits(folder: Path) -> None:
        base.check_targets(base.outline(folder), ["query"])

    with served(sharded, monkeypatch) as log:
        with pytest.raises(ValueError, match="has no linear layer query"):
            from_hub(tmp_path, fits=fits)
        assert not any(name.endswith(".safetensors") for name in asked(log))


def test_a_disk_without_room_is_told_before_the_first_byte(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(sharded, monkeypatch) as log:
        repository = downloads.Repository("model", "wronai/tiny", COMMIT, "model")
        downloads.list_hub(repository, tmp_path / "downloads", ignore)
        (kept,) = (tmp_path / "downloads").glob("*.json")
        listing = json.loads(kept.read_text())
        next(file for file in listing["files"] if file["name"] == shards(sharded)[0])["bytes"] = 10**18
        kept.write_text(json.dumps(listing))
        says = rf"model: wronai/tiny at {COMMIT}: 1,000,[\d,]+ bytes are still to come, and .* has [\d,]+ free"
        with pytest.raises(OSError, match=says):
            from_hub(tmp_path)
        assert asked(log) == set()


@pytest.mark.parametrize("revision", ["main", "v0.1", "refs/pr/1", COMMIT[:8]])
def test_a_revision_that_may_move_is_refused_with_its_commit(
    revision: str, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = dict.fromkeys(["main", "v0.1", "refs/pr/1", COMMIT[:8]], COMMIT)
    with served(sharded, monkeypatch, names=names) as log:
        with pytest.raises(ValueError) as raised:
            from_hub(tmp_path, revision=revision)
        assert asked(log) == set()
    assert str(raised.value) == (
        f"model.revision: {revision!r} is a branch, a tag or a short hash of wronai/tiny, which may come to mean "
        f"another commit; pin the one that it is now: revision: {COMMIT}"
    )


@pytest.mark.parametrize(
    ("wrong", "kind", "reason"),
    [
        ({"revision": "f" * 40}, ValueError, f"no such commit in the repository; main is at {COMMIT}"),
        ({"revision": "nic"}, ValueError, f"no such revision in the repository; main is at {COMMIT}"),
        ({"name": "wronai/nic"}, ValueError, "no such model repository, or a private one that HF_TOKEN does not open"),
        ({"name": "wronai/closed"}, ValueError, downloads.GATED),
        ({"name": "wronai/broken"}, OSError, "HTTP 501 (attempt 3 of 3)"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    wrong: dict[str, Any],
    kind: type[Exception],
    reason: str,
    sharded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals = {"wronai/closed": (403, "GatedRepo"), "wronai/broken": (501, "")}
    with served(sharded, monkeypatch, refusals=refusals), pytest.raises(kind) as raised:
        from_hub(tmp_path, **wrong)
    name, revision = wrong.get("name", "wronai/tiny"), wrong.get("revision", COMMIT)
    assert str(raised.value) == f"model: {name} at {revision}: {reason}"


def test_a_gated_base_comes_with_the_right_token_alone(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"model: wronai/tiny at {COMMIT}: "
    gated, tokens_ = [path.name for path in base_folder.iterdir()], ["hf_right", "hf_other"]
    with served(base_folder, monkeypatch, gated=gated, tokens=tokens_):
        for token, says in (
            (None, f"{where}config.json: {downloads.GATED}"),
            ("hf_other", f"{where}config.json: {downloads.GATED}"),
            ("hf_wrong", f"{where}config.json: {downloads.WRONG_TOKEN}"),
        ):
            if token:
                monkeypatch.setenv("HF_TOKEN", token)
            with pytest.raises(ValueError) as raised:
                from_hub(tmp_path)
            assert str(raised.value).splitlines()[0] == says
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        base.check(from_hub(tmp_path))


def test_a_wrong_token_is_told_before_any_file_is_asked_for(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with served(base_folder, monkeypatch, tokens=["hf_right"]) as log, pytest.raises(ValueError) as raised:
        from_hub(tmp_path)
    assert str(raised.value) == f"model: wronai/tiny at {COMMIT}: {downloads.WRONG_TOKEN}"
    assert asked(log) == set()


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("model-00001-of-*.safetensors", r"names model-00001-of-\d+\.safetensors, which it lacks"),
        ("*.safetensors", r"no \*\.safetensors \(there is pytorch_model\.bin\); only weights in safetensors"),
        ("*.index.json", r"neither model\.safetensors nor .*; there is consolidated\.safetensors, model-00001"),
    ],
)
def test_a_repository_that_lacks_weights_is_refused(
    lost: str, says: str, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "repository"))
    for path in folder.glob(lost):
        path.unlink()
    with served(folder, monkeypatch) as log, pytest.raises(FileNotFoundError, match=says):
        from_hub(tmp_path)
    assert not any(name.endswith(".safetensors") for name in asked(log))


def test_wrong_bytes_of_a_shard_are_refused(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = shards(sharded)[0]
    content = (sharded / name).read_bytes()
    with (
        served(sharded, monkeypatch, instead={name: content[:-1] + b"!"}),
        pytest.raises(ValueError, match=rf"{name}: has the sha256 \w+, expected \w+$"),
    ):
        from_hub(tmp_path)


def test_what_was_cut_off_is_gone_on_with_by_the_next_run(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = shards(sharded)[0]
    with served(sharded, monkeypatch, cuts={name: [1000, 0, 0]}) as log:
        with pytest.raises(OSError, match=r"\(attempt 3 of 3\)"):
            from_hub(tmp_path)
        log.clear()
        base.check(from_hub(tmp_path))
        assert asked(log) == {name}
        assert {headers.get("Range") for _, path, headers in log if "/lfs/" in path} == {"bytes=1000-"}


KILLED = """
import sys
from pathlib import Path
from wronai import downloads
repository = downloads.Repository("model", "wronai/tiny", sys.argv[1], "model")
files = downloads.list_hub(repository, Path("downloads"), print).files
downloads.fetch_files(repository, [file for file in files if file.name == sys.argv[2]], Path("downloads"), print)
"""


def test_a_killed_download_is_gone_on_with(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = shards(sharded)[0]
    monkeypatch.setenv("PYTHONPATH", str(Path(delivery.__file__).parent.parent))
    with served(sharded, monkeypatch, stalls={name: 5000}):
        program = subprocess.Popen([sys.executable, "-c", KILLED, COMMIT, name], cwd=tmp_path)
        try:
            until = time.monotonic() + 60
            while not any(path.stat().st_size == 5000 for path in Path("downloads").glob("*.partial")):
                assert time.monotonic() < until and program.poll() is None
                time.sleep(0.02)
        finally:
            program.send_signal(signal.SIGKILL)
            program.wait()
    with served(sharded, monkeypatch) as log:
        base.check(from_hub(tmp_path))
        assert [headers.get("Range") for _, path, headers in log if path.endswith(f"/{name}")] == ["bytes=5000-"]


def test_a_download_is_whole_and_writable_by_its_owner(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(base_folder, monkeypatch):
        out = from_hub(tmp_path)
    assert all(path.stat().st_mode & stat.S_IWUSR for path in out.iterdir())
    assert AutoModelForCausalLM.from_pretrained(out).config.model_type == "mistral"
