import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from wronai import base, params, prompt, scoring, tokens


@pytest.fixture(scope="module")
def model(base_folder: Path) -> Any:
    return base.load(base_folder, torch.float32)


@pytest.fixture(scope="module")
def merged(merged_folder: Path) -> Any:
    return base.load(merged_folder, torch.float32)


@pytest.fixture
def uniform(base_folder: Path) -> Any:
    """A model to which every one of its 600 tokens is as likely, always."""
    model = base.load(base_folder, torch.float32)
    model.lm_head.weight.data.zero_()
    return model


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> params.Evaluate:
    """Two tasks of four items, as a user would write them, and the parameters that name them."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in ("colours", "animals"):
        rows = [
            {
                "id": f"{task}-{number}",
                "question": f"Pytanie {number}?",
                "choices": ["tak", "nie wiem"],
                "answer": number % 2,
            }
            for number in range(4)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
        (folder / f"{task}.yaml").write_text(
            f"task: {task}\n"
            "dataset_path: json\n"
            f"dataset_kwargs:\n  data_files:\n    test: {folder}/{task}.jsonl\n"
            "test_split: test\n"
            "output_type: multiple_choice\n"
            'doc_to_text: "{{question}}"\n'
            'doc_to_choice: "{{choices}}"\n'
            'doc_to_target: "{{answer}}"\n'
            'target_delimiter: ""\n'
            "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
            "metadata:\n  version: 1.0\n",
            encoding="utf-8",
        )
    return tiny.EVALUATE.model_copy(update={"include_path": str(folder), "tasks": ["colours", "animals"]})


def likeliest(model: Any, tokenizer: Any, context: str, choices: list[str]) -> int:
    """The choice that the model holds most likely after `context`."""
    ids = tokenizer.encode(context, add_special_tokens=False)
    nats = [scoring.nats(model, ids, tokenizer.encode(choice, add_special_tokens=False), 64) for choice in choices]
    return nats.index(min(nats))


def test_every_item_of_every_task_is_scored_by_each_metric(
    model: Any, base_folder: Path, tasks: params.Evaluate
) -> None:
    found = scoring.benchmarks(model, tokens.load(base_folder), tasks, tiny.SEED, chat=False)
    assert list(found.columns) == ["task", "item", "metric", "value"]
    expected = {
        (task, f"{task}-{number}", metric)
        for task in tasks.tasks
        for number in range(4)
        for metric in ("acc", "acc_norm")
    }
    assert set(found[["task", "item", "metric"]].itertuples(index=False, name=None)) == expected
    assert len(found) == len(expected)
    assert set(found["value"]) <= {0.0, 1.0}


@pytest.mark.parametrize("chat", [True, False])
def test_the_tuned_model_is_asked_in_the_format_and_the_base_in_plain_text(
    merged: Any, merged_folder: Path, tasks: params.Evaluate, chat: bool
) -> None:
    tokenizer = tokens.load(merged_folder)
    found = scoring.benchmarks(merged, tokenizer, tasks, tiny.SEED, chat=chat)
    for number in range(4):
        asked = f"Pytanie {number}?"
        context = f"<s><polish><question>{asked}</question><answer>" if chat else f"<s>{asked}"
        right = likeliest(merged, tokenizer, context, ["tak", "nie wiem"]) == number % 2
        row = found[(found["item"] == f"animals-{number}") & (found["metric"] == "acc")]
        assert row["value"].item() == float(right)


def test_benchmarks_repeat(model: Any, base_folder: Path, tasks: params.Evaluate) -> None:
    runs = [scoring.benchmarks(model, tokens.load(base_folder), tasks, tiny.SEED, chat=False) for _ in range(2)]
    pd.testing.assert_frame_equal(*runs)


def test_items_that_changed_under_the_same_path_are_read_afresh(
    model: Any, base_folder: Path, tasks: params.Evaluate
) -> None:
    file = Path(tasks.include_path) / "colours.jsonl"
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(before.replace("colours-", "kolory-"), encoding="utf-8")
        found = scoring.benchmarks(model, tokens.load(base_folder), tasks, tiny.SEED, chat=False)
    finally:
        file.write_text(before, encoding="utf-8")
    assert set(found[found["task"] == "colours"]["item"]) == {f"kolory-{number}" for number in range(4)}


def test_a_task_that_is_not_there_names_the_key_and_those_that_are(
    model: Any, base_folder: Path, tasks: params.Evaluate
) -> None:
    wrong = tasks.model_copy(update={"tasks": ["colours", "colors"]})
    with pytest.raises(ValueError, match=r"evaluate\.tasks: .* has no task colors; it has animals, colours"):
        scoring.benchmarks(model, tokens.load(base_folder), wrong, tiny.SEED, chat=False)


def test_a_folder_without_tasks_says_so(model: Any, base_folder: Path, tasks: params.Evaluate, tmp_path: Path) -> None:
    wrong = tasks.model_copy(update={"include_path": str(tmp_path)})
    with pytest.raises(ValueError, match=r"has no task colours, animals; it has none"):
        scoring.benchmarks(model, tokens.load(base_folder), wrong, tiny.SEED, chat=False)


def test_a_comparison_holds_means_and_paired_standard_errors() -> None:
    frame = pd.DataFrame({"task": "t", "item": list("abcd"), "metric": "acc", "value": [0.0, 0.0, 1.0, 1.0]})
    tuned = frame.assign(value=[0.0, 1.0, 1.0, 1.0]).iloc[::-1]
    found = scoring.compare(frame, tuned)["t"]["acc"]
    assert (found["items"], found["base"], found["tuned"], found["difference"]) == (4, 0.5, 0.75, 0.25)
    assert found["base_stderr"] == pytest.approx(np.std([0, 0, 1, 1], ddof=1) / 2)
    assert found["difference_stderr"] == pytest.approx(np.std([0, 1, 0, 0], ddof=1) / 2)


def test_scores_of_different_things_are_not_compared() -> None:
    frame = pd.DataFrame({"task": "t", "item": list("ab"), "metric": "acc", "value": [0.0, 1.0]})
    with pytest.raises(ValueError, match="2 and 1 rows, 1 of them agree in task, item, metric"):
        scoring.compare(frame, frame.iloc[:1])
    bits = pd.DataFrame({"id": list("ab"), "nats": [1.0, 2.0], "bytes": [3, 4]})
    with pytest.raises(ValueError, match="2 and 2 rows, 1 of them agree in id, bytes"):
        scoring.compare_bits(bits, bits.assign(bytes=[3, 5]), 100, 1)


@pytest.mark.parametrize("context", [1, 5, 40])
def test_the_nats_of_a_text_that_fits_are_those_of_one_pass(model: Any, context: int) -> None:
    chance = random.Random(context)
    ids = [1, *(chance.randrange(3, 600) for _ in range(59))]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -sum(float(logprobs[place - 1, ids[place]]) for place in range(context, 60))
    for room in (60, 61, 200):
        assert scoring.nats(model, ids[:context], ids[context:], room) == pytest.approx(expected, rel=1e-5)


def test_the_nats_of_a_text_in_windows_are_near_those_of_one_pass(model: Any, base_folder: Path) -> None:
    ids = tokens.load(base_folder).encode(tiny.texts()[0])[:250]
    whole = scoring.nats(model, ids[:1], ids[1:], 250)
    assert scoring.nats(model, ids[:1], ids[1:], 128) == pytest.approx(whole, rel=1e-5), (
        "attention reaches 2 x 24 tokens"
    )
    assert scoring.nats(model, ids[:1], ids[1:], 16) == pytest.approx(whole, rel=0.05)
    assert scoring.nats(model, ids[:1], ids[1:], 16) != pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("room", [2, 3, 7, 16, 64])
def test_each_token_is_counted_once_whatever_the_window(uniform: Any, room: int) -> None:
    for context, target in ((1, 1), (1, 15), (1, 50), (5, 16), (30, 1), (30, 33)):
        found = scoring.nats(uniform, [1] * context, [5] * target, room)
        assert found == pytest.approx(target * math.log(600), rel=1e-5)
    assert scoring.nats(uniform, [1], [], room) == 0


def test_bits_per_byte_of_a_known_distribution(uniform: Any, base_folder: Path) -> None:
    tokenizer = tokens.load(base_folder)
    documents = [tiny.document(number, text) for number, text in enumerate(tiny.texts()[:3])]
    scores = scoring.score_documents(uniform, tokenizer, documents, 64)
    count = sum(len(tokenizer.encode(row["text"], add_special_tokens=False)) for row in documents)
    size = sum(len(row["text"].encode()) for row in documents)
    assert scores["bytes"].sum() == size
    assert scoring.bits_per_byte(scores) == pytest.approx(count * math.log2(600) / size, rel=1e-6)


@pytest.mark.parametrize("chat", [True, False])
def test_answers_are_scored_in_every_turn_and_without_what_closes_them(
    merged: Any, merged_folder: Path, chat: bool
) -> None:
    tokenizer = tokens.load(merged_folder)
    (example,) = (row for row in tiny.CONVERSATIONS[:9] if len(row["messages"]) == 6)
    (found,) = scoring.score_answers(merged, tokenizer, [example], 256, chat=chat).to_dict("records")
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
    expected = 0.0
    for context, answer in zip(contexts, texts[1::2], strict=True):
        ids, whole = (
            tokenizer.encode(text, add_special_tokens=False)
            for text in (context, context + (answer if chat else f" {answer}"))
        )
        assert whole[: len(ids)] == ids
        expected += scoring.nats(merged, ids, whole[len(ids) :], 256)
    assert found["nats"] == pytest.approx(expected, rel=1e-5)
    assert found["bytes"] == sum(len(text.encode()) for text in texts[1::2])


def test_an_answer_is_scored_with_the_ids_that_the_whole_text_has(base_copy: Path, uniform: Any) -> None:
    """A tokenizer that puts "▁" before each text would otherwise charge the base's answers for a second space."""
    tiny.prefix_words_as_mistral_does(base_copy)
    tokenizer = tokens.load(base_copy)
    example = tiny.CONVERSATIONS[2]
    asked = "<s>" + scoring.plain(example["messages"][:1])
    count = len(tokenizer.encode(f"{asked} Warszawa.", add_special_tokens=False)) - len(
        tokenizer.encode(asked, add_special_tokens=False)
    )
    assert count < len(tokenizer.encode(" Warszawa.", add_special_tokens=False))
    scores = scoring.score_answers(uniform, tokenizer, [example], 256, chat=False)
    assert scores["nats"].item() == pytest.approx(count * math.log(600), rel=1e-5)


