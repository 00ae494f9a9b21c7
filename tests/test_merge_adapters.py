import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

from stages.merge_adapters import merge_adapters
from wronai import base, corpus, params, prompt, tokens


@pytest.fixture
def inputs(
    tmp_path: Path, base_folder: Path, adapter_folder: Path, tokenizer_folder: Path, blocks_folder: Path
) -> dict[str, Path]:
    examples = tmp_path / "train.parquet"
    corpus.write_table(tiny.CONVERSATIONS, corpus.INSTRUCTIONS, examples)
    return {
        "adapter": adapter_folder,
        "base": base_folder,
        "tokenizer_path": tokenizer_folder,
        "blocks": blocks_folder,
        "examples": examples,
    }


def run(inputs: dict[str, Path], out: Path, settings: params.Merge = tiny.MERGE) -> dict[str, Any]:
    return merge_adapters(**inputs, quantization=tiny.FINETUNE.quantization, settings=settings, seed=tiny.SEED, out=out)


def test_it_writes_the_merged_model_and_says_how_near_it_is(
    inputs: dict[str, Path], merged_folder: Path, tmp_path: Path
) -> None:
    metrics = run(inputs, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (merged_folder / "model.safetensors").read_bytes()
    assert metrics["adapter_tensors"] == 30
    assert metrics["parity"]["equal_next_tokens"] == 1
    assert metrics["contract_examples"] == len(tiny.CONVERSATIONS)


def test_no_more_blocks_are_compared_than_the_parameter_says(inputs: dict[str, Path], tmp_path: Path) -> None:
    blocks = tokens.read(inputs["blocks"] / "validation.parquet")
    assert len(blocks) > 1
    metrics = run(inputs, tmp_path / "out", tiny.MERGE.model_copy(update={"parity_blocks": 1}))
    assert metrics["parity"]["positions"] == len(blocks[0]["input_ids"])


def test_a_merge_into_the_original_weights_fails(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"below merge\.min_equal_next_tokens, .* above merge\.max_mean_kl"):
        run(inputs, tmp_path / "out", tiny.MERGE.model_copy(update={"base_weights": "original"}))


def test_a_damaged_adapter_fails(inputs: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(inputs["adapter"], tmp_path / "adapter"))
    (broken / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"damaged .*; run finetune_qlora again"):
        run({**inputs, "adapter": broken}, tmp_path / "out")


def test_a_missing_adapter_names_its_stage(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="finetune_qlora writes it"):
        run({**inputs, "adapter": tmp_path / "none"}, tmp_path / "out")


def test_a_tokenizer_of_another_base_fails(inputs: dict[str, Path], tmp_path: Path) -> None:
    tokens.extend(base.train_tokenizer(tiny.texts()[:9], 600)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="not this base's with tokens added"):
        run({**inputs, "tokenizer_path": tmp_path / "other"}, tmp_path / "out")


def test_a_template_that_is_not_the_formats_fails_the_contract(inputs: dict[str, Path], tmp_path: Path) -> None:
    altered = tokens.load(inputs["tokenizer_path"])
    altered.chat_template = prompt.CHAT_TEMPLATE.replace("'<answer>'", "'<answer> '")
    altered.save_pretrained(tmp_path / "altered")
    with pytest.raises(ValueError, match="its chat template gives other token ids than training"):
        run({**inputs, "tokenizer_path": tmp_path / "altered"}, tmp_path / "out")
