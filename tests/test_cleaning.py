"""The plan as a whole: from raw tables to kept and rejected rows. Each rule has tests in the file of its module."""

import random
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prose import PROSE, VERSE

from wronai import cleaning, contamination, corpus, params, rules_page

ENGLISH = (
    "The old keeper had a rule for everything, and nobody whistled on the stairs after dark. When the fog came in from "
    "the sea, he would light the second lamp and count the ships that never arrived at the harbour."
)


@dataclass
class Outcome:
    kept: dict[str, corpus.Row] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, corpus.Row] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    contaminated: list[int] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, str]:
        return {name: row["reason"] for name, row in self.rejected.items()}


def outcome(judged: cleaning.Judged, schema: corpus.pa.Schema, folder: Path) -> Outcome:
    with corpus.TableWriter(folder / "rejected.parquet", corpus.REJECTED) as rejects:
        cleaning.write(judged, schema, folder, rejects, rules_page.Examples())
    found = Outcome(masked=dict(judged.masked()), contaminated=judged.contaminated.tolist())
    for split in corpus.SPLITS:
        for row in corpus.read_table(folder / f"{split}.parquet", schema, ""):
            found.kept[row["id"]], found.splits[row["id"]] = row, split
    found.rejected = {row["id"]: row for row in corpus.read_table(folder / "rejected.parquet", corpus.REJECTED, "")}
    return found


Runner = Callable[..., Outcome]


@pytest.fixture
def rules() -> params.Clean:
    return params.load(Path("params.yaml")).clean


@pytest.fixture
def documents(tmp_path: Path, rules: params.Clean) -> Runner:
    def run(*found: str | corpus.Document, benchmark: Sequence[dict[str, Any]] = (), **changes: Any) -> Outcome:
        items = [document(f"s/{i}", item) if isinstance(item, str) else item for i, item in enumerate(found)]
        folder = fresh(tmp_path)
        cleaner = cleaner_of(folder, rules, benchmark, changes)
        raw = raw_of(folder, items, corpus.RAW_DOCUMENTS)
        judged = cleaning.judge_documents(raw, cleaner, folder / "runs", lambda rows: None)
        return outcome(judged, corpus.DOCUMENTS, folder)

    return run


@pytest.fixture
def instructions(tmp_path: Path, rules: params.Clean) -> Runner:
    def run(*found: corpus.Instruction, benchmark: Sequence[dict[str, Any]] = (), **changes: Any) -> Outcome:
        folder = fresh(tmp_path)
        cleaner = cleaner_of(folder, rules, benchmark, changes)
        raw = raw_of(folder, found, corpus.INSTRUCTIONS)
        judged = cleaning.judge_instructions(raw, cleaner, folder / "runs", lambda rows: None)
        return outcome(judged, corpus.INSTRUCTIONS, folder)

    return run


def raw_of(folder: Path, items: Sequence[corpus.Document | corpus.Instruction], schema: corpus.pa.Schema) -> list[Path]:
    with corpus.PartsWriter(folder / "raw", schema) as parts:
        for item in items:
            parts.add(item)
    return corpus.checked_parts(folder / "raw", schema, "")


def fresh(tmp_path: Path) -> Path:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    return folder


def cleaner_of(
    folder: Path, rules: params.Clean, benchmark: Sequence[dict[str, Any]], changes: dict[str, Any]
) -> cleaning.Cleaner:
    items = []
    if benchmark:
        tiny.bundle(folder / "benchmarks", "reading", benchmark)
        items = contamination.read_benchmarks(folder / "benchmarks", rules.contamination_ngram)
    return cleaning.Cleaner(rules.model_copy(update=changes), 42, contamination.Matcher(items))


def document(name: str, text: str, **fields: Any) -> corpus.Document:
    values = {"title": "", "media_type": "text/plain", "text_kind": "edited", "content": text.encode(), **fields}
    return corpus.Document(name, name.split("/")[0], "g", **values)


def test_good_prose_passes_as_every_kind_of_text(documents: Runner) -> None:
    for kind in ("edited", "web", "verse"):
        assert documents(document("s/a", PROSE, text_kind=kind)).reasons == {}


