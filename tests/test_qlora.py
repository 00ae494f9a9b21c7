import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file

from wronai import base, numerics, params, prompt, qlora, tokens

LAYERS = tiny.SCRATCH.num_hidden_layers


@pytest.fixture
def four_bits(base_folder: Path, tokenizer: Any, pinned: None) -> Any:
    """The base in 4 bits, without an adapter."""
    return qlora.load_quantized(base_folder, tokenizer, tiny.FINETUNE.quantization, tiny.SEED)


def linears(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def trained(base_folder: Path, tokenizer: Any, blocks_folder: Path, work: Path, **changes: Any) -> bytes:
    """The adapter file after a short training."""
    settings = tiny.FINETUNE.model_copy(update={"max_steps": 3, **changes})
    numerics.deterministic("pinned", tiny.SEED)
    model = qlora.load_quantized(base_folder, tokenizer, settings.quantization, tiny.SEED)
    model = qlora.attach(model, tokenizer, settings)
    train, validation = (tokens.read(blocks_folder / f"{split}.parquet") for split in ("train", "validation"))
    qlora.tune(
        model,
        train,
        validation,
        settings,
        tiny.SEED,
        work / "work",
        pad_token_id=tokenizer.pad_token_id,
        log=tiny.ignore,
    )
    qlora.save(model, work / "adapter")
    return (work / "adapter/adapter_model.safetensors").read_bytes()


def test_every_projection_is_nf4_with_double_quantization(four_bits: Any) -> None:
    found = linears(four_bits)
    assert len(found) == LAYERS * len(params.TARGET_MODULES)
    for module in found.values():
        state = module.weight.quant_state
        assert module.weight.dtype == torch.uint8
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
        assert state.absmax.dtype == torch.uint8, "the scales are quantized too"
        assert module.compute_dtype == torch.float32


def test_what_the_projections_hold_is_near_the_base_and_takes_16_values_a_block(
    four_bits: Any, base_folder: Path
) -> None:
    original = load_file(base_folder / "model.safetensors")
    for name, module in linears(four_bits).items():
        held = dequantize_4bit(module.weight.data, module.weight.quant_state)
        blocks = held.reshape(-1, 64)
        assert max(len(block.unique()) for block in blocks) <= 16
        scale = original[f"{name}.weight"].reshape(-1, 64).abs().amax(1, keepdim=True)
        error = (blocks - original[f"{name}.weight"].reshape(-1, 64)).abs() / scale
        assert 0.01 < float(error.max()) < 0.2, "NF4's widest gap is 0.3 of the scale"


def test_double_quantization_can_be_switched_off(base_folder: Path, tokenizer: Any) -> None:
    plain = tiny.FINETUNE.quantization.model_copy(update={"bnb_4bit_use_double_quant": False})
    model = qlora.load_quantized(base_folder, tokenizer, plain, tiny.SEED)
    assert not any(module.weight.quant_state.nested for module in linears(model).values())


def test_the_embedding_and_the_head_keep_their_precision_and_their_rows(four_bits: Any, base_folder: Path) -> None:
    original = load_file(base_folder / "model.safetensors")
    layers = {"model.embed_tokens": four_bits.get_input_embeddings(), "lm_head": four_bits.get_output_embeddings()}
    for name, layer in layers.items():
        assert layer.weight.dtype == torch.float32
        assert layer.weight.shape[0] == 610
        assert torch.equal(layer.weight[:600], original[f"{name}.weight"])


def test_new_rows_start_as_far_from_the_mean_as_old_ones_are_and_by_the_seed(base_folder: Path, tokenizer: Any) -> None:
    rows = []
    for seed in (1, 1, 2):
        model = base.load(base_folder, torch.float32)
        torch.manual_seed(len(rows))  # what else is drawn does not matter
        qlora.add_rows(model, tokenizer, base_folder, seed)
        rows.append(model.get_input_embeddings().weight.detach())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0][600:], rows[2][600:])
    assert len(rows[0][600:].unique(dim=0)) == 10
    old = rows[0][:600]
    scaled = (rows[0][600:] - old.mean(0)) / old.std(0)  # 640 draws of a standard normal
    assert abs(float(scaled.mean())) < 0.15
    assert 0.9 < float(scaled.std()) < 1.1


