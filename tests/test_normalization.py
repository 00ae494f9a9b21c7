import random
import re
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prose import PROSE, VERSE

from wronai import normalization
from wronai.normalization import POLISH_LETTERS

examples = settings(derandomize=True, deadline=None, max_examples=200)
ODD = (
    "aąż .-–\n\r\t\x00\x0b\x85\u00a0\u00ad\u0301\u0328\u034f\u2009\u200b\u200d\u200f\u2028\ufdd0\ufe0f\ufeff\ud800"
    "\ue000\U000f0000"
)
texts = st.text(st.one_of(st.sampled_from(ODD), st.characters(codec=None, categories=None)), max_size=60)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("z\u0307o\u0301łw", "żółw"),
        ("ba\u00adców\u00adka", "bacówka"),
        ("ba\u00ad\n  cówka", "bacówka"),
        ("ba\u00ad\u00a0\r\ncówka", "bacówka"),
        ("od¬głos po¬ \n chodu, a ¬b i 2¬x zostają", "odgłos pochodu, a ¬b i 2¬x zostają"),
        ("w\u00a0lesie,\t  na\u2009łące", "w lesie, na łące"),
        ("jeden\r\ndwa\rtrzy\u2028cztery\x85pięć", "jeden\ndwa\ntrzy\ncztery\npięć"),
        ("wers \n\n\n\n wers", "wers\n\nwers"),
        ("\ufeffa\x00b\u200bc\u202ed\x9f", "abcd"),
        ("o\u200b\u0301", "ó"),
        ("\ud800a\ue000b\uffffc\U0010fffed\u200fe\u200df\u061cg\U000e0041\U0001fffeh", "abcdefgh"),
        ("سلام „שלום” 😀 ∑ ½", "سلام „שלום” 😀 ∑ ½"),
        ("„Tak” – rzekł…", "„Tak” – rzekł…"),
    ],
)
def test_characters_and_white_space_get_one_form(found: str, expected: str) -> None:
    assert normalization.normalize(found) == expected


def test_many_kinds_of_invisible_characters_go_as_well_as_few() -> None:
    kinds = "".join(map(chr, [*range(0x200B, 0x2010), *range(0x2060, 0x2070), *range(0xE000, 0xE020)]))
    assert normalization.normalize("".join(f"{kind}ż\u2003" for kind in kinds)) == " ".join("ż" * len(kinds))


def test_what_the_first_look_passes_has_nothing_to_be_changed() -> None:
    passed = [chr(code) for code in range(0x110000) if not normalization._UNTIDY.match(chr(code))]
    assert len(passed) > 1000 and set(POLISH_LETTERS) < set(passed)
    changed = [one for one in passed if unicodedata.normalize("NFC", one) != one or unicodedata.combining(one)]
    assert changed == []
    assert [one for one in passed if unicodedata.category(one) in ("Cc", "Cf", "Zs", "Mn")] == list("\n \u00ad")


@examples
@given(texts)
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    once = normalization.normalize(text)
    assert normalization.normalize(once) == once


@examples
@given(texts)
def test_normal_text_is_nfc_without_what_cannot_be_seen(text: str) -> None:
    normal = normalization.normalize(text)
    assert unicodedata.is_normalized("NFC", normal)
    assert not re.search(
        r"[\u00ad\u034f\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufdd0-\ufdef\ufe0f\ufeff]", normal
    )
    assert not {unicodedata.category(one) for one in normal if one != "\n"} & {"Cc", "Co", "Cs", "Zl", "Zp"}
    assert not re.search(r"^\s|\s$|[^\S\n ]|  | \n|\n |\n{3}", normal)


@examples
@given(texts)
def test_normalizing_adds_nothing_and_keeps_polish_letters_in_order(text: str) -> None:
    seen = set(unicodedata.normalize("NFC", text)) | set(unicodedata.normalize("NFD", text))
    normal = normalization.normalize(text)
    assert set(unicodedata.normalize("NFD", normal)) <= seen | {" ", "\n"}
    kept = f"ż{text}ł" if text.isascii() else "zażółć gęślą jaźń"
    assert re.findall(f"[{POLISH_LETTERS}]", normalization.normalize(kept)) == re.findall(f"[{POLISH_LETTERS}]", kept)


