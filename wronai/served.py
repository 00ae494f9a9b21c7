"""A model that a server holds, asked over the OpenAI completions protocol: vLLM, SGLang, llama.cpp's server.

Prompts go out as token ids of the local folder's tokenizer, so what is asked is what a model in this process is asked.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import requests
import torch
import urllib3
from lm_eval.api.model import TemplateLM

from wronai import engines, params, prefixes, prompt, tokens
from wronai.progress import Progress

COMPLETIONS, MODELS = "/completions", "/models"  # below the same address
TIMEOUT = (10, 600)  # seconds to connect, and until an answer of a busy server
# A server that restarts or is too busy is asked again after 0, 1 and 2 s, or when it says; one that breaks off, once.
RETRY = urllib3.Retry(
    total=3,
    read=1,
    backoff_factor=0.5,
    status_forcelist=(429, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)
# What is asked is echoed whole, though its last token predicts nothing that is wanted, and one more is generated: some
# servers refuse to generate none. A model in this process takes one token more than max_length, and scores the last.
EXTRA = 2
# Answers with the tokens of the format in them; servers ignore what they do not know of it.
TOKENS = {"skip_special_tokens": False, "spaces_between_special_tokens": False, "return_token_ids": True}
# Log-probabilities of what is asked, as lm_eval asks for them; and the likeliest by their ids where the server can: the
# bytes of a letter are all written alike, and would pass for each other.
ECHO = {"max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True, "return_tokens_as_token_ids": True}
LIKELIHOODS = (
    "benchmarks by likelihood and bits per byte need a server that gives the log-probabilities of what it is asked "
    "(echo with logprobs), as vLLM does"
)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Wanted(engines.Wanted):
    """An answer to generate apart from this process; `options` are named as servers do, temperature always there."""

    seed: int


class Apart(engines.Asking):
    """What asks a model that this process does not compute, one request at a time. A mixin of lm_eval's models.

    A subclass sets `tokenizer` and `limit`, and says what `score` and `complete` do. `limit` is evaluate.max_length: as
    in this process, longer requests are cut from the left, and noted in `too_long`.
    """

    limit: int
    batch_size = 1024  # of rolling windows, which lm_eval hands on in parts
    add_bos_token: bool | None = None
    custom_prefix_token_id: int | None = None
    # Text becomes tokens as it does in this process, so that scores compare; none of these touches the model.
    tok_encode = engines.InProcess.tok_encode
    prefix_token_id = engines.InProcess.prefix_token_id
    eot_token_id = engines.InProcess.eot_token_id
    tokenizer_name = engines.InProcess.tokenizer_name
    loglikelihood_rolling = engines.InProcess.loglikelihood_rolling
    max_gen_toks = engines.InProcess.max_gen_toks  # where a task says none

    def complete(self, wanted: Sequence[Wanted]) -> list[engines.Generation]:
        """The answer to each of `wanted`."""
        raise NotImplementedError

    @property
    def max_length(self) -> int:  # type: ignore[override]
        return self.limit

    def generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[engines.Generation]:
        """What the model answers to each (context, generation_kwargs of lm_eval: until, max_gen_toks, do_sample …).

        What is sampled follows from the seed that torch was given, and from the place in `asked`.
        """
        found = self.complete([self._wanted(number, *request) for number, request in enumerate(asked)])
        self.generated |= {context: said for (context, _), said in zip(asked, found, strict=True)}
        return found

    def _wanted(self, number: int, context: str, how: Mapping[str, Any]) -> Wanted:
        want = self.wanted(context, how)
        sampled = want.options.pop("do_sample", False)
        options = {"temperature": 1.0, **want.options} if sampled else {**want.options, "temperature": 0.0}
        seed = (torch.initial_seed() + number) % 2**31
        return Wanted(want.context, want.ids, want.room, want.until, options, seed)


class Served(Apart, TemplateLM):  # type: ignore[misc]  # TemplateLM has no types
    """The model of a local folder, as a server holds it.

    `evaluate.server.url` ends in /completions, and `evaluate.server.model` is the name that the server lists. In both,
    `{model}` becomes the name of the folder, base or merged; `params` sees to it that one of them holds it.

    The server's context must hold `EXTRA` tokens more than `evaluate.max_length`. It batches by itself: as many as
    `evaluate.server.concurrent` requests are under way, and `evaluate.batch_size` and `evaluate.dtype` say nothing. The
    environment's OPENAI_API_KEY is sent where it is set.

    Which tokens an answer has is known from a server that returns their ids (vLLM), or that writes special tokens when
    asked to (SGLang; llama.cpp's with --special). `repetition_penalty` is known to vLLM and SGLang, not to llama.cpp.
    """

    def __init__(self, folder: Path, settings: params.Scoring) -> None:
        super().__init__()
        server = settings.server
        if server.url is None or server.model is None:
            raise ValueError("evaluate.backend is 'server': evaluate.server.url and evaluate.server.model must be set")
        self.tokenizer = tokens.load(folder)
        self.limit = settings.max_length
        self._concurrent = server.concurrent
        self._url = server.url.replace("{model}", folder.name)
        self._name = server.model.replace("{model}", folder.name)
        self._shows_tokens = False  # whether the server is known to write the format's tokens
        self._key = os.environ.get("OPENAI_API_KEY", "")
        self._session = requests.Session()
        if self._key:
            self._session.headers["Authorization"] = f"Bearer {self._key}"
        self._check()
        for scheme in ("http://", "https://"):  # only now: what is not there at the start need not be waited for
            self._session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=self._concurrent, max_retries=RETRY))

    def _check(self) -> None:
        """Raise ValueError unless the server lists the model, with a context that is long enough where it says so."""
        if not self._url.endswith(COMPLETIONS) or self._url.endswith(f"/chat{COMPLETIONS}"):
            raise ValueError(
                f"evaluate.server.url is {self._url}; expected the address of text completions, such as "
                "http://host:8000/v1/completions (a chat template of the server's own would ask something else)"
            )
        listed = self._call("GET", self._url.removesuffix(COMPLETIONS) + MODELS).get("data")
        models = {str(entry.get("id")): entry for entry in listed or [] if isinstance(entry, dict)}
        if self._name not in models:
            raise ValueError(
                f"evaluate.server.model: {self._url} (evaluate.server.url) serves no model {self._name!r}; "
                f"it serves {', '.join(sorted(models)) or 'none'}"
            )
        context = models[self._name].get("max_model_len")  # vLLM and SGLang say so
        if isinstance(context, int) and context < self.limit + EXTRA:
            raise ValueError(
                f"{self._url} (evaluate.server.url) serves {self._name} with a context of {context} tokens, and "
                f"evaluate.max_length is {self.limit}, which needs {self.limit + EXTRA}: start the server with a "
                f"longer one (vLLM: --max-model-len {self.limit + EXTRA}), or lower evaluate.max_length"
            )

    def score(self, asked: Sequence[prefixes.Request], what: str, unit: str) -> list[tuple[float, bool]]:
        """What `prefixes.score` gives, with progress."""

        def payload(number: int) -> dict[str, Any]:
            # Requests stay in their order: those that begin alike are neighbours.
            return {"prompt": asked[number].ids, **ECHO}

        def read(number: int, answer: dict[str, Any]) -> tuple[float, bool]:
            return self._read_score(asked[number], answer)

        return self._all(len(asked), payload, read, what, unit)

    def _read_score(self, request: prefixes.Request, answer: dict[str, Any]) -> tuple[float, bool]:
        told = self._choice(answer).get("logprobs") or {}
        found, top = told.get("token_logprobs") or [], told.get("top_logprobs") or []
        size = len(request.ids)
        scored = list(zip(found[request.first : size], top[request.first : size], strict=False))
        if (
            not size <= len(found) <= size + 1
            or len(scored) < size - request.first
            or any(logprob is None or not others for logprob, others in scored)
        ):
            raise ValueError(
                f"{self._url} (evaluate.server.url) gave log-probabilities of {len(found)} tokens for a prompt of "
                f"{size} and one more: {LIKELIHOODS}"
            )
        return sum(logprob for logprob, _ in scored), all(logprob >= max(rest.values()) for logprob, rest in scored)

    def complete(self, wanted: Sequence[Wanted]) -> list[engines.Generation]:
        def payload(number: int) -> dict[str, Any]:
            want = wanted[number]
            asked = {"prompt": want.ids, "max_tokens": want.room, "seed": want.seed, **TOKENS, **want.options}
            return asked | ({"stop": want.until} if want.until else {})

        answers = self._all(len(wanted), payload, lambda _, answer: answer, "answering", "questions")
        found = [self._read_answer(want, answer) for want, answer in zip(wanted, answers, strict=True)]
        in_format = prompt.ANSWER_END in self._special and any(prompt.ANSWER in want.context for want in wanted)
        if in_format and not self._shows_tokens:
            self._check_tokens()
        return found

    def _read_answer(self, want: Wanted, answer: dict[str, Any]) -> engines.Generation:
        choice = self._choice(answer)
        reason, text, ids = choice.get("finish_reason"), str(choice.get("text") or ""), choice.get("token_ids")
        if reason not in ("stop", "length"):
            raise OSError(f"{self._url} (evaluate.server.url) ended an answer with {reason!r}; expected stop or length")
        if isinstance(ids, list):
            self._shows_tokens = True
            said = engines.ending(self.tokenizer, ids, want.until, want.context)
            return dataclasses.replace(said, ended=said.ended or reason == "stop")
        self._shows_tokens |= any(token in text for token in prompt.TOKENS)
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        end = self.tokenizer.eos_token_id
        stopped_by = choice.get("stop_reason", choice.get("matched_stop"))  # of vLLM, of SGLang
        if reason == "stop" and not isinstance(stopped_by, str) and ids[-1:] != [end]:
            ids.append(end)
        closed = engines.is_closed(ids, self.tokenizer, engines.register_of(want.context))
        for token in self._special:
            text = text.replace(token, "")
        for stop in want.until:
            text, found, _ = text.partition(stop)
            reason = "stop" if found else reason
        count = (answer.get("usage") or {}).get("completion_tokens", len(ids))
        return engines.Generation(text, int(count), reason == "stop", closed)

    @cached_property
    def _special(self) -> list[str]:
        """The tokens that an answer's text is without."""
        return [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]

    def _check_tokens(self) -> None:
        """Raise ValueError if the server keeps the format's tokens to itself: whether answers close would not show.

        It is made to say one, by a bias, since a model that never learned to close its answers looks the same.
        """
        end = self.tokenizer.convert_tokens_to_ids(prompt.ANSWER_END)
        asked = {"prompt": [end], "max_tokens": 1, "temperature": 0.0, "logit_bias": {str(end): 100}, **TOKENS}
        if prompt.ANSWER_END not in str(self._choice(self._complete(asked)).get("text")):
            raise ValueError(
                f"{self._url} (evaluate.server.url) leaves {prompt.ANSWER_END} out of what the model says, so that "
                "nothing shows whether an answer closes: let it write special tokens (llama.cpp's server: --special)"
            )
        self._shows_tokens = True

    def _all(
        self,
        count: int,
        payload: Callable[[int], dict[str, Any]],
        read: Callable[[int, dict[str, Any]], Found],
        what: str,
        unit: str,
    ) -> list[Found]:
        """What `read` makes of the server's answer to each `payload`, so many at once; the first error ends it."""

        def ask(number: int) -> tuple[int, Found]:
            return number, read(number, self._complete(payload(number)))

        found: dict[int, Found] = {}
        progress = Progress(what, count, unit)
        with ThreadPoolExecutor(self._concurrent) as pool:
            try:
                for done in as_completed([pool.submit(ask, number) for number in range(count)]):
                    number, result = done.result()
                    found[number] = result
                    progress.add(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        progress.close()
        return [found[number] for number in range(count)]

    def _complete(self, payload: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", self._url, {"model": self._name, **payload})

    def _choice(self, answer: dict[str, Any]) -> dict[str, Any]:
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise OSError(f"{self._url} (evaluate.server.url) answered without a completion: {str(answer)[:200]}")
        return choices[0]

    def _call(self, method: str, url: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers with. Raises OSError if there is none."""
        try:
            response = self._session.request(method, url, json=payload, timeout=TIMEOUT)
        except requests.ConnectionError as error:
            reason = str(getattr(error.args[0] if error.args else None, "reason", error)).rpartition(": ")[2]
            raise OSError(
                f"{url} (evaluate.server.url): nobody answers ({reason}); start the server there, or set "
                "evaluate.backend to 'hf'"
            ) from None
        except requests.Timeout:
            raise OSError(f"{url} (evaluate.server.url) did not answer within {TIMEOUT[1]} s") from None
        except requests.RequestException as error:
            raise OSError(f"{url} (evaluate.server.url): {self._without_key(str(error))}") from None
        if not response.ok:
            said = self._said(response)
            hint = ""
            if response.status_code in (401, 403):
                hint = f"; OPENAI_API_KEY is {'not the right key' if self._key else 'not set'}"
            elif payload and payload.get("echo") and ("echo" in said or "logprobs" in said):
                hint = f"; {LIKELIHOODS}"
            raise OSError(f"{url} (evaluate.server.url) answered HTTP {response.status_code}: {said}{hint}")
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise OSError(f"{url} (evaluate.server.url) answered no JSON object: {response.text[:200]!r}")
        return found

    def _said(self, response: requests.Response) -> str:
        """What the server says went wrong, in one line and without the key."""
        try:
            found: Any = response.json()
        except ValueError:
            found = response.text
        if isinstance(found, dict):
            found = found.get("error") or found.get("detail") or found
        if isinstance(found, dict):
            found = found.get("message") or found
        return self._without_key(" ".join(str(found).split()))[:500] or str(response.reason)

    def _without_key(self, text: str) -> str:
        for key in (self._key, repr(self._key)[1:-1]):
            text = text.replace(key, "…") if key else text
        return text