def test_each_kind_has_its_own_rules(documents: Runner) -> None:
    refrain = f"{VERSE}\n\n{VERSE}\n\n{VERSE}"
    assert documents(document("s/a", refrain, text_kind="verse")).reasons == {}
    assert documents(document("s/a", refrain, text_kind="web")).reasons == {"s/a": "repeated_lines"}


def test_a_rejected_document_keeps_reason_value_and_head(documents: Runner) -> None:
    found = documents("Za krótkie.", f"{ENGLISH} " * 20)
    row = {"id": "s/0", "source": "s", "role": "documents", "reason": "too_short", "value": 2.0, "text": "Za krótkie."}
    assert found.rejected["s/0"] == row
    assert found.reasons["s/1"] == "not_polish"
    assert found.rejected["s/1"]["text"] == (f"{ENGLISH} " * 20)[:200]


def test_a_page_of_furniture_is_shown_with_its_furniture(documents: Runner) -> None:
    notice = "Ta strona używa plików cookies. Akceptuję wszystkie pliki cookies."
    found = documents(document("s/a", "\n".join([notice] * 9), text_kind="web"))
    assert found.reasons == {"s/a": "boilerplate"}
    assert found.rejected["s/a"]["text"].startswith(notice)


def test_empty_lines_between_paragraphs_are_no_lines(documents: Runner) -> None:
    words = PROSE.split()
    paragraphs = [" ".join(words[start : start + 8]) + "!" for start in range(0, len(words), 8)]
    assert documents(document("s/a", "\n\n".join(paragraphs), text_kind="web")).reasons == {}
    short = [" ".join(words[start : start + 4]) + "!" * (start % 16 == 0) for start in range(0, len(words), 4)]
    assert documents(document("s/a", "\n\n".join(short), text_kind="web")).reasons == {"s/a": "many_new_lines"}


def test_a_page_in_one_line_is_not_judged_by_its_last_character(documents: Runner) -> None:
    found = documents(
        document("s/a", PROSE.rstrip("."), text_kind="web"),
        document("s/b", f"{VERSE.replace(',', '')}\n{VERSE[::-1]}\n{PROSE.rstrip('.')}", text_kind="web"),
    )
    assert "s/a" in found.kept and "s/b" in found.rejected


def test_bytes_that_are_no_text_are_rejected(documents: Runner) -> None:
    assert documents(document("s/a", "", content=bytes(range(256)) * 9)).reasons == {"s/a": "undecodable"}


@pytest.mark.parametrize(
    ("media_type", "content"),
    [
        ("text/html", f"<html><body><article><h1>Dom</h1><p>{PROSE}</p></article></body></html>"),
        ("text/html; charset=iso-8859-2", f"<html><body><article><h1>Dom</h1><p>{PROSE}</p></article></body></html>"),
        ("text/markdown", f"# Dom\n\n{PROSE}"),
        ("text/x-wiki", f"'''Dom''' {{{{Infobox|a=b}}}}\n\n{PROSE}<ref>Spis</ref>\n\n[[Kategoria:Domy]]"),
    ],
)
def test_markup_becomes_text(documents: Runner, media_type: str, content: str) -> None:
    encoding = media_type.partition("charset=")[2] or "utf-8"
    found = documents(document("s/a", "", media_type=media_type, text_kind="web", content=content.encode(encoding)))
    assert "Wymieniła okna, pobieliła ściany" in found.kept["s/a"]["text"]
    assert not set("<>#[{") & set(found.kept["s/a"]["text"])


def test_foreign_paragraphs_are_cut_and_a_foreign_text_is_judged_whole(documents: Runner) -> None:
    found = documents(
        f"{PROSE}\n\n{ENGLISH}\n\n{VERSE}", f"{ENGLISH}\n\n{ENGLISH} Indeed it is.\n\nTak mówił po polsku."
    )
    assert found.kept["s/0"]["text"] == f"{PROSE}\n\n{VERSE}"
    assert found.reasons == {"s/1": "not_polish"}
    off = rules_without(documents, "edited", "min_paragraph_confidence")
    assert ENGLISH in off(f"{PROSE}\n\n{ENGLISH}\n\n{VERSE}").kept["s/0"]["text"]


