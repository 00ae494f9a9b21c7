"""Personal numbers and addresses in Polish text: found by form and checksum, replaced by a placeholder of their type.

A number whose checksum fails stays: it identifies nobody, and invoices and codes are full of such numbers.
Forms and checksums: python-stdnum (PESEL with its date of birth, NIP, REGON of 9 and 14 digits, IBAN of any country).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from stdnum import iban
from stdnum.pl import nip, pesel, regon

PLACEHOLDERS = ("E-MAIL", "IBAN", "PESEL", "REGON", "NIP", "TELEFON")

_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9_][A-Za-z0-9._%+-]*@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![\w-])")
# Country, check digits, then groups as people type them; a Polish account (NRB) also goes without its country.
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Z]{2} ?)?\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
_PESEL = re.compile(r"(?<![\d.,])\d{11}(?!\d)")
_REGON_14 = re.compile(r"(?<![\d.,])\d{14}(?!\d)")
_REGON_9 = re.compile(r"(?<![\d.,])\d{9}(?!\d)")
_REGON_GROUPED = re.compile(r"((?i:regon)\W{1,12})(\d{3}[ -]\d{3}[ -]\d{3})(?![ -]?\d)")
_NIP = re.compile(
    r"(?<![\d.,])(?<!\d[ -])(?:PL ?)?(?:\d{10}|\d{3}[- ]\d{3}[- ]\d{2}[- ]\d{2}|\d{3}[- ]\d{2}[- ]\d{2}[- ]\d{3})"
    r"(?![ -]?\d)"
)

_NINE = r"(?:\d{9}|\d{3}[ -]\d{3}[ -]\d{3}|\(?\d{2}\)?[ -]\d{3}[ -]\d{2}[ -]\d{2}|\(\d{2}\) ?\d{7})"
# A phone number has no checksum, so it must show itself: by country, by a word before it, or as a mobile one in threes.
_PHONE_COUNTRY = re.compile(rf"(?<![\d+])(?:\+48|0048|\(\+48\)|\+ 48)[ -]?{_NINE}(?![ -]?\d)")
_PHONE_CUE = re.compile(
    rf"(?i)(\b(?:tel|telefon\w*|kom|komórk\w+|komórkow\w+|faks|fax|infolini\w+|sms\w*|whatsapp|zadzwoń\w*|dzwoń\w*|dzwonić)"
    rf"\b[^\d\n]{{0,30}}?)({_NINE})(?![ -]?\d)"
)
_PHONE_MOBILE = re.compile(
    r"(?<![\d.,])(?<!\d[ -])(?:45|50|51|53|57|60|66|69|72|73|78|79|88)\d[ -]\d{3}[ -]\d{3}(?![ -]?\d)"
    r"(?!\s*(?:zł|PLN|EUR|USD|euro|dolar|tys|mln|osób|sztuk|kilomet|km|ton|kg|m²|m2|mieszka))"
)


def mask(text: str) -> tuple[str, Counter[str]]:
    """`text` with each personal number or address replaced by a placeholder such as [PESEL], and how many of each."""
    counts: Counter[str] = Counter()

    def put(placeholder: str) -> str:
        counts[placeholder] += 1
        return f"[{placeholder}]"

    def checked(placeholder: str, is_valid: Callable[[str], bool]) -> Callable[[re.Match[str]], str]:
        return lambda match: put(placeholder) if is_valid(match[match.lastindex or 0]) else match[match.lastindex or 0]

    if "@" in text:
        text = _EMAIL.sub(lambda match: put("E-MAIL"), text)
    if not _SOME_DIGITS.search(text):
        return text, counts
    text = _IBAN.sub(lambda match: _mask_account(match[0], put), text)
    text = _PESEL.sub(checked("PESEL", pesel.is_valid), text)
    text = _REGON_14.sub(checked("REGON", regon.is_valid), text)
    text = _NIP.sub(checked("NIP", lambda found: nip.is_valid(found)), text)
    text = _PHONE_COUNTRY.sub(lambda match: put("TELEFON"), text)
    text = _PHONE_CUE.sub(lambda match: match[1] + put("TELEFON"), text)
    text = _REGON_9.sub(checked("REGON", regon.is_valid), text)
    text = _REGON_GROUPED.sub(lambda match: match[1] + checked("REGON", regon.is_valid)(match), text)
    text = _PHONE_MOBILE.sub(lambda match: put("TELEFON"), text)
    return text, counts


_SOME_DIGITS = re.compile(r"\d[\d -]{7}")


def _mask_account(found: str, put: Callable[[str], str]) -> str:
    """Mask the longest beginning of `found` that is a valid account; words after it may look like one more group."""
    groups = re.split(r"([ -])", found)
    for end in range(len(groups), 0, -2):
        candidate = "".join(groups[:end])
        compact = re.sub(r"[ -]", "", candidate)
        if compact[:2].isdigit():
            compact = f"PL{compact}"
        if (not compact.startswith("PL") or len(compact) == 28) and iban.is_valid(compact):
            return put("IBAN") + "".join(groups[end:])
    return found
