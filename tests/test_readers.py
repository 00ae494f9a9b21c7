import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from wronai import readers

KEY = "data.sources[3]"
AT = r"^data.sources\[3\]"
TEXT = "Rzeka wylała w nocy i zabrała most."
ROWS = [{"text": f"{TEXT} Dzień {i}.", "n": i} for i in range(200)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def tarred(*members: tuple[str, bytes], **fields: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(path: Path, data: bytes | None = None, whole: bool = True, ignored: list[str] | None = None) -> dict[str, Any]:
    """What each member of the file gives: bytes, or rows."""
    if data is not None:
        path.write_bytes(data)
    given: dict[str, Any] = {}
    for member in readers.members(path, path.name, KEY, [] if ignored is None else ignored, whole=whole):
        if member.suffix in readers.DOCUMENTS:
            given[member.name] = readers.content(member, KEY)
        else:
            given[member.name] = [row for _, row in readers.rows(member, KEY)]
    return given


def rows(path: Path, data: bytes | None = None, whole: bool = True) -> list[dict[str, Any]]:
    (found,) = read(path, data, whole).values()
    return found


def cuts(data: bytes) -> list[bytes]:
    return [data[:length] for length in {1, 5, *range(20, len(data) - 1, len(data) // 20), len(data) - 1}]


def same_beginning(some: list[dict[str, Any]]) -> bool:
    return some == ROWS[: len(some)]


# formats


@pytest.mark.parametrize("packing", ["", *PACK])
def test_a_document_arrives_as_its_bytes(tmp_path: Path, packing: str) -> None:
    data = "<p>żółw</p>".encode("cp1250")
    name = f"a.html{packing}"
    assert read(tmp_path / name, PACK[packing](data) if packing else data) == {name: data}


@pytest.mark.parametrize("packing", ["", *PACK])
@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".jsonl", JSONL),
        (".JSONL", b"\xef\xbb\xbf\n" + JSONL.replace(b"\n", b"\r\n\n")),
        (".json", json.dumps(ROWS).encode()),
        (".json", b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
        (".json", json.dumps(ROWS).encode("utf-16")),
        (".json", JSONL),
        (".parquet", parquet(ROWS)),
    ],
)
def test_rows_arrive_whatever_the_packing(tmp_path: Path, packing: str, suffix: str, data: bytes) -> None:
    assert rows(tmp_path / f"a{suffix}{packing}", PACK[packing](data) if packing else data) == ROWS


@pytest.mark.parametrize("packing", PACK)
def test_streams_that_follow_each_other_are_read_to_the_end(tmp_path: Path, packing: str) -> None:
    half = JSONL.index(b"\n", len(JSONL) // 2) + 1
    packed = PACK[packing](JSONL[:half]) + PACK[packing](b"") + PACK[packing](JSONL[half:])
    assert rows(tmp_path / f"a.jsonl{packing}", packed) == ROWS


def test_zeros_between_and_after_gzip_streams_are_padding(tmp_path: Path) -> None:
    packed = gzip.compress(JSONL) + bytes(5000) + gzip.compress(b"") + bytes(3)
    assert rows(tmp_path / "a.jsonl.gz", packed) == ROWS


def test_a_skippable_frame_of_zstd_is_skipped(tmp_path: Path) -> None:
    frame = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
    assert rows(tmp_path / "a.jsonl.zst", frame + zstandard.compress(JSONL) + frame) == ROWS


def test_a_row_has_the_number_of_its_line_or_place(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b'{"n":1}\n\n{"n":2}'), ("a.csv", b"n\n1\n\n2\n"), ("a.json", b'[{"n":1},{"n":2}]')):
        (tmp_path / name).write_bytes(data)
    numbers = {
        name: [
            number
            for member in readers.members(tmp_path / name, name, KEY, [])
            for number, _ in readers.rows(member, KEY)
        ]
        for name in ("a.jsonl", "a.csv", "a.json")
    }
    assert numbers == {"a.jsonl": [1, 3], "a.csv": [1, 2], "a.json": [1, 2]}


def test_a_json_object_is_the_only_row(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.json", json.dumps({"data": [1]}, indent=1).encode()) == [{"data": [1]}]
    assert rows(tmp_path / "b.json", json.dumps({"data": [1]}).encode()) == [{"data": [1]}]


def test_nan_is_read(tmp_path: Path) -> None:
    assert str(rows(tmp_path / "a.jsonl", b'{"n": NaN}')) == "[{'n': nan}]"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "b.json"])
def test_a_lone_surrogate_becomes_a_replacement_character(tmp_path: Path, name: str) -> None:
    row = b'{"te\\ud800xt": ["a\\udc00b", {"c": "\\uD83D\\uDE00", "d": 1}], "raw": "' + b'\xed\xa0\x80"}'
    data = {"a.jsonl": row, "a.json": b"[" + row + b"]", "b.json": row.replace(b"{", b"{\n")}[name]
    assert rows(tmp_path / name, data) == [{"te\ufffdxt": ["a\ufffdb", {"c": "😀", "d": 1}], "raw": "\ufffd"}]


def test_the_columns_of_parquet_arrive_as_python_values(tmp_path: Path) -> None:
    given = [
        {"text": "żółw", "raw": b"\xff", "turns": [{"from": "human", "value": "Ile?"}], "n": None, "d": {"q": 1.5}}
    ]
    table = pa.Table.from_pylist(given).set_column(0, "text", pa.array(["żółw"]).dictionary_encode())
    pq.write_table(table, tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == given


def test_parquet_is_read_in_small_pieces(tmp_path: Path) -> None:
    table = pa.table({"text": [os.urandom(5000).hex() for _ in range(4000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    del table
    (member,) = readers.members(tmp_path / "a.parquet", "a.parquet", KEY, [])
    held = pa.total_allocated_bytes()
    tracemalloc.start()  # Arrow keeps in Python's memory what it reads from a Python file
    arrow = max(pa.total_allocated_bytes() - held for _ in readers.rows(member, KEY))
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert arrow < 16 << 20 and python < 16 << 20


# tables


TABLE = [{"text": 'Most, "stary"\nnad rzeką; w', "n": "1"}, {"text": "żółw", "n": ""}]
CSV = 'text,n\n"Most, ""stary""\nnad rzeką; w",1\nżółw,\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", CSV.encode()),
        ("a.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("a.csv", CSV.replace('",1', '";1').replace("text,n", "text;n").replace("żółw,", "żółw;").encode("cp1250")),
        ("a.tsv", CSV.replace('",1', '"\t1').replace("text,n", "text\t n ").replace("żółw,", "żółw\t").encode()),
        ("a.csv", CSV.replace('",1', '"\t1').replace("text,n", "text\tn").replace("żółw,", "żółw\t").encode("utf-16")),
    ],
)
def test_encoding_and_delimiter_of_a_table_are_found(tmp_path: Path, name: str, data: bytes) -> None:
    assert rows(tmp_path / name, data) == TABLE


def test_line_ends_of_any_kind_end_a_row(tmp_path: Path) -> None:
    expected = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    for end in ("\n", "\r\n", "\r"):
        assert rows(tmp_path / "a.csv", end.join(["a;b", "1;2", "3;4"]).encode()) == expected


def test_a_table_may_have_one_column(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.csv", 'text\n"Most, rzeka"\nŻółw\n'.encode()) == [
        {"text": "Most, rzeka"},
        {"text": "Żółw"},
    ]


def test_quotation_marks_between_tabs_can_be_text(tmp_path: Path) -> None:
    table = 'a\tb\n"Ogniem" i "Mieczem"\t1\n"Potop" też\t2'
    assert [row["a"] for row in rows(tmp_path / "a.tsv", table.encode())] == ['"Ogniem" i "Mieczem"', '"Potop" też']


def test_a_letter_across_the_end_of_the_sample_does_not_change_the_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BUFFER_BYTES", 8)  # text\na|ż
    assert rows(tmp_path / "a.csv", "text\nabż\nżó\n".encode()) == [{"text": "abż"}, {"text": "żó"}]


def test_a_damaged_letter_does_not_make_utf8_a_code_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{AT}: a.csv line \d is no CSV in utf-8: 'utf-8' codec can't decode byte"):
        rows(tmp_path / "a.csv", "text\nzażółć\ngęślą".encode() + b"\xff\n")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,b\n1,2\n3\n", r"line 3 has 1 fields, the header has 2: \['a', 'b'\]"),
        ('a,b\n"1\n",2\n3,4,5\n', r"line 4 has 3 fields, the header has 2"),
        ("a,a\n1,2\n", r"line 1 must be a header, but repeats a name: \['a', 'a'\]"),
        ('a,b\n1,"2\n3,4\n', r"line 3 is no CSV in utf-8: unexpected end of data"),
        ('a,b\n"1"x,2\n', r"line 2 is no CSV in utf-8: ',' expected after '\"'"),
        ("a,b\n", "is empty"),
    ],
)
def test_a_table_that_does_not_add_up_fails_with_its_line(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{AT}: a.csv {message}"):
        rows(tmp_path / "a.csv", table.encode())


# what does not parse


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is no JSON: "),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1 is no JSON: 'utf-8' codec"),
        ("a.jsonl", b'{"a":' * 100_000, "line 1 is no JSON: maximum recursion"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "line 1 is no JSON: Exceeds the limit"),
        ("a.jsonl", b'["x"]\n', "line 1 is list, expected a JSON object"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.json", b"[1]", "item 1 is int, expected a JSON object"),
        ("a.json", json.dumps([1]).encode("utf-16"), "item 1 is int, expected a JSON object"),
        ("a.json", b'"x"', "item 1 is str, expected a JSON object"),
        ("a.json", b'{"a": \n', "is no JSON: "),
        ("a.json", b'{"a":\n' * 100_000, "is no JSON: maximum recursion"),
        ("a.json", b'[{"a": 1}, {"a": }]', "item 2 is no JSON: Expecting value"),
        ("a.json", b'[{"a": 1},]', "item 2 is no JSON: Expecting value"),
        ("a.json", b'[{"a": 1}', "is no JSON: after item 1 its list goes wrong or has no end"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "is no JSON: after item 1 its list goes wrong"),
        ("a.json", b'[{"a": 1}] x', "is no JSON: after item 1 its list goes wrong"),
        ("a.json", b'[{"a": "\xff"}]', "is no JSON: 'utf-8' codec"),
        ("a.json", b'[{"a":' * 100_000, "item 1 is no JSON: maximum recursion"),
        ("a.parquet", b"PAR1" + b"x" * 100, "is cut off or damaged: Parquet magic bytes not found"),
        ("a.jsonl.gz", b"x" * 100, "is cut off or damaged: .*incorrect header check"),
        ("a.jsonl.gz", gzip.compress(JSONL) + b"x", "is cut off or damaged"),
        ("a.jsonl.bz2", b"x" * 100, "is cut off or damaged: Invalid data stream"),
        ("a.jsonl.xz", b"x" * 100, "is cut off or damaged: Input format not supported"),
        ("a.jsonl.zst", b"x" * 100, "is cut off or damaged: zstd decompress.* error: Unknown frame descriptor"),
        ("a.zip", b"x" * 100, "is cut off or damaged: File is not a zip file"),
        ("a.tar", b"x" * 1000, "is cut off or damaged: bad checksum|is cut off or damaged: invalid header"),
        ("a.txt", b"", "is empty"),
        ("a.txt.gz", gzip.compress(b""), "is empty"),
        ("a.jsonl.gz", b"", "is empty"),
        ("a.parquet", parquet(ROWS)[:0] or b"", "is empty"),
        ("a.pdf", b"%PDF", "is no .txt, .md, .*, packed or not, and no archive of them"),
        ("a.zip.gz", b"x", "is no .txt"),
    ],
)
def test_what_cannot_be_read_fails_with_its_place(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{AT}: {name} ({message})"):
        read(tmp_path / name, data)


def test_parquet_without_a_row_fails(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"{AT}: a.parquet is empty"):
        read(tmp_path / "a.parquet")


def test_a_damaged_page_of_parquet_fails(tmp_path: Path) -> None:
    data = bytearray(parquet([{"text": os.urandom(2000).hex()} for _ in range(50)]))
    data[20:2000] = bytes(1980)
    with pytest.raises(ValueError, match=rf"{AT}: a.parquet is cut off or damaged: "):
        rows(tmp_path / "a.parquet", bytes(data))


def test_a_date_that_python_cannot_hold_fails(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "day": pa.array([2**60], pa.timestamp("us"))}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"{AT}: a.parquet: a row from 1 on holds what cannot be read: date value"):
        rows(tmp_path / "a.parquet")


def test_parquet_that_holds_no_utf8_fails(tmp_path: Path) -> None:
    bytes_ = pa.array([b"\xff"])
    text = pa.Array.from_buffers(pa.string(), 1, bytes_.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"{AT}: a.parquet: a row from 1 on holds what cannot be read: 'utf-8' codec"):
        rows(tmp_path / "a.parquet")


def test_a_header_of_thousands_of_columns_is_not_said_whole(tmp_path: Path) -> None:
    header = ",".join(f"c{i}" for i in range(10_000))
    with pytest.raises(ValueError, match=r"has 1 fields, the header has 10000: \['c0', 'c1'.* \[\.\.\.\]$") as caught:
        rows(tmp_path / "a.csv", f"{header}\n1\n".encode())
    assert len(str(caught.value)) < 1000


# what is cut


@pytest.mark.parametrize("packing", PACK)
def test_a_stream_that_is_cut_off_fails_wherever_it_is_cut(tmp_path: Path, packing: str) -> None:
    for part in cuts(PACK[packing](JSONL)):
        with pytest.raises(
            ValueError, match=rf"{AT}: a.jsonl{packing} is cut off or damaged: the compressed stream has"
        ):
            rows(tmp_path / f"a.jsonl{packing}", part)


@pytest.mark.parametrize("packing", PACK)
def test_a_second_stream_that_is_cut_off_fails(tmp_path: Path, packing: str) -> None:
    packed = PACK[packing](JSONL)
    with pytest.raises(ValueError, match=rf"{AT}: a.jsonl{packing} is cut off or damaged"):
        rows(tmp_path / f"a.jsonl{packing}", packed + packed[:10])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", parquet(ROWS)),
        ("a.zip", zipped(("a.jsonl", JSONL), ("b.jsonl", JSONL))),
        ("a.parquet.gz", gzip.compress(parquet(ROWS))),
        ("a.tar.gz", gzip.compress(tarred(("a.jsonl", JSONL), ("b.jsonl", JSONL)))),
    ],
)
def test_a_file_with_an_index_or_check_fails_wherever_it_is_cut(tmp_path: Path, name: str, data: bytes) -> None:
    for part in cuts(data):
        with pytest.raises(ValueError, match=rf"{AT}: {name} is cut off or damaged"):
            read(tmp_path / name, part)


def test_a_tar_fails_wherever_it_is_cut_even_between_members(tmp_path: Path) -> None:
    data = tarred(("a.jsonl", b'{"a": 1}'), ("ż" * 200 + ".jsonl", b'{"a": 2}'), ("c.jsonl", b'{"a": 3}'))
    end = data.rindex(b'{"a": 3}') + 512
    for length in (1, 100, *range(512, end, 512), end - 100):
        with pytest.raises(ValueError, match=rf"{AT}: a.tar.* is cut off or damaged"):
            read(tmp_path / "a.tar", data[:length])


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    data = bytearray(tarred(("a.jsonl", b'{"a": 1}'), ("b.jsonl", b'{"a": 2}')))
    data[1024] ^= 1
    with pytest.raises(ValueError, match=rf"{AT}: a.tar is cut off or damaged: bad checksum"):
        read(tmp_path / "a.tar", bytes(data))


@pytest.mark.parametrize("packing", ["", *PACK])
@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".jsonl", JSONL),
        (".json", json.dumps(ROWS, ensure_ascii=False).encode()),
        (".csv", ("text,n\n" + "".join(f'"{row["text"]}",{row["n"]}\n' for row in ROWS)).encode()),
    ],
)
def test_the_beginning_of_a_file_gives_the_rows_that_are_whole(
    tmp_path: Path, packing: str, suffix: str, data: bytes
) -> None:
    packed = PACK[packing](data) if packing else data
    most = 0
    for part in cuts(packed):
        found = rows(tmp_path / f"a{suffix}{packing}", part, whole=False)
        if suffix == ".csv":
            found = [{"text": row["text"], "n": int(row["n"])} for row in found]
        assert same_beginning(found)
        most = max(most, len(found))
    assert most > 150 or packing in (".bz2", ".zst", ".xz")  # these give a block at once


