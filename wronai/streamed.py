"""Run a decoder layer by layer: each is loaded when its turn comes, run over all blocks, and dropped.

So two 7B models are compared in the memory of one layer. The layers are transformers' own, with the packed attention of
training; `Adapted` makes them as training held them, quantized by bitsandbytes and with PEFT's LoRA computed apart.
"""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any, Protocol

import torch
from bitsandbytes.nn import Int8Params, Linear4bit, Params4bit
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.integrations import replace_with_bnb_linear

from wronai import attention, base, lora, params, qlora
from wronai.progress import Progress

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
HEAD_ROWS = 8192  # of the head that are multiplied at once: 134 MB of a 7B model in float32


class Weights(Protocol):
    """The tensors of a model by name, each there when it is asked for."""

    def __getitem__(self, name: str) -> torch.Tensor: ...

    def take(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """The rows of the numbers `rows` of the embedding or the head."""

    def height(self, name: str) -> int:
        """How many rows the embedding or the head has."""


class Decoder:
    """The causal language model whose configuration is in `folder` and whose tensors are `weights`, run in `dtype`.

    Raises ValueError if it is of a family that cannot be run so.
    """

    def __init__(self, folder: Path, weights: Weights, dtype: torch.dtype) -> None:
        self._shape = base.load(folder, dtype, device="meta")
        config = self._shape.config
        # Another family might scale or change what passes between these parts, and nothing would show it.
        if config.model_type not in base.FAMILIES:
            raise ValueError(
                f"{folder}: model_type is {config.model_type!r}; what runs layer by layer is {', '.join(base.FAMILIES)}"
            )
        self._shape.set_attn_implementation(attention.NAME)
        self._weights, self._dtype, self._device = weights, dtype, base.device()
        self._head = EMBEDDING if config.tie_word_embeddings else HEAD
        self.layers = config.num_hidden_layers

    @torch.no_grad()
    def hidden(self, blocks: Any, what: str) -> list[torch.Tensor]:
        """What the head is given for each of `blocks`: (tokens, hidden size), on the CPU; `what` names the progress."""
        states = [self._weights.take(EMBEDDING, torch.tensor(block["input_ids"]))[None] for block in blocks]
        places = [torch.tensor([block["position_ids"]], device=self._device) for block in blocks]
        rotary = type(self._shape.model.rotary_emb)(self._shape.config).to(self._device)
        progress = Progress(what, self.layers, "layers")
        for index in range(self.layers):
            layer = self.layer(index)
            for number, position_ids in enumerate(places):
                state = states[number].to(self._device, self._dtype)
                states[number] = layer(
                    state,
                    attention_mask=None,
                    position_embeddings=rotary(state, position_ids),
                    position_ids=position_ids,
                    past_key_values=None,
                    use_cache=False,
                ).cpu()
            del layer
            gc.collect()  # PEFT's layers refer to themselves, and would wait for a collection with all their weights
            progress.add(1)
        progress.close()
        norm = copy.deepcopy(self._shape.model.norm)
        self._fill(norm, "model.norm")
        return [norm(state[0].to(self._device)).cpu() for state in states]

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The float32 logits (positions, tokens of the vocabulary), on the CPU, of some positions of `hidden`."""
        state, height = hidden.to(self._device), self._weights.height(self._head)
        parts = []
        for start in range(0, height, HEAD_ROWS):
            rows = torch.arange(start, min(start + HEAD_ROWS, height))
            some = self._weights.take(self._head, rows).to(self._device, self._dtype)
            parts.append(nn.functional.linear(state, some).float().cpu())
        return torch.cat(parts, dim=-1)

    def layer(self, index: int) -> Any:
        """The decoder layer of the number `index`, with its weights, ready to run."""
        with torch.device("meta"):
            layer = type(self._shape.model.layers[index])(self._shape.config, index)
        self._prepare(layer)
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                mapped = _Mapped(module.in_features, module.out_features, module.bias is not None, device="meta")
                layer.set_submodule(name, mapped)
        self._fill(layer, f"model.layers.{index}")
        self._finish(layer, index)
        return layer.eval()

    def _prepare(self, layer: Any) -> None:
        """Change what the layer is made of, before it has weights."""

    def _finish(self, layer: Any, index: int) -> None:
        """Add to the layer what is not of the base."""

    def _fill(self, module: Any, prefix: str) -> None:
        """Give `module`, which has shapes only, the weights whose names start with `prefix`."""
        for name, old in list(module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            holder = module.get_submodule(owner)
            value, new = self._weights[f"{prefix}.{name}"], None
            if isinstance(old, Params4bit | Int8Params):
                new = type(old)(value.to(self._dtype), requires_grad=False, **vars(old)).to(self._device)
            elif isinstance(holder, _Mapped) and leaf == "weight":
                new = nn.Parameter(value.to(self._device), requires_grad=False)
            else:
                new = nn.Parameter(value.to(self._device, self._dtype), requires_grad=False)
            setattr(holder, leaf, new)


class _Mapped(nn.Linear):
    """A linear layer whose weight stays in the type and in the pages of its file, and is cast while it is used."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)


class Adapted(Decoder):
    """The base in `folder` quantized as `quantization` says, with the LoRA `tensors` of `config` beside it, as trained.

    `weights` are the base's own, with the ten trained rows; `tensors` are named as PEFT stores them.
    """

    def __init__(
        self, folder: Path, weights: Weights, quantization: params.Quantization, config: LoraConfig, tensors: Any
    ) -> None:
        super().__init__(folder, weights, getattr(torch, quantization.bnb_4bit_compute_dtype))
        self._quantization, self._tensors = quantization, tensors
        self._lora = copy.copy(config)
        self._lora.trainable_token_indices = None  # the rows are in `weights`
        self._lora.init_lora_weights = True  # any that needs no decomposition: the values are replaced

    def _prepare(self, layer: Any) -> None:
        layer.is_loaded_in_4bit = self._quantization.load_in_4bit  # where PEFT looks for it
        layer.is_loaded_in_8bit = self._quantization.load_in_8bit
        if bits := qlora.bitsandbytes_config(self._quantization):
            qlora.quantize_in_slices()
            replace_with_bnb_linear(layer, [], bits)
        for module in layer.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False  # as `qlora.load_quantized` does

    def _finish(self, layer: Any, index: int) -> None:
        inject_adapter_in_model(self._lora, layer)
        for name, module in layer.named_modules():
            if isinstance(module, LoraLayer):
                stored = f"base_model.model.model.layers.{index}.{name}"
                places = {"lora_A.weight": module.lora_A, "lora_B.weight": module.lora_B}
                if self._lora.use_dora:
                    places["lora_magnitude_vector"] = module.lora_magnitude_vector
                for kind, place in places.items():
                    place["default"].weight.data = self._tensors[f"{stored}.{kind}"].to(self._device, torch.float32)
        lora.install(layer)
