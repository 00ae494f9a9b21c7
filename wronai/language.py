"""Is a text Polish, is it a look-alike, and which of its paragraphs are not Polish: for many texts at once.

One compiled pass over the bytes (`_count`, 170 MB/s) counts words and letters that tell; lingua, which reads 1 MB/s,
is asked only where the counts leave a doubt. Lingua holds Python's lock, so processes multiply its speed and threads
do not; its own parallel functions hang in a forked process and stay unused.

Silesian is told by the letters of the ślabikŏrz spelling (Cieszyn, 2009: ã ŏ ō ô õ) and of Steuer's (ů, and ś ć ń ź
before a vowel), by -iy- and -rzi-, and by words of the plain spelling that people type; Kashubian by the letters of
its orthography of 1996 (ã ë ò ô ù) and its commonest words. Letters count in words that begin small, since names
carry them into any text (Tōkyō, Noël), and é not at all: Polish of the 19th century is full of it.
"""

from __future__ import annotations

import functools
from collections import defaultdict

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lingua import Language, LanguageDetector, LanguageDetectorBuilder
from numpy.typing import NDArray

from wronai import strings
from wronai.strings import Texts

# Czech and Slovak are what Polish is taken for first, Latin and French what old books quote.
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
_WINDOW = 600  # bytes of UTF-8, of which three are read of a longer text
SHORTEST_PARAGRAPH = 80  # letters; a motto, a title, a line that somebody says in French stay
VERSE = 35  # letters in a line: three lines or more that are shorter on average are verse, or a list

_POLISH_WORDS = """
    w we i na z ze za do się nie to że o od a jest są był była było byli być po przez przy pod nad dla jak jako
    ale lub albo oraz tak już by co go ich jego jej jemu mu mi mnie my nas nam ja ty on ona ono oni one cię ci
    tobie sobie u ku bez czy bo gdy gdyż kiedy gdzie więc aby żeby może można tylko także też ten ta te tego tej
    tym tych tę tą temu który która które którego której którym których którzy którą jeszcze będzie będą między
    przed niż choć jeśli jeżeli swoje swoją swego swej swój swoich tam tu teraz wszystko wszystkie wszystkich
    bardzo coś nic ani iż zaś tedy jeno przecież potem nim nimi niego niej ją im jakby pan pani panie ma mam
    miał miała mieli jakiś taki taka takie wtedy dlatego ponieważ należy jednak podczas oto lecz cóż albowiem
    przeto rzekł mój moja moje twój twoja
    """
# Of the languages that share a page with Polish. What Polish has too (je, by, na, on, ich, im, pas) is not among them.
_FOREIGN_WORDS = """
    the of and is are were been that this these with have had for not you your our it its will would can from at
    an or if they their which when what all more about into than his her she us any other there der die das und
    ist nicht ein eine einen einer dem des zu auf für von auch sich wir es wird sind werden als bei aus nach
    oder hat haben le les et est un une dans que qui pour sur au aux avec ce cette il elle nous vous sont ne du
    mais leur el por con del más su sus en lo al pero esta está fue y gli della di che è per sono non dei alla
    nel più cum ad ut quod sed si ex ab esse sunt hoc nec enim quae že jsem jsou jsme být nebo také při než když
    pro který která které jeho její jejich podle může mezi pak jen však v byl byla sú sme sa ktorý ktorá ktoré
    bol bolo ako aj alebo pri vo keď iba ešte tiež medzi pre podľa môže az és hogy nem egy ez volt meg csak de
    van mint már még ir yra kad buvo jis iš kaip tai apie nuo arba koji nije kao ili što iz bio ki so pa tudi
    ter lahko het een niet dat zijn voor met os um uma não dos são att det är för på av den med og til už kteří
    kde byly až boli ste veľmi budú zo
    """
_SILESIAN_WORDS = """
    żech jeżech jeżeś yno kej keby kery kero kere kerego kerych kerym keryj kerzy kaj kajsik tyż wiela dycki
    durś teroz terozki zaroz zarozki przeca skuli bestoż bezto byda bydzie bydziesz bydymy bydom mom mosz momy
    majom mioł mioła miołech boł boła byłech byłach robia robiom godać godom godo godosz godali godoł godki
    godce przaja przaje rzykać rzykali przociel chop chopa chopy chopu chopcy dziołcha dziołchy dziołszka karlus
    karlusy bajtel bajtle starzik starzika starka ołma ołpa opa ujek ujka muter fater familijo gryfny gryfno
    gryfne gryfnie rychtyk ajnfach festelnie ślonsk ślonsko ślonski ślonzok ślonzoki ślonzoków hajmat kołocz
    szolka szolki wuszt sznita sznity szczewiki galoty mantel hasiok bana banhof szrank bifyj fojerman rechtor
    farorz wczorej dzisioj kożdy kożdo jedyn żodyn tukej chałpa chałpie chałpy grubiorz uobiod uod uon uona som
    mie wos wom nom ida myśla widza śniodanie niy przi wiym ô ôd ôn ôna ôni ôma ôpa jŏ jã roztomajte roztomajty
    maszkety kafyj kafyju szekulada szkolorz szkolorze poradza pójda moga chca rozumia zegroda zegrodzie
    ksionżka piniondze piniyndze szpacyr tasza taszy szkryflać naszymu
    """