def test_the_beginning_of_json_lines_may_be_called_json(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.json", JSONL[:1000], whole=False) == ROWS[: JSONL[:1000].count(b"\n")]


def test_the_beginning_of_a_document_ends_in_a_whole_letter(tmp_path: Path) -> None:
    for word in ("żółw", "„–”", "😀😀"):
        data = word.encode()
        for length in range(1, len(data)):
            part = read(tmp_path / "a.txt", data[:length], whole=False)["a.txt"]
            assert word.startswith(part.decode()) and length - len(part) < 4


def test_the_beginning_of_a_tar_gives_what_is_there(tmp_path: Path) -> None:
    data = tarred(("a.jsonl", JSONL), ("b.txt", TEXT.encode() * 100))
    for length in range(1, len(data), 999):
        found = read(tmp_path / "a.tar", data[:length], whole=False)
        assert same_beginning(found.get("a.tar/a.jsonl", []))
        assert (TEXT * 100).startswith(found.get("a.tar/b.txt", b"").decode())
    found = read(tmp_path / "a.tar", data[: data.index(b"b.txt") + 512 + 1000], whole=False)
    assert found["a.tar/a.jsonl"] == ROWS and len(found["a.tar/b.txt"]) > 990


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.parquet", parquet(ROWS), "a.parquet is Parquet"),
        ("a.tar", tarred(("b.parquet", parquet(ROWS))), "a.tar/b.parquet is Parquet"),
        ("a.zip", zipped(("a.jsonl", JSONL)), "a.zip is a zip archive"),
        ("a.json", json.dumps({"data": []}, indent=1).encode(), "a.json is one JSON object"),
    ],
)
def test_a_format_that_needs_its_end_is_refused_in_part(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=rf"{AT}: {what}, which cannot be read from its beginning alone"):
        read(tmp_path / name, data, whole=False)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_damage_before_the_end_fails_in_a_beginning_too(tmp_path: Path, name: str) -> None:
    data = {"a.jsonl": b'{"a": }\n{"a": 1', "a.json": b'[{"a": 1} {"a": ', "a.csv": b'a,b\n"1"x,2\n3,'}[name]
    with pytest.raises(ValueError, match=rf"{AT}: {name} .*is no (JSON|CSV)"):
        rows(tmp_path / name, data, whole=False)


