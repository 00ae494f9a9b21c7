import functools
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from wronai import prefixes
from wronai.prefixes import Batch, Request

VOCABULARY = 300
WINDOW = 9  # shorter than every sequence of `questions`
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}  # the second layer of two
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "mistral": (MistralConfig, {"sliding_window": None}),
    "mistral, sliding": (MistralConfig, {"sliding_window": WINDOW}),
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen2, sliding": (Qwen2Config, SLIDING),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "qwen3, sliding": (Qwen3Config, {"head_dim": 16, **SLIDING}),
}


@functools.cache
def made(family: str) -> Any:
    """A model of two layers whose random weights are large enough for far tokens to count."""
    torch.manual_seed(tiny.SEED)
    kind, own = FAMILIES[family]
    config = kind(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        **own,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, pinned: None) -> Any:
    return made(request.param)


@pytest.fixture
def sliding(pinned: None) -> Any:
    return made("mistral, sliding")


def ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCABULARY), k=count)


def questions() -> list[Request]:
    """Twelve choices of four questions that share an opening, and three sequences that share nothing."""
    found = []
    for question in range(4):
        context = [1, *ids(14, 0), *ids(5 + 3 * question, question + 1)]
        found += [Request((*context, *ids(1 + choice, 50 + choice)), len(context)) for choice in range(3)]
    return found + [Request((1, *ids(count, 100 + count)), 1) for count in (12, 30, 47)]


def one_by_one(model: Any, requests: Sequence[Request]) -> list[tuple[float, bool]]:
    """What each request gives in a forward pass of its own."""
    found = []
    for request in requests:
        with torch.no_grad():
            logprobs = model(torch.tensor([request.ids])).logits[0].log_softmax(-1)
        places = range(request.first - 1, len(request.ids) - 1)
        nats = sum(float(logprobs[place, request.ids[place + 1]]) for place in places)
        found.append((nats, all(int(logprobs[place].argmax()) == request.ids[place + 1] for place in places)))
    return found


def score(model: Any, requests: Sequence[Request], limit: int = 64, batch: int = 3) -> list[tuple[float, bool]]:
    return prefixes.score(model, requests, limit, Batch(batch), tiny.ignore)


def same(found: Sequence[tuple[float, bool]], expected: Sequence[tuple[float, bool]], nats: float = 1e-5) -> bool:
    return [greedy for _, greedy in found] == [greedy for _, greedy in expected] and (
        [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=nats, rel=1e-6)
    )


class Watched:
    """A model that remembers the shape of each batch of ids, and has no memory for batches of more than `most` rows."""

    def __init__(self, model: Any, most: int = 1000) -> None:
        self.model, self.most, self.shapes = model, most, list[tuple[int, ...]]()
        self.config, self.device = model.config, model.device
        self.get_output_embeddings = model.get_output_embeddings

    def get_decoder(self) -> Callable[..., Any]:
        def decode(input_ids: torch.Tensor, **others: Any) -> Any:
            self.shapes.append(tuple(input_ids.shape))
            if len(input_ids) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has no more.")
            return self.model.get_decoder()(input_ids=input_ids, **others)

        return decode


def test_scores_are_those_of_one_pass_for_each_sequence(model: Any) -> None:
    expected = one_by_one(model, questions())
    for limit in (64, 400):  # rows of some sequences, and all in one
        assert same(score(model, questions(), limit), expected, nats=1e-4)


def test_the_window_of_a_sliding_layer_is_felt() -> None:
    near, far = Request((*ids(30, 1), 5), 30), Request((7, *ids(30, 1)[1:], 5), 30)  # differ in what is out of reach
    for family in ("mistral, sliding", "llama"):
        (one, _), (other, _) = score(made(family), [near, far])
        assert (one == pytest.approx(other, abs=1e-6)) == (family == "mistral, sliding")


def test_what_sequences_share_is_laid_out_once() -> None:
    context = ids(20, 1)
    choices = [Request((*context, *ending), 20) for ending in ([10, 11, 12], [20, 21], [30])]
    [row] = prefixes.rows(choices, 100)
    assert len(row.ids) == 20 + 2 + 1
    assert sorted(number for number, _ in row.paths) == [0, 1, 2]
    for number, path in row.paths:
        assert tuple(row.ids[node] for node in path) == choices[number].ids[:-1]
        assert [row.positions[node] for node in path] == list(range(len(path)))


def test_what_only_some_share_is_laid_out_once_for_these() -> None:
    opening, first, second = ids(10, 1), ids(5, 2), ids(6, 3)
    requests = [Request((*opening, *middle, *end, 9), 1) for middle in (first, second) for end in ([4], [5], [6])]
    [row] = prefixes.rows(requests, 100)
    assert len(row.ids) == 10 + 5 + 6 + 2 * 3


def test_a_node_sees_its_ancestors_and_itself_alone() -> None:
    [row] = prefixes.rows([Request((1, 2, 3, 9), 1), Request((1, 2, 4, 9), 1), Request((1, 5, 9), 1)], 100)
    assert row.ids == [1, 2, 3, 4, 5]
    for window, expected in (
        (None, {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {1, 2, 4}, 5: {1, 5}}),
        (2, {1: {1}, 2: {1, 2}, 3: {2, 3}, 4: {2, 4}, 5: {1, 5}}),
    ):
        seen = zip(row.ids, row.mask(window), strict=True)
        assert {node: {row.ids[other] for other in sees.nonzero()[0]} for node, sees in seen} == expected


