"""The two ends of a causal language model, embedding and head, at the price of the rows and tokens that are trained.

A vocabulary of 32,000 makes matrices of 131 million weights and logits of 32,000 numbers a token. PEFT trains ten rows
by copying the whole matrix at each use, and transformers' loss holds the logits of every token several times in
float32. Here the ten rows take the place of what they replace in the few outputs that they are part of, and the loss
is computed chunk by chunk together with its gradient, of supervised tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from wronai import base, tokens

# Float32 logits in a chunk of the loss: 524 tokens of a vocabulary of 32,000. Each chunk reads the head anew.
CHUNK_BYTES = 64 * 2**20

Grads = list[torch.Tensor | None]


def install(model: Any) -> None:
    """Let `model`, of PEFT or plain, use the embedding, head and loss of this module; once is enough.

    Parameters, their names and what PEFT saves and merges stay as they are; the classes of the modules change. Called
    with `labels` the model returns a loss like transformers' own, and no logits. Raises ValueError for an architecture
    whose logits are made in another way, and for an embedding or head that is quantized, biased or adapted otherwise.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    if causal.config.model_type not in base.FAMILIES:
        raise ValueError(
            f"the base is of type {causal.config.model_type}; embedding, head and loss are written for "
            f"{', '.join(base.FAMILIES)}"
        )
    _specialize(causal.get_input_embeddings(), nn.Embedding, _Embedding, "the embedding")
    _specialize(causal.get_output_embeddings(), nn.Linear, _Head, "the head")
    causal.forward = partial(_forward, causal)  # unlike a bound method it survives pickle, and a copy binds to itself


def _specialize(module: Any, plain: type, own: type, what: str) -> None:
    wrapper = module if isinstance(module, TrainableTokensWrapper) else None
    layer = module.token_adapter.base_layer if wrapper else module
    biased = getattr(layer, "bias", None) is not None
    if type(layer) not in (plain, own) or biased:
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        raise ValueError(
            f"{what} is a {kind}{' with a bias' if biased else ''}; expected torch's {plain.__name__} without bias, "
            "alone or with rows trained by PEFT's trainable_token_indices"
        )
    layer.__class__ = own
    if wrapper:
        wrapper.__class__ = _Wrapper
        wrapper.token_adapter.__class__ = _TrainedRows


