"""The measures of text by counting, against a plain Python reference, and the rules on them."""

import itertools
import re
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wronai import params, quality

WEB = params.load(Path(__file__).parent.parent / "params.yaml").clean.rules.web
OFF = params.Rules.model_validate(dict.fromkeys(params.Rules.model_fields))
ELSEWHERE = {"share_boilerplate": 0.0, "language_confidence": 1.0, "share_silesian": 0.0, "share_kashubian": 0.0}

# The reference: spaCy's rules for Polish and datatrove's measures, a word and a list at a time.
_MARKS = set(quality._QUOTES + quality._PUNCTUATION + "'")
_LOWER = "".join(c for c in map(chr, range(0x10000)) if c.isalpha() and not c.isupper())
_HOST = r"[A-Za-z0-9\u00a1-\uffff]"
_ADDRESS = re.compile(
    rf"(?:[\w+.-]{{2,}}://)?(?:\S+@)?(?:(?:{_HOST}(?:{_HOST}|[_-]){{0,62}})?{_HOST}\.)+"
    rf"[{_LOWER}]{{2,63}}(?::[0-9]{{2,5}})?(?:[/?#]\S*)?"
)
_BEFORE = re.compile(r"(?:długo|krótko|jedno|dwu|trzy|cztero)-|\.\.+|\+(?![0-9])")
_AFTER_DIGIT = re.compile(r"(?<=[0-9])[^0-9]+$")
_DIGITS = set("0123456789")
_STOPS = tuple(quality._STOPS)
_SYMBOLS = {*quality._SYMBOLS, *quality._STOPS, *map(chr, (*range(9), *range(11, 32), *range(127, 160)))}


def _is_icon(character: str) -> bool:
    return unicodedata.category(character) == "So"


def _length_before(word: str) -> int:
    if word[0] in _MARKS or word[0] in quality._MONEY + "§%=—–" or _is_icon(word[0]):
        return 1
    match = _BEFORE.match(word)
    return match.end() if match else 0


def _length_after(word: str) -> int:
    if word[-2:] in ("''", "’’", "……"):
        return 2
    if word and (word[-1] in _MARKS or word[-1] == "." or _is_icon(word[-1])):
        return 1
    match = _AFTER_DIGIT.search(word)
    return len(match[0]) if match and match[0] in {"+", *quality._MONEY, *quality._UNITS.split()} else 0


def _length_inside(word: str, at: int) -> int:
    dots = re.match(r"\.\.+", word[at:])
    if dots:
        return dots.end()
    here, before, after = word[at], word[at - 1 : at] if at else "", word[at + 1 : at + 2]
    if here in quality._HYPHENS + "…" or _is_icon(here):
        return 1
    if here == ".":
        starts = (after.isalpha() and not after.islower()) or after in _DIGITS
        return int(starts and (before.isalpha() or before in _DIGITS))
    if not before.isalpha():
        return 0
    inside = here in ",!?:<>=/" and after.isalpha()
    return int(inside or (here in quality._QUOTES + ")]([" and (after.isalpha() or after == "-")))


def _parts(word: str) -> list[str]:
    """The words of what stands between two spaces."""
    head, tail = [], []
    while word:
        before = _length_before(word)
        after = _length_after(word[before:])
        if not before and not after:
            break
        head += [word[:before]] if before else []
        tail += [word[len(word) - after :]] if after else []
        word = word[before : len(word) - after]
    middle, start, at = [], 0, 0
    while at < len(word) and not _ADDRESS.fullmatch(word):
        width = _length_inside(word, at)
        if width and at:
            middle += [word[start:at], word[at : at + width]]
            start = at + width
        at += max(width, 1)
    parts = [part for part in (*head, *middle, word[start:], *reversed(tail)) if part]
    merged = []
    while parts:
        takes = [n for n in range(2, 8) if len(parts) >= n and "".join(parts[:n]) in quality._EMOTICONS.split()]
        merged.append("".join(parts[: max(takes, default=1)]))
        parts = parts[max(takes, default=1) :]
    return merged


