"""The rules that judge a text by counting, measured over a whole Arrow array at once by compiled kernels.

FineWeb2's bounds are fitted to datatrove 0.10.1 on the words of spaCy's rules for Polish, so the measures that have
such a bound mean the same here. A word in this sense is what stands between white space, less the marks around it,
split at dashes, each mark a word of its own. Three measures are ours and count runs of letters, whatever their case:
share_diacritics, share_function_words and distinct_stop_words.

Left out of spaCy's rules, together seen in one of 1,200 documents: addresses of four numbers, US$ and its like, units
of measure in other scripts than Latin, and which of two emoticons goes first that share a mark. A letter is what
Unicode calls one.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from wronai import params

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]

POLISH_LETTERS = "ąćęłńóśźżĄĆĘŁŃÓŚŹŻ"

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

MEASURES = (
    "words",
    "share_diacritics",
    "share_function_words",
    "distinct_stop_words",
    "mean_word_length",
    "share_alphabetic_words",
    "symbols_per_word",
    "share_bullet_lines",
    "share_ellipsis_lines",
    "share_punctuated_lines",
    "new_lines_per_word",
    "share_duplicate_lines",
    "share_duplicate_line_characters",
    "share_top_2gram",
    "share_top_3gram",
    "share_top_4gram",
    "share_duplicate_5grams",
    "share_duplicate_6grams",
    "share_duplicate_7grams",
    "share_duplicate_8grams",
    "share_duplicate_9grams",
    "share_duplicate_10grams",
)
_TOP, _DUPLICATE = MEASURES.index("share_top_2gram"), MEASURES.index("share_duplicate_5grams")
_MEASURES = len(MEASURES)


class Rule(NamedTuple):
    """Drops a text for `reason` when its `measure` is beyond `bound`, a field of params.Rules: min_… or max_…."""

    reason: str
    measure: str
    bound: str


# The first that fails gives the reason, so what says most stands first.
RULES = (
    Rule("boilerplate", "share_boilerplate", "max_share_boilerplate"),
    Rule("too_short", "words", "min_words"),
    Rule("too_long", "words", "max_words"),
    Rule("silesian", "share_silesian", "max_share_silesian"),
    Rule("kashubian", "share_kashubian", "max_share_kashubian"),
    Rule("not_polish", "language_confidence", "min_language_confidence"),
    Rule("no_diacritics", "share_diacritics", "min_share_diacritics"),
    Rule("keyword_page", "share_function_words", "min_share_function_words"),
    Rule("few_stop_words", "distinct_stop_words", "min_stop_words"),
    Rule("short_words", "mean_word_length", "min_mean_word_length"),
    Rule("long_words", "mean_word_length", "max_mean_word_length"),
    Rule("few_letters", "share_alphabetic_words", "min_share_alphabetic_words"),
    Rule("many_symbols", "symbols_per_word", "max_symbols_per_word"),
    Rule("bullet_list", "share_bullet_lines", "max_share_bullet_lines"),
    Rule("cut_lines", "share_ellipsis_lines", "max_share_ellipsis_lines"),
    Rule("few_sentence_ends", "share_punctuated_lines", "min_share_punctuated_lines"),
    Rule("many_new_lines", "new_lines_per_word", "max_new_lines_per_word"),
    Rule("repeated_lines", "share_duplicate_lines", "max_share_duplicate_lines"),
    Rule("repeated_line_characters", "share_duplicate_line_characters", "max_share_duplicate_line_characters"),
    *(Rule(f"frequent_{n}gram", f"share_top_{n}gram", f"max_share_top_{n}gram") for n in (2, 3, 4)),
    *(Rule(f"repeated_{n}grams", f"share_duplicate_{n}grams", f"max_share_duplicate_{n}grams") for n in range(5, 11)),
)


MEASURED = tuple(dict.fromkeys(rule.measure for rule in RULES))  # what rules bound; other modules measure some of it


def judge(values: Mapping[str, Floats], rules: params.Rules) -> tuple[pa.Array, Floats]:
    """The reason of the first of RULES that each text fails, or null, and the value that decided, or NaN.

    A bound that is None is off, and NaN fails none. `values` needs the measures whose bound is set; ValueError names
    the one that is missing.
    """
    bounds = [(index, rule, getattr(rules, rule.bound)) for index, rule in enumerate(RULES)]
    active = [(index, rule, bound) for index, rule, bound in bounds if bound is not None]
    for _, rule, _ in active:
        if rule.measure not in values:
            raise ValueError(
                f"{rule.bound} is set, and {rule.measure} was not measured; measured are {', '.join(sorted(values))}"
            )
    size = len(next(iter(values.values()), ()))
    failed = np.full(size, -1, dtype=np.int32)
    decided = np.full(size, np.nan)
    for index, rule, bound in active:
        value = values[rule.measure]
        fails = (failed < 0) & ((value < bound) if rule.bound.startswith("min_") else (value > bound))
        failed[fails] = index
        decided[fails] = value[fails]
    reasons = pa.array([rule.reason for rule in RULES])
    return reasons.take(pa.array(failed, mask=failed < 0)), decided


def measure(texts: pa.Array) -> dict[str, Floats]:
    """Every one of MEASURES for each of `texts`, an array of strings; a null is the empty text, and measures 0.

    Runs on the calling thread without the GIL; a text's values depend on nothing but the text.
    """
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise ValueError(f"texts are {texts.type}; expected string or large_string")
    if texts.null_count:
        texts = pc.fill_null(texts, "")
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return {name: np.zeros(len(texts)) for name in MEASURES}
    ends = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.frombuffer(data, dtype=np.uint8)
    for array in (ends, characters):
        array.flags.writeable = False  # one signature, so one compilation, whoever made the buffers
    values = _measure(characters, ends, _kinds())
    return {name: np.ascontiguousarray(values[:, column]) for column, name in enumerate(MEASURES)}


# What a character is, as bits. The lowest six number the Polish letters, whatever their case, from 1.
_FOLD = 0x3F
_OTHER_FOLD = 0x3F
_FOLDS = {letter: number for number, letter in enumerate("aąbcćdeęfghijklłmnńoópqrsśtuvwxyzźż", start=1)}
_SPACE = 1 << 6
_LETTER = 1 << 7
_LOWER = 1 << 8  # or of a script without case, as for _UPPER
_UPPER = 1 << 9
_DIGIT = 1 << 10
_PREFIX = 1 << 11  # a word of its own before a word
_SUFFIX = 1 << 12  # after one
_CURRENCY = 1 << 13  # after a digit
_INFIX = 1 << 14  # within one
_BETWEEN = 1 << 15  # between letters
_BRACKET = 1 << 16  # between a letter and a letter or a hyphen
_ACTIVE = 1 << 17  # any of these, or a dot: a word with none of them is one word
_SYMBOL = 1 << 18  # a word of nothing else is no word for the counts
_STOP = 1 << 19  # ends a sentence
_BREAK = 1 << 20  # ends a line
_RUN = 1 << 21  # part of a run of letters, for our own measures
_DIACRITIC = 1 << 22
_HOST = 1 << 23  # may stand in the name of a host

_KINDS = 0x20000  # characters beyond are ideographs and count as letters

_QUOTES = '"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧'
_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_MONEY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_HYPHENS = "-–—~"
# What datatrove counts as symbols, and as ends of a sentence in the scripts that Polish pages quote.
_SYMBOLS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…►∶━、。〈〉《》「」【】！％（），．１：；？～"
_STOPS = ".!?‼‽⁇⁈⁉。．！？｡؟۔।॥։፧።⸮"
_EMOTICONS = (
    "'' (*_*) (-8 (-: (-; (-_-) (._.) (: (; (= (>_<) (^_^) (o: )-: ): -_- -__- 0.0 8) 8-) 8-D :'( :') :'-( :'-) :( :(( "
    ":((( :() :) :)) :))) :* :-( :-(( :-((( :-) :-)) :-))) :-* :-/ :-0 :-3 :-> :-D :-O :-P :-X :-] :-o :-p :-x :-| :-} "
    ":/ :0 :1 :3 :> :D :O :P :X :] :o :o) :p :x :| :} ;) ;-) ;-D ;D ;_; <.< </3 <3 <33 <333 <space> =( =) =/ =3 =D =[ "
    '=] =| >.< >.> >:( >:o ><(((*> O.O V.V [-: [: [= \\") ]= o.0 o.O'
)
_LONGEST_EMOTICON = 7
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K %"
)
_LONGEST_UNIT = 4
_POLISH_PREFIXES = ("długo", "krótko", "jedno", "dwu", "trzy", "cztero")  # a word of their own with their hyphen


@functools.cache
def _kinds() -> Array:
    """The bits of every character below _KINDS, and last those of all others."""
    table = np.zeros(_KINDS + 1, dtype=np.uint32)
    for code in range(_KINDS):
        character = chr(code)
        kind = _FOLDS.get(character.lower(), _OTHER_FOLD)
        if character.isalpha():
            kind |= _LETTER | _RUN
            kind |= (not character.isupper()) * _LOWER | (not character.islower()) * _UPPER
        elif character.isspace():
            kind |= _SPACE
        elif character.isalnum() and not character.isdecimal():
            kind |= _RUN
        if unicodedata.category(character) == "So":
            kind |= _PREFIX | _SUFFIX | _INFIX
        if code >= 0xA1 and code <= 0xFFFF:
            kind |= _HOST
        table[code] = kind
    for bits, characters in (
        (_PREFIX | _SUFFIX, _QUOTES + _PUNCTUATION + "'"),
        (_PREFIX, _MONEY + "§%=—–"),
        (_CURRENCY, _MONEY),
        (_INFIX, _HYPHENS + "…"),
        (_BETWEEN, ",!?:<>=/"),
        (_BRACKET, _QUOTES + ")](["),
        (_SYMBOL, _SYMBOLS + _STOPS + "".join(map(chr, (*range(9), *range(11, 32), *range(127, 160))))),
        (_STOP, _STOPS),
        (_BREAK, "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"),
        (_DIACRITIC, POLISH_LETTERS),
        (_DIGIT, "0123456789"),
        (_HOST, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        (_ACTIVE, ".+"),
    ):
        table[[ord(character) for character in characters]] |= np.uint32(bits)
    active = table & np.uint32(_PREFIX | _SUFFIX | _CURRENCY | _INFIX | _BETWEEN | _BRACKET)
    table[active != 0] |= np.uint32(_ACTIVE)
    table[_KINDS] = _OTHER_FOLD | _LETTER | _RUN | _LOWER | _UPPER
    table.flags.writeable = False
    return table


_BASE = 0xD6E8FEB86659FD93  # of the polynomial hashes, modulo 2**64
_SPREAD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, Knuth's multiplicative hashing


def _hash(text: str) -> int:
    """The hash that the kernels give the characters of `text`."""
    value = 0
    for character in text:
        value = (value * _BASE + ord(character) + 1) % 2**64
    return value


_SET_BITS = 9  # 512 slots hold any of the three sets below, a quarter full at most


def _table(keys: Mapping[int, int]) -> Array:
    """Keys and their values for `_find`: [2, 512], open addressing."""
    table = np.zeros((2, 1 << _SET_BITS), dtype=np.uint64)
    for key, value in keys.items():
        slot = (key * _SPREAD % 2**64) >> (64 - _SET_BITS)
        while table[0, slot]:
            slot = (slot + 1) % (1 << _SET_BITS)
        table[:, slot] = key, value
    table.flags.writeable = False
    return table


def _function_words() -> Array:
    """By their letters, six bits each; a stop word's value is its own bit."""
    stop_words = sorted(STOP_WORDS)
    return _table(
        {
            functools.reduce(lambda key, letter: key << 6 | _FOLDS[letter], word, 0): 1 << stop_words.index(word)
            if word in STOP_WORDS
            else 0
            for word in sorted(FUNCTION_WORDS)
        }
    )


