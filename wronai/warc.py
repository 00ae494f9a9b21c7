"""WARC files, as Common Crawl publishes them: the pages and plain texts that a crawl was answered with.

The container is read here and not by FastWARC 2.0 or warcio 1.8, which both end a file that is cut off in silence, give
its last record short, and go no further than the first damaged one.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import brotli  # type: ignore[import-untyped]
import zstandard

MAX_RECORD_BYTES = 32 << 20  # of a record, and of what its body unpacks to; Common Crawl cuts bodies at 1 or 5 MiB
MAX_HEAD_BYTES = 1 << 16
MAX_ZSTD_WINDOW = 1 << 27
MAX_FAILED = 1000  # records or gzip members in a row; a file damaged further is not worth the search
CHUNK_BYTES = 1 << 17
REWIND_BYTES = 1 << 18
ZSTD_MORSEL_BYTES = 1 << 10

MediaType = Literal["text/html", "text/plain"]
MEDIA_TYPES: dict[str, MediaType] = {
    "text/html": "text/html",
    "application/xhtml+xml": "text/html",
    "text/plain": "text/plain",
}


class Response(NamedTuple):
    url: str
    date: str
    media_type: MediaType
    charset: str | None
    content: bytes


class _Unfit(Exception):
    """A record that is passed over; the argument is the reason to count it under."""


def responses(
    stream: BinaryIO, where: str, whole: bool = True, passed_over: Counter[str] | None = None
) -> Iterator[Response]:
    """The answers with status 200 that are HTML or plain text, and the texts of WET files, as the bytes that were sent.

    Chunks and content codings are undone; `charset` is what the HTTP header says. `stream` is uncompressed, gzip (a
    member to a record or not) or Zstandard. What is passed over is counted in `passed_over` by reason: damaged
    (digests are checked), too_large (MAX_RECORD_BYTES), unknown_coding, not_ok (the status), other_type, other_record
    (requests, metadata). ValueError, beginning with `where`, when the file is empty, no WARC, without a whole record,
    cut off, or damaged over more than MAX_FAILED records; with `whole` false the file is the beginning of one, and its
    cut end is its end.
    """
    counts = Counter[str]() if passed_over is None else passed_over
    for fields, block in _records(_Bytes(_unpacked(stream, where, whole)), where, whole, counts):
        try:
            yield _response(fields, block)
        except _Unfit as unfit:
            counts[str(unfit)] += 1


_GZIP, _ZSTD = b"\x1f\x8b\x08", (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")


def _unpacked(stream: BinaryIO, where: str, whole: bool) -> Iterator[bytes | None]:
    """The bytes of the file in chunks; None where some are lost."""
    head = stream.read(CHUNK_BYTES)
    if not head:
        raise ValueError(f"{where} is empty; expected a WARC file")
    if head.startswith(_GZIP):
        yield from _inflated(head, stream, where, whole)
    elif head.startswith(_ZSTD):
        yield from _unzstd(head, stream, where, whole)
    else:
        yield head
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _unzstd(data: bytes, stream: BinaryIO, where: str, whole: bool) -> Iterator[bytes]:
    """The frames one by one, since only so a cut within one shows; fed in morsels, of which a bomb makes no bombs."""
    while data or (data := stream.read(CHUNK_BYTES)):
        frame = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj()
        while not frame.eof:
            data = data or stream.read(CHUNK_BYTES)
            if not data and whole:
                raise ValueError(f"{where} is cut off: its last Zstandard frame does not end")
            if not data:
                return
            morsel, data = data[:ZSTD_MORSEL_BYTES], data[ZSTD_MORSEL_BYTES:]
            try:
                chunk = frame.decompress(morsel)
            except zstandard.ZstdError as error:
                raise ValueError(f"{where} is damaged: {error}") from None
            if chunk:
                yield chunk
        data = frame.unused_data + data


def _inflated(data: bytes, stream: BinaryIO, where: str, whole: bool) -> Iterator[bytes | None]:
    """The members of a gzip file one by one, so that after a damaged one the next can be looked for."""
    failed = 0
    while data or (data := stream.read(CHUNK_BYTES)):
        inflater, behind = zlib.decompressobj(31), b""
        try:
            while not inflater.eof:
                data = data or stream.read(CHUNK_BYTES)
                if not data and failed:
                    return  # what looked like a member was none
                if not data and whole:
                    raise ValueError(f"{where} is cut off: its last gzip member does not end")
                if not data:
                    return
                chunk = inflater.decompress(data, CHUNK_BYTES)
                left = inflater.unconsumed_tail
                behind = (behind + data[: len(data) - len(left)])[-REWIND_BYTES:]
                data = left
                if chunk:
                    yield chunk
        except zlib.error:
            yield None
            failed += 1
            if failed > MAX_FAILED:
                raise ValueError(f"{where} is damaged: {failed} gzip members in a row cannot be read") from None
            data = _from_next_member((behind + data)[1:], stream)
            continue
        failed = 0
        data = inflater.unused_data.lstrip(b"\0")  # some writers pad


def _from_next_member(data: bytes, stream: BinaryIO) -> bytes:
    while (at := data.find(_GZIP)) < 0:
        more = stream.read(CHUNK_BYTES)
        if not more:
            return b""
        data = data[-len(_GZIP) + 1 :] + more
    return data[at:]


class _Bytes:
    """A window on the unpacked bytes: `held` grows up to the end of the file or the next gap."""

    def __init__(self, chunks: Iterator[bytes | None]) -> None:
        self.held = bytearray()
        self.gap = False
        self._chunks = chunks

    def fill(self, size: int) -> bool:
        """Whether `size` bytes are held, once all were tried for."""
        while len(self.held) < size and not self.gap:
            chunk = next(self._chunks, b"")
            if chunk == b"":
                return False
            if chunk is None:
                self.gap = True
            else:
                self.held += chunk
        return len(self.held) >= size

    def skip(self, size: int) -> bool:
        """Let go of `size` bytes, as far as there are so many."""
        while size and self.fill(1):
            step = min(size, len(self.held))
            del self.held[:step]
            size -= step
        return not size

    def seek_record(self, start: int) -> bool:
        """Let go of all bytes before the next that look like a record's beginning, at `start` or later."""
        del self.held[:start]
        fresh = False  # right after a gap, where no line feed stands before a record
        while True:
            self.fill(len(_BEGINNING))
            at = 0 if fresh and self.held.startswith(_BEGINNING[1:]) else self.held.find(_BEGINNING) + 1
            if at or (fresh and self.held.startswith(_BEGINNING[1:])):
                del self.held[:at]
                return True
            if self.gap:
                self.held.clear()
                self.gap, fresh = False, True
                continue
            fresh = False
            del self.held[: -len(_BEGINNING) + 1]
            if not self.fill(len(self.held) + 1) and not self.gap:
                return False


