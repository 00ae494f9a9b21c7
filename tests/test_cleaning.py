import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from wronai import cleaning, corpus, params
from wronai.cleaning import Reading, Rejection

PROSE = (
    "Na skraju wsi stał dom, w którym od lat nikt nie mieszkał. Dzieci mówiły, że straszy tam o północy, ale "
    "stary młynarz śmiał się i powtarzał, że to tylko wiatr gra na potłuczonych szybach. Pewnej jesieni do domu "
    "wprowadziła się nauczycielka z miasta. Wymieniła okna, pobieliła ściany i zasadziła przy furtce krzak bzu, "
    "a w środę wieczorem zaprosiła wszystkich sąsiadów na ciasto ze śliwkami. Przyszli niemal wszyscy, bo każdy "
    "chciał sprawdzić, czy to prawda, że duch został i pomaga w kuchni."
)
GARBLED = (("cp1250", "latin-1"), ("cp1250", "iso8859_2"), ("iso8859_2", "latin-1"), ("iso8859_2", "cp1250"))


@pytest.fixture(scope="module")
def rules() -> params.Clean:
    return params.load(Path("params.yaml")).clean


def raw(tmp_path: Path, *texts: str, source: str = "s", text_kind: str = "edited") -> Path:
    documents = [
        corpus.Document(f"{source}/{i}", source, "g", "", "text/plain", text_kind, text.encode())
        for i, text in enumerate(texts)
    ]
    corpus.write_table(corpus.as_rows(documents), corpus.RAW_DOCUMENTS, tmp_path / "documents.parquet")
    return tmp_path / "documents.parquet"


def clean(table: Path, rules: params.Clean, *benchmarks: cleaning.Benchmark) -> cleaning.Tally:
    return cleaning.clean_documents(table, rules, 42, cleaning.Contamination(benchmarks))


def reasons(tally: cleaning.Tally) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in tally.rejected}


@pytest.mark.parametrize("encoding", ["utf-8", "cp1250", "iso8859-2", "utf-8-sig", "utf-16"])
def test_polish_is_decoded_whatever_it_was_written_in(encoding: str) -> None:
    assert cleaning.decode(PROSE.encode(encoding), "text/plain") == (PROSE, encoding)


def test_quotation_marks_tell_cp1250_from_iso_8859_2() -> None:
    text = "Rzekł: „Zażółć gęślą jaźń” – i wyszedł."
    assert cleaning.decode(text.encode("cp1250"), "text/plain") == (text, "cp1250")


def test_a_declared_charset_decides_for_a_page() -> None:
    page = '<meta charset="windows-1250"><p>Zażółć gęślą jaźń</p>'
    assert cleaning.decode(page.encode("cp1250"), "text/html") == (page, "cp1250")


def test_a_wrong_declaration_does_not_spoil_the_page() -> None:
    page = '<meta charset="iso-8859-1"><p>Zażółć gęślą jaźń</p>'
    assert cleaning.decode(page.encode("cp1250"), "text/html") == (page, "cp1250")


def test_a_few_damaged_bytes_leave_utf_8() -> None:
    damaged = PROSE.encode()[:50] + b"\xff" + PROSE.encode()[50:]
    assert cleaning.decode(damaged, "text/plain") == (PROSE, "utf-8")


def test_binary_content_is_undecodable() -> None:
    assert cleaning.decode(b"\x89PNG\r\n\x00\x00", "text/plain") == Rejection("undecodable", 0.25)


@pytest.mark.parametrize(("written_in", "read_as"), GARBLED)
def test_a_wrong_code_page_is_undone(written_in: str, read_as: str) -> None:
    assert cleaning.repair(PROSE.encode(written_in).decode(read_as)) == PROSE


