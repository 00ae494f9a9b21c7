"""From a row of a data set to turns of user and assistant: the shapes that people have, or columns that are mapped.

`where` begins each error: the key in params.yaml, the file and the row, as in `data.sources[1]: a.jsonl row 17`.
Whether user and assistant take turns is for cleaning to judge. Preference pairs (chosen, rejected) are no shape here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from wronai.corpus import REGISTERS

Turns = list[dict[str, str]]

COLUMNS = frozenset({"question", "answer", "messages", "register", "task"})
UNANSWERABLE = "Z podanego tekstu nie da się na to odpowiedzieć."

_MESSAGE_LISTS = ("messages", "conversations")  # OpenAI's and ShareGPT's name; both take either's keys and roles
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}


def check_columns(columns: Mapping[str, str], key: str) -> None:
    """ValueError for a mapping that no row can satisfy; `key` is that of the source."""
    unknown = sorted(columns.keys() - COLUMNS)
    if unknown:
        raise ValueError(f"{key}.columns maps {unknown[0]!r}; instructions have {', '.join(sorted(COLUMNS))}")
    pair = {"question", "answer"} & columns.keys()
    if len(pair) == 1:
        raise ValueError(f"{key}.columns maps {pair.pop()} alone: question and answer go together")
    if pair and "messages" in columns:
        raise ValueError(f"{key}.columns maps messages beside question and answer: expected one of the two")


def conversation(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Turns:
    """The turns of a row: by `columns` (which `check_columns` passed) if they say, else by the shape its keys show.

    WronAI's format has no system role: a system message goes before the user's next turn, parted by an empty line.
    """
    if "question" in columns:
        return _pair(text_of(row, columns["question"], where), text_of(row, columns["answer"], where))
    if "messages" in columns:
        return _turns(_value(row, columns["messages"], "messages", where), columns["messages"], where)
    for name in _MESSAGE_LISTS:
        if row.get(name) is not None:  # a table has every column in every row
            return _turns(row[name], name, where)
    for question, answer in _PAIRS:
        if question in row and answer in row:
            if isinstance(row[question], list) or isinstance(row[answer], list):  # TRL's conversational form
                return _turns(
                    _messages(row, question, "user", where) + _messages(row, answer, "assistant", where),
                    f"{question} and {answer}",
                    where,
                )
            asked = text_of(row, question, where)
            extra = row.get("input") if question == "instruction" else None
            return _pair(
                f"{asked}\n\n{extra}" if isinstance(extra, str) and extra.strip() else asked,
                text_of(row, answer, where),
            )
    if "chosen" in row or "rejected" in row:
        raise ValueError(f"{where} is a preference pair (chosen, rejected), which WronAI does not train on")
    pairs = ", ".join(" and ".join(pair) for pair in _PAIRS)
    raise ValueError(
        f"{where} has the keys {_keys(row)}; expected messages, conversations, {pairs}, or columns that map "
        "question and answer, or messages"
    )


def register_of(row: Mapping[str, Any], columns: Mapping[str, str], constant: str, where: str) -> str:
    """The register that a mapped column or the row's own says, in any case; else `constant`."""
    if "register" not in columns and row.get("register") is None:
        return constant
    found = text_of(row, columns.get("register", "register"), where)
    register = found.strip().lower()
    if register not in REGISTERS:
        raise ValueError(f"{where}: register is {found!r}, expected {', '.join(REGISTERS)}")
    return register


def task_of(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> str:
    """The task that a mapped column or the row's own says, else `question`."""
    if "task" not in columns and row.get("task") is None:
        return "question"
    return text_of(row, columns.get("task", "task"), where)


def is_squad(row: Mapping[str, Any]) -> bool:
    """Whether this is a document of SQuAD's shape rather than one conversation."""
    return isinstance(row.get("data"), list)


def squad(document: Any, where: str) -> Iterator[tuple[str, Turns]]:
    """Questions over a paragraph, with their place. What the paragraph does not answer gets an answer that says so."""
    try:
        for i, article in enumerate(document["data"]):
            for j, paragraph in enumerate(article["paragraphs"]):
                for k, item in enumerate(paragraph["qas"]):
                    answers = [] if item.get("is_impossible") else item["answers"]
                    answer = (answers[0].get("generative_answer") or answers[0]["text"]) if answers else UNANSWERABLE
                    texts = paragraph["context"], item["question"], answer
                    if not all(isinstance(text, str) for text in texts):
                        raise TypeError(f"expected texts, found {texts}")
                    yield f"{i:05d}-{j:03d}-{k:03d}", _pair(f"{texts[0]}\n\n{texts[1]}", answer)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{where} is no JSON of SQuAD's shape (data, paragraphs, qas): {error!r}") from error


def text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """The text of a column, or of a template such as `Co to jest {term}?` filled from the row's columns.

    Dots lead inwards, by name or by place in a list, as in `answers.text.0`, unless a column has the whole name.
    """
    if "{" in column:
        return re.sub(r"\{([^{}]+)\}", lambda match: text_of(row, match[1], where), column)
    value = _value(row, column, "a text", where)
    if not isinstance(value, str):
        raise ValueError(f"{where} has no text in {column!r}, but {_shown(value)}")
    return value


def _value(row: Mapping[str, Any], column: str, what: str, where: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, TypeError, ValueError):
            found = (
                f"has the keys {_keys(row)}" if value is row else f"has {_shown(value)} where {name!r} is looked for"
            )
            raise ValueError(f"{where} {found}; expected {what} in {column!r}") from None
    return value


def _pair(question: str, answer: str) -> Turns:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _messages(row: Mapping[str, Any], column: str, role: str, where: str) -> list[Any]:
    value = row[column]
    return value if isinstance(value, list) else [{"role": role, "content": text_of(row, column, where)}]


def _turns(messages: Any, column: str, where: str) -> Turns:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where} has {_shown(messages)} in {column}; expected a list of messages")
    turns: Turns = []
    system: list[str] = []
    for i, message in enumerate(messages):
        here = f"{where}: {column}[{i}]"
        if not isinstance(message, dict):
            raise ValueError(
                f"{here} is {_shown(message)}; expected an object with role and content, or from and value"
            )
        role, content = _role(message, here), _content(message, here)
        if role == "system":
            if content.strip():
                system.append(content)
        elif role == "user":
            turns.append({"role": role, "content": "\n\n".join([*system, content])})
            system = []
        else:
            turns.append({"role": role, "content": content})
    if system:
        raise ValueError(f"{where}: {column} has a system message without a user's turn after it")
    return turns


def _role(message: Mapping[str, Any], here: str) -> str:
    found = _first(message, "role", "from")
    role = _ROLES.get(found.strip().lower()) if isinstance(found, str) else None
    if role is None:
        raise ValueError(f"{here} has the role {_shown(found)}; expected {', '.join(_ROLES)}")
    return role


def _content(message: Mapping[str, Any], here: str) -> str:
    """A message's text; the parts of one that is given in parts are paragraphs."""
    if message.get("tool_calls") or message.get("function_call"):
        raise ValueError(f"{here} calls a tool, which WronAI's format has no place for")
    content = _first(message, "content", "value")
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ValueError(f"{here} has the content {_shown(content)}; expected a text, or a list of text parts")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ValueError(f"{here} has the part {_shown(part)}; expected a part of type text")
    return "\n\n".join(part["text"] for part in content)


def _first(message: Mapping[str, Any], *names: str) -> Any:
    return next((message[name] for name in names if message.get(name) is not None), None)


def _keys(row: Mapping[str, Any]) -> str:
    return textwrap.shorten(str(sorted(row)), 500)  # a table can have thousands of columns


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
