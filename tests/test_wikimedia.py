import bz2
import gzip
import io
import re
import time
from collections.abc import Callable
from html import escape

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from wronai import wikimedia
from wronai.wikimedia import Page, plain_text

ROOT = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="pl">'
HEAD = f"{ROOT}\n<siteinfo><sitename>Wikipedia</sitename><dbname>plwiki</dbname></siteinfo>\n"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xml": bytes,
    "bz2": bz2.compress,
    "gz": gzip.compress,
    "zst": zstandard.compress,
}


def page(
    number: int, text: str | None = "tekst", title: str = "", ns: str = "0", model: str = "wikitext", extra: str = ""
) -> str:
    revision = "" if text is None else f"""<revision>
        <id>{number + 1000}</id><timestamp>2024-05-0{number}T10:00:00Z</timestamp>
        <contributor><username>Ola</username><id>77</id></contributor><model>{model}</model>
        <text bytes="9" xml:space="preserve">{escape(text)}</text></revision>"""  # fmt: skip
    return f"<page><title>{title or f'Hasło {number}'}</title><ns>{ns}</ns><id>{number}</id>{extra}{revision}</page>\n"


def export(*found: str) -> bytes:
    return (HEAD + "".join(found) + "</mediawiki>\n").encode()


def read(content: bytes, whole: bool = True) -> list[Page]:
    return list(wikimedia.pages(io.BytesIO(content), "data.sources[1]: pl.xml", whole))


def titles(content: bytes, whole: bool = True) -> list[str]:
    return [found.title for found in read(content, whole)]


@pytest.mark.parametrize("packed", PACKERS)
def test_a_dump_gives_its_articles_however_it_is_packed(packed: str) -> None:
    dump = export(page(1, "Łódź & ''gęś'' <br>", "Łódź"), page(2))
    assert read(PACKERS[packed](dump)) == [
        Page(1, "Łódź", 1001, "2024-05-01T10:00:00Z", "Łódź & ''gęś'' <br>"),
        Page(2, "Hasło 2", 1002, "2024-05-02T10:00:00Z", "tekst"),
    ]


def test_a_multistream_dump_is_read_to_its_last_stream() -> None:
    streams = (HEAD, page(1), page(2), "</mediawiki>")
    assert titles(b"".join(bz2.compress(part.encode()) for part in streams)) == ["Hasło 1", "Hasło 2"]


def test_only_articles_in_wikitext_come_out() -> None:
    dump = export(
        page(1),
        page(2, ns="1"),
        page(3, extra='<redirect title="Hasło 1" />'),
        page(4, model="javascript"),
        page(5, text=None),
        page(6, text=""),
        page(7),
    )
    assert titles(dump) == ["Hasło 1", "Hasło 7"]


def test_of_several_revisions_the_last_counts() -> None:
    twice = page(1, "stary").replace("</page>", "") + page(2, "nowy").split("</ns><id>2</id>")[1]
    assert [(found.id, found.revision, found.wikitext) for found in read(export(twice.strip()))] == [(1, 1002, "nowy")]


def test_unforeseen_elements_are_passed_over() -> None:
    dump = page(1, "Ala ").replace("</text>", "<b>ma<title/></b> kota</text>").replace("<ns>", "<new>a</new><ns>")
    assert [found.wikitext for found in read(export(dump))] == ["Ala ma kota"]


def test_a_dump_is_utf_8_whatever_it_declares() -> None:
    assert titles(b'<?xml version="1.0" encoding="x-nieznane"?>' + export(page(1, title="Łódź"))) == ["Łódź"]


def test_the_callers_stream_stays_open() -> None:
    stream = io.BytesIO(export(page(1)))
    list(wikimedia.pages(stream, "x"))
    assert not stream.closed


def test_pages_come_before_the_file_is_read() -> None:
    stream = io.BytesIO(export(*(page(1, "słowo " * 10_000) for _ in range(100))))
    next(wikimedia.pages(stream, "x"))
    assert stream.tell() < 1_000_000


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_dump_is_an_error_unless_it_was_cut_on_purpose(packed: str, share: float) -> None:
    dump = PACKERS[packed](export(*(page(1, f"{time.monotonic_ns()} {i * 7919}" * 50) for i in range(400))))
    if packed == "bz2":
        dump = b"".join(bz2.compress(part) for part in (HEAD.encode(), *[page(1).encode()] * 100, b"</mediawiki>"))
    cut = dump[: int(len(dump) * share)]
    with pytest.raises(ValueError, match=r"^data.sources\[1\]: pl.xml is cut off: the .* ends (after|before) the"):
        read(cut)
    assert titles(cut, whole=False) == ["Hasło 1"] * len(titles(cut, whole=False))
    if packed != "zst":  # which gives nothing before its first block is whole
        assert titles(cut, whole=False)