def slow_words(text: str) -> list[str]:
    return [part for word in text.split() for part in _parts(word)]


def _top(words: list[str], n: int) -> int:
    grams = Counter(" ".join(words[at : at + n]) for at in range(len(words) - n + 1))
    return max((len(gram) * times for gram, times in grams.most_common(1)), default=0)


def _walk(words: list[str], n: int) -> int:
    seen: set[str] = set()
    at = repeated = 0
    while at + n <= len(words):
        gram = "".join(words[at : at + n])
        if gram in seen:
            repeated += len(gram)
            at += n
        else:
            seen.add(gram)
            at += 1
    return repeated


def slow_measures(text: str) -> dict[str, float]:
    """What `quality.measure` makes of one text."""
    size = max(len(text), 1)
    words = slow_words(text)
    count = max(len(words), 1)
    proper = [word for word in words if not set(word) <= _SYMBOLS]
    runs = re.findall(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*", text.lower())
    lines = [line.strip() for line in text.splitlines()]
    pieces = re.split("\n+", text) if text else []
    filled = [line for line in text.split("\n") if line.strip()]
    values: dict[str, float] = {
        "words": len(proper),
        "share_diacritics": len(re.findall(f"[{quality.POLISH_LETTERS}]", text)) / max(sum(map(len, runs)), 1),
        "share_function_words": sum(run in quality.FUNCTION_WORDS for run in runs) / max(len(runs), 1),
        "distinct_stop_words": len(quality.STOP_WORDS.intersection(runs)),
        "mean_word_length": sum(map(len, proper)) / max(len(proper), 1),
        "share_alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) / count,
        "symbols_per_word": max(text.count("#"), text.count("...") + text.count("…")) / count if words else 0,
        "share_bullet_lines": sum(line.startswith(("•", "-")) for line in lines) / max(len(lines), 1),
        "share_ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / max(len(lines), 1),
        "share_punctuated_lines": sum(line.endswith(_STOPS) for line in filled) / max(len(filled), 1),
        "new_lines_per_word": text.count("\n") / count if words else 0,
        "share_duplicate_lines": (len(pieces) - len(set(pieces))) / max(len(pieces), 1),
        "share_duplicate_line_characters": (sum(map(len, filled)) - sum(map(len, set(filled))))
        / max(len(text.replace("\n", "")), 1),
    }
    values |= {f"share_top_{n}gram": _top(words, n) / size for n in (2, 3, 4)}
    return values | {f"share_duplicate_{n}grams": _walk(words, n) / size for n in range(5, 11)}


def measured(*texts: str | None) -> list[dict[str, float]]:
    values = quality.measure(pa.array(texts, pa.large_string()))
    return [{name: float(column[row]) for name, column in values.items()} for row in range(len(texts))]


def kernel_words(text: str) -> list[str]:
    data = np.frombuffer(text.encode(), np.uint8)
    codes, kinds, starts, ends, stack = np.empty((5, len(data) + 2), np.int32)
    size = quality._decode(data, 0, len(data), quality._kinds(), codes, kinds)
    count = quality._words(codes, kinds, size, starts, ends, stack)
    return [text[start:end] for start, end in zip(starts[:count], ends[:count], strict=True)]


# What spaCy 3.8 makes of them.
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ala, kot.", "Ala|,|kot|."),
        ("„Tak” (nie)...", "„|Tak|”|(|nie|)|.|.|."),
        ("...no i dwu-osobowy biało-czerwony", "...|no|i|dwu-|osobowy|biało|-|czerwony"),
        ("Poszedł.Wrócił o 12.30 i 5,5", "Poszedł|.|Wrócił|o|12|.|30|i|5,5"),
        ("100km 20% 5zł 3$ +48 +a 5+", "100|km|20|%|5zł|3|$|+48|+|a|5|+"),
        ("https://wronai.pl/a,b?c=d-e kot@dom.pl, a.b", "https://wronai.pl/a,b?c=d-e|kot@dom.pl|,|a.b"),
        ("super:) no :-) (8)", "super|:)|no|:-)|(|8)"),
        ("raz/dwa trzy(cztery) a:b -x- ''", "raz|/|dwa|trzy|(|cztery|)|a|:|b|-x|-|''"),
        ("serce❤dom 😀😀 20°C", "serce|❤|dom|😀|😀|20|°|C"),
        ("\n \t\u00a0raz\u3000dwa ", "raz|dwa"),
    ],
)
def test_words_are_those_of_spacy(text: str, words: str) -> None:
    assert kernel_words(text) == words.split("|")
    assert slow_words(text) == words.split("|")


