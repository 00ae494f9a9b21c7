import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from transformers import AddedToken

from wronai import prompt, tokens

TEXTS = [
    "Zażółć gęślą jaźń, ZAŻÓŁĆ GĘŚLĄ JAŹŃ.",
    "„Tak” – powiedział… ‚nie’?",
    "😀 👩‍👩‍👧 🇵🇱",
    "a\tb\n\n  c  \r\n",
    " spacja z przodu i z tyłu ",
    "12 345,67 zł i 3×10⁸ m/s",
    "中文, кириллица, ελληνικά, \u0000, \u202e",
    "<0x41> nie jest bajtem",
    "",
]


def labelled(tokenizer: Any, labels: list[int]) -> list[str]:
    """The text of each unbroken run of supervised labels."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != tokens.IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def closers(register: str) -> str:
    return "</answer>" + (f"</{register}>" if register != "neutral" else "") + "</polish></s>"


def rendered_ids(tokenizer: Any, messages: list[prompt.Message], register: prompt.Register) -> list[int]:
    text = prompt.render(messages, register, "<s>", "</s>")
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def unpacked(block: dict[str, list[int]]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each example in a block, told apart by where positions start again."""
    starts = [index for index, position in enumerate(block["position_ids"]) if position == 0]
    bounds = zip(starts, [*starts[1:], len(block["input_ids"])], strict=True)
    return [(block["input_ids"][start:end], block["labels"][start:end]) for start, end in bounds]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_decodes_back_exactly(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_random_text_decodes_back_exactly(tokenizer: Any) -> None:
    chance = random.Random(1)
    alphabet = "aąbcćde zżź\t\n.,!?„”–0159😀ß漢"
    for _ in range(200):
        text = "".join(chance.choices(alphabet, k=chance.randrange(1, 40)))
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_padding_token_is_not_the_end_token(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_a_tokenizer_that_pads_with_its_end_token_gets_another(base_folder: Path) -> None:
    own = tokens.load(base_folder)
    own.pad_token = own.eos_token
    assert tokens.extend(own).pad_token == "<unk>"


def test_a_padding_token_of_its_own_stays(base_folder: Path) -> None:
    own = tokens.load(base_folder)
    own.add_special_tokens({"pad_token": "<pad>"})
    assert tokens.extend(own).pad_token == "<pad>"


def test_the_ten_tokens_come_after_the_bases_own_and_each_is_one_token(base_folder: Path, tokenizer: Any) -> None:
    own = len(tokens.load(base_folder))
    assert (
        tokens.added_ids(tokenizer)
        == list(range(own, own + 10))
        == tokenizer.convert_tokens_to_ids(list(prompt.TOKENS))
    )


def test_a_tokenizer_without_the_ten_tokens_says_who_adds_them(base_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks <polish>, .*</answer>; tokenize_text writes"):
        tokens.added_ids(tokens.load(base_folder))


def test_a_base_without_an_end_token_is_refused(base_folder: Path) -> None:
    own = tokens.load(base_folder)
    own.eos_token = None
    with pytest.raises(ValueError, match="no eos_token, which ends an answer"):
        tokens.extend(own)


def test_a_padding_token_of_the_bases_own_is_kept(base_folder: Path) -> None:
    own = tokens.load(base_folder)
    own.add_special_tokens({"pad_token": "<pad>"})
    assert tokens.extend(own).pad_token == "<pad>"


@pytest.mark.parametrize(("unknown", "padding"), [("<unk>", "<unk>"), (None, "<polish>"), ("</s>", "<polish>")])
def test_it_pads_with_the_unknown_token_or_polish_and_never_with_the_end(
    base_folder: Path, unknown: str | None, padding: str
) -> None:
    own = tokens.load(base_folder)
    own.unk_token, own.pad_token = unknown, own.eos_token
    assert tokens.extend(own).pad_token == padding


def test_special_tokens_are_read_from_objects_and_from_either_file(base_copy: Path) -> None:
    (base_copy / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "</s>", "lstrip": false}, "additional_special_tokens": ["<obraz>"]}'
    )
    (base_copy / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "<unk>"}')
    own = tokens.load(base_copy)
    assert (own.bos_token, own.eos_token, own.unk_token, own.pad_token) == ("<s>", "</s>", None, None)
    assert own.all_special_tokens == ["<s>", "</s>", "<obraz>"]


@pytest.mark.parametrize(("content", "says"), [("{", "not JSON"), ("[]", "found list; expected an object")])
def test_a_damaged_configuration_of_the_tokenizer_is_named(base_copy: Path, content: str, says: str) -> None:
    (base_copy / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {says}"):
        tokens.load(base_copy)


def test_a_special_token_without_a_role_is_one_that_no_text_may_hold(base_folder: Path) -> None:
    own = tokens.extend(tokens.load(base_folder))
    own.add_tokens([AddedToken("<|zapas|>", special=True), AddedToken("zwykły", special=False)])
    assert "<|zapas|>" not in own.all_special_tokens
    forged, sound = ([{"role": "user", "content": text}] for text in ("a <|zapas|>", "zwykły"))
    assert tokens.forges(own, forged) and not tokens.forges(own, sound)


def test_a_folder_without_tokenizer_json_is_refused(base_copy: Path) -> None:
    (base_copy / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        tokens.load(base_copy)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 1}'])
def test_a_damaged_tokenizer_is_one_clear_error(base_copy: Path, content: str) -> None:
    (base_copy / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="not a tokenizer that transformers can read"):
        tokens.load(base_copy)


def test_ids_of_pieces_are_the_ids_of_the_whole(tokenizer: Any) -> None:
    for example in tiny.CONVERSATIONS:
        ids, _ = tokens.encode(tokenizer, example["messages"], example["register"])
        whole = prompt.render(example["messages"], example["register"], "<s>", "</s>")
        assert tokenizer(whole, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.apply_chat_template(example["messages"], register=example["register"])["input_ids"] == ids


def test_ids_of_pieces_are_the_ids_of_the_whole_whatever_the_text(tokenizer: Any) -> None:
    for question in TEXTS:
        for answer in TEXTS:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            ids, _ = tokens.encode(tokenizer, messages, "formal")
            assert tokenizer.apply_chat_template(messages, register="formal")["input_ids"] == ids


def test_loss_falls_on_the_answers_and_what_closes_them_and_on_nothing_else(tokenizer: Any) -> None:
    for example in tiny.CONVERSATIONS:
        ids, labels = tokens.encode(tokenizer, example["messages"], example["register"])
        answers = [message["content"] for message in example["messages"] if message["role"] == "assistant"]
        expected = [answer + "</answer>" for answer in answers[:-1]] + [answers[-1] + closers(example["register"])]
        assert labelled(tokenizer, labels) == expected
        assert labels[-1] == tokenizer.eos_token_id
        assert all(label in (tokens.IGNORED, id_) for id_, label in zip(ids, labels, strict=True))


def test_the_assistant_mask_of_the_template_is_our_mask(tokenizer: Any) -> None:
    for example in tiny.CONVERSATIONS:
        ids, labels = tokens.encode(tokenizer, example["messages"], example["register"])
        asked = tokenizer.apply_chat_template(
            example["messages"], register=example["register"], return_dict=True, return_assistant_tokens_mask=True
        )
        assert asked["input_ids"] == ids
        assert asked["assistant_masks"] == [int(label != tokens.IGNORED) for label in labels]


def test_blocks_hold_every_example_whole_and_once(tokenizer: Any) -> None:
    packed, ledger = tokens.blocks(tokenizer, tiny.CONVERSATIONS, tiny.BLOCK)
    found = [ids for block in packed for ids, _ in unpacked(block)]
    expected = [rendered_ids(tokenizer, row["messages"], row["register"]) for row in tiny.CONVERSATIONS]
    assert sorted(found) == sorted(expected)
    assert len(packed) < len(tiny.CONVERSATIONS)
    assert all(len(block["input_ids"]) <= tiny.BLOCK for block in packed)
    counted = ledger.metrics()
    assert (counted["examples"], counted["examples_kept"]) == (len(expected), len(expected))
    assert counted["tokens"] == counted["tokens_kept"] == sum(len(block["input_ids"]) for block in packed)
    assert counted["tokens_supervised"] == sum(label != tokens.IGNORED for block in packed for label in block["labels"])
    assert counted["packing_efficiency"] == counted["tokens"] / (len(packed) * tiny.BLOCK)


def test_the_unmasked_labels_of_blocks_are_the_answers(tokenizer: Any) -> None:
    packed, _ = tokens.blocks(tokenizer, tiny.CONVERSATIONS, tiny.BLOCK)
    found = [text for block in packed for _, labels in unpacked(block) for text in labelled(tokenizer, labels)]
    expected = []
    for example in tiny.CONVERSATIONS:
        answers = [message["content"] for message in example["messages"][1::2]]
        expected += [answer + "</answer>" for answer in answers[:-1]] + [answers[-1] + closers(example["register"])]
    assert sorted(found) == sorted(expected)


def test_the_first_label_of_each_example_is_ignored() -> None:
    examples = [np.array([1, 2, 3], dtype=np.int32), np.array([4, 5], dtype=np.int32)]
    (block,) = tokens.Blocks([(ids, ids) for ids in examples], [[0, 1]])
    assert block == {
        "input_ids": [1, 2, 3, 4, 5],
        "labels": [tokens.IGNORED, 2, 3, tokens.IGNORED, 5],
        "position_ids": [0, 1, 2, 0, 1],
    }
    assert examples[0].tolist() == [1, 2, 3]


def test_without_packing_a_block_is_an_example_in_its_order(tokenizer: Any) -> None:
    packed, ledger = tokens.blocks(tokenizer, tiny.CONVERSATIONS, tiny.BLOCK, packing=False)
    expected = [rendered_ids(tokenizer, row["messages"], row["register"]) for row in tiny.CONVERSATIONS]
    assert [block["input_ids"] for block in packed] == expected
    assert ledger.metrics()["packing_efficiency"] == ledger.tokens / (len(expected) * tiny.BLOCK)


def test_blocks_do_not_depend_on_how_many_texts_are_encoded_at_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = tiny.conversation(99, "neutral", [("Co to?", "<s>")])
    examples = [*tiny.CONVERSATIONS[:3], forged, *tiny.CONVERSATIONS[3:]]
    at_once, ledger = tokens.blocks(tokenizer, examples, 48)
    monkeypatch.setattr(tokens, "BATCH_CHARACTERS", 100)
    by_and_by, again = tokens.blocks(tokenizer, examples, 48)
    assert list(by_and_by) == list(at_once)
    assert again == ledger


def test_row_groups_hold_the_same_rows(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = tokens.blocks(tokenizer, tiny.CONVERSATIONS, tiny.BLOCK)
    monkeypatch.setattr(tokens, "GROUP_TOKENS", 2 * tiny.BLOCK)
    tokens.write(packed.arrays(), tmp_path / "groups.parquet")
    assert pq.ParquetFile(tmp_path / "groups.parquet").num_row_groups > 2
    assert tokens.read(tmp_path / "groups.parquet").to_list() == list(packed)


def test_a_long_conversation_loses_whole_turns_from_its_end(tokenizer: Any) -> None:
    long = tiny.CONVERSATIONS[4]  # three turns
    kept = long["messages"][:4]
    room = len(tokens.encode(tokenizer, kept, long["register"])[0])
    packed, ledger = tokens.blocks(tokenizer, [long], room)
    assert packed[0]["input_ids"] == rendered_ids(tokenizer, kept, long["register"])
    assert (ledger.truncated, ledger.dropped, ledger.kept) == (1, 0, 1)
    assert ledger.metrics()["share_truncated"] == 1
    assert ledger.longest == ledger.tokens > room == ledger.tokens_kept


def test_an_example_whose_first_turn_does_not_fit_is_dropped_and_counted(tokenizer: Any) -> None:
    short = tiny.CONVERSATIONS[2]
    room = len(tokens.encode(tokenizer, short["messages"], short["register"])[0])
    packed, ledger = tokens.blocks(tokenizer, tiny.CONVERSATIONS[:3], room)
    assert len(packed) == ledger.kept == 1
    assert ledger.dropped_ids == ["tiny/00", "tiny/01"]
    assert ledger.metrics()["share_dropped"] == 2 / 3


@pytest.mark.parametrize("token", ["<s>", "</s>", "<unk>", "</answer>"])
def test_an_example_whose_text_holds_a_special_token_is_dropped_and_counted(tokenizer: Any, token: str) -> None:
    forged = tiny.conversation(99, "neutral", [("Co to <b>?", f"To jest {token} w tekście.")])
    packed, ledger = tokens.blocks(tokenizer, [*tiny.CONVERSATIONS[:2], forged], tiny.BLOCK)
    assert ledger.dropped_ids == ["tiny/99"]
    assert ledger.metrics()["examples_with_special_tokens"] == 1
    assert sum(len(unpacked(block)) for block in packed) == 2


@pytest.mark.parametrize("seed", range(20))
def test_packing_loses_nothing_respects_the_capacity_and_repeats(seed: int) -> None:
    chance = random.Random(seed)
    capacity = chance.randrange(10, 200)
    lengths = [chance.randrange(1, capacity + 1) for _ in range(chance.randrange(1, 150))]
    bins = tokens.pack(lengths, capacity)
    assert sorted(index for bin_ in bins for index in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in bin_) <= capacity for bin_ in bins)
    assert bins == tokens.pack(lengths, capacity)
    fewest = -(-sum(lengths) // capacity)
    halves = sum(2 * length > capacity for length in lengths)  # no two of these share a bin
    assert len(bins) <= 11 / 9 * max(fewest, halves) + 6


def test_packing_nothing_gives_no_block(tokenizer: Any) -> None:
    packed, ledger = tokens.blocks(tokenizer, [], tiny.BLOCK)
    assert len(packed) == 0
    assert ledger.metrics()["packing_efficiency"] == 0


def test_blocks_are_read_as_they_were_written_and_to_the_same_bytes(tokenizer: Any, tmp_path: Path) -> None:
    packed, _ = tokens.blocks(tokenizer, tiny.CONVERSATIONS, tiny.BLOCK)
    for name in ("a", "b"):
        tokens.write(packed, tmp_path / f"{name}.parquet")
    assert tokens.read(tmp_path / "a.parquet").to_list() == list(packed)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_split_without_a_block_is_an_error(tmp_path: Path) -> None:
    tokens.write([], tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no block; tokenize_text kept no example"):
        tokens.read(tmp_path / "train.parquet")


def test_missing_and_damaged_blocks_name_the_stage_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tokenize_text"):
        tokens.read(tmp_path / "train.parquet")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="tokenize_text"):
        tokens.read(tmp_path / "train.parquet")


def test_fertility_counts_words_bytes_and_tokens(tokenizer: Any) -> None:
    texts = ["Ala ma kota.", "Żółw"]
    found = tokens.fertility(tokenizer, texts)
    count = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert (found["documents"], found["words"], found["bytes"], found["tokens"]) == (2, 4, 12 + 7, count)
    assert found["tokens_per_word"] == count / 4
    assert found["bytes_per_token"] == 19 / count
    assert tokens.fertility(tokenizer, [])["tokens_per_word"] == 0


def test_an_epoch_takes_each_row_once_and_the_next_in_another_order() -> None:
    order = tokens.epochs(10, 25, seed=3)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert len(order) == 25
    assert order == tokens.epochs(10, 25, seed=3) != tokens.epochs(10, 25, seed=4)


def test_a_longer_training_begins_as_the_shorter_one() -> None:
    assert tokens.epochs(7, 30, seed=1)[:12] == tokens.epochs(7, 12, seed=1)


def test_a_tokenizer_that_prefixes_words_as_mistrals_does_still_gives_the_ids_of_the_whole(
    base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "mistral"))
    tiny.prefix_words_as_mistral_does(folder)
    mistral = tokens.extend(tokens.load(folder))
    assert mistral("kot", add_special_tokens=False).tokens()[0].startswith("▁")
    for example in tiny.CONVERSATIONS:
        ids, _ = tokens.encode(mistral, example["messages"], example["register"])
        assert mistral.apply_chat_template(example["messages"], register=example["register"])["input_ids"] == ids
