import bz2
import gzip
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_warc
import test_wikimedia
import web

from wronai import params, sources
from wronai.corpus import Document, Instruction

TEXT = "Rzeka wylała w nocy i zabrała most."


@dataclass
class Read(sources.Harvest):
    """A harvest with what was read."""

    items: list[Document | Instruction] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [item.content.decode() for item in self.items if isinstance(item, Document)]

    @property
    def turns(self) -> list[list[str]]:
        return [[turn["content"] for turn in item.messages] for item in self.items if isinstance(item, Instruction)]


def read(tmp_path: Path, **fields: Any) -> Read:
    source = params.Data.model_validate({"sources": [{"name": "moje", "licence": "CC0-1.0", **fields}]}).sources[0]
    harvest = Read()
    for item in sources.read(source, "data.sources[3]", tmp_path / "downloads", lambda line: None, harvest):
        harvest.items.append(item)
    return harvest


def documents(tmp_path: Path, path: Path | str, **fields: Any) -> Read:
    return read(tmp_path, **{"kind": "local", "path": str(path), "role": "documents", "text_kind": "edited", **fields})


def instructions(tmp_path: Path, path: Path | str, **fields: Any) -> Read:
    return read(tmp_path, **{"kind": "local", "path": str(path), "role": "instructions", **fields})


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    root = tmp_path / "sample"
    lines(
        root / "documents" / "a.jsonl",
        {"id": "d1", "genre": "story", "title": "Most", "text": TEXT},
        {"id": "d2", "genre": "poem", "title": "Wiersz", "text": "Rzeka\nnocą"},
    )
    lines(
        root / "instructions" / "a.jsonl",
        {
            "id": "i1",
            "register": "formal",
            "task": "explain",
            "messages": [{"role": "user", "content": "Co?"}, {"role": "assistant", "content": "To."}],
        },
    )
    (root / "dirty").mkdir()
    (root / "dirty" / "strona.html").write_bytes("<p>żółw</p>".encode("cp1250"))
    (root / "dirty" / "expected.json").write_text("{}")
    return root


def test_embedded_gives_documents_instructions_and_the_dirty_corner(tmp_path: Path, embedded: Path) -> None:
    harvest = read(tmp_path, kind="embedded", path=str(embedded))
    found = [item for item in harvest.items if isinstance(item, Document)]
    kinds = {document.id: (document.genre, document.media_type, document.text_kind) for document in found}
    assert kinds == {
        "moje/d1": ("story", "text/plain", "edited"),
        "moje/d2": ("poem", "text/plain", "verse"),
        "moje/dirty/strona.html": ("web", "text/html", "web"),
    }
    assert [(item.id, item.register, item.task) for item in harvest.items if isinstance(item, Instruction)] == [
        ("moje/i1", "formal", "explain")
    ]


def test_bytes_arrive_as_found(tmp_path: Path, embedded: Path) -> None:
    harvest = read(tmp_path, kind="embedded", path=str(embedded))
    assert harvest.items[-1].content == "<p>żółw</p>".encode("cp1250")


def test_files_are_recorded_relative_with_their_sha256(tmp_path: Path, embedded: Path) -> None:
    harvest = read(tmp_path, kind="embedded", path=str(embedded))
    page = "<p>żółw</p>".encode("cp1250")
    assert {"path": "dirty/strona.html", "sha256": hashlib.sha256(page).hexdigest(), "bytes": 11} in harvest.files
    assert [file["path"] for file in harvest.files] == [
        "documents/a.jsonl",
        "instructions/a.jsonl",
        "dirty/strona.html",
    ]


def test_embedded_without_a_folder_fails(tmp_path: Path, embedded: Path) -> None:
    (embedded / "dirty" / "strona.html").unlink()
    with pytest.raises(FileNotFoundError, match=r"data.sources\[3\].path is .*its folder dirty holds no"):
        read(tmp_path, kind="embedded", path=str(embedded))
    with pytest.raises(FileNotFoundError, match="expected the folder documents in it"):
        read(tmp_path, kind="embedded", path=str(tmp_path))


def test_embedded_row_without_a_field_fails(tmp_path: Path, embedded: Path) -> None:
    lines(embedded / "documents" / "b.jsonl", {"id": "d3", "genre": "story", "text": TEXT})
    with pytest.raises(ValueError, match=r"documents/b.jsonl row 1 has the keys .*expected a text in 'title'"):
        read(tmp_path, kind="embedded", path=str(embedded))