# archives

MEMBERS = (
    ("./a/b.jsonl", JSONL),
    ("a/c.parquet", parquet(ROWS)),
    ("d.jsonl.gz", gzip.compress(JSONL)),
    ("e.json", json.dumps(ROWS).encode()),
    ("LICENSE", b"CC0"),
    ("inner.zip", zipped(("x.jsonl", JSONL))),
    ("inner.tar.gz", b"x"),
    ("__MACOSX/a/b.jsonl", b"\0"),
    (".ukryte/a.jsonl", b"\0"),
    ("strona.html", "<p>żółw</p>".encode("cp1250")),
)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.zip", zipped(*MEMBERS)),
        ("x.ZIP", zipped(*MEMBERS, method=zipfile.ZIP_STORED)),
        ("x.tar", tarred(*MEMBERS)),
        ("x.tar.gz", gzip.compress(tarred(*MEMBERS))),
        ("x.tgz", gzip.compress(tarred(*MEMBERS))),
        ("x.tar.bz2", bz2.compress(tarred(*MEMBERS))),
        ("x.txz", lzma.compress(tarred(*MEMBERS))),
        ("x.tar.zst", zstandard.compress(tarred(*MEMBERS))),
    ],
)
def test_an_archive_gives_its_members_and_names_what_it_ignored(tmp_path: Path, name: str, data: bytes) -> None:
    ignored: list[str] = []
    expected = dict.fromkeys(("a/b.jsonl", "a/c.parquet", "d.jsonl.gz", "e.json"), ROWS)
    assert read(tmp_path / name, data, ignored=ignored) == {
        **{f"{name}/{inner}": found for inner, found in expected.items()},
        f"{name}/strona.html": "<p>żółw</p>".encode("cp1250"),
    }
    passed_over = ("LICENSE", "inner.zip", "inner.tar.gz", "__MACOSX/a/b.jsonl", ".ukryte/a.jsonl")
    assert ignored == [f"{name}/{inner}" for inner in passed_over]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_members_may_be_passed_over_unread(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tarred(("a.jsonl", JSONL), ("b.jsonl", JSONL)))
    assert [member.name for member in readers.members(tmp_path / "a.tar", "a.tar", KEY, [])] == [
        "a.tar/a.jsonl",
        "a.tar/b.jsonl",
    ]


