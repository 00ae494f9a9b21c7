import base64
import gzip
import hashlib
import io
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable

import brotli
import pytest
import zstandard

from wronai import warc
from wronai.warc import Response

PAGE = "<html><body><p>Zażółć gęślą jaźń.</p></body></html>".encode()
HTML = "Content-Type: text/html; charset=UTF-8"
PACKERS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gz": gzip.compress, "zst": zstandard.compress}


def record(block: bytes, kind: str = "response", url: str = "http://a.pl/", *fields: str, digest: bool = True) -> bytes:
    media = {"response": "application/http; msgtype=response", "conversion": "text/plain"}.get(kind, "application/http")
    sha1 = base64.b32encode(hashlib.sha1(block).digest()).decode()
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2024-05-01T10:00:00Z",
        f"Content-Type: {media}",
        *([f"WARC-Block-Digest: sha1:{sha1}"] if digest else []),
        *fields,
        f"Content-Length: {len(block)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + block + b"\r\n\r\n"


def http(body: bytes = PAGE, *headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *(headers or (HTML,)), "", ""]).encode() + body


def pages(count: int, seed: int = 0) -> list[bytes]:
    """Records that differ in length, with text that does not pack to nothing."""
    noise = random.Random(seed)
    return [record(http(PAGE + noise.randbytes(noise.randint(100, 900)).hex().encode()), url=f"http://a.pl/{i}")
            for i in range(count)]  # fmt: skip


def read(content: bytes, whole: bool = True) -> tuple[list[Response], Counter[str]]:
    passed_over = Counter[str]()
    return list(warc.responses(io.BytesIO(content), "data.sources[2]: cc.warc", whole, passed_over)), passed_over


def urls(content: bytes, whole: bool = True) -> list[str]:
    return [found.url.removeprefix("http://a.pl/") for found in read(content, whole)[0]]


def only(block: bytes) -> Response:
    (found,), passed_over = read(record(block))
    assert not passed_over
    return found


def reason(content: bytes) -> str:
    """Why the one record before a sound one was passed over."""
    found, passed_over = read(content + record(http(), url="http://b.pl/"))
    assert [one.url for one in found] == ["http://b.pl/"]
    ((why, times),) = passed_over.items()
    assert times == 1
    return why


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("by_record", [True, False])
def test_a_crawl_gives_its_pages_however_it_is_packed(packed: str, by_record: bool) -> None:
    parts = [
        record(b"software: x", "warcinfo"),
        record(b"GET /", "request"),
        record(http()),
        record(b"a: b", "metadata"),
    ]
    pack = PACKERS[packed]
    content = b"".join(map(pack, parts)) if by_record else pack(b"".join(parts))
    found, passed_over = read(content)
    assert found == [Response("http://a.pl/", "2024-05-01T10:00:00Z", "text/html", "utf-8", PAGE)]
    assert passed_over == {"other_record": 3}


def test_a_wet_file_gives_its_texts() -> None:
    text = "Zażółć gęślą jaźń".encode()
    found, _ = read(gzip.compress(record(b"x", "warcinfo")) + gzip.compress(record(text, "conversion")))
    assert found == [Response("http://a.pl/", "2024-05-01T10:00:00Z", "text/plain", "utf-8", text)]


def test_records_come_before_the_file_is_read() -> None:
    stream = io.BytesIO(b"".join(map(gzip.compress, pages(2000))))
    next(warc.responses(stream, "x"))
    assert stream.tell() <= 4 * warc.CHUNK_BYTES < len(stream.getvalue())


