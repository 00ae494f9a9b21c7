import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from wronai import shards

TENSORS = {
    "model.layers.10.weight": torch.arange(60.0).reshape(20, 3),
    "model.layers.2.weight": torch.ones(4, 4),
    "model.ż.weight": torch.zeros(5),
    "lm_head.weight": torch.full((7, 3), 2.0),
}
SPECS = {name: shards.Spec(value.dtype, tuple(value.shape)) for name, value in TENSORS.items()}


def write(file: Path, told: Any = tiny.ignore) -> None:
    shards.write(file, SPECS, lambda name: TENSORS[name].split(3), told)


def test_a_shard_has_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    write(tmp_path / "ours")
    save_file(TENSORS, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_every_byte_that_is_written_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    write(tmp_path / "ours", lambda count, name: told.append((count, name)))
    assert sum(count for count, _ in told) == sum(spec.bytes for spec in SPECS.values())
    assert {name for _, name in told} == set(TENSORS)


def test_a_shard_that_was_not_finished_does_not_have_its_name(tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "ours", fail)
    assert [path.name for path in tmp_path.iterdir()] == [f"ours{shards.UNFINISHED}"]
    write(tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_tensor_that_is_not_given_whole_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"lm_head\.weight: 72 of 84 bytes were not given"):
        shards.write(tmp_path / "ours", SPECS, lambda name: [TENSORS[name][:1]], tiny.ignore)
    assert not (tmp_path / "ours").exists()


def test_layers_are_cut_into_shards_in_the_order_of_their_numbers() -> None:
    assert shards.plan(SPECS, 10_000) == {shards.WHOLE: sorted(SPECS, key=shards._natural)}
    cut = shards.plan(SPECS, 100)
    assert list(cut.values()) == [
        ["lm_head.weight"],
        ["model.layers.10.weight"],  # longer than a shard may be, so alone
        ["model.layers.2.weight", "model.ż.weight"],
    ]
    assert next(iter(cut)) == "model-00001-of-00003.safetensors"


def folder_of_two(folder: Path) -> Path:
    names = list(TENSORS)
    files = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, held in files.items():
        save_file({name: TENSORS[name] for name in held}, folder / file, {"format": "pt"})
    shards.write_index(folder, files, SPECS, 1)
    return folder


def test_tensors_are_found_in_whichever_shard_holds_them(tmp_path: Path) -> None:
    opened = shards.Shards(folder_of_two(tmp_path))
    assert len(opened) == len(TENSORS)
    for name, value in TENSORS.items():
        assert torch.equal(opened[name], value)
        assert opened.height(name) == len(value)
    rows = torch.tensor([6, 0, 6])
    assert torch.equal(opened.take("lm_head.weight", rows), TENSORS["lm_head.weight"][rows])


def test_reading_a_tensor_costs_no_memory_of_its_own(tmp_path: Path) -> None:
    def anonymous() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    size = 200_000_000
    torch.zeros(size // 4).numpy().tofile(tmp_path / "raw")
    with (tmp_path / shards.WHOLE).open("wb") as out:
        header = json.dumps({"large": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
        out.write(len(header).to_bytes(8, "little") + header + (tmp_path / "raw").read_bytes())
    opened = shards.Shards(tmp_path)
    before = anonymous()
    held = opened["large"]
    assert float(held.sum()) == 0
    assert anonymous() - before < size / 10


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (folder_of_two(tmp_path) / "b.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model\.safetensors\.index\.json names b\.safetensors, which it lacks"
    ):
        shards.Shards(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    file = folder_of_two(tmp_path) / "a.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors: damaged .*; run the stage that makes it"):
        shards.Shards(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": []}'])
def test_a_broken_index_is_one_message(tmp_path: Path, content: str) -> None:
    (folder_of_two(tmp_path) / shards.INDEX).write_text(content)
    with pytest.raises(ValueError, match="is damaged; expected JSON with a weight_map"):
        shards.Shards(tmp_path)


def test_a_folder_without_a_model_says_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors; only weights in safetensors are loaded"):
        shards.Shards(tmp_path)


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tensor model\.norm\.weight, which its architecture needs"):
        shards.Shards(folder_of_two(tmp_path))["model.norm.weight"]


def test_shards_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("Invalid cross-device link")

    (tmp_path / "work").mkdir()
    write(tmp_path / "work" / shards.WHOLE)
    monkeypatch.setattr(os, "link", fail)
    shards.install(tmp_path / "work", [shards.WHOLE], tmp_path / "out")
    assert load_file(tmp_path / "out" / shards.WHOLE).keys() == TENSORS.keys()