_BEGINNING = b"\nWARC/1."
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def _records(source: _Bytes, where: str, whole: bool, counts: Counter[str]) -> Iterator[tuple[dict[str, str], bytes]]:
    """Header fields and block of each record of a kind that can hold text."""
    last = ""
    sound = failed = 0

    def cut() -> ValueError:
        return ValueError(f"{where} is cut off {f'after the record of {last}' if last else 'within its first record'}")

    source.fill(len(_BEGINNING))
    if not source.held.startswith(b"WARC/") and not source.gap:
        begins = bytes(source.held[:16])
        raise ValueError(f"{where} is no WARC file: it begins with {begins!r}, expected 'WARC/1.0' or 'WARC/1.1'")
    while True:
        while source.fill(1) and source.held[0] in b"\r\n":
            del source.held[:1]
        if not source.held and not source.gap:
            break
        source.fill(MAX_HEAD_BYTES)
        head = _BLANK_LINE.search(source.held, 0, MAX_HEAD_BYTES)
        if head:
            begin, fields = head.end(), _fields(bytes(source.held[: head.start()]))
            del head  # which would hold the buffer fast
        elif source.gap or len(source.held) >= MAX_HEAD_BYTES or not b"WARC/".startswith(source.held[:5]):
            begin, fields = 1, {}
        elif whole:
            raise cut()
        else:
            break
        length = fields.get("content-length", "")
        readable = source.held.startswith(b"WARC/") and re.fullmatch(r"\d{1,18}", length, re.ASCII) is not None
        end = begin + int(length) if readable else begin
        if readable and end - begin > MAX_RECORD_BYTES:
            counts["too_large"] += 1
            sound += 1
            if source.skip(end):
                continue
            if source.gap and source.seek_record(0):
                continue
            if whole:
                raise cut()
            break
        if readable and source.fill(end):
            source.fill(end + 16)
            after = source.held[end : end + 16].lstrip(b"\r\n")[:5]
            block = bytes(source.held[begin:end])
            if b"WARC/".startswith(after) or _verified(fields, block):
                del source.held[:end]
                last = fields.get("warc-target-uri", last)
                sound, failed = sound + 1, 0
                if fields.get("warc-type") in ("response", "conversion"):
                    yield fields, block
                else:
                    counts["other_record"] += 1
                continue
        elif readable and not source.gap and source.held.find(_BEGINNING, begin) < 0:
            if whole:
                raise cut()
            break
        counts["damaged"] += 1  # no header, a wrong length, or bytes that are lost
        failed += 1
        if failed > MAX_FAILED:
            raise ValueError(f"{where} is damaged: {failed} records in a row cannot be read")
        if not source.seek_record(begin - 1):
            break
    if not sound:
        raise ValueError(f"{where} holds no whole WARC record")


