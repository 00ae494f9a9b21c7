"""Where text comes from: the embedded sample, local files, files on the web; each gives documents or instructions.

A source that cannot be read whole fails with its key in params.yaml and the file: nothing is skipped in silence.
"""

from __future__ import annotations

import glob
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wronai import params
from wronai.corpus import REGISTERS, Document, Instruction

MEDIA_TYPES = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
}
SUFFIXES = {
    "documents": (*MEDIA_TYPES, ".jsonl"),
    "instructions": (".jsonl", ".json"),
}
COLUMNS = {
    "documents": frozenset({"text", "title", "genre"}),
    "instructions": frozenset({"question", "answer", "register", "task"}),
}
VERSE_GENRES = frozenset({"poem"})  # of the embedded documents
UNANSWERABLE = "Z podanego tekstu nie da się na to odpowiedzieć."
DOWNLOAD_ATTEMPTS = 4
CHUNK_BYTES = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class File:
    """A file of a source: `name` is relative to the source (or its URL), never absolute."""

    name: str
    path: Path


@dataclass
class Harvest:
    """What one source gave."""

    documents: list[Document] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def collect(source: params.Source, key: str, downloads: Path, say: Say) -> Harvest:
    """Read the source at `key` (data.sources[i]); downloads go to the folder `downloads`, progress lines to `say`.

    ValueError, FileNotFoundError or OSError name the key and the file when anything of it cannot be read.
    """
    harvest = Harvest()
    if source.kind == "embedded":
        root = Path(source.path)
        _collect_embedded(source, f"{key}.path", root, harvest)
    else:
        _check_fields(source, key)
        if source.kind == "local":
            files = _local_files(source, key, harvest)
        else:
            files = [_download(file, f"{key}.urls[{i}]", downloads, say) for i, file in enumerate(source.urls)]
        for file in files:
            _read_file(file, source, key, harvest)
            harvest.files.append(_record(file))
    ids = [document.id for document in harvest.documents] + [instruction.id for instruction in harvest.instructions]
    if not ids:
        raise ValueError(f"{key} ({source.name}) gave no document and no instruction")
    if len(set(ids)) < len(ids):
        twice, _ = Counter(ids).most_common(1)[0]
        raise ValueError(f"{key} ({source.name}): the id {twice!r} is there twice")
    return harvest


def _check_fields(source: params.LocalSource | params.HttpSource, key: str) -> None:
    if source.role == "documents" and source.text_kind is None:
        raise ValueError(f"{key}.text_kind is missing: documents need edited, web or verse, which decides the rules")
    owners = (("text_kind", source.text_kind, "documents"), ("register", source.register_, "instructions"))
    for name, value, role in owners:
        if value is not None and source.role != role:
            raise ValueError(f"{key}.{name} is {value!r}, which only {role} have; the role is {source.role}")
    unknown = sorted((source.columns or {}).keys() - COLUMNS[source.role])
    if unknown:
        expected = ", ".join(sorted(COLUMNS[source.role]))
        raise ValueError(f"{key}.columns maps {unknown[0]!r}; {source.role} have {expected}")


def _record(file: File) -> dict[str, Any]:
    content = file.path.read_bytes()
    return {"path": file.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _collect_embedded(source: params.EmbeddedSource, key: str, root: Path, harvest: Harvest) -> None:
    for folder in ("documents", "instructions", "dirty"):
        if not (root / folder).is_dir():
            raise FileNotFoundError(f"{key} is {root}: expected the folder {folder} in it")
    for file in _files_under(root, "documents", (".jsonl",), key):
        for number, row in _json_lines(file, key):
            values = _strings(row, ("id", "genre", "title", "text"), file, number, key)
            text_kind = "verse" if values["genre"] in VERSE_GENRES else "edited"
            harvest.documents.append(
                Document(
                    id=f"{source.name}/{values['id']}",
                    source=source.name,
                    genre=values["genre"],
                    title=values["title"],
                    media_type="text/plain",
                    text_kind=text_kind,
                    content=_encoded(values["text"]),
                )
            )
        harvest.files.append(_record(file))
    for file in _files_under(root, "instructions", (".jsonl",), key):
        for number, row in _json_lines(file, key):
            values = _strings(row, ("id", "register", "task"), file, number, key)
            messages = _messages(row.get("messages"), file, number, key)
            register = _register(values["register"], file, number, key)
            harvest.instructions.append(
                Instruction(f"{source.name}/{values['id']}", source.name, register, values["task"], messages)
            )
        harvest.files.append(_record(file))
    for file in _files_under(root, "dirty", tuple(MEDIA_TYPES), key):
        harvest.documents.append(
            Document(
                id=f"{source.name}/{file.name}",
                source=source.name,
                genre="web",
                title="",
                media_type=MEDIA_TYPES[file.path.suffix.lower()],
                text_kind="web",
                content=file.path.read_bytes(),
            )
        )
        harvest.files.append(_record(file))


def _files_under(root: Path, folder: str, suffixes: tuple[str, ...], key: str) -> list[File]:
    found = sorted(path for path in (root / folder).rglob("*") if path.is_file() and path.suffix.lower() in suffixes)
    if not found:
        raise FileNotFoundError(f"{key} is {root}: its folder {folder} holds no {' or '.join(suffixes)} file")
    return [File(path.relative_to(root).as_posix(), path) for path in found]


def _local_files(source: params.LocalSource, key: str, harvest: Harvest) -> list[File]:
    """The files of a path, folder or glob that the role can use, sorted; the others go to `harvest.ignored` by name."""
    suffixes = SUFFIXES[source.role]
    path = Path(source.path)
    if path.is_file():
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"{key}.path is {path}: expected {', '.join(suffixes)} for role {source.role}")
        return [File(path.name, path)]
    if path.is_dir():
        root, found = path, [p for p in path.rglob("*") if p.is_file()]
    elif glob.has_magic(source.path):
        found = [Path(p) for p in glob.glob(source.path, recursive=True) if Path(p).is_file()]  # noqa: PTH207 absolute globs
        root = Path(os.path.commonpath([p.parent for p in found])) if found else path
    else:
        raise FileNotFoundError(f"{key}.path is {source.path}: no such file or folder")
    files = []
    for path in sorted(found):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() in suffixes:
            files.append(File(name, path))
        else:
            harvest.ignored.append(name)
    if not files:
        raise FileNotFoundError(f"{key}.path is {source.path}: no {', '.join(suffixes)} file for role {source.role}")
    return files


