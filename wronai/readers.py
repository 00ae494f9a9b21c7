"""From a file on disk to bytes or rows, as a stream: text, JSON, tables, packed or in an archive, in bounded memory.

`files` finds what a path, folder or glob holds, `members` opens a file or the files inside an archive, and `content`
or `rows` read one of them. What cannot be read whole is a ValueError, FileNotFoundError or OSError that names the key
in params.yaml and the file; what is passed over goes by name to the caller's list `ignored`.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import fnmatch
import functools
import glob
import io
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import textwrap
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, Protocol, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

DOCUMENTS = (".txt", ".md", ".html", ".htm")
ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*DOCUMENTS, *ROWS)
PACKINGS: dict[str, Callable[[], _Unpacker]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
SHORT_SUFFIXES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}

RECORD_BYTES = 64 << 20  # a document, line or row: far above any text, far below the memory
JSON_BYTES = 256 << 20  # a JSON document that is no list, and so is parsed whole: SQuAD's shape has one for the corpus
MEMBER_BYTES = 256 << 30  # what one file or archive may unpack to
BOMB_RATIO = 200  # unpacked to packed; running text stays below 10, templated pages below 100
BOMB_FLOOR = 64 << 20  # unpacked bytes below which no ratio is suspicious
PIECE_BYTES = 1 << 10  # fed to a decompressor at once: zstd can make 43 MB of it, bzip2 45 MB
BUFFER_BYTES = 1 << 20  # of a stream; also the sample by which a table's encoding and delimiter are judged
BATCH_ROWS = 32  # of Parquet: rows of RECORD_BYTES each must fit into memory too

_DAMAGE = (
    NotImplementedError,
    UnicodeDecodeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    tarfile.TarError,
    zipfile.BadZipFile,
    OSError,  # bz2's, which has no errno
)
_CUT = "unexpected end of data"  # UnicodeDecodeError's reason for a character without its end
_CUT_CHARACTER = re.compile(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")  # in UTF-8
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Unpacker(Protocol):
    """What zlib, bz2, lzma and zstandard have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Member:
    """A file, or a file inside an archive: `name` is relative, as in `archive.zip/inner.txt`, and ends as on disk.

    `suffix` tells the format, without a packing: `.jsonl` for `a.jsonl.gz`. `open` gives the unpacked bytes. A member
    of an archive must be read before the next is asked for. `whole` is False for the beginning of a download.
    """

    name: str
    suffix: str
    open: Callable[[], BinaryIO]
    whole: bool = True


def kind(name: str) -> tuple[str, str]:
    """The suffix of a file or URL, and that of the packing around it or "": `.jsonl` and `.gz` for `A.JSONL.gz`."""
    lowered = (urllib.parse.urlsplit(name).path if "://" in name else name).lower()
    path = PurePosixPath(lowered)
    if path.suffix in SHORT_SUFFIXES:
        path = path.with_suffix(SHORT_SUFFIXES[path.suffix])
    if path.suffix in PACKINGS:
        return path.with_suffix("").suffix, path.suffix
    return path.suffix, ""


def usable(name: str, suffixes: Sequence[str]) -> bool:
    """Whether `members` can make something of a file of this name: one of `suffixes`, packed or not, or an archive."""
    suffix, packing = kind(name)
    return suffix in suffixes or suffix == ".tar" or (suffix == ".zip" and not packing)


def files(path: str, suffixes: Sequence[str], key: str, ignored: list[str]) -> list[tuple[str, Path]]:
    """The files of a path, folder or glob that are `usable`, as (name, path) sorted; `ignored` gets the other names.

    A link to a file is read, a link to a folder is ignored, so no loop is walked; a usable name that links to nothing
    or to itself is an error, for a corpus must not shrink in silence. What begins with a dot is ignored.
    """
    try:
        return _files(path, suffixes, key, ignored)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{key}.path is {path}: {error.filename} cannot be read: {error.strerror}") from error


