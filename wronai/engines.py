"""What answers lm_eval's requests: a model in this process, or one that a server holds.

Each is an lm_eval model, so that its tasks run on it unchanged, and says besides what lm_eval does not keep: which
requests were longer than the context, and how each generated answer ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria

from wronai import base, params, prefixes, prompt, tokens
from wronai.progress import Progress

AUTOMATIC = 64  # rows that `batch_size: auto` begins with on a GPU; they are halved until they fit
ON_CPU = 4  # more rows at once make nothing faster there
ANSWERS = 8  # at once for each row of a forward pass: a step of answering holds one token of each
SMALL = 100_000_000  # parameters below which a token's products are too small to be worth a second thread


@dataclass(frozen=True)
class Generation:
    """An answer: its text without the format's tokens, how many tokens it took, and how it ended.

    `ended`: by the end token or by what the task stops at, and not for want of room. `closed`: with the tokens that the
    format closes an answer with, each once, and the end token.
    """

    text: str
    tokens: int
    ended: bool
    closed: bool


@dataclass(frozen=True)
class Wanted:
    """An answer to generate: after the context's `ids`, at most `room` tokens, up to one of `until`."""

    context: str
    ids: list[int]
    room: int
    until: list[str]
    options: dict[str, Any]  # of sampling, as lm_eval's generation_kwargs name them; without do_sample it is greedy


class Asking:
    """How a model is asked: in plain text, or by the chat template in a register. A mixin of lm_eval's models.

    A subclass says what `score` and `generate` do, and sets `tokenizer` and `max_length`, that of evaluate.
    """

    register: prompt.Register = "neutral"
    turns: Mapping[str, Sequence[prompt.Message]] = {}
    tokenizer: Any
    max_length: int
    max_gen_toks: int  # where a task says none
    tok_encode: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.too_long: set[str] = set()  # contexts that were cut from the left to fit
        self.generated: dict[str, Generation] = {}  # by context

    def apply_chat_template(self, chat_history: Sequence[prompt.Message], add_generation_prompt: bool = True) -> str:
        """The WronAI format of lm_eval's messages, up to where the answer begins.

        The format has no system message: its text comes before the first question. A question in `turns`, which holds a
        conversation as plain text, becomes these turns. An answer that lm_eval begins (`gen_prefix`) stays open.
        """
        messages = [dict(message) for message in chat_history]
        if messages[0]["role"] == "system":
            said = messages.pop(0)["content"]
            messages[0]["content"] = f"{said.rstrip()}\n\n{messages[0]['content']}"
        begun = "" if add_generation_prompt else messages.pop()["content"]
        messages[-1:] = [dict(turn) for turn in self.turns.get(messages[-1]["content"], messages[-1:])]
        return asked(self.tokenizer, messages, self.register, chat=True) + begun

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm_eval's, without a bar of its own: `score` says how far it is."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[misc]
        return found

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities and whether greedy, for each (texts, ids before, ids to score)."""
        wanted = []
        for texts, before, after in requests:
            ids = (*before, *after)
            if len(ids) > self.max_length + 1:
                if texts is not None:  # a window of a text that lm_eval rolls through has none
                    self.too_long.add(texts[0])
                ids = ids[-(self.max_length + 1) :]
            wanted.append(prefixes.Request(ids, max(1, len(ids) - len(after))))
        return self.score(wanted, "scoring", "requests")

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that the model generates for each request of lm_eval, up to what it stops at."""
        asked = [(request.args[0], dict(request.args[1])) for request in requests]
        return [found.text for found in self.generate(asked)]

    def wanted(self, context: str, how: Mapping[str, Any]) -> Wanted:
        """What a request for an answer asks; a context that leaves no room is cut from the left, and noted.

        `how` are generation_kwargs of lm_eval. Raises ValueError if they leave nothing for any question.
        """
        options = dict(how)
        until = options.pop("until", None) or []
        room = int(options.pop("max_gen_toks", None) or self.max_gen_toks)
        if room >= self.max_length:
            raise ValueError(
                f"a task asks for answers of {room} tokens (max_gen_toks), and evaluate.max_length is "
                f"{self.max_length}: nothing is left for the question"
            )
        ids = self.tok_encode(context)
        if len(ids) > self.max_length - room:
            self.too_long.add(context)
            ids = ids[-(self.max_length - room) :]
        if not options.pop("do_sample", False):
            options = {key: value for key, value in options.items() if key not in ("temperature", "top_p", "top_k")}
        else:
            options["do_sample"] = True
        return Wanted(context, ids, room, [until] if isinstance(until, str) else list(until), options)

    def score(self, requests: Sequence[prefixes.Request], what: str, unit: str) -> list[tuple[float, bool]]:
        """For each request the sum of log-probabilities in nats, and whether each scored id was the likeliest."""
        raise NotImplementedError

    def generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Generation]:
        """What the model answers to each (context, generation_kwargs of lm_eval: until, max_gen_toks, do_sample …).

        Contexts that leave no room for the answer are cut from the left, and noted in `too_long`.
        """
        raise NotImplementedError


