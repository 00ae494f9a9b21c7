"""Tokens: a tokenizer that knows the WronAI format, examples with their loss mask, and packed blocks.

A block holds whole examples one after another. `position_ids` start again at each of them, which is what tells
transformers' attention where one ends: nothing attends across examples as long as no attention mask is passed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from wronai import prompt

IGNORED = -100  # the label that cross entropy skips
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
BATCH_CHARACTERS = 1 << 20  # of text for the tokenizer at once: work for all its threads, and little to hold
GROUP_TOKENS = 1 << 23  # in a row group of blocks: 96 MB before compression
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema([("input_ids", _IDS), ("labels", _IDS), ("position_ids", _IDS)])

Ids = NDArray[np.int32]
Item = TypeVar("Item")


def load(path: Path) -> Any:
    """The tokenizer in the folder `path`. Raises FileNotFoundError or ValueError if there is no usable one.

    It splits text as `tokenizer.json` says and as nothing else does: transformers' classes for Qwen and Llama build
    their own splitting over the file's vocabulary, and a bare `tokenizer.model` becomes, silently, another tokenizer.
    Which tokens begin, end and pad comes from the files beside it; a chat template only from a file of its own.
    """
    file, template = path / "tokenizer.json", path / "chat_template.jinja"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no tokenizer.json; a base needs the fast tokenizer's file beside its weights")
    found = _described(path / "special_tokens_map.json") | _described(path / "tokenizer_config.json")
    options: dict[str, Any] = {role: _content(found[role]) for role in ROLES if found.get(role)}
    options |= {key: found[key] for key in ("model_max_length", "padding_side") if found.get(key)}
    extra = [*(found.get("extra_special_tokens") or ()), *(found.get("additional_special_tokens") or ())]
    if extra:
        options["extra_special_tokens"] = list(dict.fromkeys(map(_content, extra)))
    if template.is_file():
        options["chat_template"] = template.read_text(encoding="utf-8")
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file), clean_up_tokenization_spaces=False, **options)
    except Exception as error:  # the libraries raise bare Exception on a damaged file
        raise ValueError(f"{file}: not a tokenizer that transformers can read: {error}") from None


def _described(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`, empty if there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found {type(found).__name__}; expected an object that names the special tokens")
    return found


def _content(token: Any) -> str:
    """A special token as text, from a string or from the object that older files hold."""
    return str(token["content"] if isinstance(token, Mapping) else token)


def load_as_served(path: Path) -> Any:
    """The tokenizer that a user's `AutoTokenizer` makes of the folder `path` of a model."""
    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def extend(tokenizer: Any) -> Any:
    """Add the ten tokens, the chat template and a padding token that is not the end token; returns `tokenizer`.

    It pads with its own padding token, else its unknown one, else `<polish>`, which no loss ever falls on.
    Raises ValueError if it has no end token. One without a begin token (Qwen's) writes the format without.
    """
    if tokenizer.eos_token is None:
        raise ValueError(
            "the base's tokenizer has no eos_token, which ends an answer in the WronAI format; name it in its "
            "tokenizer_config.json"
        )
    tokenizer.add_special_tokens({"extra_special_tokens": list(prompt.TOKENS)}, replace_extra_special_tokens=False)
    candidates = (tokenizer.pad_token, tokenizer.unk_token, prompt.TOKENS[0])
    tokenizer.pad_token = next(token for token in candidates if token not in (None, tokenizer.eos_token))
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
    (ids,) = ids_of(tokenizer, [_text(tokenizer, messages, register)])
    return ids.tolist(), labels_of(tokenizer, ids).tolist()


def _text(tokenizer: Any, messages: Sequence[prompt.Message], register: prompt.Register) -> str:
    return prompt.render(messages, register, tokenizer.bos_token or "", tokenizer.eos_token)


def ids_of(tokenizer: Any, texts: Iterable[str]) -> Iterator[Ids]:
    """The ids of each text, without any token that it does not hold; of more texts than memory would."""
    for batch in batches(texts, len, BATCH_CHARACTERS):
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        for ids in tokenizer(batch, **options)["input_ids"]:
            yield np.array(ids, dtype=np.int32)


def labels_of(tokenizer: Any, ids: Ids) -> Ids:
    """The labels of a conversation: its answers with what closes each, and all that follows the last.

    Told by the tokens of the format, which no text can forge, and not by encoding it in pieces: a tokenizer may write
    the beginning of a text otherwise than its middle.
    """
    begins, ends = (ids == tokenizer.convert_tokens_to_ids(token) for token in (prompt.ANSWER, prompt.ANSWER_END))
    begun, ended = (np.cumsum(places) - places for places in (begins, ends))  # before each place
    return np.where((begun > ended) | (ended == ends.sum()), ids, np.int32(IGNORED))


def batches(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """The items in lists; the item that brings the sizes of a list to `limit` is its last."""
    batch: list[Item] = []
    held = 0
    for item in items:
        batch.append(item)
        held += size(item)
        if held >= limit:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def forges(tokenizer: Any, messages: Sequence[prompt.Message]) -> bool:
    """Whether the text of a message holds a special token (the HTML tag <s>, say), which would be read as the token."""
    forged = special(tokenizer)
    return any(forged.search(message["content"]) for message in messages)


def special(tokenizer: Any) -> re.Pattern[str]:
    """What finds any special token of the tokenizer in a text, also one that has no role, as Llama 3 reserves many."""
    known = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, dict.fromkeys([*tokenizer.all_special_tokens, *known]))))


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


class Examples(Protocol):
    """Ids and labels by number, each pair equally long."""

    def __getitem__(self, index: int, /) -> tuple[Ids, Ids]: ...


