import gc
import json
import weakref
from pathlib import Path
from typing import Any

import decoders
import pytest
import tiny
import torch
from peft import PeftModel

from wronai import attention, base, lora, merging, qlora, shards, streamed, tokens, training


@pytest.fixture
def blocks(blocks_folder: Path) -> Any:
    return tokens.read(blocks_folder / "validation.parquet")


@pytest.fixture
def plain(blocks: Any) -> list[dict[str, list[int]]]:
    """The blocks with another token in place of the ten, which a base alone does not know."""
    return [{**block, "input_ids": [id_ if id_ < 600 else 5 for id_ in block["input_ids"]]} for block in blocks]


@torch.no_grad()
def whole(model: Any, block: Any) -> torch.Tensor:
    """The logits of the model that is whole in memory, with the attention of training."""
    batch = training.collate([block], 0)
    return model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0].float()


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_a_streamed_model_gives_the_logits_of_the_whole_one(
    family: str, base_folder: Path, plain: Any, tmp_path: Path
) -> None:
    folder = decoders.make_base(family, base_folder, tmp_path)
    model = base.load(folder, torch.float32).eval()
    model.set_attn_implementation(attention.NAME)
    decoder = streamed.Decoder(folder, shards.Shards(folder), torch.float32)
    for block, hidden in zip(plain, decoder.hidden(plain, "streamed"), strict=True):
        assert torch.equal(decoder.logits(hidden), whole(model, block))


@pytest.mark.parametrize(
    ("family", "changes", "bits"),
    [
        ("mistral", {}, {}),
        ("mistral", {}, {"bnb_4bit_compute_dtype": "bfloat16"}),
        ("mistral", {}, {"load_in_4bit": False}),
        ("mistral", {}, {"load_in_4bit": False, "load_in_8bit": True}),
        ("mistral", {"use_dora": True}, {}),
        ("mistral", {"use_dora": True}, {"load_in_4bit": False, "load_in_8bit": True}),
        ("llama", {"use_rslora": True}, {}),
        ("qwen2", {}, {}),
        ("qwen3", {}, {}),
    ],
)
def test_a_streamed_adapter_says_what_the_one_that_was_trained_says(
    base_folder: Path, blocks: Any, tmp_path: Path, family: str, changes: dict[str, Any], bits: dict[str, Any]
) -> None:
    quantization = tiny.FINETUNE.quantization.model_copy(update=bits)
    folder = decoders.make_base(family, base_folder, tmp_path / "base")
    tokenizer = tokens.extend(tokens.load(folder))
    adapter = decoders.make_adapter(folder, tokenizer, quantization, tmp_path / "adapter", **changes)
    live = PeftModel.from_pretrained(qlora.load_quantized(folder, tokenizer, quantization, tiny.SEED), adapter)
    live.base_model.model.set_attn_implementation(attention.NAME)
    lora.install(live)
    decoder = merging.trained(folder, adapter, tokenizer, quantization)
    for block, hidden in zip(blocks, decoder.hidden(blocks, "streamed"), strict=True):
        torch.testing.assert_close(decoder.logits(hidden), whole(live, block), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [2, 6])
def test_a_layer_is_gone_before_the_next_is_made(
    layers: int, base_folder: Path, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = decoders.make_base("mistral", base_folder, tmp_path, layers=layers)
    decoder = streamed.Decoder(folder, shards.Shards(folder), torch.float32)
    made: list[Any] = []
    layer = decoder.layer

    def watched(index: int) -> Any:
        assert not any(before() is not None for before in made)
        new = layer(index)
        made.extend(weakref.ref(value) for value in new.parameters())
        return new

    monkeypatch.setattr(decoder, "layer", watched)
    decoder.hidden(plain, "streamed")
    assert len(made) == layers * 9  # seven matrices and two norms


def test_a_layer_with_lora_is_gone_before_the_next_is_made(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = merging.trained(base_folder, adapter_folder, tokenizer, tiny.FINETUNE.quantization)
    made: list[weakref.ref[Any]] = []
    layer = live.layer

    def watched(index: int) -> Any:
        assert not [value for value in made if value() is not None], "PEFT's layers are cycles of references"
        new = layer(index)
        made.extend(weakref.ref(module) for module in new.modules())
        return new

    monkeypatch.setattr(live, "layer", watched)
    gc.disable()
    try:
        live.hidden(blocks, "streamed")
    finally:
        gc.enable()
    assert len(made) > 2 * 14  # of two layers: seven matrices and as many LoRA


def test_a_family_that_is_built_otherwise_is_refused(base_copy: Path) -> None:
    config = json.loads((base_copy / "config.json").read_text())
    (base_copy / "config.json").write_text(json.dumps(config | {"model_type": "gemma"}))
    with pytest.raises(ValueError, match="model_type is 'gemma'; what runs layer by layer is llama, mistral"):
        streamed.Decoder(base_copy, shards.Shards(base_copy), torch.float32)
