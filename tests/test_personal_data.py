import re
import string
import time
from datetime import date
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wronai.personal_data import PLACEHOLDERS, mask

repeatable = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Numer PESEL 44051401359.", "Numer PESEL [PESEL]."),
        ("PESEL: 440514 01359", "PESEL: [PESEL]"),
        ("numer PESEL to 44-05-14-01359,", "numer PESEL to [PESEL],"),
        ("Osoby: 44051401359,02070803628;", "Osoby: [PESEL],[PESEL];"),
        ("NIP 526-000-12-46", "NIP [NIP]"),
        ("NIP: PL5260001246,", "NIP: [NIP],"),
        ("NIP-u 526 00 01 246", "NIP-u [NIP]"),
        ("Sprzedawca (526-00-01-246)", "Sprzedawca ([NIP])"),
        ("NIP/REGON: 5260001246/123456785", "NIP/REGON: [NIP]/[REGON]"),
        ("REGON 123456785", "REGON [REGON]"),
        ("REGON: 123-456-785", "REGON: [REGON]"),
        ("REGON 12345678512347", "REGON [REGON]"),
        ("REGON 123456785 12347", "REGON [REGON]"),
        ("konto PL61 1090 1014 0000 0712 1981 2874.", "konto [IBAN]."),
        ("konto 61 1090 1014 0000 0712 1981 2874.", "konto [IBAN]."),
        ("konto 61109010140000071219812874.", "konto [IBAN]."),
        ("konto 61-1090-1014-0000-0712-1981-2874.", "konto [IBAN]."),
        ("konto 61\u00a01090\u00a01014\u00a00000\u00a00712\u00a01981\u00a02874.", "konto [IBAN]."),
        ("Konto DE89 3704 0044 0532 0130 00 JEST", "Konto [IBAN] JEST"),
        ("pozycja 12 PL61 1090 1014 0000 0712 1981 2874", "pozycja 12 [IBAN]"),
        ("Karta 4111 1111 1111 1111 wygasła", "Karta [KARTA] wygasła"),
        ("5555555555554444, 3782 822463 10005", "[KARTA], [KARTA]"),
        ("dowód ABA300000", "dowód [DOWÓD]"),
        ("dowód ABA 300000, wydany", "dowód [DOWÓD], wydany"),
        ("dowód osobisty seria ABA nr 300000.", "dowód osobisty seria [DOWÓD]."),
        ("paszport ZS0000177", "paszport [PASZPORT]"),
        ("Paszport seria i numer: ZS 0000177.", "Paszport seria i numer: [PASZPORT]."),
    ],
)
def test_numbers_with_a_checksum_become_placeholders(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("tel. 22 123 45 67", "tel. [TELEFON]"),
        ("tel. (22) 123-45-67", "tel. [TELEFON]"),
        ("tel./faks 0 22 123 45 67", "tel./faks [TELEFON]"),
        ("tel. (022) 1234567", "tel. [TELEFON]"),
        ("tel. 22/123-45-67", "tel. [TELEFON]"),
        ("Tel.: 22 621 00 01, 602345678 lub 603 45 67 89", "Tel.: [TELEFON], [TELEFON] lub [TELEFON]"),
        ("kom. 0 601 234 567", "kom. [TELEFON]"),
        ("tel. kom. 601.234.567", "tel. kom. [TELEFON]"),
        ("zadzwoń pod 601234567", "zadzwoń pod [TELEFON]"),
        ("+48 601-234-567", "[TELEFON]"),
        ("0048601234567", "[TELEFON]"),
        ("(+48) 22 123 45 67", "[TELEFON]"),
        ("+48 (22) 123 45 67", "[TELEFON]"),
        ("+442079460958", "[TELEFON]"),
        ("Kto znalazł: 601 234 567, dziękuję.", "Kto znalazł: [TELEFON], dziękuję."),
        ("601–234–567", "[TELEFON]"),
        ("pisz na jan.kowalski@poczta.example.pl.", "pisz na [E-MAIL]."),
        ("jan (at) poczta.pl", "[E-MAIL]"),
        ("pisz: jan.nowak[at]poczta[dot]com, proszę", "pisz: [E-MAIL], proszę"),
        ("jan [małpa] poczta kropka pl", "[E-MAIL]"),
        ("Adres: jan(małpa)poczta.com.pl.", "Adres: [E-MAIL]."),
        ("anna kropka nowak małpa poczta kropka pl", "[E-MAIL]"),
    ],
)
def test_phones_and_mail_addresses_become_placeholders(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Wpis z adresu 83.12.44.7 usunięto.", "Wpis z adresu [IP] usunięto."),
        ("IP: 5.2.3.4", "IP: [IP]"),
        ("logowanie 178.235.146.12:51022", "logowanie [IP]:51022"),
        ("http://178.235.146.12/panel", "http://[IP]/panel"),
        ("z 2a02:a31a:c23c:1f80::17 i", "z [IP] i"),
        ("[2001:67c:2e8:22:0:0:c100:68b]", "[[IP]]"),
        ("ul. Prosta 5 m. 4", "[ADRES]"),
        ("na ul. Prostej 12/3 wieczorem", "na [ADRES] wieczorem"),
        ("os. Kolorowe 7 lok. 12, klatka B", "[ADRES], klatka B"),
        ("al. Jana Pawła II 14, 00-950 Warszawa.", "[ADRES]."),
        ("ul. 3 Maja 12a\n35-030 Rzeszów\nPolska", "[ADRES]\nPolska"),
        ("ul. gen. J. Bema 5, 33-300 Nowy Sącz", "[ADRES]"),
        ("plac Wolności 1, 97-300 Piotrków Trybunalski NIP", "[ADRES] NIP"),
        ("00-950 Warszawa, ul. Prosta 5", "[ADRES]"),
        ("Adres: ul. Prosta 5, Warszawa", "Adres: [ADRES], Warszawa"),
        ("zam. w Krakowie przy ul. Długiej 15.", "zam. w Krakowie przy [ADRES]."),
        ("zamieszkała przy alei Lipowej 8", "zamieszkała przy [ADRES]"),
        ("ul. ks. J. Popiełuszki 7/9/3", "[ADRES]"),
        ("os. 1000-lecia 5/12", "[ADRES]"),
        ("pl. Konstytucji 3 Maja 5/12", "[ADRES]"),
        ("UL. PROSTA 5/21, 00-950 WARSZAWA", "[ADRES]"),
    ],
)
def test_network_and_street_addresses_become_placeholders(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "Numer PESEL 44051401358 ma złą cyfrę kontrolną.",
        "PESEL 44139901352 ma zły miesiąc.",
        "NIP 526-000-12-47 i 5260001247 nie istnieją.",
        "REGON 123456784 nie istnieje.",
        "Sprawa 123456785/2021 i iloraz 123456785/40.",
        "Konto PL61 1090 1014 0000 0712 1981 2875 nie istnieje.",
        "Karta 4111 1111 1111 1112 nie istnieje.",
        "Przesyłka 9111 1111 1111 1111 nie jest kartą.",
        "dowód ABA400000",
        "paszport ZS1000177",
        "patent ZS0000177",
        "Zapłacono PLN 100000, a KRS 900000.",
        "KRS 0000123456",
        "ISBN 978-83-288-2832-2",
        "ISBN 8308042532, ISBN: 8308042532",
        "Kosztowało 601 234 567 zł.",
        "Budżet 123456785 zł, rok wcześniej 123456785,00.",
        "Za 1 526 000 12 46",
        "W latach 1918-1939, 11 listopada 1918 roku.",
        "Kod 00-950, budżet 12 345 678,90.",
        "12.05.2019 10:30, 2019-05-12T10:30:15",
        "Dz.U. z 2019 r. poz. 1145, art. 12 ust. 3 pkt 4",
        "Telefon stoi od 12.05.2019 5 razy",
        "Ludwik XIV i Jan III, tom MCMXCIV",
        "https://example.org/wpis/5260001246?id=123456785",
        "suma e0123456785f, klucz_123456785",
        "liczba 0,123456785",
    ],
)
def test_numbers_that_identify_nobody_stay(text: str) -> None:
    assert mask(text) == (text, {})