def test_the_rows_of_tokens_that_the_base_knows_already_stay(merged_folder: Path) -> None:
    again = base.load(merged_folder, torch.float32)
    before = again.get_input_embeddings().weight.detach().clone()
    qlora.add_rows(again, tokens.load(merged_folder), merged_folder, tiny.SEED)
    assert torch.equal(again.get_input_embeddings().weight, before)


def test_a_base_with_rows_to_spare_is_not_shrunk(base_folder: Path, tokenizer: Any) -> None:
    model = base.load(base_folder, torch.float32)
    model.resize_token_embeddings(640, mean_resizing=False)
    qlora.add_rows(model, tokenizer, base_folder, tiny.SEED)
    assert model.get_input_embeddings().weight.shape[0] == 640


def test_a_tokenizer_of_another_base_is_refused(base_copy: Path, tokenizer: Any) -> None:
    other = base.train_tokenizer(tiny.texts()[:9], 600)
    other.save_pretrained(base_copy)
    with pytest.raises(ValueError, match="not this base's with tokens added; run tokenize_text again"):
        qlora.load_quantized(base_copy, tokenizer, tiny.FINETUNE.quantization, tiny.SEED)


def test_exactly_the_lora_matrices_and_the_ten_rows_are_trainable(four_bits: Any, tokenizer: Any) -> None:
    model = qlora.attach(four_bits, tokenizer, tiny.FINETUNE)
    found = {name: tuple(value.shape) for name, value in model.named_parameters() if value.requires_grad}
    start = "base_model.model."
    rows = {name for name in found if "lora_" not in name}
    assert rows == {
        f"{start}model.embed_tokens.token_adapter.trainable_tokens_delta.default",
        f"{start}lm_head.token_adapter.trainable_tokens_delta.default",
    }
    assert {found[name] for name in rows} == {(len(prompt.TOKENS), tiny.SCRATCH.hidden_size)}
    matrices = {name.removeprefix(f"{start}model.layers.") for name in found if "lora_" in name}
    assert len(matrices) == len(found) - 2 == 2 * LAYERS * len(params.TARGET_MODULES)
    assert {name.split(".")[2] for name in matrices} == set(params.TARGET_MODULES)
    assert all(min(found[name]) == tiny.FINETUNE.lora.r for name in found if "lora_" in name)


def test_lora_goes_where_the_parameters_say(four_bits: Any, tokenizer: Any) -> None:
    lora = tiny.FINETUNE.lora.model_copy(update={"target_modules": ["q_proj"], "r": 2})
    model = qlora.attach(four_bits, tokenizer, tiny.FINETUNE.model_copy(update={"lora": lora}))
    names = [name for name, value in model.named_parameters() if value.requires_grad and "lora_" in name]
    assert len(names) == 2 * LAYERS
    assert all("q_proj" in name for name in names)


def test_training_changes_the_ten_rows_and_no_other(
    base_folder: Path, tokenizer: Any, adapter_folder: Path, four_bits: Any
) -> None:
    added = tokens.added_ids(tokenizer)
    before = {
        "embed_tokens": four_bits.get_input_embeddings().weight.detach().clone(),
        "lm_head": four_bits.get_output_embeddings().weight.detach().clone(),
    }
    qlora.load_adapter(four_bits, adapter_folder).merge_and_unload()
    after = {"embed_tokens": four_bits.get_input_embeddings(), "lm_head": four_bits.get_output_embeddings()}
    for name, layer in after.items():
        changed = (layer.weight != before[name]).any(dim=1).nonzero().flatten().tolist()
        # As inputs, <answer> and others stand before a label; </polish> stands before the end token alone.
        assert set(changed) == set(added), name


