"""How documents and instructions are stored: the columns of each table, and Parquet whose bytes repeat each run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

REGISTERS = ("formal", "informal", "neutral")
SPLITS = ("train", "validation", "test")

Row = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """A document as a source gave it: `content` holds the bytes as found, so that a wrong code page reaches cleaning.

    `text_kind` says which rules fit: edited (books, encyclopaedias), web (pages as they are), verse.
    """

    id: str
    source: str
    genre: str
    title: str
    media_type: str
    text_kind: str
    content: bytes


@dataclass(frozen=True)
class Instruction:
    """A conversation: `messages` are {"role", "content"} in order, `register` one of REGISTERS."""

    id: str
    source: str
    register: str
    task: str
    messages: list[dict[str, str]]


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

RAW_DOCUMENTS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("genre", pa.string()),
        ("title", pa.string()),
        ("media_type", pa.string()),
        ("text_kind", pa.string()),
        ("content", pa.binary()),
    ]
)
DOCUMENTS = pa.schema([(name, pa.string()) for name in ("id", "source", "genre", "title", "text")])
INSTRUCTIONS = pa.schema(
    [*((name, pa.string()) for name in ("id", "source", "register", "task")), ("messages", MESSAGES)]
)
REJECTED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("role", pa.string()),  # documents | instructions
        ("reason", pa.string()),
        ("value", pa.float64()),  # what the rule measured
        ("text", pa.string()),  # the head of the text
    ]
)


def as_rows(items: Iterable[Document | Instruction]) -> list[Row]:
    return [dict(vars(item)) for item in items]


GROUP_ROWS = 2048  # a row group of a table has at most so many rows and about so many bytes,
GROUP_BYTES = 8 << 20  # so that a reader holds little of it at once
PART_BYTES = 128 << 20  # of content in one file of a table that is written in parts


class TableWriter:
    """Writes rows to one Parquet file, in the order of their coming; the same rows give the same bytes.

    The file has its name once it is whole: leaving the block by an exception removes what was written.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._partial, self._schema = path, path.with_suffix(".partial"), schema
        self._pending: list[pa.Table] = []
        self._rows = self._bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._partial, schema, compression="zstd", compression_level=3)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
            self._writer.close()
            self._partial.replace(self._path)
        else:
            self._writer.close()
            self._partial.unlink()

    def add(self, rows: pa.Table) -> None:
        ends = np.cumsum(_row_bytes(rows))
        start = 0
        while start < rows.num_rows:
            # The row that fills the group is its last, however the rows come: the same rows are in the same groups.
            room = GROUP_BYTES - self._bytes + (ends[start - 1] if start else 0)
            end = min(int(np.searchsorted(ends, room)) + 1, start + GROUP_ROWS - self._rows, rows.num_rows)
            self._pending.append(rows.slice(start, end - start))
            self._rows += end - start
            self._bytes += int(ends[end - 1] - (ends[start - 1] if start else 0))
            start = end
            if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending).combine_chunks(), row_group_size=GROUP_ROWS)
        self._pending, self._rows, self._bytes = [], 0, 0


def _row_bytes(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The bytes of the strings in each row, also of those in lists of structs."""
    sizes = np.zeros(rows.num_rows, dtype=np.int64)
    for column in rows.columns:
        if pa.types.is_list(column.type):
            items = column.combine_chunks()
            owners = pc.list_parent_indices(items).to_numpy()
            for value in items.flatten().flatten():
                sizes += np.bincount(owners, pc.binary_length(value).to_numpy(), len(sizes)).astype(np.int64)
        elif not pa.types.is_primitive(column.type):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    return sizes


class PartsWriter:
    """Writes documents or instructions to `folder`/00000.parquet, 00001.parquet, …, each of about PART_BYTES."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._pending: list[Document | Instruction] = []
        self._number = self._pending_bytes = self._part_bytes = 0
        self._part = TableWriter(folder / "00000.parquet", schema)

    def __enter__(self) -> PartsWriter:
        return self

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is None:
            self._flush()
        self._part.__exit__(*failure)

    def add(self, item: Document | Instruction) -> None:
        if self._part_bytes >= PART_BYTES:
            self._part.__exit__(None)
            self._number, self._part_bytes = self._number + 1, 0
            self._part = TableWriter(self._folder / f"{self._number:05d}.parquet", self._schema)
        self._pending.append(item)
        self._pending_bytes += size_of(item)
        if self._pending_bytes >= GROUP_BYTES or len(self._pending) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._part.add(pa.Table.from_pylist(as_rows(self._pending), schema=self._schema))
        self._part_bytes += self._pending_bytes
        self._pending, self._pending_bytes = [], 0


def size_of(item: Document | Instruction) -> int:
    """The bytes of its text."""
    if isinstance(item, Document):
        return len(item.content)
    return sum(len(turn["content"].encode(errors="replace")) for turn in item.messages)


def write_table(rows: Iterable[Row], schema: pa.Schema, path: Path) -> None:
    """Write `rows` sorted by id to Parquet at `path`: the same rows in any order give the same bytes."""
    with TableWriter(path, schema) as table:
        table.add(pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["id"])), schema=schema))


