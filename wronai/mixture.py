"""Documents beside instructions: pieces of running text, drawn until they hold their share of the tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wronai import tokens
from wronai.progress import Progress

BYTES_PER_TOKEN = 3.0  # of Polish, about: for the first guess of how many documents to read
MARGIN = 1.05  # more bytes than the guess asks for, so that the table is seldom read again

Numbers = NDArray[np.int64]


class Pieces:
    """Pieces of documents as a sequence of examples, (ids, labels), each trained on whole; their ids lie in a file."""

    def __init__(self, ids: tokens.Ids, starts: Numbers, lengths: Numbers) -> None:
        self.lengths = lengths
        self._ids, self._starts = ids, starts

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[tokens.Ids, tokens.Ids]:
        start = self._starts[index]
        ids = np.asarray(self._ids[start : start + self.lengths[index]])
        return ids, ids


@dataclass(frozen=True)
class Drawn:
    """What was drawn of a table of documents; `forged` of those met held a special token and were left out."""

    pieces: Pieces
    documents: int
    available: int
    forged: int

    @property
    def tokens(self) -> int:
        return int(self.pieces.lengths.sum())

    def metrics(self, blocks: int, max_length: int, instruction_tokens: int) -> dict[str, float | int]:
        """The counts, packing efficiency, and the share of all tokens that are the documents'."""
        return {
            "documents": self.documents,
            "documents_available": self.available,
            "documents_with_special_tokens": self.forged,
            "pieces": len(self.pieces),
            "tokens": self.tokens,
            "tokens_supervised": self.tokens - len(self.pieces),  # nothing comes before the first of a piece
            "blocks": blocks,
            "packing_efficiency": self.tokens / max(1, blocks * max_length),
            "share_documents": self.tokens / max(1, self.tokens + instruction_tokens),
        }


def draw(tokenizer: Any, path: Path, max_length: int, wanted: int | None, seed: int, work: Path) -> Drawn:
    """Pieces of at most `max_length` tokens, of documents of the table `path` in an order drawn from `seed`.

    They are as many whole pieces as first hold `wanted` tokens, or all there are if that is None or more; none is
    drawn twice. A document stands between its begin token, if the tokenizer has one, and its end token, and is cut
    where it is too long; a last token alone, which nothing would predict, is left out. The ids lie on disk, in a
    nameless file in the folder `work`: memory holds three numbers a piece, and the text of one row group.
    """
    sizes = _sizes(path)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(sizes))
    rank = np.argsort(order)
    bytes_before = np.concatenate([[0], np.cumsum(sizes[order])])  # of the first n documents in that order
    forged: list[int] = []  # ranks
    found: list[tuple[int, int, int]] = []  # rank of the document, start in the file, length
    drawn = read = 0
    progress = Progress("documents", int(bytes_before[-1]) if wanted is None else None, "bytes")
    with tempfile.TemporaryFile(dir=work) as file:
        while read < len(order) and (wanted is None or drawn < wanted):
            missing = np.inf if wanted is None else wanted - drawn
            rate = bytes_before[read] / drawn if drawn else BYTES_PER_TOKEN
            enough = int(np.searchsorted(bytes_before, bytes_before[read] + missing * rate * MARGIN))
            upto = min(max(enough, read + 1), len(order))
            drawn += _spool(tokenizer, _texts(path, rank, read, upto), max_length, file, found, forged, progress)
            read = upto
        file.flush()
        ids = np.memmap(file, dtype=np.int32, mode="r") if found else np.zeros(0, dtype=np.int32)
    progress.close(f"{drawn:,} tokens")
    ranks, starts, lengths = np.array(sorted(found), dtype=np.int64).reshape(-1, 3).T
    count = len(lengths) if wanted is None else int(np.searchsorted(np.cumsum(lengths), wanted)) + 1
    last = len(order) if count > len(ranks) or wanted is None else ranks[count - 1]
    return Drawn(
        Pieces(ids, starts[:count], lengths[:count]),
        documents=len(np.unique(ranks[:count])),
        available=len(order),
        forged=sum(place < last for place in forged),
    )


def _sizes(path: Path) -> Numbers:
    """The UTF-8 bytes of each document of the table."""
    with pq.ParquetFile(path) as file:
        sizes = [pc.binary_length(batch.column("text")).to_numpy() for batch in file.iter_batches(columns=["text"])]
    return np.concatenate([np.zeros(0, dtype=np.int64), *sizes]).astype(np.int64)


def _texts(path: Path, rank: Numbers, start: int, end: int) -> Iterator[tuple[int, str]]:
    """Rank and text of the documents whose rank is in [start, end), in the order of the table."""
    row = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["text"]):
            ranks = rank[row : row + batch.num_rows]
            row += batch.num_rows
            chosen = (ranks >= start) & (ranks < end)
            texts = batch.column("text").filter(pa.array(chosen)).to_pylist()
            yield from zip(ranks[chosen].tolist(), texts, strict=True)


def _spool(
    tokenizer: Any,
    texts: Iterable[tuple[int, str]],
    max_length: int,
    file: IO[bytes],
    found: list[tuple[int, int, int]],
    forged: list[int],
    progress: Progress,
) -> int:
    """Append the ids of `texts` to `file`, and where each piece lies to `found`; returns their tokens."""
    special = tokens.special(tokenizer)
    begin = [] if tokenizer.bos_token is None else [tokenizer.bos_token_id]
    start = before = file.tell() // 4
    for batch in tokens.batches(texts, lambda entry: len(entry[1]), tokens.BATCH_CHARACTERS):
        sound = [(rank, text) for rank, text in batch if not special.search(text)]
        forged += [rank for rank, text in batch if special.search(text)]
        for (rank, _), ids in zip(sound, tokens.ids_of(tokenizer, (text for _, text in sound)), strict=True):
            whole = np.array([*begin, *ids, tokenizer.eos_token_id], dtype=np.int32)
            whole = whole[: len(whole) - (len(whole) % max_length == 1)]
            file.write(whole.tobytes())
            for offset in range(0, len(whole), max_length):
                found.append((rank, start + offset, min(max_length, len(whole) - offset)))
            start += len(whole)
        progress.add(sum(len(text.encode()) for _, text in batch))
    return start - before
