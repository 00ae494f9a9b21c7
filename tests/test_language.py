import multiprocessing
import pickle
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wronai import language, strings

CONFIDENCE, CUT, LOOK_ALIKE = 0.65, 0.5, 0.05  # the defaults of params.yaml
LANGUAGES = ("polish", "silesian", "kashubian", "czech", "slovak")
RAW = Path("../shared/data/raw")

PROSE = (
    "Nad ranem mgła zeszła z łąk i ukazał się stary most, po którym od lat nikt nie jeździł. Furman zatrzymał konia, "
    "popatrzył na spróchniałe deski i powiedział, że dalej nie pojedzie, choćby mu zapłacono podwójnie."
)
ABSTRACT = (
    "Abstract. This paper describes how the water level of the lake has changed over the last forty years and which "
    "of the causes that were named by the authors can still be observed on its shores today."
)
COOKIES = (
    "We use cookies to personalise content and ads, to provide social media features and to analyse our traffic. "
    "We also share information about your use of our site with our partners."
)
CZECH = (
    "Vítejte na stránkách našeho muzea. Otevřeno máme každý den kromě pondělí a vstupenky si můžete koupit "
    "přímo u pokladny nebo předem přes internet."
)
RUSSIAN = (
    "Музей открыт каждый день, кроме понедельника, билеты можно купить в кассе или заранее через интернет, "
    "а детям вход бесплатный."
)
HEADING = "Wyniki i wnioski"


