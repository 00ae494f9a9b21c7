from typing import Any

import pytest

from wronai import conversations

WHERE = "data.sources[3]: a.jsonl row 17"
ASKED = [{"role": "user", "content": "Ile?"}, {"role": "assistant", "content": "Dwa."}]
TEXT = "Rzeka wylała w nocy i zabrała most."


def turns(row: dict[str, Any], **columns: str) -> list[str]:
    return [f"{turn['role']}: {turn['content']}" for turn in conversations.conversation(row, columns, WHERE)]


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "Ile?", "output": "Dwa."}, "Ile?"),
        ({"instruction": "Popraw.", "input": "wziąść", "output": "Dwa."}, "Popraw.\n\nwziąść"),
        ({"instruction": "Ile?", "input": " ", "response": "Dwa."}, "Ile?"),
        ({"instruction": "Ile?", "input": None, "response": "Dwa."}, "Ile?"),
        ({"question": "Ile?", "answer": "Dwa."}, "Ile?"),
        ({"prompt": "Ile?", "completion": "Dwa."}, "Ile?"),
        ({"prompt": "Ile?", "response": "Dwa."}, "Ile?"),
        ({"prompt": [ASKED[0]], "completion": [ASKED[1]]}, "Ile?"),
        ({"prompt": [ASKED[0]], "completion": "Dwa."}, "Ile?"),
        ({"messages": ASKED}, "Ile?"),
        ({"messages": None, "question": "Ile?", "answer": "Dwa."}, "Ile?"),
        ({"conversations": [{"from": "human", "value": "Ile?"}, {"from": "gpt", "value": "Dwa."}]}, "Ile?"),
        ({"conversations": [{"from": "User", "value": "Ile?"}, {"from": "chatgpt", "value": "Dwa."}]}, "Ile?"),
        ({"conversations": [{"from": "user", "value": "Ile?"}, {"from": "bing", "value": "Dwa."}]}, "Ile?"),
        (
            {"conversations": [{"role": None, "from": "user", "value": "Ile?"}, {"from": "bard", "value": "Dwa."}]},
            "Ile?",
        ),
        ({"conversations": ASKED}, "Ile?"),
    ],
)
def test_known_shapes_are_read(row: dict[str, Any], question: str) -> None:
    assert turns(row) == [f"user: {question}", "assistant: Dwa."]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_goes_before_the_question(role: str) -> None:
    system = {"role": role, "content": "Odpowiadaj krótko."}
    assert turns({"messages": [system, *ASKED]}) == ["user: Odpowiadaj krótko.\n\nIle?", "assistant: Dwa."]
    assert turns({"messages": [*ASKED, system, *ASKED]})[2] == "user: Odpowiadaj krótko.\n\nIle?"


def test_an_empty_system_message_is_none() -> None:
    assert turns({"messages": [{"role": "system", "content": ""}, *ASKED]})[0] == "user: Ile?"


def test_a_system_message_without_a_question_fails() -> None:
    with pytest.raises(ValueError, match=r"row 17: messages has a system message without a user's turn after it"):
        turns({"messages": [*ASKED, {"role": "system", "content": "Krótko."}]})


def test_the_parts_of_a_message_are_paragraphs() -> None:
    parts = [{"type": "text", "text": "Popraw."}, {"type": "text", "text": "wziąść"}]
    assert turns({"messages": [{"role": "user", "content": parts}]}) == ["user: Popraw.\n\nwziąść"]


