import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from wronai import params, sources
from wronai.sources import Harvest

TEXT = "Rzeka wylała w nocy i zabrała most."


def read(tmp_path: Path, **fields: Any) -> Harvest:
    source = params.Data.model_validate({"sources": [{"name": "moje", "licence": "CC0-1.0", **fields}]}).sources[0]
    return sources.collect(source, "data.sources[3]", tmp_path / "downloads", lambda line: None)


def documents(tmp_path: Path, path: Path | str, **fields: Any) -> Harvest:
    return read(tmp_path, **{"kind": "local", "path": str(path), "role": "documents", "text_kind": "edited", **fields})


def instructions(tmp_path: Path, path: Path | str, **fields: Any) -> Harvest:
    return read(tmp_path, **{"kind": "local", "path": str(path), "role": "instructions", **fields})


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(harvest: Harvest) -> list[list[str]]:
    return [[turn["content"] for turn in item.messages] for item in harvest.instructions]


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
    kinds = {document.id: (document.genre, document.media_type, document.text_kind) for document in harvest.documents}
    assert kinds == {
        "moje/d1": ("story", "text/plain", "edited"),
        "moje/d2": ("poem", "text/plain", "verse"),
        "moje/dirty/strona.html": ("web", "text/html", "web"),
    }
    assert [(item.id, item.register, item.task) for item in harvest.instructions] == [("moje/i1", "formal", "explain")]


def test_bytes_arrive_as_found(tmp_path: Path, embedded: Path) -> None:
    harvest = read(tmp_path, kind="embedded", path=str(embedded))
    assert harvest.documents[-1].content == "<p>żółw</p>".encode("cp1250")


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
    with pytest.raises(ValueError, match=r"documents/b.jsonl line 1 has the keys .*expected a text in 'title'"):
        read(tmp_path, kind="embedded", path=str(embedded))


def test_the_same_id_twice_fails(tmp_path: Path, embedded: Path) -> None:
    lines(embedded / "documents" / "b.jsonl", {"id": "d1", "genre": "story", "title": "Most", "text": TEXT})
    with pytest.raises(ValueError, match=r"data.sources\[3\] \(moje\): the id 'moje/d1' is there twice"):
        read(tmp_path, kind="embedded", path=str(embedded))


def test_a_folder_gives_its_text_files_and_names_what_it_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "teksty"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text(TEXT)
    (folder / "b" / "c.md").write_text("# Most")
    (folder / "LICENSE").write_text("CC0")
    harvest = documents(tmp_path, folder)
    assert [(document.id, document.media_type) for document in harvest.documents] == [
        ("moje/a.txt", "text/plain"),
        ("moje/b/c.md", "text/markdown"),
    ]
    assert harvest.ignored == ["LICENSE"]


def test_a_glob_gives_the_files_that_match(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text(TEXT)
    harvest = documents(tmp_path, tmp_path / "*.txt")
    assert [document.id for document in harvest.documents] == ["moje/a.txt", "moje/b.txt"]


@pytest.mark.parametrize("path", ["nie-ma", "*.nie-ma"])
def test_a_path_without_files_fails(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.sources\[3\].path is "):
        documents(tmp_path, tmp_path / path)


def test_a_folder_without_usable_files_fails(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(FileNotFoundError, match=r"no .txt, .md, .html, .htm, .jsonl file for role documents"):
        documents(tmp_path, tmp_path)


def test_a_file_of_another_kind_fails(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ValueError, match=r"a.pdf: expected .txt, .md"):
        documents(tmp_path, tmp_path / "a.pdf")


def test_an_empty_file_fails(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"data.sources\[3\]: a.txt is empty"):
        documents(tmp_path, tmp_path / "a.txt")


def test_json_lines_without_a_row_fail(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"data.sources\[3\]: a.jsonl is empty"):
        documents(tmp_path, tmp_path / "a.jsonl")


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


def test_columns_map_the_fields_of_json_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"content": TEXT, "name": "Most", "kind": "news"})
    harvest = documents(tmp_path, path, columns={"text": "content", "title": "name", "genre": "kind"})
    document = harvest.documents[0]
    assert (document.id, document.title, document.genre) == ("moje/a.jsonl#000001", "Most", "news")
    assert document.content.decode() == TEXT


def test_an_unknown_column_fails_with_the_keys_that_are_there(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"content": TEXT})
    with pytest.raises(ValueError, match=r"a.jsonl line 1 has the keys \['content'\]; expected a text in 'body'"):
        documents(tmp_path, path, columns={"text": "body"})


def test_a_column_that_holds_no_text_fails(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": TEXT}, {"text": None})
    with pytest.raises(ValueError, match=r"a.jsonl line 2 has no text in 'text'"):
        documents(tmp_path, path)


def test_a_line_that_is_no_json_fails_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"data.sources\[3\]: a.jsonl line 2 is no JSON"):
        documents(tmp_path, tmp_path / "a.jsonl")


def test_a_line_that_is_no_object_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1 is list, expected a JSON object"):
        documents(tmp_path, lines(tmp_path / "a.jsonl", ["x"]))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Ile?", "output": "Dwa."}, ["Ile?", "Dwa."]),
        ({"instruction": "Popraw.", "input": "wziąść", "output": "wziąć"}, ["Popraw.\n\nwziąść", "wziąć"]),
        ({"instruction": "Ile?", "input": "", "response": "Dwa."}, ["Ile?", "Dwa."]),
        ({"question": "Ile?", "answer": "Dwa."}, ["Ile?", "Dwa."]),
        ({"prompt": "Ile?", "completion": "Dwa."}, ["Ile?", "Dwa."]),
        (
            {"messages": [{"role": "user", "content": "Ile?"}, {"role": "assistant", "content": "Dwa."}]},
            ["Ile?", "Dwa."],
        ),
    ],
)
def test_known_shapes_of_instructions_are_read(tmp_path: Path, row: dict[str, Any], expected: list[str]) -> None:
    assert turns(instructions(tmp_path, lines(tmp_path / "a.jsonl", row))) == [expected]


