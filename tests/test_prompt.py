from pathlib import Path
from typing import Any

import pytest
import tiny
from jinja2.exceptions import TemplateError

from wronai import prompt, tokens

ASK = [{"role": "user", "content": "Ile masz lat?"}]
TALK = [
    {"role": "user", "content": "Dzień dobry!"},
    {"role": "assistant", "content": "Dzień dobry. W czym mogę pomóc?"},
    {"role": "user", "content": "Szukam „Lalki” Prusa."},
    {"role": "assistant", "content": "Jest na półce 7 – proszę."},
]


def applied(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def test_a_turn_is_a_question_and_an_answer_between_polish(tokenizer: Any) -> None:
    expected = (
        "<s><polish><question>Dzień dobry!</question><answer>Dzień dobry. W czym mogę pomóc?</answer></polish></s>"
    )
    assert applied(tokenizer, TALK[:2]) == expected


@pytest.mark.parametrize("register", ["formal", "informal"])
def test_a_register_wraps_all_turns(tokenizer: Any, register: str) -> None:
    assert applied(tokenizer, TALK, register=register) == (
        f"<s><polish><{register}>"
        "<question>Dzień dobry!</question><answer>Dzień dobry. W czym mogę pomóc?</answer>"
        "<question>Szukam „Lalki” Prusa.</question><answer>Jest na półce 7 – proszę.</answer>"
        f"</{register}></polish></s>"
    )


def test_the_neutral_register_is_none(tokenizer: Any) -> None:
    assert (
        applied(tokenizer, TALK, register="neutral")
        == applied(tokenizer, TALK)
        == applied(tokenizer, TALK, register=None)
    )


def test_a_generation_prompt_ends_where_the_answer_begins(tokenizer: Any) -> None:
    assert (
        applied(tokenizer, ASK, register="formal", add_generation_prompt=True)
        == "<s><polish><formal><question>Ile masz lat?</question><answer>"
    )
    assert (
        applied(tokenizer, [*TALK, *ASK], add_generation_prompt=True)
        == applied(tokenizer, TALK).removesuffix("</polish></s>") + "<question>Ile masz lat?</question><answer>"
    )


@pytest.mark.parametrize("register", ["formal", "informal", "neutral"])
def test_the_template_says_what_the_training_text_says(tokenizer: Any, register: prompt.Register) -> None:
    for example in tiny.CONVERSATIONS:
        expected = prompt.render(example["messages"], register, "<s>", "</s>")
        assert applied(tokenizer, example["messages"], register=register) == expected


@pytest.mark.parametrize(
    "messages", [TALK[1:], [*ASK, *ASK], [{"role": "system", "content": "Mów krótko."}, *ASK], [TALK[0], TALK[0]]]
)
def test_wrong_roles_are_refused_by_template_and_training(tokenizer: Any, messages: list[dict[str, str]]) -> None:
    with pytest.raises(TemplateError, match="user and assistant must take turns"):
        applied(tokenizer, messages)
    with pytest.raises(ValueError, match="expected user and assistant in turn"):
        prompt.render(messages, "neutral")


@pytest.mark.parametrize("messages", [[], ASK, TALK[:3]])
def test_a_conversation_to_train_on_ends_with_an_answer(messages: list[dict[str, str]]) -> None:
    with pytest.raises(ValueError, match="assistant last"):
        prompt.render(messages, "neutral")


def test_a_wrong_register_is_refused_with_those_that_are_right(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="register is 'polite'; expected formal, informal or neutral"):
        applied(tokenizer, ASK, register="polite")


@pytest.mark.parametrize("token", prompt.TOKENS)
def test_text_may_not_hold_the_tokens_of_the_format(token: str) -> None:
    with pytest.raises(ValueError, match=f"contains {token}"):
        prompt.check([{"role": "user", "content": f"a{token}b"}, {"role": "assistant", "content": "c"}])


def test_the_template_survives_saving_and_loading(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = tokens.load(tmp_path)
    assert again.chat_template == prompt.CHAT_TEMPLATE
    assert applied(again, TALK, register="formal") == applied(tokenizer, TALK, register="formal")


def test_without_a_begin_token_the_format_begins_the_text(tokenizer: Any) -> None:
    expected = applied(tokenizer, TALK).removeprefix("<s>")
    tokenizer.bos_token = None
    assert applied(tokenizer, TALK) == expected == prompt.render(TALK, "neutral", "", "</s>")
