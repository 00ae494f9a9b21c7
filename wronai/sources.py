"""Where text comes from: the embedded sample, files here or on the web, a dataset of the hub, dumps, crawls.

Each source gives documents or instructions one by one, so that none needs to fit into memory. A source that cannot be
read whole fails with its key in params.yaml and the file: nothing is skipped in silence.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wronai import conversations, corpus, downloads, params, readers, warc, wikimedia
from wronai.corpus import Document, Instruction

MEDIA_TYPES = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
}
SUFFIXES = {
    "documents": readers.SUFFIXES,
    "instructions": readers.ROWS,
    "wikimedia": (".xml",),
    "warc": (".warc", ".wet"),
}
COLUMNS = frozenset({"text", "title", "genre"})  # of documents
VERSE_GENRES = frozenset({"poem"})  # of the embedded documents
WIKITEXT = "text/x-wiki"

Say = Callable[[str], None]
Tables = params.LocalSource | params.HttpSource | params.HubSource
Dumps = params.WikimediaSource | params.WarcSource


@dataclass
class Harvest:
    """What one source gave, filled while it is read."""

    documents: int = 0
    instructions: int = 0
    bytes_of_text: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # records of a crawl that hold no page, by reason
    revision: str | None = None
    date: str | None = None


@dataclass(frozen=True)
class File:
    """A file of a source: `name` is relative to it, or a URL, never absolute; `whole` unless a limit cut it."""

    name: str
    path: Path
    whole: bool = True


def read(source: params.Source, key: str, folder: Path, say: Say, harvest: Harvest) -> Iterator[Document | Instruction]:
    """What the source at `key` (data.sources[i]) gives; downloads rest in `folder`, progress lines go to `say`.

    ValueError, FileNotFoundError or OSError name the key and the file when anything of it cannot be read.
    """
    if isinstance(source, params.EmbeddedSource):
        items = _embedded(source, key, harvest)
    else:
        items = _limited(source, key, folder, say, harvest)
    for item in items:
        if isinstance(item, Document):
            harvest.documents += 1
        else:
            harvest.instructions += 1
        harvest.bytes_of_text += corpus.size_of(item)
        yield item
    if not harvest.documents + harvest.instructions:
        raise ValueError(f"{key} ({source.name}) gave no document and no instruction")


def _limited(
    source: Tables | Dumps, key: str, folder: Path, say: Say, harvest: Harvest
) -> Iterator[Document | Instruction]:
    """What the files of the source give, up to the document that reaches one of its limits."""
    if isinstance(source, Tables):
        _check_fields(source, key)
    harvest.date = source.date
    names: set[str] = set()
    for file in _files(source, key, folder, say, harvest):
        if not file.path.is_file():  # to read a pipe would wait for ever
            raise ValueError(f"{key}: {file.name} is no regular file")
        if file.path.stat().st_size == 0:
            raise ValueError(f"{key}: {file.name} is empty")
        if file.name in names:
            raise ValueError(f"{key}: {file.name} is there twice, and ids are made of it")
        names.add(file.name)
        harvest.files.append(_record(file))
        for item in _items(file, source, key, harvest):
            yield item
            # The caller has counted it by now.
            if source.max_documents and harvest.documents + harvest.instructions >= source.max_documents:
                return
            if source.max_bytes and harvest.bytes_of_text >= source.max_bytes:
                return


def _check_fields(source: Tables, key: str) -> None:
    if source.role == "documents" and source.text_kind is None:
        raise ValueError(f"{key}.text_kind is missing: documents need edited, web or verse, which decides the rules")
    owners = (("text_kind", source.text_kind, "documents"), ("register", source.register_, "instructions"))
    for name, value, role in owners:
        if value is not None and source.role != role:
            raise ValueError(f"{key}.{name} is {value!r}, which only {role} have; the role is {source.role}")
    if source.role == "instructions":
        conversations.check_columns(source.columns or {}, key)
    unknown = sorted((source.columns or {}).keys() - COLUMNS)
    if source.role == "documents" and unknown:
        raise ValueError(f"{key}.columns maps {unknown[0]!r}; documents have {', '.join(sorted(COLUMNS))}")


def _files(source: Tables | Dumps, key: str, folder: Path, say: Say, harvest: Harvest) -> Iterator[File]:
    """The files of a source, in a fixed order; those on the web are all fetched before the first is read."""
    if isinstance(source, params.HubSource):
        found = downloads.fetch_hub(
            key, source.repository, source.revision, source.files, source.shards, folder, say, source.max_bytes
        )
        harvest.revision, harvest.date = source.revision, source.date or found.date
        yield from (File(name, path) for name, path in found.files)
    elif not isinstance(source, params.HttpSource) and source.path is not None:
        suffixes = SUFFIXES[source.role if isinstance(source, params.LocalSource) else source.kind]
        yield from (File(name, path) for name, path in readers.files(source.path, suffixes, key, harvest.ignored))
    elif not isinstance(source, params.LocalSource):
        remote = [
            downloads.Remote(f"{key}.urls[{i}]", file.url, file.sha256, file.bytes)
            for i, file in enumerate(source.urls or [])
        ]
        if isinstance(source, params.HttpSource):
            _check_kinds(remote, SUFFIXES[source.role])
        for wanted, got in zip(remote, downloads.fetch(remote, folder, say, source.max_bytes), strict=False):
            yield File(downloads.public(wanted.url), got.path, got.whole)


def _check_kinds(remote: Sequence[downloads.Remote], suffixes: Sequence[str]) -> None:
    """ValueError for a file that could not be read, before any is fetched."""
    for file in remote:
        try:
            usable = readers.usable(file.url, suffixes)
        except ValueError as error:
            raise ValueError(f"{file.key}: {downloads.public(file.url)} is no address: {error}") from None
        if not usable:
            found = f"{file.key}: {downloads.public(file.url)}"
            raise ValueError(f"{found} is no {', '.join(suffixes)} file, packed or not, and no archive of them")


def _record(file: File) -> dict[str, Any]:
    with file.path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"path": file.name, "sha256": digest, "bytes": file.path.stat().st_size}


def _items(file: File, source: Tables | Dumps, key: str, harvest: Harvest) -> Iterator[Document | Instruction]:
    if isinstance(source, params.WikimediaSource):
        yield from _wiki_pages(file, source, key, harvest)
    elif isinstance(source, params.WarcSource):
        yield from _web_pages(file, source, key, harvest)
    else:
        suffixes = SUFFIXES[source.role]
        for member in readers.members(file.path, file.name, key, harvest.ignored, suffixes, file.whole):
            if source.role == "documents":
                yield from _documents(member, source, key)
            else:
                yield from _instructions(member, source, key)


def _documents(member: readers.Member, source: Tables, key: str) -> Iterator[Document]:
    name, text_kind = source.name, source.text_kind or ""
    if member.suffix in MEDIA_TYPES:
        content = readers.content(member, key)
        yield Document(f"{name}/{member.name}", name, name, "", MEDIA_TYPES[member.suffix], text_kind, content)
        return
    columns = {"text": "text", **(source.columns or {})}
    for number, row in readers.rows(member, key):
        where = f"{key}: {member.name} row {number}"
        found = {column: conversations.text_of(row, template, where) for column, template in columns.items()}
        yield Document(
            id=f"{name}/{member.name}#{number:06d}",
            source=name,
            genre=found.get("genre", name),
            title=found.get("title", ""),
            media_type="text/plain",
            text_kind=text_kind,
            content=found["text"].encode(),
        )


def _instructions(member: readers.Member, source: Tables, key: str) -> Iterator[Instruction]:
    constant: str = source.register_ or "neutral"
    columns = source.columns or {}
    for number, row in readers.rows(member, key):
        where = f"{key}: {member.name} row {number}"
        name = f"{source.name}/{member.name}"
        if conversations.is_squad(row):
            for place, messages in conversations.squad(row, where):
                yield Instruction(f"{name}#{place}", source.name, constant, "reading", messages)
            continue
        register = conversations.register_of(row, columns, constant, where)
        task = conversations.task_of(row, columns, where)
        yield Instruction(
            f"{name}#{number:06d}", source.name, register, task, conversations.conversation(row, columns, where)
        )


def _wiki_pages(file: File, source: params.WikimediaSource, key: str, harvest: Harvest) -> Iterator[Document]:
    """The articles of a dump. Its date is the one in its file name, or that of its newest revision."""
    in_name = re.search(r"-(\d{4})(\d{2})(\d{2})-", file.name)
    with file.path.open("rb") as stream:
        for page in wikimedia.pages(stream, f"{key}: {file.name}", file.whole):
            if source.date is None:
                day = "-".join(in_name.groups()) if in_name else page.timestamp[:10]
                harvest.date = max(harvest.date or "", day)
            yield Document(
                id=f"{source.name}/{file.name}#{page.id:08d}",
                source=source.name,
                genre=source.name,
                title=page.title,
                media_type=WIKITEXT,
                text_kind="edited",
                content=page.wikitext.encode(errors="replace"),
            )


def _web_pages(file: File, source: params.WarcSource, key: str, harvest: Harvest) -> Iterator[Document]:
    """The pages of a crawl as they were served. Its date is that of the first and the last."""
    with file.path.open("rb") as stream:
        responses = warc.responses(stream, f"{key}: {file.name}", file.whole, harvest.skipped)
        for number, page in enumerate(responses, start=1):
            if source.date is None:
                first, _, last = (harvest.date or f"{page.date[:10]}/{page.date[:10]}").partition("/")
                harvest.date = f"{min(first, page.date[:10])}/{max(last, page.date[:10])}"
            yield Document(
                id=f"{source.name}/{file.name}#{number:06d}",
                source=source.name,
                genre=_host(page.url) or source.name,
                title="",
                media_type=page.media_type + (f"; charset={page.charset}" if page.charset else ""),
                text_kind="web",
                content=page.content,
            )


def _host(url: str) -> str | None:
    """The host of a page; none where a crawl has an address that is none."""
    try:
        return urllib.parse.urlsplit(url).hostname
    except ValueError:
        return None


def _embedded(source: params.EmbeddedSource, key: str, harvest: Harvest) -> Iterator[Document | Instruction]:
    root, key = Path(source.path), f"{key}.path"
    for folder in ("documents", "instructions", "dirty"):
        if not (root / folder).is_dir():
            raise FileNotFoundError(f"{key} is {root}: expected the folder {folder} in it")
    seen: set[str] = set()

    def identified(row: Mapping[str, Any], where: str) -> str:
        name = f"{source.name}/{conversations.text_of(row, 'id', where)}"
        if name in seen:
            raise ValueError(f"{where}: the id {name!r} is there twice")
        seen.add(name)
        return name

    for file in _files_under(root, "documents", (".jsonl",), key, harvest):
        for where, row in _rows(file, key):
            genre, title, text = (conversations.text_of(row, name, where) for name in ("genre", "title", "text"))
            text_kind = "verse" if genre in VERSE_GENRES else "edited"
            yield Document(identified(row, where), source.name, genre, title, "text/plain", text_kind, text.encode())
    for file in _files_under(root, "instructions", (".jsonl",), key, harvest):
        for where, row in _rows(file, key):
            register = conversations.register_of(row, {}, "", where)
            task = conversations.text_of(row, "task", where)
            messages = conversations.conversation(row, {}, where)
            yield Instruction(identified(row, where), source.name, register, task, messages)
    for file in _files_under(root, "dirty", tuple(MEDIA_TYPES), key, harvest):
        media_type = MEDIA_TYPES[file.path.suffix.lower()]
        name = f"{source.name}/{file.name}"
        yield Document(name, source.name, "web", "", media_type, "web", file.path.read_bytes())


def _rows(file: File, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for member in readers.members(file.path, file.name, key, []):
        for number, row in readers.rows(member, key):
            yield f"{key}: {file.name} row {number}", row


def _files_under(root: Path, folder: str, suffixes: tuple[str, ...], key: str, harvest: Harvest) -> Iterator[File]:
    found = sorted(path for path in (root / folder).rglob("*") if path.is_file() and path.suffix.lower() in suffixes)
    if not found:
        raise FileNotFoundError(f"{key} is {root}: its folder {folder} holds no {' or '.join(suffixes)} file")
    for path in found:
        file = File(path.relative_to(root).as_posix(), path)
        harvest.files.append(_record(file))
        yield file
