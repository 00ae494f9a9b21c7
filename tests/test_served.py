import functools
import io
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import completions
import numpy as np
import pandas as pd
import pytest
import requests
import tiny
import torch
from lm_eval.api.instance import Instance

from wronai import backends, benchmarks, engines, params, prefixes, scoring, served

LENGTH = 64


def settings(server: completions.Server, **changes: Any) -> params.Scoring:
    named = {"url": server.url, "model": "{model}", "concurrent": 4}
    told = params.Server(**{key: changes.pop(key, value) for key, value in named.items()})
    return params.Scoring(
        **{"backend": "server", "server": told, "dtype": "float32", "limit": None, "batch_size": 4}
        | {"max_length": LENGTH}
        | changes
    )


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server(base_folder: Path, merged_folder: Path) -> Iterator[completions.Server]:
    with completions.serve(**{folder.name: folder for folder in (base_folder, merged_folder)}) as found:
        yield found


@pytest.fixture(params=["base", "merged"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture
def both(server: completions.Server, folder: Path) -> tuple[Any, Any]:
    """A model in this process, and the same on the server."""
    return backends.open_model(folder, settings(server, backend="hf")), backends.open_model(folder, settings(server))


@pytest.fixture
def merged(server: completions.Server, merged_folder: Path) -> Any:
    return backends.open_model(merged_folder, settings(server))


def contexts(engine: Any, *, chat: bool) -> list[str]:
    """What comes before the first answer of some conversations."""
    return [
        engines.asked(engine.tokenizer, row["messages"][:1], row["register"], chat=chat)
        for row in tiny.CONVERSATIONS[:9]
    ]


def formats(folder: Path) -> list[bool]:
    """Plain, and in the WronAI format, which a base knows nothing of."""
    return [False] if folder.name.startswith("base") else [False, True]


def likelihoods(engine: Any, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    wanted = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return list(engine.loglikelihood(wanted, disable_tqdm=True))


def test_likelihoods_agree_with_those_of_this_process(both: tuple[Any, Any], folder: Path) -> None:
    asked = [context for chat in formats(folder) for context in contexts(both[0], chat=chat)]
    pairs = [(context, text) for context in asked for text in ("tak", " nie wiem", "😀 ąę")]
    found = [likelihoods(engine, [*pairs, ("", "Warszawa.")]) for engine in both]
    assert len(found[0]) == len(pairs) + 1
    assert [nats for nats, _ in found[1]] == pytest.approx([nats for nats, _ in found[0]], abs=1e-4)
    assert [greedy for _, greedy in found[1]] == [greedy for _, greedy in found[0]]


def test_tokens_that_are_written_alike_do_not_pass_for_each_other(both: tuple[Any, Any]) -> None:
    here, there = both
    with torch.no_grad():
        starts = torch.tensor([[1, token] for token in range(3, 600)])
        likeliest = here.model(starts).logits[:, -1].argmax(-1).tolist()
    alike: dict[str, list[int]] = {}
    for token in range(600):
        alike.setdefault(here.tokenizer.decode([token]), []).append(token)
    asked = [
        prefixes.Request((1, token, other), 2)
        for token, best in zip(range(3, 600), likeliest, strict=True)
        for other in alike[here.tokenizer.decode([best])]
        if len(alike[here.tokenizer.decode([best])]) == 2
    ][:20]
    found = [[greedy for _, greedy in engine.score(asked, "scoring", "requests")] for engine in (here, there)]
    assert found[0] == found[1] == [asked[n].ids[2] == likeliest[asked[n].ids[1] - 3] for n in range(20)]
    assert set(found[0]) == {True, False}


def test_the_nats_of_texts_in_windows_agree(both: tuple[Any, Any], folder: Path) -> None:
    documents = [tiny.document(number, text[:400]) for number, text in enumerate(tiny.texts()[:4])]
    frames = [scoring.score_documents(engine, documents, LENGTH) for engine in both]
    pd.testing.assert_frame_equal(frames[0], frames[1], rtol=0, atol=1e-4)
    for chat in formats(folder):
        frames = [scoring.score_answers(engine, tiny.CONVERSATIONS[:6], LENGTH, chat=chat) for engine in both]
        pd.testing.assert_frame_equal(frames[0], frames[1], rtol=0, atol=1e-4)


def test_texts_that_lm_eval_rolls_through_are_scored_once_a_token(merged: Any) -> None:
    text = tiny.texts()[0][:300]
    (found,) = merged.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    assert -found == pytest.approx(
        sum(scoring.nats(merged, [(merged.tokenizer(text)["input_ids"], 1)], LENGTH, "text")), rel=0.2
    )
    assert not merged.too_long


@pytest.mark.parametrize("returns_ids", [True, False])
def test_greedy_answers_agree_with_those_of_this_process(
    server: completions.Server, both: tuple[Any, Any], folder: Path, returns_ids: bool
) -> None:
    server.returns_ids = returns_ids
    questions = [context for chat in formats(folder) for context in contexts(both[0], chat=chat)[:6]]
    how = {"max_gen_toks": 12, "do_sample": False, "temperature": 0.0, "top_k": 1}
    first = both[0].generate([(questions[0], how)])[0].text.strip()
    asked = [(context, how | {"until": until}) for context in questions for until in ([], [first[1], "Pytanie:"])]
    here, there = (engine.generate(asked) for engine in both)
    assert [(said.text.strip(), said.ended, said.closed) for said in there] == [
        (said.text.strip(), said.ended, said.closed) for said in here
    ]
    assert [said.tokens for said in there[::2]] == [said.tokens for said in here[::2]], "a batch goes on past a stop"
    if returns_ids:
        assert there[::2] == here[::2]
    assert {said.ended for said in here} == {True, False}
    assert {tuple(row.get("stop", ())) for row in server.asked} == {(), (first[1], "Pytanie:")}
    assert both[1].generated == {context: said for (context, _), said in zip(asked, there, strict=True)}


def test_a_closed_answer_is_seen_with_and_without_token_ids(server: completions.Server, merged: Any) -> None:
    context = contexts(merged, chat=True)[0]
    want = served.Wanted(context, [1], 9, [], {"temperature": 0.0}, 1)
    register = engines.register_of(context)
    closing = "</answer></polish>" if register == "neutral" else f"</answer></{register}></polish>"

    def said(text: str, **changes: Any) -> engines.Generation:
        choice = {"index": 0, "text": text, "finish_reason": "stop", "stop_reason": None} | changes
        server.sends = {"choices": [choice], "usage": {"completion_tokens": 7}}
        return merged.complete([want])[0]

    ids = merged.tokenizer(f"Tak.{closing}</s>", add_special_tokens=False)["input_ids"]
    assert said("Tak.", token_ids=ids) == engines.Generation("Tak.", len(ids), True, True)
    assert said(f"Tak.{closing}") == engines.Generation("Tak.", 7, True, True)
    assert said(f"Tak.{closing}</s>").closed, "some servers write the end token too"
    assert said(f"Tak.{closing}", finish_reason="length") == engines.Generation("Tak.", 7, False, False)
    assert not said(f"Tak.{closing}", stop_reason="!").closed
    assert not said("Tak.</answer>").closed


def test_what_is_sampled_follows_from_the_seed(server: completions.Server, merged: Any) -> None:
    how = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.1}
    asked = [(contexts(merged, chat=True)[2], how)] * 4

    def texts(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return [said.text for said in merged.generate(asked)]

    first = texts(1)
    assert first == texts(1) != texts(2)
    assert len(set(first)) > 1
    assert {(row["temperature"], row["top_p"], row["repetition_penalty"]) for row in server.asked} == {(1.5, 0.9, 1.1)}
    torch.manual_seed(1)
    merged.generate([(asked[0][0], {"max_gen_toks": 4, "do_sample": True})])
    assert server.asked[-1]["temperature"] == 1.0
    assert "stop" not in server.asked[-1]


def test_a_bundle_is_scored_as_in_this_process(
    server: completions.Server, both: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    tasks = Path("benchmarks/tasks")
    benchmarks.prepare(["understanding"], tasks, tmp_path / "fetched", tmp_path)
    asked: list[scoring.Format] = ["wronai" if chat else "plain" for chat in formats(folder)]
    few = params.Scoring(**{**dict(settings(server)), "limit": 2, "max_length": 200})
    for engine in both:
        engine._max_length = engine.limit = 200  # of both kinds
    here, there = (scoring.score_bundle(engine, tmp_path / "understanding", few, 0, 1, asked) for engine in both)
    assert len(here.items) == len(there.items) > 0
    assert np.concatenate(list(there.items["loglikelihoods"])) == pytest.approx(
        np.concatenate(list(here.items["loglikelihoods"])), abs=1e-3
    )
    others = [column for column in here.items.columns if column != "loglikelihoods"]
    pd.testing.assert_frame_equal(here.items[others], there.items[others])
    pd.testing.assert_frame_equal(here.scores, there.scores, rtol=0, atol=1e-4)
    assert here.summary == there.summary


def test_requests_that_are_too_long_are_cut_from_the_left_and_noted(both: tuple[Any, Any]) -> None:
    long, short = " ".join(tiny.texts()[0].split()[:200]), "Krótko."
    here, there = both
    pairs = [(long, " tak"), (short, " tak"), (short, long)]
    found = [[nats for nats, _ in likelihoods(engine, pairs)] for engine in both]
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert here.too_long == there.too_long == {long, short}
    for engine in both:
        engine.too_long = set()
        engine.generate([(long, {"max_gen_toks": 8}), (short, {"max_gen_toks": 8})])
    assert here.too_long == there.too_long == {long}


def test_as_many_requests_as_allowed_are_under_way_at_once(
    server: completions.Server, merged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(served, "Progress", functools.partial(served.Progress, stream=said))
    server.meet = 4
    found = merged.score([prefixes.Request((1, 5 + number, 6), 1) for number in range(12)], "scoring", "requests")
    assert len(found) == len(set(found)) == 12
    assert "scoring | 12 of 12 requests" in said.getvalue()
    server.meet = 1
    alone = [merged.score([prefixes.Request((1, 5 + number, 6), 1)], "scoring", "requests")[0] for number in range(12)]
    assert found == alone


def test_prompts_go_out_as_token_ids_under_the_name_of_the_folder(server: completions.Server, folder: Path) -> None:
    engine = backends.open_model(folder, settings(server))
    engine.generate([("Tak", {"max_gen_toks": 2})])
    asked = server.asked[-1]
    assert asked["model"] == folder.name
    assert asked["prompt"] == engine.tok_encode("Tak")
    assert asked["skip_special_tokens"] is False


def test_the_model_may_be_a_part_of_the_address(folder: Path) -> None:
    with completions.serve(only=folder) as server:
        server.root = f"/{folder.name}/v1"
        url = f"{server.address}/{{model}}/v1/completions"
        engine = backends.open_model(folder, settings(server, url=url, model="only"))
        assert len(engine.generate([("Tak", {"max_gen_toks": 2})])) == 1


def test_an_answer_that_leaves_no_room_for_its_question_says_so(merged: Any) -> None:
    with pytest.raises(ValueError, match=r"answers of 64 tokens .*evaluate\.max_length is 64"):
        merged.generate([("Tak", {"max_gen_toks": 64})])


def test_the_key_is_sent_and_never_shown(
    server: completions.Server, merged_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "tajny-klucz"
    with pytest.raises(OSError, match=r"HTTP 401: .*OPENAI_API_KEY is not set"):
        backends.open_model(merged_folder, settings(server))
    monkeypatch.setenv("OPENAI_API_KEY", "inny-klucz")
    with pytest.raises(OSError, match=r"evaluate\.server\.url.*HTTP 401.*not the right key") as wrong:
        backends.open_model(merged_folder, settings(server))
    assert "klucz" not in str(wrong.value)
    monkeypatch.setenv("OPENAI_API_KEY", "tajny-klucz")
    backends.open_model(merged_folder, settings(server)).generate([("Tak", {"max_gen_toks": 2})])
    assert server.keys[-1] == "Bearer tajny-klucz"
    monkeypatch.setenv("OPENAI_API_KEY", "tajny\nklucz")
    with pytest.raises(OSError, match=r"evaluate\.server\.url") as wrong:
        backends.open_model(merged_folder, settings(server))
    assert "klucz" not in str(wrong.value)


def test_nobody_listening_says_so(server: completions.Server, merged_folder: Path) -> None:
    with socket.socket() as taken:  # by nobody who listens, and by no other test
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1/completions"
        with pytest.raises(OSError, match=r"evaluate\.server\.url\): nobody answers \(.*refused\); start the server"):
            backends.open_model(merged_folder, settings(server, url=url))


def test_a_server_that_says_nothing_is_not_waited_for(
    server: completions.Server, merged_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "TIMEOUT", (1, 0.2))
    monkeypatch.setattr(served, "RETRY", 0)
    server.meet = 2
    engine = backends.open_model(merged_folder, settings(server))
    with pytest.raises(OSError, match=r"evaluate\.server\.url\) did not answer within 0\.2 s"):
        engine.generate([("Tak", {"max_gen_toks": 2})])
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1/completions"
        with pytest.raises(OSError, match=r"evaluate\.server\.url\) did not answer within 0\.2 s"):
            backends.open_model(merged_folder, settings(server, url=url))


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://localhost:1/v1/chat/completions"])
def test_an_address_of_something_else_says_what_is_expected(
    server: completions.Server, merged_folder: Path, url: str
) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.server\.url is .*; expected the address of text completions"):
        backends.open_model(merged_folder, settings(server, url=url))


@pytest.mark.parametrize("missing", ["url", "model"])
def test_a_server_without_address_or_name_says_so(
    server: completions.Server, merged_folder: Path, missing: str
) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.server\.url and evaluate\.server\.model must be set"):
        backends.open_model(merged_folder, settings(server, **{missing: None}))


def test_an_address_that_no_url_can_be_says_so(server: completions.Server, merged_folder: Path) -> None:
    with pytest.raises(OSError, match=r"evaluate\.server\.url"):
        backends.open_model(merged_folder, settings(server, url="http://:x/v1/completions"))


def test_another_model_than_the_served_ones_names_them(
    server: completions.Server, base_folder: Path, merged_folder: Path
) -> None:
    there = ", ".join(sorted([base_folder.name, merged_folder.name]))
    with pytest.raises(ValueError, match=rf"evaluate\.server\.model: .* no model 'bielik'; it serves {there}"):
        backends.open_model(merged_folder, settings(server, model="bielik"))
    server.models.clear()
    with pytest.raises(ValueError, match=r"it serves none"):
        backends.open_model(merged_folder, settings(server))


@pytest.mark.parametrize("context", [63, LENGTH + 1])
def test_a_shorter_context_than_is_needed_says_how_long_it_must_be(
    server: completions.Server, merged_folder: Path, context: int
) -> None:
    server.context = context
    with pytest.raises(ValueError, match=rf"evaluate\.server\.url.* {context} tokens.*--max-model-len 66"):
        backends.open_model(merged_folder, settings(server))
    server.hides_context = True
    engine = backends.open_model(merged_folder, settings(server))
    with pytest.raises(OSError, match=rf"HTTP 400: .*maximum context length is {context} tokens"):
        engine.score([prefixes.Request(tuple([1] * 65), 1)], "scoring", "requests")


def test_a_context_with_just_the_room_serves_the_longest_request(
    server: completions.Server, merged_folder: Path
) -> None:
    server.context = LENGTH + served.EXTRA
    engine = backends.open_model(merged_folder, settings(server))
    long = tiny.texts()[0]
    likelihoods(engine, [(long, " tak")])
    assert len(server.asked[-1]["prompt"]) == LENGTH + 1
    engine.generate([(long, {"max_gen_toks": 8})])
    assert server.asked[-1]["prompt"] == engine.tok_encode(long)[-(LENGTH - 8) :]


def test_a_server_that_gives_no_likelihoods_of_what_is_asked_says_what_needs_them(
    server: completions.Server, merged: Any
) -> None:
    request = [prefixes.Request((1, 5, 6, 7), 1)]
    server.echoes_logprobs = False
    with pytest.raises(ValueError, match=r"evaluate\.server\.url.* 1 tokens for a prompt of 4 .*benchmarks by likelih"):
        merged.score(request, "scoring", "requests")
    for told in (None, {"content": []}, {"token_logprobs": [None] * 5, "top_logprobs": [None] * 5}):
        server.sends = {"choices": [{"index": 0, "text": "", "logprobs": told, "finish_reason": "length"}]}
        with pytest.raises(ValueError, match="benchmarks by likelihood"):
            merged.score(request, "scoring", "requests")
    server.refusals = [(400, {"error": {"message": "Only no echo is supported"}})]
    with pytest.raises(OSError, match=r"HTTP 400: Only no echo is supported; benchmarks by likelihood"):
        merged.score(request, "scoring", "requests")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"error": {"message": "engine\n is dead"}}, "engine is dead"),
        ({"message": "engine is dead"}, "engine is dead"),
        ({"error": "engine is dead"}, "engine is dead"),
        ({"detail": [{"msg": "Field required"}]}, "Field required"),
        ("<html>engine is dead</html>", "<html>engine is dead</html>"),
        ("", "Internal Server Error"),
    ],
)
def test_an_error_of_the_server_is_shown_as_it_says_it(
    server: completions.Server, merged: Any, said: Any, shown: str
) -> None:
    server.refusals = [(500, said)]
    with pytest.raises(OSError, match=rf"evaluate\.server\.url\) answered HTTP 500: .*{shown}"):
        merged.generate([("Tak", {"max_gen_toks": 2})])


def test_a_server_that_is_too_busy_is_asked_again(server: completions.Server, merged: Any) -> None:
    server.refusals = [(503, "starting")]
    assert len(merged.generate([("Tak", {"max_gen_toks": 2})])) == 1
    assert len(server.asked) == 2


def test_one_error_ends_the_rest(server: completions.Server, merged: Any) -> None:
    server.refusals = [(500, "dead")]
    with pytest.raises(OSError, match="HTTP 500: dead"):
        merged.score([prefixes.Request((1, 5, 6), 1)] * 400, "scoring", "requests")
    assert len(server.asked) < 200


@pytest.mark.parametrize(
    ("sends", "shown"),
    [
        ("no json", "answered no JSON object: 'no json'"),
        ([1], "answered no JSON object"),
        ({"object": "list"}, "answered without a completion"),
        ({"choices": [{"text": "Tak", "finish_reason": "abort"}]}, "ended an answer with 'abort'"),
    ],
)
def test_an_answer_that_is_no_completion_says_so(
    server: completions.Server, merged: Any, sends: Any, shown: str
) -> None:
    server.sends = sends
    with pytest.raises(OSError, match=rf"evaluate\.server\.url\) {shown}"):
        merged.generate([("Tak", {"max_gen_toks": 2})])


def test_a_server_that_keeps_the_formats_tokens_to_itself_says_so(server: completions.Server, merged: Any) -> None:
    server.returns_ids = False
    server.hides_special = True
    asked = [(context, {"max_gen_toks": 4}) for context in contexts(merged, chat=True)[:2]]
    with pytest.raises(ValueError, match=r"evaluate\.server\.url\) leaves </answer> out .*--special"):
        merged.generate(asked)
    assert len(merged.generate([("Tak", {"max_gen_toks": 4})])) == 1, "plain text needs none of them"
    server.hides_special = False
    assert len(merged.generate([(context, {"max_gen_toks": 1}) for context, _ in asked])) == 2


def test_vllm_that_is_not_installed_says_how_to_install_it(
    server: completions.Server, merged_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    with pytest.raises(ValueError, match=r"evaluate\.backend is 'vllm'.*pip install vllm on a machine with a GPU"):
        backends.open_model(merged_folder, settings(server, backend="vllm"))


def test_vllm_without_a_gpu_and_one_that_cannot_be_loaded_say_so(
    server: completions.Server,
    merged_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    request.addfinalizer(lambda: sys.modules.pop("vllm", None))
    (tmp_path / "vllm.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"evaluate\.backend is 'vllm', which needs a GPU, and torch sees none"):
        backends.open_model(merged_folder, settings(server, backend="vllm"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"evaluate\.backend is 'vllm', which cannot be loaded here \(.*vllm"):
        backends.open_model(merged_folder, settings(server, backend="vllm"))


def test_the_server_of_the_tests_speaks_the_protocol(server: completions.Server, merged_folder: Path) -> None:
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    asked = {"model": merged_folder.name, "prompt": ["Dzień", [1, 5, 6]], "max_tokens": 3, "echo": True, "logprobs": 2}
    found = requests.post(server.url, json={**asked, "temperature": 0}, timeout=10).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + found["usage"]["completion_tokens"]
    for choice in found["choices"]:
        told = choice["logprobs"]
        sizes = {len(told[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
        assert len(sizes) == 1
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
        assert all(len(top) in (2, 3) for top in told["top_logprobs"][1:])
    assert found["choices"][0]["text"].startswith("<s> Dzień") or "Dzień" in found["choices"][0]["text"]