def test_an_archive_without_a_usable_member_fails(tmp_path: Path) -> None:
    for name, data in (("a.zip", zipped(("LICENSE", b"CC0"))), ("a.tar", tarred(("LICENSE", b"CC0")))):
        with pytest.raises(ValueError, match=rf"{AT}: {name} holds no .txt, .*.parquet file"):
            read(tmp_path / name, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_member_twice_fails(tmp_path: Path) -> None:
    twice = (("a.jsonl", JSONL), ("b.jsonl", JSONL), ("a.jsonl", JSONL))
    for name, data in (("a.zip", zipped(*twice)), ("a.tar", tarred(*twice))):
        with pytest.raises(ValueError, match=rf"{AT}: {name} has the member 'a.jsonl' twice"):
            read(tmp_path / name, data)


def test_only_the_suffixes_asked_for_are_members(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(("a.txt", b"x"), ("b.jsonl", JSONL)))
    ignored: list[str] = []
    found = readers.members(tmp_path / "a.zip", "a.zip", KEY, ignored, suffixes=(".jsonl",))
    assert ([member.name for member in found], ignored) == (["a.zip/b.jsonl"], ["a.zip/a.txt"])


@pytest.mark.parametrize("inner", ["../x.txt", "a/../../x.txt", "/etc/x.txt", "C:\\x.txt", "C:x.txt", "..\\x.txt"])
def test_a_member_that_climbs_out_fails(tmp_path: Path, inner: str) -> None:
    for name, data in (("a.zip", zipped((inner, b"x"))), ("a.tar", tarred((inner, b"x")))):
        with pytest.raises(ValueError, match=rf"{AT}: {name} has the member .*x.txt', whose name climbs out"):
            read(tmp_path / name, data)


@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_fails(tmp_path: Path, type_: bytes) -> None:
    with pytest.raises(ValueError, match=rf"{AT}: a.tar has the member 'a.txt', a link, device or sparse file"):
        read(tmp_path / "a.tar", tarred(("a.txt", b""), type=type_, linkname="/etc/passwd"))


def test_a_sparse_file_in_a_tar_fails(tmp_path: Path) -> None:
    header = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": "1" + "0" * 12,
    }
    with pytest.raises(ValueError, match=rf"{AT}: a.tar has the member 'a.txt', a link, device or sparse file"):
        read(tmp_path / "a.tar", tarred(("a.txt", b"x"), pax_headers=header))


