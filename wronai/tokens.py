"""Tokens: a tokenizer that knows the WronAI format, examples with their loss mask, and packed blocks.

A block holds whole examples one after another. `position_ids` start again at each of them, which is what tells
transformers' attention where one ends: nothing attends across examples as long as no attention mask is passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from wronai import prompt

IGNORED = -100  # the label that cross entropy skips
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema([("input_ids", _IDS), ("labels", _IDS), ("position_ids", _IDS)])


def load(path: Path) -> Any:
    """The tokenizer in the folder `path`. Raises FileNotFoundError or ValueError if there is no usable one.

    Only a `tokenizer.json` will do: from a bare `tokenizer.model` transformers builds, silently, another tokenizer.
    """
    if not (path / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{path}: no tokenizer.json; a base needs the fast tokenizer's file beside its weights")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the libraries raise bare Exception on a damaged file
        raise ValueError(f"{path}/tokenizer.json: not a tokenizer that transformers can read: {error}") from None


def extend(tokenizer: Any) -> Any:
    """Add the ten tokens, the chat template and a padding token that is not the end token; returns `tokenizer`.

    Raises ValueError if the tokenizer lacks a begin or end token, or any token to pad with.
    """
    for role in ("bos", "eos"):
        if getattr(tokenizer, f"{role}_token") is None:
            raise ValueError(f"the base's tokenizer has no {role}_token, which the WronAI format needs")
    tokenizer.add_special_tokens({"extra_special_tokens": list(prompt.TOKENS)})
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token is None:
            raise ValueError("the base's tokenizer has neither a padding token apart from its end token nor unk_token")
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.chat_template = prompt.CHAT_TEMPLATE
    return tokenizer


def added_ids(tokenizer: Any) -> list[int]:
    """The ids of the ten tokens, in the order of `prompt.TOKENS`. Raises ValueError if the tokenizer lacks one."""
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in prompt.TOKENS if token not in vocabulary]:
        raise ValueError(f"the tokenizer lacks {', '.join(missing)}; tokenize_text writes one that has them")
    return [vocabulary[token] for token in prompt.TOKENS]


def encode(
    tokenizer: Any, messages: Sequence[prompt.Message], register: prompt.Register
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation, equally long; the label is the id where loss falls and IGNORED elsewhere.

    Labels stand at the place of their own id: the model shifts them.
    """
    ids: list[int] = []
    labels: list[int] = []
    for text, supervised in prompt.segments(messages, register, tokenizer.bos_token, tokenizer.eos_token):
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if supervised else [IGNORED] * len(piece)
    return ids, labels


def forges(tokenizer: Any, messages: Sequence[prompt.Message]) -> bool:
    """Whether the text of a message holds a special token (the HTML tag <s>, say), which would be read as the token."""
    return any(token in message["content"] for token in tokenizer.all_special_tokens for message in messages)


@dataclass
class Ledger:
    """What came in, what was kept, shortened, dropped, and how much of it is trained on."""

    examples: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: int = 0
    with_special_tokens: int = 0  # of those dropped
    tokens: int = 0
    tokens_kept: int = 0
    tokens_supervised: int = 0
    blocks: int = 0
    max_length: int = 0
    longest: int = 0
    dropped_ids: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, float | int]:
        """The counts, the shares lost, and packing efficiency: tokens kept over the room in the blocks."""
        return {
            "examples": self.examples,
            "examples_kept": self.kept,
            "examples_truncated": self.truncated,
            "examples_dropped": self.dropped,
            "examples_with_special_tokens": self.with_special_tokens,
            "share_truncated": self.truncated / max(1, self.examples),
            "share_dropped": self.dropped / max(1, self.examples),
            "tokens": self.tokens,
            "tokens_kept": self.tokens_kept,
            "tokens_supervised": self.tokens_supervised,
            "longest_example": self.longest,
            "blocks": self.blocks,
            "packing_efficiency": self.tokens_kept / max(1, self.blocks * self.max_length),
        }


