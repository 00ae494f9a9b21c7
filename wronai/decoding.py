"""Bytes to characters (`decode`), and the characters that a wrong reading left to those that were meant (`repair`)."""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import ftfy
import ftfy.badness
from ftfy.bad_codecs import sloppy  # noqa: F401 registers sloppy-windows-1250

from wronai.normalization import POLISH_LETTERS


class Rejection(NamedTuple):
    """Why a text is not worth training on, and the value that said so."""

    reason: str
    value: float


_MARKS = (  # UTF-32 first: its mark begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Python reads the names of many more encodings, among them some that take hours (punycode) or run escapes.
_CHARSETS = frozenset(
    {f"cp125{n}" for n in range(9)}
    | {f"iso8859-{n}" for n in range(1, 17) if n != 12}
    | {"ascii", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp437", "cp850", "cp852", "cp866", "koi8-r", "koi8-u"}
    | {"mac-latin2", "mac-roman", "big5", "gb2312", "gbk", "gb18030", "euc_jp", "shift_jis", "euc_kr"}
)
_OLD_CODE_PAGES = ("cp1250", "iso8859-2")
_META_CHARSET = re.compile(rb"""(?:charset|encoding)\s{0,9}=\s{0,9}["']?\s{0,9}([\w.:-]{3,20})""", re.IGNORECASE)
_IMPLAUSIBLE = re.compile(
    rf"[^\x00-\x7f{POLISH_LETTERS}\u00a0\u00ad\u200b-\u200f\u2010-\u203a\u2190-\u22ff\ufeff€§©®°«»·×÷„”½¼¾²³µ…]"
)
_FOREIGN = re.compile(r"[^\x00-\u024f\u2000-\u22ff]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


def implausible(text: str) -> int:
    """How many characters of `text` Polish hardly uses: letters of other alphabets, stray signs, control codes."""
    return len(_IMPLAUSIBLE.findall(text))


def decode(content: bytes, media_type: str, charset: str | None = None) -> tuple[str, str] | Rejection:
    """The characters of `content` and the encoding that gave them; `charset` is what came with it (an HTTP header).

    In order: a byte order mark, UTF-16 that the zeros at every other place betray, UTF-8 if it is valid, then the
    declared charsets, CP1250 and ISO 8859-2, of which the one wins that reads most like Polish. UTF-8 with a few
    damaged bytes stays UTF-8, as it does with one zero in a thousand bytes; other content with zeros is no text.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, "ignore"), encoding
    marked = content.startswith(codecs.BOM_UTF8)
    if marked:
        content = content.removeprefix(codecs.BOM_UTF8)
    zeros = content.count(0)
    if zeros * 1000 > len(content):
        return _unmarked_utf_16(content) or Rejection("undecodable", zeros / len(content))
    utf_8 = "utf-8-sig" if marked else "utf-8"
    try:
        return content.decode("utf-8"), utf_8
    except UnicodeDecodeError:
        pass
    damaged = content.decode("utf-8", "replace")
    lost = damaged.count("\ufffd")
    if lost * 20 <= sum(map(damaged.count, POLISH_LETTERS)):
        return damaged.replace("\ufffd", ""), utf_8
    if zeros:
        return Rejection("undecodable", lost / len(damaged))
    readings = []
    for encoding in (*_declared(content, media_type, charset), *_OLD_CODE_PAGES):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        readings.append((implausible(text), text, encoding))
    _, text, encoding = min(readings, key=lambda reading: reading[0])
    return text, encoding


def _unmarked_utf_16(content: bytes) -> tuple[str, str] | None:
    """UTF-16 without a mark: Latin letters have a zero in the one half of their bytes and hardly any in the other."""
    halves = (content[0::2].count(0), content[1::2].count(0))
    if max(halves) < 0.3 * len(content) or min(halves) > 0.01 * len(content):
        return None
    encoding = "utf-16-be" if halves[0] > halves[1] else "utf-16-le"
    text = content.decode(encoding, "ignore")
    return (text, encoding) if text and len(_CONTROLS.findall(text)) * 100 <= len(text) else None


def _declared(content: bytes, media_type: str, charset: str | None) -> Iterator[str]:
    """The encodings that `charset` and the page itself name, if Python reads them."""
    names = [charset] if charset else []
    if "html" in media_type or "xml" in media_type:
        names += [match[1].decode("ascii") for match in _META_CHARSET.finditer(content[:2048])]
    for name in names:
        try:
            known = codecs.lookup(name.strip("\"' ")).name
        except (LookupError, ValueError):  # ValueError: a zero in the name
            continue
        if known in _CHARSETS:
            yield known


def _misreading(read_as: str, written_in: str) -> dict[int, str]:
    """What each character stands for when text in one single-byte code page was read as another."""
    table = {}
    for code in range(0x80, 0x100):
        byte = bytes([code])
        try:
            seen, meant = byte.decode(read_as), byte.decode(written_in)
        except UnicodeDecodeError:
            continue
        if seen != meant:
            table[ord(seen)] = meant
    return table


_MISREADINGS = tuple(
    _misreading(read_as, written_in)
    for read_as, written_in in (
        ("latin-1", "cp1250"),
        ("cp1252", "cp1250"),
        ("latin-1", "iso8859_2"),
        ("cp1252", "iso8859_2"),
        ("iso8859_2", "cp1250"),
        ("cp1250", "iso8859_2"),
    )
)
_SIGNS = re.compile(r"[\x80-\x9f¹³¿œŸŒ¶¼±¦¬¯£¥Æê¡ˇĽšµ˘ÊæÑñ¾»]")


def _lead_letters() -> str:
    """What the first byte of a character of UTF-8 looks like in the code pages that ftfy tries.

    Without letters and signs that Polish uses: a line is repaired only if it does not become less plausible, and of
    these only the looks of C2 to C5 and E2, under which Polish letters and signs stand in UTF-8, can make it so.
    """
    pages = ("latin-1", *(f"cp125{n}" for n in (0, 1, 2, 3, 4, 7)), "iso8859_2", "mac-roman", "cp437")
    letters = "".join({bytes([code]).decode(page, "ignore") for page in pages for code in range(0xC2, 0xF5)})
    return re.escape("".join(sorted(_IMPLAUSIBLE.findall(letters))) + "Ć√≈∩‚")


_UTF8_PAIR = re.compile(rf"[{_lead_letters()}][^\x00-\x1f\x21-\x7f]")
# Where a text has none of these, neither kind of repair has anything to do; it is what most text is asked.
_UNUSUAL = re.compile(
    rf"[^\x00-\x7f{POLISH_LETTERS}\u00a0\u00ad\u200b-\u2019\u201b-\u203a\u2190-\u2219\u221b-\u2228\u222a-\u2247"
    rf"\u2249-\u22ff\ufeff€§©®°«·×÷½²]"
)
_UNUSUAL_AND_NEXT = re.compile(rf"{_UNUSUAL.pattern}.?", re.DOTALL)
_BROUGHT = "ąćęłńśźż"
_USUAL_MISREAD = [
    character
    for character in sorted({chr(code) for table in _MISREADINGS for code in table}.union(_BROUGHT))
    if not _UNUSUAL.match(character)
]
_SUSPECT = "³¼½»²°µ"


def repair(text: str) -> str:
    """`text` with the characters that it had before a wrong code page was taken for it; sound text comes back as it is.

    UTF-8 read as a single-byte page is ftfy's case, line by line. CP1250 and ISO 8859-2 read as each other or as
    Latin-1 leave no sign that ftfy knows: there each misreading is undone on trial, and the trial stands if it removes
    four fifths of the implausible characters and brings Polish letters that the text hardly had.
    """
    unusual = _unusual(text)
    if _UTF8_PAIR.search(unusual):
        text, misread = _repair_utf8(text), text
        unusual = unusual if text == misread else _unusual(text)
    if len(_SIGNS.findall(unusual)) < 3:
        return text
    found = Counter(_UNUSUAL.findall(unusual))
    found.update({character: text.count(character) for character in _USUAL_MISREAD})
    best: dict[int, str] = {}
    best_left = _suspects(found) // 5 + 1
    for table in _MISREADINGS:
        trial: Counter[str] = Counter()
        for character, times in found.items():
            trial[table.get(ord(character), character)] += times
        brought = {letter: trial[letter] - found[letter] for letter in _BROUGHT}
        gained = sum(brought.values())
        had = sum(found[letter] for letter, more in brought.items() if more > 0)
        left = _suspects(trial)
        if gained >= 3 and gained >= 4 * had and left < best_left:
            best, best_left = table, left
    return text.translate(best) if best else text


def _unusual(text: str) -> str:
    """The unusual characters of `text`, each with the one that follows it."""
    return "" if text.isascii() else "".join(_UNUSUAL_AND_NEXT.findall(text))


def _suspects(found: Counter[str]) -> int:
    """The implausible characters among those `found`, and those that are rather what a misread letter looks like."""
    return sum(
        times * (bool(_IMPLAUSIBLE.match(character)) + (character in _SUSPECT)) for character, times in found.items()
    )


def _repair_utf8(text: str) -> str:
    spans: list[tuple[int, int]] = []  # of the lines that may hold misread UTF-8
    end = -1
    for pair in _UTF8_PAIR.finditer(text):
        if pair.start() > end:
            start = text.rfind("\n", end + 1, pair.start()) + 1 or end + 1
            end = text.find("\n", pair.start())
            end = len(text) if end < 0 else end
            spans.append((start, end))
    if not ("Ĺ" in text or "Ä" in text or any(ftfy.badness.is_bad(text[start:end]) for start, end in spans)):
        return text
    pieces, done = [], 0
    for start, end in spans:
        pieces += [text[done:start], _repair_utf8_line(text[start:end])]
        done = end
    return "".join([*pieces, text[done:]])


def _repair_utf8_line(line: str) -> str:
    fixed = str(ftfy.fix_encoding(line))
    if fixed == line:
        try:
            fixed = line.encode("sloppy-windows-1250").decode("utf-8")
        except UnicodeError:
            return line
    worse = implausible(fixed) - implausible(line)
    if len(fixed) >= len(line) or worse > 0:
        return line
    # As implausible as before and with foreign letters: the line was misread in another way.
    return line if worse == 0 and len(_FOREIGN.findall(fixed)) > len(_FOREIGN.findall(line)) else fixed