_KASHUBIAN_WORDS = """
    sã cã mã jem jes chto gdze dze czej jaczi jaczé taczi taczé czedë cëż jaż dló nick nicht jidze jidą jic baro
    barżi dzecy dzys witro wczora swiãti swiãto swiãta zemia zemi ksążka ksążczi dzéń dzéwczã białczi mómy
    wiedno wnetka jich jim naji waji nen przińc przińdze tatk cziej czile wicy gduńsk midzë òb bãdze bãdą
    bãdzemë ksążk jãzëk jãzëka pamiãc terô dlô òn òna òni òd jô bëł pò kò
    """
# Highlanders' speech, which writes c, s, z for cz, sz, ż and shares much with Silesian otherwise.
_HIGHLAND_WORDS = """
    kie ka hań haj syćko syćka syćkie syćkim jesce cemu cego zeby cas casem wse zawse wto kwto cłek cłowiek baca
    bacowie juhas juhasi gazda gazdowie gazdy gaździna tys ftory ftóry ftora telo kielo pote dziywce dziywcyna
    cy cyli jus zoden beda bedom bedym pockoj naski nasej nase naskie wysed posed przysed usłysoł mys hyr hyrny
    honielnik ćupaga dutki piykny piykno pikny piknie downo ocy cysto dusa kosula nieg zyto zycie cyni
    """

_WORD_CLASSES = (_POLISH_WORDS, _FOREIGN_WORDS, _SILESIAN_WORDS, _KASHUBIAN_WORDS, _HIGHLAND_WORDS)
_IS_POLISH, _IS_FOREIGN, _IS_SILESIAN, _IS_KASHUBIAN, _IS_HIGHLAND = (1 << bit for bit in range(len(_WORD_CLASSES)))

# What a letter tells.
_PLAIN, _VOWEL, _OWN, _SOFT, _STRANGE, _E_ACUTE, _SILESIAN, _KASHUBIAN, _O_CIRCUMFLEX, _A_TILDE, _OTHER, _SIGN = range(
    1, 13
)
_KINDS = {
    _PLAIN: "bcdfghjklmnpqrstvwxzó",
    _VOWEL: "aeiouy",
    _OWN: "ąęłż",
    _SOFT: "ćńśź",  # never before a vowel in Polish, which writes an i instead
    _E_ACUTE: "é",
    _SILESIAN: "ŏōõů",
    _KASHUBIAN: "ëòù",
    _O_CIRCUMFLEX: "ô",  # begins a word in Silesian, stands within it in Kashubian
    _A_TILDE: "ã",  # both
    _SIGN: "/{}[];=<>_|\\$^~`",
}
_LATIN = 0x250  # the code points below it are looked up

# The columns of _count. Letters: all; those of Polish that English lacks; in words that begin small, those of neither
# Polish nor its look-alikes; those of the look-alikes; those of other scripts. SIGNS are those of code, EITHER
# the words that Silesian and Kashubian both spell with ã.
LETTERS, OWN, STRANGE, MARKED, OTHER, SIGNS, WORDS, POLISH, FOREIGN, SILESIAN, KASHUBIAN, EITHER, HIGHLAND = range(13)

_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a, over code points


@functools.cache
def _tables() -> tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint8]]:
    """Lower case and kind of each Latin letter; hashes of the listed words, openly addressed, and their classes."""
    lower = np.arange(_LATIN, dtype=np.uint16)
    kinds = np.zeros(_LATIN, np.uint8)
    for code, character in enumerate(map(chr, range(_LATIN))):
        small = character.lower()
        lower[code] = ord(small) if len(small) == 1 and ord(small) < _LATIN else code
        told = [kind for kind, characters in _KINDS.items() if small in characters]
        kinds[code] = told[0] if told else _STRANGE if character.isalpha() else 0
    classes: defaultdict[str, int] = defaultdict(int)
    for bit, words in enumerate(_WORD_CLASSES):
        for word in words.split():
            classes[word] |= 1 << bit
    keys, values = np.zeros(4096, np.uint64), np.zeros(4096, np.uint8)
    for word, value in classes.items():
        hashed = int(_BASIS)
        for character in word:
            hashed = (hashed ^ ord(character)) * int(_PRIME) % 2**64
        slot = hashed % len(keys)
        while keys[slot]:
            slot = (slot + 1) % len(keys)
        keys[slot], values[slot] = hashed, value
    return lower, kinds, keys, values