def chunked(body: bytes) -> bytes:
    return b"a\r\n%b\r\n%X;x=1\r\n%b\r\n0\r\n\r\n" % (body[:10], len(body) - 10, body[10:])


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (chunked(PAGE), ["Transfer-Encoding: chunked"]),
        (chunked(gzip.compress(PAGE)), ["Transfer-Encoding: Chunked", "Content-Encoding: gzip"]),
        (gzip.compress(PAGE), ["Content-Encoding: x-gzip"]),
        (zlib.compress(PAGE), ["Content-Encoding: deflate"]),
        (raw_deflate(PAGE), ["Content-Encoding: deflate"]),
        (brotli.compress(PAGE), ["content-encoding: BR"]),
        (zstandard.compress(PAGE), ["Content-Encoding: zstd"]),
        (brotli.compress(gzip.compress(PAGE)), ["Content-Encoding: gzip, br"]),
        (PAGE, ["Content-Encoding: identity"]),
    ],
)
def test_transfer_and_content_codings_are_undone(body: bytes, headers: list[str]) -> None:
    assert only(http(body, HTML, *headers)).content == PAGE


@pytest.mark.parametrize(
    "header",
    ["Transfer-Encoding: chunked", *(f"Content-Encoding: {coding}" for coding in ("gzip", "deflate", "br", "zstd"))],
)
def test_a_page_that_the_crawler_decoded_stays_as_it_is(header: str) -> None:
    assert only(http(PAGE, HTML, header)).content == PAGE


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (["Content-Type: text/html"], PAGE, ("text/html", None)),
        (["CONTENT-TYPE: Text/HTML;charset='ISO-8859-2'"], PAGE, ("text/html", "iso-8859-2")),
        (['Content-Type: application/xhtml+xml; charset = "windows-1250"'], PAGE, ("text/html", "windows-1250")),
        (["Content-Type: text/plain;", " charset=utf-8"], b"tekst", ("text/plain", "utf-8")),
        (["Server: x"], PAGE, ("text/html", None)),
        (["Server: x"], "zażółć".encode("cp1250"), ("text/plain", None)),
    ],
)
def test_media_type_and_charset_are_those_of_the_answer(
    headers: list[str], body: bytes, expected: tuple[str, str | None]
) -> None:
    found = only(http(body, *headers))
    assert (found.media_type, found.charset, found.content) == (*expected, body)


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (http(status="404 Not Found"), "not_ok"),
        (http(status="301 Moved"), "not_ok"),
        (http(PAGE, "Content-Type: application/pdf"), "other_type"),
        (http(b"\x89PNG\r\n\x1a\n\0\0", "Server: x"), "other_type"),
        (http(b'{"a": 1}', "Server: x"), "other_type"),
        (http(b"", "Server: x"), "other_type"),
        (http(PAGE, HTML, "Content-Encoding: foo"), "unknown_coding"),
        (http(gzip.compress(PAGE)[:-9], HTML, "Content-Encoding: gzip"), "damaged"),
        (http(zlib.compress(PAGE)[:-9], HTML, "Content-Encoding: deflate"), "damaged"),
        (http(brotli.compress(PAGE)[:-9], HTML, "Content-Encoding: br"), "damaged"),
        (http(b"\xff" * 50, HTML, "Content-Encoding: br"), "damaged"),
        (http(chunked(PAGE)[:-20], HTML, "Transfer-Encoding: chunked"), "damaged"),
        (http(chunked(PAGE)[:-5] + b"zz\r\n", HTML, "Transfer-Encoding: chunked"), "damaged"),
        (b"HTTP/1.1 200 OK", "damaged"),
        (b"GARBAGE 200 OK\r\n\r\n" + PAGE, "damaged"),
    ],
)
def test_an_answer_that_is_no_page_is_passed_over_and_counted(block: bytes, why: str) -> None:
    assert reason(record(block)) == why


def test_records_of_other_protocols_and_media_are_counted() -> None:
    dns = record(b"a.pl. 300 IN A 1.2.3.4").replace(b"application/http; msgtype=response", b"text/dns")
    assert reason(dns) == "other_record"
    assert reason(record(b"{}", "conversion").replace(b"text/plain", b"application/json")) == "other_type"


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
def test_a_body_that_unpacks_to_a_bomb_is_too_large(coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MAX_RECORD_BYTES", 1 << 20)
    pack = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstandard.compress, "deflate": zlib.compress}[coding]
    assert reason(record(http(pack(b" " * 3_000_000), HTML, f"Content-Encoding: {coding}"))) == "too_large"


