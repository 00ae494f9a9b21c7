"""A pickle runs code as it is read: weights come from safetensors alone, and the rest of a checkpoint is no code."""

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from wronai import base, merging, qlora, shards, tokens, training


class Evil:
    """Writes the file `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._mark}'",)


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[Path], Path]:
    """Puts a pickle that would run code to a path; the mark that it would leave is `plant`'s answer."""

    def put(path: Path) -> Path:
        mark = tmp_path / "it-ran"
        torch.save({"weight": Evil(mark)}, path)
        return mark

    return put


def test_the_pickle_of_these_tests_runs_code_where_it_is_read(plant: Callable[[Path], Path], tmp_path: Path) -> None:
    mark = plant(tmp_path / "pytorch_model.bin")
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "model.pkl"])
def test_a_model_in_pickles_is_refused_by_name(base_copy: Path, plant: Callable[[Path], Path], name: str) -> None:
    (base_copy / "model.safetensors").unlink()
    mark = plant(base_copy / name)
    says = rf"no \*\.safetensors \(there is {name}\); only weights in safetensors are loaded"
    for read in (lambda: base.load(base_copy, torch.float32), lambda: shards.Shards(base_copy)):
        with pytest.raises(FileNotFoundError, match=says):
            read()
    assert not mark.exists()


def test_a_pickle_beside_the_weights_is_not_opened(
    base_copy: Path, tokenizer: Any, adapter_folder: Path, plant: Callable[[Path], Path], tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl"):
        mark = plant(base_copy / name)
    plant(adapter / "adapter_model.bin")
    base.check(base_copy)
    base.load(base_copy, torch.float32)
    tokens.load(base_copy)
    qlora.load_quantized(base_copy, tokenizer, tiny.FINETUNE.quantization, tiny.SEED)
    assert len(merging.Base(base_copy, adapter, tokenizer).adapter) > 0
    assert not mark.exists()


def test_an_adapter_in_a_pickle_is_refused_by_name(
    adapter_folder: Path, plant: Callable[[Path], Path], tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (adapter / "adapter_model.safetensors").unlink()
    mark = plant(adapter / "adapter_model.bin")
    says = r"no adapter_model\.safetensors \(adapter_model\.bin is a pickle, and not loaded\); finetune_qlora writes it"
    with pytest.raises(FileNotFoundError, match=says):
        qlora.adapter_tensors(adapter)
    assert not mark.exists()


def test_a_pickle_that_is_named_safetensors_is_no_weight(base_copy: Path, plant: Callable[[Path], Path]) -> None:
    mark = plant(base_copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        base.check(base_copy)
    with pytest.raises(ValueError, match="not a causal language model"):
        base.load(base_copy, torch.float32)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    base_folder: Path, tokenizer: Any, blocks_folder: Path, plant: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    blocks = tokens.read(blocks_folder / "train.parquet")
    work = tmp_path / "work"

    def train(steps: int) -> None:
        settings = {
            "max_steps": steps,
            "per_device_train_batch_size": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "use_cpu": True,
        }
        model = base.load(base_folder, torch.float32)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        training.train(model, blocks, None, [0, 1, 2], settings, work, pad_token_id=0, what="t", log=tiny.ignore)

    train(2)
    mark = plant(work / "checkpoint-2" / name)
    sums = work / "checkpoint-2" / training.COMPLETE  # whoever plants code can also make the sums fit
    lines = [line for line in sums.read_text().splitlines() if not line.endswith(f" {name}")]
    digest = hashlib.sha256((work / "checkpoint-2" / name).read_bytes()).hexdigest()
    sums.write_text("\n".join([*lines, f"{digest}  {name}"]) + "\n")
    with pytest.raises(ValueError, match=r"checkpoint-2: a state of .* holds more than tensors and numbers; nothing"):
        train(3)
    assert not mark.exists()
    shutil.rmtree(work / "checkpoint-2")
    train(3)


def test_what_a_stage_leaves_holds_no_pickle(base_folder: Path, adapter_folder: Path, merged_folder: Path) -> None:
    for folder in (base_folder, adapter_folder, merged_folder):
        for path in folder.iterdir():
            head = path.read_bytes()[:2]
            assert head[:1] != pickle.PROTO and head != b"PK", path  # torch.save writes a zip file of pickles