class _Wrapper(TrainableTokensWrapper):  # type: ignore[misc]
    def _forward_wrapped(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.token_adapter(x, *args, **kwargs)  # type: ignore[no-any-return]


class _TrainedRows(TrainableTokensLayer):  # type: ignore[misc]
    """Hands the trained rows to the layer, instead of a copy of its matrix that holds them."""

    def forward_adapters(self, x: torch.Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or not active_adapters:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)  # type: ignore[no-any-return]
        self._check_overlapping_tokens(active_adapters)
        rows = torch.cat([self.trainable_tokens_delta[name] for name in active_adapters])
        ids = [token for name in active_adapters for token in self.token_indices[name]]
        return self.base_layer(x, *args, rows=rows, row_ids=ids, **kwargs)  # type: ignore[no-any-return]


class _Embedding(nn.Embedding):
    def forward(
        self, ids: torch.Tensor, *, rows: torch.Tensor | None = None, row_ids: Sequence[int] = ()
    ) -> torch.Tensor:
        """The rows of `ids` (any shape); those of the tokens `row_ids` from `rows` (tokens, hidden)."""
        found = super().forward(ids)
        if rows is None:
            return found
        places, which = (ids.flatten()[:, None] == torch.tensor(row_ids, device=ids.device)).nonzero(as_tuple=True)
        with torch.autocast(ids.device.type, enabled=False):  # which would round the rows' gradients to 16 bits
            # A product picks them, since its gradient, unlike that of an index, sums in the same order each time.
            picked = torch.mm(nn.functional.one_hot(which, len(row_ids)).to(rows), rows)
        flat = found.view(-1, found.shape[-1])
        return flat.index_put_((places,), picked.to(found.dtype)).view(found.shape)


class _Head(nn.Linear):
    def forward(
        self,
        hidden: torch.Tensor,
        *,
        targets: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        row_ids: Sequence[int] = (),
    ) -> torch.Tensor:
        """The logits of `hidden` (…, hidden); with `targets` (…) their summed cross entropy instead, a float32 scalar.

        The rows of the tokens `row_ids` are `rows` (tokens, hidden). Targets of -100 count nothing. The loss is made
        here, not by the model, so that who gathers weights when a module is called, as FSDP does, gathers the head's.
        """
        index = torch.tensor(row_ids, dtype=torch.long, device=hidden.device)
        if targets is not None:
            flat = hidden.reshape(-1, hidden.shape[-1])
            apply: Any = _CrossEntropy.apply
            return apply(flat, self.weight, rows, index, targets.reshape(-1).to(hidden.device))  # type: ignore[no-any-return]
        logits = super().forward(hidden)
        if rows is None:
            return logits
        columns = nn.functional.linear(hidden, rows.to(self.weight.dtype))
        return logits.index_copy_(-1, index, columns.to(logits.dtype))


@can_return_tuple  # type: ignore[untyped-decorator]
def _forward(
    self: Any,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    use_cache: bool | None = None,
    logits_to_keep: int | torch.Tensor = 0,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The model's own forward; with `labels` the loss of transformers' ForCausalLMLoss, and None for logits."""
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "past_key_values": past_key_values,
        "inputs_embeds": inputs_embeds,
        "use_cache": use_cache,
        **kwargs,
    }
    if labels is None:
        return type(self).forward(self, **inputs, logits_to_keep=logits_to_keep)
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=tokens.IGNORED)[..., 1:]
    outputs = self.model(**inputs)
    loss = self.get_output_embeddings()(outputs.last_hidden_state, targets=shift_labels)
    count = (shift_labels != tokens.IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutputWithPast(
        loss=loss / (count.to(loss.device) if isinstance(count, torch.Tensor) else count),
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


class _CrossEntropy(torch.autograd.Function):
    """Makes its gradients with the loss, while a chunk's logits are there: kept or made again they cost more.

    Without gradients (`torch.no_grad`) it makes the loss alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        rows: torch.Tensor | None,
        index: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        total, grads = _chunked_cross_entropy(hidden, weight, rows, index, targets, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(None if grad is None else grad * scale for grad in ctx.saved_tensors), None, None


def _chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor | None,
    index: torch.Tensor,
    targets: torch.Tensor,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, Grads]:
    """The summed cross entropy of `hidden` (tokens, size) at `weight` (vocabulary, size), and its `wanted` gradients.

    The rows `index` of `weight` are `rows`, if given, rounded to its type. The gradients are of `hidden`, `weight` and
    `rows`. Products are computed in the type of `weight`, all else in float32. Every product is an `mm`, the one that
    `wronai.numerics` pins.
    """
    of_hidden = torch.zeros_like(hidden) if wanted[0] else None
    of_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    of_rows = torch.zeros_like(rows, dtype=torch.float32) if rows is not None and wanted[2] else None
    held = None if rows is None else rows.to(weight.dtype)
    total = torch.zeros((), device=hidden.device)
    supervised = (targets != tokens.IGNORED).nonzero().flatten()
    chunk = max(1, CHUNK_BYTES // (4 * len(weight)))
    with torch.autocast(hidden.device.type, enabled=False):
        for places in torch.split(supervised, chunk):
            states = hidden.index_select(0, places).to(weight.dtype)
            loss, (by_states, by_weight, by_rows) = _cross_entropy(
                states, weight, held, index, targets[places][:, None], wanted
            )
            total += loss
            if of_hidden is not None and by_states is not None:
                of_hidden.index_copy_(0, places, by_states.to(hidden.dtype))
            if of_weight is not None and by_weight is not None:
                of_weight += by_weight
            if of_rows is not None and by_rows is not None:
                of_rows += by_rows
    return total, [
        of_hidden,
        None if of_weight is None else of_weight.to(weight.dtype),
        None if of_rows is None or rows is None else of_rows.to(rows.dtype),
    ]


def _cross_entropy(
    states: torch.Tensor,
    weight: torch.Tensor,
    held: torch.Tensor | None,
    index: torch.Tensor,
    labels: torch.Tensor,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, Grads]:
    """See `_chunked_cross_entropy`: one chunk, whose logits are let go of at the end. `labels` are (tokens, 1)."""
    logits = torch.mm(states, weight.t()).float()
    if held is not None:
        logits[:, index] = torch.mm(states, held.t()).float()
    logits -= logits.amax(1, keepdim=True)
    right = logits.gather(1, labels)
    odds = logits.exp_()
    norms = odds.sum(1, keepdim=True)
    loss = (norms.log() - right).sum()
    by_states = by_weight = by_rows = None
    if any(wanted):
        slopes = odds.div_(norms)  # of the loss by the logits: the probabilities, less 1 for the right token
        slopes.scatter_(1, labels, slopes.gather(1, labels) - 1)
        columns = slopes[:, index]
        if held is not None:
            slopes[:, index] = 0
            by_rows = torch.mm(columns.t(), states.float()) if wanted[2] else None
        slopes = slopes.to(weight.dtype)
        by_weight = torch.mm(slopes.t(), states) if wanted[1] else None
        if wanted[0]:
            by_states = torch.mm(slopes, weight)
            if held is not None:
                by_states += torch.mm(columns.to(weight.dtype), held)
    return loss, [by_states, by_weight, by_rows]