def test_an_unknown_shape_fails_with_its_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1 has the keys \['meaning', 'term'\]; expected messages"):
        instructions(tmp_path, lines(tmp_path / "a.jsonl", {"term": "tama", "meaning": "zapora"}))


def test_columns_can_put_a_question_around_a_term(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"term": "tama", "meaning": "zapora"})
    harvest = instructions(tmp_path, path, columns={"question": "Co to jest {term}?", "answer": "meaning"})
    assert turns(harvest) == [["Co to jest tama?", "zapora"]]


def test_columns_with_a_question_need_an_answer(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"term": "tama", "meaning": "zapora"})
    with pytest.raises(ValueError, match=r"data.sources\[3\].columns maps \['question'\]: answer is missing"):
        instructions(tmp_path, path, columns={"question": "term"})


def test_the_register_comes_from_the_row_or_the_source_or_is_neutral(tmp_path: Path) -> None:
    row = {"question": "Ile?", "answer": "Dwa."}
    path = lines(tmp_path / "a.jsonl", row, {**row, "register": "formal"})
    assert [item.register for item in instructions(tmp_path, path).instructions] == ["neutral", "formal"]
    constant = instructions(tmp_path, path, register="informal")
    assert [item.register for item in constant.instructions] == ["informal", "formal"]


def test_an_unknown_register_fails(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"question": "Ile?", "answer": "Dwa.", "register": "uprzejmy"})
    with pytest.raises(ValueError, match="register is 'uprzejmy', expected formal, informal, neutral"):
        instructions(tmp_path, path)


@pytest.mark.parametrize("messages", ["Ile?", [], [{"role": "user"}], [{"role": "user", "content": 2}]])
def test_messages_that_are_no_turns_fail(tmp_path: Path, messages: Any) -> None:
    with pytest.raises(ValueError, match="messages must be a list of objects with role and content"):
        instructions(tmp_path, lines(tmp_path / "a.jsonl", {"messages": messages}))


def test_squad_answers_and_says_when_the_text_does_not(tmp_path: Path) -> None:
    qas = [
        {"question": "Kiedy?", "answers": [{"text": "w nocy", "generative_answer": "W nocy."}], "is_impossible": False},
        {"question": "Gdzie?", "plausible_answers": [{"text": "most"}], "is_impossible": True},
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": TEXT, "qas": qas}]}]}))
    assert turns(instructions(tmp_path, path)) == [
        [f"{TEXT}\n\nKiedy?", "W nocy."],
        [f"{TEXT}\n\nGdzie?", sources.UNANSWERABLE],
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}'])
def test_json_of_another_shape_fails(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=r"data.sources\[3\]: data.json is no JSON of SQuAD's shape"):
        instructions(tmp_path, tmp_path / "data.json")


class Server(ThreadingHTTPServer):
    """Serves TEXT; the first `failures` answers are 503, the first `cuts` after them stop in the middle."""

    failures = 0
    cuts = 0
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path == "/nie-ma.txt":
            self.send_error(404)
            return
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        body = TEXT.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[:10]
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


RIGHT = hashlib.sha256(TEXT.encode()).hexdigest()


def download(tmp_path: Path, server: Server, name: str = "a.txt", sha256: str = RIGHT) -> Harvest:
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    urls = [{"url": url, "sha256": sha256}]
    return read(tmp_path, kind="http", urls=urls, role="documents", text_kind="edited")


def test_a_download_becomes_a_document(tmp_path: Path, server: Server) -> None:
    harvest = download(tmp_path, server)
    assert [document.content.decode() for document in harvest.documents] == [TEXT]
    assert harvest.files[0]["sha256"] == RIGHT


def test_a_second_run_downloads_nothing(tmp_path: Path, server: Server) -> None:
    download(tmp_path, server)
    download(tmp_path, server)
    assert server.requests == 1


def test_a_download_survives_a_503_and_a_cut_connection(tmp_path: Path, server: Server) -> None:
    server.failures = server.cuts = 1
    assert len(download(tmp_path, server).documents) == 1
    assert server.requests == 3


def test_a_download_gives_up_after_its_attempts(tmp_path: Path, server: Server) -> None:
    server.failures = 99
    with pytest.raises(OSError, match=r"data.sources\[3\].urls\[0\]: .*503.*attempt 4 of 4"):
        download(tmp_path, server)


def test_a_file_that_is_not_there_is_not_tried_again(tmp_path: Path, server: Server) -> None:
    with pytest.raises(OSError, match=r"404.*attempt 1 of 4"):
        download(tmp_path, server, "nie-ma.txt")


def test_other_bytes_than_promised_fail_and_leave_nothing(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ValueError, match=rf"has the sha256 {RIGHT}, expected {'0' * 64}"):
        download(tmp_path, server, sha256="0" * 64)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_url_of_another_kind_of_file_fails(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ValueError, match=r"a.pdf is no .txt, .md, .html, .htm, .jsonl file, as role documents needs"):
        download(tmp_path, server, "a.pdf")
