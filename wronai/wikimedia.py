"""MediaWiki exports: the articles of a pages-articles dump, and the running text of their wiki markup.

A dump is read as a stream, in memory that does not grow with it. The markup goes through one scanner with an explicit
stack whose depth is bounded, so the cost is linear in the page's length whatever the markup is.
"""

from __future__ import annotations

import bz2
import gzip
import html
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, Protocol, cast
from xml.parsers import expat

import zstandard

MAX_PAGE_BYTES = 32 << 20  # of XML; MediaWiki saves no page above 2 MiB, so more is a bomb or a full-history dump
CHUNK_BYTES = 1 << 18
MAX_ZSTD_WINDOW = 1 << 27
MAX_DEPTH = 40  # MediaWiki expands templates no deeper


class Page(NamedTuple):
    id: int
    title: str
    revision: int
    timestamp: str
    wikitext: str


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class _Bzip2:
    """One stream after another, as bz2.BZ2File reads them, which however takes a damaged stream for the end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._decompressor, self._between = stream, bz2.BZ2Decompressor(), True

    def read1(self, size: int, /) -> bytes:
        while True:
            packed = self._decompressor.unused_data if self._decompressor.eof else b""
            if self._decompressor.eof:
                self._decompressor, self._between = bz2.BZ2Decompressor(), True
            if not packed and self._decompressor.needs_input:
                packed = self._stream.read(CHUNK_BYTES)
                if not packed and self._between:
                    return b""
                if not packed:
                    raise EOFError
            self._between = False
            if chunk := self._decompressor.decompress(packed, size):
                return chunk


class _Zstd:
    def __init__(self, stream: BinaryIO) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        self._reader = decompressor.stream_reader(stream, read_across_frames=True, closefd=False)

    def read1(self, size: int, /) -> bytes:
        return self._reader.read(size)


_OPENERS: dict[bytes, Callable[[BinaryIO], _Readable]] = {
    b"BZh": _Bzip2,
    b"\x1f\x8b\x08": lambda stream: gzip.GzipFile(fileobj=stream),
    b"\x28\xb5\x2f\xfd": _Zstd,
}


def pages(stream: BinaryIO, where: str, whole: bool = True) -> Iterator[Page]:
    """The articles of an export: namespace 0, wikitext, no redirects; of several revisions the last in the file.

    `stream` is XML as it is or as bzip2 (also many streams in a row), gzip or Zstandard. A page without a revision or
    whose text was deleted is passed over. ValueError, beginning with `where`, when the file is empty, no export,
    damaged, cut off, declares entities, or does not end a page within MAX_PAGE_BYTES. With `whole` false the file is
    the beginning of one: its cut end is its end, and the page under the cut is left out.
    """
    buffered = io.BufferedReader(cast(io.RawIOBase, stream))
    try:
        yield from _pages(buffered, where, whole)
    finally:
        buffered.detach()  # else the caller's stream is closed with it


def _pages(stream: io.BufferedReader[io.RawIOBase], where: str, whole: bool) -> Iterator[Page]:
    head = stream.peek(4)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    source: _Readable = opener(stream) if opener else stream
    export = _Export(where)
    fed = page_end = 0
    while True:
        try:
            chunk = source.read1(CHUNK_BYTES)
        except EOFError:
            if whole:
                raise ValueError(f"{where} is cut off: the compressed data ends {export.place()}") from None
            chunk = b""
        except (OSError, zlib.error, zstandard.ZstdError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the file's
            raise ValueError(f"{where} is damaged: the compressed data breaks {export.place()} ({error})") from None
        if not chunk:
            break
        fed += len(chunk)
        export.feed(chunk)
        if export.ended:
            export.ended, page_end = False, fed
        elif fed - page_end > MAX_PAGE_BYTES:
            limit = MAX_PAGE_BYTES >> 20
            raise ValueError(f"{where}: no page ends in {limit} MiB of XML {export.place()}; expected pages-articles")
        yield from export.take()
    if not fed:
        raise ValueError(f"{where} is empty, or cut before its first block ends; expected a MediaWiki XML export")
    export.close(whole)
    yield from export.take()


_PATHS = {
    ("page", "title"): "title",
    ("page", "ns"): "ns",
    ("page", "id"): "id",
    ("revision", "id"): "revision",
    ("revision", "timestamp"): "timestamp",
    ("revision", "model"): "model",
    ("revision", "text"): "text",
}


class _Export:
    """Collects the pages that expat reports."""

    def __init__(self, where: str) -> None:
        self.ended = False
        self._where = where
        self._path: list[str] = []
        self._fields: dict[str, str] = {}
        self._collecting: list[str] | None = None
        self._found: list[Page] = []
        self._last = ""
        self._parser = expat.ParserCreate("utf-8")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.Parse(chunk, False)
        except expat.ExpatError as error:
            what = f"the XML breaks {self.place()}" if self._path else "expected a MediaWiki XML export"
            raise ValueError(f"{self._where} is damaged or no dump: {what} ({error})") from None

    def close(self, whole: bool) -> None:
        try:
            self._parser.Parse(b"", True)
        except expat.ExpatError:
            if not self._path:
                raise ValueError(f"{self._where} ends before <mediawiki>; expected a MediaWiki XML export") from None
            if whole:
                raise ValueError(f"{self._where} is cut off: the XML ends {self.place()}") from None

    def take(self) -> list[Page]:
        found, self._found = self._found, []
        return found

    def place(self) -> str:
        return f"after the page {self._last!r}" if self._last else "before the first page"

    def _doctype(self, *_: object) -> None:
        raise ValueError(f"{self._where} has a document type declaration; a MediaWiki XML export has none")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path and name != "mediawiki":
            raise ValueError(f"{self._where} begins with <{name}>; expected <mediawiki>, an XML export")
        if name == "page":
            self._fields = {}
        elif name == "redirect":
            self._fields["redirect"] = attributes.get("title", "")
        parent = self._path[-1] if self._path else ""
        if (parent, name) in _PATHS:
            self._collecting = []
        self._path.append(name)

    def _text(self, text: str) -> None:
        if self._collecting is not None:
            self._collecting.append(text)

    def _end(self, name: str) -> None:
        self._path.pop()
        field = _PATHS.get((self._path[-1] if self._path else "", name))
        if field and self._collecting is not None:
            self._fields[field] = "".join(self._collecting)
            self._collecting = None
        if name == "page":
            self._page(self._fields)
        elif name == "mediawiki":
            self._path.append(name)  # expat refuses what follows; close() must still know that a root was there

    def _page(self, fields: dict[str, str]) -> None:
        self.ended, self._last = True, fields.get("title", "")
        article = fields.get("ns", "0") == "0" and "redirect" not in fields
        if not (article and fields.get("text") and fields.get("model", "wikitext") == "wikitext"):
            return
        try:
            numbers = int(fields["id"]), int(fields["revision"])
        except (KeyError, ValueError):
            raise ValueError(f"{self._where}: the page {self._last!r} has no numeric id and revision id") from None
        self._found.append(Page(numbers[0], self._last, numbers[1], fields.get("timestamp", ""), fields["text"]))


# Sections of references and links, with their lists.
DROPPED_SECTIONS = frozenset({"przypisy", "bibliografia", "linki zewnętrzne", "zobacz też", "uwagi"})

# Templates that carry running text, and the argument that holds it: a position from 1, or the first there of several.
# All others are dropped: infoboxes, citations, navigation, maintenance. Names as plwiki, plwikisource and plwiktionary
# use them, in lower case.
TEMPLATE_TEXT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("j", "lang", "język", "kolor", "color", "kor", "korekta"), ("2",)),
    **dict.fromkeys(("nowrap", "nobr", "bez łamania", "małe", "small", "duże", "big", "kursywa", "italic"), ("1",)),
    **dict.fromkeys(("kapitaliki", "sc", "kap", "f", "c", "center", "roz", "rozstrzelony", "tekst"), ("1",)),
    **dict.fromkeys(("skrót", "abbr", "dymek", "tooltip", "sup", "sub", "indeks górny", "indeks dolny"), ("1",)),
    **dict.fromkeys(("formatnum", "liczba", "transliteracja", "rzymskie"), ("1",)),
    **dict.fromkeys(("cytat", "cytatd", "cytat blokowy", "cytat d", "quote", "blockquote"), ("treść", "tekst", "1")),
    **dict.fromkeys(("link-interwiki", "ill"), ("tekst", "pl", "1")),
    **dict.fromkeys(("wiersz", "poem"), ("tekst", "1")),
    "w": ("2", "1"),
}
TEMPLATE_SIGNS = {"!": "|", "=": "=", "spacja": " ", "nbsp": " ", "–": " – ", "pauza": " – ", "ndash": " – "}
_BLOCK_TEMPLATES = frozenset(name for name, places in TEMPLATE_TEXT.items() if "treść" in places)
_VERSE_TEMPLATES = frozenset({"wiersz", "poem"})

_DROPPED_TAGS = frozenset(
    re.findall(
        r"\w+",
        """
        ref gallery math chem ce syntaxhighlight source code pre score timeline graph hiero imagemap mapframe maplink
        templatedata templatestyles inputbox categorytree style script indicator includeonly references pages
        """,
    )
)
_LINE_TAGS = {"br": "\1", "poem": "\n\n\2", "/poem": "\3\n\n", "li": "\n* "}
_BLOCK_TAGS = frozenset(re.findall(r"\w+", "p div blockquote center hr ul ol dl tr td th h1 h2 h3 h4 h5 h6"))
_INLINE_TAGS = frozenset(
    re.findall(
        r"\w+",
        """
        a abbr b bdi bdo big cite dd del dfn dt em font i ins kbd mark noinclude onlyinclude q rb rp rt ruby s samp
        section small span strike strong sub sup tt u var wbr
        """,
    )
)

_FILE_PREFIXES = frozenset({"plik", "file", "image", "grafika", "obraz", "media"})
_CATEGORY_PREFIXES = frozenset({"kategoria", "category"})
_PROJECT_PREFIXES = frozenset(
    re.findall(
        r"\w+",
        """
        w s q b n v d c m wikt wikipedia wikisource wikiquote wikibooks wikinews wiktionary commons species meta
        wikisłownik wikicytaty wikiźródła
        """,
    )
)
_LANGUAGE_PREFIX = re.compile(r"(?:[a-z]{2,3}|simple|[a-z]{2,3}-[a-z-]+)\Z")

_TOKEN = re.compile(
    r"<!--|</?[A-Za-z][^<>]*>|\n[ \t:]*\{\||\n[ \t]*\|\}(?!\})|\n+(?=\n)|\{\{+|\}\}+|\[\[|\]\]"
    r"|\[(?=https?://|ftp://|//|mailto:)|\]|\|"
)
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)")
_BAR = "\0"  # parts arguments in an open frame; XML holds no such character
_HOLE = "\4"  # stands for a formula that cannot be told in plain characters
_POWER = re.compile(r"(?:<sup>|\{\{sup\|)([-−+]?\d{1,3})(?:</sup>|\}\})")
_RAISED = str.maketrans("0123456789-−+", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻⁺")  # else 10<sup>3</sup> becomes 103
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f]")


class _Frame(NamedTuple):
    opener: str
    pieces: list[str]


def plain_text(wikitext: str) -> str:
    """The running text of `wikitext`: paragraphs and headings parted by an empty line, an item of a list to a line.

    What is no prose goes: templates without text, tables, references, pictures and captions, categories, code. A
    formula of plain characters stays; a sentence with any other goes whole. Markup that is left open is read as text;
    nothing raises.
    """
    text = _POWER.sub(lambda power: power[1].translate(_RAISED), _CONTROLS.sub("", wikitext))
    return _layout(html.unescape(_scan("\n" + text)))


def _scan(text: str) -> str:
    r"""`text` without templates, links, tables and tags; \1 is a line break, \2 and \3 enclose verse."""
    stack = [_Frame("", [])]
    closings: dict[str, int] = {}
    too_deep = at = 0
    search = _TOKEN.search
    while found := search(text, at):
        token, start = found[0], found.start()
        pieces = stack[-1].pieces
        if start > at:
            pieces.append(text[at:start])
        at = found.end()
        if token == "|":
            pieces.append(_BAR if stack[-1].opener in ("[[", "{{") else "|")
        elif token[-1] == "\n":
            while stack[-1].opener in ("[[", "["):  # no link runs on past its paragraph
                _unwind(stack)
            too_deep = 0
            stack[-1].pieces.append("\n")
        elif token[0] == "]" and stack[-1].opener == "[":
            at = start + 1
            _close(stack, "[")
        elif token == "]":
            pieces.append("]")
        elif opener := _opener(token):
            for _ in range(len(token) // 2 if opener == "{{" else 1):
                if len(stack) > MAX_DEPTH:
                    too_deep += 1
                else:
                    stack.append(_Frame(opener, []))
        elif opener := _closed(token):
            for _ in range(len(token) // 2 if opener == "{{" else 1):
                if too_deep:
                    too_deep -= 1
                else:
                    _close(stack, opener)
        else:
            at = _tag(text, token, at, pieces, closings)
    stack[-1].pieces.append(text[at:])
    return "".join(piece for frame in stack for piece in frame.pieces).replace(_BAR, "|")


def _opener(token: str) -> str:
    if token[0] == "<":
        return "{|" if token[:6].lower() == "<table" else ""
    return "{|" if token.endswith("{|") else token[:2] if token[0] in "[{" else ""


def _closed(token: str) -> str:
    if token[0] == "<":
        return "{|" if token[:7].lower() == "</table" else ""
    return "[[" if token == "]]" else "{{" if token[0] == "}" else "{|"


def _unwind(stack: list[_Frame]) -> None:
    """Read the innermost frame as text: it is never closed."""
    content = "".join(stack.pop().pieces).replace(_BAR, "|")
    stack[-1].pieces.append(content)


def _close(stack: list[_Frame], opener: str) -> None:
    """Put the text of the innermost frame of that kind in its place; a closing sign without one is no text."""
    if stack[-1].opener != opener:
        if not any(frame.opener == opener for frame in stack):
            return
        while stack[-1].opener != opener:
            _unwind(stack)
    arguments = "".join(stack.pop().pieces).split(_BAR)
    if opener != "{|":
        stack[-1].pieces.append({"{{": _template, "[[": _link, "[": _external}[opener](arguments))


def _tag(text: str, token: str, at: int, pieces: list[str], closings: dict[str, int]) -> int:
    """Append what a tag or comment stands for; where the scan goes on. `closings` remembers the next end of each."""

    def end(closing: str) -> int:
        if closings.get(closing, 0) in range(at):
            found = text.find(closing, at)
            closings[closing] = len(text) if found < 0 else found
        return closings[closing]

    if token == "<!--":
        return min(end("-->") + 3, len(text))
    match = _TAG.match(token)
    assert match  # _TOKEN asks for a letter
    slash, name = match[1], match[2].lower()
    if name in _LINE_TAGS:
        pieces.append(_LINE_TAGS.get(slash + name, "" if name != "br" else "\1"))
    elif name in _BLOCK_TAGS:
        pieces.append("\n\n")
    elif name in _DROPPED_TAGS or name == "nowiki":
        closing = end(f"</{match[2]}") if not slash and not token.endswith("/>") else len(text)
        if closing < len(text) and (name != "ref" or end(f"<{match[2]}") > closing):  # else the first is never closed
            content = text[at:closing]
            if name == "nowiki":
                pieces.append(content)
            elif name in ("math", "chem", "ce"):
                pieces.append(_formula(content))
            after = text.find(">", closing)
            return after + 1 if after >= 0 else len(text)
    elif name not in _INLINE_TAGS:
        pieces.append(token)
    return at


_TEX_SIGNS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "Delta": "Δ", "epsilon": "ε", "varepsilon": "ε", "eta": "η",
    "theta": "θ", "lambda": "λ", "mu": "μ", "nu": "ν", "pi": "π", "rho": "ρ", "sigma": "σ", "Sigma": "Σ", "tau": "τ",
    "varphi": "φ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Omega": "Ω", "cdot": "·", "times": "×", "pm": "±",
    "leq": "≤", "le": "≤", "leqslant": "≤", "geq": "≥", "ge": "≥", "geqslant": "≥", "neq": "≠", "ne": "≠", "in": "∈",
    "approx": "≈", "infty": "∞", "to": "→", "rightarrow": "→", "circ": "°", "ldots": "…", "dots": "…", "quad": " ",
}  # fmt: skip
_TEX_WORD = re.compile(r"\\([A-Za-z]+|[,;! ]) ?")


def _formula(tex: str) -> str:
    """A formula of letters, digits and common signs as one would type it, `_HOLE` for any other."""
    typed = _TEX_WORD.sub(lambda word: _TEX_SIGNS.get(word[1], "\\" if word[1].isalpha() else " "), tex)
    typed = " ".join(typed.split())
    return _HOLE if not typed or len(typed) > 60 or any(sign in typed for sign in "\\{}&") else typed


_NAMED = re.compile(r"\s*([\w][\w -]*?)\s*=")


def _template(arguments: Sequence[str]) -> str:
    name = " ".join(arguments[0].replace("_", " ").split()).lower()
    if len(name) > 200 or "\n\n" in arguments[0].strip():
        return "|".join(arguments)  # two stray signs with prose between them
    if name in TEMPLATE_SIGNS:
        return TEMPLATE_SIGNS[name]
    name, colon, value = name.partition(":")
    arguments = [value, *arguments[1:]] if colon and name == "formatnum" else arguments[1:]
    if name.startswith("lang-"):
        places: tuple[str, ...] = ("1",)
    elif name in TEMPLATE_TEXT:
        places = TEMPLATE_TEXT[name]
    else:
        return ""
    values: dict[str, str] = {}
    position = 0
    for argument in arguments:
        if named := _NAMED.match(argument):
            values[named[1].lower()] = argument[named.end() :].strip()
        else:
            position += 1
            values[str(position)] = argument.strip()
    text = next((values[place] for place in places if values.get(place)), "")
    if name in _VERSE_TEMPLATES:
        return f"\n\n\2{text}\3\n\n"
    return f"\n\n{text}\n\n" if name in _BLOCK_TEMPLATES and text else text


def _link(arguments: Sequence[str]) -> str:
    target = arguments[0].strip()
    if "\n" in target:
        return "|".join(arguments)
    prefix, colon, rest = target.partition(":")
    if not prefix and colon:  # [[:Kategoria:…]] is a link to the category, not membership
        prefix, colon, rest = "", "", rest
        target = rest
    elif colon:
        space = prefix.strip().lower()
        if space in _FILE_PREFIXES or space in _CATEGORY_PREFIXES:
            return ""
        if space in _PROJECT_PREFIXES:
            target = rest
        elif _LANGUAGE_PREFIX.match(prefix) and not rest.startswith(" "):
            return ""
    if len(arguments) > 1:
        label = "|".join(arguments[1:]).strip(" ")
        return label or re.sub(r" ?\([^()]*\)\Z", "", rest or target)  # the pipe trick
    return target.lstrip("#").replace("_", " ")


def _external(arguments: Sequence[str]) -> str:
    content = arguments[0]
    return "[" + content + "]" if "\n" in content else content.partition(" ")[2].strip()


_VERSE = re.compile("\2([^\2\3]*)\3")
_MAGIC = re.compile(r"__[A-ZĄĆĘŁŃÓŚŹŻ]{3,}__")
_QUOTES = re.compile("'{2,}")


def _layout(text: str) -> str:
    """Lines of markup to paragraphs, headings and items, without DROPPED_SECTIONS and headings with nothing below."""
    text = _VERSE.sub(lambda verse: re.sub("(?<!\n)\n(?!\n)[ :]*", "\1", verse[1].strip("\n")), text)
    text = _INVISIBLE.sub("", _QUOTES.sub("", _MAGIC.sub("", text)))
    blocks: list[str] = []
    headings: list[tuple[int, str]] = []  # waiting for text below them
    paragraph: list[str] = []
    dropped = 7  # the level of the section that is being left out

    def flush(glue: str = " ") -> None:
        sound = tidy(glue.join(paragraph))
        paragraph.clear()
        if sound:
            blocks.extend(title for _, title in headings)
            headings.clear()
            blocks.append(sound)

    in_list = False
    for line in text.split("\n"):
        line = line.strip()
        if line.startswith("=") and line.endswith("=") and (title := line.strip("= ")):
            flush("\n" if in_list else " ")
            in_list = False
            level = min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")), 6)
            if level > dropped:
                continue
            title = tidy(title)
            dropped = level if title.lower() in DROPPED_SECTIONS else 7
            while headings and headings[-1][0] >= level:
                headings.pop()
            if dropped == 7 and title:
                headings.append((level, title))
        elif dropped < 7:
            continue
        elif not line or line.startswith("----"):
            flush("\n" if in_list else " ")
            in_list = False
        elif line[0] in "|!" or line.startswith("{|"):
            continue  # a row of a table or template that was never closed
        else:
            item = line[0] in "*#:;"
            if item != in_list:
                flush("\n" if in_list else " ")
                in_list = item
            line = line.lstrip("*#:; ")
            if line:
                paragraph.append(line)
    flush("\n" if in_list else " ")
    return "\n\n".join(blocks)


_INVISIBLE = re.compile("[\2\3\u00ad\u200b\u200e\u200f\ufeff]")
_SPACES = re.compile(r"[ \t\r\u00a0\u2000-\u200a\u202f\u205f\u3000]+")
_LANGUAGES = (
    "ang|niem|fr|franc|łac|gr|grec|ros|ukr|biał|lit|czes|słow|węg|wł|hiszp|port|nid|szw|jap|chiń|arab|hebr|jid|tur"
)
_TIDY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"(?<=[(,;])( ?)(?:{_LANGUAGES})\. (?=[,;)])", r"\1"),  # its word in the other language went
        (r"\( ?(?:[,;:–] ?)+", "("),
        (r"(?: ?[,;:–]){1,9} ?\)", ")"),
        (r" ?\( ?\)| ?\[ ?\]|„ ?”", ""),
        (r"\( ", "("),
        (r"([,;])(?: ?[,;])+", r"\1"),
        (r" ([,.;!?)](?!\w))", r"\1"),
    )
)
_LEFT_BEHIND = re.compile(r"[(\[] ?[,;:–)\]]|\( |[,;:– ] ?[,;:)]|„ ?”| [.!?]")  # what any of them needs
_BARE_NUMBER = re.compile(r"\([\d.,–; -]+\)")  # of a sense in plwiktionary, with nothing said of it
_SENTENCE_END = re.compile(r"(?<=[.!?])[ \1](?=[A-ZĄĆĘŁŃÓŚŹŻ„])")


def tidy(text: str) -> str:
    r"""`text` without the brackets, commas and spaces that dropped markup left behind; \1 becomes a line break."""
    lines = []
    for line in text.replace("\1", "\n").split("\n"):
        line = _SPACES.sub(" ", line).strip()
        if _HOLE in line:
            line = " ".join(sentence for sentence in _SENTENCE_END.split(line) if _HOLE not in sentence)
        if _LEFT_BEHIND.search(line):
            for pattern, replacement in _TIDY:
                line = pattern.sub(replacement, line)
            line = _SPACES.sub(" ", line).strip()
        if any(character.isalnum() for character in line) and not _BARE_NUMBER.fullmatch(line):
            lines.append(line)
    return "\n".join(lines)