@pytest.mark.parametrize(
    "text",
    [
        "Napisz @kasia na forum.",
        "Ta małpa skacze. Kropka.",
        "Patrz (at) dom, [at] i poczta.pl",
        "wersja 5.121.134.7, v212.77.198.9",
        "Chrome/120.116.109.12",
        "2.1.3.4 Sposób montażu",
        "adres 10.0.0.7, 192.168.100.101, 127.0.0.1, 172.16.200.100, 169.254.100.100",
        "adres z dokumentacji 192.0.2.17, 198.51.100.101 i 203.0.113.145",
        "maska 255.255.255.0, grupa 239.255.255.250",
        "adres 300.12.44.7",
        "sieć 178.235.146.0/24",
        "2001:db8:85a3::8a2e:370:7334, fe80::1, 2019:05:12, 2001:12",
        "Mieszkał przy ulicy Bakera 221 i palił fajkę.",
        "Kamienica przy ul. Piwnej 7/9 ma trzy piętra.",
        "ul. Prosta, 00-950 Warszawa",
        "Urząd Miasta, 00-950 Warszawa",
        "Smith et al. Nature 12/3",
        "plac budowy 5/12, al. 5/12",
        "zam. ul. Długa",
        "Jego adres: dom przy placu. Wolności 5 kilometrów stąd",
    ],
)
def test_names_versions_and_streets_that_identify_nobody_stay(text: str) -> None:
    assert mask(text) == (text, {})


