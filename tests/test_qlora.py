import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config

from wronai import base, numerics, params, pretraining, prompt, qlora, tokens

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


KINDS = {
    "nf4": {},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
    "scales not quantized": {"bnb_4bit_use_double_quant": False},
    "bfloat16": {"bnb_4bit_compute_dtype": "bfloat16"},
    "stored as bfloat16": {"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "bfloat16"},
    "8 bits": {"load_in_4bit": False, "load_in_8bit": True},
    "no bits": {"load_in_4bit": False},
}


def of_kind(kind: str) -> params.Quantization:
    return tiny.FINETUNE.quantization.model_copy(update=KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_holds_what_the_round_trip_of_its_weight_gives(
    kind: str, base_folder: Path, tokenizer: Any, pinned: None
) -> None:
    model = qlora.load_quantized(base_folder, tokenizer, of_kind(kind), tiny.SEED)
    original = load_file(base_folder / "model.safetensors")
    layers = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    assert len(layers) == LAYERS * len(params.TARGET_MODULES)
    for name, module in layers.items():
        value = qlora.held(module)
        assert value.dtype == torch.float32
        assert torch.equal(value, qlora.round_trip(original[f"{name}.weight"], of_kind(kind)))
        exact = torch.equal(value, original[f"{name}.weight"])
        assert exact == (kind == "no bits")
    embedding = model.get_input_embeddings().weight
    assert embedding.dtype == getattr(torch, of_kind(kind).bnb_4bit_compute_dtype)


@pytest.mark.parametrize("kind", ["8 bits", "no bits", "stored as bfloat16"])
def test_every_kind_trains(kind: str, base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path) -> None:
    first, again = (
        trained(base_folder, tokenizer, blocks_folder, tmp_path / name, quantization=of_kind(kind)) for name in "ab"
    )
    assert first == again
    assert first != trained(base_folder, tokenizer, blocks_folder, tmp_path / "4 bits")


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(3, 64), (7, 100), (64, 448)])
def test_quantizing_in_slices_changes_no_byte(
    quant_type: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    qlora.quantize_in_slices()
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    (whole, state), (sliced, other) = (
        [monkeypatch.setattr(qlora, "SLICE", size), quantize_4bit(matrix, quant_type=quant_type)][1]
        for size in (1 << 30, 128)
    )
    assert torch.equal(whole, sliced)
    assert torch.equal(state.absmax, other.absmax)


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
    other = pretraining.train_tokenizer(tiny.texts()[:9], 600)
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


def with_lora(model: Any, tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """The LoRA layers of `model` by their name, attached with these changes of the parameters."""
    lora = tiny.FINETUNE.lora.model_copy(update=changes)
    tuned = qlora.attach(model, tokenizer, tiny.FINETUNE.model_copy(update={"lora": lora}))
    return {name: module for name, module in tuned.named_modules() if isinstance(module, LoraLayer)}


def test_rslora_scales_by_the_root_of_the_rank(four_bits: Any, tokenizer: Any) -> None:
    found = {layer.scaling["default"] for layer in with_lora(four_bits, tokenizer, use_rslora=True).values()}
    assert found == {8 / 4**0.5}


def test_dora_learns_the_length_of_each_row(four_bits: Any, tokenizer: Any) -> None:
    for layer in with_lora(four_bits, tokenizer, use_dora=True).values():
        length = layer.lora_magnitude_vector["default"].weight
        assert length.requires_grad
        torch.testing.assert_close(length, qlora.held(layer.get_base_layer()).norm(dim=1))


def test_gaussian_starts_a_normal_and_b_at_zero(four_bits: Any, tokenizer: Any) -> None:
    layers = with_lora(four_bits, tokenizer, init_lora_weights="gaussian").values()
    drawn = torch.cat([layer.lora_A["default"].weight.flatten() for layer in layers])
    assert abs(float(drawn.std()) * 4 - 1) < 0.05, "PEFT draws with a spread of 1 / r"
    assert float(drawn.abs().max()) * 4 > 3, "beyond any uniform of that spread"
    assert not any(layer.lora_B["default"].weight.any() for layer in layers)


@pytest.mark.parametrize("kind", ["nf4", "8 bits"])
def test_loftq_starts_nearer_to_the_base_than_quantization_left_it(
    kind: str, base_folder: Path, tokenizer: Any, pinned: None
) -> None:
    model = qlora.load_quantized(base_folder, tokenizer, of_kind(kind), tiny.SEED)
    original = load_file(base_folder / "model.safetensors")
    for name, layer in with_lora(model, tokenizer, init_lora_weights="loftq").items():
        weight = original[f"{name.removeprefix('base_model.model.')}.weight"]
        error = weight - qlora.held(layer.get_base_layer())
        left = error - layer.get_delta_weight("default")
        best = torch.linalg.svdvals(error)[4:].norm()  # what no matrix of rank 4 comes below
        assert best <= left.norm() * 1.0001 < error.norm()
        assert float(left.norm()) < 1.01 * float(best)


def test_loftq_and_dora_start_at_the_length_of_what_both_are(four_bits: Any, tokenizer: Any) -> None:
    for layer in with_lora(four_bits, tokenizer, init_lora_weights="loftq", use_dora=True).values():
        whole = qlora.held(layer.get_base_layer()) + layer.get_delta_weight("default")
        torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.data, whole.norm(dim=1))


def test_loftq_without_the_base_says_so(four_bits: Any, tokenizer: Any, tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    four_bits.name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match=r"no tensor model\.layers\.0.*, which its architecture needs"):
        with_lora(four_bits, tokenizer, init_lora_weights="loftq")


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "gaussian"}])
def test_each_kind_of_lora_trains_to_another_adapter(
    change: dict[str, Any], base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path
) -> None:
    lora = tiny.FINETUNE.lora.model_copy(update=change)
    changed = trained(base_folder, tokenizer, blocks_folder, tmp_path / "changed", lora=lora)
    assert changed != trained(base_folder, tokenizer, blocks_folder, tmp_path / "plain")


