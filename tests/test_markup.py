import time
from collections.abc import Callable

import pytest
import trafilatura
from hypothesis import given, settings
from hypothesis import strategies as st

from wronai import markup
from wronai.decoding import Rejection

SENTENCES = (
    "Na skraju wsi stał dom, w którym od lat nikt nie mieszkał.",
    "Dzieci mówiły, że straszy tam o północy, ale stary młynarz śmiał się z tego.",
    "Pewnej jesieni do domu wprowadziła się nauczycielka z miasta.",
    "Wymieniła okna, pobieliła ściany i zasadziła przy furtce krzak bzu.",
    "W środę wieczorem zaprosiła wszystkich sąsiadów na ciasto ze śliwkami.",
)
BODY = "".join(f"<p>{sentence}</p>" for sentence in SENTENCES)
NO_ARTICLE = Rejection("no_article", 0.0)
examples = settings(derandomize=True, deadline=None, max_examples=200)


def test_a_page_becomes_its_article() -> None:
    page = f"<html><body><nav><a href='/'>Start</a></nav><article><h1>Dom</h1>{BODY}</article></body></html>"
    assert markup.article(page) == ("Dom", "\n\n".join(["Dom", *SENTENCES]))


@pytest.mark.parametrize(
    ("head", "title"),
    [
        ("<title>\nDom na <b>skraju</b>\n wsi</title>", "Dom na  skraju  wsi"),
        ("<TITLE lang='pl'>Dom</TITLE>", "Dom"),
        ("<title>nie zamknięty" + " " * 2000 + "<h1>Dom</h1>", "Dom"),
        ("", ""),
    ],
)
def test_the_first_closed_heading_is_the_title(head: str, title: str) -> None:
    assert markup._title(f"<html><head>{head}</head><body>{BODY}</body></html>") == title


@pytest.mark.parametrize(
    "page",
    [
        "",
        " \n",
        "<",
        "<html>",
        "<html><body></body></html>",
        "<html><frameset></frameset></html>",
        "<html><script>var tekst = '<p>Nic</p>';</script></html>",
        "%PDF-1.4 \x00\x01",
        '{"a": "<p>"}',
        "\ud800",
    ],
)
def test_a_page_without_an_article_is_rejected(page: str) -> None:
    assert markup.article(page) == NO_ARTICLE


@pytest.mark.parametrize(
    "page",
    [
        f"<p>\ud800{BODY}",
        f"<html><body>{BODY}\x00\x0b",
        f"<?xml version='1.0' encoding='utf-16'?><html><body>{BODY}</body></html>",
        f"<!DOCTYPE html><html><body><div><div><b><i>{BODY}</div></table></b>",
    ],
)
def test_a_broken_page_still_gives_its_article(page: str) -> None:
    assert "pobieliła ściany" in str(markup.article(page)[1])


def test_an_error_of_the_extractor_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(trafilatura, "extract", fails)
    assert markup.article(BODY) == NO_ARTICLE


def test_a_page_of_more_tags_than_a_book_has_is_rejected() -> None:
    assert markup.article(f"<html><body>{BODY}" + "<p>" * markup.MAX_TAGS) == NO_ARTICLE


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 100_000 + "głęboko",
        f"<html><body>{BODY}" + "<span>a" * 100_000,
        f"<html><body>{BODY}" + "<h1>a" * 30_000,
        f"<html><body>{BODY}" + "<title " * 100_000,
        f"<html><body><p>{BODY}" + " " * 5_000_000,
        f"<html><body>{BODY}" + "<!--" * 100_000,
        "<html>" + "<script>var a = 1;</script>" * 50_000,
    ],
)
def test_a_page_takes_seconds_at_most(page: str) -> None:
    started = time.process_time()
    markup.article(page)
    assert time.process_time() - started < 15