def labelled(name: str) -> list[tuple[str, str]]:
    """Register and text of each sample of one language."""
    register, samples = "", []
    for line in (Path("tests/languages") / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            register = line[2:]
        else:
            samples.append((register, line))
    return samples


def verdicts(name: str) -> list[str]:
    """What each sample of a language is taken for at the default thresholds."""
    texts = [text for _, text in labelled(name)]
    silesian, kashubian = language.look_alikes(texts)
    return [
        "silesian" if s > LOOK_ALIKE else "kashubian" if k > LOOK_ALIKE else "polish" if c >= CONFIDENCE else "other"
        for s, k, c in zip(silesian, kashubian, language.confidences(texts), strict=True)
    ]


def test_polish_and_its_look_alikes_are_told_apart() -> None:
    taken = {name: Counter(verdicts(name)) for name in LANGUAGES}
    assert all(counts.total() >= 40 for counts in taken.values())
    right = {name: taken[name][name] / taken[name].total() for name in LANGUAGES[:3]}  # recall
    claims = {name: sum(counts[name] for counts in taken.values()) for name in LANGUAGES[:3]}
    precise = {name: taken[name][name] / claims[name] for name in LANGUAGES[:3]}
    assert right["polish"] == right["kashubian"] == precise["silesian"] == precise["kashubian"] == 1.0
    assert right["silesian"] > 0.96 and precise["polish"] > 0.96  # what is missed has one marked word, or none
    assert taken["czech"].keys() == taken["slovak"].keys() == {"other"}


@pytest.mark.parametrize(("register", "text"), labelled("polish"))
def test_polish_of_every_register_is_polish(register: str, text: str) -> None:
    assert language.polish_confidence(text) > 0.98
    assert language.share_silesian(text) == language.share_kashubian(text) == 0.0


@pytest.mark.parametrize("name", ["czech", "slovak"])
def test_neighbours_are_not_polish(name: str) -> None:
    assert language.confidences([text for _, text in labelled(name)]).max() < 0.01


@pytest.mark.parametrize("name", LANGUAGES)
def test_where_the_counts_settle_it_lingua_agrees(name: str) -> None:
    samples = [text for _, text in labelled(name)]
    texts = [f"{one} {other}" for one, other in pairwise(samples)] + [ABSTRACT, COOKIES, RUSSIAN]
    data, begins = strings.utf8(texts)
    settled = language._settled(language._count(data, begins[:-1], begins[1:], *language._tables()))
    for text, value in zip(texts, settled, strict=True):
        if not np.isnan(value):
            said = language._detector().compute_language_confidence(text, language.Language.POLISH)
            assert abs(value - said) < 0.01, text
    if name in ("polish", "czech", "slovak"):
        assert np.isfinite(settled).mean() > 0.9


def test_half_and_half_is_not_settled_by_counting() -> None:
    half = f"{PROSE} {ABSTRACT}"
    bare = half.translate(str.maketrans("ąćęłńóśźż", "acelnoszz"))
    data, begins = strings.utf8(pa.array([half, bare, bare[: len(PROSE)]], pa.large_string()))
    assert np.isnan(language._settled(language._count(data, begins[:-1], begins[1:], *language._tables()))).all()


def test_a_long_text_is_judged_by_the_median_of_its_start_middle_and_end() -> None:
    assert language.polish_confidence(f"{COOKIES * 3} {PROSE * 20}") == 1.0
    assert language.polish_confidence(f"{COOKIES * 20} {PROSE * 3}") == 0.0


@pytest.mark.parametrize("text", ["", " \n", "12 345, 67.", "日本語の文章です", "ελληνικά", "🙂" * 400])
def test_a_text_without_words_that_could_be_polish_has_no_confidence(text: str) -> None:
    assert language.polish_confidence(text) == 0.0
    assert language.look_alikes([text]) == (0.0, 0.0)
    assert language.without_foreign_paragraphs(text, CUT) == (text, 0)


def test_a_megabyte_without_a_space_takes_no_time() -> None:
    started = time.process_time()
    text = "żółć" * 250_000
    language.polish_confidence(text), language.look_alikes([text]), language.without_foreign_paragraphs(text, CUT)
    assert time.process_time() - started < 10  # lingua reads one word of 300,000 letters for 20 s


@pytest.mark.parametrize(
    "text",
    [
        "Wystąpili René, Zoë, Noël i José, a potem Anaïs z Orléans i João z São Paulo; wszyscy dostali brawa i kwiaty.",
        "W Tōkyō i Kyōto mieszkał też Gorō, którego brat Jirō został w Ōsace i prowadzi tam bar z widokiem na zamek.",
        "Aleš Dvořák i Jiří Růžička z Brna przyjechali z Martinů, a Petr Šůla został w domu i oglądał mecz.",
        "W téj chwili przyszedł ów człowiek, któremu więcéj niż połowę długów darowano, téż rad z dobréj woli.",
        "— Niy wiym, kie baca przidzie, bo jesce ka hań owce poś, ale mom cas i niy śpiem, zeby syćko zjadły.",
        "Sad przy domu jest caly zarosniety, bo dziadek nie mial juz sily i nie chcialo mu sie pracowac w ogrodzie.",
    ],
)
def test_names_old_spelling_highlanders_and_missing_diacritics_make_no_look_alike(text: str) -> None:
    assert language.look_alikes([text]) == (0.0, 0.0)


def test_a_word_of_the_neighbours_in_a_polish_text_tells_nothing() -> None:
    assert language.look_alikes(["Na wesele upiekli kołocz.", "Na drogowskazie stało słowo mòrze."])[0].max() == 0.0
    assert language.share_silesian("Na wesele starka upiekli gryfny kołocz.") == 3 / 6


def test_what_both_languages_write_counts_for_the_one_that_the_rest_speaks_for() -> None:
    assert language.share_silesian("robiã niy przi") == 1.0
    assert language.share_kashubian("robiã òn pò") == 1.0


def test_many_texts_get_what_each_gets_alone() -> None:
    texts = [text for name in LANGUAGES for _, text in labelled(name)] + [f"{PROSE}\n\n{COOKIES}", "", COOKIES * 9]
    silesian, kashubian = language.look_alikes(texts)
    screened, cut = language.screened(texts, CUT)
    assert language.confidences(texts).tolist() == [language.polish_confidence(text) for text in texts]
    assert silesian.tolist() == [language.share_silesian(text) for text in texts]
    assert kashubian.tolist() == [language.share_kashubian(text) for text in texts]
    alone = [language.without_foreign_paragraphs(text, CUT) for text in texts]
    assert list(zip(screened.to_pylist(), cut.tolist(), strict=True)) == alone


def test_arrow_arrays_are_read_whatever_their_shape() -> None:
    plain = pa.array(["x", PROSE, None, CZECH], pa.string())
    for texts in (
        plain.slice(1),
        pa.chunked_array([plain.slice(1, 1), plain.slice(2)]),
        plain.cast(pa.large_string())[1:],
    ):
        assert language.confidences(texts).tolist() == [1.0, 0.0, 0.0]
        assert language.screened(texts, CUT)[0].to_pylist() == [PROSE, "", ""]
    empty = pa.array([], pa.string())
    assert (
        len(language.confidences(empty))
        == len(language.screened(empty, CUT)[0])
        == len(language.look_alikes([])[0])
        == 0
    )


@pytest.mark.parametrize("foreign", [ABSTRACT, COOKIES, CZECH, RUSSIAN])
@pytest.mark.parametrize(
    ("page", "rest"),
    [
        ("{f}\n\n{p}", "{p}"),
        ("{p}\n\n{f}", "{p}"),
        ("{p}\n\n{f}\n\n{h}\n\n{p}\n", "{p}\n\n{h}\n\n{p}\n"),
        ("{p}\r\n \r\n{f}\r\n{f}\r\n\r\n{f}\r\n", "{p}\r\n"),
        ("{p}\n{f}\n{p}", "{p}\n{p}"),
        ("\n\n{h}\n\n{f}\n\n\n{f}\n\n\n\n{p}", "\n\n{h}\n\n{p}"),
        ("{p} {p}\n{f}\n\n{f}", "{p} {p}"),
    ],
)
def test_a_foreign_paragraph_is_cut(foreign: str, page: str, rest: str) -> None:
    filled, expected = (shape.format(f=foreign, p=PROSE, h=HEADING) for shape in (page, rest))
    assert language.without_foreign_paragraphs(filled, CUT) == (expected, len(filled) - len(expected))


def test_a_foreign_text_is_cut_to_nothing() -> None:
    assert language.without_foreign_paragraphs(f"{COOKIES}\n\n{ABSTRACT}", CUT) == ("", len(COOKIES + ABSTRACT) + 2)


@pytest.mark.parametrize(
    "stays",
    [
        "Gloria victis, sed non omnibus.",
        "— Que voulez-vous, c'est la vie et rien de plus! — zaśmiała się hrabina.",
        "The quick brown fox is not what you think that it is",
        "Oh the wind and the rain\nand the road that we know\nwill be with us again\nwhen the summers all go\nand the "
        "birds of the morning\nhave told us to go",
        "for item in items:\n    if item is not None and item.value[0] >= limit:\n        total = total + "
        "item.value[0];\n    return {'sum': total, 'and': [is_not, with_or]}",
        "const others = items.filter(item => item.is_there && item.was_with[the_other]);\nif (this.has_been[0] || "
        "that.will_be[1]) { return this.and(that); } // and the rest of it is for the others",
        "Jiří Dvořák, Tomáš Říha, Šárka Nováková, Věra Čáslavská, Ondřej Štěpánek, Zdeněk Kříž, Božena Němcová, "
        "Anežka Hodinová, Jaroslav Hašek, Přemysl Otakar",
        "John Smith, Mary Johnson, William Brown, Elizabeth Taylor, Charles Wilson, Margaret Evans, Henry Thompson, "
        "Charles de Gaulle",
        "Zob. https://example.org/what-is-the-use-of-this-and-that/how-can-you-be-there-when-it-is-not-for-us/all",
        "Jozef szedl droga do domu i myslal o tym, ze jutro znowu bedzie musial wstac przed switem i isc do pracy.",
        "I to jest „The Long Way Home from the Island of Sheep, with an Index of Persons” i nic, ale na co to i po co, "
        "o tym tu nie ma.",
        "Film „The Man Who Was Not There and the Woman of the Year” obejrzało w pierwszym tygodniu milion widzów.",
    ],
)
def test_mottos_verse_code_names_and_quotations_stay(stays: str) -> None:
    for page in (stays, f"{PROSE}\n\n{stays}\n\n{PROSE}"):
        assert language.without_foreign_paragraphs(page, CUT) == (page, 0)


def test_a_polish_text_comes_back_as_it_was() -> None:
    samples = [text for _, text in labelled("polish")]
    for gap in ("\n", "\n\n", "\r\n \t\r\n", "\n\n\n\n"):
        text = gap + gap.join(samples) + gap
        assert language.without_foreign_paragraphs(text, CUT) == (text, 0)


def test_the_threshold_decides() -> None:
    text = f"{PROSE}\n\n{COOKIES}"
    assert language.without_foreign_paragraphs(text, 0.0) == (text, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([PROSE, ABSTRACT, COOKIES, CZECH, RUSSIAN, HEADING, "żech niy", "", "  ", "\ud7ff", "🙂"])
    ),
    st.lists(st.sampled_from(["\n", "\n\n", "\r\n", "\n \n", " ", "\n\n\n"]), min_size=1),
)
def test_cutting_twice_cuts_nothing_more_and_loses_no_polish(pieces: list[str], gaps: list[str]) -> None:
    text = "".join(piece + gaps[place % len(gaps)] for place, piece in enumerate(pieces))
    once, cut = language.without_foreign_paragraphs(text, CUT)
    assert len(text) - len(once) == cut
    assert language.without_foreign_paragraphs(once, CUT) == (once, 0)
    if " " not in gaps:
        assert once.count(PROSE) == text.count(PROSE)