_FUNCTION_WORDS = _function_words()
_EMOTICON_HASHES = _table({_hash(emoticon): 1 for emoticon in _EMOTICONS.split()})
_UNIT_HASHES = _table({_hash(unit): 1 for unit in _UNITS.split()})
_B = np.uint64(_BASE)
_S = np.uint64(_SPREAD)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_SIX = np.uint64(6)
_POWERS = np.array([pow(_BASE, exponent, 2**64) for exponent in range(256)], dtype=np.uint64)
_SET_SHIFT = np.uint64(64 - _SET_BITS)
_PREFIX_HASHES = tuple(np.uint64(_hash(prefix)) for prefix in _POLISH_PREFIXES)
_PREFIX_INITIALS = tuple(sorted({ord(prefix[0]) for prefix in _POLISH_PREFIXES}))
_LONGEST_PREFIX = max(map(len, _POLISH_PREFIXES))
_HEAD = 16  # characters that tell most places of a text apart
_LONGEST_FUNCTION_WORD = max(map(len, FUNCTION_WORDS))
_DOT, _PLUS, _HYPHEN, _COLON, _SLASH, _AT, _UNDERSCORE = map(ord, ".+-:/@_")
_APOSTROPHE, _RIGHT_QUOTE, _ELLIPSIS, _BULLET, _HASH, _NEW_LINE, _RETURN = map(ord, "'’…•#\n\r")

