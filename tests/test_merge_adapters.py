import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

from stages.merge_adapters import merge_adapters
from wronai import corpus, params, pretraining, prompt, shards, tokens


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
    return merge_adapters(
        **inputs,
        quantization=tiny.FINETUNE.quantization,
        settings=settings,
        checkpoints=out.with_name("checkpoints"),
        out=out,
    )


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


def test_the_original_weights_are_held_to_the_adapter_on_them_and_their_distance_is_told(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    metrics = run(inputs, tmp_path / "out", tiny.MERGE.model_copy(update={"base_weights": "original"}))
    assert metrics["parity"]["mean_kl"] > tiny.MERGE.max_mean_kl
    assert metrics["parity_on_original"]["equal_next_tokens"] == 1
    assert metrics["parity_on_original"]["max_logit_difference"] < 1e-4


def test_auto_takes_the_weights_of_the_lower_loss_and_records_both(inputs: dict[str, Path], tmp_path: Path) -> None:
    metrics = run(inputs, tmp_path / "out", tiny.MERGE.model_copy(update={"base_weights": "auto"}))
    measured = metrics["base_weights"]
    losses = {name: measured[name]["validation_loss"] for name in ("dequantized", "original")}
    assert measured["chosen"] == min(losses, key=losses.__getitem__)
    run(inputs, tmp_path / "chosen", tiny.MERGE.model_copy(update={"base_weights": measured["chosen"]}))
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "chosen/model.safetensors").read_bytes()
    assert ("parity_on_original" in metrics) == (measured["chosen"] == "original")


def test_a_parity_below_the_threshold_fails(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter on 4 bits says: .*mean KL .* above merge\.max_mean_kl, 0\.0$"):
        run(inputs, tmp_path / "out", tiny.MERGE.model_copy(update={"max_mean_kl": 0.0, "dtype": "bfloat16"}))


def test_a_merge_whose_parity_failed_is_not_written_twice_and_leaves_nothing_once_it_passes(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = tiny.MERGE.model_copy(update={"max_mean_kl": 0.0, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match="mean KL"):
        run(inputs, tmp_path / "out", strict)
    written = (tmp_path / "out/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out")  # as DVC does before it runs a stage
    monkeypatch.delattr(shards, "write")
    run(inputs, tmp_path / "out", strict.model_copy(update={"max_mean_kl": 1.0, "min_equal_next_tokens": 0.5}))
    assert (tmp_path / "out/model.safetensors").read_bytes() == written
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))


def test_a_damaged_adapter_fails(inputs: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(inputs["adapter"], tmp_path / "adapter"))
    (broken / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"damaged .*; run finetune_qlora again"):
        run({**inputs, "adapter": broken}, tmp_path / "out")


def test_a_missing_adapter_names_its_stage(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="finetune_qlora writes it"):
        run({**inputs, "adapter": tmp_path / "none"}, tmp_path / "out")


def test_a_tokenizer_of_another_base_fails(inputs: dict[str, Path], tmp_path: Path) -> None:
    tokens.extend(pretraining.train_tokenizer(tiny.texts()[:9], 600)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="not this base's with tokens added"):
        run({**inputs, "tokenizer_path": tmp_path / "other"}, tmp_path / "out")


def test_a_template_that_is_not_the_formats_fails_the_contract(inputs: dict[str, Path], tmp_path: Path) -> None:
    altered = tokens.load(inputs["tokenizer_path"])
    altered.chat_template = prompt.CHAT_TEMPLATE.replace("'<answer>'", "'<answer> '")
    altered.save_pretrained(tmp_path / "altered")
    with pytest.raises(ValueError, match="its chat template gives other token ids than training"):
        run({**inputs, "tokenizer_path": tmp_path / "altered"}, tmp_path / "out")