@pytest.mark.parametrize("read_as", ["cp1250", "cp1252", "latin-1", "iso8859_2"])
def test_utf_8_read_as_one_byte_per_character_is_undone(read_as: str) -> None:
    text = "Gęś i żółw śpią na łące, a ćma lata."
    garbled = "".join(bytes([b]).decode(read_as, "ignore") or chr(b) for b in text.encode())
    assert cleaning.repair(garbled) == text


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "Pierwszy zbiornik ma 40 m³, drugi¹ 30 m³, trzeci¹ 20 m³, a czwarty¹ jeszcze mniej. " + PROSE,
        "Aleš, Miloš, Jaroš i Bartoš grali w karty. " + PROSE,
        "Antonín Dvořák i Škoda Octavia: šest, šaty, šíp, škola, šlehačka. " + PROSE,
        "Działka ma 300 m², a basen 40 m³. Było 3½ stopnia, ±2 µm, „¿Qué tal?” – spytał señor Núñez. " + PROSE,
        "Příliš žluťoučký kůň úpěl ďábelské ódy a šel dál, protože šípky už dávno dozrály a sýkorky štěbetaly.",
        "Vŕba a škovránok: kôň žerie šťavnatú trávu, mäso, ľad, dážď, šípka, ťava, žalúdok, päť.",
    ],
)
def test_sound_text_is_not_repaired(text: str) -> None:
    assert cleaning.repair(text) == text


def test_a_page_becomes_its_article() -> None:
    body = "".join(f"<p>{sentence}.</p>" for sentence in PROSE.split(". "))
    page = f"<html><body><nav><a href='/'>Start</a></nav><article><h1>Dom</h1>{body}</article></body></html>"
    title, text = cleaning.article(page)
    assert title == "Dom"
    assert "pobieliła ściany" in str(text) and "Start" not in str(text)


def test_a_page_without_an_article_is_rejected() -> None:
    assert cleaning.article("<html><body></body></html>") == Rejection("no_article", 0.0)


def test_markdown_loses_its_marks_and_keeps_its_words() -> None:
    source = (
        "---\ntitle: x\n---\n# Młyn\n\nMłyn *stoi* nad\nrzeką, [obok](http://x.pl) `koła`.\n\n```sh\nls\n```\n\n"
        "| a | b |\n|---|---|\n| c | d |\n\n::: moniker\n\n- raz\n- dwa\n\n{% include x %}\n<!-- y -->\n"
    )
    assert cleaning.markdown_text(source) == ("Młyn", "Młyn\n\nMłyn stoi nad rzeką, obok koła.\n\nraz\n\ndwa")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("z\u0307o\u0301łw", "żółw"),
        ("ba\u00adców\u00adka", "bacówka"),
        ("ba\u00ad\n  cówka", "bacówka"),
        ("w\u00a0lesie,\t  na\u2009łące", "w lesie, na łące"),
        ("jeden\r\ndwa\rtrzy\u2028cztery", "jeden\ndwa\ntrzy\ncztery"),
        ("wers \n\n\n\n wers", "wers\n\nwers"),
        ("\ufeffa\x00b\u200bc\u202ed\x9f", "abcd"),
        ("„Tak” – rzekł…", "„Tak” – rzekł…"),
    ],
)
def test_characters_and_white_space_get_one_form(found: str, expected: str) -> None:
    assert cleaning.normalize(found) == expected


def test_normalizing_twice_changes_nothing_more() -> None:
    generator = random.Random(7)
    alphabet = "aąż \n\r\t\u00ad\u00a0\u0301\u200b\u2028-–x\x85\x0b"
    for _ in range(500):
        once = cleaning.normalize("".join(generator.choices(alphabet, k=30)))
        assert cleaning.normalize(once) == once
        assert unicodedata.is_normalized("NFC", once)


def wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


@pytest.mark.parametrize("width", [55, 70, 95])
def test_prose_wrapped_at_a_width_is_rejoined(width: int) -> None:
    assert cleaning.unwrap(f"{wrapped(PROSE, width)}\n\n{wrapped(PROSE, width)}") == f"{PROSE}\n\n{PROSE}"