def _fields(head: bytes) -> dict[str, str]:
    """Header lines after the first by lower-case name; of a name the first counts, folded lines are joined."""
    fields: dict[str, str] = {}
    name = ""
    for line in head.decode("utf-8", "replace").split("\n")[1:]:
        if line[:1] in (" ", "\t") and name:
            fields[name] += " " + line.strip()
            continue
        name, _, value = line.partition(":")
        name = name.strip().lower()
        if fields.setdefault(name, value.strip()) != value.strip():
            name = ""
    return fields


def _verified(fields: dict[str, str], block: bytes) -> bool | None:
    """Whether the block is what its digest says; None without a digest of a known kind.

    Writers differ on whether a payload digest is taken before the chunks are undone or after, so either will do.
    """
    if said := fields.get("warc-block-digest"):
        return _matches(said, block)
    said = fields.get("warc-payload-digest")
    head = _BLANK_LINE.search(block, 0, MAX_HEAD_BYTES)
    if not said or not head or fields.get("warc-type") != "response":
        return None
    payload = block[head.end() :]
    sound = _matches(said, payload)
    if sound is False:
        try:
            return _matches(said, _dechunked(payload))
        except _Unfit:
            return False
    return sound


def _matches(said: str, content: bytes) -> bool | None:
    algorithm, _, value = said.partition(":")
    algorithm = algorithm.lower().replace("-", "")
    if algorithm not in ("sha1", "sha256"):
        return None
    digest = hashlib.new(algorithm, content, usedforsecurity=False)
    written = value.strip().lower().rstrip("=")
    return written in (digest.hexdigest(), base64.b32encode(digest.digest()).decode().lower().rstrip("="))


_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})\b")
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE | re.ASCII)