_compiled = njit(cache=True, nogil=True)


@_compiled
def _between(stream: Array, start: int, end: int) -> Any:
    """The hash of the characters from `start` to `end`, where `stream[k]` is that of the first k characters."""
    power = _POWERS[(end - start) % len(_POWERS)]
    for _ in range((end - start) // len(_POWERS)):
        power *= _POWERS[-1] * _B
    return max(stream[end] - stream[start] * power, _ONE)  # 0 is an empty slot of a table


@_compiled
def _find(table: Array, key: Any) -> Any:
    """The slot of `key`, or -1."""
    slot = np.int64((key * _S) >> _SET_SHIFT)
    while table[0, slot] != _ZERO:
        if table[0, slot] == key:
            return slot
        slot = (slot + 1) & (table.shape[1] - 1)
    return -1


@_compiled
def _decode(data: Array, start: int, end: int, table: Array, codes: Array, kinds: Array) -> int:
    """The characters of the UTF-8 bytes from `start` to `end`, and what they are; returns how many."""
    count = 0
    while start < end:
        lead = np.int64(data[start])
        start += 1
        if lead >= 0xC0:
            more = 1 + (lead >= 0xE0) + (lead >= 0xF0)
            lead &= 0x3F >> more
            while more > 0 and start < end:
                lead = lead << 6 | data[start] & 0x3F
                start += 1
                more -= 1
        codes[count] = lead
        kinds[count] = table[lead if lead < _KINDS else _KINDS]
        count += 1
    return count


@_compiled
def _prefix(codes: Array, kinds: Array, low: int, high: int) -> int:
    """How many characters before a word are one of their own; 0 for none."""
    code = codes[low]
    if kinds[low] & _PREFIX:
        return 1
    if code == _PLUS:
        return 0 if low + 1 < high and kinds[low + 1] & _DIGIT else 1
    if code == _DOT:
        end = low
        while end < high and codes[end] == _DOT:
            end += 1
        return end - low if end - low > 1 else 0
    if code in _PREFIX_INITIALS:
        value = _ZERO
        for at in range(low, min(high, low + _LONGEST_PREFIX + 1)):
            if codes[at] == _HYPHEN:
                return at + 1 - low if value in _PREFIX_HASHES else 0
            value = value * _B + np.uint64(codes[at] + 1)
    return 0


@_compiled
def _suffix(codes: Array, kinds: Array, low: int, high: int) -> int:
    """How many characters after a word are one of their own; 0 for none."""
    last = high - 1
    if last < low:
        return 0
    code = codes[last]
    if kinds[last] & _SUFFIX or code == _DOT:
        doubled = code in (_APOSTROPHE, _RIGHT_QUOTE, _ELLIPSIS)
        return 2 if doubled and last > low and codes[last - 1] == code else 1
    if last > low and kinds[last - 1] & _DIGIT and (code == _PLUS or kinds[last] & _CURRENCY):
        return 1
    start = high
    while start > low and high - start <= _LONGEST_UNIT and not kinds[start - 1] & _DIGIT:
        start -= 1
    if start in (low, high) or not kinds[start - 1] & _DIGIT:
        return 0
    value = _ZERO
    for at in range(start, high):
        value = value * _B + np.uint64(codes[at] + 1)
    return high - start if _find(_UNIT_HASHES, value) >= 0 else 0


@_compiled
def _infix(codes: Array, kinds: Array, low: int, at: int, high: int) -> int:
    """How many characters from `at`, inside a word, are a word of their own; 0 for none."""
    kind = kinds[at]
    if kind & _INFIX:
        return 1
    before = kinds[at - 1] if at > low else 0
    after = kinds[at + 1] if at + 1 < high else 0
    if codes[at] == _DOT:
        end = at
        while end < high and codes[end] == _DOT:
            end += 1
        return end - at if end - at > 1 else 1 if before & (_LETTER | _DIGIT) and after & (_UPPER | _DIGIT) else 0
    if not before & _LETTER:
        return 0
    if kind & _BETWEEN and after & _LETTER:
        return 1
    return 1 if kind & _BRACKET and (after & _LETTER or (at + 1 < high and codes[at + 1] == _HYPHEN)) else 0


@_compiled
def _is_host(codes: Array, kinds: Array, at: int, high: int) -> bool:
    """Whether the name of a host begins here and an address ends the word: wronai.pl, wronai.pl:80, wronai.pl/a?b."""
    label = at
    dots = 0
    while at < high:
        if codes[at] == _DOT:
            if not 1 <= at - label <= 64 or not kinds[label] & _HOST or not kinds[at - 1] & _HOST:
                return False
            dots += 1
            label = at + 1
        elif not (kinds[at] & _HOST or codes[at] == _HYPHEN or codes[at] == _UNDERSCORE):
            break
        at += 1
    if not dots or not 2 <= at - label <= 63:
        return False
    for letter in range(label, at):
        if not kinds[letter] & _LOWER:
            return False
    if at < high and codes[at] == _COLON:
        port = at + 1
        at = port
        while at < high and kinds[at] & _DIGIT:
            at += 1
        if not 2 <= at - port <= 5:
            return False
    return at == high or codes[at] == _SLASH or codes[at] == ord("?") or codes[at] == _HASH


@_compiled
def _is_address(codes: Array, kinds: Array, low: int, high: int) -> bool:
    """Whether a word is the address of a page or a mailbox, which stays whole."""
    if _is_host(codes, kinds, low, high):
        return True
    at = low
    while at < high and (kinds[at] & (_LETTER | _DIGIT) or codes[at] in (_UNDERSCORE, _PLUS, _HYPHEN, _DOT)):
        at += 1
    scheme = at - low >= 2 and at + 2 < high and codes[at] == _COLON and codes[at + 1] == codes[at + 2] == _SLASH
    if scheme and _is_host(codes, kinds, at + 3, high):
        return True
    for at in range(low + 1, high):  # noqa: SIM110 numba compiles no generator
        if codes[at] == _AT and _is_host(codes, kinds, at + 1, high):
            return True
    return False


@_compiled
def _merge_emoticons(codes: Array, starts: Array, ends: Array, first: int, count: int) -> int:
    """Make one word of the words from `first` on that stand side by side and are an emoticon; returns the new count."""
    kept = first
    at = first
    while at < count:
        best = at + 1
        after = at
        value = _ZERO
        while after < count and ends[after] - starts[at] <= _LONGEST_EMOTICON:
            for character in range(starts[after], ends[after]):
                value = value * _B + np.uint64(codes[character] + 1)
            after += 1
            if after > at + 1 and _find(_EMOTICON_HASHES, value) >= 0:
                best = after
        starts[kept] = starts[at]
        ends[kept] = ends[best - 1]
        kept += 1
        at = best
    return kept


@_compiled
def _split(
    codes: Array,
    kinds: Array,
    low: int,
    high: int,
    digits: bool,
    starts: Array,
    ends: Array,
    count: int,
    stack: Array,
) -> int:
    """Add the words of what stands between two spaces; returns the new count. The order of the steps is spaCy's."""
    first = count
    stacked = 0
    while low < high:
        before = _prefix(codes, kinds, low, high)
        after = _suffix(codes, kinds, low + before, high) if digits or kinds[high - 1] & _ACTIVE else 0
        if not before and not after:
            break
        if before:
            starts[count] = low
            low += before
            ends[count] = low
            count += 1
        if after:
            stack[stacked] = high
            stacked += 1
            high -= after
    if low < high:
        start = at = low
        while at < high:
            width = _infix(codes, kinds, low, at, high) if kinds[at] & _ACTIVE else 0
            if width and at > low:
                if start == low and _is_address(codes, kinds, low, high):
                    break
                if at > start:
                    starts[count] = start
                    ends[count] = at
                    count += 1
                start = at + width
                starts[count] = at
                ends[count] = start
                count += 1
            at += max(width, 1)
        if start < high:
            starts[count] = start
            ends[count] = high
            count += 1
    while stacked:
        stacked -= 1
        starts[count] = high
        high = stack[stacked]
        ends[count] = high
        count += 1
    return _merge_emoticons(codes, starts, ends, first, count) if count - first > 1 else count


@_compiled
def _words(codes: Array, kinds: Array, size: int, starts: Array, ends: Array, stack: Array) -> int:
    """Where the words of a text start and end; returns how many there are."""
    count = 0
    low = 0
    some = before = 0
    every = -1
    for at in range(size + 1):
        if at < size and not kinds[at] & _SPACE:
            before = some
            some |= kinds[at]
            every &= kinds[at]
            continue
        if at > low:
            last = at - 1
            if at == low + 1 or not (some & _ACTIVE or (some & _DIGIT and not every & _DIGIT)):
                starts[count] = low
                ends[count] = at
                count += 1
            elif not before & (_ACTIVE | _DIGIT) and (kinds[last] & _SUFFIX or codes[last] == _DOT):
                starts[count] = low
                ends[count] = starts[count + 1] = last
                ends[count + 1] = at
                count += 2
            else:
                count = _split(codes, kinds, low, at, some & _DIGIT != 0, starts, ends, count, stack)
        low = at + 1
        some = 0
        every = -1
    return count


@_compiled
def _shift(size: int) -> np.uint64:
    """Of the smallest table that is at most half full with `size` keys: 64 less its number of bits."""
    bits = 4
    while 1 << bits < 2 * size:
        bits += 1
    return np.uint64(64 - bits)


@_compiled
def _top(
    words: Array,
    lengths: Array,
    count: int,
    characters: int,
    keys: Array,
    repeated: Array,
    slots: Array,
    table: Array,
    times: Array,
    firsts: Array,
    out: Array,
) -> None:
    """The share of the characters that the most frequent 2-, 3- and 4-gram takes, spaces within it included."""
    for at in range(count):
        keys[at] = words[at]
        repeated[at] = True
    for n in range(2, 5):
        grams = count - n + 1
        if grams < 1:
            return
        # A gram comes twice only where both shorter ones in it do.
        candidates = 0
        for at in range(grams):
            keys[at] = keys[at] * _S + words[at + n - 1]
            repeated[at] = repeated[at] and repeated[at + 1]
            candidates += repeated[at]
        shift = _shift(candidates)
        size = np.int64(_ONE << (np.uint64(64) - shift))
        table[:size] = _ZERO
        most = 1
        first = 0
        for at in range(grams):
            if not repeated[at]:
                continue
            key = max(keys[at], _ONE)
            slot = np.int64((key * _S) >> shift)
            while table[slot] != _ZERO and table[slot] != key:
                slot = (slot + 1) & (size - 1)
            slots[at] = slot
            if table[slot] == _ZERO:
                table[slot] = key
                times[slot] = 1
                firsts[slot] = at
                continue
            times[slot] += 1
            if times[slot] > most or (times[slot] == most and firsts[slot] < first):
                most = times[slot]
                first = firsts[slot]
        for at in range(grams):
            repeated[at] = repeated[at] and times[slots[at]] > 1
        out[n - 2] = (lengths[first + n] - lengths[first] + n - 1) * most / characters


@_compiled
def _duplicates(
    stream: Array,
    lengths: Array,
    count: int,
    characters: int,
    repeated: Array,
    places: Array,
    table: Array,
    firsts: Array,
    out: Array,
) -> None:
    """The share of the characters in n-grams that came before, n from 5 to 10; after one the walk goes on behind it.

    Grams are the same when their characters without spaces are. `stream[k]` is the hash of the first k characters of
    all words. Few places repeat, so first those are found whose next _HEAD characters stand elsewhere too.
    """
    shift = _shift(count)
    mask = np.int64(_ONE << (np.uint64(64) - shift)) - 1
    table[: mask + 1] = _ZERO
    for at in range(count):
        repeated[at] = lengths[at] + _HEAD > lengths[count]
        if repeated[at]:
            continue
        key = _between(stream, lengths[at], lengths[at] + _HEAD)
        slot = np.int64((key * _S) >> shift)
        while table[slot] != _ZERO and table[slot] != key:
            slot = (slot + 1) & mask
        if table[slot] == key:
            repeated[at] = repeated[firsts[slot]] = True
        else:
            table[slot] = key
            firsts[slot] = at
    candidates = 0
    for at in range(count - 4):
        if repeated[at] or lengths[at + 5] - lengths[at] < _HEAD:
            places[candidates] = at
            candidates += 1
    shift = _shift(candidates)
    mask = np.int64(_ONE << (np.uint64(64) - shift)) - 1
    for n in range(5, 11):
        table[: mask + 1] = _ZERO
        found = 0
        behind = 0
        for candidate in range(candidates):
            at = places[candidate]
            if at < behind or at + n > count:
                continue
            length = lengths[at + n] - lengths[at]
            key = _between(stream, lengths[at], lengths[at + n])
            slot = np.int64((key * _S) >> shift)
            while table[slot] != _ZERO and table[slot] != key:
                slot = (slot + 1) & mask
            if table[slot] == key:
                found += length
                behind = at + n
            else:
                table[slot] = key
        out[n - 5] = found / characters


@_compiled
def _lines(codes: Array, kinds: Array, size: int, table: Array, out: Array) -> int:
    """The measures of lines, from share_bullet_lines on; returns how many new lines there are."""
    new_lines = lines = bullets = ellipses = start = 0
    for at in range(size + 1):
        if at < size:
            if not kinds[at] & _BREAK:
                continue
            new_lines += codes[at] == _NEW_LINE
            if codes[at] == _NEW_LINE and at and codes[at - 1] == _RETURN:
                start = at + 1
                continue
        elif start == size:
            break
        low = start
        high = at
        while low < high and kinds[low] & _SPACE:
            low += 1
        while low < high and kinds[high - 1] & _SPACE:
            high -= 1
        lines += 1
        if low < high:
            bullets += codes[low] == _BULLET or codes[low] == _HYPHEN
            ellipses += codes[high - 1] == _ELLIPSIS or (
                high - low > 2 and codes[high - 1] == codes[high - 2] == codes[high - 3] == _DOT
            )
        start = at + 1
    shift = _shift(new_lines + 1)
    mask = np.int64(_ONE << (np.uint64(64) - shift)) - 1
    table[: mask + 1] = _ZERO
    # Pieces are what runs of new lines part, of which the first and the last may be empty; filled are those with more
    # than white space.
    pieces = filled = stops = again = characters_again = start = 0
    value = _S  # so that no line hashes as the empty one
    blank = True
    for at in range(size + 1):
        if at < size and codes[at] != _NEW_LINE:
            value = value * _B + np.uint64(codes[at] + 1)
            blank = blank and kinds[at] & _SPACE != 0
            continue
        if at > start or at == 0 or at == size:
            pieces += 1
            key = max(value, _ONE)
            slot = np.int64((key * _S) >> shift)
            while table[slot] != _ZERO and table[slot] != key:
                slot = (slot + 1) & mask
            if table[slot] == key:
                again += 1
                characters_again += 0 if blank else at - start
            table[slot] = key
            if not blank:
                filled += 1
                stops += kinds[at - 1] & _STOP != 0
        start = at + 1
        value = _S
        blank = True
    out[0] = bullets / max(lines, 1)
    out[1] = ellipses / max(lines, 1)
    out[2] = stops / max(filled, 1)
    out[4] = again / pieces
    out[5] = characters_again / max(size - new_lines, 1)
    return new_lines


@_compiled
def _runs(codes: Array, kinds: Array, size: int, out: Array) -> None:
    """The measures of runs of letters: the shares of diacritics and of function words, and the distinct stop words."""
    runs = letters = diacritics = functional = length = 0
    stop_words = key = _ZERO
    for at in range(size + 1):
        kind = kinds[at] if at < size else 0
        if kind & _RUN:
            diacritics += kind & _DIACRITIC != 0
            key = key << _SIX | np.uint64(kind & _FOLD)
            length += 1
            continue
        if not length:
            continue
        joins = at + 1 < size and kinds[at + 1] & _RUN
        if joins and (codes[at] == _HYPHEN or codes[at] == _APOSTROPHE or codes[at] == _RIGHT_QUOTE):
            key = key << _SIX | np.uint64(_FOLD)
            length += 1
            continue
        runs += 1
        letters += length
        if length <= _LONGEST_FUNCTION_WORD:
            slot = _find(_FUNCTION_WORDS, key)
            if slot >= 0:
                functional += 1
                stop_words |= _FUNCTION_WORDS[1, slot]
        key = _ZERO
        length = 0
    distinct = 0
    while stop_words:
        distinct += 1
        stop_words &= stop_words - _ONE
    out[0] = diacritics / max(letters, 1)
    out[1] = functional / max(runs, 1)
    out[2] = distinct


@_compiled
def _most_words(codes: Array, kinds: Array, size: int) -> int:
    """No text of these characters has more words, or more pieces between new lines: what the scratch must hold."""
    edges = 2
    for at in range(size):
        edges += 2 * (kinds[at] & _ACTIVE != 0) + (kinds[at] & (_SPACE | _DIGIT) != 0)
    return min(edges, size + 2)


@_compiled
def _measure(data: Array, offsets: Array, table: Array) -> Array:
    """[texts, MEASURES] of the texts whose UTF-8 lies in `data` between `offsets`."""
    texts = len(offsets) - 1
    out = np.zeros((texts, _MEASURES))
    longest = 0
    for text in range(texts):
        longest = max(longest, offsets[text + 1] - offsets[text])
    codes = np.empty(longest, np.int32)
    kinds = np.empty(longest, np.int32)
    stream = np.empty(longest + 1, np.uint64)
    room = 0
    starts = ends = stack = lengths = slots = times = firsts = np.empty(0, np.int32)
    repeated = np.empty(0, np.bool_)
    words = grams = seen = np.empty(0, np.uint64)
    for text in range(texts):
        size = _decode(data, offsets[text], offsets[text + 1], table, codes, kinds)
        if not size:
            continue
        most = _most_words(codes, kinds, size)
        if most > room:
            room = most
            starts, ends, stack = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
            lengths, slots = np.empty(room + 1, np.int32), np.empty(room, np.int32)
            repeated = np.empty(room, np.bool_)
            words, grams = np.empty(room, np.uint64), np.empty(room, np.uint64)
            slots_of_table = np.int64(_ONE << (np.uint64(64) - _shift(room)))
            seen = np.empty(slots_of_table, np.uint64)
            times, firsts = np.empty(slots_of_table, np.int32), np.empty(slots_of_table, np.int32)
        row = out[text]
        _runs(codes, kinds, size, row[1:])
        new_lines = _lines(codes, kinds, size, seen, row[7:])
        count = _words(codes, kinds, size, starts, ends, stack)
        if not count:
            continue
        proper = proper_characters = alphabetic = 0
        value = _ZERO
        stream[0] = value
        length = 0
        lengths[0] = length
        for word in range(count):
            some = 0
            every = -1
            for at in range(starts[word], ends[word]):
                value = value * _B + np.uint64(codes[at] + 1)
                length += 1
                stream[length] = value
                some |= kinds[at]
                every &= kinds[at]
            lengths[word + 1] = length
            words[word] = _between(stream, lengths[word], length)
            alphabetic += some & _LETTER != 0
            if not every & _SYMBOL:
                proper += 1
                proper_characters += ends[word] - starts[word]
        hashes = ellipses = 0
        at = 0
        while at < size:
            hashes += codes[at] == _HASH
            ellipses += codes[at] == _ELLIPSIS
            if codes[at] == _DOT and at + 2 < size and codes[at + 1] == codes[at + 2] == _DOT:
                ellipses += 1
                at += 2
            at += 1
        row[0] = proper
        row[4] = proper_characters / max(proper, 1)
        row[5] = alphabetic / count
        row[6] = max(hashes, ellipses) / count
        row[10] = new_lines / count
        _top(words, lengths, count, size, grams, repeated, slots, seen, times, firsts, row[_TOP:])
        _duplicates(stream, lengths, count, size, repeated, slots, seen, firsts, row[_DUPLICATE:])
    return out
