"""A base from scratch is the Mistral of its parameters, its tokenizer knows every text, and its bytes repeat."""

import math
from pathlib import Path

import pytest
import tiny
import torch

from wronai import base, numerics, pretraining, tokens


def test_a_base_from_scratch_is_the_mistral_of_its_parameters(base_folder: Path) -> None:
    config = base.load(base_folder, torch.float32, device="meta").config
    assert config.model_type == "mistral"
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (600, 64, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.sliding_window) == (4, 2, 24)
    assert config.tie_word_embeddings is False
    tokenizer = tokens.load(base_folder)
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_pre_training_repeats_to_the_byte_and_is_better_than_chance(base_folder: Path, tmp_path: Path) -> None:
    numerics.deterministic("pinned", tiny.SEED)
    texts = tiny.texts()
    metrics = pretraining.from_scratch(texts[5:], texts[:5], tiny.SCRATCH, tiny.SEED, tmp_path, tiny.ignore)
    assert metrics["validation_loss"] < math.log(600) - 0.5
    assert (metrics["tokens_seen"], metrics["documents"]) == (80 * 2 * 64, len(texts) - 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in base_folder.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (base_folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize("split", [(["Ala ma kota."], tiny.texts()), (tiny.texts(), ["Ala ma kota."]), ([], [])])
def test_too_little_text_is_an_error_that_says_what_is_missing(
    split: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a base needs at least one of each: add documents"):
        pretraining.from_scratch(*split, tiny.SCRATCH, tiny.SEED, tmp_path, tiny.ignore)


def test_blocks_of_running_text_are_cut_from_the_stream_of_documents(base_folder: Path) -> None:
    tokenizer = tokens.load(base_folder)
    texts = tiny.texts()[:2]
    stream = [id_ for text in texts for id_ in tokenizer(f"<s>{text}</s>", add_special_tokens=False)["input_ids"]]
    blocks, count = pretraining._blocks(tokenizer, texts, 16)
    assert count == len(stream)
    assert [id_ for block in blocks for id_ in block["input_ids"]] == stream[: len(stream) // 16 * 16]


def test_the_bytes_of_the_vocabulary_are_no_special_tokens(base_folder: Path) -> None:
    tokenizer = tokens.load(base_folder)
    assert tokenizer.all_special_tokens == ["<s>", "</s>", "<unk>"]
    assert tokenizer.convert_tokens_to_ids("<0x00>") == 3
    assert (
        tokenizer.decode(tokenizer("<s>ż漢", add_special_tokens=False)["input_ids"], skip_special_tokens=True) == "ż漢"
    )


def test_a_digit_stands_alone() -> None:
    tokenizer = pretraining.train_tokenizer(["W 1939 i w 1939, a potem w 1939."] * 9, 300)
    assert tokenizer.tokenize("w 1939") == ["▁w", "▁", "1", "9", "3", "9"]


def test_the_outline_of_a_scratch_base_is_that_of_the_base(base_folder: Path) -> None:
    outlines = base.outline(base_folder), pretraining.outline(tiny.SCRATCH)
    made_, planned = ({name: weight.shape for name, weight in outline.named_parameters()} for outline in outlines)
    assert made_ == planned