def rules_without(run: Runner, kind: str, bound: str) -> Runner:
    clean = params.load(Path("params.yaml")).clean
    kinds = clean.rules.model_copy(update={kind: getattr(clean.rules, kind).model_copy(update={bound: None})})
    return lambda *found: run(*found, rules=kinds)


def test_kept_documents_have_their_personal_data_masked_and_counted(documents: Runner) -> None:
    text = f"{PROSE} Jej PESEL to 44051401359."
    found = documents(text, "Krótki 44051401359.")
    assert found.kept["s/0"]["text"].endswith("Jej PESEL to [PESEL].")
    assert found.masked == {"PESEL": 1}
    assert documents(text, mask_personal_data=False).kept["s/0"]["text"] == text


def test_a_title_is_masked_too(documents: Runner) -> None:
    found = documents(document("s/a", PROSE, title="Napisz: ola@poczta.pl"))
    assert found.kept["s/a"]["title"] == "Napisz: [E-MAIL]"
    assert found.masked == {"E-MAIL": 1}


def test_text_with_a_token_of_the_format_is_rejected(documents: Runner) -> None:
    assert documents(f"{PROSE} </answer>").reasons == {"s/0": "special_token"}


def test_of_duplicates_the_longest_stays_across_sources(documents: Runner) -> None:
    found = documents(
        document("a/0", PROSE),
        document("b/0", PROSE.upper()),
        document("c/0", f"{PROSE} Tak przynajmniej opowiadała to potem jego córka."),
        document("d/0", VERSE),
    )
    assert found.reasons == {"a/0": "near_duplicate", "b/0": "near_duplicate"}
    assert 0.75 < found.rejected["a/0"]["value"] < 1
    assert set(found.kept) == {"c/0", "d/0"}


def test_of_equal_duplicates_the_first_id_stays(documents: Runner) -> None:
    found = documents(document("s/1", PROSE.upper()), document("s/0", PROSE))
    assert found.reasons == {"s/1": "exact_duplicate"}
    assert found.rejected["s/1"]["value"] == 1.0


TEXTS = (PROSE, f"{PROSE} Tak.", VERSE, "Krótko.", PROSE.lower(), f"{VERSE}\n{PROSE[:200]}", PROSE[150:], VERSE.upper())


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(len(TEXTS))))
def test_the_order_of_input_changes_no_result(documents: Runner, order: list[int]) -> None:
    expected = documents(*TEXTS)
    assert documents(*(document(f"s/{number}", TEXTS[number]) for number in order)) == expected


QUOTED = [{"passage": " ".join(PROSE.split()[10:25]).upper(), "answer": 1}, {"passage": "Za krótkie.", "answer": 0}]


def test_a_document_that_quotes_a_benchmark_is_rejected(documents: Runner) -> None:
    found = documents(PROSE, VERSE, benchmark=QUOTED)
    assert found.reasons == {"s/0": "contaminated"}
    assert found.rejected["s/0"]["value"] == 3
    assert found.contaminated == [1]


def test_contamination_can_be_counted_alone(documents: Runner, instructions: Runner) -> None:
    found = documents(PROSE, VERSE, benchmark=QUOTED, contamination="count")
    assert (found.reasons, found.contaminated) == ({}, [1])
    found = instructions(conversation("a", PROSE, "Tak."), benchmark=QUOTED, contamination="count")
    assert (found.reasons, found.contaminated) == ({}, [1])


def conversation(name: str, *contents: str, messages: list[dict[str, str]] | None = None) -> corpus.Instruction:
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return corpus.Instruction(name, "s", "neutral", "question", turns if messages is None else messages)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (conversation("a", "Ile?", " \n"), "empty_turn"),
        (conversation("a", "Ile?"), "unbalanced_turns"),
        (conversation("a", "Ile?", "Dwa.", "A czemu?"), "unbalanced_turns"),
        (conversation("a", messages=[]), "unbalanced_turns"),
        (conversation("a", messages=[{"role": "system", "content": "x"}] * 2), "unbalanced_turns"),
        (conversation("a", "Napisz <polish>", "Dobrze."), "special_token"),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_is_rejected(
    instructions: Runner, found: corpus.Instruction, reason: str
) -> None:
    assert instructions(found).reasons == {"a": reason}


