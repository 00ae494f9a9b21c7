"""Where two versions of a file differ, tensor by tensor or row by row, and how far they are apart."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SHOWN = 3  # differing tensors, rows or values of a file that are spelled out
WIDTH = 60  # characters of a value that are shown
BATCH = 4096  # rows of a table that are looked at together


class Discrepancy(NamedTuple):
    """One place, the value there in both versions, and their distance where one can be told."""

    where: str
    recorded: str
    found: str
    apart: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.recorded} recorded, {self.found} found"
        return f"{text}, {self.apart}" if self.apart else text


@dataclass(frozen=True)
class Comparison:
    """How many of a file's parts (`unit`: tensors, rows, lines, values) differ, and the first of them."""

    unit: str
    differing: int
    shown: list[Discrepancy]

    def __str__(self) -> str:
        return f"1 {self.unit[:-1]} differs" if self.differing == 1 else f"{self.differing:,} {self.unit} differ"


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()


def compare(recorded: Path, found: Path) -> Comparison:
    """Compare two files whose bytes differ by what their name says they hold; whatever cannot be read so, by bytes."""
    readers: dict[str, Callable[[Path, Path], Comparison]] = {
        ".safetensors": _safetensors,
        ".parquet": _parquet,
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
    }
    from safetensors import SafetensorError

    for reader in (readers.get(found.suffix), _lines):
        if reader is not None:
            try:
                comparison = reader(recorded, found)
            except (ValueError, OSError, SafetensorError):  # damaged, or not what its name says
                continue
            if comparison.differing:
                return comparison
    return _bytes(recorded, found)