def _read_file(file: File, source: params.LocalSource | params.HttpSource, key: str, harvest: Harvest) -> None:
    if file.path.stat().st_size == 0:
        raise ValueError(f"{key}: {file.name} is empty")
    suffix = Path(urllib.parse.urlsplit(file.name).path).suffix.lower()
    if suffix not in SUFFIXES[source.role]:
        expected = ", ".join(SUFFIXES[source.role])
        raise ValueError(f"{key}: {file.name} is no {expected} file, as role {source.role} needs")
    if source.role == "documents":
        harvest.documents.extend(_read_documents(file, suffix, source, key))
    else:
        harvest.instructions.extend(_read_instructions(file, suffix, source, key))


def _read_documents(
    file: File, suffix: str, source: params.LocalSource | params.HttpSource, key: str
) -> Iterator[Document]:
    text_kind = source.text_kind or ""
    if suffix in MEDIA_TYPES:
        content = file.path.read_bytes()
        name, media_type = source.name, MEDIA_TYPES[suffix]
        yield Document(f"{name}/{file.name}", name, name, "", media_type, text_kind, content)
        return
    columns = {"text": "text", **(source.columns or {})}
    for number, row in _json_lines(file, key):
        yield Document(
            id=f"{source.name}/{file.name}#{number:06d}",
            source=source.name,
            genre=_filled(row, columns["genre"], file, number, key) if "genre" in columns else source.name,
            title=_filled(row, columns["title"], file, number, key) if "title" in columns else "",
            media_type="text/plain",
            text_kind=text_kind,
            content=_encoded(_filled(row, columns["text"], file, number, key)),
        )


def _read_instructions(
    file: File, suffix: str, source: params.LocalSource | params.HttpSource, key: str
) -> Iterator[Instruction]:
    constant: str = source.register_ or "neutral"
    if suffix == ".json":
        for name, messages in _squad(file, key):
            yield Instruction(f"{source.name}/{file.name}#{name}", source.name, constant, "reading", messages)
        return
    columns = source.columns or {}
    for number, row in _json_lines(file, key):
        register = constant
        if "register" in columns or "register" in row:
            column = columns.get("register", "register")
            register = _register(_filled(row, column, file, number, key), file, number, key)
        task = "question"
        if "task" in columns or "task" in row:
            task = _filled(row, columns.get("task", "task"), file, number, key)
        messages = _conversation(row, columns, file, number, key)
        yield Instruction(f"{source.name}/{file.name}#{number:06d}", source.name, register, task, messages)


