"""How documents and instructions are stored: the columns of each table, and Parquet whose bytes repeat each run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
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
    return [asdict(item) for item in items]


def write_table(rows: Iterable[Row], schema: pa.Schema, path: Path) -> None:
    """Write `rows` sorted by id and role to Parquet at `path`: the same rows in any order give the same bytes."""
    ordered = sorted(rows, key=lambda row: (row["id"], row.get("role", "")))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(
        pa.Table.from_pylist(ordered, schema=schema),
        partial,
        compression="zstd",
        compression_level=3,
        row_group_size=2048,
    )
    partial.replace(path)


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


def read_table(path: Path, schema: pa.Schema, made_by: str) -> list[Row]:
    """The rows of a table that `write_table` wrote; errors as in `checked_table`."""
    rows: list[Row] = pq.read_table(checked_table(path, schema, made_by)).to_pylist()
    return rows


def split_of(content: str, seed: int, share_validation: float, share_test: float) -> str:
    """The split of a text, by a hash of its content: another text added or removed moves it nowhere."""
    digest = hashlib.sha256(f"{seed}\n{content}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < share_test:
        return "test"
    return "validation" if position < share_test + share_validation else "train"


def by_split(rows: Sequence[Row], splits: Sequence[str]) -> dict[str, list[Row]]:
    """`rows` under their split (`splits` runs parallel to them); each of SPLITS is there, if empty."""
    grouped: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row, split in zip(rows, splits, strict=True):
        grouped[split].append(row)
    return grouped