def test_what_is_trained_is_float32_and_all_else_keeps_its_precision(
    base_folder: Path, tokenizer: Any, pinned: None
) -> None:
    model = qlora.load_quantized(base_folder, tokenizer, of_kind("bfloat16"), tiny.SEED)
    tuned = qlora.attach(model, tokenizer, tiny.FINETUNE)
    assert {value.dtype for value in tuned.parameters() if value.requires_grad} == {torch.float32}
    frozen = {name: value.dtype for name, value in tuned.named_parameters() if not value.requires_grad}
    assert set(frozen.values()) == {torch.bfloat16, torch.uint8}


def test_of_tied_embeddings_one_set_of_rows_is_trained(tokenizer: Any, pinned: None) -> None:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    tuned = qlora.attach(AutoModelForCausalLM.from_config(config), tokenizer, tiny.FINETUNE)
    rows = [name for name, value in tuned.named_parameters() if value.requires_grad and "lora_" not in name]
    assert rows == ["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default"]


def test_new_rows_do_not_depend_on_how_many_columns_are_taken_at_once() -> None:
    known = torch.randn(50, 600, generator=torch.Generator().manual_seed(1))
    rows = qlora.new_rows(known, 3, torch.Generator().manual_seed(2))
    noise = torch.randn(3, 600, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rows, known.mean(0) + noise * known.std(0))


def test_training_changes_the_ten_rows_and_no_other(
    base_folder: Path, tokenizer: Any, adapter_folder: Path, four_bits: Any
) -> None:
    added = tokens.added_ids(tokenizer)
    before = {
        "embed_tokens": four_bits.get_input_embeddings().weight.detach().clone(),
        "lm_head": four_bits.get_output_embeddings().weight.detach().clone(),
    }
    PeftModel.from_pretrained(four_bits, adapter_folder).merge_and_unload()
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


@pytest.mark.parametrize("saving", ["gradient_checkpointing", "activation_offloading"])
def test_saving_memory_of_activations_changes_no_byte(
    saving: str, base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path
) -> None:
    found = [trained(base_folder, tokenizer, blocks_folder, tmp_path / str(on), **{saving: on}) for on in (True, False)]
    assert found[0] == found[1]


