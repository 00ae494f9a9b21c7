import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wronai import base, merging, params, prompt, qlora, tokens


@pytest.fixture
def live(base_folder: Path, tokenizer: Any, adapter_folder: Path, pinned: None) -> Any:
    """The adapter on the base in 4 bits."""
    model = qlora.load_quantized(base_folder, tokenizer, tiny.FINETUNE.quantization, tiny.SEED)
    return qlora.load_adapter(model, adapter_folder)


def merge(
    base_folder: Path, adapter: Path, tokenizer: Any, out: Path, settings: params.Merge = tiny.MERGE
) -> dict[str, int]:
    return merging.merge(base_folder, adapter, tokenizer, tiny.FINETUNE.quantization, tiny.SEED, settings, out)


def test_the_merged_model_says_what_the_adapter_on_4_bits_says(
    live: Any, merged_folder: Path, blocks_folder: Path, tokenizer: Any
) -> None:
    blocks = tokens.read(blocks_folder / "validation.parquet")
    found = merging.parity(live, base.load(merged_folder, torch.float32), blocks, tokenizer.pad_token_id)
    assert found["equal_next_tokens"] == 1
    assert found["max_logit_difference"] < 1e-4
    assert abs(found["mean_kl"]) < 1e-7
    assert found["positions"] == sum(len(row["input_ids"]) for row in blocks)
    merging.check_parity(found, tiny.MERGE)


def test_a_merge_into_the_original_weights_fails_parity_and_names_the_keys(
    live: Any, base_folder: Path, adapter_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path
) -> None:
    original = tiny.MERGE.model_copy(update={"base_weights": "original"})
    merge(base_folder, adapter_folder, tokenizer, tmp_path, original)
    blocks = tokens.read(blocks_folder / "validation.parquet")
    found = merging.parity(live, base.load(tmp_path, torch.float32), blocks, tokenizer.pad_token_id)
    with pytest.raises(ValueError, match=r"equal next tokens 0\.\d+, below merge\.min_equal_next_tokens, 0\.99"):
        merging.check_parity(found, tiny.MERGE)
    with pytest.raises(ValueError, match=r"mean KL .* nats, above merge\.max_mean_kl, 0\.0001"):
        merging.check_parity(found, tiny.MERGE)


def test_parity_measures_what_it_says() -> None:
    class Says:
        """A model whose logits are given; nothing else of it is asked."""

        device = torch.device("cpu")

        def __init__(self, logits: list[list[float]]) -> None:
            self.logits = torch.tensor([logits])

        def __call__(self, **_: Any) -> Any:
            return self

    block = {"input_ids": [1, 2], "labels": [1, 2], "position_ids": [0, 1]}
    half, skewed = [0.0, 0.0], [0.0, float(torch.tensor(3.0).log())]  # 1/2, 1/2 and 1/4, 3/4
    found = merging.parity(Says([skewed, half]), Says([half, half]), [block], 0)
    assert found["mean_kl"] == pytest.approx(0.130812 / 2, abs=1e-5)
    assert found["max_logit_difference"] == pytest.approx(1.098612, abs=1e-5)
    assert found["equal_next_tokens"] == 0.5
    assert found["positions"] == 2


@pytest.mark.parametrize(
    ("measured", "named"),
    [
        ({"equal_next_tokens": 0.98, "mean_kl": 0.0}, ["min_equal_next_tokens"]),
        ({"equal_next_tokens": 1.0, "mean_kl": 1e-3}, ["max_mean_kl"]),
        ({"equal_next_tokens": 0.5, "mean_kl": 1e-3}, ["min_equal_next_tokens", "max_mean_kl"]),
        ({"equal_next_tokens": 1.0, "mean_kl": float("nan")}, ["max_mean_kl"]),
    ],
)
def test_a_parity_below_a_threshold_names_each_that_is_missed(measured: dict[str, float], named: list[str]) -> None:
    with pytest.raises(ValueError, match="does not say what the adapter on 4 bits says") as found:
        merging.check_parity(measured, tiny.MERGE)
    assert [key for key in ("min_equal_next_tokens", "max_mean_kl") if f"merge.{key}" in str(found.value)] == named


def test_merging_changes_the_projections_and_the_ten_rows_and_nothing_else(
    merged_folder: Path, base_folder: Path, tokenizer: Any
) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (base_folder, merged_folder))
    assert set(before) == set(after)
    added = tokens.added_ids(tokenizer)
    fresh = base.load(base_folder, torch.float32)
    qlora.add_rows(fresh, tokenizer, base_folder, tiny.SEED)
    untrained = dict(fresh.named_parameters())
    for name, value in after.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(value[:600], before[name]), name
            assert bool((value[added] != untrained[name][added]).any(dim=1).all()), name
        elif name.split(".")[-2] in params.TARGET_MODULES:
            assert not torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, before[name]), name


def test_a_merged_projection_is_the_dequantized_base_and_the_delta(live: Any, merged_folder: Path) -> None:
    after = load_file(merged_folder / "model.safetensors")
    layer = live.base_model.model.model.layers[1].mlp.down_proj
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    dense = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    expected = dense + (high @ low) * tiny.FINETUNE.lora.lora_alpha / tiny.FINETUNE.lora.r
    torch.testing.assert_close(after["model.layers.1.mlp.down_proj.weight"], expected.detach(), atol=1e-6, rtol=0)