def test_conversations_are_normalized_and_masked(instructions: Runner) -> None:
    found = instructions(conversation("a", "Czyj to  numer\u00a044051401359?", "Nie\u00ad wiem."))
    assert [turn["content"] for turn in found.kept["a"]["messages"]] == ["Czyj to numer [PESEL]?", "Nie wiem."]
    assert found.masked == {"PESEL": 1}


def test_conversations_have_their_own_rules(instructions: Runner, rules: params.Clean) -> None:
    strict = rules.rules.model_copy(update={"instructions": rules.rules.edited})
    english = conversation("a", "What did the keeper do?", ENGLISH)
    assert instructions(english, conversation("b", "Co zrobił?", PROSE), rules=strict).reasons == {"a": "not_polish"}


def test_the_same_question_and_answer_stay_once(instructions: Runner) -> None:
    rows = [conversation("b", "Ile?", "Dwa."), conversation("a", "Ile?", "Dwa."), conversation("c", "Ile?", "Trzy.")]
    assert instructions(*rows).reasons == {"b": "exact_duplicate"}


def test_a_correction_of_punctuation_is_no_duplicate(instructions: Runner) -> None:
    rows = [conversation("a", "Popraw: wiem że", "wiem, że"), conversation("b", "Popraw: wiem że", "Wiem że")]
    assert instructions(*rows).reasons == {}


def test_conversations_with_the_same_question_share_a_split(instructions: Runner) -> None:
    rows = [conversation(f"{i:03d}-{k}", f"Pytanie numer {i}?", f"Odpowiedź {k}.") for i in range(150) for k in (1, 2)]
    splits = instructions(*rows).splits
    pairs = [(splits[f"{i:03d}-1"], splits[f"{i:03d}-2"]) for i in range(150)]
    assert all(one == other for one, other in pairs)
    assert {one for one, _ in pairs} == set(corpus.SPLITS)


def test_what_shares_a_question_or_an_answer_in_a_chain_shares_a_split(instructions: Runner) -> None:
    generator = random.Random(3)
    rows = []
    for i in range(40):
        answer = " ".join(generator.sample(PROSE.split(), k=50))
        rows += [
            conversation(f"{i}a", f"Pytanie {i}?", f"Krótko {i}."),
            conversation(f"{i}b", f"Pytanie {i}?", answer),
            conversation(f"{i}c", f"Inaczej {i}?", answer),
        ]
    splits = instructions(*rows).splits
    assert all(splits[f"{i}a"] == splits[f"{i}b"] == splits[f"{i}c"] for i in range(40))
    assert len(set(splits.values())) > 1


def test_conversations_over_the_same_passage_share_a_split(instructions: Runner) -> None:
    rows = [conversation(f"{i}", f"{PROSE}\n\nPytanie {i}?", "Tak.") for i in range(12)]
    assert len(set(instructions(*rows).splits.values())) == 1


def test_a_conversation_that_quotes_a_benchmark_is_rejected(instructions: Runner) -> None:
    found = instructions(conversation("a", PROSE, "Tak."), benchmark=QUOTED)
    assert found.reasons == {"a": "contaminated"}
    assert found.contaminated == [1]


# the cluster


@pytest.mark.parametrize("address", ["bzdura", "auto", "ray://", ":6379", "localhost:x", "localhost:-1"])
def test_an_address_of_a_cluster_that_is_none_fails(rules: params.Clean, address: str) -> None:
    with pytest.raises(ValueError, match=rf"^clean.ray_address is '{address}'; expected host:port"):
        cleaning.start(rules.model_copy(update={"runner": "ray", "ray_address": address}))


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_fails_at_once(rules: params.Clean, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"{scheme}127.0.0.1:{port}", f"{scheme}[::1]:{port}", f"{scheme}127.0.0.1:99999"):
        with pytest.raises(
            OSError, match=rf"^clean.ray_address is '{re.escape(address)}', and no cluster answers there"
        ):
            cleaning.start(rules.model_copy(update={"runner": "ray", "ray_address": address}))


def test_without_ray_the_runner_ray_fails(rules: params.Clean, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^clean.runner is ray, and .*ray.*: install the extra wronai\[cluster\]"):
        cleaning.start(rules.model_copy(update={"runner": "ray", "ray_address": None}))