def test_processes_and_threads_get_the_same() -> None:
    texts = [COOKIES[:90], "żech niy wiym", PROSE, ABSTRACT[:60], *(text for _, text in labelled("kashubian"))]
    expected = [language.polish_confidence(text) for text in texts]
    assert pickle.loads(pickle.dumps(language.screened)) is language.screened
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(language.polish_confidence, texts)) == expected
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as processes:
        assert list(processes.map(language.polish_confidence, texts, timeout=60)) == expected


def test_the_import_brings_neither_torch_nor_daft() -> None:
    code = "import sys, wronai.language; print(sorted({'torch', 'daft', 'ray', 'transformers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.skipif(not RAW.is_dir(), reason=f"{RAW} is not there: no real text to judge")
def test_no_real_polish_is_taken_for_another_language() -> None:
    files = [RAW / "novels_100/corpus" / name for name in ("reymont_chlopi_1908.txt", "kaczkowski_murdelio_1853.txt")]
    files += sorted((RAW / "biblia_gdanska").glob("*blocks.txt"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    parts = [text[start : start + 3000] for start in range(0, len(text), 3000)]
    assert len(parts) > 2000
    assert language.confidences(parts).min() > 0.98
    assert max(share.max() for share in language.look_alikes(parts)) < LOOK_ALIKE / 2
    assert language.screened(parts, CUT)[1].sum() == 0