@settings(examples, max_examples=50)
@given(
    st.lists(st.sampled_from(["<p>", "</p>", "<table>", "<td", "<!--", "]]>", "&#xd800;", "&", '"', "słowa ", "<h1>"]))
)
def test_no_page_breaks_the_extraction(pieces: list[str]) -> None:
    result = markup.article("".join(pieces))
    assert isinstance(result, Rejection) or result[1]


def test_markdown_loses_its_marks_and_keeps_its_words() -> None:
    source = (
        "---\ntitle: x\n---\n# Młyn\n\nMłyn *stoi* nad\nrzeką, [obok](http://x.pl) `koła`.\n\n```sh\nls\n```\n\n"
        "| a | b |\n|---|---|\n| c | d |\n\n::: moniker\n\n- raz\n- dwa\n\n{% include x %}\n<!-- y -->\n"
    )
    assert markup.markdown_text(source) == ("Młyn", "Młyn\n\nMłyn stoi nad rzeką, obok koła.\n\nraz\n\ndwa")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Młyn {{ page.x }}stoi{/* uwaga\n\n dalej */} tu.", "Młyn stoi tu."),
        ("Młyn {% a %}stoi{% b %} tu {{.", "Młyn stoi tu {{."),
        ("Cena {{ albo {% nie zamknięte <!-- i to", "Cena {{ albo {% nie zamknięte <!-- i to"),
        ("[!INCLUDE [wstęp](a.md)]Młyn <xref:a.b>stoi.", "Młyn stoi."),
        ("Typ <xref:System.IO.FileInfo> stoi, <xref:mill/Old.Mill>nie.", "Typ FileInfo stoi, nie."),
        ("Typ <xref:A.Span%601?displayProperty=fullName> stoi.", "Typ Span stoi."),
        (
            "Są <xref:A.Span%601.Slice%28System.Int32%29>, <xref:A.B.Open*> i <xref:A.B.op_Add>.",
            "Są Slice, Open i op_Add.",
        ),
        ("> [!NOTE]\n> Młyn stoi.", "Młyn stoi."),
        ('> [!div class="checklist"]\n> * Młyn stoi.', "Młyn stoi."),
        ('Młyn.\n\n> [!div class="step-by-step"]\n> [Poprzednie](a.md)\n> [dalej](b.md)\n\nRzeka.', "Młyn.\n\nRzeka."),
        ("Młyn  \nstoi \\* tu &amp; tam.", "Młyn\nstoi * tu & tam."),
        ("Młyn \ud800 stoi.", "Młyn \ud800 stoi."),
        ("", ""),
    ],
)
def test_what_is_addressed_to_the_renderer_goes(source: str, text: str) -> None:
    assert markup.markdown_text(source) == ("", text)


@pytest.mark.parametrize(
    "page",
    [
        lambda size: "[" * size,
        lambda size: "*" * size,
        lambda size: "*a " * (size // 3),
        lambda size: ">" * size,
        lambda size: "> " * (size // 2),
        lambda size: (">" * 50 + " a\n") * (size // 53),
        lambda size: "- " * (size // 2),
        lambda size: "![" * (size // 2),
        lambda size: "[a](" * (size // 4),
        lambda size: "`" * size,
        lambda size: "{{" * (size // 2),
        lambda size: "{% " * (size // 3),
        lambda size: "<!-- " * (size // 5),
        lambda size: "<xref:" * (size // 6),
        lambda size: "[!a [b](" * (size // 8),
        lambda size: '> [!div class="step-by-step"]\n' * (size // 30),
        lambda size: "---\n" * (size // 4),
    ],
)
def test_the_time_for_markdown_is_linear(page: Callable[[int], str]) -> None:
    source = page(100_000)
    started = time.process_time()
    markup.markdown_text(source)
    assert time.process_time() - started < 15


@examples
@given(st.text(st.sampled_from("a *_[]()`>#-{}%!<|\n\\&:\ud800\x00"), max_size=60))
def test_no_markdown_breaks_the_parser(source: str) -> None:
    title, text = markup.markdown_text(source)
    assert isinstance(title, str) and isinstance(text, str)