def test_the_interval_of_the_difference_holds_the_truth_nineteen_times_in_twenty() -> None:
    generator = np.random.Generator(np.random.PCG64(1))
    truth, hits = -0.2, 0
    for _ in range(200):
        size = generator.integers(50, 500, 60)
        nats = generator.normal(2.0, 0.5, 60) * size * math.log(2)
        noise = generator.normal(truth, 0.1, 60) * size * math.log(2)
        frame = pd.DataFrame({"id": range(60), "nats": nats, "bytes": size})
        found = scoring.compare_bits(frame, frame.assign(nats=nats + noise), 300, 1)
        hits += found["difference_low"] <= truth <= found["difference_high"]
        assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert 180 <= hits <= 198


def test_the_interval_is_that_of_pairs_and_repeats() -> None:
    generator = np.random.Generator(np.random.PCG64(2))
    nats = generator.normal(500, 300, 40)
    frame = pd.DataFrame({"id": range(40), "nats": nats, "bytes": 400})
    tuned = frame.assign(nats=nats - 10).sample(frac=1, random_state=1)
    found = scoring.compare_bits(frame, tuned, 500, 7)
    exact = -10 / math.log(2) / 400
    assert found["difference_low"] == pytest.approx(exact)
    assert found["difference_high"] == pytest.approx(exact)
    assert found["relative"] == pytest.approx(found["tuned"] / found["base"] - 1)
    assert found == scoring.compare_bits(frame, tuned, 500, 7)
    assert (found["texts"], found["bytes"]) == (40, 16000)


