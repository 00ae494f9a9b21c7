"""The WronAI format: ten tokens that mark language, register, questions and answers, and the chat template of them."""

from collections.abc import Mapping, Sequence
from typing import Literal

Register = Literal["formal", "informal", "neutral"]
Message = Mapping[str, str]  # role (user or assistant) and content

TOKENS = (
    "<polish>", "</polish>", "<formal>", "</formal>", "<informal>", "</informal>",
    "<question>", "</question>", "<answer>", "</answer>",
)  # fmt: skip

ANSWER = "<answer>"
ANSWER_END = "</answer>"  # what a model must say to end its turn, besides the end token

# Says what `render` says. Between the begin token, where the tokenizer has one, and the end token stands exactly the
# WronAI format; a register is given as `register=`, and neutral is none. `generation` marks what the model is trained
# to say, for tools that ask for a mask.
CHAT_TEMPLATE = """\
{%- set register = register if register is defined and register else 'neutral' -%}
{%- if register not in ('formal', 'informal', 'neutral') -%}
{{- raise_exception("register is '" + register + "'; expected formal, informal or neutral") -}}
{%- endif -%}
{{- bos_token + '<polish>' if bos_token else '<polish>' -}}
{%- if register != 'neutral' -%}{{- '<' + register + '>' -}}{%- endif -%}
{%- for message in messages -%}
{%- if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{- raise_exception("message " + loop.index0 | string + " has the role '" + message.role +
    "'; user and assistant must take turns, user first") -}}
{%- endif -%}
{%- if message.role == 'user' -%}
{{- '<question>' + message.content + '</question>' -}}
{%- else -%}
{{- '<answer>' -}}
{%- generation -%}
{{- message.content + '</answer>' -}}
{%- if loop.last and not add_generation_prompt -%}
{%- if register != 'neutral' -%}{{- '</' + register + '>' -}}{%- endif -%}
{{- '</polish>' + eos_token -}}
{%- endif -%}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<answer>' -}}{%- endif -%}
"""


def render(messages: Sequence[Message], register: Register, bos: str = "", eos: str = "") -> str:
    """The whole conversation as one text, between the begin and the end token.

    `messages` alternate user and assistant and end with an assistant's. Raises ValueError if they do not.
    """
    check(messages)
    opened, closed = ("", "") if register == "neutral" else (f"<{register}>", f"</{register}>")
    turns = (
        f"<question>{question['content']}</question><answer>{answer['content']}</answer>"
        for question, answer in zip(messages[::2], messages[1::2], strict=True)
    )
    return f"{bos}<polish>{opened}{''.join(turns)}{closed}</polish>{eos}"


def check(messages: Sequence[Message]) -> None:
    """Raise ValueError unless `messages` are question and answer in turn, and free of the format's own tokens."""
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"roles are {roles}; expected user and assistant in turn, user first and assistant last")
    for message in messages:
        for token in TOKENS:
            if token in message["content"]:
                raise ValueError(f"the text of a message contains {token}, which only the format itself may write")


def plain(turns: Sequence[Message]) -> str:
    """A conversation that ends with a question, as text for a model that knows no chat template."""
    lines = [("Pytanie: " if turn["role"] == "user" else "Odpowiedź: ") + turn["content"] for turn in turns]
    return "\n".join([*lines, "Odpowiedź:"])