@pytest.mark.parametrize("packed", ["bz2", "gz"])
def test_damaged_compression_names_the_last_page(packed: str) -> None:
    parts = [HEAD.encode(), *[page(1).encode()] * 9, b"</mediawiki>"]
    packs = [PACKERS[packed](part) for part in parts]
    packs[5] = packs[5][:40] + bytes(20) + packs[5][60:]
    for whole in (True, False):
        with pytest.raises(ValueError, match=r"^data.sources\[1\]: pl.xml is damaged: the compressed data breaks"):
            read(b"".join(packs), whole)


def test_damaged_zstandard_is_one_error() -> None:
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(export(page(1))))
    packed[-1] ^= 1
    with pytest.raises(
        ValueError, match=r"pl.xml is damaged: the compressed data breaks after the page 'Hasło 1'|before"
    ):
        read(bytes(packed))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, or cut before its first block ends; expected a MediaWiki"),
        (zstandard.compress(export(page(1)))[:20], "is empty, or cut"),
        (b"Ala ma kota", "is damaged or no dump: expected a MediaWiki XML export"),
        (b"\n", "ends before <mediawiki>"),
        (b"<html><body>404</body></html>", "begins with <html>; expected <mediawiki>"),
        (export(page(1)).replace(b"</title>", b"</tytul>"), "the XML breaks before the first page"),
        (export(page(1)) + b"<page>", "the XML breaks after the page 'Hasło 1'"),
        (export(page(1)).replace(b"tekst", b"&nieznana;"), "the XML breaks before the first page"),
        (export(page(1)).replace(b"<id>1001</id>", b"<id>x</id>"), "the page 'Hasło 1' has no numeric id"),
    ],
)
def test_what_is_no_dump_gets_one_clear_error(content: bytes, message: str, whole: bool) -> None:
    with pytest.raises(ValueError, match=rf"^data.sources\[1\]: pl.xml:? .*{message}"):
        read(content, whole)


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>',
        '<!DOCTYPE m [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
    ],
)
def test_entities_cannot_be_declared(declaration: str) -> None:
    dump = declaration.encode() + export(page(1)).replace(b"tekst", b"&a;")
    with pytest.raises(ValueError, match=r"has a document type declaration"):
        read(dump)


@pytest.mark.parametrize("filling", ["słowo ", "<title>", "<!-- -->"])
def test_a_page_without_end_is_refused(filling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikimedia, "MAX_PAGE_BYTES", 1 << 20)
    bomb = bz2.compress((HEAD + page(1) + "<page><title>Bomba</title>" + filling * 250_000).encode())
    with pytest.raises(ValueError, match=r"pl.xml: no page ends in 1 MiB of XML after the page 'Hasło 1'"):
        read(bomb, whole=False)


def test_a_failing_disk_is_no_damaged_file() -> None:
    class Failing(io.BytesIO):
        def readinto(self, _: object) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        list(wikimedia.pages(Failing(), "x"))


ARTICLE = """{{Miasto infobox
| nazwa = Brzozów Nadrzeczny
| herb = [[Plik:Herb.svg|80px]]
| populacja = {{formatnum:4321}} {{fakt|data=2020-01}}
}}
[[Plik:Rynek.jpg|thumb|Rynek ([[2010]]), fot. {{nowrap|J. Nowak}}]]
'''Brzozów Nadrzeczny''' ({{lang|de}}, łac. ''Betuletum'') – [[miasto]] w [[Polska|Polsce]], nad&nbsp;rzeką
[[Ruda (rzeka)|Rudą]].<ref>{{Cytuj książkę|autor=A. Nowak|tytuł=Dzieje [[miasto|miasta]]}}</ref> Liczy
{{formatnum:4321}} mieszkańców<ref name="gus" />.

== Historia ==
<!-- do sprawdzenia -->W roku 1350 osada dostała ''prawa miejskie''.

{| class="wikitable"
! Rok !! Ludność
|-
| 1900 || 1200 {{!}} x
|}

=== Zabytki ===
* [[kościół]] z XV wieku,
* [http://zamek.example.pl ruiny zamku].

== Zobacz też ==
* [[Brzozów]]

== Przypisy ==
{{Przypisy}}

=== Uwagi dodatkowe ===
Nic.

[[Kategoria:Miasta]]
[[de:Birkenstadt]]
"""