@pytest.mark.parametrize(("asked", "gpu"), [(True, True), (True, False), (False, True)])
def test_activations_are_offloaded_where_it_is_asked_for_and_there_is_a_gpu(asked: bool, gpu: bool) -> None:
    settings = tiny.FINETUNE.model_copy(update={"activation_offloading": asked})
    found = qlora.arguments(settings, 3, tiny.SEED, gpu)
    assert found["activation_checkpointing_kwargs"] == {"use_reentrant": False, "offload": asked and gpu}
    assert found["use_cpu"] is not gpu


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_offloaded_is_what_each_layer_would_keep(
    asked: bool, four_bits: Any, tokenizer: Any, blocks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, ...]] = []

    class SaveOnCpu(torch.autograd.graph.saved_tensors_hooks):  # torch's own pins memory, which needs a GPU
        def __init__(self, **_: object) -> None:
            super().__init__(lambda tensor: taken.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor)

    monkeypatch.setattr("transformers.modeling_utils.save_on_cpu", SaveOnCpu)
    arguments = qlora.arguments  # as if there were a GPU, and torch finds none
    monkeypatch.setattr(qlora, "arguments", lambda *given: arguments(*given[:-1], True))
    settings = tiny.FINETUNE.model_copy(update={"max_steps": 1, "activation_offloading": asked})
    model = qlora.attach(four_bits, tokenizer, settings)
    blocks = tokens.read(blocks_folder / "train.parquet")
    pad = tokenizer.pad_token_id
    qlora.tune(model, blocks, blocks, settings, tiny.SEED, tmp_path, pad_token_id=pad, log=tiny.ignore)
    assert len(taken) == (settings.gradient_accumulation_steps * LAYERS if asked else 0)
    assert all(len(shape) == 3 and shape[2] == tiny.SCRATCH.hidden_size for shape in taken), "hidden states alone"


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, base_folder: Path, tokenizer_folder: Path, blocks_folder: Path
) -> bytes:
    """The adapter file of a short training with the parameters of `tiny.FINETUNE`."""
    return trained(base_folder, tokens.load(tokenizer_folder), blocks_folder, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "change",
    [
        {"loraplus_lr_ratio": 16.0},
        {"lr_scheduler_type": "inverse_sqrt"},
        {"warmup_ratio": 0.9},
        {"weight_decay": 0.1},
        {"max_grad_norm": 1.0e-6},
        {"neftune_noise_alpha": 5.0},
        {"optim": "adamw_8bit"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_parameter_of_the_training_reaches_it(
    base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path, plain: bytes, change: dict[str, Any]
) -> None:
    assert trained(base_folder, tokenizer, blocks_folder, tmp_path, **change) != plain


def test_batches_of_similar_length_give_another_adapter(
    base_folder: Path, tokenizer: Any, blocks_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(blocks_folder, tmp_path / "blocks")
    single = [tokens.blocks(tokenizer, [row], tiny.BLOCK)[0][0] for row in tiny.CONVERSATIONS]
    tokens.write(single, tmp_path / "blocks/train.parquet")
    random, grouped = (
        trained(base_folder, tokenizer, tmp_path / "blocks", tmp_path / strategy, train_sampling_strategy=strategy)
        for strategy in ("random", "group_by_length")
    )
    assert random != grouped


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
    loaded = PeftModel.from_pretrained(four_bits, adapter_folder)
    assert not loaded.training
    live = dict(loaded.named_parameters())
    for name, value in stored.items():
        if "lora_" in name:
            assert torch.equal(live[name.replace(".weight", ".default.weight")], value), name


def test_a_missing_adapter_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors; finetune_qlora writes it"):
        qlora.adapter_tensors(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_adapter_is_one_clear_error(adapter_folder: Path, tmp_path: Path, damage: str) -> None:
    broken = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    file = broken / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-100], "garbage": b"\xff" * 500, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: damaged .*; run finetune_qlora again"):
        qlora.adapter_tensors(broken)


def test_the_key_of_a_run_follows_the_bytes_of_files_not_their_place(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    keys = [qlora.run_key(tiny.FINETUNE, 1, tmp_path / name) for name in ("a", "b", "c")]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0] != qlora.run_key(tiny.FINETUNE, 2, tmp_path / "a")
    assert keys[0] != qlora.run_key(tiny.FINETUNE.model_copy(update={"max_steps": 9}), 1, tmp_path / "a")


def test_the_key_of_a_run_follows_what_computes_it(monkeypatch: pytest.MonkeyPatch, pinned: None) -> None:
    keys = [qlora.run_key(tiny.FINETUNE)]
    for count, name in ((1, "H200"), (2, "H200"), (1, "L4")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        keys.append(qlora.run_key(tiny.FINETUNE))
    monkeypatch.undo()
    torch.use_deterministic_algorithms(False)
    keys.append(qlora.run_key(tiny.FINETUNE))
    torch.use_deterministic_algorithms(True)
    assert keys[1] == keys[2], "of how many GPUs, `launch` says"
    assert len(set(keys)) == 4


def test_the_code_that_pins_and_launches_belongs_to_the_versions() -> None:
    names = {version.name for version in qlora.VERSIONS if isinstance(version, Path)}
    assert {"numerics.py", "launch.py", "qlora.py", "training.py"} < names


def test_two_runs_of_one_key_work_one_after_the_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "checkpoints/key"
    at_work, most = [0], [0]

    def run() -> None:
        with qlora.alone(work):
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
            time.sleep(0.3)
            at_work[0] -= 1

    runs = [threading.Thread(target=run) for _ in range(3)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert most == [1]
    assert capfd.readouterr().err.count(f"{work}: another run does the same; waiting until it is done\n") == 2
    assert list(work.parent.iterdir()) == [], "the lock is gone"


def test_a_run_that_fails_leaves_the_place_to_the_next(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="diverged"), qlora.alone(tmp_path / "key"):
        raise ValueError("diverged")
    with qlora.alone(tmp_path / "key"):
        pass


def test_the_adapter_carries_its_recipe(adapter_folder: Path, base_folder: Path) -> None:
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base_folder)
    recipe = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none", "task_type": "CAUSAL_LM"}
    assert recipe.items() <= config.items()