def test_a_link_in_a_zip_fails(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a.txt")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match=rf"{AT}: a.zip has the member 'a.txt', a link"):
        read(tmp_path / "a.zip")


def altered(data: bytes, flags: int | None = None, method: int | None = None) -> bytes:
    """A zip of one member whose two headers say otherwise."""
    changed = bytearray(data)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.index(mark) + offset
        changed[at : at + 2] = struct.pack("<H", flags) if flags is not None else changed[at : at + 2]
        changed[at + 2 : at + 4] = struct.pack("<H", method) if method is not None else changed[at + 2 : at + 4]
    return bytes(changed)


def test_an_encrypted_zip_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{AT}: a.zip/a.txt is encrypted: expected an archive without a password"):
        read(tmp_path / "a.zip", altered(zipped(("a.txt", b"x")), flags=1))


def test_a_zip_packed_by_another_method_fails(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"{AT}: a.zip/a.txt is packed by zip's method 12: expected stored or deflated"
    ):
        read(tmp_path / "a.zip", zipped(("a.txt", b"x"), method=zipfile.ZIP_BZIP2))


def test_a_zip_with_a_damaged_member_fails(tmp_path: Path) -> None:
    data = bytearray(zipped(("a.txt", b"Rzeka"), method=zipfile.ZIP_STORED))
    data[data.index(b"Rzeka")] ^= 1
    with pytest.raises(ValueError, match=rf"{AT}: a.zip/a.txt is cut off or damaged: Bad CRC-32"):
        read(tmp_path / "a.zip", bytes(data))
    data[0] = 0
    with pytest.raises(ValueError, match=rf"{AT}: a.zip/a.txt is cut off or damaged: Bad magic number"):
        read(tmp_path / "a.zip", bytes(data))


# limits


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RECORD_BYTES", 1000), ("JSON_BYTES", 2000), ("BUFFER_BYTES", 500)):
        monkeypatch.setattr(readers, name, value)


LONG = "x" * 3000


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", LONG.encode(), "is longer than 1,000 bytes, the limit of a document"),
        ("a.jsonl", f'{{}}\n{{"a": "{LONG}"}}\n'.encode(), "line 2 is longer than 1,000 bytes, the limit"),
        ("a.json", f'[{{}}, {{"a": "{LONG}"}}]'.encode(), "item 2 has no end within 1,000 characters, the limit"),
        ("a.json", f'{{"a": "{LONG}"}}'.encode(), "is longer than 2,000 bytes, the limit of JSON that is no list"),
        ("a.csv", f'a,b\n1,"{LONG}"\n'.encode(), "line 2 is no CSV in utf-8: the row is longer than 1,000 characters"),
        ("a.csv", b'a,b\n1,"' + b"x\n" * 2000, r"line 50\d is no CSV in utf-8: the row is longer than 1,000"),
        ("a.parquet", parquet([{"a": "x"}, {"a": LONG}]), "row 2 is longer than 1,000, the limit, in 'a'"),
        ("a.parquet", parquet([{"a": LONG.encode()}]), "row 1 is longer than 1,000, the limit, in 'a'"),
    ],
)
def test_a_record_above_the_limit_fails(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{AT}: {name} {message}"):
        read(tmp_path / name, data)


@pytest.mark.usefixtures("small_limits")
def test_records_below_the_limit_pass_however_many(tmp_path: Path) -> None:
    many = [{"a": "x" * 900} for _ in range(20)]
    assert rows(tmp_path / "a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in many)) == many
    assert rows(tmp_path / "a.json", json.dumps(many).encode()) == many
    assert rows(tmp_path / "a.csv", "\n".join(["a", *(row["a"] for row in many)]).encode()) == many
    assert rows(tmp_path / "a.parquet", parquet(many)) == many


def test_a_line_of_200_megabytes_fails_soon(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(200 << 20)
    started = time.process_time()
    with pytest.raises(ValueError, match=rf"{AT}: a.jsonl line 1 is longer than 67,108,864 bytes, the limit"):
        rows(tmp_path / "a.jsonl")
    assert time.process_time() - started < 5


BOMB = bytes(80 << 20)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", gzip.compress(BOMB)),
        ("a.csv.bz2", bz2.compress(BOMB)),
        ("a.json.zst", zstandard.compress(BOMB)),
        ("a.parquet.gz", gzip.compress(BOMB)),
        ("a.tar.gz", gzip.compress(tarred(("LICENSE", BOMB), ("a.jsonl", JSONL)))),
        ("a.tar.zst", zstandard.compress(tarred(("a.jsonl", JSONL)) + BOMB)),
        ("a.tar", tarred(("a.txt.gz", gzip.compress(BOMB)))),
        ("a.zip", zipped(("a.parquet", BOMB))),
        ("a.parquet", parquet([{"text": "x" * (1 << 20)}] * 80)),
    ],
)
def test_a_bomb_is_stopped(tmp_path: Path, name: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "RECORD_BYTES", 100 << 20)
    with pytest.raises(ValueError, match=rf"{AT}: {name}.* unpacks to more than 200 times its size, as a bomb does"):
        read(tmp_path / name, data)


def test_a_zip_whose_members_share_bytes_is_stopped(tmp_path: Path) -> None:
    data = zipped(("a.txt", os.urandom(1000)))
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entries = 3 * data[start:end]
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(entries), start, 0)
    with pytest.raises(ValueError, match=rf"{AT}: a.zip has members that overlap, as a bomb has"):
        read(tmp_path / "a.zip", data[:start] + entries + tail)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.zip", "a.parquet"])