def _files(path: str, suffixes: Sequence[str], key: str, ignored: list[str]) -> list[tuple[str, Path]]:
    expected = ", ".join(suffixes)
    given = Path(path)
    if given.is_file():
        if not usable(given.name, suffixes):
            raise ValueError(f"{key}.path is {path}: expected {expected}, packed or not, or an archive of them")
        return [(_printable(given.name), given)]
    if given.is_dir():
        root, found = given, list(_walk(given, ignored))
    elif glob.has_magic(path):
        base = Path(given.anchor)
        found = sorted(set(_matches(base, given.parts[1:] if given.anchor else given.parts, ignored)))
        root = Path(os.path.commonpath([file.parent for file in found])) if found else base
    else:
        reason = "a link that leads to nothing" if given.is_symlink() else "no such file or folder"
        raise FileNotFoundError(f"{key}.path is {path}: {reason}")
    used = []
    for file in found:
        name = file.relative_to(root).as_posix()
        if not usable(name, suffixes):
            ignored.append(_printable(name))
        elif file.is_symlink() and not file.exists():
            raise FileNotFoundError(f"{key}.path is {path}: {_printable(name)} is a link that leads to nothing")
        else:
            used.append((_printable(name), file))
    if not used:
        raise FileNotFoundError(f"{key}.path is {path}: no {expected} file, packed or not, and no archive")
    ignored.sort()
    return sorted(used)


