"""Mark-up to text: the article of a web page, the words of a Markdown page. An empty line parts paragraphs."""

import functools
import html
import re
from collections.abc import Iterable
from typing import Any

import trafilatura
from markdown_it import MarkdownIt

from wronai.decoding import Rejection

MAX_TAGS = 200_000  # of a page: at 30 µs and 2 kB each, more would be minutes and gigabytes; a novel has 20,000
MAX_TITLE = 1000  # characters of mark-up
_HEADING = re.compile(r"<(h1|title)\b[^>]{0,1000}>", re.IGNORECASE)
_CLOSED = {"h1": re.compile("</h1>", re.IGNORECASE), "title": re.compile("</title>", re.IGNORECASE)}


def article(page: str) -> tuple[str, str] | Rejection:
    """Title and article of a web page in HTML, without navigation, notices and footer; never an exception."""
    if page.count("<") > MAX_TAGS:
        return Rejection("no_article", 0.0)
    try:
        text = trafilatura.extract(page, include_comments=False, include_tables=False, include_formatting=False)
    except Exception:  # a parser of whatever the web holds: what breaks it has no article that it could give
        text = None
    if not text:
        return Rejection("no_article", 0.0)
    return _title(page), re.sub(r"\n+", "\n\n", text)


def _title(page: str) -> str:
    """The first heading or title that is closed soon."""
    for opening in _HEADING.finditer(page):
        closing = _CLOSED[opening[1].lower()].search(page, opening.end(), opening.end() + MAX_TITLE)
        if closing:
            title = re.sub(r"<[^>]+>|\s+", " ", page[opening.end() : closing.start()]).strip()
            return html.unescape(title)
    return ""


_FRONT_MATTER = re.compile(r"\A\ufeff?---\r?\n.*?\n---\s*?\n", re.DOTALL)
# Tags of Jinja, MDX and DocFX, HTML comments: what is addressed to the tool that renders the page.
_TEMPLATE_TAG = re.compile(
    r"\{%|\{/\*|\{\{|<!--|^:::.*$|\[![\w-]+ ?\[[^\]]{0,500}\]\([^)]{0,500}\)\]|\[![\w.-]+\]|<xref:[^>]{0,500}>|"
    r'^> ?\[!div class="(?:step-by-step|nextstepaction)"\].*(?:\n> ?.*){0,9}|\[!div [^\]\n]{0,200}\]',
    re.MULTILINE,
)
_TAG_ENDS = {"{%": "%}", "{/*": "*/}", "{{": "}}", "<!--": "-->"}
# DocFX shows a reference to code by its last name, as in <xref:System.IO.File.Open*> and <xref:System.Span%601>.
_CODE_NAME = re.compile(r"<xref:[A-Z]\w*(?:%60\d+)?(?:\.\w+(?:%60\d+)?)*\.(\w+)(?:%60|%2A|%28|[*`(?]|>)")
# A hundred of the same sign say no more than four, and markdown-it takes seconds for a million.
_LONG_RUN = re.compile(r"([^\w\s]{1,2})\1{100,}")


@functools.cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def markdown_text(source: str) -> tuple[str, str]:
    """Title and running text of a Markdown page: no front matter, code, tables, HTML, template tags, link targets."""
    source = _LONG_RUN.sub(r"\1\1\1\1", _without_template_tags(_FRONT_MATTER.sub("", source)))
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


def _without_template_tags(source: str) -> str:
    pieces: list[str] = []
    unclosed: set[str] = set()  # ends that do not come any more: looking for them again would be quadratic
    kept = position = 0
    while tag := _TEMPLATE_TAG.search(source, position):
        start, stop = tag.span()
        if tag[0] in _TAG_ENDS:
            end = _TAG_ENDS[tag[0]]
            found = -1 if end in unclosed else source.find(end, stop)
            if found < 0:
                unclosed.add(end)
                position = start + 1
                continue
            stop = found + len(end)
        code = _CODE_NAME.match(tag[0])
        pieces += source[kept:start], code[1] if code else ""
        kept = position = stop
    return "".join([*pieces, source[kept:]])


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
