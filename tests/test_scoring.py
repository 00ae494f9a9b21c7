import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from small_tasks import GENERATED, RAW, TURNS, YAML, bundle_of

from wronai import base, benchmarks, engines, params, prefixes, prompt, scoring, tokens
from wronai.comparison import bits_per_byte

SETTINGS = tiny.EVALUATE.scoring


def engine_of(folder: Path, **changes: Any) -> engines.InProcess:
    settings = SETTINGS.model_copy(update={"max_length": 256, **changes})
    return engines.InProcess(base.load(folder, torch.float32).eval(), tokens.load(folder), settings)


@pytest.fixture(scope="module")
def untuned(base_folder: Path) -> engines.InProcess:
    return engine_of(base_folder)


@pytest.fixture(scope="module")
def merged(merged_folder: Path) -> engines.InProcess:
    return engine_of(merged_folder)


@pytest.fixture
def uniform(base_folder: Path) -> engines.InProcess:
    """A model to which every one of its 600 tokens is as likely, always."""
    engine = engine_of(base_folder)
    engine.model.lm_head.weight.data.zero_()
    return engine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmarks")
    return bundle_of(root, colours=YAML, animals=YAML, talk=GENERATED, turns=TURNS, raw=RAW)


@pytest.fixture(scope="module")
def scored(merged: engines.InProcess, bundle: Path) -> scoring.Scored:
    return scoring.score_bundle(merged, bundle, SETTINGS, 0, tiny.SEED, ["plain", "wronai"])


def nats_after(model: Any, tokenizer: Any, context: str, said: str) -> float:
    """Negative log-likelihood of `said` after `context`, by one forward pass."""
    before, whole = (tokenizer.encode(text, add_special_tokens=False) for text in (context, context + said))
    with torch.no_grad():
        logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return -sum(float(logprobs[place - 1, whole[place]]) for place in range(len(before), len(whole)))


def test_every_item_of_every_task_is_scored_by_each_metric_in_each_format(scored: scoring.Scored) -> None:
    metrics = {"colours": ["acc", "acc_norm"], "animals": ["acc", "acc_norm"], "talk": ["exact_match"]}
    expected = {
        (task, format_, metric, f"{task}-{number}")
        for task, names in metrics.items()
        for format_ in ("plain", "wronai")
        for metric in names
        for number in range(4)
    }
    rows = scored.scores[scored.scores["task"].isin(metrics)]
    assert set(rows[["task", "format", "metric", "item"]].itertuples(index=False, name=None)) == expected
    assert len(rows) == len(expected)
    assert set(rows["value"]) <= {0.0, 1.0}


@pytest.mark.parametrize("format_", ["plain", "wronai"])
def test_the_tuned_model_is_asked_in_the_format_and_in_plain_text(
    scored: scoring.Scored, merged: engines.InProcess, format_: str
) -> None:
    items = scored.items[(scored.items["task"] == "animals") & (scored.items["format"] == format_)]
    for number, row in enumerate(items.sort_values("item").to_dict("records")):
        context = {
            "plain": f"Pytanie {number}?",
            "wronai": f"<s><polish><question>Pytanie {number}?</question><answer>",
        }
        assert row["prompt"] == context[format_]
        begun = context[format_] if format_ == "wronai" else "<s>" + context[format_]
        space = "" if format_ == "wronai" else " "
        nats = [nats_after(merged.model, merged.tokenizer, begun, space + choice) for choice in ("tak", "nie wiem")]
        assert [-likelihood for likelihood in row["loglikelihoods"]] == pytest.approx(nats, rel=1e-4)
        assert row["prediction"] == nats.index(min(nats))


def test_a_task_is_asked_in_the_register_of_its_metadata(scored: scoring.Scored) -> None:
    prompts = scored.items[scored.items["task"] == "talk"].groupby("format")["prompt"].first()
    assert prompts["wronai"].startswith("<s><polish><formal><question>Pytanie 0?")
    assert prompts["plain"] == "Pytanie 0?"


