"""LoRA's forward and backward of `wronai.lora` beside PEFT's own."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from wronai import lora, qlora

KINDS: dict[str, dict[str, Any]] = {
    "4 bits": {},
    "8 bits": {"load_in_4bit": False, "load_in_8bit": True},
    "no bits": {"load_in_4bit": False},
}
pytestmark = pytest.mark.usefixtures("pinned")


def adapted(
    base: Path, tokenizer: Any, kind: str = "4 bits", dtype: str = "float32", names: tuple[str, ...] = ("default",),
    **changes: Any
) -> Any:  # fmt: skip
    """The tiny base with one PEFT adapter or more, whose B is not zero."""
    quantization = tiny.FINETUNE.quantization.model_copy(update={**KINDS[kind], "bnb_4bit_compute_dtype": dtype})
    model = qlora.load_quantized(base, tokenizer, quantization, tiny.SEED)
    for value in model.parameters():
        value.requires_grad_(False)
    torch.manual_seed(1)
    config = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]}
    for name in names:
        described = LoraConfig(task_type="CAUSAL_LM", **{**config, **changes})
        if name == names[0]:
            model = get_peft_model(model, described, adapter_name=name)
        else:
            model.add_adapter(name, described)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = 0.1 * torch.randn_like(value, dtype=torch.float32)
        elif value.requires_grad:
            value.data = value.data.float()
    return model.train()


def outcome(model: Any) -> dict[str, torch.Tensor]:
    """The loss of a batch, and the gradient of every parameter that is trained."""
    ids = torch.arange(5, 45).view(2, 20)
    model.zero_grad()
    torch.manual_seed(2)  # the places that are dropped out
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach()} | {
        name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad
    }


@pytest.mark.parametrize(
    "changes", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}], ids=["lora", "dropout", "rslora"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_peft(
    kind: str, changes: dict[str, Any], base_folder: Path, tokenizer: Any
) -> None:
    model = adapted(base_folder, tokenizer, kind, **changes)
    expected = outcome(model)
    lora.install(model)
    found = outcome(model)
    assert sum(isinstance(module, lora.Added) for module in model.modules()) == 5 * tiny.SCRATCH.num_hidden_layers
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        assert found[name].dtype == value.dtype == torch.float32
        torch.testing.assert_close(found[name], value, atol=1e-6 + 3e-5 * float(value.abs().max()), rtol=0)


def test_in_16_bits_the_gradients_are_those_of_peft_to_their_rounding(base_folder: Path, tokenizer: Any) -> None:
    exact = outcome(adapted(base_folder, tokenizer))
    model = adapted(base_folder, tokenizer, dtype="bfloat16")
    theirs = outcome(model)
    lora.install(model)
    ours = outcome(model)
    for name, value in exact.items():
        assert ours[name].dtype == theirs[name].dtype
        off = [float((found[name] - value).norm() / value.norm()) for found in (ours, theirs)]
        assert off[0] < max(2 * off[1], 0.02), name


def test_under_autocast_the_type_is_that_of_the_layer_and_the_gradients_are_near(
    base_folder: Path, tokenizer: Any
) -> None:
    model = adapted(base_folder, tokenizer, "no bits")
    exact = outcome(model)
    lora.install(model)
    projection = model.get_base_model().model.layers[0].mlp.up_proj
    states = torch.randn(1, 8, tiny.SCRATCH.hidden_size)
    with torch.autocast("cpu", torch.bfloat16):
        assert projection(states).dtype == projection.base_layer(states).dtype == torch.bfloat16
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)  # as accelerate does; the backward is outside
    found = outcome(model)
    for name, value in exact.items():
        assert found[name].dtype == torch.float32
        assert float((found[name] - value).norm() / value.norm()) < 0.05, name


def test_the_input_is_kept_as_it_came_and_once(base_folder: Path, tokenizer: Any) -> None:
    model = adapted(base_folder, tokenizer, dtype="bfloat16")
    lora.install(model)
    attention = model.get_base_model().model.layers[0].self_attn
    states = torch.randn(1, 8, tiny.SCRATCH.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        attention.q_proj(states), attention.k_proj(states)
    large = [tensor for tensor in kept if tensor.numel() == states.numel()]
    assert len(large) == 2 and all(tensor.data_ptr() == states.data_ptr() for tensor in large)
    assert {tensor.dtype for tensor in kept if tensor.shape[-1] == 4 and tensor.ndim == 2 and tensor.shape[0] == 8} == {
        torch.bfloat16
    }


def test_two_adapters_at_once_add_up_as_in_peft(base_folder: Path, tokenizer: Any) -> None:
    model = adapted(base_folder, tokenizer, names=("one", "other"))
    model.base_model.set_adapter(["one", "other"])
    expected = outcome(model)
    lora.install(model)
    found = outcome(model)
    assert sum("lora_A" in name for name in found) == 2 * 5 * tiny.SCRATCH.num_hidden_layers
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_an_adapter_that_is_off_or_merged_is_pefts_own(base_folder: Path, tokenizer: Any) -> None:
    ids = torch.arange(5, 45)[None]
    model = adapted(base_folder, tokenizer, "no bits").eval()
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with model.disable_adapter():
            off = model(input_ids=ids).logits
        lora.install(model)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, off)
        torch.testing.assert_close(model(input_ids=ids).logits, on, atol=1e-5, rtol=1e-4)
        model.merge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, on, atol=1e-5, rtol=1e-4)
        model.unmerge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, on, atol=1e-5, rtol=1e-4)
    assert (on - off).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_dora_stays_pefts(kind: str, base_folder: Path, tokenizer: Any) -> None:
    model = adapted(base_folder, tokenizer, kind, use_dora=True)
    expected = outcome(model)
    lora.install(model)
    assert any(isinstance(module, LoraLayer) for module in model.modules())
    assert not any(isinstance(module, lora.Added) for module in model.modules())
    for _ in range(2):  # PEFT's own stops at the second time, in 8 bits
        assert all(torch.equal(value, expected[name]) for name, value in outcome(model).items())


def test_what_the_optimizer_and_peft_see_stays_the_same(base_folder: Path, tokenizer: Any) -> None:
    model = adapted(base_folder, tokenizer)
    before = [(name, value.data_ptr(), value.requires_grad) for name, value in model.named_parameters()]
    lora.install(model)
    lora.install(model)
    assert [(name, value.data_ptr(), value.requires_grad) for name, value in model.named_parameters()] == before


def test_what_a_checkpointed_layer_computes_again_ends_before_its_last_product(
    base_folder: Path, tokenizer: Any
) -> None:
    model = adapted(base_folder, tokenizer)
    lora.install(model)
    expected = outcome(model)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    made: dict[str, int] = {}
    for name in ("up_proj", "down_proj"):
        projection = getattr(model.get_base_model().model.layers[1].mlp, name).base_layer
        projection.register_forward_hook(lambda *_, at=name: made.update({at: made.get(at, 0) + 1}))
    found = outcome(model)
    assert made == {"up_proj": 2, "down_proj": 1}
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
