"""Tiny bases of every family, adapters for them, and a merge in memory by PEFT's own arithmetic to hold ours to."""

import json
import shutil
from pathlib import Path
from typing import Any

import tiny
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from wronai import base, params, qlora, tokens

FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 24},
    "llama": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
}


def make_base(
    family: str, tokenizer_from: Path, out: Path, dtype: torch.dtype = torch.float32, layers: int = 2
) -> Path:
    """A base of random weights with the tokenizer of another in the folder `out`; its layers are not alike."""
    set_seed(tiny.SEED)
    out.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_from / file, out / file)
    (out / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokens.load(out)),  # the family's class of tokenizer may add a token of its own
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        **FAMILIES[family],
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, value in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # which start at constants, and would be told from nothing
            nn.init.normal_(value, mean=float(value.detach().mean()), std=0.2)
    model.to(dtype).save_pretrained(out)
    return out


def make_adapter(base_folder: Path, tokenizer: Any, quantization: params.Quantization, out: Path, **lora: Any) -> Path:
    """An adapter as if trained: every matrix and every row is random."""
    settings = tiny.FINETUNE.model_copy(update={"lora": tiny.FINETUNE.lora.model_copy(update=lora)})
    model = qlora.load_quantized(base_folder, tokenizer, quantization, tiny.SEED)
    model = qlora.attach(model, tokenizer, settings)
    set_seed(tiny.SEED)
    for value in model.parameters():
        if value.requires_grad:
            value.data += torch.randn(value.shape) * 0.05
    qlora.save(model, out)
    return out


@torch.no_grad()
def merge_in_memory(
    base_folder: Path,
    adapter: Path,
    tokenizer: Any,
    quantization: params.Quantization,
    settings: params.Merge,
    out: Path,
    max_shard_size: int,
) -> None:
    """Write to `out` what `merging.merge` should: both models whole in memory, sums by PEFT, files by transformers."""
    live = PeftModel.from_pretrained(qlora.load_quantized(base_folder, tokenizer, quantization, tiny.SEED), adapter)
    merged = base.load(base_folder, torch.float32)
    qlora.add_rows(merged, tokenizer, base_folder, tiny.SEED)
    weights = dict(merged.named_parameters())
    bare = {name for name in weights if ".layers." in name}
    for name, module in live.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            weight = weights[f"{name}.weight"]
            if settings.base_weights == "dequantized":
                weight.copy_(dequantize_module_weight(module.get_base_layer()).float())
            delta = module.get_delta_weight("default")
            if magnitude := module.lora_magnitude_vector:
                length = magnitude["default"].get_weight_norm(weight.data, delta, scaling=1)
                weight.copy_((magnitude["default"].weight / length).view(-1, 1) * (weight + delta))
            else:
                weight.copy_(weight + delta)
        elif isinstance(module, TrainableTokensLayer):
            name = f"{name.removesuffix('.token_adapter')}.weight"
            if name in weights:  # a tied head is the embedding
                weights[name][module.token_indices["default"]] = module.trainable_tokens_delta["default"].float()
        elif isinstance(module, nn.Linear) and f"{name}.weight" in bare and settings.base_weights == "dequantized":
            weights[f"{name}.weight"].copy_(dequantize_module_weight(module).float())
    merged.to(getattr(torch, settings.dtype))
    merged.config.dtype = settings.dtype
    merged.generation_config.pad_token_id = merged.config.pad_token_id = tokenizer.pad_token_id
    merged.save_pretrained(out, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(out)