def _walk(root: Path, ignored: list[str]) -> Iterator[Path]:
    """The files under a folder, links to files among them; hidden entries and links to folders go to `ignored`."""

    def unreadable(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=unreadable):
        here = Path(folder)
        skipped = [name for name in folders if name.startswith(".") or (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in skipped]
        ignored.extend(_printable((here / name).relative_to(root).as_posix()) + "/" for name in skipped)
        for name in names:
            if name.startswith("."):
                ignored.append(_printable((here / name).relative_to(root).as_posix()))
            else:
                yield here / name


def _matches(base: Path, pattern: Sequence[str], ignored: list[str]) -> Iterator[Path]:
    """The files below `base` that match, as `glob.glob` has it, which would walk a loop of links for ever."""
    if not pattern:
        if not base.is_dir():
            yield base
        return
    head, *rest = pattern
    if head == "**":
        for file in _walk(base, ignored) if base.is_dir() else ():
            inner = file.relative_to(base).parts
            if not rest or any(_fits(inner[i:], rest) for i in range(len(inner))):
                yield file
    elif not glob.has_magic(head):
        if os.path.lexists(base / head):
            yield from _matches(base / head, rest, ignored)
    elif base.is_dir():
        for entry in base.iterdir():
            if fnmatch.fnmatchcase(entry.name, head) and not entry.name.startswith("."):
                yield from _matches(entry, rest, ignored)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:] or ["*"]) for i in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _printable(name: str) -> str:
    """A file name whose bytes are no UTF-8 (old archives have them) in characters that every output can hold.

    Different names stay different, for ids are made of them.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class _Origin:
    """What an error says of where it happened."""

    key: str
    name: str
    whole: bool

    def __str__(self) -> str:
        return f"{self.key}: {self.name}"

    def inside(self, inner: str) -> _Origin:
        return _Origin(self.key, f"{self.name}/{inner}", self.whole)

    def damaged(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno is not None:
            return OSError(f"{self} cannot be read: {error.strerror}")
        return ValueError(f"{self} is cut off or damaged: {error}")

    def refuse_beginning(self, what: str) -> None:
        if not self.whole:
            raise ValueError(f"{self} is {what}, which cannot be read from its beginning alone: take the whole file")


def members(
    path: Path, name: str, key: str, ignored: list[str], suffixes: Sequence[str] = SUFFIXES, whole: bool = True
) -> Iterator[Member]:
    """The file at `path`, or the files of the archive there that have one of `suffixes`, in the archive's order.

    `name`, a relative path or a URL, is what ids and errors call it, and it decides the format. `whole=False` says
    that the file is the beginning of a longer one: then a stream that ends in the middle just ends, and formats that
    need their end are refused.
    """
    suffix, packing = kind(name)
    origin = _Origin(key, name, whole)
    if suffix in suffixes:
        yield _member(origin, name, lambda: _opened(path, origin))
        return
    if suffix != ".tar" and (suffix != ".zip" or packing):
        raise ValueError(f"{origin} is no {', '.join(suffixes)} file, packed or not, and no archive of them")
    found: set[str] = set()
    with _opened(path, origin) as file:
        read = _zip_members if suffix == ".zip" else _tar_members
        for inner, open_packed in read(_unpacked(file, packing, origin), origin):
            if _wanted(inner, suffixes):
                if inner in found:
                    raise ValueError(f"{origin} has the member {inner!r} twice")
                found.add(inner)
                yield _member(origin.inside(inner), inner, open_packed)
            else:
                ignored.append(f"{name}/{inner}")
    if whole and not found:
        raise ValueError(f"{origin} holds no {', '.join(suffixes)} file")


def _wanted(inner: str, suffixes: Sequence[str]) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in inner.split("/"))
    return not hidden and kind(inner)[0] in suffixes


def _member(origin: _Origin, name: str, open_packed: Callable[[], BinaryIO]) -> Member:
    suffix, packing = kind(name)
    if suffix == ".parquet":
        origin.refuse_beginning("Parquet")
    return Member(origin.name, suffix, lambda: _unpacked(open_packed(), packing, origin), origin.whole)


def _opened(path: Path, origin: _Origin) -> BinaryIO:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ValueError(f"{origin} is {found}, expected a file")
        if not status.st_size:
            raise ValueError(f"{origin} is empty")
        return path.open("rb", buffering=BUFFER_BYTES)
    except OSError as error:
        raise type(error)(f"{origin} cannot be read: {error.strerror}") from error


def _unpacked(file: BinaryIO, packing: str, origin: _Origin) -> BinaryIO:
    if not packing:
        return file
    unpacked = _Unpacked(file, PACKINGS[packing])
    return _guarded(unpacked, origin, lambda: unpacked.taken)


def _guarded(source: _Readable, origin: _Origin, packed: Callable[[], int] | None) -> BinaryIO:
    return io.BufferedReader(_Guarded(source, origin, packed), BUFFER_BYTES)


class _Unpacked:
    """The bytes of one compressed stream after another, to the end; EOFError where the last has no end."""

    def __init__(self, packed: BinaryIO, new: Callable[[], _Unpacker]) -> None:
        self.taken = 0
        self._packed, self._new, self._unpacker = packed, new, new()
        self._begun = False
        self._ready = io.BytesIO()

    def close(self) -> None:
        self._packed.close()

    def read(self, size: int) -> bytes:
        if data := self._ready.read(size):
            return data
        parts, length = [], 0
        while length < max(size, BUFFER_BYTES) and (piece := self._next_piece()):
            self._begun = True
            parts.append(self._unpacker.decompress(piece))
            length += len(parts[-1])
        if not length and self._begun:
            raise EOFError("the compressed stream has no end")
        self._ready = io.BytesIO(b"".join(parts))  # a piece can unpack to much more than `size`
        return self._ready.read(size)

    def _next_piece(self) -> bytes:
        piece = b""
        if self._unpacker.eof:
            piece = self._unpacker.unused_data.lstrip(b"\0")  # gzip and xz allow zeros between streams
            self._unpacker, self._begun = self._new(), False
        while not piece:
            piece = self._packed.read(PIECE_BYTES)
            self.taken += len(piece)
            if not piece:
                break
            if not self._begun:
                piece = piece.lstrip(b"\0")
        return piece


class _Guarded(io.RawIOBase):
    """A stream whose damage is one clear error, and which stops a bomb by what it really unpacks to.

    `packed` tells the compressed bytes so far; the size that a header promises is not asked.
    """

    def __init__(self, source: _Readable, origin: _Origin, packed: Callable[[], int] | None) -> None:
        self.ended = False
        self._source, self._origin, self._packed = source, origin, packed
        self._total = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except EOFError as error:
            if self._origin.whole:
                raise self._origin.damaged(error) from error
            data = b""
        except _DAMAGE as error:
            raise self._origin.damaged(error) from error
        self.ended = not data
        self._total += len(data)
        if self._total > BOMB_FLOOR and self._packed and self._total > BOMB_RATIO * self._packed():
            raise ValueError(f"{self._origin} unpacks to more than {BOMB_RATIO} times its size, as a bomb does")
        if self._total > MEMBER_BYTES:
            raise ValueError(f"{self._origin} unpacks to more than {MEMBER_BYTES:,} bytes, the limit")
        buffer[: len(data)] = data
        return len(data)


def _inner_name(raw: str, origin: _Origin) -> str:
    parts = raw.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", raw):
        raise ValueError(f"{origin} has the member {raw!r}, whose name climbs out of the archive")
    return PurePosixPath(*parts).as_posix()


def _no_file(inner: str, origin: _Origin) -> ValueError:
    return ValueError(f"{origin} has the member {inner!r}, a link, device or sparse file: expected plain files")


def _zip_members(file: BinaryIO, origin: _Origin) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    origin.refuse_beginning("a zip archive")
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise origin.damaged(error) from error
    infos = archive.infolist()
    if sum(info.compress_size for info in infos) > file.seek(0, io.SEEK_END):
        raise ValueError(f"{origin} has members that overlap, as a bomb has")
    for info in infos:
        inner = _inner_name(info.filename, origin)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _no_file(inner, origin)
        if not info.is_dir():
            yield inner, functools.partial(_zip_stream, archive, info, origin.inside(inner))


def _zip_stream(archive: zipfile.ZipFile, info: zipfile.ZipInfo, origin: _Origin) -> BinaryIO:
    if info.flag_bits & 1:
        raise ValueError(f"{origin} is encrypted: expected an archive without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a bound
        raise ValueError(f"{origin} is packed by zip's method {info.compress_type}: expected stored or deflated")
    try:
        source = archive.open(info)
    except _DAMAGE as error:
        raise origin.damaged(error) from error
    return _guarded(cast(_Readable, source), origin, lambda: info.compress_size)


class _TarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the archive's end; here only the end mark is its end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class _Portion:
    """The bytes of the member that a stream of a tar stands at."""

    def __init__(self, stream: _Readable, size: int) -> None:
        self._stream, self._left = stream, size

    def close(self) -> None:
        self._left = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left))
        if not data and self._left:
            raise EOFError("the archive ends in it")
        self._left -= len(data)
        return data


def _tar_members(file: BinaryIO, origin: _Origin) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    stream = _Guarded(file, origin, None)
    try:
        archive = tarfile.open(  # noqa: SIM115 the stream is the caller's
            fileobj=cast(BinaryIO, stream),
            mode="r|",
            bufsize=1 << 16,
            tarinfo=_TarInfo,
            encoding="utf-8",
            errors="surrogateescape",
        )
        while info := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # or it keeps every header
            inner = _printable(_inner_name(info.name, origin))
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise _no_file(inner, origin)
            yield (
                inner,
                functools.partial(
                    _guarded, _Portion(cast(_Readable, archive.fileobj), info.size), origin.inside(inner), None
                ),
            )
        while stream.read(BUFFER_BYTES):  # to the end of the packing, which may be cut off as well
            pass
    except tarfile.TarError as error:
        if origin.whole or not stream.ended:
            raise origin.damaged(error) from error


def content(member: Member, key: str) -> bytes:
    """The bytes of a document (.txt, .md, .html), as found; where the file is cut, without the character in the cut."""
    origin = _Origin(key, member.name, member.whole)
    with member.open() as stream:
        data = stream.read(RECORD_BYTES + 1)
    if len(data) > RECORD_BYTES:
        raise ValueError(f"{origin} is longer than {RECORD_BYTES:,} bytes, the limit of a document")
    if not data and member.whole:
        raise ValueError(f"{origin} is empty")
    return data if member.whole else _without_cut(data)


def _without_cut(data: bytes) -> bytes:
    """Without the beginning of a UTF-8 character at the end."""
    return data[:-3] + _CUT_CHARACTER.sub(b"", data[-3:])


def rows(member: Member, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table or of JSON, with their number from 1: of the line in .jsonl, else of the row.

    A .json file gives the objects of its list or lines, or itself as the only row. A lone surrogate, which
    JSON can spell and UTF-8 cannot, becomes U+FFFD here. No row at all is an error.
    """
    origin = _Origin(key, member.name, member.whole)
    read = {".jsonl": _json_lines, ".json": _json_rows, ".parquet": _parquet_rows}.get(member.suffix, _table_rows)
    empty = True
    with member.open() as stream:
        for number, row in read(cast(io.BufferedReader, stream), origin):
            empty = False
            yield number, row
    if empty and member.whole:
        raise ValueError(f"{origin} is empty")