def test_a_file_that_unpacks_to_more_than_the_limit_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(readers, "MEMBER_BYTES", 2000)
    text = os.urandom(2000).hex()
    pack = {
        "a.txt.gz": gzip.compress(text.encode()),
        "a.zip": zipped(("a.txt", text.encode())),
        "a.parquet": parquet([{"text": text}]),
    }
    with pytest.raises(ValueError, match=rf"{AT}: {name}.* unpacks to more than 2,000 bytes, the limit"):
        read(tmp_path / name, pack[name])


# files


def files(path: Path, *suffixes: str) -> tuple[list[str], list[str]]:
    ignored: list[str] = []
    found = readers.files(str(path), suffixes or readers.SUFFIXES, KEY, ignored)
    assert all(file.is_file() for _, file in found)
    return [name for name, _ in found], ignored


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(TEXT)
    return root


def test_a_folder_gives_its_usable_files_and_names_the_others(tmp_path: Path) -> None:
    tree(tmp_path, "b/c.MD", "a.txt", "a.jsonl.zst", "b/d.tar.gz", "e.zip", "LICENSE", "x.pdf.gz", "x.zip.gz")
    assert files(tmp_path) == (
        ["a.jsonl.zst", "a.txt", "b/c.MD", "b/d.tar.gz", "e.zip"],
        ["LICENSE", "x.pdf.gz", "x.zip.gz"],
    )
    assert files(tmp_path, ".txt")[0] == ["a.txt", "b/d.tar.gz", "e.zip"]