@pytest.mark.parametrize("packed", PACKERS)
def test_a_record_above_the_limit_is_stepped_over(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MAX_RECORD_BYTES", 1 << 20)
    found, passed_over = read(PACKERS[packed](record(http(b" " * 3_000_000)) + record(http())))
    assert (len(found), passed_over) == (1, {"too_large": 1})


PAYLOAD = {algorithm: hashlib.new(algorithm, PAGE) for algorithm in ("sha1", "sha256")}


@pytest.mark.parametrize(
    "digest",
    [
        f"sha1:{base64.b32encode(PAYLOAD['sha1'].digest()).decode()}",
        f"SHA-256:{PAYLOAD['sha256'].hexdigest().upper()}",
        f"sha256:{base64.b32encode(PAYLOAD['sha256'].digest()).decode().rstrip('=')}",
        "blake9:whatever",
    ],
)
def test_a_sound_or_unknown_payload_digest_passes(digest: str) -> None:
    field = f"WARC-Payload-Digest: {digest}"
    for block in (http(), http(chunked(PAGE), HTML, "Transfer-Encoding: chunked")):
        assert len(read(record(block, "response", "u", field, digest=False))[0]) == 1


@pytest.mark.parametrize("name", ["Payload", "Block"])
@pytest.mark.parametrize("body", [PAGE, chunked(PAGE), b"3\r\nab"])
def test_a_wrong_digest_is_damage(name: str, body: bytes) -> None:
    field = f"WARC-{name}-Digest: sha1:{'A' * 32}"
    assert reason(record(http(body), "response", "u", field, digest=False)) == "damaged"


def test_a_wrong_digest_of_a_text_is_damage() -> None:
    assert (
        reason(record(b"tekst", "conversion", "u", f"WARC-Block-Digest: sha256:{'0' * 64}", digest=False)) == "damaged"
    )


@pytest.mark.parametrize("spoil", [slice(0, 20), slice(40, 41), slice(100, 160), slice(-8, -4)])
def test_a_damaged_gzip_member_costs_its_record_alone(spoil: slice) -> None:
    members = list(map(gzip.compress, pages(9)))
    bad = bytearray(members[4])
    bad[spoil] = bytes(byte ^ 0x5A for byte in bad[spoil])
    found, passed_over = read(b"".join([*members[:4], bytes(bad), *members[5:]]))
    kept = [one.url[-1] for one in found]
    assert kept in ([*"01235678"], [*"012345678"])  # a wrong check sum behind a sound block costs nothing
    assert passed_over["damaged"] == 1


def test_a_damaged_first_member_does_not_disown_the_file() -> None:
    members = list(map(gzip.compress, pages(3)))
    members[0] = members[0][:20] + bytes(30) + members[0][50:]
    assert urls(b"".join(members)) == ["1", "2"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"WARC/1.0", b"XARC/1.0"),
        (b"Content-Length: ", b"Content-Length: x"),
        (b"Content-Length: ", b"Content-Length: 9"),
        (b"Content-Length: ", b"Content-Length: 1\r\nX: "),
        (b"Content-Length: ", b"X: "),
    ],
)
@pytest.mark.parametrize("packed", PACKERS)
def test_a_broken_header_costs_its_record_alone(old: bytes, new: bytes, packed: str) -> None:
    records = pages(6)
    records[3] = records[3].replace(old, new, 1)
    content = b"".join(map(PACKERS[packed], records))
    assert urls(content) == [*"01245"]
    assert read(content)[1] == {"damaged": 1}