SNIPPETS = re.findall(
    r"\S+",
    """
    w i na z się nie to kot dom żółw Łódź źdźbło W NIE Się biało-czerwony d'Artagnan dwu-osobowy 1999 12.30 5zł 100km
    20% 3,5 1 11 111 +48 x2 wronai.pl http://a.pl/b,c x@y.pl a.B a.b C++ :) ;-) :( 8) ... … .. . , ; : ! ? ( ) [ ] - – —
    ' '' ’ „ ” " / \\ # ## • * _ & % § € $ + = < > | ~ ° ❤ 😀 🇵🇱 ä ё мир 漢字 𠀀 عربي ² ½ \u0301 \u200b \0
    """,
)
GAPS = ["", "", " ", " ", " ", "\n", "\n\n", "\r\n", "\r", "\t", "\u00a0", "\u2028", "\x0b", "\x1c", " \n "]
PIECES = st.sampled_from([snippet + gap for snippet, gap in itertools.product(SNIPPETS, GAPS)])
TEXTS = st.one_of(
    st.lists(PIECES, max_size=60).map("".join),
    st.lists(st.sampled_from(["kot ", "dom, ", "1 ", "11 ", "a", "\n", "- "]), max_size=120).map("".join),
    st.tuples(st.lists(PIECES, max_size=12).map("".join), st.integers(1, 6)).map(lambda made: made[0] * made[1]),
    st.text(st.characters(codec="utf-8", max_codepoint=0x1FFFF, exclude_characters="İ"), max_size=40),
)


# Beyond U+1FFFF everything counts as a letter, and in lower case İ is two characters, which ours does not count.
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_every_measure_equals_that_of_plain_python_on_any_text(texts: list[str]) -> None:
    for text, values in zip(texts, measured(*texts), strict=True):
        assert kernel_words(text) == slow_words(text)
        assert values == pytest.approx(slow_measures(text), rel=1e-12)


def test_the_walk_goes_on_behind_a_repeated_gram() -> None:
    # 5-grams of a a a a a a a a a a: the second repeats, six to ten are passed over, and no five are left but these.
    (values,) = measured(" ".join("a" * 12))
    assert values["share_duplicate_5grams"] == 10 / 23
    assert values["share_duplicate_6grams"] == 6 / 23
    assert values["share_duplicate_10grams"] == 10 / 23


def test_the_first_seen_of_equally_frequent_grams_counts_with_the_space_within() -> None:
    (values,) = measured("ab c ab c długie słowo długie słowo")
    assert values["share_top_2gram"] == 2 * len("ab c") / 35
    assert values["share_top_4gram"] == len("ab c ab c") / 35


def test_grams_that_differ_in_one_character_are_two() -> None:
    (values,) = measured("5zł 12.30 5zł 11")
    assert values["share_top_2gram"] == len("5zł 12") / 16


def test_grams_are_the_same_when_their_characters_are() -> None:
    (values,) = measured("1 11 1 11 1 x 11 1 1 1 1 y")
    assert values["share_duplicate_5grams"] == 0
    (values,) = measured("1 11 1 11 1 x 11 1 1 1 11 y")
    assert values["share_duplicate_5grams"] == 7 / 27


@pytest.mark.parametrize("text", [None, "", " ", "\n", "\n\n\n", "\u00a0\t \r\n"])
def test_a_text_without_words_measures_no_word_and_is_too_short(text: str | None) -> None:
    (values,) = measured(text)
    assert values["words"] == values["mean_word_length"] == values["share_top_2gram"] == 0
    reasons, decided = quality.judge(_column(values), WEB)
    assert reasons.to_pylist() == ["too_short"] and decided.tolist() == [0.0]