def _json_lines(stream: io.BufferedReader, origin: _Origin) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while line := stream.readline(RECORD_BYTES + 1):
        number += 1
        if len(line) > RECORD_BYTES:
            raise ValueError(f"{origin} line {number} is longer than {RECORD_BYTES:,} bytes, the limit")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            row = _utf8(json.loads(line.decode("utf-8", "surrogatepass")))
        except (ValueError, RecursionError) as error:
            if not origin.whole and not line.endswith(b"\n"):
                return
            raise ValueError(f"{origin} line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{origin} line {number} is {type(row).__name__}, expected a JSON object")
        yield number, row


def _utf8(value: Any) -> Any:
    """The same JSON with U+FFFD for each lone surrogate."""
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_utf8(name): _utf8(item) for name, item in value.items()}
    return [_utf8(item) for item in value] if isinstance(value, list) else value


def _json_rows(stream: io.BufferedReader, origin: _Origin) -> Iterator[tuple[int, dict[str, Any]]]:
    start = stream.peek(BUFFER_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start:
        return
    if start.startswith(b"["):
        yield from _json_items(stream, origin)
        return
    if _is_object(start.partition(b"\n")[0]):  # JSON Lines, as many name it, or a document of one line
        yield from _json_lines(stream, origin)
        return
    document = _json_document(stream, origin)
    for number, row in enumerate(document if isinstance(document, list) else [document], start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{origin} item {number} is {type(row).__name__}, expected a JSON object")
        yield number, row


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_document(stream: BinaryIO, origin: _Origin) -> Any:
    origin.refuse_beginning("one JSON object")
    data = stream.read(JSON_BYTES + 1)
    if len(data) > JSON_BYTES:
        raise ValueError(f"{origin} is longer than {JSON_BYTES:,} bytes, the limit of JSON that is no list")
    try:
        return _utf8(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin} is no JSON: {error}") from error


class _JsonText:
    """The text of a JSON list, read no further than its next item needs; EOFError where a beginning of it ends."""

    def __init__(self, stream: io.BufferedReader, origin: _Origin) -> None:
        self._text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogatepass", newline="")
        self._origin, self._decoder = origin, json.JSONDecoder()
        self._buffer, self._at = "", 0

    def sign(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            while self._at < len(self._buffer):
                if not (sign := self._buffer[self._at]).isspace():
                    return sign
                self._at += 1
            if not self._more():
                return ""

    def take(self) -> str:
        """The same, and passed."""
        sign = self.sign()
        self._at += len(sign)
        return sign

    def item(self, number: int) -> Any:
        self.sign()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._buffer, self._at)
                return _utf8(value)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._at > RECORD_BYTES:
                    found = f"has no end within {RECORD_BYTES:,} characters, the limit"
                    raise ValueError(f"{self._origin} item {number} {found}") from error
                if self._more():
                    continue
                if not self._origin.whole:
                    raise EOFError from error
                raise ValueError(f"{self._origin} item {number} is no JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self._origin} item {number} is no JSON: {error}") from error

    def _more(self) -> bool:
        left = self._buffer[self._at :]
        try:
            piece = self._text.read(max(BUFFER_BYTES, len(left)))  # doubled, or a long item is parsed too often
        except UnicodeDecodeError as error:
            if not self._origin.whole and error.reason == _CUT:
                return False
            raise ValueError(f"{self._origin} is no JSON: {error}") from error
        self._buffer, self._at = left + piece, 0
        return bool(piece)


def _json_items(stream: io.BufferedReader, origin: _Origin) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _JsonText(stream, origin)
    text.take()  # the bracket
    sign = text.take() if text.sign() == "]" else ","
    number = 0
    while sign == ",":
        number += 1
        try:
            row = text.item(number)
        except EOFError:
            return
        if not isinstance(row, dict):
            raise ValueError(f"{origin} item {number} is {type(row).__name__}, expected a JSON object")
        yield number, row
        sign = text.take()
    if (sign or origin.whole) and (sign != "]" or text.sign()):
        raise ValueError(f"{origin} is no JSON: after item {number} its list goes wrong or has no end")


def _parquet_rows(stream: io.BufferedReader, origin: _Origin) -> Iterator[tuple[int, dict[str, Any]]]:
    number = total = 0
    try:
        with stream if stream.seekable() else tempfile.TemporaryFile() as file:
            if file is not stream:  # Parquet is read from its end
                shutil.copyfileobj(stream, file, BUFFER_BYTES)
                file.seek(0)
            table = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)  # or it keeps all it has read
            packed = file.seek(0, io.SEEK_END)
            for batch in table.iter_batches(BATCH_ROWS, use_threads=False):
                total += batch.nbytes
                if total > BOMB_FLOOR and total > BOMB_RATIO * packed:
                    raise ValueError(f"{origin} unpacks to more than {BOMB_RATIO} times its size, as a bomb does")
                if total > MEMBER_BYTES:
                    raise ValueError(f"{origin} unpacks to more than {MEMBER_BYTES:,} bytes, the limit")
                long = batch.nbytes > RECORD_BYTES
                for start in range(0, batch.num_rows, step := 1 if long else BATCH_ROWS):
                    for row in _python_rows(batch.slice(start, step), number + 1, origin):
                        number += 1
                        if long:
                            _check_length(row, number, origin)
                        yield number, row
    except (pa.ArrowException, OSError) as error:
        raise origin.damaged(error) from error


def _python_rows(batch: pa.RecordBatch, number: int, origin: _Origin) -> list[dict[str, Any]]:
    try:
        return cast(list[dict[str, Any]], batch.to_pylist())
    except (ValueError, OverflowError, LookupError) as error:  # no UTF-8; a date or time zone that Python lacks
        raise ValueError(f"{origin}: a row from {number} on holds what cannot be read: {error}") from error


def _check_length(row: dict[str, Any], number: int, origin: _Origin) -> None:
    for name, value in row.items():
        if isinstance(value, str | bytes) and len(value) > RECORD_BYTES:
            raise ValueError(f"{origin} row {number} is longer than {RECORD_BYTES:,}, the limit, in {name!r}")


class _TableLines:
    """The lines of a table for csv.reader, which knows of no limit and of no end that comes too early."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.record = self.number = 0  # characters of the row so far; lines
        self.complete = True  # the last line has its end
        self.ended = False
        self._text = text

    def __iter__(self) -> _TableLines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(RECORD_BYTES + 1)
        if not line:
            self.ended = True
            raise StopIteration
        self.number += 1
        self.record += len(line)
        if self.record > RECORD_BYTES:
            raise csv.Error(f"the row is longer than {RECORD_BYTES:,} characters, the limit")
        self.complete = line.endswith(("\n", "\r"))
        return line


def _table_rows(stream: io.BufferedReader, origin: _Origin) -> Iterator[tuple[int, dict[str, Any]]]:
    sample = stream.peek(BUFFER_BYTES)
    encoding = _encoding(sample)
    lines = _TableLines(io.TextIOWrapper(stream, encoding, newline=""))
    csv.field_size_limit(RECORD_BYTES)
    if len(sample) == BUFFER_BYTES or not origin.whole:
        sample = sample[: sample.rfind(b"\n") + 1]
    delimiter, quoting = _dialect(sample.decode(encoding, "replace"))
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    number = 0
    while True:
        lines.record = 0
        try:
            row = next(reader, None)
        except (csv.Error, UnicodeDecodeError) as error:
            if not origin.whole and (lines.ended or getattr(error, "reason", "") == _CUT):
                return
            raise ValueError(
                f"{origin} line {lines.number} is no CSV in {encoding.removesuffix('-sig')}: {error}"
            ) from error
        if row is None or not (origin.whole or lines.complete):
            return
        if not row:
            continue
        if not header:
            header = [name.strip() for name in row]
            if len(set(header)) < len(header):
                found = textwrap.shorten(str(header), 500)
                raise ValueError(f"{origin} line {lines.number} must be a header, but repeats a name: {found}")
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{origin} line {lines.number} has {len(row)} fields, the header has {len(header)}: "
                f"{textwrap.shorten(str(header), 500)}"
            )
        number += 1
        yield number, dict(zip(header, row, strict=True))


def _encoding(sample: bytes) -> str:
    """UTF-16 by its mark, else UTF-8 or the code page of Polish Excel, by what most bytes beyond ASCII are."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    text = _without_cut(sample).decode("utf-8", "replace")
    broken = text.count("\ufffd")
    letters = sum(sign > "\x7f" for sign in text) - broken
    return "cp1250" if broken > letters else "utf-8-sig"


def _dialect(sample: str) -> tuple[str, Literal[0, 3]]:
    """The delimiter that splits the header most, and whether quotation marks quote: between tabs they can be text."""

    def header(delimiter: str) -> list[str]:
        return next(filter(None, csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)), [])

    delimiter = max(",;\t", key=lambda sign: len(header(sign)))
    if delimiter == "\t":
        table = [line.rstrip("\r\n").split("\t") for line in io.StringIO(sample, newline="")]
        even = all(len(row) == len(table[0]) for row in table)
        if even and any(cell.startswith('"') and not _QUOTED.fullmatch(cell) for row in table for cell in row):
            return delimiter, csv.QUOTE_NONE
    return delimiter, csv.QUOTE_MINIMAL