def test_words_hyphenated_at_line_ends_are_rejoined() -> None:
    assert cleaning.unwrap("Był to dom nad rze-\nką.") == "Był to dom nad rzeką."


VERSE = (
    "Nad rzeką wieczór stawia łódkę z cienia,\nw łódce się chwieje jeden żółty liść\n"
    "i nie wiadomo, czy to odpłynięcie,\nczy tylko woda uczy się, jak iść.\nStoję na brzegu z kieszenią kamieni\n"
    "i żadnym z nich nie umiem w ciszę trafić"
)
DIALOGUE = "– Idziesz?\n– Nie wiem.\n– To się zdecyduj, bo zamykają.\n– A ty?\n– Ja już byłem.\n– Sam?\n– Z psem."
RECIPE = "2 szklanki mąki\n3 jajka\nszczypta soli\n1 łyżka oleju\npół szklanki mleka\nWymieszać i smażyć na złoto."


STATUTE = (
    "Członkiem koła może zostać każdy mieszkaniec gminy, który lubi czytać\n"
    "Zebrania odbywają się w pierwszą środę miesiąca w czytelni na piętrze\n"
    "Książkę do rozmowy wybiera osoba, która na poprzednią czekała najdłużej\n"
    "Kto nie doczytał do końca, ten parzy herbatę i nie zdradza zakończenia\n"
    "Spory o tłumaczenie rozstrzyga bibliotekarka, a jej głos jest ostateczny"
)


@pytest.mark.parametrize("text", [VERSE, DIALOGUE, RECIPE, STATUTE, PROSE])
def test_verse_dialogue_and_lists_keep_their_lines(text: str) -> None:
    assert cleaning.unwrap(text) == text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Akceptuję pliki cookie", True),
        ("© Kurier. Wszelkie prawa zastrzeżone.", True),
        ("Na tej stronie opisujemy, jak działają pliki cookie, czym różnią się od pamięci przeglądarki i dlaczego "
         "programiści od lat spierają się o to, gdzie najlepiej przechowywać stan użytkownika.", False),
        ("Zgubiono parasol.", False),
    ],
)  # fmt: skip
def test_boilerplate_lines_are_told_from_text_about_them(line: str, expected: bool) -> None:
    assert cleaning.is_boilerplate(line) is expected


def test_boilerplate_goes_and_its_share_is_measured() -> None:
    assert cleaning.without_boilerplate("Regulamin\nTekst[12] dalej") == (
        "Tekst dalej",
        pytest.approx(9 / 24, abs=0.02),
    )


NO_DIACRITICS = PROSE.translate(str.maketrans("ąćęłńóśźżĄĆĘŁŃÓŚŹŻ", "acelnoszzACELNOSZZ"))
LONG = (
    "Konstantynopolitańczykowianeczka konstytucjonalizowała dziewięćsetdziewięćdziesięcioma dźwiękonaśladowczościami. "
)
FAILING = {
    "boilerplate": "",
    "too_short": "Czytaj także o zimie i o śniegu.",
    "not_polish": "The old keeper had a rule for everything and nobody whistled on the stairs after dark. " * 3,
    "no_diacritics": NO_DIACRITICS,
    "keyword_page": "tanie noclegi góry, pokoje gościnne Łeba, kwatery Władysławowo, domki Węgorzewo, łódki Mikołajki, "
    "żagle Giżycko, wczasy Świnoujście, narty Wisła, wyciąg Szczyrk, gorące źródła, gościniec Łódź, hotel Żywiec",
    "few_stop_words": ("Kiedy pies śpi, kot też śpi, bo gdzie są oni, tam już są ciche noce. " * 4)
    + "Ale choć śpią, więc co by było, gdyby ktoś tylko już był.",
    "short_words": "I cóż z tą łzą? Już mu żal, że jej tu nie ma i że nie śpi. Aż się bał, że to sen i że "
    "jej i tak nie ma. Są źli, bo on ją bił i łże.",
    "long_words": LONG * 6 + "I to było tak, że na to nie było już czasu.",
    "few_letters": "Wynik był taki: 1 2 3 4 5 6 7 8 9 10 11 12 i na tym się nie kończy, że się mylą. " * 3,
    "repeated_lines": "Na łące stał koń i się pasł w ciszy.\n" * 6 + PROSE,
    "repeated_bigram": "Zażółć gęślą i na do. " * 12,
}


