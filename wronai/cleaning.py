"""The rules that decide which text is worth training on, each pure and with its reason, and the plan that runs them.

A document goes through: bytes to characters (`decode`), mark-up to text (`article`, `markdown_text`), `repair` of wrong
code pages, `normalize`, boilerplate lines out, RULES, personal data masked, duplicates, contamination, split. What a
rule rejects is kept with the rule's reason and the value that it measured.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import os
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import ftfy
import ftfy.badness
import numpy as np
import trafilatura
from ftfy.bad_codecs import sloppy  # noqa: F401 registers sloppy-windows-1250
from lingua import Language, LanguageDetector, LanguageDetectorBuilder
from markdown_it import MarkdownIt

from wronai import corpus, params, personal_data

os.environ["DAFT_ANALYTICS_ENABLED"] = "0"  # otherwise the import itself is reported over the network
import daft

POLISH_LETTERS = "ąćęłńóśźżĄĆĘŁŃÓŚŹŻ"
SPECIAL_TOKENS = re.compile(r"</?(?:polish|formal|informal|question|answer)>")
HEAD = 200  # characters of a rejected text that are kept

# FineWeb2's stop words for Polish (its published configuration); `min_stop_words` counts distinct ones.
STOP_WORDS = frozenset(re.findall(r"\w+", "w i na z do się roku od a jest przez po jako oraz o został był nie"))
# A fifth of the words of Polish prose; a page of keywords has hardly any.
FUNCTION_WORDS = STOP_WORDS | frozenset(
    re.findall(
        r"\w+",
        """
        że to za ze dla jak ale lub tak już by co go ich jego jej są ten ta te tego tej tym tych które który która
        których pod nad przy bez czy bo gdy kiedy gdzie więc aby żeby może można tylko także też we u mi mu my nas nam
        ja ty on ona ono oni mnie ci cię jeszcze być było była byli będzie przed między ani niż choć jeśli jeżeli sobie
        swoje swoją
        """,
    )
)

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")


class Rejection(NamedTuple):
    reason: str
    value: float


_IMPLAUSIBLE = re.compile(
    rf"[^\x00-\x7f{POLISH_LETTERS}\u00a0\u00ad\u200b-\u200f\u2010-\u203a\u2190-\u22ff\ufeff€§©®°«»·×÷„”½¼¾²³µ…]"
)
_META_CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_-]{3,20})""", re.IGNORECASE)
_OLD_CODE_PAGES = ("cp1250", "iso8859-2")


def implausible(text: str) -> int:
    """How many characters of `text` Polish hardly uses: letters of other alphabets, stray signs, control codes."""
    return len(_IMPLAUSIBLE.findall(text))


def decode(content: bytes, media_type: str) -> tuple[str, str] | Rejection:
    """The characters of `content` and the encoding that gave them.

    In order: a byte order mark, UTF-8 if it is valid, then the declared charset (of HTML), CP1250 and ISO 8859-2, of
    which the one wins that reads most like Polish. UTF-8 with a few damaged bytes stays UTF-8.
    """
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding, "replace"), encoding
    zeros = content.count(0)
    if zeros:
        return Rejection("undecodable", zeros / len(content))
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    damaged = content.decode("utf-8", "replace")
    lost = damaged.count("\ufffd")
    if lost * 20 <= len(re.findall(f"[{POLISH_LETTERS}]", damaged)):
        return damaged.replace("\ufffd", ""), "utf-8"
    readings = []
    for encoding in (*_declared(content, media_type), *_OLD_CODE_PAGES):
        try:
            text = content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        readings.append((implausible(text), text, encoding))
    if not readings:
        return Rejection("undecodable", lost / len(damaged))
    _, text, encoding = min(readings, key=lambda reading: reading[0])
    return text, encoding


