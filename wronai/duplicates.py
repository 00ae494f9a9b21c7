"""Texts that say the same again: content keys, fingerprints and MinHash bands, the clusters, and who stays of each.

Nothing here depends on the order or the origin of the texts: what a cluster holds follows from their content alone.
"""

from __future__ import annotations

import functools
import hashlib
import os
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

os.environ["DAFT_ANALYTICS_ENABLED"] = "0"  # otherwise the import itself is reported over the network
import daft

from wronai.strings import utf8

FOLDED = 0x40000  # from this code point on there is no letter, and case folding changes nothing
_SPACE = 0x20
_LENGTH = 56  # where the number of bytes stands in an entry of _folds


class MinHash(NamedTuple):
    """The shape of a signature: two texts are near duplicates when all `rows` hashes of one of the `bands` are equal.

    14 bands of 8 catch half of the pairs that share 0.69 of their n-grams, 92% at 0.8 and 5% at 0.5; these are
    the values of FineWeb.
    """

    bands: int = 14
    rows: int = 8
    ngram: int = 5


@functools.cache
def _folds() -> NDArray[np.int64]:
    """What stands for each code point in a content key: up to 7 bytes of UTF-8, first lowest, and their number on top.

    A space means that no word goes on here. Python's own casefold and isalnum say it, so that a key is the same as by
    its regular expressions, also where one character folds to several (ß to ss, İ to i and a combining dot).
    """
    breaks = _SPACE | 1 << _LENGTH
    folds = np.full(FOLDED, breaks, np.int64)
    for code, character in enumerate(map(chr, range(FOLDED))):
        folded = character.casefold()
        if folded.isalnum():
            written = folded.encode()
        elif len(folded) > 1:
            written = "".join(part if part.isalnum() else " " for part in folded).encode()
        else:
            continue
        folds[code] = int.from_bytes(written, "little") | len(written) << _LENGTH
    return folds


@numba.njit(cache=True, nogil=True)
def _content_keys(
    data: NDArray[np.uint8],
    begins: NDArray[np.int64],
    folds: NDArray[np.int64],
    keys: NDArray[np.uint8],
    key_begins: NDArray[np.int64],
) -> None:
    at = np.uint64(0)
    one = np.uint64(1)
    for text in range(len(begins) - 1):
        first = at
        last = np.int64(_SPACE)
        i, end = np.uint64(begins[text]), np.uint64(begins[text + 1])
        while i < end:
            code = np.int64(data[i])
            i += one
            if code < 0x80:
                byte = folds[code] & 0xFF
                keys[at] = byte
                at += np.uint64((byte != _SPACE) | (last != _SPACE))
                last = byte
                continue
            more = int(code >= 0xE0) + int(code >= 0xF0)
            code = (code & (0x1F >> more)) << 6 | data[i] & 0x3F
            i += one
            for _ in range(more):
                code = code << 6 | data[i] & 0x3F
                i += one
            fold = folds[code] if code < FOLDED else folds[_SPACE]
            for _ in range(fold >> _LENGTH):
                byte = fold & 0xFF
                keys[at] = byte
                at += np.uint64((byte != _SPACE) | (last != _SPACE))
                last = byte
                fold >>= 8
        at -= np.uint64((at > first) & (last == _SPACE))
        key_begins[text + 1] = at


def content_keys(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    r"""What copies of a text share whatever their case, punctuation and spacing: words and numbers, parted by a space.

    Each equals `" ".join(re.findall(r"[^\W_]+", text.casefold()))`; the array is of large_string.
    """
    data, begins = utf8(texts)
    # No fold writes more than twice the bytes that it reads; pages that are not written take no memory.
    keys = np.empty(2 * int(begins[-1] - begins[0]) + 1, np.uint8)
    key_begins = np.zeros(len(begins), np.int64)
    _content_keys(data, begins, _folds(), keys, key_begins)
    written = keys[: key_begins[-1]].copy()
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(key_begins), pa.py_buffer(written))


def fingerprints(keys: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A hash of 16 bytes for each key, the same on every machine: equal for exact duplicates only."""
    data, begins = utf8(keys)
    view = data.data
    digests = b"".join(
        hashlib.blake2b(view[begin:end], digest_size=16).digest() for begin, end in pairwise(begins.tolist())
    )
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(digests)])


def matrix(lists: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists of one fixed size, none of them null, as an array of [rows, size]."""
    whole = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    values: NDArray[Any] = whole.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(whole), whole.type.list_size)


def signatures(keys: pa.Array | pa.ChunkedArray, shape: MinHash) -> NDArray[np.uint32]:
    """MinHash of each key over n-grams of words, [keys, bands * rows]; Daft works it out."""
    whole = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    series = daft.Series.from_arrow(whole.fill_null(""))
    return matrix(series.minhash(num_hashes=shape.bands * shape.rows, ngram_size=shape.ngram).to_arrow())


_FNV_BASIS = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