def test_projections_without_lora_are_merged_as_training_saw_them(
    base_folder: Path, tokenizer: Any, tmp_path: Path, blocks_folder: Path
) -> None:
    lora = tiny.FINETUNE.lora.model_copy(update={"target_modules": ["q_proj"]})
    model = qlora.load_quantized(base_folder, tokenizer, tiny.FINETUNE.quantization, tiny.SEED)
    model = qlora.attach(model, tokenizer, tiny.FINETUNE.model_copy(update={"lora": lora})).eval()
    qlora.save(model, tmp_path / "adapter")
    counts = merge(base_folder, tmp_path / "adapter", tokenizer, tmp_path / "merged")
    assert counts == {"tensors_written": 2 * 7 + 2, "adapter_tensors": 2 * 2 + 2}
    blocks = tokens.read(blocks_folder / "validation.parquet")
    found = merging.parity(model, base.load(tmp_path / "merged", torch.float32), blocks, tokenizer.pad_token_id)
    merging.check_parity(found, tiny.MERGE)


def test_every_adapter_tensor_is_consumed(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    counts = merge(base_folder, adapter_folder, tokenizer, tmp_path)
    assert counts["adapter_tensors"] == len(load_file(adapter_folder / "adapter_model.safetensors")) == 2 * 2 * 7 + 2
    assert counts["tensors_written"] == 2 * 7 + 2


def test_a_second_merge_writes_the_same_bytes(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, merged_folder: Path, tmp_path: Path
) -> None:
    merge(base_folder, adapter_folder, tokenizer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in merged_folder.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (merged_folder / path.name).read_bytes(), path.name


def test_the_merged_weights_have_the_type_of_the_parameter(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    merge(base_folder, adapter_folder, tokenizer, tmp_path, tiny.MERGE.model_copy(update={"dtype": "bfloat16"}))
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_the_merged_folder_alone_is_a_model_that_answers_in_the_format(merged_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(merged_folder)
    model = AutoModelForCausalLM.from_pretrained(merged_folder)
    assert type(model).__name__ == "MistralForCausalLM"
    assert not (merged_folder / "adapter_config.json").exists()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Jak się masz?"}],
        register="informal",
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**asked, max_new_tokens=3, do_sample=False)
    # As with Mistral's tokenizer, a part after a special token is decoded with the space that its first word has.
    assert tokenizer.decode(out[0]).startswith("<s><polish><informal><question> Jak się masz?</question><answer>")
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_contract_compares_every_token_of_every_example(merged_folder: Path, tokenizer: Any) -> None:
    counts = merging.check_contract(merged_folder, tiny.CONVERSATIONS, tokenizer)
    sizes = [len(tokens.encode(tokenizer, row["messages"], row["register"])[0]) for row in tiny.CONVERSATIONS]
    assert counts == {"contract_examples": len(tiny.CONVERSATIONS), "contract_tokens": sum(sizes)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'<answer>'", "'<answer> '"),
        ("bos_token + ", ""),
        ("'</polish>' + eos_token", "'</polish>'"),
        ("'<' + register", "'<formal' if 0 else '<informal'"),
    ],
)
def test_an_altered_template_breaks_the_contract(
    merged_folder: Path, tokenizer: Any, tmp_path: Path, old: str, new: str
) -> None:
    altered = Path(shutil.copytree(merged_folder, tmp_path / "merged"))
    served = tokens.load(altered)
    assert old in served.chat_template
    served.chat_template = served.chat_template.replace(old, new)
    served.save_pretrained(altered)
    with pytest.raises(ValueError, match="its chat template gives other token ids than training for tiny/"):
        merging.check_contract(altered, tiny.CONVERSATIONS, tokenizer)


def test_another_tokenizer_breaks_the_contract(merged_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(merged_folder, tmp_path / "merged"))
    other = tokens.extend(base.train_tokenizer(tiny.texts()[:9], 600))
    other.save_pretrained(altered)
    with pytest.raises(ValueError, match="gives other token ids than training"):
        merging.check_contract(altered, tiny.CONVERSATIONS, tokenizer)


def test_end_tokens_that_are_not_supervised_break_the_contract(
    merged_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = tokens.encode

    def padded_with_the_end_token(*arguments: Any) -> tuple[list[int], list[int]]:
        ids, labels = encode(*arguments)
        return ids, [tokens.IGNORED if label == tokenizer.eos_token_id else label for label in labels]

    monkeypatch.setattr(tokens, "encode", padded_with_the_end_token)
    with pytest.raises(ValueError, match="tiny/00: not every end token is supervised"):
        merging.check_contract(merged_folder, tiny.CONVERSATIONS, tokenizer)


def test_examples_that_were_not_trained_on_are_no_part_of_the_contract(merged_folder: Path, tokenizer: Any) -> None:
    forged = tiny.conversation(99, "neutral", [("Co to jest?", "Znacznik </s> w HTML.")])
    assert merging.check_contract(merged_folder, [forged], tokenizer)["contract_examples"] == 0


def test_the_ten_tokens_are_single_ids_of_the_merged_model(merged_folder: Path) -> None:
    served = tokens.load(merged_folder)
    rows = load_file(merged_folder / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert [served.encode(token, add_special_tokens=False) for token in prompt.TOKENS] == [
        [id_] for id_ in range(rows - 10, rows)
    ]