def test_a_conversation_is_asked_as_its_turns(scored: scoring.Scored) -> None:
    prompts = scored.items[scored.items["task"] == "turns"].groupby("format")["prompt"].first()
    assert prompts["plain"] == "Mam na imię Ala, a to jest 0. / Jak mam na imię?"
    assert prompts["wronai"] == (
        "<s><polish><question>Mam na imię Ala, a to jest 0.</question><answer>Dzień dobry.</answer>"
        "<question>Jak mam na imię?</question><answer>"
    )


def test_a_task_that_writes_the_format_itself_is_asked_once_and_as_it_stands(
    scored: scoring.Scored, untuned: engines.InProcess, bundle: Path
) -> None:
    rows = scored.items[scored.items["task"] == "raw"]
    assert list(rows["format"]) == ["wronai"] * 4
    assert rows["prompt"].iloc[0] == "<polish><formal><question>Pytanie 0?</question><answer>"
    of_base = scoring.score_bundle(untuned, bundle, SETTINGS, 0, tiny.SEED, ["plain"]).items
    assert list(of_base[of_base["task"] == "raw"]["prompt"]) == list(rows["prompt"])


def test_the_numbers_are_those_of_lm_eval_itself(merged_folder: Path, bundle: Path, scored: scoring.Scored) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for format_ in ("plain", "wronai"):
        model = HFLM(pretrained=str(merged_folder), dtype="float32", device="cpu", batch_size=3, max_length=256)
        with benchmarks.fresh_cache():
            tasks = benchmarks.load(bundle)
            found = simple_evaluate(
                model=model,
                tasks=[tasks["colours"], tasks["animals"]],
                num_fewshot=0,
                apply_chat_template=format_ == "wronai",
                task_manager=TaskManager(include_defaults=False),
                bootstrap_iters=0,
            )
        for task in ("colours", "animals"):
            ours = scored.items[(scored.items["task"] == task) & (scored.items["format"] == format_)]
            for sample, likelihoods in zip(found["samples"][task], ours["loglikelihoods"], strict=True):
                theirs = [answer[0] for answer in sample["filtered_resps"]]
                assert list(likelihoods) == pytest.approx(theirs, abs=1e-4)
            rows = scored.scores[(scored.scores["task"] == task) & (scored.scores["format"] == format_)]
            for metric, values in rows.groupby("metric")["value"]:
                assert values.mean() == found["results"][task][f"{metric},none"]


def test_what_was_scored_is_in_the_record(scored: scoring.Scored) -> None:
    told = scored.summary["colours"]
    assert (told["items"], told["items_of_task"], told["num_fewshot"], told["seed"]) == (4, 4, 0, tiny.SEED)
    assert (told["version"], told["leading"]) == ("1.0", "acc")
    assert told["higher_is_better"] == {"acc": True, "acc_norm": True}
    assert told["floors"] == {"chance": 0.5, "majority": 0.5}
    assert scored.summary["talk"]["version"] == "2.0"
    assert scored.summary["talk"]["floors"] == {}