def test_one_thread_and_two_give_the_same_adapter(
    base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(trained(base_folder, tokenizer, blocks_folder, tmp_path / str(count)))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_gradient_checkpointing_changes_no_byte(
    base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path
) -> None:
    found = [
        trained(base_folder, tokenizer, blocks_folder, tmp_path / str(on), gradient_checkpointing=on)
        for on in (True, False)
    ]
    assert found[0] == found[1]


def test_another_seed_gives_another_adapter(
    base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(base_folder, tokenizer, blocks_folder, tmp_path / "a")
    monkeypatch.setattr(tiny, "SEED", 43)
    assert first != trained(base_folder, tokenizer, blocks_folder, tmp_path / "b")


@pytest.mark.parametrize(
    ("rows", "changes", "steps"),
    [
        (7, {"num_train_epochs": 1}, 4),
        (7, {"num_train_epochs": 4}, 14),
        (7, {"num_train_epochs": 0.1}, 1),
        (7, {"max_steps": 5}, 5),
        (100, {"num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 5}, 5),
    ],
)
def test_steps_come_from_epochs_unless_they_are_given(rows: int, changes: dict[str, Any], steps: int) -> None:
    assert qlora.optimizer_steps(rows, tiny.FINETUNE.model_copy(update=changes)) == steps


def test_the_adapter_holds_lora_and_the_ten_rows_alone(adapter_folder: Path) -> None:
    stored = load_file(adapter_folder / "adapter_model.safetensors")
    rows = {name: tuple(value.shape) for name, value in stored.items() if "lora_" not in name}
    assert set(rows.values()) == {(10, tiny.SCRATCH.hidden_size)}
    assert len(rows) == 2
    assert len(stored) == 2 + 2 * LAYERS * len(params.TARGET_MODULES)
    assert not (adapter_folder / "README.md").exists()


def test_an_adapter_loads_as_it_was_saved(four_bits: Any, adapter_folder: Path) -> None:
    stored = load_file(adapter_folder / "adapter_model.safetensors")
    loaded = qlora.load_adapter(four_bits, adapter_folder)
    assert not loaded.training
    live = dict(loaded.named_parameters())
    for name, value in stored.items():
        if "lora_" in name:
            assert torch.equal(live[name.replace(".weight", ".default.weight")], value), name


def test_a_missing_adapter_names_the_stage_that_writes_it(four_bits: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors; finetune_qlora writes it"):
        qlora.load_adapter(four_bits, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_adapter_is_one_clear_error(
    four_bits: Any, adapter_folder: Path, tmp_path: Path, damage: str
) -> None:
    broken = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    file = broken / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-100], "garbage": b"\xff" * 500, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: damaged .*; run finetune_qlora again"):
        qlora.load_adapter(four_bits, broken)


def test_a_damaged_adapter_configuration_is_one_clear_error(
    four_bits: Any, adapter_folder: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="the adapter does not fit the base"):
        qlora.load_adapter(four_bits, broken)


def test_an_adapter_that_lacks_a_tensor_is_refused(four_bits: Any, adapter_folder: Path, tmp_path: Path) -> None:
    partial = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    stored = load_file(partial / "adapter_model.safetensors")
    gone = next(name for name in stored if "lora_B" in name)
    del stored[gone]
    save_file(stored, partial / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no place for and lacks 1 that it needs, such as base_model"):
        qlora.load_adapter(four_bits, partial)


def test_an_adapter_with_a_tensor_too_many_is_refused(four_bits: Any, adapter_folder: Path, tmp_path: Path) -> None:
    larger = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    stored = load_file(larger / "adapter_model.safetensors")
    stored["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 64)
    save_file(stored, larger / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="holds 1 tensors that the base has no place for"):
        qlora.load_adapter(four_bits, larger)


@pytest.mark.parametrize("change", [{"hidden_size": 32}, {"num_hidden_layers": 1}])
def test_an_adapter_of_another_base_is_refused(adapter_folder: Path, tmp_path: Path, change: dict[str, int]) -> None:
    settings = tiny.SCRATCH.model_copy(update={"max_steps": 1, **change})
    base.from_scratch(tiny.texts()[5:], tiny.texts()[:5], settings, tiny.SEED, tmp_path, tiny.ignore)
    with_ten = tokens.extend(tokens.load(tmp_path))
    other = qlora.load_quantized(tmp_path, with_ten, tiny.FINETUNE.quantization, tiny.SEED)
    with pytest.raises(ValueError, match=r"does not fit the base|made for another base"):
        qlora.load_adapter(other, adapter_folder)


def test_the_key_of_a_run_follows_the_bytes_of_files_not_their_place(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    keys = [qlora.run_key(tiny.FINETUNE, 1, tmp_path / name) for name in ("a", "b", "c")]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0] != qlora.run_key(tiny.FINETUNE, 2, tmp_path / "a")
    assert keys[0] != qlora.run_key(tiny.FINETUNE.model_copy(update={"max_steps": 9}), 1, tmp_path / "a")


def test_the_adapter_carries_its_recipe(adapter_folder: Path, base_folder: Path) -> None:
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base_folder)
    recipe = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none", "task_type": "CAUSAL_LM"}
    assert recipe.items() <= config.items()
