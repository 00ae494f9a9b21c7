"""Personal numbers and addresses in Polish text: found by form and checksum, replaced by a placeholder of their type.

A number whose checksum fails stays: it identifies nobody, and invoices and codes are full of such numbers. What has no
checksum must show itself by its form or by a word before it; so a street in a novel stays, and so does 2.1.3.4.

Checksums: python-stdnum (PESEL with its date of birth, NIP, REGON of 9 and 14 digits, IBAN of any country, Luhn); the
identity card's and the passport's are the weights 7 3 1 of ICAO 9303 over the letters and digits but the check digit,
which the specimens ABA300000 and ZS0000177 bear out. A passport needs the word besides, for patents and knowledge base
articles share its form. An IP address of a private, reserved, multicast or documentation range identifies nobody.
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator

from stdnum import iban, luhn
from stdnum.pl import nip, pesel, regon

PLACEHOLDERS = ("E-MAIL", "IBAN", "PESEL", "REGON", "NIP", "TELEFON", "DOWÓD", "PASZPORT", "KARTA", "IP", "ADRES")

_Span = tuple[int, int]
_Find = Callable[[re.Match[str]], _Span | None]

_LONG = r"[0-9](?:[ \xa0\u202f()/.\u2011–-]{0,3}[0-9]){8}"
_GAP = "[ \xa0\u202f\u2011–-]"  # what people type between groups of digits
# A number by itself: no part of a word, a code, a decimal fraction or an ISBN. Grouped, it must also stand off from
# further groups, for the middle of a longer row of groups may be anything.
_START = r"(?<!\w)(?<!\d-)(?<!\b\d[.,])(?<!\b\d\d[.,])(?<!\b\d\d\d[.,])(?<!ISBN[ :])(?<!ISBN: )"
_END = r"(?!\w)(?!-\d)(?![.,]\d{1,2}(?!\d))"
_APART = rf"(?<!\d{_GAP})"
_ALONE = rf"(?!{_GAP}?\d)"
_NO_AMOUNT = r"(?!\s?(?:zł|PLN|EUR|USD|euro|dolar|tys|mln|mld|osób|szt|kilomet|km|ton|kg|m²|m2|mieszka|[%€$]))"


def _cued(word: str, number: str) -> re.Pattern[str]:
    """`number` after `word`, as in "NIP: …" and "numer REGON to …"; the word vouches for any grouping."""
    return re.compile(
        rf"(?i:\b{word})(?:[-\u2011]?[^\W\d]{{1,3}})?[^\w\[\]\n]{{1,3}}"
        rf"(?:(?:nr|numer|numerem|to|firmy|brzmi|jest)[^\w\[\]\n]{{1,3}}){{0,2}}(?P<it>{number}){_ALONE}{_END}"
    )


def _digits(count: int) -> str:
    return rf"\d(?:{_GAP}?\d){{{count - 1}}}"


_TOP_LEVEL = r"(?i:pl|com|eu|net|org|info|edu|gov|biz|io|de|uk|cz|fr)(?!\w)"
_DOT = r"(?:\.|\s?[\[({]\s?(?:dot|kropka)\s?[\])}]\s?|\s(?:dot|kropka)\s)"
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
# jan (at) poczta.pl; and without brackets only with the dot in words: jan małpa poczta kropka pl
_AT = r"[\[({]\s?(?i:at|ma[łl]pa)\s?[\])}]"
_EMAIL_SPELT = re.compile(
    rf"(?<![\w.+-])[\w+-]{{1,64}}(?:{_DOT}[\w+-]{{1,64}}){{0,3}}"
    rf"(?:\s?{_AT}\s?[\w-]{{1,63}}(?:{_DOT}[\w-]{{1,63}}){{0,3}}{_DOT}"
    rf"|\smałpa\s[\w-]{{1,63}}(?:{_DOT}[\w-]{{1,63}}){{0,3}}\s(?:dot|kropka)\s){_TOP_LEVEL}"
)

_IP_CUE = re.compile(r"(?i:\b(?:ip(?:v4)?|adres\w*|host\w*|serwer\w*|dns|ping|ssh)\b|https?:)[^\n\d\[\]]{0,40}$")
_VERSION_CUE = re.compile(r"(?i:\b(?:v|ver|wersj\w*|version|build|kompilacj\w*))\W{0,3}$")
_IPV4 = re.compile(r"(?<![\w.])(?<![^/]/)(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d|/\d{1,2}(?![\w.]))")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?<!:)(?![\w/]|:\w)")

_CAPITAL = r"[A-ZĄĆĘŁŃÓŚŹŻ][\w'’-]{1,30}"
_STREET = re.compile(  # by its first letter, which is quick
    r"[UAPOuapo](?<!\w.)(?<!et .)(?:(?<=[UAPuap])[lL]\.|(?<=[Oo])[sS]\."
    r"|(?i:lic[aęy]|lej[aeę]|lei|lejach|lac(?:u|em)?|siedl(?:e|u|em)))\s"
)
_HOUSE_WITHIN = 90  # characters between a street word and the house number
_TOWN = (
    rf"\d{{2}}-\d{{3}}\s{_CAPITAL}(?:[ \xa0](?:[A-ZŁŚŻ]\w{{1,20}}(?:[sc]k|SK|CK)(?:i|a|ie|I|A|IE)|nad[ \xa0]{_CAPITAL}"
    r"|Góra|Sól|Wola|Wieś|Ruda|Huta|Zdrój|Górnicza|Sącz|Targ|Tomyśl|Dwór|Las)(?!\w))?"
)
_ADDRESS = re.compile(
    # the word that makes any house number an address of somebody
    r"(?P<cue>(?i:(?<!\w)(?:adres\w{0,3}|adr\.|zam\.|zamieszka[łl]\w{1,3}|zameldowan\w{1,3}))[^.;\n\d\[\]]{0,60}?)?"
    rf"(?P<it>(?P<town_before>(?<![\w-]){_TOWN},?\s{{1,2}})?"
    rf"{_STREET.pattern}(?:(?:\d{{1,2}}|[^\W\d_]{{1,5}}\.|[A-Z]\.)\s?){{0,3}}(?:{_CAPITAL}|\d{{2,4}}-lecia)"
    rf"(?:\s(?:[A-ZĄĆĘŁŃÓŚŹŻ]\.|i|na|nad|pod|\d{{1,2}}|{_CAPITAL})){{0,4}}\s(?:nr\s)?"
    r"(?P<house>\d{1,3})(?:-\d{1,3})?[A-Za-z]?(?![\w-]|[.,]\d)"
    r"(?P<flat>\s?/\s?(?P<second>\d{1,4})[A-Za-z]?(?P<third>/\d{1,4})?(?![\w/])|,?\s?(?:m|lok|mieszk)\.?\s?\d{1,4}(?!\w))?"
    rf"(?P<town>,?\s{{1,2}}{_TOWN})?)"
)

# Country, check digits, then groups as people type them; a Polish account (NRB) also goes without its country.
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Z]{2} ?)?\d{2}"
    rf"(?:{_GAP}?[A-Z0-9]{{4}}){{2,7}}(?:{_GAP}?[A-Z0-9]{{1,3}})?(?![A-Za-z0-9])"
)
# Visa, Mastercard (51 to 55, 2221 to 2720) and American Express.
_CARD = re.compile(
    rf"{_START}{_APART}(?:(?:4\d{{3}}|5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)(?:{_GAP}?\d{{4}}){{3}}"
    rf"|3[47]\d\d{_GAP}?\d{{6}}{_GAP}?\d{{5}}){_ALONE}{_END}"
)
# The first digit of a NIP is no 0, which tells it from a KRS number.
_NIP = re.compile(rf"{_START}(?:PL ?)?[1-9]\d{{9}}{_END}")
_NIP_GROUPED = re.compile(
    rf"{_START}{_APART}(?:PL ?)?[1-9]\d\d"
    rf"(?:{_GAP}\d{{3}}{_GAP}\d\d{_GAP}\d\d|{_GAP}\d\d{_GAP}\d\d{_GAP}\d{{3}}){_ALONE}{_END}"
)

_IDENTITY_CARD = re.compile(rf"(?<!\w)(?:[A-Z]{{3}}[ \xa0-]?\d{{6}}|[A-Z]{{3}},?\s(?:nr|numer)\.?:?\s\d{{6}}){_END}")
# Three capitals before a number that are no series: currencies, registers, standards.
_NO_SERIES = re.compile(
    "PLN|EUR|USD|GBP|CHF|CZK|SEK|NOK|DKK|HUF|UAH|RUB|JPY|CAD|AUD|KRS|NIP|VAT|PKD|BDO|EAN|ISO|DIN|RAL|REF|TEL|FAX|PIN|PUK"
)
_PASSPORT = re.compile(rf"(?i:paszport|passport)[^\d\n\[\]]{{0,40}}?(?<!\w)(?P<it>[A-Z]{{2}}[ \xa0-]?\d{{7}}){_END}")

# A phone number has no checksum, so it must show itself: by country, by a word before it, or as a mobile one in threes.
_NINE = (
    rf"(?:\d{{9}}|(?:0[ -]?)?\d{{3}}{_GAP}\d{{3}}{_GAP}\d{{3}}|\d{{3}}\.\d{{3}}\.\d{{3}}"
    rf"|\d{{3}}{_GAP}\d{{2}}{_GAP}\d{{2}}{_GAP}\d{{2}}"
    rf"|\(?(?:0[ -]?)?\d{{2}}\)?[ \xa0/–-]{{1,3}}\d{{3}}{_GAP}?\d{{2}}{_GAP}?\d{{2}}|\(\d{{2}}\)\d{{7}})"
)
_PHONE_COUNTRY = re.compile(rf"(?<![\w+])(?:(?:\+ ?48|0048|\(\+48\)){_GAP}?{_NINE}|\+[1-9]\d{{9,14}}){_ALONE}(?!\w)")
_PHONE_CUE = re.compile(
    r"(?i:\b(?:tel|telefon\w*|kom|komórk\w+|komórkow\w+|faks|fax|infolini\w+|sms\w*|whatsapp|zadzwoń\w*|dzwoń\w*|dzwonić)"
    r"\b)[^\d\n\[\]]{0,30}?(?:\[TELEFON\](?:[,;/]| lub| albo| oraz| i)\s?){0,3}"  # and those that follow it
    rf"(?P<it>{_NINE}){_ALONE}(?!\w){_NO_AMOUNT}"
)
_PHONE_MOBILE = re.compile(
    rf"{_START}{_APART}(?:45|50|51|53|57|60|66|69|72|73|78|79|88)\d{_GAP}\d{{3}}{_GAP}\d{{3}}{_ALONE}{_END}{_NO_AMOUNT}"
)

_GAPS = re.compile(_GAP)


def _span(match: re.Match[str]) -> _Span:
    """Where the group called `it` lies, or everything where there is none: a cue before it stays."""
    return match.span("it" if "it" in match.re.groupindex else 0)


def _by(is_valid: Callable[[str], bool]) -> _Find:
    def find(match: re.Match[str]) -> _Span | None:
        start, end = _span(match)
        return (start, end) if is_valid(_GAPS.sub("", match.string[start:end])) else None

    return find


def _account(match: re.Match[str]) -> _Span | None:
    """The longest beginning of `match` that is a valid account; words after it may look like one more group."""
    ends = [*(gap.start() for gap in _GAPS.finditer(match.string, match.start(), match.end())), match.end()]
    for end in reversed(ends):
        number = _GAPS.sub("", match.string[match.start() : end])
        if number[:2].isdigit():
            number = f"PL{number}"
        if (not number.startswith("PL") or len(number) == 28) and iban.is_valid(number):
            return match.start(), end
    return None


def _is_document(number: str, check: int) -> bool:
    """Whether the digit at `check` is that of the rest, by the weights 7 3 1 and letters counted from 10."""
    values = [int(character, 36) for character in number]
    digit = values.pop(check)
    return sum(value * (7, 3, 1)[place % 3] for place, value in enumerate(values)) % 10 == digit


def _is_identity_card(found: str) -> bool:
    series, number = found[:3], found[-6:]
    return not _NO_SERIES.match(series) and _is_document(series + number, check=3)


def _is_passport(found: str) -> bool:
    return _is_document(found, check=2)


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


def _public_ipv4(match: re.Match[str]) -> _Span | None:
    before = match.string[max(0, match.start() - 60) : match.start()]
    # Versions and sections are small numbers, so an address of small numbers needs its word.
    is_large = sum(len(octet) == 3 for octet in match[0].split(".")) >= 2
    is_address = not _VERSION_CUE.search(before) and (is_large or _IP_CUE.search(before) is not None)
    return match.span() if is_address and _is_public(match[0]) else None


def _somebodys_address(match: re.Match[str]) -> _Span | None:
    signs = {sign for sign in ("cue", "town_before", "flat", "town") if match[sign]}
    if match["second"] and not match["third"] and 0 < int(match["second"]) - int(match["house"]) <= 4:
        signs.discard("flat")  # one building with two numbers, as in "ul. Piwna 7/9"
    return match.span("it") if signs else None


_Rule = tuple[str, re.Pattern[str], _Find]
# Rules under the sign without which none of them can match, and which is found faster. In this order: what its form, a
# word or a longer checksum makes certain goes before what is certain by less.
_Rules = tuple[tuple[re.Pattern[str], tuple[_Rule, ...]], ...]
_ANYWHERE: _Rules = (
    (re.compile("@"), (("E-MAIL", _EMAIL, _span),)),
    (re.compile(f"{_AT}|\\smałpa\\s"), (("E-MAIL", _EMAIL_SPELT, _span),)),
    (re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"), (("IP", _IPV4, _public_ipv4),)),
    (re.compile(r"[23][0-9A-Fa-f]{3}:"), (("IP", _IPV6, _by(_is_public)),)),
    (_STREET, (("ADRES", _ADDRESS, _somebodys_address),)),
)
_OUTSIDE_URLS: _Rules = (
    (
        re.compile(_LONG),
        (
            ("IBAN", _IBAN, _account),
            ("KARTA", _CARD, _by(luhn.is_valid)),
            ("PESEL", _cued("pesel", _digits(11)), _by(pesel.is_valid)),
            ("NIP", _cued("nip", rf"(?:PL ?)?{_digits(10)}"), _by(nip.is_valid)),
            ("REGON", _cued("regon", f"{_digits(14)}|{_digits(9)}"), _by(regon.is_valid)),
            ("PESEL", re.compile(rf"{_START}\d{{11}}{_END}"), _by(pesel.is_valid)),
            ("REGON", re.compile(rf"{_START}\d{{14}}{_END}"), _by(regon.is_valid)),
            ("NIP", _NIP, _by(nip.is_valid)),
            ("NIP", _NIP_GROUPED, _by(nip.is_valid)),
            ("TELEFON", _PHONE_COUNTRY, _span),
            ("TELEFON", _PHONE_CUE, _span),
            ("REGON", re.compile(rf"{_START}\d{{9}}{_END}(?!/\d){_NO_AMOUNT}"), _by(regon.is_valid)),
            ("TELEFON", _PHONE_MOBILE, _span),
        ),
    ),
    (
        re.compile(r"[0-9]{6}"),
        (("DOWÓD", _IDENTITY_CARD, _by(_is_identity_card)), ("PASZPORT", _PASSPORT, _by(_is_passport))),
    ),
)

# Numbers in a web address are those of pages, and every tenth of them would pass for a NIP.
_URL = re.compile(r"((?:https?://|www\.)[^\s<>\"')\]]+)")

# One scan finds where anything could be; no rule is tried elsewhere, so plain text costs only this.
_CANDIDATE = re.compile(
    r"[0-9@(\[{](?:(?<=@)|(?<=[(\[{])\s?(?i:at|ma[łl]pa)\s?[)\]}]"
    r"|(?<=[0-9])(?:(?<![0-9a-z_].)(?:[ \xa0\u202f()/.\u2011–-]{0,3}[0-9]){8}|(?<=[A-Z \xa0-].)[0-9]{5}"
    r"|[0-9A-Fa-f]{3}:|[0-9]{0,2}(?:\.[0-9]{1,3}){3}|(?<=[^\W\d_]\s.)(?P<house>[0-9]{0,2}(?!\.?[0-9]))))"
)
_BEFORE, _AFTER = 240, 120  # characters around a candidate that its rules may look at


def mask(text: str) -> tuple[str, Counter[str]]:
    """`text` with each personal number or address replaced by a placeholder such as [PESEL], and how many of each."""
    counts: Counter[str] = Counter()
    pieces: list[str] = []
    done = 0
    for start, end in _windows(text):
        pieces += text[done:start], _mask_window(text[start:end], counts)
        done = end
    return "".join(pieces) + text[done:], counts


def _windows(text: str) -> Iterator[_Span]:
    """The disjoint parts of `text`, in order, that could hold something to mask, with what its rules look at."""
    start = end = 0
    for candidate in _candidates(text):
        if candidate.start() - _BEFORE > end:
            yield start, end
            start = candidate.start() - _BEFORE
        end = candidate.end() + _AFTER
    yield start, end


def _candidates(text: str) -> Iterator[re.Match[str]]:
    found = (match for match in _CANDIDATE.finditer(text) if match["house"] is None or _is_after_street(match))
    spoken = re.finditer(" małpa ", text) if " małpa " in text else ()
    return heapq.merge(found, spoken, key=re.Match.start)


def _is_after_street(match: re.Match[str]) -> bool:
    return _STREET.search(match.string, max(0, match.start() - _HOUSE_WITHIN), match.start()) is not None


def _mask_window(text: str, counts: Counter[str]) -> str:
    """Mask until nothing is left: a number beside another may be told apart only once that one is masked."""
    masked = -1
    while counts.total() != masked:
        masked = counts.total()
        text = _apply(_ANYWHERE, text, counts)
        parts = _URL.split(text)
        parts[::2] = [_apply(_OUTSIDE_URLS, part, counts) for part in parts[::2]]
        text = "".join(parts)
    return text


def _apply(families: _Rules, text: str, counts: Counter[str]) -> str:
    for kind, pattern, find in itertools.chain.from_iterable(rules for sign, rules in families if sign.search(text)):
        pieces: list[str] = []
        done = at = 0
        while match := pattern.search(text, at):
            if found := find(match):
                pieces += text[done : found[0]], f"[{kind}]"
                done = at = found[1]
                counts[kind] += 1
            else:
                at = match.start() + 1
        text = "".join(pieces) + text[done:] if pieces else text
    return text