def test_hidden_files_and_folders_are_ignored_by_name(tmp_path: Path) -> None:
    tree(tmp_path, "a.txt", ".b.txt", ".git/c.txt", "d/.e/f.txt")
    assert files(tmp_path) == (["a.txt"], [".b.txt", ".git/", "d/.e/"])


def test_a_file_is_given_by_its_name(tmp_path: Path) -> None:
    tree(tmp_path, "b/[1].txt")
    assert files(tmp_path / "b" / "[1].txt") == (["[1].txt"], [])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("[b-z].txt", ["b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "x/c.txt", "x/y/d.txt"]),
        ("**", ["a.txt", "b.txt", "x/c.txt", "x/y/d.txt", "x/y/e.md"]),
        ("x/**", ["c.txt", "y/d.txt", "y/e.md"]),
        ("*/**/d.txt", ["d.txt"]),
        ("**/y/**", ["d.txt", "e.md"]),
        ("**/x/**/*.txt", ["c.txt", "y/d.txt"]),
        ("*/y/*", ["d.txt", "e.md"]),
        ("[x]/y/d.txt", ["d.txt"]),
    ],
)
def test_a_glob_gives_the_files_that_match(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    tree(tmp_path, "a.txt", "b.txt", "x/c.txt", "x/y/d.txt", "x/y/e.md", ".z.txt")
    assert files(tmp_path / pattern)[0] == expected


def test_a_glob_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path, "a.txt", "x/c.txt"))
    assert files(Path("**/*.txt"))[0] == ["a.txt", "x/c.txt"]
    assert files(Path("x/*"))[0] == ["c.txt"]