def _conversation(
    row: Mapping[str, Any], columns: Mapping[str, str], file: File, number: int, key: str
) -> list[dict[str, str]]:
    """The turns of a row: by `columns` where it maps question and answer, else by the shape that its keys show."""
    if "question" in columns or "answer" in columns:
        missing = {"question", "answer"} - columns.keys()
        if missing:
            raise ValueError(f"{key}.columns maps {sorted(columns)}: {missing.pop()} is missing")
        question, answer = (_filled(row, columns[name], file, number, key) for name in ("question", "answer"))
        return _turns(question, answer)
    if "messages" in row:
        return _messages(row["messages"], file, number, key)
    for question_key, answer_key in (
        ("instruction", "output"),
        ("instruction", "response"),
        ("question", "answer"),
        ("prompt", "completion"),
    ):
        if question_key in row and answer_key in row:
            question, answer = (_filled(row, name, file, number, key) for name in (question_key, answer_key))
            extra = row.get("input") if question_key == "instruction" else None
            return _turns(f"{question}\n\n{extra}" if isinstance(extra, str) and extra.strip() else question, answer)
    raise ValueError(
        f"{key}: {file.name} line {number} has the keys {sorted(row)}; expected messages, instruction and output "
        f"or response, question and answer, prompt and completion, or {key}.columns that maps question and answer"
    )


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _squad(file: File, key: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Questions over a paragraph, SQuAD's shape. What the paragraph does not answer gets an answer that says so."""
    try:
        articles = json.loads(file.path.read_bytes())["data"]
        for i, article in enumerate(articles):
            for j, paragraph in enumerate(article["paragraphs"]):
                for k, item in enumerate(paragraph["qas"]):
                    answers = [] if item.get("is_impossible") else item["answers"]
                    answer = (answers[0].get("generative_answer") or answers[0]["text"]) if answers else UNANSWERABLE
                    yield f"{i:05d}-{j:03d}-{k:03d}", _turns(f"{paragraph['context']}\n\n{item['question']}", answer)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        found = f"{key}: {file.name} is no JSON of SQuAD's shape (data, paragraphs, qas)"
        raise ValueError(f"{found}: {error!r}") from error


def _json_lines(file: File, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON Lines file with their line number, from 1; blank lines are none, and no row at all is an error."""
    rows = 0
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{key}: {file.name} line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{key}: {file.name} line {number} is {type(row).__name__}, expected a JSON object")
            rows += 1
            yield number, row
    if not rows:
        raise ValueError(f"{key}: {file.name} is empty")


def _filled(row: Mapping[str, Any], column: str, file: File, number: int, key: str) -> str:
    """The text of a column, or of a template such as `Co to jest {term}?` filled from the row's columns."""

    def text_of(name: str) -> str:
        value = row.get(name)
        if isinstance(value, str):
            return value
        found = f"no text in {name!r}" if name in row else f"the keys {sorted(row)}"
        raise ValueError(f"{key}: {file.name} line {number} has {found}; expected a text in {name!r}")

    if "{" in column:
        return re.sub(r"\{([^{}]+)\}", lambda match: text_of(match[1]), column)
    return text_of(column)


def _strings(row: Mapping[str, Any], names: tuple[str, ...], file: File, number: int, key: str) -> dict[str, str]:
    return {name: _filled(row, name, file, number, key) for name in names}


def _messages(value: Any, file: File, number: int, key: str) -> list[dict[str, str]]:
    turns = value if isinstance(value, list) else []
    if not turns or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    ):
        raise ValueError(f"{key}: {file.name} line {number}: messages must be a list of objects with role and content")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _register(value: str, file: File, number: int, key: str) -> str:
    if value not in REGISTERS:
        raise ValueError(f"{key}: {file.name} line {number}: register is {value!r}, expected {', '.join(REGISTERS)}")
    return value


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a lone surrogate, which JSON can spell and UTF-8 cannot, becomes "?"


def _download(file: params.HttpFile, key: str, downloads: Path, say: Say) -> File:
    """Fetch a URL to `downloads`, under its sha256; what is already there and right is not fetched again.

    A transfer that breaks is tried again after 1, 2 and 4 seconds; ValueError when the bytes have another sha256.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    target = downloads / file.sha256
    if not (target.is_file() and _sha256(target) == file.sha256):
        partial = target.with_suffix(".partial")
        _fetch(file.url, partial, key, say)
        found = _sha256(partial)
        if found != file.sha256:
            partial.unlink()
            raise ValueError(f"{key}: {file.url} has the sha256 {found}, expected {file.sha256}")
        partial.replace(target)
    return File(file.url, target)


def _fetch(url: str, partial: Path, key: str, say: Say) -> None:
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            _transfer(url, partial, say)
            return
        except (OSError, http.client.HTTPException) as error:
            gone = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if gone or attempt == DOWNLOAD_ATTEMPTS:
                raise OSError(f"{key}: {url}: {error} (attempt {attempt} of {DOWNLOAD_ATTEMPTS})") from error
            say(f"download {url} | attempt {attempt} of {DOWNLOAD_ATTEMPTS} failed: {error}")
            time.sleep(2.0 ** (attempt - 1))


def _transfer(url: str, partial: Path, say: Say) -> None:
    started = time.monotonic()
    received = 0
    with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as out:
        length = response.headers.get("Content-Length")
        while chunk := response.read(CHUNK_BYTES):
            out.write(chunk)
            received += len(chunk)
    if length is not None and received != int(length):
        raise OSError(f"the connection closed after {received:,} of {int(length):,} bytes")
    seconds = max(time.monotonic() - started, 1e-6)
    say(f"download {url} | {received:,} bytes | {received / seconds:,.0f} bytes/s")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
