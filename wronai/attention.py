"""Attention over packed blocks, one example at a time.

A block holds several examples, and transformers' own attention pays for all pairs of its tokens, masking those of
different examples: of blocks of 512 tokens with 100 an example, four fifths of the work. Here each example is
attended to by itself, so nothing is paid for pairs that do not see each other, and no mask is ever built.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "packed"  # for `model.set_attn_implementation`


def packed(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each stretch of `position_ids` that starts at 0; see transformers' AttentionInterface.

    `query` is (rows, heads, tokens, size of a head), `key` and `value` have as many heads or a divisor of that;
    returns (rows, tokens, heads, size of a head). Raises ValueError for a mask or a cache, which it would not heed.
    """
    if attention_mask is not None or position_ids is None or key.shape[2] != query.shape[2]:
        raise ValueError("packed attention takes position_ids, and neither a mask nor a cache of earlier tokens")
    given = query.dtype
    if given == torch.bfloat16 and query.device.type == "cpu":
        # Its kernels there take five times as long backward for examples of a hundred tokens.
        query, key, value = query.float(), key.float(), value.float()
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) if groups > 1 else states for states in (key, value))
    rows = []
    for row, starts in enumerate(_starts(position_ids, len(query))):
        parts = [
            scaled_dot_product_attention(
                query[row : row + 1, :, start:end],
                key[row : row + 1, :, start:end],
                value[row : row + 1, :, start:end],
                attn_mask=_window(end - start, sliding_window, query.device),
                dropout_p=dropout,
                is_causal=sliding_window is None or end - start <= sliding_window,
                scale=scaling,
            )
            for start, end in pairwise([*starts, query.shape[2]])
        ]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows).to(given).transpose(1, 2).contiguous(), None


def _starts(position_ids: torch.Tensor, rows: int) -> list[list[int]]:
    """Where the examples of each row start. Raises ValueError if a row does not begin with one."""
    starts: list[list[int]] = [[] for _ in range(len(position_ids))]
    for row, place in (position_ids == 0).nonzero().tolist():
        starts[row].append(place)
    if any(not row or row[0] for row in starts):
        raise ValueError("position_ids of a packed block must begin with 0")
    return starts * rows if len(starts) < rows else starts


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which of `length` tokens (columns) each (row) sees; None where the window cuts none of them off."""
    if sliding_window is None or length <= sliding_window:
        return None
    seen = torch.ones(length, length, dtype=torch.bool, device=device)
    return seen.tril().triu(1 - sliding_window)


AttentionInterface.register(NAME, packed)
