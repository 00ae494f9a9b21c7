import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prose import PROSE

from wronai import decoding
from wronai.decoding import Rejection

GARBLED = (
    ("cp1250", "latin-1"),
    ("cp1250", "cp1252"),
    ("cp1250", "iso8859_2"),
    ("iso8859_2", "latin-1"),
    ("iso8859_2", "cp1252"),
    ("iso8859_2", "cp1250"),
)
WORDS = re.findall(
    r"\w+",
    "młyn stał nad rzeką i mełł żyto dla całej wsi gdy śnieg zasypał ścieżkę sąsiedzi wyciągnęli łopaty źrebię "
    "skubało siano ćma krążyła wokół świecy dziadek późno wrócił z targu babcia śpiąc słyszała jeszcze dzwon Łódź "
    "Źródło Święto Żuraw Ćwierć więc idź już bądź cicho bo dziecko śni o gęsiach i żółtych pąkach końmi jechał wójt",
)
sentences = st.lists(st.sampled_from(WORDS), min_size=30, unique=True).map(lambda words: " ".join(words) + ".")
examples = settings(derandomize=True, deadline=None, max_examples=200)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1250", "iso8859-2", "utf-8-sig", "utf-16", "utf-32"])
def test_polish_is_decoded_whatever_it_was_written_in(encoding: str) -> None:
    assert decoding.decode(PROSE.encode(encoding), "text/plain") == (PROSE, encoding)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_told_by_its_zeros_without_a_mark(encoding: str) -> None:
    text = f"„{PROSE}” – tak było…"
    assert decoding.decode(text.encode(encoding), "text/plain") == (text, encoding)
    assert decoding.decode(text.encode(encoding)[:-1], "text/plain") == (text[:-1], encoding)


@examples
@given(sentences, st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp1250", "iso8859-2"]))
def test_what_was_encoded_is_decoded(text: str, encoding: str) -> None:
    decoded = decoding.decode(text.encode(encoding), "text/plain")
    assert decoded[0] == text


def test_quotation_marks_tell_cp1250_from_iso_8859_2() -> None:
    text = "Rzekł: „Zażółć gęślą jaźń” – i wyszedł."
    assert decoding.decode(text.encode("cp1250"), "text/plain") == (text, "cp1250")


@pytest.mark.parametrize(
    ("page", "media_type"),
    [
        ('<meta charset="ibm852"><p>Zażółć gęślą jaźń</p>', "text/html"),
        ('<meta content="text/html; charset = ibm852"><p>Zażółć gęślą jaźń</p>', "text/html"),
        ('<?xml version="1.0" encoding="ibm852"?><p>Zażółć gęślą jaźń</p>', "application/xhtml+xml"),
    ],
)
def test_a_page_declares_its_charset(page: str, media_type: str) -> None:
    assert decoding.decode(page.encode("cp852"), media_type) == (page, "cp852")
    assert decoding.decode(page.encode("cp852"), "text/plain") != (page, "cp852")


def test_a_declared_charset_decides_for_a_page() -> None:
    page = '<meta charset="windows-1250"><p>Zażółć gęślą jaźń</p>'
    assert decoding.decode(page.encode("cp1250"), "text/html") == (page, "cp1250")


def test_a_wrong_declaration_does_not_spoil_the_page() -> None:
    page = '<meta charset="iso-8859-1"><p>Zażółć gęślą jaźń</p>'
    assert decoding.decode(page.encode("cp1250"), "text/html") == (page, "cp1250")
    assert decoding.decode(page.encode(), "text/html", "iso-8859-2") == (page, "utf-8")


def test_the_charset_of_the_transfer_decides() -> None:
    assert decoding.decode(PROSE.encode("cp852"), "text/plain", ' "CP852"') == (PROSE, "cp852")


def test_a_byte_order_mark_wins_over_a_declaration() -> None:
    assert decoding.decode(PROSE.encode("utf-16"), "text/plain", "iso-8859-2") == (PROSE, "utf-16")


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "hex", "no such", "a\0b", "", "utf-16"])
def test_a_charset_that_is_none_or_no_charset_of_the_web_is_passed_over(charset: str) -> None:
    assert decoding.decode(PROSE.encode("cp1250"), "text/plain", charset) == (PROSE, "cp1250")


def test_a_few_damaged_bytes_leave_utf_8() -> None:
    damaged = PROSE.encode()[:50] + b"\xff" + PROSE.encode()[50:]
    assert decoding.decode(damaged, "text/plain") == (PROSE, "utf-8")
    assert decoding.decode(b"\xef\xbb\xbf" + damaged, "text/plain") == (PROSE, "utf-8-sig")
    assert decoding.decode(PROSE.encode("utf-16") + b"\x00\xd8", "text/plain") == (PROSE, "utf-16")


def test_one_zero_in_a_long_text_is_no_binary_content() -> None:
    text = PROSE * 3 + "\x00"
    assert decoding.decode(text.encode(), "text/plain") == (text, "utf-8")
    garbage = bytes(range(128, 256)) * 20 + b"\x00"
    assert decoding.decode(garbage, "text/plain") == Rejection("undecodable", pytest.approx(1.0, abs=0.01))


def test_a_mark_of_utf_8_before_another_code_page_does_not_cost_its_letters() -> None:
    assert decoding.decode(b"\xef\xbb\xbf" + PROSE.encode("cp1250"), "text/plain") == (PROSE, "cp1250")