@numba.njit(cache=True, nogil=True)
def _count(
    data: NDArray[np.uint8],
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    lower: NDArray[np.uint16],
    kinds: NDArray[np.uint8],
    keys: NDArray[np.uint64],
    classes: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """What the columns named above count in each span of `data`, which is UTF-8."""
    counts = np.zeros((len(begins), 13), np.int64)
    mask = np.uint64(len(keys) - 1)
    for span in range(len(begins)):
        count = counts[span]
        at, end = begins[span], ends[span]
        length, hashed = 0, _BASIS
        capital = strange = silesian = kashubian = tilde = False
        before = last = last_kind = np.int64(0)
        while at <= end:  # one step past the end, which closes the last word
            code, size = np.int64(0), 1
            if at < end:
                byte = data[at]
                if byte < 0x80:
                    code = np.int64(byte)
                elif byte < 0xE0:
                    size = 2
                    if at + 1 < end:
                        code = (byte & 0x1F) << 6 | (data[at + 1] & 0x3F)
                elif byte < 0xF0:
                    size = 3
                    if at + 2 < end:
                        code = (byte & 0x0F) << 12 | (data[at + 1] & 0x3F) << 6 | (data[at + 2] & 0x3F)
                else:
                    size = 4
            at += size
            # From 0x2000 to 0x3040 there are punctuation and symbols, behind 0xD800 rare scripts and emoji.
            other = _OTHER if code < 0x2000 or 0x3040 <= code < 0xD800 else 0
            kind = np.int64(kinds[code] if code < _LATIN else other)
            if kind == _SIGN:
                count[SIGNS] += 1
            elif kind:
                small = code if kind == _OTHER else np.int64(lower[code])
                count[LETTERS] += 1
                capital |= length == 0 and small != code
                if kind in (_OWN, _SOFT):
                    count[OWN] += 1
                elif kind == _OTHER:
                    count[OTHER] += 1
                elif kind == _STRANGE:
                    count[STRANGE] += not capital
                    strange = True
                elif kind >= _SILESIAN:
                    count[MARKED] += 1
                    silesian |= kind == _SILESIAN or (kind == _O_CIRCUMFLEX and length == 0)
                    kashubian |= kind == _KASHUBIAN or (kind == _O_CIRCUMFLEX and length > 0)
                    tilde |= kind == _A_TILDE
                silesian |= last == 105 and small == 121  # -iy-: niy, wiym
                silesian |= before == 114 and last == 122 and small == 105  # -rzi-: przi
                silesian |= last_kind == _SOFT and kind == _VOWEL
                hashed = (hashed ^ np.uint64(small)) * _PRIME
                before, last, last_kind = last, small, kind
                length += 1
                continue
            if length == 0:
                continue
            slot = hashed & mask
            while keys[slot] != 0 and keys[slot] != hashed:
                slot = (slot + np.uint64(1)) & mask
            told = np.int64(classes[slot])
            spelled = not (strange or capital)
            is_silesian = told & _IS_SILESIAN != 0 or (spelled and silesian and not kashubian)
            is_kashubian = told & _IS_KASHUBIAN != 0 or (spelled and kashubian and not silesian)
            count[WORDS] += 1
            count[POLISH] += told & _IS_POLISH != 0
            count[FOREIGN] += told & _IS_FOREIGN != 0
            count[HIGHLAND] += told & _IS_HIGHLAND != 0
            count[SILESIAN] += is_silesian
            count[KASHUBIAN] += is_kashubian
            count[EITHER] += spelled and tilde and not is_silesian and not is_kashubian
            length, hashed = 0, _BASIS
            capital = strange = silesian = kashubian = tilde = False
            before = last = last_kind = np.int64(0)
    return counts


@functools.cache
def _detector() -> LanguageDetector:
    # From 120 characters on the same figures; below, trigrams alone, for 380 MB and 3 s less in each process.
    return LanguageDetectorBuilder.from_languages(*_LANGUAGES).with_low_accuracy_mode().build()


def _settled(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """1.0 for the spans that the counts alone call Polish, 0.0 for those they call foreign, NaN for the others.

    Polish has words and letters together that no other language has; foreign is what hardly has one of these
    letters, but many words or letters of others. Half of each is neither, nor is Polish without its diacritics.
    """
    letters, words, own, strange = (counts[:, column] for column in (LETTERS, WORDS, OWN, STRANGE))
    others = strange + counts[:, MARKED] + counts[:, OTHER]
    polish = (words >= 20) & (counts[:, POLISH] >= 0.10 * words) & (own >= 0.03 * letters)
    polish &= (counts[:, FOREIGN] <= 0.04 * words) & (others <= 0.01 * letters)
    foreign = (counts[:, FOREIGN] >= 0.15 * words) & (counts[:, FOREIGN] >= 2 * counts[:, POLISH])
    foreign |= strange >= 0.05 * letters
    foreign = foreign & (words >= 12) & (own <= 0.002 * letters) | (counts[:, OTHER] > 0.8 * letters)
    return np.where(polish, 1.0, np.where(foreign, 0.0, np.nan))


def _windows(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the windows of each span begin and end: [spans, 3] each; all three are the whole of a short one.

    They may halve a character at either edge, which no share notices.
    """
    starts = np.stack([begins, (begins + ends - _WINDOW) // 2, ends - _WINDOW], axis=1)
    stops = starts + _WINDOW
    short = ends - begins <= 2 * _WINDOW
    starts[short], stops[short] = begins[short, None], ends[short, None]
    return starts, stops


def _confidences(data: NDArray[np.uint8], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    starts, stops = _windows(begins, ends)
    values = _settled(_count(data, starts.ravel(), stops.ravel(), *_tables())).reshape(-1, 3)
    for value in (0.0, 1.0):
        values[(values == value).sum(axis=1) > 1] = value  # two windows of three decide the median
    for span in np.flatnonzero(np.isnan(values).any(axis=1)):
        read: dict[int, float] = {}
        for window in np.flatnonzero(np.isnan(values[span])):
            start, stop = int(starts[span, window]), int(stops[span, window])
            if start not in read:
                text = data[start:stop].tobytes().decode("utf-8", "replace")
                # Rounded, since lingua adds up in the order of a hash table: its last bits differ from call to call.
                read[start] = round(_detector().compute_language_confidence(text, Language.POLISH), 6)
            values[span, window] = read[start]
    return np.asarray(np.median(values, axis=1))


def confidences(texts: Texts) -> NDArray[np.float64]:
    """How sure it is that each text is Polish, 0 to 1: the median of the windows at its start, middle and end.

    A window has 600 bytes; a text of up to 1,200 is one. Its value is 1.0 or 0.0 where its words and letters settle it
    (`_settled`), and elsewhere lingua's among 15 languages, which agrees where they do.
    """
    data, begins = strings.utf8(texts)
    return _confidences(data, begins[:-1], begins[1:])


def polish_confidence(text: str) -> float:
    """`confidences` of one text."""
    return float(confidences([text])[0])


def look_alikes(texts: Texts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The shares of each text's words that are spelled as Silesian, and as Kashubian, does and Polish does not.

    One such word tells nothing, nor do any in a text with letters that no speech of Poland has (Czech ě, French è):
    there the shares are 0. Words of the highlanders count against Silesian.
    """
    data, begins = strings.utf8(texts)
    counts = _count(data, begins[:-1], begins[1:], *_tables())
    silesian, kashubian, either = counts[:, SILESIAN] - counts[:, HIGHLAND], counts[:, KASHUBIAN], counts[:, EITHER]
    native = counts[:, STRANGE] + counts[:, OTHER] <= 0.02 * counts[:, LETTERS]

    def share(own: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
        found = own + either * (own > other)
        return np.where(native & (found > 1), found, 0) / np.maximum(counts[:, WORDS], 1)

    return share(silesian, kashubian), share(kashubian, silesian)


def share_silesian(text: str) -> float:
    """`look_alikes` of one text: Silesian."""
    return float(look_alikes([text])[0][0])


def share_kashubian(text: str) -> float:
    """`look_alikes` of one text: Kashubian."""
    return float(look_alikes([text])[1][0])


@numba.njit(cache=True, nogil=True)
def _paragraphs(data: NDArray[np.uint8], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Text, begin, end, number of lines of each paragraph: [4, paragraphs]. Without an empty line each line is one."""
    room = len(begins)
    for at in range(begins[0], begins[-1]):
        room += data[at] == 10
    found = np.empty((4, room), np.int64)
    size = 0
    for text in range(len(begins) - 1):
        first = size
        for by_line in (False, True):
            begin, stop, lines = -1, -1, 0
            ink, ink_stop = -1, -1  # what the line holds between its white space
            gap = False
            for at in range(begins[text], begins[text + 1] + 1):
                byte = data[at] if at < begins[text + 1] else 10
                if byte != 10:
                    if byte != 32 and byte != 9 and byte != 13:
                        ink = at if ink < 0 else ink
                        ink_stop = at + 1
                    continue
                if ink < 0:
                    gap = True
                    continue
                if begin >= 0 and (gap or by_line):
                    found[0, size], found[1, size], found[2, size], found[3, size] = text, begin, stop, lines
                    size += 1
                    begin = -1
                if begin < 0:
                    begin, lines = ink, 0
                stop, lines = ink_stop, lines + 1
                ink, gap = -1, False
            if begin >= 0 and (by_line or size > first):
                found[0, size], found[1, size], found[2, size], found[3, size] = text, begin, stop, lines
                size += 1
            if size > first:
                break
    return found[:, :size]


def _doubtful(counts: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which paragraphs lingua is to judge: running text, no verse or code, where foreign words or letters prevail."""
    letters, words, foreign = counts[:, LETTERS], counts[:, WORDS], counts[:, FOREIGN]
    running = (letters >= SHORTEST_PARAGRAPH) & ((lines < 3) | (letters >= VERSE * lines))
    prose = counts[:, SIGNS] <= 0.03 * letters
    words_prevail = (foreign >= np.maximum(0.08 * words, 2)) & (foreign > counts[:, POLISH])
    letters_prevail = (counts[:, STRANGE] >= 0.04 * letters) & (counts[:, STRANGE] > counts[:, OWN])
    other_script = counts[:, OTHER] > 0.5 * letters
    return np.asarray(running & prose & (words_prevail | letters_prevail | other_script))


def _cut_once(texts: pa.Array, threshold: float) -> dict[int, str]:
    """The texts that lose a paragraph, by position, as they are without."""
    data, begins = strings.utf8(texts)
    found = _paragraphs(data, begins)
    doubtful = np.flatnonzero(_doubtful(_count(data, found[1], found[2], *_tables()), found[3]))
    foreign = doubtful[_confidences(data, found[1, doubtful], found[2, doubtful]) < threshold]
    shorter = {}
    for text in np.unique(found[0, foreign]):
        own = np.arange(*np.searchsorted(found[0], [text, text + 1]))
        kept = np.setdiff1d(own, foreign)
        starts, stops = found[1, own[0] : own[-1] + 1], found[2, own]
        # A paragraph goes with the gap after it, the last one with the gap before it.
        following = np.append(starts[1:], stops[-1])
        following[kept[-1:] - own[0]] = found[2, kept[-1:]]
        pieces = [data[begins[text] : starts[0]]]
        pieces += [data[starts[place] : following[place]] for place in kept - own[0]]
        pieces += [data[stops[-1] : begins[text + 1]]]
        shorter[int(text)] = b"".join(piece.tobytes() for piece in pieces).decode("utf-8", "replace")
    return shorter


def screened(texts: Texts, threshold: float) -> tuple[pa.Array, NDArray[np.int64]]:
    """The texts without the paragraphs whose confidence is below `threshold`, and the number of characters cut of each.

    An empty line parts paragraphs; in a text without one each line counts. Only running text of SHORTEST_PARAGRAPH
    letters or more is judged, and only where foreign words or letters prevail, so verse, code, names and short
    quotations stay, and a Polish text comes back as the same bytes. Screening again cuts nothing more.
    """
    whole = strings.array(texts)
    changed: dict[int, str] = {}
    positions, left = np.arange(len(whole)), whole
    while shorter := _cut_once(left, threshold):  # again, since what is left may have lines for paragraphs
        positions, left = positions[list(shorter)], pa.array(shorter.values(), pa.large_string())
        changed.update(zip(positions.tolist(), shorter.values(), strict=True))
    if not changed:
        return whole, np.zeros(len(whole), np.int64)
    is_changed = np.isin(np.arange(len(whole)), list(changed))
    ordered = pa.array([changed[position] for position in sorted(changed)], pa.large_string())
    result = pc.replace_with_mask(whole, pa.array(is_changed), ordered)
    return result, pc.subtract(pc.utf8_length(whole), pc.utf8_length(result)).to_numpy()


def without_foreign_paragraphs(text: str, threshold: float) -> tuple[str, int]:
    """`screened` of one text."""
    result, cut = screened([text], threshold)
    return (result[0].as_py(), int(cut[0])) if cut[0] else (text, 0)