@pytest.mark.parametrize("text", ["żółw" * 250_000, "!" * 300_000, "@.a" * 100_000, "\n" * 300_000, "1a" * 150_000])
def test_long_texts_without_a_space_are_measured_at_once(text: str) -> None:
    (values,) = measured(text)
    assert all(np.isfinite(value) for value in values.values())
    assert values["new_lines_per_word"] == 0


def test_a_text_measures_the_same_in_any_company_slice_type_and_thread() -> None:
    texts = [f"Zdanie numer {n}, a w nim kot.\n" * (n % 7) + "x " * (n * n % 91) for n in range(200)]
    texts[3] = "słowo " * 20_000
    alone = [measured(text)[0] for text in texts]
    assert measured(*texts) == alone
    assert measured(*reversed(texts)) == alone[::-1]
    array = pa.array(["przedtem", *texts, None])
    assert _rows(quality.measure(array.slice(1, 200))) == alone
    assert _rows(quality.measure(array.cast(pa.large_string())[1:201])) == alone
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(quality.measure, [array.slice(1 + at, 10) for at in range(0, 200, 10)])
        assert [row for part in parts for row in _rows(part)] == alone


@pytest.mark.parametrize("damage", [b"\xc5", b"kot \xf0\x9f", b"\xff\xfe\xfd", b"\xbf\xbf dom", b"\xf7\xbf\xbf\xbf"])
def test_bytes_that_are_no_utf8_are_measured_within_their_bounds(damage: bytes) -> None:
    offsets = pa.py_buffer(np.array([0, len(damage), len(damage) + 3], np.int64).tobytes())
    array = pa.Array.from_buffers(pa.large_string(), 2, [None, offsets, pa.py_buffer(damage + b"kot")])
    assert _rows(quality.measure(array))[1] == measured("kot")[0]


def test_what_is_no_text_is_refused_with_its_type() -> None:
    with pytest.raises(ValueError, match="texts are int64; expected string or large_string"):
        quality.measure(pa.array([1, 2]))


def _rows(values: dict[str, Any]) -> list[dict[str, float]]:
    return [dict(zip(values, map(float, row), strict=True)) for row in zip(*values.values(), strict=True)]


def _column(*rows: dict[str, float]) -> dict[str, Any]:
    return {name: np.array([(row | ELSEWHERE)[name] for row in rows]) for name in (*ELSEWHERE, *rows[0])}


def test_every_bound_of_a_text_has_one_rule_and_every_measure_is_judged() -> None:
    bounds = [rule.bound for rule in quality.RULES]
    assert sorted([*bounds, "min_paragraph_confidence"]) == sorted(params.Rules.model_fields)
    assert {rule.measure for rule in quality.RULES} == {*quality.MEASURES, *ELSEWHERE}
    assert len({rule.reason for rule in quality.RULES}) == len(quality.RULES)


def test_the_first_rule_that_fails_gives_the_reason_and_its_value() -> None:
    good = measured(PAGE)[0] | ELSEWHERE
    rows = [good, good | {"words": 3.0, "share_top_2gram": 0.9}, good | {"share_top_2gram": 0.9}, good | {"words": 2e5}]
    reasons, decided = quality.judge(_column(*rows), WEB)
    assert reasons.to_pylist() == [None, "too_short", "frequent_2gram", "too_long"]
    assert np.array_equal(decided, [np.nan, 3.0, 0.9, 2e5], equal_nan=True)


def test_a_value_on_the_bound_passes_and_nan_fails_nothing() -> None:
    rules = OFF.model_copy(update={"min_words": 20, "max_share_silesian": 0.05})
    reasons, _ = quality.judge(
        {"words": np.array([20.0, 19.0, np.nan]), "share_silesian": np.array([0.05, 0.0, np.nan])}, rules
    )
    assert reasons.to_pylist() == [None, "too_short", None]