def test_a_link_to_a_file_is_read_and_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", "a.txt")
    (root / "b.txt").symlink_to(root / "a.txt")
    (root / "pętla").symlink_to(root)
    (root / "druga").symlink_to(root)
    assert files(root) == (["a.txt", "b.txt"], ["druga/", "pętla/"])
    assert files(root / "**" / "*.txt") == (["a.txt", "b.txt"], ["druga/", "pętla/"])


@pytest.mark.parametrize("target", ["a.txt", "nie-ma.txt"])
def test_a_link_that_leads_to_nothing_fails(tmp_path: Path, target: str) -> None:
    tree(tmp_path, "b.txt")
    (tmp_path / "a.txt").symlink_to(tmp_path / target)
    for pattern in ("", "*.txt"):
        with pytest.raises(FileNotFoundError, match=rf"{AT}.path is .*: a.txt is a link that leads to nothing"):
            files(tmp_path / pattern)
    with pytest.raises(FileNotFoundError, match=rf"{AT}.path is .*a.txt: a link that leads to nothing"):
        files(tmp_path / "a.txt")
    with pytest.raises(OSError, match=rf"{AT}: a.txt cannot be read: (Too many levels|No such file)"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["nie-ma", "*.nie-ma", "nie-ma/*", "nie-ma/**"])
def test_a_path_without_files_fails(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{AT}.path is .*: no "):
        files(tmp_path / name)


def test_a_folder_without_usable_files_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{AT}.path is .*: no .txt, .md file, packed or not, and no archive"):
        files(tree(tmp_path, "a.pdf"), ".txt", ".md")


def test_a_file_of_another_kind_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{AT}.path is .*a.pdf: expected .txt, .md, packed or not"):
        files(tree(tmp_path, "a.pdf") / "a.pdf", ".txt", ".md")


def test_a_name_that_no_file_can_have_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"{AT}.path is .*cannot be read: File name too long"):
        files(tmp_path / ("x" * 300))


def test_a_name_in_another_encoding_becomes_printable(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xbf\xf3\xb3w.txt")).write_text(TEXT)
    (tmp_path / os.fsdecode(b"\xbf.pdf")).write_text(TEXT)
    assert files(tmp_path) == (["\\xbf\\xf3\\xb3w.txt"], ["\\xbf.pdf"])


def test_a_member_with_a_name_in_another_encoding_becomes_printable(tmp_path: Path) -> None:
    data = tarred((os.fsdecode(b"a/\xbf.jsonl"), JSONL), (os.fsdecode(b"a/\xf3.jsonl"), JSONL))
    assert list(read(tmp_path / "a.tar", data)) == ["a.tar/a/\\xbf.jsonl", "a.tar/a/\\xf3.jsonl"]


@as_root
def test_a_folder_without_permission_fails(tmp_path: Path) -> None:
    (tree(tmp_path, "a.txt", "b/c.txt") / "b").chmod(0)
    for pattern in ("", "**/*.txt", "b/*.txt"):
        with pytest.raises(OSError, match=rf"{AT}.path is .*/b.* cannot be read: Permission denied"):
            files(tmp_path / pattern)


@as_root
def test_a_file_without_permission_fails(tmp_path: Path) -> None:
    (tree(tmp_path, "a.txt") / "a.txt").chmod(0)
    with pytest.raises(PermissionError, match=rf"{AT}: a.txt cannot be read: Permission denied"):
        read(tmp_path / "a.txt")


def test_a_folder_or_pipe_in_place_of_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(ValueError, match=rf"{AT}: a.txt is a folder, expected a file"):
        read(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(ValueError, match=rf"{AT}: b.txt is no regular file, expected a file"):
        read(tmp_path / "b.txt")


def test_a_missing_file_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{AT}: a.txt cannot be read: No such file"):
        read(tmp_path / "a.txt")


def test_a_url_has_the_kind_of_its_path() -> None:
    assert readers.kind("https://example.org/a.jsonl.gz?download=1#x") == (".jsonl", ".gz")
    assert readers.kind("co to jest? #1.txt") == (".txt", "")
    assert readers.kind("a.TBZ2") == (".tar", ".bz2")
    assert readers.kind("LICENSE") == ("", "")
