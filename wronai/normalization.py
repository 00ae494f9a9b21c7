"""One form for every text: its characters (`normalize`), its lines (`unwrap`), and no furniture of a web page in it.

Most text needs hardly any of it, so each function first looks, in one pass, for what it would change.
"""

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

POLISH_LETTERS = "ąćęłńóśźżĄĆĘŁŃÓŚŹŻ"

# Anything but the characters that stay as they are beside any other (printable ASCII, Latin letters, common signs) and
# the soft hyphen.
_UNTIDY = re.compile(r"[^\n\x20-\x7e\xa1-\u02ff\u2010-\u2027\u2030-\u205e\u2070-\u20cf\u2190-\u22ff]")
_LINE_ENDS = re.compile(r"[\u2028\u2029\x0b\x0c\x85]")
_SPACES = re.compile(r"[\u1680\u2000-\u200a\u202f\u205f\u3000]")
_SOFT_HYPHEN = re.compile(r"\u00ad(?: *\n *)?")
_SCANNED_HYPHEN = re.compile(r"¬(?<=[^\W\d_].)(?: *\n *)?(?=[a-ząćęłńóśźż])")  # what scanning programs write for it
# Control codes, surrogates, private use, noncharacters, and what Unicode calls default ignorable: zero-width ones,
# marks of direction, variation selectors, fillers. Those of the planes above come apart: rare, and slower to look for.
_INVISIBLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u3164\ud800-\uf8ff\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff]"
)
_INVISIBLE_ABOVE = re.compile(
    "["
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(1, 14))
    + "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U0010ffff]"
)
FEW = 8  # characters that are sooner replaced one by one than by a pattern
_FORMS = ((_LINE_ENDS, "\n"), (_INVISIBLE, ""), (_INVISIBLE_ABOVE, ""), (_SPACES, " "))