@pytest.mark.parametrize("reason", [rule.reason for rule in cleaning.RULES if rule.reason != "too_long"])
def test_each_rule_rejects_what_it_is_for(reason: str, rules: params.Clean) -> None:
    reading = Reading(FAILING[reason], boilerplate=1.0 if reason == "boilerplate" else 0.0)
    rejection = cleaning.judge(reading, "web", rules)
    assert rejection is not None and rejection.reason == reason


def test_a_text_over_max_words_is_rejected_with_its_length(rules: params.Clean) -> None:
    tight = rules.model_copy(update={"max_words": 50})
    assert cleaning.judge(Reading(PROSE), "web", tight) == Rejection("too_long", len(PROSE.split()))


@pytest.mark.parametrize("kind", ["edited", "web", "verse"])
def test_good_prose_passes(kind: str, rules: params.Clean) -> None:
    assert cleaning.judge(Reading(PROSE), kind, rules) is None


def test_a_poem_passes_as_verse_and_a_refrain_does_not_harm_it(rules: params.Clean) -> None:
    assert cleaning.judge(Reading(f"{VERSE}\n\n{VERSE}"), "verse", rules) is None
    assert cleaning.judge(Reading(f"{VERSE}\n\n{VERSE}\n\n{VERSE}"), "web", rules) is not None


@pytest.mark.parametrize(
    ("word", "expected"), [("jeden dwa jeden dwa trzy", 16 / 20), ("raz dwa trzy", 0.0), ("", 0.0), ("raz", 0.0)]
)
def test_the_top_bigram_is_measured_in_characters(word: str, expected: float) -> None:
    assert cleaning.share_top_bigram(Reading(word)) == pytest.approx(expected)


def test_kept_documents_have_their_personal_data_masked_and_counted(tmp_path: Path, rules: params.Clean) -> None:
    table = raw(tmp_path, f"{PROSE} Jej PESEL to 44051401359.")
    tally = clean(table, rules)
    assert tally.kept[0]["text"].endswith("Jej PESEL to [PESEL].")
    assert tally.masked == {"PESEL": 1}
    unmasked = clean(table, rules.model_copy(update={"mask_personal_data": False}))
    assert unmasked.kept[0]["text"].endswith("44051401359.")


def test_a_rejected_document_keeps_reason_value_and_head(tmp_path: Path, rules: params.Clean) -> None:
    tally = clean(raw(tmp_path, "Za krótkie."), rules)
    assert tally.rejected == [
        {
            "id": "s/0",
            "source": "s",
            "role": "documents",
            "reason": "too_short",
            "value": 2.0,
            "text": "Za krótkie.",
        }
    ]


def test_text_with_a_token_of_the_format_is_rejected(tmp_path: Path, rules: params.Clean) -> None:
    assert reasons(clean(raw(tmp_path, f"{PROSE} </answer>"), rules)) == {"s/0": "special_token"}


def test_of_duplicates_the_longest_stays(tmp_path: Path, rules: params.Clean) -> None:
    tally = clean(raw(tmp_path, PROSE, PROSE.upper(), f"{PROSE} Tak było.", "Zupełnie inny początek. " + VERSE), rules)
    assert reasons(tally) == {"s/0": "near_duplicate", "s/1": "near_duplicate"}
    assert {row["id"] for row in tally.kept} == {"s/2", "s/3"}