class SortedRuns:
    """Tables with an id column, more than memory holds, given back sorted by id: an external merge sort in `folder`."""

    RUN_BYTES = 64 << 20
    SLICE_BYTES = 1 << 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._pending: list[pa.Table] = []
        self._bytes = 0
        self._ids: list[pa.ChunkedArray] = []  # of each run, in its order
        self._arrivals: list[
            np.ndarray[Any, np.dtype[np.int64]]
        ] = []  # of each run: the numbers of its rows as they came
        self._came = 0
        self._run_of = np.zeros(0, dtype=np.int64)  # of each row by id

    def add(self, rows: pa.Table) -> None:
        self._pending.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= self.RUN_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        order = pc.sort_indices(table, [("id", "ascending")])
        table = table.take(order)
        rows = max(table.num_rows * self.SLICE_BYTES // max(table.nbytes, 1), 1)
        with pa.ipc.new_file(self._folder / f"{len(self._ids):05d}.arrow", table.schema) as file:
            file.write_table(table, max_chunksize=rows)
        self._ids.append(table.column("id"))
        self._arrivals.append(order.to_numpy() + self._came)
        self._came += table.num_rows
        self._pending, self._bytes = [], 0

    def order(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The numbers of the rows as they came, in the order of their ids. No row can be added after it."""
        self._flush()
        if not self._ids:
            return np.zeros(0, dtype=np.int64)
        ids = pa.chunked_array([chunk for run in self._ids for chunk in run.chunks])
        runs = np.repeat(np.arange(len(self._ids)), [len(run) for run in self._ids])
        arrivals = np.concatenate(self._arrivals)
        order = pc.sort_indices(ids).to_numpy()
        self._run_of = runs[order]
        self._ids.clear()
        return np.asarray(arrivals[order])

    def __iter__(self) -> Iterator[pa.Table]:
        """The rows by id, a few megabytes at a time; after `order`."""
        names = sorted(self._folder.glob("*.arrow"))
        cursors = [_Cursor(name) for name in names]
        mean = max(sum(name.stat().st_size for name in names) // max(len(self._run_of), 1), 1)
        step = max(GROUP_BYTES // mean, 1)
        for start in range(0, len(self._run_of), step):
            runs = self._run_of[start : start + step]
            counts = np.bincount(runs, minlength=len(cursors))
            taken = pa.concat_tables(cursors[run].take(int(counts[run])) for run in np.flatnonzero(counts))
            back = np.empty(len(runs), dtype=np.int64)
            back[np.argsort(runs, kind="stable")] = np.arange(len(runs))
            yield taken.take(back)


class _Cursor:
    """Reads an Arrow file from its beginning, as many rows as are asked for."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.OSFile(str(path)))
        self._next = 0
        self._rest: pa.Table = self._reader.schema.empty_table()

    def take(self, rows: int) -> pa.Table:
        parts = [self._rest]
        while sum(part.num_rows for part in parts) < rows:
            parts.append(pa.Table.from_batches([self._reader.get_batch(self._next)]))
            self._next += 1
        table = pa.concat_tables(parts)
        self._rest = table.slice(rows)
        return table.slice(0, rows)


def checked_table(path: Path, schema: pa.Schema, made_by: str) -> Path:
    """`path`, if a table with these columns is there; FileNotFoundError or ValueError names the stage that makes it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the stage {made_by} makes it")
    try:
        found = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable Parquet file ({error}); run the stage {made_by} again") from error
    if found != schema.names:
        raise ValueError(f"{path} has the columns {found}, expected {schema.names}; run the stage {made_by} again")
    return path


def checked_parts(folder: Path, schema: pa.Schema, made_by: str) -> list[Path]:
    """The files of a table that PartsWriter wrote; errors as in `checked_table`."""
    paths = sorted(folder.glob("*.parquet")) or [folder / "00000.parquet"]
    return [checked_table(path, schema, made_by) for path in paths]


def count_rows(paths: Iterable[Path]) -> int:
    return sum(pq.ParquetFile(path).metadata.num_rows for path in paths)


def read_table(path: Path, schema: pa.Schema, made_by: str) -> list[Row]:
    """The rows of a table that `TableWriter` wrote; errors as in `checked_table`."""
    rows: list[Row] = pq.read_table(checked_table(path, schema, made_by)).to_pylist()
    return rows


def iterate_table(path: Path, schema: pa.Schema, made_by: str) -> Iterator[Row]:
    """The rows of a table that `TableWriter` wrote, a row group held at a time; errors as in `checked_table`."""
    with pq.ParquetFile(checked_table(path, schema, made_by)) as file:
        for batch in file.iter_batches(GROUP_ROWS):
            yield from batch.to_pylist()


def read_parts(folder: Path, schema: pa.Schema, made_by: str) -> list[Row]:
    """The rows of a table that PartsWriter wrote; errors as in `checked_table`."""
    return [row for path in checked_parts(folder, schema, made_by) for row in read_table(path, schema, made_by)]


def split_of(content: str, seed: int, share_validation: float, share_test: float) -> str:
    """The split of a text, by a hash of its content: another text added or removed moves it nowhere."""
    digest = hashlib.sha256(f"{seed}\n{content}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < share_test:
        return "test"
    return "validation" if position < share_test + share_validation else "train"