def test_the_same_id_twice_fails(tmp_path: Path, embedded: Path) -> None:
    lines(embedded / "documents" / "b.jsonl", {"id": "d1", "genre": "story", "title": "Most", "text": TEXT})
    with pytest.raises(ValueError, match=r"path: documents/b.jsonl row 1: the id 'moje/d1' is there twice"):
        read(tmp_path, kind="embedded", path=str(embedded))


def test_a_folder_gives_its_text_files_and_names_what_it_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "teksty"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text(TEXT)
    (folder / "b" / "c.md").write_text("# Most")
    (folder / "LICENSE").write_text("CC0")
    harvest = documents(tmp_path, folder)
    assert [(document.id, document.media_type) for document in harvest.items] == [
        ("moje/a.txt", "text/plain"),
        ("moje/b/c.md", "text/markdown"),
    ]
    assert harvest.ignored == ["LICENSE"]


def test_a_glob_gives_the_files_that_match(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text(TEXT)
    harvest = documents(tmp_path, tmp_path / "*.txt")
    assert [document.id for document in harvest.items] == ["moje/a.txt", "moje/b.txt"]


@pytest.mark.parametrize("path", ["nie-ma", "*.nie-ma"])
def test_a_path_without_files_fails(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.sources\[3\].path is "):
        documents(tmp_path, tmp_path / path)


def test_a_folder_without_usable_files_fails(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(FileNotFoundError, match=r"data.sources\[3\].path is .*\.txt, \.md"):
        documents(tmp_path, tmp_path)


def test_a_file_of_another_kind_fails(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ValueError, match=r"data.sources\[3\].path is .*a.pdf: expected .txt, .md"):
        documents(tmp_path, tmp_path / "a.pdf")


def test_an_empty_file_fails(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"data.sources\[3\]: a.txt is empty"):
        documents(tmp_path, tmp_path / "a.txt")


def test_a_pipe_fails_instead_of_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"^data.sources\[3\]: a.txt is no regular file"):
        documents(tmp_path, tmp_path)


def test_documents_without_a_text_kind_fail(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(ValueError, match=r"data.sources\[3\].text_kind is missing"):
        documents(tmp_path, tmp_path / "a.txt", text_kind=None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": {"txt": "content"}}, r"columns maps 'txt'; documents have genre, text, title"),
        ({"register": "formal"}, r"register is 'formal', which only instructions have; the role is documents"),
        ({"role": "instructions"}, r"text_kind is 'edited', which only documents have; the role is instructions"),
        ({"role": "instructions", "text_kind": None, "columns": {"text": "a"}}, r"columns maps 'text'; instructions"),
    ],
)
def test_fields_that_the_role_does_not_have_fail(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": TEXT})
    with pytest.raises(ValueError, match=rf"data.sources\[3\].{message}"):
        documents(tmp_path, path, **fields)


def test_columns_map_the_fields_of_a_table(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"content": TEXT, "name": "Most", "kind": "news"})
    found = documents(tmp_path, path, columns={"text": "content", "title": "name", "genre": "kind"}).items
    assert [(item.id, item.title, item.genre) for item in found] == [("moje/a.jsonl#000001", "Most", "news")]
    assert found[0].content.decode() == TEXT


def test_an_unknown_column_fails_with_the_keys_that_are_there(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"content": TEXT})
    with pytest.raises(ValueError, match=r"a.jsonl row 1 has the keys \['content'\]; expected a text in 'body'"):
        documents(tmp_path, path, columns={"text": "body"})


def test_a_lone_surrogate_in_json_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "most\\ud800"}\n')
    assert documents(tmp_path, tmp_path / "a.jsonl").texts == ["most\ufffd"]


def packed_zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w/most.txt", content)
        archive.writestr("w/okładka.png", b"png")
    return buffer.getvalue()


def in_parquet(content: bytes) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [content.decode()]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "pack", "id", "ignored"),
    [
        ("a.txt.gz", gzip.compress, "moje/a.txt.gz", []),
        ("a.md.bz2", bz2.compress, "moje/a.md.bz2", []),
        ("a.zip", packed_zip, "moje/a.zip/w/most.txt", ["a.zip/w/okładka.png"]),
        ("a.parquet", in_parquet, "moje/a.parquet#000001", []),
        ("a.csv", lambda content: b"text;n\n" + content + b";1\n", "moje/a.csv#000001", []),
    ],
)
def test_packed_files_archives_and_tables_are_read(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], id: str, ignored: list[str]
) -> None:
    (tmp_path / name).write_bytes(pack(TEXT.encode()))
    harvest = documents(tmp_path, tmp_path / name)
    assert [item.id for item in harvest.items] == [id]
    assert harvest.texts == [TEXT]
    assert harvest.ignored == ignored