def walk(recorded: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two JSON values that are not the same to the last digit, each with its dotted path."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in sorted(recorded.keys() | found.keys(), key=str):
            below = f"{path}.{key}" if path else str(key)
            yield from walk(recorded.get(key, MISSING), found.get(key, MISSING), below)
    elif isinstance(recorded, list) and isinstance(found, list):
        for number, (old, new) in enumerate(itertools.zip_longest(recorded, found, fillvalue=MISSING)):
            yield from walk(old, new, f"{path}[{number}]")
    elif type(recorded) is not type(found) or repr(recorded) != repr(found):
        yield path, recorded, found


def outside(recorded: Any, found: Any, tolerance: float) -> list[Discrepancy]:
    """The leaves of two JSON values that `tolerance` does not excuse.

    It excuses numbers that are apart by less than it, absolutely or relative to the larger one. Keys, lengths, strings
    and truth values must be equal.
    """
    return [
        discrepancy(path, old, new)
        for path, old, new in walk(recorded, found)
        if not (_number(old) and _number(new) and math.isclose(old, new, rel_tol=tolerance, abs_tol=tolerance))
    ]


def discrepancy(where: str, recorded: Any, found: Any) -> Discrepancy:
    """Both values cut to what can be read, around the first character where two strings part."""
    if isinstance(recorded, str) and isinstance(found, str):
        first = next((i for i, (a, b) in enumerate(zip(recorded, found, strict=False)) if a != b), None)
        first = min(len(recorded), len(found)) if first is None else first
        start = max(0, first - WIDTH // 2)
        was, now = (("…" if start else "") + repr(text[start : start + WIDTH]) for text in (recorded, found))
        return Discrepancy(where, was, now, f"from character {first:,} on")
    apart = ""
    if _number(recorded) and _number(found):
        gap = abs(recorded - found)
        apart = f"{gap:.3g} apart" + (f" (relative {gap / abs(recorded):.2g})" if recorded else "")
    return Discrepancy(where, _short(recorded), _short(found), apart)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"


def _first(unit: str, differences: Iterable[Discrepancy]) -> Comparison:
    """Counts all, keeps the first."""
    shown: list[Discrepancy] = []
    differing = 0
    for differing, difference in enumerate(differences, start=1):  # noqa: B007 (the count is used below)
        if len(shown) < SHOWN:
            shown.append(difference)
    return Comparison(unit, differing, shown)


def _safetensors(recorded: Path, found: Path) -> Comparison:
    from safetensors import safe_open

    def differences() -> Iterator[Discrepancy]:
        with safe_open(recorded, "pt") as old, safe_open(found, "pt") as new:
            if old.metadata() != new.metadata():
                yield Discrepancy("metadata", repr(old.metadata()), repr(new.metadata()))
            here, there = {*old.keys()}, {*new.keys()}
            for name in sorted(here | there):
                if name in here and name in there:
                    yield from _tensor(name, old.get_tensor(name), new.get_tensor(name))
                else:
                    was, now = ("a tensor" if name in names else repr(MISSING) for names in (here, there))
                    yield Discrepancy(name, was, now)

    return _first("tensors", differences())


def _tensor(name: str, recorded: Any, found: Any) -> Iterator[Discrepancy]:
    """The largest difference of two tensors, absolute and relative, with its index."""
    import torch

    kinds = [f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for value in (recorded, found)]
    if kinds[0] != kinds[1]:
        yield Discrepancy(name, kinds[0], kinds[1])
        return
    raw = [value.contiguous().reshape(-1).view(torch.uint8) for value in (recorded, found)]
    if torch.equal(*raw):
        return
    old, new = recorded.double().reshape(-1), found.double().reshape(-1)
    gap = (old - new).abs().nan_to_num(nan=math.inf)
    gap[(old == new) | (old.isnan() & new.isnan())] = 0.0
    most = int(gap.argmax())
    index = [int(place) for place in torch.unravel_index(torch.tensor(most), recorded.shape)]
    relative = (gap / old.abs().clamp_min(torch.finfo(torch.float64).tiny)).max().item()
    count = int((gap > 0).sum())
    apart = f"{gap[most].item():.3g} apart at most, relative {relative:.2g}; {count:,} of {gap.numel():,} values"
    was, now = (f"{value[most].item():.9g}" for value in (old, new))
    yield Discrepancy(
        f"{name} {kinds[0]} at {index}", was, now, apart if count else "equal as numbers, not in their bits"
    )


def _parquet(recorded: Path, found: Path) -> Comparison:
    import pyarrow.parquet as pq

    old, new = pq.read_table(recorded), pq.read_table(found)

    def differences() -> Iterator[Discrepancy]:
        if not old.schema.equals(new.schema, check_metadata=True):
            yield from itertools.starmap(discrepancy, walk(_columns(old.schema), _columns(new.schema), "columns"))
        shared = [name for name in old.column_names if name in new.column_names]
        ours, theirs = old.select(shared), new.select(shared)
        for start in range(0, max(old.num_rows, new.num_rows), BATCH):
            pair = [table.slice(start, BATCH) for table in (ours, theirs)]
            if not pair[0].equals(pair[1]):
                rows = itertools.zip_longest(*(part.to_pylist() for part in pair), fillvalue=MISSING)
                for number, (left, right) in enumerate(rows, start=start):
                    for path, was, now in itertools.islice(walk(left, right), 1):
                        yield discrepancy(f"row {number:,} {path}".rstrip(), was, now)

    return _first("rows", differences())


def _columns(schema: Any) -> dict[str, str]:
    return {field.name: f"{field.type}" for field in schema}


def _jsonl(recorded: Path, found: Path) -> Comparison:
    def differences() -> Iterator[Discrepancy]:
        with recorded.open(encoding="utf-8") as old, found.open(encoding="utf-8") as new:
            for number, (left, right) in enumerate(itertools.zip_longest(old, new), start=1):
                if left != right:
                    one, other = (MISSING if line is None else json.loads(line) for line in (left, right))
                    for path, was, now in itertools.islice(walk(one, other), 1):
                        yield discrepancy(f"line {number:,} {path}".rstrip(), was, now)

    return _first("rows", differences())


def _json(recorded: Path, found: Path) -> Comparison:
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (recorded, found))
    return _first("values", itertools.starmap(discrepancy, walk(old, new)))


def _csv(recorded: Path, found: Path) -> Comparison:
    def read(path: Path) -> tuple[list[str], list[list[Any]]]:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        return header, [[_parsed(cell) for cell in row] for row in rows]

    (header, old), (other, new) = read(recorded), read(found)

    def differences() -> Iterator[Discrepancy]:
        yield from itertools.starmap(discrepancy, walk(header, other, "header"))
        for number, (left, right) in enumerate(itertools.zip_longest(old, new), start=1):
            one, two = (MISSING if row is None else dict(zip(header, row, strict=False)) for row in (left, right))
            for path, was, now in itertools.islice(walk(one, two), 1):
                yield discrepancy(f"row {number:,} {path}".rstrip(), was, now)

    return _first("rows", differences())


def _parsed(cell: str) -> Any:
    """The number that a cell holds, if it is written as Python writes it, so that no difference of bytes is lost."""
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        if str(value) == cell:
            return value
    return cell


def _lines(recorded: Path, found: Path) -> Comparison:
    def differences() -> Iterator[Discrepancy]:
        with recorded.open(encoding="utf-8", newline="") as old, found.open(encoding="utf-8", newline="") as new:
            for number, (left, right) in enumerate(itertools.zip_longest(old, new, fillvalue=MISSING), start=1):
                if left != right:
                    yield discrepancy(f"line {number:,}", left, right)

    return _first("lines", differences())


def _bytes(recorded: Path, found: Path) -> Comparison:
    """The first byte that differs, and how many do where both are there."""
    size = 1 << 20
    first, differing, offset = None, 0, 0
    with recorded.open("rb") as old, found.open("rb") as new:
        while (left := old.read(size)) or new.tell() < found.stat().st_size:
            right = new.read(size)
            if left != right:
                places = [i for i, pair in enumerate(itertools.zip_longest(left, right)) if pair[0] != pair[1]]
                differing += len(places)
                if first is None:
                    at = places[0]
                    was, now = (f"0x{part[at]:02x}" if at < len(part) else repr(MISSING) for part in (left, right))
                    first = Discrepancy(f"byte {offset + at:,}", was, now)
            offset += size
    return Comparison("bytes", differing, [] if first is None else [first])