class Blocks:
    """Examples in blocks: a sequence of rows of `SCHEMA`, each made of the examples' arrays when it is asked for.

    A million examples of 200 tokens take 2 GB so, and 15 GB as lists.
    """

    def __init__(self, examples: Examples, bins: Sequence[Sequence[int]]) -> None:
        self._examples, self._bins = examples, bins

    def __len__(self) -> int:
        return len(self._bins)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {key: values.tolist() for key, values in self._block(self._bins[index]).items()}

    def arrays(self) -> Iterator[dict[str, Ids]]:
        """The rows as arrays, for `write`."""
        return map(self._block, self._bins)

    def _block(self, bin_: Sequence[int]) -> dict[str, Ids]:
        return _join([self._examples[index] for index in bin_])


def blocks(
    tokenizer: Any, examples: Iterable[dict[str, Any]], max_length: int, *, packing: bool = True
) -> tuple[Blocks, Ledger]:
    """Encode `examples` (id, register, messages) and pack them into blocks of at most `max_length` tokens.

    An example that is too long loses its last turns until it fits, and is counted as truncated; one whose first turn
    alone does not fit, or whose text holds a special token, is dropped and counted. No example is cut inside a turn.
    Without `packing` each block holds one example, in the order of their coming.
    """
    ledger = Ledger(max_length=max_length)
    forged = special(tokenizer)
    fitting: list[tuple[Ids, Ids]] = []
    for batch in batches(examples, _characters, BATCH_CHARACTERS):
        sound = [not any(forged.search(message["content"]) for message in example["messages"]) for example in batch]
        encoded = ids_of(
            tokenizer,
            (
                _text(tokenizer, example["messages"], example["register"])
                for example, is_sound in zip(batch, sound, strict=True)
                if is_sound
            ),
        )
        for example, is_sound in zip(batch, sound, strict=True):
            ledger.examples += 1
            if not is_sound:
                ledger.dropped += 1
                ledger.with_special_tokens += 1
                ledger.dropped_ids.append(example["id"])
                continue
            messages, ids = example["messages"], next(encoded)
            ledger.tokens += len(ids)
            ledger.longest = max(ledger.longest, len(ids))
            while len(ids) > max_length and len(messages) > 2:
                messages = messages[:-2]
                (ids,) = ids_of(tokenizer, [_text(tokenizer, messages, example["register"])])
            if len(ids) > max_length:
                ledger.dropped += 1
                ledger.dropped_ids.append(example["id"])
                continue
            labels = labels_of(tokenizer, ids)
            ledger.truncated += len(messages) < len(example["messages"])
            ledger.kept += 1
            ledger.tokens_kept += len(ids)
            ledger.tokens_supervised += int((labels != IGNORED).sum())
            fitting.append((ids, labels))
    bins = place([len(ids) for ids, _ in fitting], max_length, packing=packing)
    ledger.blocks = len(bins)
    return Blocks(fitting, bins), ledger


def _characters(example: Mapping[str, Any]) -> int:
    return sum(len(message["content"]) for message in example["messages"])


def place(lengths: Sequence[int], capacity: int, *, packing: bool) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `capacity`: packed, or one a bin."""
    return pack(lengths, capacity) if packing else [[index] for index in range(len(lengths))]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `capacity`, by best fit of the longest first; in a stable order.

    Best fit decreasing needs at most 11/9 of the fewest bins, plus a constant (Johnson 1974).
    """
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by the room that they have left
    free = 0  # bit n: whether some bin has n left
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        fits = free >> length
        if fits:
            left = length + (fits & -fits).bit_length() - 1  # the lowest bit: the tightest room
            chosen = room[left].pop()
            if not room[left]:
                free ^= 1 << left
        else:
            bins.append([])
            chosen, left = len(bins) - 1, capacity
        bins[chosen].append(index)
        room[left - length].append(chosen)
        free |= 1 << (left - length)
    return bins


def _join(examples: Sequence[tuple[Ids, Ids]]) -> dict[str, Ids]:
    """One block. The first label of each example is ignored: it would be predicted from the example before."""
    labels = np.concatenate([labels for _, labels in examples])
    starts = np.cumsum([0, *(len(ids) for ids, _ in examples[:-1])])
    labels[starts] = IGNORED
    return {
        "input_ids": np.concatenate([ids for ids, _ in examples]),
        "labels": labels,
        "position_ids": np.concatenate([np.arange(len(ids), dtype=np.int32) for ids, _ in examples]),
    }


def write(packed: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write blocks to the Parquet file `path`: input_ids, labels, position_ids, each a list of int32 a row.

    They are taken as they come and written a row group at a time; `Blocks.arrays` gives the rows without lists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
        for group in batches(packed, lambda block: len(block["input_ids"]), GROUP_TOKENS):
            file.write_table(pa.Table.from_arrays([_column(group, name) for name in SCHEMA.names], schema=SCHEMA))


def _column(group: Sequence[Mapping[str, Any]], name: str) -> pa.ListArray:
    ends = np.cumsum([0, *(len(block[name]) for block in group)], dtype=np.int32)
    values = np.concatenate([np.asarray(block[name], dtype=np.int32) for block in group])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values))


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
    documents = words = size = count = 0
    for batch in batches(texts, len, BATCH_CHARACTERS):
        documents += len(batch)
        words += sum(len(text.split()) for text in batch)
        size += sum(len(text.encode()) for text in batch)
        count += sum(len(ids) for ids in ids_of(tokenizer, batch))
    return {
        "documents": documents,
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