def _declared(content: bytes, media_type: str) -> Iterator[str]:
    match = _META_CHARSET.search(content[:2048]) if media_type == "text/html" else None
    if match:
        name = match[1].decode("ascii").lower()
        try:
            yield codecs.lookup(name).name
        except LookupError:
            return


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


def repair(text: str) -> str:
    """`text` with the characters that it had before a wrong code page was taken for it; sound text comes back as it is.

    UTF-8 read as a single-byte page is ftfy's case, line by line. CP1250 and ISO 8859-2 read as each other or as
    Latin-1 leave no sign that ftfy knows: there each misreading is undone on trial, and the trial stands if it removes
    four fifths of the implausible characters and brings Polish letters that the text hardly had.
    """
    if ftfy.badness.is_bad(text) or "Ĺ" in text or "Ä" in text:
        text = "\n".join(map(_repair_utf8, text.split("\n")))
    before = len(_SIGNS.findall(text))
    if before < 3:
        return text
    suspects = implausible(text) + sum(text.count(sign) for sign in "³¼½»²°µ")
    best, best_left = text, suspects // 5 + 1
    for table in _MISREADINGS:
        trial = text.translate(table)
        brought = {letter: trial.count(letter) - text.count(letter) for letter in "ąćęłńśźż"}
        gained = sum(brought.values())
        had = sum(text.count(letter) for letter, more in brought.items() if more > 0)
        left = implausible(trial) + sum(trial.count(sign) for sign in "³¼½»²°µ")
        if gained >= 3 and gained >= 4 * had and left < best_left:
            best, best_left = trial, left
    return best


def _repair_utf8(line: str) -> str:
    fixed = ftfy.fix_encoding(line)
    if fixed == line:
        try:
            fixed = line.encode("sloppy-windows-1250").decode("utf-8")
        except UnicodeError:
            return line
    return fixed if len(fixed) < len(line) and implausible(fixed) <= implausible(line) else line


def article(html: str) -> tuple[str, str] | Rejection:
    """Title and article of a web page, without navigation, notices and footer; an empty line parts paragraphs."""
    text = trafilatura.extract(html, include_comments=False, include_tables=False, include_formatting=False)
    if not text:
        return Rejection("no_article", 0.0)
    match = re.search(r"<h1[^>]*>(.*?)</h1>|<title[^>]*>(.*?)</title>", html, re.IGNORECASE | re.DOTALL)
    title = re.sub(r"<[^>]+>|\s+", " ", (match[1] or match[2] or "")).strip() if match else ""
    return title, re.sub(r"\n+", "\n\n", text)


_FRONT_MATTER = re.compile(r"\A\ufeff?---\r?\n.*?\n---\s*?\n", re.DOTALL)
# Tags of Jinja, MDX and DocFX, HTML comments: what is addressed to the tool that renders the page.
_TEMPLATE_TAGS = re.compile(
    r"\{%.*?%\}|\{/\*.*?\*/\}|\{\{.*?\}\}|<!--.*?-->|"
    r"^:::.*?$|\[![\w-]+ ?\[[^\]]*\]\([^)]*\)\]|\[![\w.-]+\]|<xref:[^>]*>",
    re.DOTALL | re.MULTILINE,
)


@functools.cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def markdown_text(source: str) -> tuple[str, str]:
    """Title and running text of a Markdown page: no front matter, code, tables, HTML, template tags, link targets."""
    source = _TEMPLATE_TAGS.sub("", _FRONT_MATTER.sub("", source))
    blocks: list[str] = []
    title = ""
    opened: list[str] = []
    in_table = False
    for token in _markdown().parse(source):
        if token.type in ("table_open", "table_close"):
            in_table = token.type == "table_open"
        elif token.type == "heading_open":
            opened.append("heading")
        elif token.type == "heading_close":
            opened.pop()
        elif token.type == "inline" and not in_table:
            text = _inline_text(token.children or []).strip()
            if text and opened and not title:
                title = text
            if text:
                blocks.append(text)
    return title, "\n\n".join(blocks)