def test_a_sample_is_drawn_from_all_rows_by_its_seed() -> None:
    rows = [{"id": number} for number in range(200)]
    drawn = [scoring.sample(rows, 60, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({row["id"] for row in drawn[0]}) == 60
    assert max(row["id"] for row in drawn[0]) > 150 > 50 > min(row["id"] for row in drawn[0])
    assert scoring.sample(rows[:3], 60, 1) != [] and len(scoring.sample(rows[:3], 60, 1)) == 3


def test_xz_is_given_the_same_bytes() -> None:
    assert scoring.xz_bits_per_byte(["ab" * 5000]) < 0.2
    noise = random.Random(1).randbytes(4000).hex()
    assert scoring.xz_bits_per_byte([noise]) == pytest.approx(4, rel=0.15)


def test_a_plain_conversation_ends_where_the_answer_begins() -> None:
    messages = tiny.CONVERSATIONS[3]["messages"][:3]
    assert scoring.plain(messages) == (
        "Pytanie: Gdzie złożyć wniosek?\nOdpowiedź: W pokoju 12.\nPytanie: A do kiedy?\nOdpowiedź:"
    )


def test_answers_do_not_depend_on_the_padding_of_their_batch(merged: Any, merged_folder: Path) -> None:
    tokenizer = tokens.load(merged_folder)
    greedy = tiny.EVALUATE.model_copy(update={"do_sample": False, "batch_size": 3})
    prompts = [f"<s><polish><question>{'Co to jest? ' * count}</question><answer>" for count in (1, 4, 2)]
    together = scoring.answer(merged, tokenizer, prompts, greedy, tiny.SEED)
    alone = [scoring.answer(merged, tokenizer, [asked], greedy, tiny.SEED)[0] for asked in prompts]
    assert together == alone
    assert all(0 < len(ids) <= greedy.max_new_tokens for ids in together)


def test_sampled_answers_repeat_by_their_seed(merged: Any, merged_folder: Path) -> None:
    tokenizer = tokens.load(merged_folder)
    prompts = ["<s><polish><question>Jak się masz?</question><answer>"] * 3
    first = scoring.answer(merged, tokenizer, prompts, tiny.EVALUATE, 1)
    assert first == scoring.answer(merged, tokenizer, prompts, tiny.EVALUATE, 1)
    assert first != scoring.answer(merged, tokenizer, prompts, tiny.EVALUATE, 2)


def test_an_answer_ends_with_its_end_token_and_without_padding(merged: Any, merged_folder: Path) -> None:
    tokenizer = tokens.load(merged_folder)
    ends = base.load(merged_folder, torch.float32)
    ends.lm_head.weight.data[:] = 0.0
    ends.model.norm.weight.data[:] = 0.0
    ends.lm_head = torch.nn.Linear(64, 610, bias=True)
    ends.lm_head.weight.data.zero_()
    ends.lm_head.bias.data.zero_()
    ends.lm_head.bias.data[tokenizer.eos_token_id] = 50.0
    greedy = tiny.EVALUATE.model_copy(update={"do_sample": False})
    assert scoring.answer(ends, tokenizer, ["<s><polish>", "<s>"], greedy, 1) == [[tokenizer.eos_token_id]] * 2


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
def test_an_answer_is_closed_only_as_the_format_says(
    tokenizer: Any, text: str, register: prompt.Register, closed: bool
) -> None:
    assert scoring.is_closed(tokenizer.encode(text, add_special_tokens=False), tokenizer, register) is closed