def test_an_article_becomes_running_text() -> None:
    assert plain_text(ARTICLE) == (
        "Brzozów Nadrzeczny (łac. Betuletum) – miasto w Polsce, nad rzeką Rudą. Liczy 4321 mieszkańców.\n\n"
        "Historia\n\nW roku 1350 osada dostała prawa miejskie.\n\n"
        "Zabytki\n\nkościół z XV wieku,\nruiny zamku."
    )


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("po {{J|en|weekend}}, {{lang|fr|fin}}, {{lang-la|finis}}", "po weekend, fin, finis"),
        ("idą {{nowrap|12 km}} i {{nieznany|tekst}}, dalej", "idą 12 km i, dalej"),
        ("a\n{{Cytat|Ala ma [[kot|kota]].|[[Autor]]|źródło=x}}\nb", "a\n\nAla ma kota.\n\nb"),
        ("{{cytat|treść=Bo 2+2=4.|autor=Ja}}", "Bo 2+2=4."),
        ("{{skrót|r.|rok}} {{sup|a}} {{=}} {{Kolor|red|x}}", "r. a = x"),
        ("10<sup>−3</sup> m{{sup|2}} x<sup>n</sup> H<sub>2</sub>O", "10⁻³ m² xn H2O"),
        ("{{link-interwiki|pl=Gród|en|Town}}", "Gród"),
        ("{{Wiersz|Lato\nzima}}", "Lato\nzima"),
        ("{{infobox|a={{infobox|b={{nowrap|c}}}}}}tekst", "tekst"),
        ("[[Plik:A.jpg|thumb|Opis [[Bug|Bugu]] i [http://x.pl strony]]]Dom", "Dom"),
        ("[[:Kategoria:Ptaki|ptaki]] [[s:Lalka|]] [[Ruda (rzeka)|]] [[#Opis]] [[en:Bird]]", "ptaki Lalka Ruda Opis"),
        ("Zob. [[Star Trek: Voyager]] i [[dom]]ek", "Zob. Star Trek: Voyager i domek"),
        ("wg [https://x.pl strony miasta] [https://y.pl] tak", "wg strony miasta tak"),
        ("'''''Bug''''' i ''Wisła''__NOTOC__ __BEZSPISU__", "Bug i Wisła"),
        ("5&nbsp;km &lt; 6&#160;km &amp;c. so&shy;sna", "5 km < 6 km &c. sosna"),
        ("jeden\ndwa\n\ntrzy<br/>cztery", "jeden dwa\n\ntrzy\ncztery"),
        ("* a\n** b\n# c\n: d\nproza", "a\nb\nc\nd\n\nproza"),
        ("<poem>\nIdzie '''wiatr''',\n: idzie las.\n\nNoc.\n</poem>", "Idzie wiatr,\nidzie las.\n\nNoc."),
        ("kod <source lang=c>{{{[[ {|</source> <code>x</code>i tekst", "kod i tekst"),
        ("<gallery>\nPlik:A.jpg|Opis\n</gallery>tekst<REF>x</REF>", "tekst"),
        ("<nowiki>[[dom]]</nowiki> <span style='x'>i</span> <jan@x>", "[[dom]] i <jan@x>"),
        ("<table><tr><td>1<table><td>2</table></table>dom", "dom"),
        ("{|\n| a\n{|\n| b\n|}\n| c\n|}\ndom", "dom"),
        ("== A ==\n=== B ===\n{|\n|x\n|}\n== C ==\nt", "C\n\nt"),
        ("== Bibliografia ==\n* x\n== Dalej ==\ny", "Dalej\n\ny"),
        ("== dom ({{język polski}}) ==\nbudynek", "dom\n\nbudynek"),
    ],
)
def test_markup_becomes_text(wikitext: str, text: str) -> None:
    assert plain_text(wikitext) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("Jan (ang. {{lang|en}}, ur. 1950) żył.", "Jan (ur. 1950) żył."),
        ("Jan ({{IPA|x}}; ur. 1950 – {{data}}) żył ({{x}}).", "Jan (ur. 1950) żył."),
        ("strona (ang.), „{{x}}” dom {{x}} , sad", "strona (ang.), dom, sad"),
        ("Ala, {{x}}, Ola", "Ala, Ola"),
        (": (1.1) {{x}}\n: (1.2) dom", "(1.2) dom"),
        ("Cena .5 i (12:30), wynik 2 : 1 .", "Cena .5 i (12:30), wynik 2 : 1."),
    ],
)
def test_what_dropped_markup_leaves_is_tidied(wikitext: str, text: str) -> None:
    assert plain_text(wikitext) == text