def test_of_equal_duplicates_the_first_id_stays(tmp_path: Path, rules: params.Clean) -> None:
    tally = clean(raw(tmp_path, PROSE, PROSE.upper()), rules)
    assert reasons(tally) == {"s/1": "exact_duplicate"}


def test_the_order_of_input_changes_no_result(tmp_path: Path, rules: params.Clean) -> None:
    documents = [
        corpus.Document(f"s/{i}", "s", "g", "", "text/plain", "edited", text.encode())
        for i, text in enumerate((PROSE, f"{PROSE} Tak.", VERSE * 2, "Krótko.", PROSE.lower()))
    ]
    outcomes = []
    for order in (documents, documents[::-1]):
        rows = corpus.as_rows(order)
        table = tmp_path / "documents.parquet"
        corpus.pq.write_table(corpus.pa.Table.from_pylist(rows, schema=corpus.RAW_DOCUMENTS), table)
        tally = clean(table, rules)
        outcomes.append((sorted(row["id"] for row in tally.kept), sorted(reasons(tally).items())))
    assert outcomes[0] == outcomes[1]


def test_components_are_connected_through_a_chain() -> None:
    clusters = cleaning.Clusters(5)
    clusters.join(3, 4)
    clusters.join(1, 3)
    assert [clusters.root(item) for item in range(5)] == [0, 1, 2, 1, 1]


def benchmark(tmp_path: Path, content: str, n: int = 13) -> cleaning.Benchmark:
    (tmp_path / "reading.jsonl").write_text(content, encoding="utf-8")
    return cleaning.read_benchmarks(tmp_path, n)[0]


def test_a_document_that_quotes_a_benchmark_is_rejected(tmp_path: Path, rules: params.Clean) -> None:
    quoted = " ".join(PROSE.split()[10:25]).upper()
    item = benchmark(tmp_path, f'{{"passage": "{quoted}", "answer": 1}}\n{{"passage": "Za krótkie."}}\n')
    assert (item.items, item.items_too_short, len(item.ngrams)) == (2, 1, 3)
    tally = clean(raw(tmp_path, PROSE, VERSE * 2), rules, item)
    assert reasons(tally) == {"s/0": "contaminated"}
    assert tally.contaminated == {"reading": 1}


def test_twelve_shared_words_are_no_contamination(tmp_path: Path, rules: params.Clean) -> None:
    quoted = " ".join(PROSE.split()[10:22])
    item = benchmark(tmp_path, f'{{"passage": "{quoted} jednakowoż"}}')
    assert reasons(clean(raw(tmp_path, PROSE), rules, item)) == {}


@pytest.mark.parametrize("item", ['{"text": "WORDS"}', '{"choices": ["Tak.", "WORDS"], "answer": 1}'])
def test_a_short_item_is_recognized_whole(tmp_path: Path, rules: params.Clean, item: str) -> None:
    eight, seven = (benchmark(tmp_path, item.replace("WORDS", " ".join(PROSE.split()[10:end]))) for end in (18, 17))
    assert reasons(clean(raw(tmp_path, PROSE), rules, eight)) != {}
    assert reasons(clean(raw(tmp_path, PROSE), rules, seven)) == {}


def test_shared_words_with_others_between_are_no_contamination(tmp_path: Path, rules: params.Clean) -> None:
    words = PROSE.split()[:24]
    item = benchmark(tmp_path, f'{{"passage": "{" ".join(words)}"}}')
    spread = " ".join(f"{word} jednakowoż" if i % 6 == 5 else word for i, word in enumerate(words))
    assert reasons(clean(raw(tmp_path, spread), rules, item)) == {}


def test_a_folder_without_benchmarks_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"evaluate.include_path\) holds no .jsonl file"):
        cleaning.read_benchmarks(tmp_path, 13)


def test_a_benchmark_line_that_is_no_object_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reading.jsonl line 1 is no JSON object .*evaluate.include_path"):
        benchmark(tmp_path, "[1]")