def normalize(text: str) -> str:
    """`text` in NFC, without invisible characters, white space collapsed; lines and paragraphs stay. Idempotent."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace("\xa0", " ").replace("\t", " ")
    untidy = "".join(set(_UNTIDY.findall(text)))
    for pattern, form in _FORMS:
        found = pattern.findall(untidy)
        if len(found) > FEW:
            text = pattern.sub(form, text)
        else:
            for character in found:
                text = text.replace(character, form)
    if "\xad" in text:
        text = _SOFT_HYPHEN.sub("", text)
    if untidy:
        text = unicodedata.normalize("NFC", text)
    if "¬" in text:
        text = _SCANNED_HYPHEN.sub("", text)
    while "  " in text:
        text = text.replace("  ", " ")
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return _without_gaps(text)


def _without_gaps(text: str) -> str:
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip()


_HYPHENATED = re.compile(r"[-\u2010]\n(?<=[^\W\d_]..)(?=[a-ząćęłńóśźż])", re.DOTALL)
_WITHIN_SENTENCE = re.compile(r"\n(?<=[a-ząćęłńóśźż,].)(?=[a-ząćęłńóśźż])", re.DOTALL)
SHORTEST_PROSE = 60  # characters; a shorter line may be a verse
_SENTENCE_END = '.!?…:;”"»*'
_DASHES = "—–-•*"


def unwrap(text: str) -> str:
    """Prose that was broken at a fixed width, or by pages, with its lines rejoined; verse, lists and free lines stay.

    A line was broken by the width if the next word would hardly have fitted (hardly: scanned books wrap by points, not
    by characters). If that explains many line ends of a text whose lines reach 50 to 120 characters, and the line after
    mostly goes on in lower case, those ends become spaces, and words hyphenated there become whole. Without a width,
    as where pages were scanned, a line of SHORTEST_PROSE or more that stops within a sentence goes on.
    """
    lines = text.split("\n")
    lengths = sorted(filter(None, map(len, lines)))
    width = lengths[int(len(lengths) * 0.95)] if len(lengths) >= 5 else 0
    if not 50 <= width <= 120:
        return _whole_sentences(_whole_words(text))
    reach = 0.85 * width - 1
    is_broken = [
        bool(line and following) and (len(line) > reach or len(line) + _first_word(following) > reach)
        for line, following in pairwise(lines)
    ]
    pairs = sum(1 for line, following in pairwise(lines) if line and following)
    continued = [following[0].islower() for following, broken in zip(lines[1:], is_broken, strict=True) if broken]
    if not continued or len(continued) < 0.4 * pairs or sum(continued) < 0.6 * len(continued):
        return _whole_sentences(_whole_words(text))
    return _whole_words("".join(_joined(lines, is_broken)))


def _first_word(line: str) -> int:
    """The length of the first word of `line`."""
    end = line.find(" ")
    return len(line) if end < 0 else end


def _joined(lines: list[str], is_broken: list[bool]) -> Iterator[str]:
    """The pieces of the text whose `lines` are broken where `is_broken` says so, unless the next begins to speak."""
    for (line, following), broken in zip(pairwise(lines), is_broken, strict=True):
        speaks = following[:1] in _DASHES and (not line or line[-1] in _SENTENCE_END or not following[2:3].islower())
        if speaks or not broken:
            yield line
            yield "\n"
        elif line[-1] in "-\u2010" and line[-2:-1].isalpha() and following[0].islower():
            yield line[:-1]
        else:
            yield line
            yield " "
    yield lines[-1]


def _whole_words(text: str) -> str:
    return _HYPHENATED.sub("", text) if "-\n" in text or "\u2010\n" in text else text


def _whole_sentences(text: str) -> str:
    return _WITHIN_SENTENCE.sub(_joint, text)


def _joint(end: re.Match[str]) -> str:
    """A space for the `end` of a line that is long enough for prose."""
    at = end.start()
    return " " if end.string.find("\n", max(0, at - SHORTEST_PROSE), at) < 0 and at >= SHORTEST_PROSE else "\n"


# What the furniture of a web page says, each under letters that every match has in it, whatever their case.
_PHRASES = {
    "cookie": r"plik\w* cookies?|cookies",
    "iasteczk": r"ciasteczk\w+",
    "polityk": r"polityk\w+ prywatności",
    "prawa zastrze": r"wszelkie prawa zastrzeżone",
    "right": r"copyright|all rights reserved",
    "©": r"©",
    "regulamin": r"regulamin\w*",
    "akceptuj": r"akceptuj\w+|zaakceptuj\w*",
    "zgod": r"wyraża\w* zgod\w+|cofn\w+ zgod\w+|zgod\w+ na przetwarzanie",
    "danych": r"przetwarzani\w+ (?:moich |twoich |państwa )?danych|danych osobowych|administrator\w* danych",
    "zaufanych partner": r"zaufanych partnerów",
    "kontynuuj": r"kontynuując (?:przeglądanie|korzystanie)",
    "dark": r"ustawieni\w+ przeglądarki|twoja przeglądarka nie obsługuje",
    "uj si": r"zaloguj się|zarejestruj się|skontaktuj się z nami",
    "newsletter": r"zapisz się do newslettera|newsletter\w*",
    "udost": r"udostępnij|tekst udostępniany (?:jest )?na licencji",
    "polub nas": r"polub nas",
    " nas na ": r"(?:śledź|obserwuj|znajdź) nas na (?:facebook|twitter|instagram|youtub|linkedin)\w*",
    "podziel si": r"podziel się (?:artykułem|wpisem|tą stroną)",
    "zejd": r"przejdź do (?:głównej )?(?:treści|zawartości|nawigacji|wyszukiwarki)",
    "czytaj ": r"czytaj więcej|czytaj dalej",
    "mapa strony": r"mapa strony",
    "strona g": r"strona główna",
    "t do g": r"powrót do góry",
    "dodaj do koszyka": r"dodaj do koszyka",
    " ostatnio ": r"tę stronę ostatnio (?:edytowano|zmodyfikowano)",
}
# Words that are furniture only where they are the whole line.
_MENU = (
    "menu|szukaj|wyszukaj|reklama|drukuj|wersja do druku|skomentuj|dodaj komentarz|zostaw komentarz|tagi|"
    "kategorie|poprzedni wpis|następny wpis|załaduj więcej|pokaż więcej|zobacz więcej|dowiedz się więcej|czytaj też|"
    "czytaj także|zobacz też|zobacz także|zobacz również|kontakt|o nas|załóż konto|nie pamiętasz hasła|"
    "zapomniałeś hasła|przypomnij hasło|deklaracja dostępności|materiał sponsorowany|artykuł sponsorowany|"
    "powrót na górę|wróć na górę|do góry|wyślij znajomemu|zgłoś błąd|oceń artykuł|subskrybuj|obserwuj nas|"
    "podobne artykuły|powiązane artykuły|ostatnie wpisy|najnowsze komentarze|dodatkowe zasoby|"
    "wyświetl lub pobierz przykładowy kod (jak pobrać)|aby uzyskać więcej informacji, zobacz ."  # without their links
)
WORDS_PER_PHRASE = 12  # a line with a boilerplate phrase for every so many words is boilerplate

_BOILERPLATE = re.compile("|".join(_PHRASES.values()), re.IGNORECASE)
_CORE = re.compile(b"|".join(re.escape(core.encode()) for core in _PHRASES))
# bytes.lower lowers ASCII alone, in a tenth of the time: so the menu has its entries in each case that pages write.
_MENU_LINES = frozenset(
    f"{cased}{end}".encode().lower()
    for entry in _MENU.split("|")
    for cased in (entry, entry.capitalize(), entry.title(), entry.upper())
    for end in ("", ":", "?", "!", "…", "...", " »", " >")
)
_PAGE_MARK = re.compile(r"\[(?<=\S\[)(?:\d{1,3}|edytuj(?: \| edytuj kod| kod)?|potrzebny przypis)\]")
WINDOW, CHUNK = 4, 1 << 20  # bytes that are hashed together, and windows that are looked up at once


def _buckets(windows: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return (windows * np.uint32(2654435761)) >> np.uint32(16)


_STARTS = np.zeros(1 << 16, bool)
_STARTS[_buckets(np.array([int.from_bytes(core.encode()[:WINDOW], "little") for core in _PHRASES], np.uint32))] = True


def is_boilerplate(line: str) -> bool:
    """Whether a line is the furniture of a web page: a notice, a menu entry, a legal footer."""
    phrases = len(_BOILERPLATE.findall(line))
    return _folded(line) in _MENU_LINES or 0 < len(line.split()) <= WORDS_PER_PHRASE * phrases


def without_boilerplate(text: str) -> tuple[str, float]:
    """Normalized `text` without boilerplate lines and the marks of footnotes and of wiki editing, and the share of its
    characters that those lines were.
    """
    folded = _folded(text)
    folded_lines = folded.split(b"\n")
    unwanted = {number for number, line in enumerate(folded_lines) if line in _MENU_LINES}
    lines = text.split("\n")
    hits = list(_core_places(folded))
    if hits:
        ends = list(accumulate(len(line) + 1 for line in folded_lines))
        for number, phrases in Counter(bisect_right(ends, hit) for hit in hits).items():
            if folded_lines[number].count(b" ") < WORDS_PER_PHRASE * phrases and is_boilerplate(lines[number]):
                unwanted.add(number)
    kept = text
    if unwanted:
        kept = _without_gaps("\n".join(line for number, line in enumerate(lines) if number not in unwanted))
    if "[" in kept:
        kept = unicodedata.normalize("NFC", _PAGE_MARK.sub("", kept))
    removed = sum(len(lines[number]) for number in unwanted)
    return kept, removed / max(len(text) - len(lines) + 1, 1)


def _core_places(folded: bytes) -> Iterator[int]:
    """Where the cores of phrases stand: four bytes at each place are looked up by a hash, all places at once."""
    for start in range(0, len(folded) - WINDOW + 1, CHUNK):
        windows = np.ndarray((min(CHUNK, len(folded) - WINDOW + 1 - start),), "<u4", folded, start, (1,))
        for place in np.flatnonzero(_STARTS[_buckets(windows)]).tolist():
            if _CORE.match(folded, start + place):
                yield start + place
    for sign in re.finditer("©".encode(), folded) if b"\xa9" in folded else ():
        yield sign.start()


def _folded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").lower()
