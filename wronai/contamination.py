"""Finds texts that quote a benchmark: they share an n-gram of words with one of its items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wronai import duplicates, strings

SHORTEST_NGRAM = 8  # words; as GPT-3, which went down from 13 to 8 for benchmarks of short items


@dataclass(frozen=True)
class Benchmark:
    """The texts of one file of benchmark items, as content keys, to be looked for by `n` words at a time.

    A text of SHORTEST_NGRAM words or more but fewer than n counts whole; shorter ones are left out, and an item that
    has no other cannot be recognized: those are `items_too_short`.
    """

    name: str
    n: int
    items: int
    items_too_short: int
    texts: tuple[str, ...]


def read_benchmarks(folder: Path, n: int) -> list[Benchmark]:
    """The items of every task in the bundles of `folder`, by the task's name. FileNotFoundError when there is none."""
    found = []
    for manifest in sorted(folder.glob("*/bundle.json")):
        for task, described in sorted(json.loads(manifest.read_text(encoding="utf-8"))["tasks"].items()):
            path = manifest.parent / task / f"{described['asked']}.parquet"
            found.append(_read_benchmark(task, pq.read_table(path).to_pylist(), n))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no bundle of benchmark items to check against; prepare_benchmarks makes them"
        )
    return sorted(found, key=lambda benchmark: benchmark.name)


def _read_benchmark(name: str, rows: Sequence[dict[str, Any]], n: int) -> Benchmark:
    texts: list[str] = []
    item_of: list[int] = []
    for item, row in enumerate(rows):
        found = list(_texts_in(list(row.values())))
        texts += found
        item_of += [item] * len(found)
    keys = duplicates.content_keys(pa.array(texts, pa.string())).to_pylist()
    long = [(key, item) for key, item in zip(keys, item_of, strict=True) if key.count(" ") + 1 >= SHORTEST_NGRAM]
    too_short = len(rows) - len({item for _, item in long})
    return Benchmark(name, n, len(rows), too_short, tuple(key for key, _ in long))


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in a field: itself, its choices, the turns of its conversation."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(inner)


# An n-gram's hash is the polynomial in BASE whose coefficients are the hashes of its words, modulo 2 ** 64: the
# difference of two prefixes of the text's. Equal hashes are not believed: the bytes of the words are compared.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_FNV_BASIS = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_HALF = np.uint64(32)
_BITS = np.uint64(63)
_WORD_BITS = np.uint64(6)
_SPACE = 0x20


@numba.njit(cache=True, nogil=True)
def _read_words(
    data: NDArray[np.uint8], begin: int, end: int, starts: NDArray[np.int64], prefixes: NDArray[np.uint64]
) -> int:
    """Fill in where each word of a key starts, and the hash of all words before it; give the number of words."""
    if begin == end:
        return 0
    words = 0
    starts[0] = begin
    prefixes[0] = 0
    value = _FNV_BASIS
    for i in range(begin, end + 1):
        if i < end and data[i] != _SPACE:
            value = (value ^ np.uint64(data[i])) * _FNV_PRIME
            continue
        value = (value ^ (value >> _HALF)) * _BASE
        value ^= value >> _HALF
        prefixes[words + 1] = prefixes[words] * _BASE + value
        words += 1
        starts[words] = i + 1
        value = _FNV_BASIS
    return words


@numba.njit(cache=True, nogil=True)
def _powers(most: int) -> NDArray[np.uint64]:
    powers = np.ones(most + 1, np.uint64)
    for n in range(most):
        powers[n + 1] = powers[n] * _BASE
    return powers


@numba.njit(cache=True, nogil=True)
def _slot_of(
    value: np.uint64,
    data: NDArray[np.uint8],
    begin: int,
    end: int,
    slots: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    spans: NDArray[np.int64],
    pool: NDArray[np.uint8],
) -> int:
    """The slot of the n-gram with this hash whose bytes are data[begin:end], or the free one where it would go."""
    last = len(slots) - 1
    slot = int(value >> _HALF) & last
    while slots[slot] >= 0:
        ngram = slots[slot]
        first = spans[ngram, 0]
        if hashes[ngram] == value and spans[ngram, 1] - first == end - begin:
            i = 0
            while i < end - begin and pool[first + i] == data[begin + i]:
                i += 1
            if i == end - begin:
                break
        slot = (slot + 1) & last
    return slot