def test_a_plain_formula_stays_and_another_takes_its_sentence_along() -> None:
    text = (
        r"Energia <math>E = m \cdot c^2</math> rośnie. Stąd <math>\frac{a}{b}</math> maleje. Wynik to <math>\pi</math>."
    )
    assert plain_text(text) == "Energia E = m ·c^2 rośnie. Wynik to π."
    assert plain_text("Wzór ma postać:\n: <math>\\sqrt{x}</math>\nKoniec.") == "Wzór ma postać:\n\nKoniec."


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("Ala [[ma kota.\n\nOla ma [[pies|psa]].", "Ala ma kota.\n\nOla ma psa."),
        ("{{cytat|Ala [[ma}} kota", "Ala ma\n\nkota"),
        ("Ala {{ma\n\nkota.}} I psa", "Ala ma\n\nkota. I psa"),
        ("Ala {{ma [[kot|kota]] bez końca", "Ala ma kota bez końca"),
        ("Ala ma<ref>kota.\n\nOla<ref>przypis</ref> śpi", "Ala makota.\n\nOla śpi"),
        ("]] Ala }} ma |} <!-- kota", "Ala ma |}"),
        ("dom\n{|\n| a || b\n\nOla", "dom\n\nOla"),
        ("[[ab\ncd|e]]", "ab cd|e"),
        ("[http://x.pl a\nb]", "[http://x.pl a b]"),
        ("{{{x|y}}} dom", "dom"),
        ("<math>x dom", "x dom"),
    ],
)
def test_broken_markup_is_read_as_text(wikitext: str, text: str) -> None:
    assert plain_text(wikitext) == text


BROKEN = [
    *re.findall(r"\S+", "[[ {{ [[a| {{a| <ref> <nowiki> <math>x <b> <table> <poem> <!-- ( ''[[ &# __A ]] }}"),
    *("\n{|", "[http://a ", "\n= ", "( ,", " ,", "\n", "\n*", "„ ", "[[a\n\n"),
]


def seconds(wikitext: str) -> float:
    started = time.process_time()
    plain_text(wikitext)
    return time.process_time() - started


@pytest.mark.parametrize("unit", ["[[", "{{", "{{a|"])
def test_a_megabyte_of_broken_markup_takes_a_second(unit: str) -> None:
    assert seconds(unit * (1_000_000 // len(unit))) < 10  # what grows with the square takes minutes


@pytest.mark.parametrize("unit", BROKEN)
def test_broken_markup_takes_linear_time(unit: str) -> None:
    assert seconds(unit * (200_000 // len(unit))) < 4


@pytest.mark.parametrize(
    ("opener", "closer"), [("[[a|", "]]"), ("{{nowrap|", "}}"), ("<ref>", "</ref>"), ("\n{|", "\n|}")]
)
def test_deep_nesting_takes_linear_time(opener: str, closer: str) -> None:
    assert seconds(opener * 30_000 + "słowo " + closer * 30_000) < 4


PIECES = [
    *re.findall(
        r"\S+", "[[ ]] {{ }} | {| |} == ''' ] * cytat Plik: a ( , ) &lt; <br> <!-- --> <math> </math> <ref> </ref>"
    ),
    *("<poem>", "</poem>", "<nowiki>", "</nowiki>", "<table>", "</table>", "Ola ma.", "[http://x "),
    *(" ", "\n", "\n\n", "\0", "\1", "\4", "\ud800"),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_no_markup_raises_or_leaves_stray_white_space(wikitext: str) -> None:
    text = plain_text(wikitext)
    assert "  " not in text and "\n\n\n" not in text and text == text.strip()
    assert not any(mark in text for mark in "\0\1\2\3\4")
