"""Bring a base model from elsewhere to its folder: from a folder of this machine or from a commit on the hub.

Only weights in safetensors and the files in `base.FILES` come along: nothing that runs code. A base has gigabytes, so
its files are linked where that is safe.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wronai import base, shards
from wronai.downloads import (
    PATIENT,
    HubFile,
    Patience,
    Repository,
    Say,
    check_room,
    fetch_files,
    list_hub,
)

UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)  # what a file system refuses


def from_local(path: Path, out: Path, say: Say, copy: bool | None = None) -> None:
    """Put the base in the folder `path` to the folder `out`, as symbolic links to its files, or as copies if `copy`.

    Not as hard links, and not even as symbolic ones where DVC's cache is hard-linked, unless `copy` says otherwise:
    such a cache takes over the file that it finds behind the link, and makes it read-only.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"model.path: {path}: no such folder; expected one that holds a base model")
    names = [file.name for file in path.iterdir() if file.is_file()]
    index = (path / shards.INDEX).read_text(encoding="utf-8") if shards.INDEX in names else None
    wanted = [
        *(name for name in base.FILES if name in names),
        *shards.weight_files(names, index, f"model.path: {path}"),
    ]
    files = {name: (path / name).resolve() for name in wanted}
    out.mkdir(parents=True, exist_ok=True)
    if hard_linked_cache() if copy is None else copy:
        say(f"{path}: copied, since with cache.type hardlink DVC would take its files over")
        _copy(files, out)
    else:
        for name, file in files.items():
            (out / name).unlink(missing_ok=True)
            (out / name).symlink_to(file)


def from_hub(
    name: str,
    revision: str,
    downloads: Path,
    out: Path,
    say: Say,
    fits: Callable[[Path], Any],
    patience: Patience = PATIENT,
) -> None:
    """Put the commit `revision` of the hub's repository `name` to the folder `out`; it rests in `downloads`.

    There it lies by the digests that it was checked against, and a second run fetches nothing. `fits` sees `out` while
    the weights are still missing, and may refuse what it sees. Raises ValueError or OSError, with one line each, for
    what the hub refuses or fails to send, for what is no base, and, before the first byte comes, for a full disk.
    """
    repository = Repository("model", name, revision, "model")
    there = {file.name: file for file in list_hub(repository, downloads, say, patience).files if "/" not in file.name}
    small = [there[name] for name in base.FILES if name in there]
    check_room(str(repository), [*small, *(there[name] for name in _likely(there, repository))], downloads)
    paths = fetch_files(repository, small, downloads, say, patience=patience)
    placed = {file.name: path for file, path in zip(small, paths, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    _link(placed, out, say)
    fits(out)
    index = placed[shards.INDEX].read_text(encoding="utf-8") if shards.INDEX in placed else None
    weights = [there[name] for name in shards.weight_files(there, index, repository)]
    paths = fetch_files(repository, weights, downloads, say, patience=patience)
    _link({file.name: path for file, path in zip(weights, paths, strict=True)}, out, say)


def _likely(there: Mapping[str, HubFile], repository: Repository) -> list[str]:
    """The files of weights by the look of their names, while the index that says which they are is not here."""
    if shards.INDEX not in there:
        return shards.weight_files(there, None, repository)
    return [name for name in shards.safetensors_in(there, repository) if name.startswith("model-")]


def hard_linked_cache() -> bool:
    """Whether DVC would make the outs of this folder's project the same files as those of its cache."""
    from dvc.config import Config

    types = Config.from_cwd()["cache"].get("type") or ["reflink"]
    return bool(types[0] == "hardlink")  # DVC goes by the first alone where it takes an out over


def _link(files: Mapping[str, Path], out: Path, say: Say) -> None:
    """Hard links to `files` in `out` by their names; copies if they lie on another file system or it has none."""
    try:
        for name, file in files.items():
            (out / name).unlink(missing_ok=True)
            os.link(file, out / name)
    except OSError as error:
        if error.errno not in UNLINKABLE:
            raise
        say(f"{out}: copied, since it cannot be linked ({os.strerror(error.errno)})")
        _copy(files, out)


def _copy(files: Mapping[str, Path], out: Path) -> None:
    size, free = sum(file.stat().st_size for file in files.values()), shutil.disk_usage(out).free
    if size > free:
        raise OSError(f"{out}: {size:,} bytes are to be copied to it, and it has {free:,} free")
    for name, file in files.items():
        (out / name).unlink(missing_ok=True)
        shutil.copyfile(file, out / name)