def test_instructions_come_in_the_shapes_that_people_have(tmp_path: Path) -> None:
    qas = [{"question": "Kiedy?", "answers": [{"text": "w nocy"}], "is_impossible": False}]
    squad = {"data": [{"paragraphs": [{"context": TEXT, "qas": qas}]}]}
    lines(tmp_path / "q" / "a.jsonl", {"instruction": "Ile?", "output": "Dwa.", "register": "formal"})
    lines(
        tmp_path / "q" / "b.jsonl",
        {"conversations": [{"from": "human", "value": "Ile?"}, {"from": "gpt", "value": "Trzy."}]},
    )
    (tmp_path / "q" / "c.json").write_text(json.dumps(squad))
    harvest = instructions(tmp_path, tmp_path / "q", register="informal")
    assert harvest.turns == [["Ile?", "Dwa."], ["Ile?", "Trzy."], [f"{TEXT}\n\nKiedy?", "w nocy"]]
    assert [(item.id, item.register, item.task) for item in harvest.items if isinstance(item, Instruction)] == [
        ("moje/a.jsonl#000001", "formal", "question"),
        ("moje/b.jsonl#000001", "informal", "question"),
        ("moje/c.json#00000-000-000", "informal", "reading"),
    ]


def test_columns_that_no_row_can_satisfy_fail(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"term": "tama", "meaning": "zapora"})
    found = instructions(tmp_path, path, columns={"question": "Co to jest {term}?", "answer": "meaning"})
    assert found.turns == [["Co to jest tama?", "zapora"]]
    with pytest.raises(ValueError, match=r"data.sources\[3\].columns maps question alone"):
        instructions(tmp_path, path, columns={"question": "term"})


def test_a_pilot_run_takes_so_many_documents_or_bytes(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *({"text": f"{TEXT} {number}"} for number in range(9)))
    assert len(documents(tmp_path, path, max_documents=3).items) == 3
    size = len(f"{TEXT} 0".encode())
    assert len(documents(tmp_path, path, max_bytes=3 * size).items) == 3
    assert len(documents(tmp_path, path, max_bytes=3 * size + 1).items) == 4


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def remote(url: str, content: bytes) -> dict[str, str]:
    return {"url": url, "sha256": hashlib.sha256(content).hexdigest()}


def test_files_on_the_web_become_documents_once(tmp_path: Path) -> None:
    page = f"<p>{TEXT}</p>".encode()
    with web.serve({"a.txt": TEXT.encode(), "b.html": page}) as server:
        urls = [remote(f"{server.address}/a.txt", TEXT.encode()), remote(f"{server.address}/b.html", page)]
        for _ in range(2):
            harvest = read(tmp_path, kind="http", urls=urls, role="documents", text_kind="web", date="2026-11")
            assert [item.content for item in harvest.items] == [TEXT.encode(), page]
        assert len(server.log) == 2
    assert [file["sha256"] for file in harvest.files] == [url["sha256"] for url in urls]
    assert (harvest.date, harvest.revision) == ("2026-11", None)


def test_a_pilot_run_fetches_no_more_than_its_bytes(tmp_path: Path) -> None:
    content = "".join(json.dumps({"text": f"{TEXT} {number}"}) + "\n" for number in range(1000)).encode()
    with web.serve({"a.jsonl": content}) as server:
        urls = [remote(f"{server.address}/a.jsonl", content)]
        harvest = read(tmp_path, kind="http", urls=urls, role="documents", text_kind="web", max_bytes=500)
    assert harvest.files[0]["bytes"] == 500
    assert 3 < len(harvest.items) < 13


def test_a_url_of_another_kind_of_file_fails_before_anything_is_fetched(tmp_path: Path) -> None:
    with web.serve({"a.txt": b"Tekst", "a.pdf": b"%PDF"}) as server:
        urls = [remote(f"{server.address}/{name}", b"") for name in ("a.txt", "a.pdf")]
        with pytest.raises(ValueError, match=r"^data.sources\[3\].urls\[1\]: http.*/a.pdf is no \.txt, "):
            read(tmp_path, kind="http", urls=urls, role="documents", text_kind="web")
        assert server.log == []