@numba.njit(cache=True, nogil=True)
def _band_hashes(
    data: NDArray[np.uint8], begins: NDArray[np.int64], signed: NDArray[np.uint32], rows: int, ngram: int, bands: Any
) -> None:
    for text in range(len(signed)):
        gaps = 0
        whole = _FNV_BASIS
        for i in range(begins[text], begins[text + 1]):
            gaps += data[i] == _SPACE
            if gaps == ngram:
                break
            whole = (whole ^ np.uint64(data[i])) * _FNV_PRIME
        for band in range(bands.shape[1]):
            value = whole
            if gaps == ngram:
                value = _FNV_BASIS
                for row in range(rows):
                    value = (value ^ np.uint64(signed[text, band * rows + row])) * _MIX
                    value ^= value >> _HALF
            bands[text, band] = value


def band_hashes(keys: pa.Array | pa.ChunkedArray, signed: NDArray[np.uint32], shape: MinHash) -> NDArray[np.uint64]:
    """One hash for each band of each signature, [keys, bands]; near duplicates are equal in some column.

    A key of no more words than the n-gram has a single n-gram, of which Daft keeps 32 bits: among a million such texts
    a hundred pairs would be taken for copies. They get a hash of the key itself, so they are near their equals alone.
    """
    data, begins = utf8(keys)
    bands = np.empty((len(keys), shape.bands), np.uint64)
    _band_hashes(data, begins, signed, shape.rows, shape.ngram, bands)
    return bands


def signed(key: daft.Expression, shape: MinHash) -> daft.Expression:
    """What a Daft plan keeps of the signatures of content keys, as two columns for `matrix`.

    bands: `band_hashes`, to find what is near; hashes: of each hash a byte, to say how near (`similarities`).
    """
    size = shape.bands * shape.rows
    columns = {
        "bands": daft.DataType.fixed_size_list(daft.DataType.uint64(), shape.bands),
        "hashes": daft.DataType.fixed_size_list(daft.DataType.uint8(), size),
    }

    @daft.func.batch(return_dtype=daft.DataType.struct(columns), unnest=True)  # type: ignore[untyped-decorator]
    def hashed(keys: daft.Series, signatures: daft.Series) -> pa.Array:
        found = matrix(signatures.to_arrow())
        parts = (band_hashes(keys.to_arrow(), found, shape), found.astype(np.uint8))
        lists = [pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1]) for part in parts]
        return pa.StructArray.from_arrays(lists, names=list(columns))

    filled = key.fill_null("")
    return hashed(filled, daft.functions.minhash(filled, num_hashes=size, ngram_size=shape.ngram))


@numba.njit(cache=True, nogil=True)
def _root(parents: NDArray[np.int64], item: int) -> int:
    while parents[item] != item:
        parents[item] = parents[parents[item]]
        item = parents[item]
    return item


@numba.njit(cache=True, nogil=True)
def _clusters(bands: NDArray[np.uint64], slot_bits: int) -> NDArray[np.int64]:
    parents = np.arange(len(bands))
    seen = np.empty(1 << slot_bits, np.int64)
    last, shift = len(seen) - 1, np.uint64(64 - slot_bits)
    for band in range(bands.shape[1]):
        seen[:] = -1
        for text in range(len(bands)):
            value = bands[text, band]
            slot = np.int64((value * _MIX) >> shift)
            while seen[slot] >= 0 and bands[seen[slot], band] != value:
                slot = (slot + 1) & last
            if seen[slot] < 0:
                seen[slot] = text
                continue
            one, other = _root(parents, seen[slot]), _root(parents, text)
            parents[max(one, other)] = min(one, other)
    for text in range(len(bands)):
        parents[text] = _root(parents, text)
    return parents


def clusters(bands: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The root of each text: the first that it is joined to through equal hashes in one column, or a chain of them."""
    return _clusters(bands, (2 * len(bands) + 1).bit_length())


@numba.njit(cache=True, nogil=True)
def _representatives(
    roots: NDArray[np.int64], lengths: NDArray[np.int64], ranks: NDArray[np.int64]
) -> NDArray[np.int64]:
    best = np.full(len(roots), -1)
    for text in range(len(roots)):
        other = best[roots[text]]
        longer = other < 0 or lengths[text] > lengths[other]
        if longer or (lengths[text] == lengths[other] and ranks[text] < ranks[other]):
            best[roots[text]] = text
    return best[roots]


def representatives(
    roots: NDArray[np.int64], lengths: NDArray[np.int64], ranks: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each text the position of the one that stays of its cluster: the longest, of equals the lowest in rank.

    `ranks` is the place of each text's id among all ids; when none occurs twice, the order of texts changes nothing.
    """
    return _representatives(roots, lengths, ranks)


def similarities(hashes: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """About the share of n-grams that each text has in common with the one beside it, from a byte of each hash.

    A 256th of the bytes is equal by chance, which is taken off (Li and König, b-Bit Minwise Hashing, 2010).
    """
    equal = np.mean(hashes == others, axis=1)
    return np.asarray(np.maximum((equal - 1 / 256) / (1 - 1 / 256), 0.0))