def _inline_text(tokens: Iterable[Any]) -> str:
    parts = []
    for token in tokens:
        if token.type in ("text", "code_inline"):
            parts.append(token.content)
        elif token.type == "softbreak":
            parts.append(" ")
        elif token.type == "hardbreak":
            parts.append("\n")
    return "".join(parts)


# Soft hyphens, zero-width and bidirectional marks, control codes other than the line feed.
_INVISIBLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
_SPACES = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_LINE_ENDS = re.compile(r"\r\n?|[\u2028\u2029\x0b\x0c\x85]")
_HYPHENATED = re.compile(r"(?<=[^\W\d_])[-\u2010]\n(?=[a-ząćęłńóśźż])")
_SENTENCE_END = '.!?…:;”"»*'
_DASHES = "—–-•*"


def normalize(text: str) -> str:
    """`text` in NFC, without invisible characters, white space collapsed; lines and paragraphs stay. Idempotent."""
    text = _LINE_ENDS.sub("\n", text)
    text = re.sub(r"\u00ad *\n *", "", text)
    text = _INVISIBLE.sub("", text.replace("\t", " "))
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", text))
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def unwrap(text: str) -> str:
    """Prose that was broken at a fixed width, with its lines rejoined; verse, lists and prose with free lines stay.

    A line was broken by the width if the next word would hardly have fitted (hardly: scanned books wrap by points, not
    by characters). If that explains many line ends of a text whose lines reach 50 to 120 characters, and the line after
    mostly goes on in lower case, those ends become spaces, and words hyphenated there become whole.
    """
    lines = text.split("\n")
    lengths = sorted(len(line) for line in lines if line)
    if len(lengths) < 5:
        return _HYPHENATED.sub("", text)
    width = lengths[int(len(lengths) * 0.95)]
    pairs = [(line, following) for line, following in pairwise(lines) if line and following]
    broken = [following for line, following in pairs if _is_broken(line, following, width)]
    continued = sum(following[0].islower() for following in broken)
    if not 50 <= width <= 120 or not broken or len(broken) < 0.4 * len(pairs) or continued < 0.6 * len(broken):
        return _HYPHENATED.sub("", text)
    joined = [lines[0]]
    for line, following in pairwise(lines):
        speaks = following[:1] in _DASHES and (not line or line[-1] in _SENTENCE_END or not following[2:3].islower())
        if not (line and following) or speaks or not _is_broken(line, following, width):
            joined.append("\n")
        elif line[-1] in "-\u2010" and line[-2:-1].isalpha() and following[0].islower():
            joined[-1] = joined[-1][:-1]
        else:
            joined.append(" ")
        joined.append(following)
    return _HYPHENATED.sub("", "".join(joined))


def _is_broken(line: str, following: str, width: int) -> bool:
    return len(line) + 1 + len(following.split(" ", 1)[0]) > 0.85 * width


class Reading:
    """A text and what several rules need of it, worked out once."""

    def __init__(self, text: str, boilerplate: float = 0.0) -> None:
        self.text = text
        self.boilerplate = boilerplate

    @functools.cached_property
    def words(self) -> list[str]:
        """Words in lower case: letters, with inner hyphens and apostrophes."""
        return _WORD.findall(self.text.lower())

    @functools.cached_property
    def tokens(self) -> list[str]:
        return self.text.split()

    @functools.cached_property
    def lines(self) -> list[str]:
        return [line for line in self.text.split("\n") if line]