@pytest.mark.parametrize(
    ("content", "zeros"),
    [
        (b"\x89PNG\r\n\x00\x00", 0.25),
        (b"\x00", 1.0),
        (b"\x01\x00\x02\x00" * 500, 0.5),
        (b"a\x00b" * 500, 1 / 3),
    ],
)
def test_binary_content_is_undecodable(content: bytes, zeros: float) -> None:
    assert decoding.decode(content, "text/plain") == Rejection("undecodable", pytest.approx(zeros))


@examples
@given(st.binary(max_size=60), st.sampled_from(["text/plain", "text/html"]), st.sampled_from([None, "big5", "utf-8"]))
def test_any_bytes_give_text_or_a_rejection(content: bytes, media_type: str, charset: str | None) -> None:
    decoded = decoding.decode(content, media_type, charset)
    assert isinstance(decoded, Rejection) or isinstance(decoded[0], str)


@pytest.mark.parametrize(("written_in", "read_as"), GARBLED)
def test_a_wrong_code_page_is_undone(written_in: str, read_as: str) -> None:
    assert decoding.repair(PROSE.encode(written_in).decode(read_as)) == PROSE


@pytest.mark.parametrize("read_as", ["cp1250", "cp1252", "latin-1", "iso8859_2"])
def test_utf_8_read_as_one_byte_per_character_is_undone(read_as: str) -> None:
    text = "Gęś i żółw śpią na łące, a ćma lata."
    garbled = "".join(bytes([b]).decode(read_as, "ignore") or chr(b) for b in text.encode())
    assert decoding.repair(garbled) == text
    assert decoding.repair(f"Spokój.\n{garbled}\n\nAha!\n{garbled}") == f"Spokój.\n{text}\n\nAha!\n{text}"


@settings(examples, max_examples=100)
@given(sentences, st.sampled_from([*GARBLED, *(("utf-8", page) for page in ("cp1250", "cp1252", "latin-1"))]))
def test_each_misreading_is_undone(text: str, misreading: tuple[str, str]) -> None:
    written_in, read_as = misreading
    garbled = "".join(bytes([b]).decode(read_as, "ignore") or chr(b) for b in text.encode(written_in))
    assert decoding.repair(garbled) == text


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "Pierwszy zbiornik ma 40 m³, drugi¹ 30 m³, trzeci¹ 20 m³, a czwarty¹ jeszcze mniej. " + PROSE,
        "Aleš, Miloš, Jaroš i Bartoš grali w karty. " + PROSE,
        "Antonín Dvořák i Škoda Octavia: šest, šaty, šíp, škola, šlehačka. " + PROSE,
        "Działka ma 300 m², a basen 40 m³. Było 3½ stopnia, ±2 µm, „¿Qué tal?” – spytał señor Núñez. " + PROSE,
        "»Idź!« – rzekł. »Nie« – odparła, café à la carte, Ærø, Łódź. " + PROSE,
        "Příliš žluťoučký kůň úpěl ďábelské ódy a šel dál, protože šípky už dávno dozrály a sýkorky štěbetaly.",
        "Vŕba a škovránok: kôň žerie šťavnatú trávu, mäso, ľad, dážď, šípka, ťava, žalúdok, päť.",
        "Über den Wäldern schwebte ein Falke, während die Mühle am Fluß langsam drehte; süße Äpfel fielen ins Gras.",
        "The café's owner said: “It’s naïve – but we’ll try,” and poured another cup for £2, not €3.",
    ],
)
def test_sound_text_is_not_repaired(text: str) -> None:
    assert decoding.repair(text) == text


CZECH = re.findall(r"\S+", "kůň běžel přes louku šípek dozrál žluťoučký déšť řeka teče město náměstí štěbetal")
GERMAN = re.findall(r"\S+", "Straße führt über Brücke schöne Bäume Äpfel öffnen größer Mädchen Übung süß")
ENGLISH = re.findall(r"\S+", "naïve café the river runs past “old” mill – and we’ll follow it £2")


@examples
@given(st.sampled_from([WORDS, CZECH, GERMAN, ENGLISH]).flatmap(lambda words: st.lists(st.sampled_from(words))))
def test_sound_sentences_in_four_languages_are_not_repaired(words: list[str]) -> None:
    assert decoding.repair(" ".join(words)) == " ".join(words)


def test_the_first_look_sees_whatever_a_repair_would_act_on() -> None:
    acted_on = "".join(map(chr, range(0x3000)))
    seen = set(decoding._UNUSUAL.findall(acted_on))
    assert seen >= {*decoding._SIGNS.findall(acted_on), *decoding._IMPLAUSIBLE.findall(acted_on)}
    assert {*"Âłąó–„”…§"} & seen == {"Â"}


def test_a_line_that_was_misread_as_another_code_page_is_not_taken_for_utf_8() -> None:
    text = "Ćwierć śnieg zasypał ścieżkę, więc dziadek późno wrócił z targu i śpiąc słyszał źrebię. Ćwierć śledzia."
    assert decoding.repair(text.encode("cp1250").decode("iso8859_2")) == text


@examples
@given(st.text(st.characters(codec=None, categories=None), max_size=80))
def test_no_text_breaks_the_repair(text: str) -> None:
    assert isinstance(decoding.repair(text + "Ĺ\ud800\n"), str)


@pytest.mark.parametrize("unit", ["Ä…", "Ă ", "Ă\n", "» ", "ł", "¹", "Ã"])
def test_the_time_of_a_repair_is_linear(unit: str) -> None:
    started = time.process_time()
    decoding.repair(unit * (300_000 // len(unit)))
    assert time.process_time() - started < 8