@pytest.mark.parametrize("limit", [1, 40, 64, 1000])
def test_rows_hold_every_request_and_keep_to_the_limit(limit: int) -> None:
    found = prefixes.rows(questions(), limit)
    assert sorted(number for row in found for number, _ in row.paths) == list(range(len(questions())))
    for row in found:
        assert len(row.ids) <= limit or len(row.paths) == 1
        for number, path in row.paths:
            assert tuple(row.ids[node] for node in path) == questions()[number].ids[:-1]


def test_a_limit_parts_only_what_does_not_fit() -> None:
    context = ids(20, 1)
    choices = [Request((*context, choice, 9), 20) for choice in (10, 11, 12)]
    assert [len(row.ids) for row in prefixes.rows(choices, 23)] == [23]
    assert [len(row.ids) for row in prefixes.rows(choices, 22)] == [22, 21]


def test_the_model_computes_each_shared_token_once(sliding: Any) -> None:
    watched = Watched(sliding)
    context = ids(40, 1)
    score(watched, [Request((*context, choice), 40) for choice in range(10, 20)])
    assert watched.shapes == [(1, 40)]


@pytest.mark.parametrize("batch", [1, 2, 5, 50])
def test_neither_order_nor_batch_changes_a_score(sliding: Any, batch: int) -> None:
    requests, expected = questions(), score(sliding, questions())
    order = random.Random(batch).sample(range(len(requests)), len(requests))
    found = score(sliding, [requests[number] for number in order], batch=batch)
    assert same(found, [expected[number] for number in order])


def test_each_request_is_counted_as_done_once(sliding: Any) -> None:
    told: list[int] = []
    prefixes.score(sliding, questions(), 64, Batch(2), told.append)
    assert sum(told) == len(questions()) and min(told) > 0 and len(told) > 1


def test_nothing_asked_is_nothing_found(sliding: Any) -> None:
    assert score(sliding, []) == []


def test_what_the_model_would_say_is_greedy_and_anything_else_is_not(model: Any) -> None:
    said = ids(20, 1)
    for _ in range(4):
        with torch.no_grad():
            said.append(int(model(torch.tensor([said])).logits[0, -1].argmax()))
    wrong = [3 if said[place] != 3 else 4 for place in (20, 23)]
    requests = [
        Request(tuple(said), 20),
        Request((*said[:20], wrong[0], *said[21:]), 20),
        Request((*said[:23], wrong[1]), 20),
        Request(tuple(said[:21]), 20),
    ]
    assert [greedy for _, greedy in score(model, requests)] == [True, False, False, True]


def test_continuations_of_one_token_and_sequences_of_two(model: Any) -> None:
    context = ids(11, 1)
    requests = [Request((*context, choice), 11) for choice in (5, 6, 7)] + [Request((8, 9), 1), Request((8, 10), 1)]
    assert same(score(model, requests), one_by_one(model, requests), nats=1e-4)


def test_requests_may_be_alike_or_lie_in_each_other(sliding: Any) -> None:
    whole = tuple(ids(30, 1))
    requests = [Request(whole, 20), Request(whole, 20), Request(whole, 5), Request(whole[:20], 5), Request(whole, 29)]
    found = score(sliding, requests)
    assert same(found, one_by_one(sliding, requests), nats=1e-4)
    assert found[0] == found[1]
    assert len(prefixes.rows(requests, 100)[0].ids) == 29


@pytest.mark.parametrize("at_once", [1, VOCABULARY, 7 * VOCABULARY])
def test_logits_in_parts_give_the_same(sliding: Any, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(sliding, questions())
    head, most = sliding.get_output_embeddings(), []
    handle = head.register_forward_hook(lambda module, states, logits: most.append(logits.numel()))
    monkeypatch.setattr(prefixes, "LOGITS", at_once)
    try:
        assert same(score(sliding, questions()), expected)
    finally:
        handle.remove()
    assert max(most) <= max(at_once, VOCABULARY)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(sliding: Any) -> None:
    watched, batch, told = Watched(sliding, most=2), Batch(8), list[int]()
    found = prefixes.score(watched, questions(), 1, batch, told.append)  # each in a row of its own
    assert [rows for rows, _ in watched.shapes] == [8, 4, *[2] * 7, 1]
    assert batch.size == 2  # and stays so for what comes later
    assert same(found, score(sliding, questions()))
    assert sum(told) == len(questions())


def test_one_row_that_does_not_fit_says_what_to_lower(sliding: Any) -> None:
    with pytest.raises(ValueError) as told:
        score(Watched(sliding, most=0), questions(), batch=3)
    assert str(told.value) == (
        "one row at a time does not fit into memory (CUDA out of memory. Tried to allocate 2.00 GiB.): lower "
        "evaluate.max_length"
    )


def test_another_error_of_the_model_is_not_taken_for_memory(sliding: Any) -> None:
    def decoder() -> Callable[..., Any]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken = SimpleNamespace(config=sliding.config, device=sliding.device, get_decoder=decoder)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        score(broken, questions())