def test_a_url_that_is_no_address_fails_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data.sources\[3\].urls\[0\]: http://\[a/b.txt is no address: Invalid IPv6"):
        read(tmp_path, kind="http", urls=[remote("http://[a/b.txt", b"")], role="documents", text_kind="web")


def test_the_same_url_twice_fails(tmp_path: Path) -> None:
    with web.serve({"a.txt": TEXT.encode()}) as server:
        urls = [remote(f"{server.address}/a.txt", TEXT.encode())] * 2
        with pytest.raises(ValueError, match=r"^data.sources\[3\]: http.*/a.txt is there twice"):
            read(tmp_path, kind="http", urls=urls, role="documents", text_kind="web")


def test_a_dataset_of_the_hub_gives_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    lines(tmp_path / "hub" / "data" / "train-0.jsonl", {"text": TEXT})
    lines(tmp_path / "hub" / "data" / "train-1.jsonl", {"text": f"{TEXT} Dwa razy."})
    lines(tmp_path / "hub" / "data" / "test.jsonl", {"text": "Nie to."})
    fields = {"role": "documents", "text_kind": "web", "files": "data/train-*.jsonl"}
    with hub.serve(tmp_path / "hub", "kto/zbior", revision, {}) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        harvest = read(tmp_path, kind="hub", repository="kto/zbior", revision=revision, **fields)
        first = read(tmp_path, kind="hub", repository="kto/zbior", revision=revision, shards=1, **fields)
    assert harvest.texts == [TEXT, f"{TEXT} Dwa razy."]
    assert first.texts == [TEXT]
    assert [file["path"] for file in harvest.files] == ["data/train-0.jsonl", "data/train-1.jsonl"]
    assert (harvest.revision, harvest.date) == (revision, hub.DATE[:10])


def test_a_dump_gives_its_articles_and_its_date(tmp_path: Path) -> None:
    dump = test_wikimedia.export(test_wikimedia.page(1, "''Most''", "Most"), test_wikimedia.page(2, ns="1"))
    (tmp_path / "plwiki-20261101-pages-articles.xml.bz2").write_bytes(bz2.compress(dump))
    harvest = read(tmp_path, kind="wikimedia", path=str(tmp_path / "*.bz2"))
    name = "moje/plwiki-20261101-pages-articles.xml.bz2#00000001"
    assert harvest.items == [Document(name, "moje", "moje", "Most", "text/x-wiki", "edited", b"''Most''")]
    assert harvest.date == "2026-11-01"
    (tmp_path / "pl.xml").write_bytes(dump)
    assert read(tmp_path, kind="wikimedia", path=str(tmp_path / "pl.xml")).date == "2024-05-01"
    assert read(tmp_path, kind="wikimedia", path=str(tmp_path / "pl.xml"), date="2023").date == "2023"


def test_a_crawl_gives_its_pages_and_their_dates(tmp_path: Path) -> None:
    pages = [
        test_warc.record(test_warc.http(), url="http://a.pl/1"),
        test_warc.record(test_warc.http(status="404 Not Found")),
        test_warc.record(test_warc.http(), url="http://b.pl/2").replace(b"2024-05-01", b"2024-05-03"),
    ]
    (tmp_path / "cc.warc.gz").write_bytes(b"".join(gzip.compress(page) for page in pages))
    harvest = read(tmp_path, kind="warc", path=str(tmp_path / "cc.warc.gz"))
    assert [(item.id, item.genre, item.media_type, item.text_kind) for item in harvest.items] == [
        ("moje/cc.warc.gz#000001", "a.pl", "text/html; charset=utf-8", "web"),
        ("moje/cc.warc.gz#000002", "b.pl", "text/html; charset=utf-8", "web"),
    ]
    assert harvest.date == "2024-05-01/2024-05-03"
    assert harvest.skipped == {"not_ok": 1}


def test_a_page_with_an_address_that_is_none_has_the_genre_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "cc.warc").write_bytes(test_warc.record(test_warc.http(), url="http://[a.pl/"))
    assert [item.genre for item in read(tmp_path, kind="warc", path=str(tmp_path)).items] == ["moje"]  # type: ignore[union-attr]


def test_a_dump_is_at_one_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one of urls and path must be set"):
        read(tmp_path, kind="warc")