@examples
@given(st.text(st.sampled_from(POLISH_LETTERS + "aé \n\u00a0\u00ad\u200b\ud800\u2003\ue000"), max_size=60))
def test_every_polish_letter_stays_in_its_place(text: str) -> None:
    letters = f"[{POLISH_LETTERS}]"
    assert re.findall(letters, normalization.normalize(text)) == re.findall(letters, text)


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "\r\n", "\u00ad", "\u00ad ", " \n", "\u200b", "\u00a0\u00ad\n", "a\u0301"]
)
def test_the_time_is_linear(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    normal = normalization.unwrap(normalization.normalize(text))
    normalization.without_boilerplate(normal)
    normalization.without_boilerplate(text)
    assert time.process_time() - started < 8


@pytest.mark.parametrize("unit", ["cookies ", "zgoda ", "© ", "[1]", "regulamin\n", "a\n", "menu\n"])
def test_the_time_for_boilerplate_is_linear(unit: str) -> None:
    started = time.process_time()
    normalization.without_boilerplate((unit * (500_000 // len(unit))).strip())
    assert time.process_time() - started < 8


def wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


@pytest.mark.parametrize("width", [55, 70, 95])
def test_prose_wrapped_at_a_width_is_rejoined(width: int) -> None:
    assert normalization.unwrap(f"{wrapped(PROSE, width)}\n\n{wrapped(PROSE, width)}") == f"{PROSE}\n\n{PROSE}"


@pytest.mark.parametrize("hyphen", ["-", "\u2010"])
def test_words_hyphenated_at_line_ends_are_rejoined(hyphen: str) -> None:
    assert normalization.unwrap(f"Był to dom nad rze{hyphen}\nką.") == "Był to dom nad rzeką."
    long = wrapped(PROSE, 70).replace("straszy tam", f"straszydło na dłu{hyphen}\ngiej drodze tam", 1)
    assert "straszydło na długiej drodze tam" in normalization.unwrap(long)


def test_a_hyphen_before_a_name_or_after_a_number_stays() -> None:
    assert normalization.unwrap("Bielsko-\nBiała, rok 1905-\nty") == "Bielsko-\nBiała, rok 1905-\nty"


def test_a_long_line_that_stops_within_a_sentence_goes_on() -> None:
    paragraph = PROSE[: PROSE.index(" Pewnej")]
    page = f"{paragraph}\n{PROSE}\nStary dom, do którego nikt nie zaglądał, bo dzieci bały się duchów,\n"
    assert normalization.unwrap(f"{page}stoi do dziś.\nKoniec") == f"{page[:-1]} stoi do dziś.\nKoniec"
    assert normalization.unwrap(f"{page}Stary Młyn\nstoi") == f"{page}Stary Młyn\nstoi"


DIALOGUE = "– Idziesz?\n– Nie wiem.\n– To się zdecyduj, bo zamykają.\n– A ty?\n– Ja już byłem.\n– Sam?\n– Z psem."
RECIPE = "2 szklanki mąki\n3 jajka\nszczypta soli\n1 łyżka oleju\npół szklanki mleka\nWymieszać i smażyć na złoto."
STATUTE = (
    "Członkiem koła może zostać każdy mieszkaniec gminy, który lubi czytać\n"
    "Zebrania odbywają się w pierwszą środę miesiąca w czytelni na piętrze\n"
    "Książkę do rozmowy wybiera osoba, która na poprzednią czekała najdłużej\n"
    "Kto nie doczytał do końca, ten parzy herbatę i nie zdradza zakończenia\n"
    "Spory o tłumaczenie rozstrzyga bibliotekarka, a jej głos jest ostateczny"
)


@pytest.mark.parametrize("text", [VERSE, DIALOGUE, RECIPE, STATUTE, PROSE, "", "\n\n"])
def test_verse_dialogue_and_lists_keep_their_lines(text: str) -> None:
    assert normalization.unwrap(text) == text


def test_speech_in_wrapped_prose_begins_a_line() -> None:
    text = f"{wrapped(PROSE, 70)}\n– Czy to prawda, że duch został? – spytała sąsiadka, która przyszła ostatnia."
    assert normalization.unwrap(text).split("\n")[1].startswith("– Czy to prawda")


@examples
@given(st.integers(40, 130), st.integers(0, 10**6), st.sampled_from(["", "-", "\u2010"]))
def test_unwrapping_changes_only_white_space_and_hyphens_at_line_ends(width: int, seed: int, hyphen: str) -> None:
    generator = random.Random(seed)
    lines = wrapped(" ".join(generator.choices(PROSE.split(), k=120)), width).split("\n")
    text = "".join(line + generator.choice(("\n", "\n\n", " \n", f"{hyphen}\n")) for line in lines)
    bare = re.compile(r"\s|[-\u2010](?=\n)")
    unwrapped = normalization.unwrap(text)
    assert re.sub(r"[-\u2010\s]", "", unwrapped) == re.sub(r"[-\u2010\s]", "", text)
    assert len(re.sub(r"\s", "", unwrapped)) >= len(bare.sub("", text))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Akceptuję pliki cookie", True),
        ("© Kurier. Wszelkie prawa zastrzeżone.", True),
        ("PRZEJDŹ DO GŁÓWNEJ TREŚCI", True),
        ("Obserwuj nas na Facebooku!", True),
        ("Kontynuując przeglądanie, akceptujesz regulamin.", True),
        ("Dodaj komentarz", True),
        ("ZGŁOŚ BŁĄD", True),
        ("Wróć na górę", True),
        ("Zobacz też:", True),
        ("Powrót na górę zajął im całe popołudnie.", False),
        ("Zobacz także, jak rzeka skręca pod młynem.", False),
        ("Reklama dźwignią handlu.", False),
        ("Podziel się chlebem z sąsiadem.", False),
        ("Mam dość reklam.", False),
        ("Obserwuj nas na scenie i poza sceną.", False),
        ("Na tej stronie opisujemy, jak działają pliki cookie, czym różnią się od pamięci przeglądarki i dlaczego "
         "programiści od lat spierają się o to, gdzie najlepiej przechowywać stan użytkownika.", False),
        ("Zgubiono parasol.", False),
        ("", False),
    ],
)  # fmt: skip
def test_boilerplate_lines_are_told_from_text_about_them(line: str, expected: bool) -> None:
    assert normalization.is_boilerplate(line) is expected
    text = f"Pierwszy wiersz.\n{line}\nOstatni wiersz."
    kept, share = normalization.without_boilerplate(text)
    assert kept == ("Pierwszy wiersz.\nOstatni wiersz." if expected else text)
    assert share == (pytest.approx(len(line) / (len(text) - 2)) if expected else 0.0)


@pytest.mark.parametrize(("core", "pattern"), normalization._PHRASES.items())
def test_every_way_to_say_a_phrase_holds_its_core(core: str, pattern: str) -> None:
    assert len(core.encode()) >= normalization.WINDOW or core == "©"
    groups = re.sub(r"\(\?:([^)|]*)\|[^)]*\)\??", r"\1", pattern)  # the first of each inner choice
    ways = [re.sub(r"\\w[*+]|\?", "", way) for way in groups.split("|")]
    assert [way for way in ways if core not in f" {way} "] == []


def test_boilerplate_goes_and_its_share_is_measured() -> None:
    assert normalization.without_boilerplate("Regulamin\nTekst[12] dalej") == (
        "Tekst dalej",
        pytest.approx(9 / 24, abs=0.02),
    )


def test_marks_of_footnotes_and_of_wiki_editing_go_from_the_text() -> None:
    text = "Historia[edytuj | edytuj kod]\n\nGród[1][23] powstał wcześnie[potrzebny przypis].\n[4] Zob. tom [5] i x[i]."
    expected = "Historia\n\nGród powstał wcześnie.\n[4] Zob. tom [5] i x[i]."
    assert normalization.without_boilerplate(text) == (expected, 0.0)


@examples
@given(st.lists(st.sampled_from(["Regulamin", "Menu", "Tekst.", "", "z[1]", "o[1]\u0301", "\ud800", "cookies"])))
def test_what_stays_is_normal_again(lines: list[str]) -> None:
    text = normalization.normalize("\n".join(lines))
    kept, share = normalization.without_boilerplate(text)
    assert 0 <= share <= 1
    assert "\n\n\n" not in kept and kept == kept.strip() and unicodedata.is_normalized("NFC", kept)
    assert normalization.without_boilerplate(kept) == (kept, 0.0)