class InProcess(Asking, HFLM):  # type: ignore[misc]  # HFLM has no types
    """A model on this machine, whose requests share what they begin with."""

    def __init__(self, model: Any, tokenizer: Any, settings: params.Scoring) -> None:
        size = settings.batch_size
        if size == "auto":
            size = AUTOMATIC if model.device.type == "cuda" else ON_CPU
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # it stands on the left and is masked
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=settings.max_length)
        self.batch = prefixes.Batch(int(size))
        self.answering = prefixes.Batch(ANSWERS * int(size))

    def score(self, requests: Sequence[prefixes.Request], what: str, unit: str) -> list[tuple[float, bool]]:
        """What `prefixes.score` gives, with progress."""
        progress = Progress(what, len(requests), unit)
        found = prefixes.score(self.model, requests, self.max_length, self.batch, progress.add)
        progress.close()
        return found

    @torch.no_grad()
    def generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Generation]:
        """What the model answers to each (context, generation_kwargs of lm_eval: until, max_gen_toks, do_sample …).

        Contexts that leave no room for the answer are cut from the left, and noted in `too_long`.
        """
        wanted = [self.wanted(context, how) for context, how in asked]
        kinds = [str(how) for _, how in asked]
        order = sorted(range(len(asked)), key=lambda number: (kinds[number], -len(wanted[number].ids), number))
        found: dict[int, Generation] = {}
        progress = Progress("answering", len(asked), "questions")
        with _threads_for(self.model):
            while len(found) < len(asked):
                begun = len(found)
                numbers = [n for n in order[begun : begun + self.answering.size] if kinds[n] == kinds[order[begun]]]
                try:
                    answers = self._answers([wanted[number] for number in numbers])
                except torch.OutOfMemoryError as error:
                    self.answering.halve(error)
                    continue
                found |= zip(numbers, answers, strict=True)
                progress.add(len(numbers))
        progress.close()
        self.generated |= {context: found[number] for number, (context, _) in enumerate(asked)}
        return [found[number] for number in range(len(asked))]

    def _answers(self, wanted: Sequence[Wanted]) -> list[Generation]:
        """The answers to requests that differ in their context alone."""
        room, until = wanted[0].room, wanted[0].until
        width = max(len(want.ids) for want in wanted)
        padding = self.tokenizer.pad_token_id
        padded = torch.tensor([[padding] * (width - len(want.ids)) + want.ids for want in wanted])
        mask = torch.tensor([[0] * (width - len(want.ids)) + [1] * len(want.ids) for want in wanted])
        out = self.model.generate(
            input_ids=padded.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=room,
            pad_token_id=padding,
            eos_token_id=self.tokenizer.eos_token_id,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, until, width, len(wanted)) if until else None,
            **{"do_sample": False, **wanted[0].options},
        )
        return [
            ending(self.tokenizer, row, want.until, want.context)
            for want, row in zip(wanted, out[:, width:].tolist(), strict=True)
        ]


@contextlib.contextmanager
def _threads_for(model: Any) -> Iterator[None]:
    """One thread for a small model: two wait for each other most of the time, above all on a busy machine."""
    threads = torch.get_num_threads()
    if model.num_parameters() < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def ending(tokenizer: Any, ids: Sequence[int], until: Sequence[str], context: str) -> Generation:
    """The generated `ids` after `context` as an answer; what comes after the end token is padding."""
    ended = tokenizer.eos_token_id in ids
    own = list(ids[: list(ids).index(tokenizer.eos_token_id) + 1]) if ended else list(ids)
    closed = is_closed(own, tokenizer, register_of(context))
    text = str(tokenizer.decode(own, skip_special_tokens=True))
    for stop in until:
        if stop in text:
            text, ended = text.split(stop)[0], True
            # others of its batch let it run on: it took as many tokens as hold the stop
            held = (
                count for count in range(len(own)) if stop in tokenizer.decode(own[:count], skip_special_tokens=True)
            )
            own = own[: next(held, len(own))]
    return Generation(text, len(own), ended, closed)


def register_of(context: str) -> prompt.Register:
    """The register that a context in the WronAI format opened with."""
    return next((name for name in ("formal", "informal") if f"<polish><{name}>" in context[:64]), "neutral")


def is_closed(ids: Sequence[int], tokenizer: Any, register: prompt.Register) -> bool:
    """Whether an answer ends as the format wants, with each closing token once: `</answer>…</polish>` and the end."""
    wrapped = [f"</{register}>"] if register != "neutral" else []
    closing = tokenizer.convert_tokens_to_ids([prompt.ANSWER_END, *wrapped, "</polish>", tokenizer.eos_token])
    own = set(tokenizer.convert_tokens_to_ids([*prompt.TOKENS, tokenizer.eos_token]))
    return bool([token for token in ids if token in own] == closing == list(ids[-len(closing) :]))


def asked(tokenizer: Any, turns: Sequence[prompt.Message], register: prompt.Register, *, chat: bool) -> str:
    """The text after which an answer to the last of `turns` comes: in the WronAI format with `chat`, else plain."""
    if not chat:
        return (tokenizer.bos_token or "") + prompt.plain(turns)
    return str(tokenizer.apply_chat_template(turns, register=register, add_generation_prompt=True, tokenize=False))


def in_process(folder: Path, settings: params.Scoring) -> InProcess:
    """The model in `folder`, on a GPU where there is one."""
    model = base.load(folder, getattr(torch, settings.dtype), device=base.device()).eval()
    return InProcess(model, tokens.load(folder), settings)