def test_each_kind_is_counted() -> None:
    _, counts = mask("PESEL 44051401359, tel. 601234567 lub 602 345 678, a@b.pl")
    assert counts == {"PESEL": 1, "TELEFON": 2, "E-MAIL": 1}


def test_what_lies_far_apart_in_a_long_text_is_all_found() -> None:
    prose = "Rzeka płynęła dalej, a oni szli jej brzegiem. " * 50
    text = f"a@b.pl {prose}44051401359 {prose}ul. Prosta 5/21 {prose}+48 601 234 567"
    masked = f"[E-MAIL] {prose}[PESEL] {prose}[ADRES] {prose}[TELEFON]"
    assert mask(text) == (masked, {"E-MAIL": 1, "PESEL": 1, "ADRES": 1, "TELEFON": 1})


def weighted(digits: list[int], weights: tuple[int, ...]) -> int:
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=True))


def joined(digits: list[int]) -> str:
    return "".join(map(str, digits))


def grouped(number: str, *sizes: int, gap: str) -> str:
    ends = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    return gap.join(number[start:end] for start, end in pairwise(ends))


def digits(count: int, least: int = 0) -> st.SearchStrategy[list[int]]:
    return st.tuples(st.integers(least, 9), *[st.integers(0, 9)] * (count - 1)).map(list)


# How far the check digit, or a digit that it guards, is off: 0 makes a valid number.
VALID, BROKEN = st.just(0), st.integers(1, 9)
GAPS = st.sampled_from([" ", "-", "\u00a0"])


