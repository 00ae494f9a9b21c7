"""LoRA's part of a linear layer in one step, forward and backward, in the precision of the layer.

PEFT's own forward copies the layer's output, scales LoRA's, adds the two into a third tensor, and outside of autocast
lifts the input to float32 and keeps that for the backward, once for each of query, key and value. Here the layer's
output is added to LoRA's, the scale goes onto the few columns between A and B, and the input stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt
from torch.autograd.function import once_differentiable


def install(model: Any) -> None:
    """Let the LoRA layers of `model`, of PEFT, compute by this module; once is enough.

    Parameters, their names and what PEFT saves and merges stay as they are; the classes of the layers change. What is
    not plain LoRA on a linear layer, as DoRA is not, stays PEFT's.
    """
    for module in model.modules():
        if type(module) in _OWN and not module.lora_variant and not any(module.lora_bias.values()):
            module.__class__ = _OWN[type(module)]
        elif type(module) is Linear8bitLt:
            module.__class__ = _Other8bitLt


class Added:
    """The forward of a layer of `install`; PEFT's own one where adapters are off, merged, or chosen by row."""

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or args or kwargs or self.lora_variant:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        parts = [
            _lora(self.lora_dropout[name](x), self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])
            for name in self.active_adapters
            if name in self.lora_A
        ]
        # Last: what a checkpointed layer computes again ends with the last thing that is kept of it, so the product of
        # its last matrix, a quarter of them all, is not made twice.
        result: torch.Tensor = self.base_layer(x)
        flat = result.reshape(-1, result.shape[-1])
        for part in parts:
            flat = part.add_(flat)
        return flat.view(result.shape).to(result.dtype)


class _Linear(Added, lora.Linear):  # type: ignore[misc]
    pass


class _Linear4bit(Added, Linear4bit):  # type: ignore[misc]
    pass


class _Linear8bitLt(Added, Linear8bitLt):  # type: ignore[misc]
    pass


class _Other8bitLt(Linear8bitLt):  # type: ignore[misc]
    """PEFT's DoRA puts the weight back without its scales, on a CPU, and the layer would take those for its own."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer = self.get_base_layer()
        if layer.weight.SCB is None and layer.state.SCB is not None:
            layer.weight.CB = None
        return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]


_OWN = {lora.Linear: _Linear, Linear4bit: _Linear4bit, Linear8bitLt: _Linear8bitLt}


def _lora(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    apply: Any = _Lora.apply
    with torch.autocast(x.device.type, enabled=False):  # else a product of float32 had another type than its gradient
        return apply(x.reshape(-1, x.shape[-1]), a, b, scaling)  # type: ignore[no-any-return]


class _Lora(torch.autograd.Function):
    """scaling · x Aᵀ Bᵀ, in the precision of x (tokens, in). Every product is an `mm`, which `wronai.numerics` pins."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
        middle = torch.mm(x, a.to(x.dtype).t()).mul_(scaling)
        ctx.scaling = scaling
        ctx.save_for_backward(x, middle, a, b)
        return torch.mm(middle, b.to(x.dtype).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, middle, a, b = ctx.saved_tensors
        inner = torch.mm(slope, b.to(x.dtype)).mul_(ctx.scaling)
        by_x = torch.mm(inner, a.to(x.dtype)) if ctx.needs_input_grad[0] else None
        return by_x, torch.mm(inner.t(), x).to(a.dtype), torch.mm(slope.t(), middle).to(b.dtype), None