_BOILERPLATE = re.compile(
    r"plik\w* cookies?|ciasteczk\w+|cookies|polityk\w+ prywatności|wszelkie prawa zastrzeżone|regulamin\w*|akceptuj\w+|"
    r"zaakceptuj\w*|wyraża\w* zgod\w+|cofn\w+ zgod\w+|zgod\w+ na przetwarzanie|"
    r"przetwarzani\w+ (?:moich |twoich |państwa )?danych|"
    r"danych osobowych|ustawieni\w+ przeglądarki|zaloguj się|zarejestruj się|zapisz się do newslettera|newsletter\w*|"
    r"udostępnij|przejdź do treści|czytaj więcej|czytaj dalej|mapa strony|dodaj do koszyka|polub nas|"
    r"strona główna|powrót do góry|administrator\w* danych|zaufanych partnerów|skontaktuj się z nami|copyright|©",
    re.IGNORECASE,
)
_FOOTNOTE_MARK = re.compile(r"(?<=\S)\[\d{1,3}\]")
WORDS_PER_PHRASE = 12  # a line with a boilerplate phrase for every so many words is boilerplate


def is_boilerplate(line: str) -> bool:
    """Whether a line is the furniture of a web page: a notice, a menu entry, a legal footer."""
    phrases = len(_BOILERPLATE.findall(line))
    return phrases > 0 and len(line.split()) <= WORDS_PER_PHRASE * phrases


def without_boilerplate(text: str) -> tuple[str, float]:
    """`text` without boilerplate lines and footnote marks, and the share of its characters that those lines were."""
    lines = text.split("\n")
    kept = [line for line in lines if not is_boilerplate(line)]
    removed = sum(map(len, lines)) - sum(map(len, kept))
    return normalize(_FOOTNOTE_MARK.sub("", "\n".join(kept))), removed / max(sum(map(len, lines)), 1)


# The languages that a Polish collection meets: against fewer rivals lingua is surer than it should be.
_LANGUAGES = (
    Language.POLISH,
    Language.CZECH,
    Language.SLOVAK,
    Language.SLOVENE,
    Language.CROATIAN,
    Language.ENGLISH,
    Language.GERMAN,
    Language.FRENCH,
    Language.SPANISH,
    Language.ITALIAN,
    Language.LATIN,
    Language.LITHUANIAN,
    Language.HUNGARIAN,
    Language.RUSSIAN,
    Language.UKRAINIAN,
)
_WINDOW = 1500  # characters; lingua reads one at the start, the middle and the end of a long text


@functools.cache
def _detector() -> LanguageDetector:
    return LanguageDetectorBuilder.from_languages(*_LANGUAGES).build()


