"""Log-probabilities of continuations, where each prefix that requests share is computed once.

The choices of an item share its question, and items share few-shot examples and the opening of the format. Sequences
that begin alike are laid out in one row as a tree: each token once, at its own position, attending to its ancestors
alone. So a row gives what its sequences would give one by one, to rounding, for the work of their distinct tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LOGITS = 1 << 27  # how many are held at once: half a gigabyte in float32


@dataclass(frozen=True)
class Request:
    """`ids` of which those from `first` on are scored, each after all before it; `first` is at least 1."""

    ids: tuple[int, ...]
    first: int


@dataclass
class Row:
    """A tree of tokens: `ids` and `positions` of its nodes, and for each sequence the nodes from its root on.

    A branch is the nodes from `start` on that came with one sequence, below the first `shared` nodes of its path.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[tuple[int, NDArray[np.int64]]] = field(default_factory=list)  # start, the path down to it
    paths: list[tuple[int, NDArray[np.int64]]] = field(default_factory=list)  # number of the request, its nodes

    def add(self, number: int, ids: Sequence[int], shared: int) -> None:
        """Add the sequence `ids`, of which the first `shared` are those of the sequence before."""
        above = self.paths[-1][1][:shared] if shared else np.empty(0, np.int64)
        start = len(self.ids)
        self.ids += ids[shared:]
        self.positions += range(shared, len(ids))
        self.branches.append((start, above))
        self.paths.append((number, np.concatenate([above, np.arange(start, len(self.ids))])))

    def mask(self, window: int | None) -> NDArray[np.bool_]:
        """Which node (row) sees which (column): its ancestors and itself, less than `window` positions away."""
        size = len(self.ids)
        seen = np.zeros((size, size), np.bool_)
        ends = [start for start, _ in self.branches[1:]] + [size]
        for (start, above), end in zip(self.branches, ends, strict=True):
            seen[start:end, above] = True
            seen[start:end, start:end] = np.tri(end - start, dtype=np.bool_)
        if window is not None:
            positions = np.array(self.positions)
            seen &= positions[:, None] - positions[None, :] < window
        return seen


def rows(requests: Sequence[Request], limit: int) -> list[Row]:
    """Trees that hold each of `requests` once, of at most `limit` tokens unless a single one has more.

    The last token of a sequence predicts nothing that is asked, and is left out.
    """
    order = sorted(range(len(requests)), key=lambda number: requests[number].ids)
    found: list[Row] = []
    before: tuple[int, ...] = ()
    for number in order:
        ids = requests[number].ids[:-1]
        shared = _common(before, ids) if found else 0
        if not found or len(found[-1].ids) + len(ids) - shared > limit:
            found.append(Row())
            shared = 0
        found[-1].add(number, ids, shared)
        before = ids
    return found


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids both begin with."""
    size = min(len(left), len(right))
    different = np.flatnonzero(np.array(left[:size]) != np.array(right[:size]))
    return int(different[0]) if len(different) else size


@dataclass
class Batch:
    """How many rows go through a model at once: halved each time that they do not fit into the memory of a GPU."""

    size: int

    def halve(self, error: torch.OutOfMemoryError) -> None:
        """Go on with half as many. Raises ValueError where it was one."""
        if self.size == 1:
            raise ValueError(
                f"one row at a time does not fit into memory ({str(error).splitlines()[0]}): lower evaluate.max_length"
            ) from error
        self.size //= 2
        torch.cuda.empty_cache()


@torch.no_grad()
def score(
    model: Any, requests: Sequence[Request], limit: int, batch: Batch, done: Callable[[int], None]
) -> list[tuple[float, bool]]:
    """For each request the sum of the log-probabilities of its scored ids in nats, and whether each was the likeliest.

    A forward pass takes a `batch` of rows of at most `limit` tokens; `done` is told how many requests it finished.
    """
    found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
    laid_out = sorted(rows(requests, limit), key=lambda row: -len(row.ids))
    start = 0
    while start < len(laid_out):
        here = laid_out[start : start + batch.size]
        try:
            results = [
                result
                for states, row in zip(_hidden(model, here), here, strict=True)
                for result in _read(model, states, row, requests)
            ]
        except torch.OutOfMemoryError as error:
            batch.halve(error)
            continue
        for number, result in results:
            found[number] = result
        done(len(results))
        start += len(here)
    return found


def _hidden(model: Any, batch: Sequence[Row]) -> torch.Tensor:
    """The last hidden states of the rows, [rows, nodes of the longest, hidden size]."""
    length = max(len(row.ids) for row in batch)
    ids = np.zeros((len(batch), length), np.int64)
    positions = np.zeros_like(ids)
    config = model.config
    window = getattr(config, "sliding_window", None)
    windows = {
        kind: window if kind == "sliding_attention" else None for kind in getattr(config, "layer_types", None) or ()
    }
    masks = {}
    for kind, reach in (windows or {"every layer": window}).items():
        seen = np.zeros((len(batch), 1, length, length), np.bool_)
        seen[:, 0, range(length), range(length)] = True  # padding sees itself, or its softmax would have nothing
        for place, row in enumerate(batch):
            seen[place, 0, : len(row.ids), : len(row.ids)] = row.mask(reach)
        masks[kind] = torch.from_numpy(seen).to(model.device)
    for place, row in enumerate(batch):
        ids[place, : len(row.ids)] = row.ids
        positions[place, : len(row.ids)] = row.positions
    out = model.get_decoder()(
        input_ids=torch.from_numpy(ids).to(model.device),
        position_ids=torch.from_numpy(positions).to(model.device),
        attention_mask=masks if windows else masks["every layer"],
        use_cache=False,
    )
    states: torch.Tensor = out.last_hidden_state
    return states


def _read(
    model: Any, states: torch.Tensor, row: Row, requests: Sequence[Request]
) -> list[tuple[int, tuple[float, bool]]]:
    """What each request of `row` asks of its hidden states, [nodes, hidden size]."""
    wanted = [(number, path[requests[number].first - 1 :]) for number, path in row.paths]
    nodes = np.unique(np.concatenate([path for _, path in wanted]))
    head = model.get_output_embeddings()
    at_once = max(1, LOGITS // head.weight.shape[0])
    targets = np.concatenate([requests[number].ids[requests[number].first :] for number, _ in wanted])
    places = np.searchsorted(nodes, np.concatenate([path for _, path in wanted]))
    logprobs = torch.empty(len(places))
    greedy = torch.empty(len(places), dtype=torch.bool)
    for start in range(0, len(nodes), at_once):
        part = nodes[start : start + at_once]
        found = head(states[torch.from_numpy(part).to(states.device)]).float().log_softmax(-1)
        here = np.flatnonzero((places >= start) & (places < start + len(part)))
        which = torch.from_numpy(places[here] - start).to(found.device)
        ids = torch.from_numpy(targets[here]).to(found.device)
        logprobs[here] = found[which, ids].cpu()
        greedy[here] = (found.argmax(-1)[which] == ids).cpu()
    ends = np.cumsum([len(path) for _, path in wanted])
    return [
        (number, (float(logprobs[end - len(path) : end].sum()), bool(greedy[end - len(path) : end].all())))
        for (number, path), end in zip(wanted, ends, strict=True)
    ]