def test_the_order_of_turns_is_not_judged() -> None:
    assert turns({"messages": ASKED[::-1]}) == ["assistant: Dwa.", "user: Ile?"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Ile?", r"has 'Ile\?' in messages; expected a list of messages"),
        ([], r"has \[\] in messages; expected a list of messages"),
        (["Ile?"], r"messages\[0\] is 'Ile\?'; expected an object with role and content, or from and value"),
        (
            [*ASKED, {"role": "tool", "content": "2"}],
            r"messages\[2\] has the role 'tool'; expected user, human, assist",
        ),
        ([{"role": "function", "content": "2"}], r"messages\[0\] has the role 'function'"),
        ([{"content": "2"}], r"messages\[0\] has the role None"),
        ([{"role": "user"}], r"messages\[0\] has the content None; expected a text"),
        ([{"role": "user", "content": 2}], r"messages\[0\] has the content 2"),
        ([{"role": "user", "content": []}], r"messages\[0\] has the content \[\]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\] has the part {'type': 'image_url'}"),
        (
            [{"role": "user", "content": [{"type": "text", "text": None}]}],
            r"messages\[0\] has the part .*; expected a part of type text",
        ),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], r"messages\[0\] calls a tool"),
        ([{"role": "assistant", "content": "", "function_call": {"name": "f"}}], r"messages\[0\] calls a tool"),
    ],
)
def test_messages_that_are_no_turns_fail_with_what_was_found(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data.sources\[3\]: a.jsonl row 17:? {message}"):
        turns({"messages": messages})


def test_what_was_found_is_shown_in_short() -> None:
    with pytest.raises(ValueError, match=r"has 'x{79}… in messages"):
        turns({"messages": "x" * 1000})


def test_an_answer_that_is_no_text_fails() -> None:
    with pytest.raises(ValueError, match=r"row 17 has no text in 'output', but None"):
        turns({"instruction": "Ile?", "output": None})


def test_an_unknown_shape_fails_with_its_keys() -> None:
    with pytest.raises(
        ValueError, match=r"row 17 has the keys \['meaning', 'term'\]; expected messages, conversations"
    ):
        turns({"term": "tama", "meaning": "zapora"})


def test_a_preference_pair_fails_unless_columns_take_one_side() -> None:
    row = {"prompt": "Ile?", "chosen": "Dwa.", "rejected": "Trzy."}
    with pytest.raises(ValueError, match=r"row 17 is a preference pair \(chosen, rejected\)"):
        turns(row)
    assert turns(row, question="prompt", answer="chosen") == ["user: Ile?", "assistant: Dwa."]


def test_columns_can_put_a_question_around_a_term() -> None:
    row = {"term": "tama", "meaning": "zapora"}
    assert turns(row, question="Co to jest {term}?", answer="meaning")[0] == "user: Co to jest tama?"


def test_columns_go_before_the_shape_of_the_row() -> None:
    row = {"messages": ASKED, "q": "Kiedy?", "a": "W nocy."}
    assert turns(row, question="q", answer="a") == ["user: Kiedy?", "assistant: W nocy."]


def test_messages_can_be_mapped_to_a_column() -> None:
    assert turns({"dialog": {"tury": ASKED}}, messages="dialog.tury") == ["user: Ile?", "assistant: Dwa."]
    with pytest.raises(ValueError, match=r"has the keys \['dialog'\]; expected messages in 'tury'"):
        turns({"dialog": ASKED}, messages="tury")


def test_dots_lead_into_objects_and_lists() -> None:
    row = {"data": {"question": "Kiedy?", "answers": {"text": ["W nocy."]}}}
    assert turns(row, question="Pytanie: {data.question}", answer="data.answers.text.0") == [
        "user: Pytanie: Kiedy?",
        "assistant: W nocy.",
    ]


def test_a_column_with_a_dot_in_its_name_is_found() -> None:
    assert conversations.text_of({"a.b": "x", "a": {"b": "y"}}, "a.b", WHERE) == "x"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("body", r"has the keys \['data', 'n'\]; expected a text in 'body'"),
        ("{body}!", r"has the keys \['data', 'n'\]; expected a text in 'body'"),
        ("n", r"has no text in 'n', but 7"),
        ("data.x", r"has {'texts': \[\]} where 'x' is looked for; expected a text in 'data.x'"),
        ("data.texts.0", r"has \[\] where '0' is looked for"),
        ("data.texts.x", r"has \[\] where 'x' is looked for"),
        ("n.x", r"has 7 where 'x' is looked for"),
    ],
)
def test_a_column_without_text_fails_with_what_is_there(column: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data.sources\[3\]: a.jsonl row 17 {message}"):
        conversations.text_of({"n": 7, "data": {"texts": []}}, column, WHERE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "a"}, "maps 'text'; instructions have answer, messages, question, register, task"),
        ({"question": "a", "task": "b"}, "maps question alone: question and answer go together"),
        ({"answer": "a"}, "maps answer alone"),
        ({"question": "a", "answer": "b", "messages": "c"}, "maps messages beside question and answer"),
    ],
)
def test_columns_that_no_row_can_satisfy_fail(columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=rf"data.sources\[3\].columns {message}"):
        conversations.check_columns(columns, "data.sources[3]")