def conversation(id: str, *contents: str, **fields: Any) -> corpus.Row:
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return {"id": id, "source": "s", "register": "neutral", "task": "question", "messages": messages, **fields}


def instructions(rules: params.Clean, *rows: corpus.Row) -> cleaning.Tally:
    return cleaning.clean_instructions(rows, rules, 42, cleaning.Contamination([]))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (conversation("a", "Ile?", " \n"), "empty_turn"),
        (conversation("a", "Ile?"), "unbalanced_turns"),
        (conversation("a", "Ile?", "Dwa.", "A czemu?"), "unbalanced_turns"),
        (conversation("a", "", messages=[]), "unbalanced_turns"),
        (conversation("a", "", messages=[{"role": "system", "content": "x"}] * 2), "unbalanced_turns"),
        (conversation("a", "Napisz <polish>", "Dobrze."), "special_token"),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_is_rejected(
    row: corpus.Row, reason: str, rules: params.Clean
) -> None:
    assert reasons(instructions(rules, row)) == {"a": reason}


def test_conversations_are_normalized_and_masked(rules: params.Clean) -> None:
    tally = instructions(rules, conversation("a", "Czyj to  numer\u00a044051401359?", "Nie\u00ad wiem."))
    assert [turn["content"] for turn in tally.kept[0]["messages"]] == ["Czyj to numer [PESEL]?", "Nie wiem."]
    assert tally.masked == {"PESEL": 1}


def test_the_same_question_and_answer_stay_once(rules: params.Clean) -> None:
    rows = [conversation("b", "Ile?", "Dwa."), conversation("a", "Ile?", "Dwa."), conversation("c", "Ile?", "Trzy.")]
    assert reasons(instructions(rules, *rows)) == {"b": "exact_duplicate"}


def test_a_correction_of_punctuation_is_no_duplicate(rules: params.Clean) -> None:
    rows = [conversation("a", "Popraw: wiem że", "wiem, że"), conversation("b", "Popraw: wiem że", "Wiem że")]
    assert reasons(instructions(rules, *rows)) == {}


def test_conversations_with_the_same_question_share_a_split(rules: params.Clean) -> None:
    rows = [conversation(f"{i:03d}-{k}", f"Pytanie numer {i}?", f"Odpowiedź {k}.") for i in range(150) for k in (1, 2)]
    tally = instructions(rules, *rows)
    pairs = list(zip(tally.splits[::2], tally.splits[1::2], strict=True))
    assert all(one == other for one, other in pairs)
    assert {one for one, _ in pairs} == set(corpus.SPLITS)


def test_what_shares_a_question_or_an_answer_in_a_chain_shares_a_split(rules: params.Clean) -> None:
    generator = random.Random(3)
    for i in range(40):
        answer = " ".join(generator.sample(PROSE.split(), k=50))
        rows = [
            conversation("a", f"Pytanie {i}?", "Krótko."),
            conversation("b", f"Pytanie {i}?", answer),
            conversation("c", f"Inaczej {i}?", answer),
        ]
        assert len(set(instructions(rules, *rows).splits)) == 1


def test_conversations_over_the_same_passage_share_a_split(rules: params.Clean) -> None:
    rows = [conversation(f"{i}", f"{PROSE}\n\nPytanie {i}?", "Tak.") for i in range(12)]
    assert len(set(instructions(rules, *rows).splits)) == 1


def test_a_conversation_that_quotes_a_benchmark_is_rejected(tmp_path: Path, rules: params.Clean) -> None:
    item = benchmark(tmp_path, f'{{"text": "{" ".join(PROSE.split()[:20])}"}}')
    contamination = cleaning.Contamination([item])
    tally = cleaning.clean_instructions([conversation("a", PROSE, "Tak.")], rules, 42, contamination)
    assert reasons(tally) == {"a": "contaminated"}
    assert tally.contaminated == {"reading": 1}