def test_a_broken_header_at_the_end_is_damage_and_no_cut() -> None:
    records = pages(3)
    records[2] = records[2].replace(b"Content-Length: ", b"X: ")
    assert urls(b"".join(records)) == ["0", "1"]


@pytest.mark.parametrize("packed", ["plain", "gz"])
def test_what_hangs_behind_the_last_record_is_counted(packed: str) -> None:
    content = b"".join(map(PACKERS[packed], pages(3))) + b"garbage" * 9
    found, passed_over = read(content)
    assert (len(found), passed_over) == (3, {"damaged": 1})


def test_zeros_between_members_are_padding() -> None:
    one, two = map(gzip.compress, pages(2))
    assert read(one + bytes(512) + two + bytes(99))[1] == {}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.8, 0.99])
def test_a_cut_file_is_an_error_unless_it_was_cut_on_purpose(packed: str, share: float) -> None:
    parts = list(map(PACKERS[packed], pages(6)))
    cut = b"".join(parts[:5]) + parts[5][: int(len(parts[5]) * share)]
    assert urls(cut, whole=False)[:5] == [*"01234"]
    with pytest.raises(ValueError, match=r"^data.sources\[2\]: cc.warc is cut off"):
        read(cut)


def test_a_cut_within_a_large_record_is_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MAX_RECORD_BYTES", 1000)
    content = record(b"x", "warcinfo") + record(http(b" " * 5000))[:-900]
    assert urls(content, whole=False) == []
    with pytest.raises(ValueError, match=r"cc.warc is cut off"):
        read(content)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a WARC file"),
        (b"<html>", "is no WARC file: it begins with b'<html>', expected 'WARC/1.0'"),
        (gzip.compress(b"Ala ma kota"), "is no WARC file: it begins with b'Ala ma kota'"),
        (gzip.compress(b""), "is no WARC file: it begins with b''"),
        (b"\x1f\x8b\x08" + b"\xff" * 99, "holds no whole WARC record"),
        (b"WARC/1.0\r\nA: b\r\n\r\n", "holds no whole WARC record"),
        (zstandard.compress(PAGE)[:8] + b"\xff" * 99, "is damaged: zstd"),
        (gzip.compress(record(http())) + (b"\x1f\x8b\x08" + b"\xff" * 9) * 1100, "1001 gzip members in a row"),
        (record(http()) + b"WARC/1.0\r\n\r\n" * 1100, "1001 records in a row cannot be read"),
    ],
)
def test_what_is_no_warc_gets_one_clear_error(content: bytes, message: str, whole: bool) -> None:
    with pytest.raises(ValueError, match=rf"^data.sources\[2\]: cc.warc .*{message}"):
        read(content, whole)


def test_a_prefix_without_a_whole_record_says_so() -> None:
    with pytest.raises(ValueError, match="holds no whole WARC record"):
        read(record(http())[:150], whole=False)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_bomb_of_a_file_is_read_in_little_memory_and_refused(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(record(http())) + pack(b"WARC/1.0\r\n" + bytes(50_000_000))
    started = time.process_time()
    assert len(urls(bomb)) == 1
    assert time.process_time() - started < 10


def test_noise_never_raises_but_as_said() -> None:
    noise = random.Random(7)
    whole = {packed: b"".join(map(pack, pages(5))) for packed, pack in PACKERS.items()}
    for _ in range(300):
        packed = noise.choice([*PACKERS])
        content = bytearray(whole[packed])
        for _ in range(noise.randint(1, 4)):
            at = noise.randrange(len(content))
            content[at : at + noise.choice([0, 1, 50])] = noise.randbytes(noise.choice([0, 1, 50]))
        try:
            found, _ = read(bytes(content), noise.random() < 0.5)
        except ValueError as error:
            assert str(error).startswith("data.sources[2]: cc.warc ")
        else:
            assert all(one.content.startswith(b"<html>") for one in found if one.media_type == "text/html")
