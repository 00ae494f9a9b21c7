import pytest

from wronai.personal_data import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Numer PESEL 44051401359.", "Numer PESEL [PESEL]."),
        ("NIP 526-000-12-46", "NIP [NIP]"),
        ("NIP: PL5260001246,", "NIP: [NIP],"),
        ("REGON 123456785", "REGON [REGON]"),
        ("REGON: 123-456-785", "REGON: [REGON]"),
        ("REGON 12345678512347", "REGON [REGON]"),
        ("konto PL61 1090 1014 0000 0712 1981 2874.", "konto [IBAN]."),
        ("konto 61 1090 1014 0000 0712 1981 2874.", "konto [IBAN]."),
        ("konto 61109010140000071219812874.", "konto [IBAN]."),
        ("Konto DE89 3704 0044 0532 0130 00 JEST", "Konto [IBAN] JEST"),
        ("tel. 22 123 45 67", "tel. [TELEFON]"),
        ("zadzwoń pod 601234567", "zadzwoń pod [TELEFON]"),
        ("+48 601-234-567", "[TELEFON]"),
        ("Kto znalazł: 601 234 567, dziękuję.", "Kto znalazł: [TELEFON], dziękuję."),
        ("pisz na jan.kowalski@poczta.example.pl.", "pisz na [E-MAIL]."),
    ],
)
def test_personal_data_become_placeholders(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "Numer PESEL 44051401358 ma złą cyfrę kontrolną.",
        "NIP 526-000-12-47 i 5260001247 nie istnieją.",
        "REGON 123456784 nie istnieje.",
        "Konto PL61 1090 1014 0000 0712 1981 2875 nie istnieje.",
        "Kosztowało 601 234 567 zł.",
        "W latach 1918-1939, 11 listopada 1918 roku.",
        "ISBN 978-83-288-2832-2",
        "Kod 00-950, budżet 12 345 678,90.",
        "Napisz @kasia na forum.",
    ],
)
def test_what_is_no_personal_data_stays(text: str) -> None:
    assert mask(text)[0] == text


def test_each_kind_is_counted() -> None:
    _, counts = mask("PESEL 44051401359, tel. 601234567 lub 602 345 678, a@b.pl")
    assert counts == {"PESEL": 1, "TELEFON": 2, "E-MAIL": 1}


def test_masking_twice_changes_nothing_more() -> None:
    once, _ = mask("PESEL 44051401359, konto PL61 1090 1014 0000 0712 1981 2874, tel. 22 123 45 67")
    assert mask(once) == (once, {})