def test_a_rule_that_is_off_needs_no_measure_and_one_that_is_on_names_what_is_missing() -> None:
    values = {"words": np.array([1.0])}
    assert quality.judge(values, OFF)[0].to_pylist() == [None]
    with pytest.raises(ValueError, match="min_language_confidence is set, and language_confidence was not measured"):
        quality.judge(values, OFF.model_copy(update={"min_language_confidence": 0.5}))


PAGE = (
    "Wczoraj po południu poszliśmy nad rzekę, bo było ciepło i nikt nie chciał siedzieć w domu. Ojciec niósł koszyk z "
    "jedzeniem, a siostra zabrała książkę, której nie otworzyła ani razu.\nNa łące za mostem spotkaliśmy sąsiada, "
    "który od lat hoduje pszczoły. Opowiedział nam, jak rój uciekł mu w maju i jak szukał go przez trzy dni w lesie.\n"
    "Wróciliśmy dopiero wieczorem, zmęczeni i zadowoleni, a w kuchni czekała już zupa, po którą babcia wstała rano.\n"
)
WORDS = PAGE.split()
BAD = {
    "too_short": "Zaraz wracam do was.",
    "no_diacritics": PAGE.translate(str.maketrans("ąćęłńóśźżŁ", "acelnoszzL")),
    "keyword_page": "Tani węgiel, opał, piec, kocioł. Pellet, brykiet, drewno, koks, miał, ekogroszek od ręki. Skład, "
    "transport, wysyłka, hurt, detal, promocja, rabat, faktura, raty na telefon. Gorące ceny, łatwy zakup. " * 3,
    "few_stop_words": "Tak bardzo chciałbym wiedzieć, gdzie są moje książki. Może leżą pod łóżkiem, może ktoś zabrał "
    "je już dawno, może nigdy ich tam było mało. Jak mam je znaleźć? " * 3,
    "short_words": PAGE + " ".join("żebyś"[n % 5] for n in range(200)) + ".",
    "long_words": "Konstantynopolitańczykowianeczka w poprzeczkowaniu i niepełnosprawnościach " * 3
    + PAGE[:30]
    + "dźwiękonaśladowczość " * 60,
    "few_letters": PAGE + " ".join(f"{n}7{n * n}" for n in range(100)) + ".",
    "many_symbols": PAGE.replace(", ", " # ").replace("niósł", "#niósł").replace(" i ", " #i ").replace(" w ", " #w "),
    "bullet_list": "\n".join(f"- {sentence.strip()}." for sentence in PAGE.split(".")[:-1]),
    "cut_lines": PAGE.replace(".\n", "...\n"),
    "few_sentence_ends": PAGE.replace(".\n", "\n"),
    "many_new_lines": "\n".join(" ".join(WORDS[at : at + 4]) for at in range(0, len(WORDS), 4)),
    "repeated_lines": PAGE + PAGE.split("\n")[0] + ".\n" + "Tak.\n" * 4,
    "repeated_line_characters": PAGE + PAGE.split("\n")[0],
    "frequent_2gram": PAGE.replace(" i ", " przeciwpożarowy hydrant ").replace(", ", " przeciwpożarowy hydrant "),
    "frequent_3gram": PAGE.replace(", ", " i w odróżnieniu, "),
    "frequent_4gram": PAGE.replace(", ", " bo tak po prostu, "),
    "repeated_5grams": PAGE + "".join(f"{' '.join(WORDS[at : at + 5])} {at} " for at in range(0, 40, 6)) + ".",
    "repeated_7grams": PAGE + "Potem " + " ".join(WORDS[:20]) + ".",
}


def test_a_page_worth_training_on_passes_every_rule() -> None:
    reasons, _ = quality.judge(_column(measured(PAGE)[0]), WEB)
    assert reasons.to_pylist() == [None]


@pytest.mark.parametrize("reason", BAD)
def test_each_rule_drops_the_text_made_for_it(reason: str) -> None:
    reasons, decided = quality.judge(_column(measured(BAD[reason])[0]), WEB)
    rule = next(rule for rule in quality.RULES if rule.reason == reason)
    assert reasons.to_pylist() == [reason]
    assert decided[0] == measured(BAD[reason])[0][rule.measure]