@numba.njit(cache=True, nogil=True)
def _enter(
    pool: NDArray[np.uint8],
    begins: NDArray[np.int64],
    lengths: NDArray[np.int64],
    shortest: int,
    slots: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    spans: NDArray[np.int64],
    bits: NDArray[np.uint64],
    entered: NDArray[np.int64],
) -> int:
    """Enter the n-grams of lengths[text] words of each text, note their numbers in `entered`, give how many differ."""
    powers = _powers(lengths.max())
    most = np.diff(begins).max() // 2 + 2
    starts, prefixes = np.empty(most, np.int64), np.empty(most, np.uint64)
    differ = at = 0
    for text in range(len(lengths)):
        n = lengths[text]
        for word in range(_read_words(pool, begins[text], begins[text + 1], starts, prefixes) - n + 1):
            begin, end = starts[word], starts[word + n] - 1
            value = prefixes[word + n] - prefixes[word] * powers[n]
            slot = _slot_of(value, pool, begin, end, slots, hashes, spans, pool)
            if slots[slot] < 0:
                slots[slot] = differ
                hashes[differ] = value
                spans[differ] = begin, end
                differ += 1
                head = prefixes[word + shortest] - prefixes[word] * powers[shortest]
                bits[(head >> _WORD_BITS) & np.uint64(len(bits) - 1)] |= np.uint64(1) << (head & _BITS)
            entered[at] = slots[slot]
            at += 1
    return differ


@numba.njit(cache=True, nogil=True)
def _find(
    data: NDArray[np.uint8],
    begins: NDArray[np.int64],
    lengths: NDArray[np.int64],
    slots: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    spans: NDArray[np.int64],
    pool: NDArray[np.uint8],
    bits: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Each occurrence of an n-gram: [found, 2], the text and the n-gram."""
    powers = _powers(lengths[-1])
    most = np.diff(begins).max() // 2 + 2
    starts, prefixes = np.empty(most, np.int64), np.empty(most, np.uint64)
    found = np.empty((64, 2), np.int64)
    at = 0
    shortest = lengths[0]
    last = np.uint64(len(bits) - 1)
    for text in range(len(begins) - 1):
        words = _read_words(data, begins[text], begins[text + 1], starts, prefixes)
        for word in range(words - shortest + 1):
            head = prefixes[word + shortest] - prefixes[word] * powers[shortest]
            if not (bits[(head >> _WORD_BITS) & last] >> (head & _BITS)) & np.uint64(1):
                continue
            for n in lengths:
                if word + n > words:
                    break
                value = prefixes[word + n] - prefixes[word] * powers[n]
                slot = _slot_of(value, data, starts[word], starts[word + n] - 1, slots, hashes, spans, pool)
                if slots[slot] < 0:
                    continue
                if at == len(found):
                    grown = np.empty((2 * at, 2), np.int64)
                    grown[:at] = found
                    found = grown
                found[at, 0], found[at, 1] = text, slots[slot]
                at += 1
    return found[:at]


class Matcher:
    """Counts the n-grams that texts share with each of `benchmarks`. What is pickled is the benchmarks' texts alone."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self.benchmarks = tuple(benchmarks)
        texts = [text for benchmark in self.benchmarks for text in benchmark.texts]
        words = np.array([text.count(" ") + 1 for text in texts], np.int64)
        owners = np.repeat(np.arange(len(self.benchmarks)), [len(item.texts) for item in self.benchmarks])
        sizes = np.minimum(words, np.array([item.n for item in self.benchmarks], np.int64)[owners])
        ngrams = words - sizes + 1  # of each text
        total = int(ngrams.sum())
        self._lengths = np.unique(sizes)
        self._pool, begins = strings.utf8(texts)
        self._slots = np.full(1 << (2 * total).bit_length(), -1, np.int32)
        self._hashes = np.empty(total, np.uint64)
        self._spans = np.empty((total, 2), np.int64)
        # 32 bits an n-gram, of which the first words set one: a text that shares nothing seldom gets past it
        self._bits = np.zeros(1 << (total // 2).bit_length(), np.uint64)
        entered = np.empty(total, np.int64)
        differ = 0
        if total:
            differ = _enter(
                self._pool, begins, sizes, self._lengths[0], self._slots, self._hashes, self._spans, self._bits, entered
            )
        self._owned = np.zeros((differ, len(self.benchmarks)), np.bool_)
        self._owned[entered, np.repeat(owners, ngrams)] = True

    def __reduce__(self) -> tuple[type[Matcher], tuple[tuple[Benchmark, ...]]]:
        return Matcher, (self.benchmarks,)

    def counts(self, keys: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """How many distinct n-grams each content key shares with each benchmark, [keys, benchmarks]."""
        counts = np.zeros((len(keys), len(self.benchmarks)), np.int64)
        if len(keys) and len(self._lengths):
            data, begins = strings.utf8(keys)
            table = (self._lengths, self._slots, self._hashes, self._spans, self._pool, self._bits)
            texts, ngrams = np.unique(_find(data, begins, *table), axis=0).T
            np.add.at(counts, texts, self._owned[ngrams])
        return counts

    def shared(self, keys: pa.Array | pa.ChunkedArray) -> list[dict[str, int]]:
        """`counts` by the names of the benchmarks that a key shares an n-gram with; an empty dict for most texts."""
        shared: list[dict[str, int]] = [{} for _ in range(len(keys))]
        counts = self.counts(keys)
        for text, benchmark in zip(*np.nonzero(counts), strict=True):
            shared[text][self.benchmarks[benchmark].name] = int(counts[text, benchmark])
        return shared