def blocks(
    tokenizer: Any, examples: Iterable[dict[str, Any]], max_length: int
) -> tuple[list[dict[str, list[int]]], Ledger]:
    """Encode `examples` (id, register, messages) and pack them into blocks of at most `max_length` tokens.

    An example that is too long loses its last turns until it fits, and is counted as truncated; one whose first turn
    alone does not fit, or whose text holds a special token, is dropped and counted. No example is cut inside a turn.
    """
    ledger = Ledger(max_length=max_length)
    fitting = []
    for example in examples:
        messages = list(example["messages"])
        ledger.examples += 1
        if forges(tokenizer, messages):
            ledger.dropped += 1
            ledger.with_special_tokens += 1
            ledger.dropped_ids.append(example["id"])
            continue
        ids, labels = encode(tokenizer, messages, example["register"])
        ledger.tokens += len(ids)
        ledger.longest = max(ledger.longest, len(ids))
        while len(ids) > max_length and len(messages) > 2:
            messages = messages[:-2]
            ids, labels = encode(tokenizer, messages, example["register"])
        if len(ids) > max_length:
            ledger.dropped += 1
            ledger.dropped_ids.append(example["id"])
            continue
        ledger.truncated += len(messages) < len(example["messages"])
        ledger.kept += 1
        ledger.tokens_kept += len(ids)
        ledger.tokens_supervised += sum(label != IGNORED for label in labels)
        fitting.append((ids, labels))
    packed = [_join([fitting[index] for index in bin_]) for bin_ in pack([len(ids) for ids, _ in fitting], max_length)]
    ledger.blocks = len(packed)
    return packed, ledger


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `capacity`, by best fit of the longest first; in a stable order.

    Best fit decreasing needs at most 11/9 of the fewest bins, plus a constant (Johnson 1974).
    """
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by the room that they have left
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        left = next((free for free in range(length, capacity + 1) if room[free]), None)
        if left is None:
            bins.append([])
            chosen, left = len(bins) - 1, capacity
        else:
            chosen = room[left].pop()
        bins[chosen].append(index)
        room[left - length].append(chosen)
    return bins


def _join(examples: Sequence[tuple[list[int], list[int]]]) -> dict[str, list[int]]:
    """One block. The first label of each example is ignored: it would be predicted from the example before."""
    block: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for ids, labels in examples:
        block["input_ids"] += ids
        block["labels"] += [IGNORED, *labels[1:]]
        block["position_ids"] += range(len(ids))
    return block


def write(packed: Sequence[dict[str, list[int]]], path: Path) -> None:
    """Write blocks to the Parquet file `path`: input_ids, labels, position_ids, each a list of int32 a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(packed), schema=SCHEMA), path, compression="zstd")


def read(path: Path) -> datasets.Dataset:
    """The blocks of the Parquet file `path`. Raises FileNotFoundError or ValueError if there are none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; tokenize_text makes it")
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not blocks of tokens ({error}); run tokenize_text again") from None
    if not table.num_rows:
        raise ValueError(f"{path}: no block; tokenize_text kept no example of this split")
    return datasets.Dataset(table)


def fertility(tokenizer: Any, texts: Iterable[str]) -> dict[str, float | int]:
    """What running text costs: words (by white space), UTF-8 bytes, tokens, tokens a word, bytes a token."""
    texts = list(texts)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    count = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else 0
    return {
        "documents": len(texts),
        "words": words,
        "bytes": size,
        "tokens": count,
        "tokens_per_word": count / max(1, words),
        "bytes_per_token": size / max(1, count),
    }


def epochs(rows: int, needed: int, seed: int) -> list[int]:
    """`needed` row indices: one seeded permutation of all `rows` after another.

    The order is laid out at once, so that a training that resumes in the middle of an epoch goes on with the next row.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    order: list[int] = []
    while len(order) < needed:
        order += generator.permutation(rows).tolist()
    return order[:needed]