def test_columns_that_fit_together_pass() -> None:
    conversations.check_columns({"question": "a", "answer": "b", "register": "c", "task": "d"}, "data.sources[3]")
    conversations.check_columns({"messages": "a"}, "data.sources[3]")


def test_the_register_comes_from_a_column_the_row_or_the_constant() -> None:
    register_of = conversations.register_of
    assert register_of({"styl": " Formal"}, {"register": "styl"}, "neutral", WHERE) == "formal"
    assert register_of({"register": "INFORMAL"}, {}, "neutral", WHERE) == "informal"
    assert register_of({"register": None}, {}, "formal", WHERE) == "formal"
    assert register_of({}, {}, "informal", WHERE) == "informal"


def test_an_unknown_register_fails() -> None:
    with pytest.raises(ValueError, match=r"row 17: register is 'Uprzejmy', expected formal, informal, neutral"):
        conversations.register_of({"register": "Uprzejmy"}, {}, "neutral", WHERE)
    with pytest.raises(ValueError, match=r"has the keys \[\]; expected a text in 'styl'"):
        conversations.register_of({}, {"register": "styl"}, "neutral", WHERE)


def test_the_task_comes_from_a_column_the_row_or_is_a_question() -> None:
    assert conversations.task_of({"typ": "explain"}, {"task": "typ"}, WHERE) == "explain"
    assert conversations.task_of({"task": "rewrite"}, {}, WHERE) == "rewrite"
    assert conversations.task_of({"task": None}, {}, WHERE) == "question"


def test_squad_answers_and_says_when_the_text_does_not() -> None:
    qas = [
        {"question": "Kiedy?", "answers": [{"text": "w nocy", "generative_answer": "W nocy."}], "is_impossible": False},
        {"question": "Co?", "answers": [{"text": "most"}]},
        {"question": "Gdzie?", "plausible_answers": [{"text": "most"}], "is_impossible": True},
        {"question": "Po co?", "answers": []},
    ]
    document = {"data": [{"paragraphs": [{"context": TEXT, "qas": qas}]}]}
    assert conversations.is_squad(document)
    assert [(place, *(turn["content"] for turn in found)) for place, found in conversations.squad(document, WHERE)] == [
        ("00000-000-000", f"{TEXT}\n\nKiedy?", "W nocy."),
        ("00000-000-001", f"{TEXT}\n\nCo?", "most"),
        ("00000-000-002", f"{TEXT}\n\nGdzie?", conversations.UNANSWERABLE),
        ("00000-000-003", f"{TEXT}\n\nPo co?", conversations.UNANSWERABLE),
    ]


def test_a_conversation_is_no_squad() -> None:
    assert not conversations.is_squad({"messages": ASKED})
    assert not conversations.is_squad({"data": "2024", "question": "Ile?"})


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"data": [{"paragraphs": [{"qas": [{}]}]}]},
        {"data": [{"paragraphs": "x"}]},
        {"data": [{"paragraphs": [{"context": None, "qas": [{"question": "Ile?", "answers": [{"text": "2"}]}]}]}]},
        {"data": [{"paragraphs": [{"context": TEXT, "qas": [{"question": "Ile?", "answers": [{"text": 2}]}]}]}]},
        {"data": [{"paragraphs": [{"context": TEXT, "qas": [{"question": "Ile?", "answers": ["2"]}]}]}]},
    ],
)
def test_json_of_another_shape_fails(document: Any) -> None:
    with pytest.raises(ValueError, match=r"data.sources\[3\]: a.jsonl row 17 is no JSON of SQuAD's shape \(data, par"):
        list(conversations.squad(document, WHERE))


def test_of_thousands_of_keys_an_error_says_some() -> None:
    with pytest.raises(
        ValueError, match=r"has the keys \['c0', 'c1', .* \[\.\.\.\]; expected a text in 'body'"
    ) as caught:
        conversations.text_of({f"c{i}": "" for i in range(10_000)}, "body", WHERE)
    assert len(str(caught.value)) < 1000