def _response(fields: dict[str, str], block: bytes) -> Response:
    url, date = fields.get("warc-target-uri", "").strip("<>"), fields.get("warc-date", "")
    if fields["warc-type"] == "conversion":
        kind, charset = _content_type(fields.get("content-type", "text/plain"))
        if kind != "text/plain":
            raise _Unfit("other_type")
        if _verified(fields, block) is False:
            raise _Unfit("damaged")
        return Response(url, date, "text/plain", charset or "utf-8", block)
    if not fields.get("content-type", "application/http").lower().startswith("application/http"):
        raise _Unfit("other_record")  # an answer of another protocol, DNS or FTP
    head = _BLANK_LINE.search(block, 0, MAX_HEAD_BYTES)
    status = _STATUS.match(block)
    if not head or not status or _verified(fields, block) is False:
        raise _Unfit("damaged")
    if status[1] != b"200":
        raise _Unfit("not_ok")
    http = _fields(block[: head.start()])
    kind, charset = _content_type(http.get("content-type", ""))
    if kind and kind not in MEDIA_TYPES:
        raise _Unfit("other_type")
    body = block[head.end() :]
    if "chunked" in http.get("transfer-encoding", "").lower():
        body = _dechunked(body)
    for coding in reversed(http.get("content-encoding", "").lower().split(",")):
        body = _decoded(body, coding.strip())
    return Response(url, date, MEDIA_TYPES[kind] if kind else _sniffed(body), charset, body)


def _content_type(value: str) -> tuple[str, str | None]:
    charset = _CHARSET.search(value)
    return value.partition(";")[0].strip().lower(), charset[1].lower() if charset else None


def _sniffed(body: bytes) -> MediaType:
    start = body[:1024].lower()
    if re.search(rb"<!doctype html|<(?:html|head|body|title|meta|p|div)\b", start):
        return "text/html"
    if not start or start.startswith((b"<?xml", b"%pdf", b"{")) or re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", start):
        raise _Unfit("other_type")
    return "text/plain"


_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LINE_END = re.compile(rb"\r?\n")


def _dechunked(body: bytes) -> bytes:
    """The chunks joined; a body without any as it is, since crawlers undo them and leave the header."""
    parts: list[bytes] = []
    at = 0
    while size := _CHUNK_SIZE.match(body, at):
        begin, end = size.end(), size.end() + int(size[1], 16)
        if end == begin:
            return b"".join(parts)
        parts.append(body[begin:end])
        line_end = _LINE_END.match(body, end)
        if not line_end:
            raise _Unfit("damaged")
        at = line_end.end()
    if at:
        raise _Unfit("damaged")
    return body


def _decoded(body: bytes, coding: str) -> bytes:
    """`body` with a content coding undone; a page that is not coded after all comes back as it is."""
    if coding in ("", "identity") or not body:
        return body
    try:
        if coding in ("gzip", "x-gzip"):
            content = _inflate(body, 31)
        elif coding == "deflate":
            try:
                content = _inflate(body, 15)
            except zlib.error:  # the header of zlib, which the standard asks for, is often left out
                content = _inflate(body, -15)
        elif coding == "br":
            content = _unbrotli(body)
        elif coding == "zstd":
            decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
            content = decompressor.stream_reader(io.BytesIO(body)).read(MAX_RECORD_BYTES + 1)
        else:
            raise _Unfit("unknown_coding")
    except (zlib.error, EOFError, brotli.error, zstandard.ZstdError):
        if body.lstrip()[:1] == b"<":
            return body
        raise _Unfit("damaged") from None
    if len(content) > MAX_RECORD_BYTES:
        raise _Unfit("too_large")
    return content


def _inflate(body: bytes, window: int) -> bytes:
    inflater = zlib.decompressobj(window)
    content = inflater.decompress(body, MAX_RECORD_BYTES + 1)
    if not inflater.eof and len(content) <= MAX_RECORD_BYTES:
        raise EOFError
    return content


def _unbrotli(body: bytes) -> bytes:
    decompressor = brotli.Decompressor()
    content = bytearray(decompressor.process(body, output_buffer_limit=CHUNK_BYTES))
    while not decompressor.is_finished() and len(content) <= MAX_RECORD_BYTES:
        more = decompressor.process(b"", output_buffer_limit=CHUNK_BYTES)
        if not more:
            raise EOFError
        content += more
    return bytes(content)