def test_a_run_repeats_to_the_byte(
    merged: engines.InProcess, bundle: Path, scored: scoring.Scored, tmp_path: Path
) -> None:
    scored.write(tmp_path / "first")
    scoring.score_bundle(merged, bundle, SETTINGS, 0, tiny.SEED, ["plain", "wronai"]).write(tmp_path / "second")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["items.parquet", "scores.parquet", "summary.json"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_limit_scores_the_first_items_and_says_of_how_many(merged: engines.InProcess, bundle: Path) -> None:
    found = scoring.score_bundle(
        merged, bundle, SETTINGS.model_copy(update={"limit": 2}), 0, tiny.SEED, ["plain", "wronai"]
    )
    assert set(found.scores["item"]) == {
        f"{task}-{n}" for task in ("colours", "animals", "talk", "turns", "raw") for n in (0, 1)
    }
    assert (found.summary["colours"]["items"], found.summary["colours"]["items_of_task"]) == (2, 4)


def test_examples_stand_before_an_item_and_as_turns_in_the_format(merged: engines.InProcess, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, colours=YAML)
    found = scoring.score_bundle(merged, bundle, SETTINGS, 2, tiny.SEED, ["plain", "wronai"])
    assert found.summary["colours"]["num_fewshot"] == 2
    for row in found.items.to_dict("records"):
        own = int(row["item"][-1])
        others = [n for n in range(4) if f"Pytanie {n}?" in row["prompt"] and n != own]
        assert len(others) == 2 and row["prompt"].count("Pytanie") == 3
        assert row["prompt"].endswith(
            f"Pytanie {own}?" if row["format"] == "plain" else f"<question>Pytanie {own}?</question><answer>"
        )
        assert (row["prompt"].count("<answer>") == 3) == (row["format"] == "wronai")


def test_more_examples_than_there_are_name_the_key(merged: engines.InProcess, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, colours=YAML)
    with pytest.raises(ValueError, match="num_fewshot asks for 4 examples before each item of colours, which has 3"):
        scoring.score_bundle(merged, bundle, SETTINGS, 4, tiny.SEED, ["plain"])
    assert (
        scoring.score_bundle(merged, bundle, SETTINGS, 3, tiny.SEED, ["plain"]).summary["colours"]["num_fewshot"] == 3
    )


def test_an_item_that_was_cut_is_counted(merged_folder: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, colours=YAML)
    whole = scoring.score_bundle(engine_of(merged_folder), bundle, SETTINGS, 0, tiny.SEED, ["plain"])
    assert whole.summary["colours"]["formats"] == {"plain": {"cut": 0}}
    short = scoring.score_bundle(engine_of(merged_folder, max_length=8), bundle, SETTINGS, 0, tiny.SEED, ["plain"])
    assert short.summary["colours"]["formats"] == {"plain": {"cut": 4}}
    assert short.items["cut"].all() and not whole.items["cut"].any()


def test_answers_that_never_end_are_counted(merged_folder: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, talk=GENERATED)
    endless = engine_of(merged_folder)
    endless.model.lm_head.weight.data[endless.tokenizer.eos_token_id] = 0.0
    endless.model.lm_head.weight.data[5] = 0.0
    endless.model.model.norm.weight.data.zero_()  # every token as likely: the first of all is said, which ends nothing
    found = scoring.score_bundle(endless, bundle, SETTINGS, 0, tiny.SEED, ["plain", "wronai"])
    assert found.summary["talk"]["formats"] == {
        "plain": {"cut": 0, "not_ended": 4},
        "wronai": {"cut": 0, "not_ended": 4, "not_closed": 4},
    }
    assert set(found.items["tokens"]) == {6}


@pytest.mark.parametrize("context", [1, 5, 40])
def test_the_nats_of_a_text_that_fits_are_those_of_one_pass(untuned: engines.InProcess, context: int) -> None:
    chance = random.Random(context)
    ids = [1, *(chance.randrange(3, 600) for _ in range(59))]
    with torch.no_grad():
        logprobs = untuned.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -sum(float(logprobs[place - 1, ids[place]]) for place in range(context, 60))
    for room in (60, 61, 200):
        assert scoring.nats(untuned, [(ids, context)], room, "texts")[0] == pytest.approx(expected, rel=1e-5)


def test_the_nats_of_a_text_in_windows_are_near_those_of_one_pass(untuned: engines.InProcess) -> None:
    ids = untuned.tokenizer.encode(tiny.texts()[0])[:250]
    whole, half, short = (scoring.nats(untuned, [(ids, 1)], room, "texts")[0] for room in (250, 128, 16))
    assert half == pytest.approx(whole, rel=1e-5), "attention reaches 2 x 24 tokens"
    assert short == pytest.approx(whole, rel=0.05)
    assert short != pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("room", [2, 3, 7, 16, 64])
def test_each_token_is_counted_once_whatever_the_window(uniform: engines.InProcess, room: int) -> None:
    texts = [
        ([1] * context + [5] * target, context)
        for context, target in ((1, 1), (1, 15), (1, 50), (5, 16), (30, 1), (30, 33))
    ]
    found = scoring.nats(uniform, [*texts, ([1], 1)], room, "texts")
    assert found == pytest.approx([(len(ids) - context) * math.log(600) for ids, context in texts] + [0.0], rel=1e-5)


@pytest.mark.parametrize("room", [4, 7, 64])
def test_windows_overlap_by_half(room: int) -> None:
    windows = scoring.windows(list(range(50)), 1, room)
    assert [one for window in windows for one in window.ids[window.first :]] == list(range(1, 50))
    assert all(len(window.ids) <= room for window in windows)
    assert all(window.first >= min(room // 2, window.ids[window.first]) for window in windows)
    assert scoring.windows([1, 2], 2, room) == []
    assert scoring.windows([1, 2], 1, room) == [prefixes.Request((1, 2), 1)]


def test_bits_per_byte_of_a_known_distribution(uniform: engines.InProcess) -> None:
    documents = [tiny.document(number, text) for number, text in enumerate(tiny.texts()[:3])]
    scores = scoring.score_documents(uniform, documents, 64)
    count = sum(len(uniform.tokenizer.encode(row["text"], add_special_tokens=False)) for row in documents)
    size = sum(len(row["text"].encode()) for row in documents)
    assert scores["bytes"].sum() == size
    assert bits_per_byte(scores["nats"], scores["bytes"]) == pytest.approx(count * math.log2(600) / size, rel=1e-6)
    assert list(scores.columns) == ["source", "id", "nats", "bytes"]


@pytest.mark.parametrize("chat", [True, False])
def test_answers_are_scored_in_every_turn_and_without_what_closes_them(merged: engines.InProcess, chat: bool) -> None:
    (example,) = (row for row in tiny.CONVERSATIONS[:9] if len(row["messages"]) == 6)
    (found,) = scoring.score_answers(merged, [example], 256, chat=chat).to_dict("records")
    texts = [message["content"] for message in example["messages"]]
    if chat:
        contexts = [
            "<s><polish><informal>"
            + "".join(
                f"<question>{texts[before]}</question><answer>{texts[before + 1]}</answer>"
                for before in range(0, turn, 2)
            )
            + f"<question>{texts[turn]}</question><answer>"
            for turn in (0, 2, 4)
        ]
    else:
        contexts = [
            "<s>"
            + "".join(f"Pytanie: {texts[before]}\nOdpowiedź: {texts[before + 1]}\n" for before in range(0, turn, 2))
            + f"Pytanie: {texts[turn]}\nOdpowiedź:"
            for turn in (0, 2, 4)
        ]
    expected = sum(
        nats_after(merged.model, merged.tokenizer, context, answer if chat else f" {answer}")
        for context, answer in zip(contexts, texts[1::2], strict=True)
    )
    assert found["nats"] == pytest.approx(expected, rel=1e-5)
    assert found["bytes"] == sum(len(text.encode()) for text in texts[1::2])


def test_an_answer_is_scored_with_the_ids_that_the_whole_text_has(base_copy: Path) -> None:
    """A tokenizer that puts "▁" before each text would otherwise charge the base's answers for a second space."""
    tiny.prefix_words_as_mistral_does(base_copy)
    engine = engine_of(base_copy)
    engine.model.lm_head.weight.data.zero_()
    example = tiny.CONVERSATIONS[2]
    asked = "<s>" + prompt.plain(example["messages"][:1])
    encode = engine.tokenizer.encode
    count = len(encode(f"{asked} Warszawa.", add_special_tokens=False)) - len(encode(asked, add_special_tokens=False))
    assert count < len(encode(" Warszawa.", add_special_tokens=False))
    scores = scoring.score_answers(engine, [example], 256, chat=False)
    assert scores["nats"].item() == pytest.approx(count * math.log(600), rel=1e-5)


def test_a_context_that_is_too_long_leaves_the_whole_answer(merged: engines.InProcess) -> None:
    example = tiny.conversation(1, "neutral", [("Opowiedz mi o tym dokładnie. " * 20, "To jest odpowiedź.")])
    long, short = (scoring.score_answers(merged, [example], room, chat=True) for room in (256, 24))
    assert long["bytes"].item() == short["bytes"].item()
    assert short["nats"].item() == pytest.approx(long["nats"].item(), rel=0.5)


def test_a_sample_is_drawn_from_all_rows_by_its_seed() -> None:
    rows = [{"id": number} for number in range(200)]
    drawn = [scoring.sample(rows, 60, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({row["id"] for row in drawn[0]}) == 60
    assert max(row["id"] for row in drawn[0]) > 150 > 50 > min(row["id"] for row in drawn[0])
    assert len(scoring.sample(rows[:3], 60, 1)) == 3


def test_documents_are_taken_by_source_up_to_a_size() -> None:
    rows = [
        {"source": source, "id": f"{source}{n}", "text": f"{source} {n} " + "a" * 96}
        for source in "ab"
        for n in range(9)
    ]
    assert sorted(scoring.some(rows, None, None), key=str) == sorted(rows, key=str)
    few = scoring.some(rows, 350, None)
    assert [row["source"] for row in few] == ["a"] * 3 + ["b"] * 3
    assert few == scoring.some(rows[::-1], 350, None), "by a hash, whatever the order"
    assert scoring.some([*rows, {"source": "c", "id": "c", "text": "c" * 999}], 350, None)[-1]["id"] == "c"
    assert [row["id"] for row in scoring.some(rows, None, 1)] == [few[0]["id"], few[3]["id"]]


def test_xz_is_given_the_same_bytes() -> None:
    assert scoring.xz_bits_per_byte(["ab" * 5000]) < 0.2
    noise = random.Random(1).randbytes(4000).hex()
    assert scoring.xz_bits_per_byte([noise]) == pytest.approx(4, rel=0.15)


def answers() -> Iterator[tuple[bool, params.Answers]]:
    for greedy in (True, False):
        yield greedy, tiny.EVALUATE.answers


def test_answers_at_temperature_zero_do_not_depend_on_the_seed_and_sampled_ones_do(merged: engines.InProcess) -> None:
    questions: Any = [([{"role": "user", "content": "Jak się masz?"}], "informal")] * 3
    said = {
        (greedy, seed): [
            one.text for one in scoring.answer(merged, questions, settings, seed, chat=True, greedy=greedy)
        ]
        for greedy, settings in answers()
        for seed in (1, 2)
    }
    assert said[True, 1] == said[True, 2] and len(set(said[True, 1])) == 1
    assert said[False, 1] != said[False, 2]
    again = scoring.answer(merged, questions, tiny.EVALUATE.answers, 1, chat=True, greedy=False)
    assert [one.text for one in again] == said[False, 1]


def test_items_can_be_looked_into_with_pandas(scored: scoring.Scored, tmp_path: Path) -> None:
    scored.write(tmp_path)
    table = pd.read_parquet(tmp_path / "items.parquet")
    row = table[(table["task"] == "colours") & (table["format"] == "wronai")].iloc[1]
    assert json.loads(row["doc"])["id"] == row["item"] == "colours-1"
    assert row["target"] == "1"
    assert len(row["loglikelihoods"]) == 2
    said = table[table["task"] == "talk"].iloc[0]
    assert isinstance(said["answer"], str) and said["tokens"] > 0


def test_a_metric_that_lm_eval_does_not_have_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"colours.yaml: the task colours has a metric 'acc_nrm'; the nearest .* is 'acc_norm'"
    ):
        bundle_of(tmp_path, colours=YAML.replace("acc_norm", "acc_nrm"))
