"""A server of the OpenAI completions protocol on a free port of this machine, over a model of the tests."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from wronai import base, tokens


@dataclass
class Server:
    """How the server differs from vLLM's or fails, and what it was asked.

    `refusals` (status, JSON object or text) are used up one a completion. `meet` completions answer when all of them
    are under way, and fail after a few seconds if they are not.
    """

    models: dict[str, Path]
    key: str | None = None
    context: int | None = 256  # which it lists too, unless it `hides_context`
    hides_context: bool = False
    echoes_logprobs: bool = True
    returns_ids: bool = True
    hides_special: bool = False  # whatever skip_special_tokens says
    says_what_stopped: bool = True
    refusals: list[tuple[int, Any]] = field(default_factory=list)
    sends: Any = None  # instead of each completion
    meet: int = 1
    root: str = "/v1"
    address: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.address}{self.root}/completions"


class Refused(Exception):
    """An error of HTTP: its status, and what is said."""


@contextmanager
def serve(**models: Path) -> Iterator[Server]:
    """Serve the models in folders under their names."""
    state = Server(models)
    loaded: dict[str, Any] = {}
    lock = threading.Lock()
    barriers: dict[int, threading.Barrier] = {}

    def model(name: str) -> Any:
        if name not in loaded:
            loaded[name] = base.load(state.models[name], torch.float32).eval(), tokens.load(state.models[name])
        return loaded[name]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(self._models)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(lambda: self._completions(json.loads(body)))

        def _answer(self, what: Any) -> None:
            said = self.headers.get("Authorization")
            state.keys.append(said)
            try:
                if state.key is not None and said != f"Bearer {state.key}":
                    raise Refused(401, {"error": {"message": f"invalid key: {said}"}})
                status, found = 200, what()
            except Refused as error:
                status, found = error.args
            text = found if isinstance(found, str) else json.dumps(found)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            with suppress(OSError):  # who asked has gone
                self.wfile.write(text.encode())

        def _models(self) -> Any:
            if self.path != f"{state.root}/models":
                raise Refused(404, {"detail": "Not Found"})
            length = {} if state.hides_context else {"max_model_len": state.context}
            return {"object": "list", "data": [{"id": name, "object": "model", **length} for name in state.models]}

        def _completions(self, asked: dict[str, Any]) -> Any:
            if self.path != f"{state.root}/completions":
                raise Refused(404, {"detail": "Not Found"})
            with lock:
                state.asked.append(asked)
                refusal = state.refusals.pop(0) if state.refusals else None
                barrier = barriers.setdefault(state.meet, threading.Barrier(state.meet))
            if refusal:
                raise Refused(*refusal)
            try:
                barrier.wait(10)
            except threading.BrokenBarrierError:
                raise Refused(500, f"there were never {state.meet} requests at once") from None
            if state.sends is not None:
                return state.sends
            if asked["model"] not in state.models:
                raise Refused(404, {"error": {"message": f"The model `{asked['model']}` does not exist."}})
            with lock, torch.no_grad():
                return completions(*model(asked["model"]), asked, state)

        def log_message(self, *_: Any) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

    listener = Listener(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state
    finally:
        for barrier in barriers.values():
            barrier.abort()
        listener.shutdown()
        listener.server_close()


def completions(model: Any, tokenizer: Any, asked: dict[str, Any], state: Server) -> dict[str, Any]:
    """The answer to the request `asked`."""
    prompts = asked["prompt"]
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]
    rows = [tokenizer(row)["input_ids"] if isinstance(row, str) else row for row in prompts]
    room = asked.get("max_tokens", 16)
    for row in rows:
        if state.context is not None and len(row) + room > state.context:
            raise Refused(
                400,
                {
                    "object": "error",
                    "message": f"This model's maximum context length is {state.context} tokens. However, you requested "
                    f"{len(row) + room} tokens.",
                },
            )
        if max(row) >= model.config.vocab_size:
            raise Refused(400, {"error": {"message": f"Token id {max(row)} is out of vocabulary"}})
    chance = torch.Generator().manual_seed(asked.get("seed") or 0)
    choices = [_choice(model, tokenizer, row, index, asked, state, chance) for index, row in enumerate(rows)]
    generated = sum(choice.pop("generated") for choice in choices)
    read = sum(map(len, rows))
    usage = {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}
    return {"id": "cmpl-1", "object": "text_completion", "model": asked["model"], "choices": choices, "usage": usage}


def _choice(
    model: Any, tokenizer: Any, row: list[int], index: int, asked: dict[str, Any], state: Server, chance: Any
) -> dict[str, Any]:
    hidden = state.hides_special or asked.get("skip_special_tokens", True)
    stops = [asked["stop"]] if isinstance(asked.get("stop"), str) else asked.get("stop") or []
    end = tokenizer.eos_token_id
    ids, text, reason, matched = list(row), "", "length", None
    for _ in range(asked.get("max_tokens", 16)):
        ids.append(_next(model(torch.tensor([ids])).logits[0, -1], ids, asked, chance))
        said = ids[len(row) :]
        if ids[-1] == end:
            said, reason = said[:-1], "stop"
        text = tokenizer.decode(said, skip_special_tokens=hidden)
        if found := [stop for stop in stops if stop in text]:
            matched, reason = found[0], "stop"
            text = text.split(matched)[0]
        if reason == "stop":
            break
    echo = asked.get("echo", False)
    choice = {
        "index": index,
        "text": tokenizer.decode(row) + text if echo else text,
        "finish_reason": reason,
        "logprobs": None,
        "generated": len(ids) - len(row),
    }
    if state.says_what_stopped:
        choice["stop_reason"] = matched
    if state.returns_ids and asked.get("return_token_ids"):
        choice["token_ids"] = ids[len(row) :]
    if asked.get("logprobs") is not None:
        start = 0 if echo and state.echoes_logprobs else len(row)
        by_id = asked.get("return_tokens_as_token_ids", False)
        names = [f"token_id:{token}" if by_id else tokenizer.decode([token]) for token in range(len(tokenizer))]
        choice["logprobs"] = _logprobs(model, names, ids, start, asked["logprobs"])
    return choice


def _next(logits: torch.Tensor, before: Sequence[int], asked: dict[str, Any], chance: Any) -> int:
    """The next token, chosen from `logits` as the request says."""
    logits = logits.clone()
    penalty = asked.get("repetition_penalty", 1.0)
    for token in set(before):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    for token, bias in (asked.get("logit_bias") or {}).items():
        logits[int(token)] += bias
    if not asked.get("temperature", 1.0):
        return int(logits.argmax())
    probabilities, order = (logits / asked.get("temperature", 1.0)).softmax(-1).sort(descending=True)
    kept = probabilities.cumsum(-1) - probabilities < asked.get("top_p", 1.0)
    return int(order[torch.multinomial(probabilities * kept, 1, generator=chance)])


def _logprobs(model: Any, vocabulary: list[str], ids: list[int], start: int, top: int) -> dict[str, Any]:
    """Log-probabilities of `ids` from `start` on, each with the `top` likeliest and itself; the first id has none."""
    found = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    logprobs, likeliest = found.tolist(), found.topk(top).indices.tolist()
    names = [vocabulary[token] for token in ids]
    own: list[float | None] = []
    others: list[dict[str, float] | None] = []
    for place in range(start, len(ids)):
        if place == 0:
            own.append(None)
            others.append(None)
            continue
        row = logprobs[place - 1]
        own.append(row[ids[place]])
        others.append({vocabulary[token]: row[token] for token in [*likeliest[place - 1], ids[place]]})
    offsets = [sum(map(len, names[start:place])) for place in range(start, len(ids))]
    return {"tokens": names[start:], "token_logprobs": own, "top_logprobs": others, "text_offset": offsets}
