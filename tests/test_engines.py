from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from wronai import base, engines, prefixes, tokens

SETTINGS = tiny.EVALUATE.scoring.model_copy(update={"max_length": 128})
GREEDY = {"until": [], "max_gen_toks": 12}


@pytest.fixture(scope="module")
def engine(merged_folder: Path) -> engines.InProcess:
    return engines.InProcess(base.load(merged_folder, torch.float32).eval(), tokens.load(merged_folder), SETTINGS)


def ask(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def test_a_question_is_asked_in_the_register(engine: engines.InProcess) -> None:
    try:
        engine.register = "formal"
        found = engine.apply_chat_template([ask("Jak dojechać?")])
    finally:
        engine.register = "neutral"
    assert found == "<s><polish><formal><question>Jak dojechać?</question><answer>"
    assert engine.apply_chat_template([ask("A ty?")]) == "<s><polish><question>A ty?</question><answer>"


def test_what_a_task_says_first_stands_before_its_first_question(engine: engines.InProcess) -> None:
    told = [ask("Odpowiedz jednym słowem.\n\n", "system"), ask("Co?"), ask("To.", "assistant"), ask("Kto?")]
    assert engine.apply_chat_template(told) == (
        "<s><polish><question>Odpowiedz jednym słowem.\n\nCo?</question><answer>To.</answer>"
        "<question>Kto?</question><answer>"
    )
    assert told[0]["role"] == "system", "lm_eval's own messages stay as they are"


def test_an_answer_that_is_begun_stays_open(engine: engines.InProcess) -> None:
    begun = [ask("Ile?"), ask("Odpowiedź to", "assistant")]
    found = engine.apply_chat_template(begun, add_generation_prompt=False)
    assert found == "<s><polish><question>Ile?</question><answer>Odpowiedź to"


def test_generation_does_not_depend_on_the_others_of_its_batch(engine: engines.InProcess) -> None:
    contexts = [f"<s><polish><question>{'Co to jest? ' * count}</question><answer>" for count in (1, 4, 2, 3, 1)]
    together = engine.generate([(context, GREEDY) for context in contexts])
    alone = [engine.generate([(context, GREEDY)])[0] for context in contexts]
    assert together == alone
    assert all(0 < one.tokens <= 12 for one in together)


def test_requests_are_answered_each_in_its_own_way(engine: engines.InProcess) -> None:
    context = "<s><polish><question>Jak się masz?</question><answer>"
    found = engine.generate([(context, {**GREEDY, "max_gen_toks": count}) for count in (2, 9, 2)])
    assert found[0] == found[2]
    assert found[0].tokens <= 2
    assert found[1].text.startswith(found[0].text)


def test_a_context_that_leaves_no_room_is_cut_and_noted(engine: engines.InProcess) -> None:
    context = "<s><polish><question>" + "Opowiedz o tym. " * 60 + "</question><answer>"
    engine.too_long = set()
    assert engine.generate([(context, GREEDY)])[0].tokens > 0
    assert engine.too_long == {context}


def test_a_task_that_asks_for_more_than_the_context_says_so(engine: engines.InProcess) -> None:
    with pytest.raises(ValueError, match=r"answers of 128 tokens \(max_gen_toks\), and evaluate.max_length is 128"):
        engine.generate([("<s>", {"max_gen_toks": 128})])


def test_a_batch_that_does_not_fit_is_halved(engine: engines.InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Any = [(f"<s><polish><question>Pytanie {n}</question><answer>", GREEDY) for n in range(6)]
    whole = engine.generate(asked)
    answers = engine._answers

    def small(contexts: list[str], *others: Any) -> Any:
        if len(contexts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answers(contexts, *others)

    monkeypatch.setattr(engine, "_answers", small)
    monkeypatch.setattr(engine, "answering", prefixes.Batch(8))
    assert engine.generate(asked) == whole
    assert engine.answering.size == 2


def test_automatic_batches_begin_large_on_a_gpu_and_small_here(merged_folder: Path) -> None:
    automatic = SETTINGS.model_copy(update={"batch_size": "auto"})
    model = base.load(merged_folder, torch.float32)
    assert engines.InProcess(model, tokens.load(merged_folder), automatic).batch.size == engines.ON_CPU


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def test_an_answer_says_how_it_ended(engine: engines.InProcess) -> None:
    tokenizer = engine.tokenizer
    formal = "<s><polish><formal><question>Co?</question><answer>"
    whole = ids(tokenizer, "To jest to.</answer></formal></polish></s>")
    found = engines.ending(tokenizer, [*whole, 0, 0], [], formal)
    assert found == engines.Generation("To jest to.", len(whole), ended=True, closed=True)
    neutral = "<s><polish><question>Co?</question><answer>"
    assert not engines.ending(tokenizer, whole, [], neutral).closed, "nothing formal was opened"
    cut = engines.ending(tokenizer, whole[:3], [], formal)
    assert (cut.ended, cut.closed, cut.tokens) == (False, False, 3)
    ended = engines.ending(tokenizer, ids(tokenizer, "To.</s>"), [], formal)
    assert (ended.ended, ended.closed) == (True, False)


def test_what_comes_after_a_stop_is_no_part_of_the_answer(engine: engines.InProcess) -> None:
    said = ids(engine.tokenizer, "To jest to.\nPytanie: Co dalej?")
    found = engines.ending(engine.tokenizer, said, ["\nPytanie:"], "Co?")
    assert (found.text, found.ended, found.closed) == ("To jest to.", True, False)


@pytest.mark.parametrize(
    ("text", "register", "closed"),
    [
        ("Tak.</answer></polish></s>", "neutral", True),
        ("Tak.</answer></formal></polish></s>", "formal", True),
        ("</answer></informal></polish></s>", "informal", True),
        ("Tak.</answer></polish>", "neutral", False),
        ("Tak.</polish></s>", "neutral", False),
        ("Tak.</answer></polish></s>", "formal", False),
        ("Tak.</answer></informal></polish></s>", "formal", False),
        ("Tak.</answer></formal></polish></s>", "neutral", False),
        ("Tak.</answer><question>A ty?</question><answer>Nie.</answer></polish></s>", "neutral", False),
        ("Tak.</answer></answer></polish></s>", "neutral", False),
        ("Tak.</answer> </polish></s>", "neutral", False),
        ("Tak.", "neutral", False),
        ("", "neutral", False),
    ],
)
def test_an_answer_is_closed_only_as_the_format_says(tokenizer: Any, text: str, register: Any, closed: bool) -> None:
    assert engines.is_closed(ids(tokenizer, text), tokenizer, register) is closed


def test_an_answer_ends_with_its_end_token_and_without_padding(merged_folder: Path) -> None:
    ends = engines.InProcess(base.load(merged_folder, torch.float32), tokens.load(merged_folder), SETTINGS)
    ends.model.model.norm.weight.data.zero_()
    ends.model.lm_head = torch.nn.Linear(64, 610, bias=True)
    ends.model.lm_head.weight.data.zero_()
    ends.model.lm_head.bias.data.zero_()
    ends.model.lm_head.bias.data[ends.tokenizer.eos_token_id] = 50.0
    found = ends.generate([("<s><polish>", GREEDY), ("<s>", GREEDY)])
    assert found == [engines.Generation("", 1, ended=True, closed=False)] * 2


@pytest.mark.parametrize("register", ["formal", "informal", "neutral"])
def test_the_register_is_read_from_the_context(tokenizer: Any, register: Any) -> None:
    context = engines.asked(tokenizer, [ask("Czym jest <formal>?")], register, chat=True)
    assert engines.register_of(context) == register


def test_plain_text_begins_with_the_begin_token(tokenizer: Any) -> None:
    assert engines.asked(tokenizer, [ask("Co?")], "formal", chat=False) == "<s>Pytanie: Co?\nOdpowiedź:"
