"""Models in safetensors, tensor by tensor: read from the mapped file, written as they come.

Reading costs no memory of its own, since the pages belong to the file. A shard is written behind its header, which
shapes and types determine, so that a writer never holds more than one piece of one tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNFINISHED = ".unfinished"  # the suffix of a shard that is being written
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # in a safetensors header


class Shards:
    """The tensors of the model in a folder, by name, each read when it is asked for and backed by its file.

    Raises what `weight_files` raises, and ValueError for a file that is damaged.
    """

    def __init__(self, folder: Path, file_name: str | None = None) -> None:
        """Open the model in `folder`, or the tensors of its file `file_name` alone."""
        self._folder = folder
        self._opened: dict[str, Any] = {}
        for name in [file_name] if file_name else weight_files_in(folder):
            try:
                opened: Any = safe_open(folder / name, "pt")
            except SafetensorError as error:
                raise ValueError(f"{folder / name}: damaged ({error}); run the stage that makes it") from None
            self._opened |= dict.fromkeys(opened.keys(), opened)

    def __len__(self) -> int:
        return len(self._opened)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file(name).get_tensor(name)  # type: ignore[no-any-return]

    def take(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """The rows of the numbers `rows`, in their order, copied."""
        return self[name][rows]

    def height(self, name: str) -> int:
        """How many rows the tensor has."""
        return int(self._file(name).get_slice(name).get_shape()[0])

    def _file(self, name: str) -> Any:
        if name not in self._opened:
            raise ValueError(f"{self._folder}: no tensor {name}, which its architecture needs")
        return self._opened[name]


def safetensors_in(names: Collection[str], where: object) -> list[str]:
    """The safetensors among `names`, sorted; FileNotFoundError, which begins with `where`, if there are none."""
    if found := sorted(name for name in names if name.endswith(".safetensors")):
        return found
    others = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")))
    there = f" (there is {', '.join(others[:3])})" if others else ""
    raise FileNotFoundError(f"{where}: no *.safetensors{there}; only weights in safetensors are loaded")


def weight_files(names: Collection[str], index: str | None, where: object) -> list[str]:
    """The files among `names` that hold the weights, sorted: those that `index` names (the text of INDEX), or WHOLE.

    Other safetensors beside them are the same weights in another layout. Raises FileNotFoundError or ValueError, which
    begin with `where`, if there are none or not all.
    """
    found = safetensors_in(names, where)
    if index is None:
        if WHOLE not in found:
            raise FileNotFoundError(f"{where}: neither {WHOLE} nor {INDEX}; there is {', '.join(found[:3])}")
        return [WHOLE]
    try:
        named = {str(name) for name in json.loads(index)["weight_map"].values()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{where}: {INDEX} is damaged; expected JSON with a weight_map") from None
    if missing := sorted(named - set(found)):
        raise FileNotFoundError(f"{where}: {INDEX} names {', '.join(missing[:3])}, which it lacks")
    return sorted(named)


def weight_files_in(folder: Path) -> list[str]:
    """The files of `folder` that hold the weights, as `weight_files` tells."""
    index = folder / INDEX
    return weight_files(
        [file.name for file in folder.glob("*") if file.is_file()],
        index.read_text(encoding="utf-8") if index.is_file() else None,
        folder,
    )


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor before it is computed."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How long it is in a file."""
        return self.dtype.itemsize * prod(self.shape)


def plan(specs: Mapping[str, Spec], max_shard_size: int) -> dict[str, list[str]]:
    """The shards of a model, by file name, as transformers' `save_pretrained` would cut and name them.

    It sorts names part by part, numbers by their value, and fills a shard up to `max_shard_size` bytes.
    """
    ordered = dict(sorted(specs.items(), key=lambda item: _natural(item[0])))
    split = split_state_dict_into_shards_factory(
        ordered,
        get_storage_size=lambda spec: spec.bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return dict(split.filename_to_tensors)


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def write(
    file: Path,
    specs: Mapping[str, Spec],
    parts: Callable[[str], Iterable[torch.Tensor]],
    written: Callable[[int, str], None],
) -> str:
    """Write the tensors of `specs` to `file`, whole or not at all, with the very bytes that safetensors would write.

    Returns their sha256.

    `parts` gives a tensor in pieces of consecutive rows; `written` is told the bytes of each piece and the tensor's
    name. The name of `file` stands only for a shard whose every byte is on the disk.
    """
    names = sorted(specs)  # as the library does where all have one type
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # a second key would make the order of keys random
    end = 0
    for name in names:
        start, end = end, end + specs[name].bytes
        described = {"dtype": _NAMES[specs[name].dtype], "shape": specs[name].shape, "data_offsets": (start, end)}
        header[name] = described
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    unfinished = file.with_name(file.name + UNFINISHED)
    with unfinished.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        digest = hashlib.sha256(len(head).to_bytes(8, "little") + head)
        for name in names:
            left = specs[name].bytes
            for part in parts(name):
                piece = part.to(specs[name].dtype).contiguous().cpu().flatten().view(torch.uint8).numpy()
                out.write(piece.data)
                digest.update(piece.data)
                left -= len(piece)
                written(len(piece), name)
            if left:
                raise AssertionError(f"{name}: {left} of {specs[name].bytes} bytes were not given")
        out.flush()
        os.fsync(out.fileno())
    unfinished.replace(file)
    return digest.hexdigest()


def install(work: Path, files: Iterable[str], out: Path) -> None:
    """Put the finished shards of the folder `work` into the folder `out`, in place of any model that it holds.

    They are linked, not copied, where both lie on one file system; `work` keeps them.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("model*.safetensors"), *out.glob(INDEX)):
        old.unlink()
    for name in files:
        try:
            os.link(work / name, out / name)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(work / name, out / name)


def write_index(out: Path, files: Mapping[str, list[str]], specs: Mapping[str, Spec], parameters: int) -> None:
    """Write the index that tells transformers which shard holds which tensor; a model of one file has none."""
    if len(files) == 1:
        return
    index = {
        "metadata": {"total_parameters": parameters, "total_size": sum(spec.bytes for spec in specs.values())},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