def polish_confidence(reading: Reading) -> float:
    """How sure lingua is that a text is Polish, 0 to 1; of a long text the median of its start, middle and end."""
    text = reading.text
    starts = (0, len(text) // 2, len(text) - _WINDOW)
    windows = [text[start : start + _WINDOW] for start in starts] if len(text) > 3 * _WINDOW else [text]
    confidences = [_detector().compute_language_confidence(window, Language.POLISH) for window in windows]
    return statistics.median(confidences)


def words(reading: Reading) -> float:
    return len(reading.tokens)


def share_diacritics(reading: Reading) -> float:
    """The share of Polish letters with a diacritic among the letters; about 0.07 in prose."""
    letters = sum(map(len, reading.words))
    return len(re.findall(f"[{POLISH_LETTERS}]", reading.text)) / max(letters, 1)


def mean_word_length(reading: Reading) -> float:
    return sum(map(len, reading.words)) / max(len(reading.words), 1)


def share_alphabetic_words(reading: Reading) -> float:
    """The share of tokens between white space that hold a letter."""
    return sum(1 for token in reading.tokens if any(map(str.isalpha, token))) / max(len(reading.tokens), 1)


def distinct_stop_words(reading: Reading) -> float:
    return len(STOP_WORDS.intersection(reading.words))


def share_function_words(reading: Reading) -> float:
    return sum(1 for word in reading.words if word in FUNCTION_WORDS) / max(len(reading.words), 1)


def share_duplicate_lines(reading: Reading) -> float:
    return 1 - len(set(reading.lines)) / max(len(reading.lines), 1)


def share_top_bigram(reading: Reading) -> float:
    """The share of the words' characters that the most frequent pair of words takes; 0 when no pair comes twice."""
    pairs = Counter(pairwise(reading.words))
    if not pairs:
        return 0.0
    pair, times = max(pairs.items(), key=lambda item: (item[1] * (len(item[0][0]) + len(item[0][1])), item[0]))
    return times * (len(pair[0]) + len(pair[1])) / sum(map(len, reading.words)) if times > 1 else 0.0


class Rule(NamedTuple):
    """Drops a text for `reason` when its `value` does not pass; `kinds` are the kinds of text that it is right for."""

    reason: str
    value: Callable[[Reading], float]
    passes: Callable[[float, params.Clean], bool]
    kinds: frozenset[str]


_ALL = frozenset({"edited", "web", "verse"})
_WEB = frozenset({"web"})
_PROSE = frozenset({"edited", "web"})

# The first that fails gives the reason, so what says most stands first.
RULES = (
    Rule("boilerplate", lambda reading: reading.boilerplate, lambda v, r: v <= r.max_share_boilerplate, _WEB),
    Rule("too_short", words, lambda v, r: v >= r.min_words, _ALL),
    Rule("too_long", words, lambda v, r: v <= r.max_words, _WEB),
    Rule("not_polish", polish_confidence, lambda v, r: v >= r.min_language_confidence, _ALL),
    Rule("no_diacritics", share_diacritics, lambda v, r: v >= r.min_share_diacritics, _ALL),
    Rule("keyword_page", share_function_words, lambda v, r: v >= r.min_share_function_words, _WEB),
    Rule("few_stop_words", distinct_stop_words, lambda v, r: v >= r.min_stop_words, _WEB),
    Rule("short_words", mean_word_length, lambda v, r: v >= r.min_mean_word_length, _PROSE),
    Rule("long_words", mean_word_length, lambda v, r: v <= r.max_mean_word_length, _PROSE),
    Rule("few_letters", share_alphabetic_words, lambda v, r: v >= r.min_share_alphabetic_words, _PROSE),
    Rule("repeated_lines", share_duplicate_lines, lambda v, r: v <= r.max_share_duplicate_lines, _WEB),
    Rule("repeated_bigram", share_top_bigram, lambda v, r: v <= r.max_share_top_bigram, _WEB),
)


def judge(reading: Reading, text_kind: str, rules: params.Clean) -> Rejection | None:
    """The first rule for this kind of text that `reading` fails, with its value; None when it passes all."""
    for rule in RULES:
        if text_kind in rule.kinds:
            value = rule.value(reading)
            if not rule.passes(value, rules):
                return Rejection(rule.reason, value)
    return None


@dataclass
class Cleaned:
    """A document after the rules that look at it alone; `rejection` is None when it passed."""

    title: str
    text: str
    encoding: str = ""
    repaired: bool = False
    masked: dict[str, int] = field(default_factory=dict)
    rejection: Rejection | None = None


def clean_document(content: bytes, media_type: str, text_kind: str, title: str, rules: params.Clean) -> Cleaned:
    decoded = decode(content, media_type)
    if isinstance(decoded, Rejection):
        return Cleaned(title, "", rejection=decoded)
    characters, encoding = decoded
    if media_type == "text/html":
        extracted = article(characters)
        if isinstance(extracted, Rejection):
            return Cleaned(title, "", encoding, rejection=extracted)
        title, characters = title or extracted[0], extracted[1]
    elif media_type == "text/markdown":
        found, characters = markdown_text(characters)
        title = title or found
    sound = repair(characters)
    repaired = sound != characters
    text = normalize(sound)
    if text_kind != "verse":
        text = unwrap(text)
    boilerplate = 0.0
    if text_kind == "web":
        text, boilerplate = without_boilerplate(text)
    title = normalize(repair(title))
    special = SPECIAL_TOKENS.search(text)
    rejection = Rejection("special_token", 1.0) if special else judge(Reading(text, boilerplate), text_kind, rules)
    masked: dict[str, int] = {}
    if rejection is None and rules.mask_personal_data:
        text, counts = personal_data.mask(text)
        masked = dict(counts)
    return Cleaned(title, text, encoding, repaired, masked, rejection)


def clean_instruction(
    messages: Sequence[Mapping[str, str]], rules: params.Clean
) -> tuple[list[dict[str, str]], dict[str, int], Rejection | None]:
    """The turns normalized and masked, what was masked, and why the whole is rejected, if it is.

    A conversation alternates user and assistant, begins with the one and ends with the other, and no turn is empty.
    """
    turns = [{"role": turn["role"], "content": normalize(turn["content"])} for turn in messages]
    roles = [turn["role"] for turn in turns]
    empty = sum(not turn["content"] for turn in turns)
    if empty:
        return turns, {}, Rejection("empty_turn", empty)
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        return turns, {}, Rejection("unbalanced_turns", len(roles))
    special = sum(len(SPECIAL_TOKENS.findall(turn["content"])) for turn in turns)
    if special:
        return turns, {}, Rejection("special_token", special)
    counts: Counter[str] = Counter()
    if rules.mask_personal_data:
        for turn in turns:
            turn["content"], found = personal_data.mask(turn["content"])
            counts += found
    return turns, dict(counts), None


def content_key(text: str) -> str:
    """What two copies of a text share whatever their case, punctuation and spacing: its words and numbers."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def signatures(keys: Sequence[str], rules: params.Clean) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """MinHash of each content key over n-grams of words: [keys, bands * rows], uint32. Daft works it out."""
    frame = daft.from_pydict({"position": list(range(len(keys))), "key": list(keys)})
    signature = daft.functions.minhash(
        daft.col("key"), num_hashes=rules.minhash_bands * rules.minhash_rows, ngram_size=rules.minhash_ngram
    )
    table = frame.select("position", signature.alias("signature")).sort("position").to_arrow()
    column = table.column("signature").combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.uint32).reshape(len(keys), -1)


class Clusters:
    """Connected components by union-find; the smallest position is its root, in any order of joining."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low


def near_duplicates(signed: np.ndarray[Any, np.dtype[np.uint32]], rules: params.Clean) -> Clusters:
    """Join the texts that share all the hashes of any one band."""
    clusters = Clusters(len(signed))
    for band in range(rules.minhash_bands):
        seen: dict[bytes, int] = {}
        part = np.ascontiguousarray(signed[:, band * rules.minhash_rows : (band + 1) * rules.minhash_rows])
        for position in range(len(signed)):
            clusters.join(position, seen.setdefault(part[position].tobytes(), position))
    return clusters


SHORTEST_NGRAM = 8  # words; as GPT-3, which went down from 13 to 8 for benchmarks of short items


@dataclass
class Benchmark:
    """The n-grams of words of one file of benchmark items.

    A text of SHORTEST_NGRAM words or more but fewer than n counts whole; items with shorter texts alone have no n-gram
    and cannot be recognized.
    """

    name: str
    items: int
    items_too_short: int
    ngrams: set[tuple[str, ...]]


def read_benchmarks(folder: Path, n: int) -> list[Benchmark]:
    """Every .jsonl under `folder`; ValueError or FileNotFoundError when there is none or a line is no JSON object."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} (evaluate.include_path) holds no .jsonl file with benchmark items to check against"
        )
    return [_read_benchmark(path, n) for path in paths]


def _read_benchmark(path: Path, n: int) -> Benchmark:
    ngrams: set[tuple[str, ...]] = set()
    items = too_short = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            texts = [content_key(text).split() for value in json.loads(line).values() for text in _texts_in(value)]
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} line {number} is no JSON object ({error}); evaluate.include_path names its folder"
            ) from error
        texts = [text for text in texts if len(text) >= SHORTEST_NGRAM]
        found = [tuple(text[i : i + n]) for text in texts for i in range(max(len(text) - n, 0) + 1)]
        items += 1
        too_short += not found
        ngrams.update(found)
    return Benchmark(path.stem, items, too_short, ngrams)


def _texts_in(value: Any) -> list[str]:
    """The texts of a field: itself, or its choices."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


class Contamination:
    """Finds the benchmarks that a text shares an n-gram of words with."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self._owners: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for benchmark in benchmarks:
            for ngram in benchmark.ngrams:
                self._owners[ngram].add(benchmark.name)
        self._words = {word for ngram in self._owners for word in ngram}
        self._lengths = sorted({len(ngram) for ngram in self._owners})

    def of(self, key: str) -> Counter[str]:
        """The number of distinct shared n-grams by benchmark, for a text with this content key."""
        shared: set[tuple[str, ...]] = set()
        run: list[str] = []  # the words up to here that some benchmark has, without a gap
        for word in key.split():
            if word not in self._words:
                run.clear()
                continue
            run.append(word)
            for n in self._lengths:
                if n > len(run):
                    break
                ngram = tuple(run[-n:])
                if ngram in self._owners:
                    shared.add(ngram)
        return Counter(name for ngram in shared for name in self._owners[ngram])


@dataclass
class Tally:
    """What a cleaning did to one role: rows kept and rejected, and the counts that become metrics."""

    kept: list[corpus.Row]
    splits: list[str]
    rejected: list[corpus.Row]
    masked: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    contaminated: Counter[str] = field(default_factory=Counter)


def _rejected(row: Mapping[str, Any], role: str, text: str, rejection: Rejection) -> corpus.Row:
    return {
        "id": row["id"],
        "source": row["source"],
        "role": role,
        "reason": rejection.reason,
        "value": round(rejection.value, 4),
        "text": text[:HEAD],
    }


_CLEANED = daft.DataType.struct(
    {
        "title": daft.DataType.string(),
        "text": daft.DataType.string(),
        "encoding": daft.DataType.string(),
        "repaired": daft.DataType.bool(),
        "masked": daft.DataType.list(daft.DataType.string()),
        "reason": daft.DataType.string(),
        "value": daft.DataType.float64(),
    }
)


def clean_documents(table: Path, rules: params.Clean, seed: int, contamination: Contamination) -> Tally:
    """Clean the raw documents of the Parquet file `table` by all rules; the result does not depend on their order."""

    @daft.func.batch(return_dtype=_CLEANED, unnest=True)  # type: ignore[untyped-decorator]
    def cleaned(
        content: daft.Series, media_type: daft.Series, text_kind: daft.Series, title: daft.Series
    ) -> list[dict[str, Any]]:
        columns = (content.to_pylist(), media_type.to_pylist(), text_kind.to_pylist(), title.to_pylist())
        return [_as_struct(clean_document(*values, rules)) for values in zip(*columns, strict=True)]

    columns = [daft.col(name) for name in ("content", "media_type", "text_kind", "title")]
    frame = daft.read_parquet(str(table)).select("id", "source", "genre", cleaned(*columns)).sort("id")
    rows = frame.to_arrow().to_pylist()

    tally = Tally([], [], [])
    passed = []
    for row in rows:
        tally.encodings[row["encoding"]] += bool(row["encoding"])
        tally.repaired += row["repaired"]
        if row["reason"]:
            tally.rejected.append(_rejected(row, "documents", row["text"], Rejection(row["reason"], row["value"])))
        else:
            passed.append(row)
    for row in _deduplicated(passed, [content_key(row["text"]) for row in passed], rules, tally):
        key = row.pop("key")
        shared = contamination.of(key)
        if shared:
            tally.contaminated.update(shared.keys())
            tally.rejected.append(_rejected(row, "documents", row["text"], Rejection("contaminated", shared.total())))
            continue
        for placeholder in row["masked"]:
            tally.masked[placeholder] += 1
        tally.kept.append({name: row[name] for name in corpus.DOCUMENTS.names})
        tally.splits.append(corpus.split_of(key, seed, rules.share_validation, rules.share_test))
    return tally


def _as_struct(cleaned: Cleaned) -> dict[str, Any]:
    return {
        "title": cleaned.title,
        "text": cleaned.text,
        "encoding": cleaned.encoding,
        "repaired": cleaned.repaired,
        "masked": [name for name, times in cleaned.masked.items() for _ in range(times)],
        "reason": cleaned.rejection.reason if cleaned.rejection else None,
        "value": cleaned.rejection.value if cleaned.rejection else None,
    }


def _deduplicated(rows: list[corpus.Row], keys: list[str], rules: params.Clean, tally: Tally) -> Iterator[corpus.Row]:
    """One of each cluster of duplicates, with its content key: the longest, of equals the one with the smallest id."""
    if not rows:
        return
    signed = signatures(keys, rules)
    clusters = near_duplicates(signed, rules)
    members: dict[int, list[int]] = defaultdict(list)
    for position in range(len(rows)):
        members[clusters.root(position)].append(position)
    for positions in members.values():
        stays = min(positions, key=lambda position: (-len(rows[position]["text"]), rows[position]["id"]))
        for position in positions:
            if position != stays:
                same = keys[position] == keys[stays]
                value = 1.0 if same else float(np.mean(signed[position] == signed[stays]))
                rejection = Rejection("exact_duplicate" if same else "near_duplicate", value)
                tally.rejected.append(_rejected(rows[position], "documents", rows[position]["text"], rejection))
        yield {**rows[stays], "key": keys[stays]}


def clean_instructions(
    rows: Iterable[corpus.Row], rules: params.Clean, seed: int, contamination: Contamination
) -> Tally:
    """Clean conversations. Those with the same question, or nearly the same words, go to one split."""
    tally = Tally([], [], [])
    kept: list[corpus.Row] = []
    seen: set[str] = set()
    for row in sorted(rows, key=lambda row: str(row["id"])):
        turns, masked, rejection = clean_instruction(row["messages"], rules)
        text = "\n".join(turn["content"] for turn in turns)
        key = content_key(text)
        if rejection is None:
            # Case and punctuation are what „popraw” tasks are about, so the same words alone make no duplicate here.
            first = fingerprint(json.dumps([turn["content"] for turn in turns[:2]]))
            shared = contamination.of(key)
            if first in seen:
                rejection = Rejection("exact_duplicate", 1.0)
            elif shared:
                tally.contaminated.update(shared.keys())
                rejection = Rejection("contaminated", shared.total())
            seen.add(first)
        if rejection is not None:
            tally.rejected.append(_rejected(row, "instructions", text, rejection))
            continue
        tally.masked.update(masked)
        kept.append({**row, "messages": turns, "key": key})
    tally.splits = _instruction_splits(kept, rules, seed)
    tally.kept = [{name: row[name] for name in corpus.INSTRUCTIONS.names} for row in kept]
    return tally


def _instruction_splits(rows: Sequence[corpus.Row], rules: params.Clean, seed: int) -> list[str]:
    if not rows:
        return []
    clusters = near_duplicates(signatures([row["key"] for row in rows], rules), rules)
    asked: dict[str, int] = {}
    questions = [content_key(row["messages"][0]["content"]) for row in rows]
    for position, question in enumerate(questions):
        clusters.join(position, asked.setdefault(question, position))
    roots = [clusters.root(position) for position in range(len(rows))]
    names: dict[int, str] = {}
    for root, question in zip(roots, questions, strict=True):
        digest = fingerprint(question)
        names[root] = min(names.get(root, digest), digest)
    return [corpus.split_of(names[root], seed, rules.share_validation, rules.share_test) for root in roots]