@st.composite
def pesels(draw: st.DrawFn, off: st.SearchStrategy[int]) -> str:
    born = draw(st.dates(date(1800, 1, 1), date(2299, 12, 31)))
    month = born.month + {18: 80, 19: 0, 20: 20, 21: 40, 22: 60}[born.year // 100]
    first = [int(digit) for digit in f"{born.year % 100:02}{month:02}{born.day:02}"] + draw(digits(4))
    check = -weighted(first, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10
    return joined([*first, (check + draw(off)) % 10])


@st.composite
def nips(draw: st.DrawFn, off: st.SearchStrategy[int]) -> str:
    weights = (6, 5, 7, 2, 3, 4, 5, 6, 7)
    first = draw(digits(9, least=1).filter(lambda first: weighted(first, weights) % 11 < 10))
    number = joined([*first, (weighted(first, weights) % 11 + draw(off)) % 10])
    grouping = draw(st.sampled_from([(10,), (3, 3, 2, 2), (3, 2, 2, 3)]))
    return draw(st.sampled_from(["", "PL", "PL "])) + grouped(number, *grouping, gap=draw(GAPS))


@st.composite
def regons(draw: st.DrawFn, off: st.SearchStrategy[int]) -> str:
    first = draw(digits(8))
    first.append(weighted(first, (8, 9, 2, 3, 4, 5, 6, 7)) % 11 % 10)
    if draw(st.booleans()):
        first += draw(digits(4))
        first.append(weighted(first, (2, 4, 8, 5, 0, 9, 7, 3, 6, 1, 2, 4, 8)) % 11 % 10)
    return joined([*first[:-1], (first[-1] + draw(off)) % 10])


@st.composite
def identity_cards(draw: st.DrawFn, off: st.SearchStrategy[int]) -> str:
    series = "".join(draw(st.sampled_from(letters)) for letters in ("ABCD", "BCEFGLMNPRST", string.ascii_uppercase))
    last = draw(digits(5))
    check = weighted([ord(letter) - 55 for letter in series] + last, (7, 3, 1, 7, 3, 1, 7, 3))
    return f"{series}{draw(st.sampled_from(['', ' ', ' nr ']))}{(check + draw(off)) % 10}{joined(last)}"


@st.composite
def passports(draw: st.DrawFn, off: st.SearchStrategy[int]) -> str:
    series = "".join(draw(st.sampled_from(string.ascii_uppercase)) for _ in range(2))
    last = draw(digits(6))
    check = weighted([ord(letter) - 55 for letter in series] + last, (7, 3, 1, 7, 3, 1, 7, 3))
    return f"{series}{draw(st.sampled_from(['', ' ']))}{(check + draw(off)) % 10}{joined(last)}"


@st.composite
def accounts(draw: st.DrawFn, off: st.SearchStrategy[int]) -> str:
    account = draw(digits(24))
    check = 98 - int(joined(account) + "252100") % 97  # PL00
    place = draw(st.integers(0, 23))
    account[place] = (account[place] + draw(off)) % 10
    number = f"{check:02}{joined(account)}"
    grouping = draw(st.sampled_from([(26,), (2, 4, 4, 4, 4, 4, 4)]))
    return draw(st.sampled_from(["", "PL"])) + grouped(number, *grouping, gap=draw(GAPS))


@st.composite
def cards(draw: st.DrawFn, off: st.SearchStrategy[int]) -> str:
    first = [*draw(st.sampled_from([[4], [5, 1], [5, 5], [2, 2, 2, 1], [2, 7, 2, 0]]))]
    first += draw(digits(15 - len(first)))
    doubled = [digit * 2 - 9 * (digit > 4) for digit in first[::2]]
    check = -(sum(doubled) + sum(first[1::2])) % 10
    number = joined([*first, (check + draw(off)) % 10])
    return grouped(number, *draw(st.sampled_from([(16,), (4, 4, 4, 4)])), gap=draw(GAPS))


KINDS = {
    "PESEL": pesels,
    "NIP": nips,
    "REGON": regons,
    "DOWÓD": identity_cards,
    "IBAN": accounts,
    "KARTA": cards,
    "PASZPORT": passports,
}

words = st.text(alphabet="aąbcćdeęfghijklłmnńoóprsśtuwyzźż  ,.;:?–", max_size=30)
before = st.tuples(
    words, st.sampled_from(["", " ", ": ", " (", " „", "\n", ", ", " – ", "\t", "/", "=", ";", "«", "*"])
)
after = st.tuples(st.sampled_from(["", ".", ", ", ")", "” ", "\n", " ", ";", "?", "!", "/", "…", " – ", "*"]), words)


@st.composite
def sentences(draw: st.DrawFn, kind: str, off: st.SearchStrategy[int]) -> tuple[str, str, str]:
    head, tail = "".join(draw(before)), "".join(draw(after))
    if kind == "PASZPORT":
        head = f"{head} paszport nr "
    if re.search(r"\w\Z", head):
        head += " "
    if re.match(r"\w", tail):
        tail = f" {tail}"
    return head, draw(KINDS[kind](off)), tail


@pytest.mark.parametrize("kind", KINDS)
@repeatable
@given(data=st.data())
def test_a_valid_number_is_masked_in_any_sentence(kind: str, data: st.DataObject) -> None:
    head, number, tail = data.draw(sentences(kind, VALID))
    assert mask(head + number + tail) == (f"{head}[{kind}]{tail}", {kind: 1})


@pytest.mark.parametrize("kind", KINDS)
@repeatable
@given(data=st.data())
def test_a_number_that_fails_its_checksum_is_never_masked(kind: str, data: st.DataObject) -> None:
    text = "".join(data.draw(sentences(kind, BROKEN)))
    assert mask(text) == (text, {})


OTHERS = """601 234 567|601234567|+48 22 123 45 67|123-456-785|1939|7|123|12/3|m. 4|tel.|NIP|REGON:|PESEL|paszport|IP|zł
|adres:|zam.|https://a.pl/|a@b.pl|jan (at) poczta.pl|jan małpa poczta kropka pl|178.235.146.12|5.2.3.4|2a02:a31a::17
|ul. Prosta 5|00-950 Warszawa"""
snippets = st.one_of(
    *[number(st.integers(0, 1)) for number in KINDS.values()],
    st.sampled_from([*OTHERS.replace("\n", "").split("|"), *(f"[{placeholder}]" for placeholder in PLACEHOLDERS)]),
)


@settings(repeatable, max_examples=200)
@given(st.lists(st.tuples(snippets, st.sampled_from([" ", ", ", "\n", "-", "", " i ", "/", ".", "  "])), max_size=8))
def test_masking_twice_changes_nothing_more(parts: list[tuple[str, str]]) -> None:
    once, counts = mask("".join(snippet + gap for snippet, gap in parts))
    assert mask(once) == (once, {})
    assert set(counts) <= set(PLACEHOLDERS)


@repeatable
@given(st.text())
def test_text_without_digits_and_at_signs_stays(text: str) -> None:
    plain = re.sub(r"[0-9@]", "", text)
    assert mask(plain) == (plain, {})


ALMOST = """W 1939 i 1945 było 12 345 678 osób. |1234 |1.|PESEL 1 |ul. Aa 1 |Aaaa |2001:0:|a (at) |(at)|tel. 1 | małpa
|a kropka |PL61 1090 |AAA 123456 |www.1 |adres ul. Aa """


@pytest.mark.parametrize(
    ("pattern", "length"),
    [("1 ", 1_000_000), ("a.a.a.a@", 1_000_000), ("1", 1_000_000), (" ", 1_000_000)]
    + [(pattern, 100_000) for pattern in ALMOST.split("|")],
)
def test_much_of_almost_something_takes_seconds(pattern: str, length: int) -> None:
    text = pattern * (length // len(pattern)) + "@ 1"
    started = time.process_time()
    assert mask(text) == (text, {})
    assert time.process_time() - started < 10
