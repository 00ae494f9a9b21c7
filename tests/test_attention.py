"""Attention over packed blocks is transformers' own over each example, and nothing sees across."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from wronai import attention


class Layer:
    """What transformers hands over as `module`; nothing of it is used."""


def states(heads: int, tokens: int, seed: int = 1, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, heads, tokens, 8, generator=generator, requires_grad=True)


def attend(lengths: list[int], window: int | None = None, **changes: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output over examples of these lengths in one block, and its inputs."""
    total = sum(lengths)
    inputs = [states(4, total, 1), states(2, total, 2), states(2, total, 3)]
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    found, weights = attention.packed(
        Layer(), *inputs, None, **{"position_ids": places, "sliding_window": window, **changes}
    )
    assert weights is None
    return found, inputs


def masked(inputs: list[torch.Tensor], lengths: list[int], window: int | None) -> torch.Tensor:
    """The same by one product over the whole block, with a mask of all that may be seen."""
    query, key, value = inputs
    total = sum(lengths)
    owner = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
    apart = torch.arange(total)[:, None] - torch.arange(total)[None]
    seen = (owner[:, None] == owner[None]) & (apart >= 0) & (apart < (window or total))
    key, value = (one.repeat_interleave(2, dim=1) for one in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 5, 9, 40])
@pytest.mark.parametrize("lengths", [[20], [9, 1, 10], [5, 6, 7, 8]])
def test_outputs_and_gradients_are_those_of_a_masked_block(lengths: list[int], window: int | None) -> None:
    found, inputs = attend(lengths, window)
    expected = masked(inputs, lengths, window)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_example_has_the_same_bytes_whatever_stands_beside_it() -> None:
    alone, inputs = attend([12])
    key, query, value = (torch.cat([one, one.flip(2)], dim=2) for one in inputs)
    places = torch.arange(12).repeat(2)[None]
    both, _ = attention.packed(Layer(), key, query, value, None, position_ids=places)
    assert torch.equal(both[:, :12], alone)


def test_rows_of_a_batch_may_hold_other_examples() -> None:
    query, key, value = states(2, 6, 1, rows=2), states(2, 6, 2, rows=2), states(2, 6, 3, rows=2)
    places = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 0]])
    both, _ = attention.packed(Layer(), query, key, value, None, position_ids=places)
    for row in (0, 1):
        one, _ = attention.packed(
            Layer(), *(part[row : row + 1] for part in (query, key, value)), None, position_ids=places[row : row + 1]
        )
        assert torch.equal(both[row : row + 1], one)
    shared, _ = attention.packed(Layer(), query, key, value, None, position_ids=places[:1])
    assert torch.equal(shared[0], both[0]) and not torch.equal(shared[1], both[1])


@pytest.mark.parametrize(
    "changes",
    [{"attention_mask": torch.ones(1, 6)}, {"position_ids": None}, {"key": states(2, 9), "value": states(2, 9)}],
)
def test_what_it_would_not_heed_is_refused(changes: dict[str, Any]) -> None:
    given = {
        "query": states(2, 6), "key": states(2, 6), "value": states(2, 6),
        "attention_mask": None, "position_ids": torch.arange(6)[None], **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match="takes position_ids, and neither a mask nor a cache"):
        attention.packed(Layer(), **given)


def test_a_block_that_begins_inside_an_example_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with 0"):
        attend([6], position_ids=torch.arange(1, 7)[None])
