from pathlib import Path
from typing import Any

import pytest
import tiny

from stages.tokenize_text import tokenize_text
from wronai import corpus, params, prompt, tokens

SETTINGS = params.Tokenize(max_length=tiny.BLOCK, max_share_truncated=0.0, max_share_dropped=0.0)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A folder as clean_text leaves it."""
    folder = tmp_path / "clean"
    for split, examples in (("train", tiny.CONVERSATIONS), ("validation", tiny.CONVERSATIONS[:6])):
        corpus.write_table(examples, corpus.INSTRUCTIONS, folder / "instructions" / f"{split}.parquet")
    documents = [tiny.document(number, text) for number, text in enumerate(tiny.texts()[:3])]
    corpus.write_table(documents, corpus.DOCUMENTS, folder / "documents" / "validation.parquet")
    return folder


def run(clean: Path, base: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return tokenize_text(clean, base, SETTINGS.model_copy(update=changes), out / "tokenizer", out / "tokens")


def test_it_writes_blocks_and_a_tokenizer_that_reads_them(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    metrics = run(clean, base_folder, tmp_path)
    tokenizer = tokens.load(tmp_path / "tokenizer")
    assert tokenizer.chat_template == prompt.CHAT_TEMPLATE
    assert metrics["vocab_size"] == len(tokenizer) == len(tokens.load(base_folder)) + 10
    for split, count in (("train", len(tiny.CONVERSATIONS)), ("validation", 6)):
        blocks = tokens.read(tmp_path / "tokens" / f"{split}.parquet")
        assert metrics[split]["examples_kept"] == count
        assert metrics[split]["blocks"] == len(blocks)
        assert metrics[split]["tokens_kept"] == sum(len(row["input_ids"]) for row in blocks)
    assert metrics["documents"]["documents"] == 3
    assert metrics["documents"]["tokens_per_word"] > 1


def test_a_second_run_writes_the_same_bytes(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    assert run(clean, base_folder, tmp_path / "a") == run(clean, base_folder, tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) >= 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_too_many_truncated_examples_fail_and_name_the_key(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"of the train examples are truncated .* tokenize\.max_share_truncated allows"
    ):
        run(clean, base_folder, tmp_path, max_length=48, max_share_dropped=1.0)


def test_too_many_dropped_examples_fail_and_name_the_key(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of the train examples are dropped .* tokenize\.max_share_dropped allows"):
        run(clean, base_folder, tmp_path, max_length=32, max_share_truncated=1.0)


def test_losses_that_the_parameters_allow_are_in_the_metrics(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    found = run(clean, base_folder, tmp_path, max_length=48, max_share_truncated=1.0, max_share_dropped=1.0)["train"]
    assert found["examples_kept"] + found["examples_dropped"] == found["examples"] == len(tiny.CONVERSATIONS)
    assert found["examples_truncated"] > 0
    assert found["longest_example"] > 48


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_instructions_is_an_error(clean: Path, base_folder: Path, tmp_path: Path, split: str) -> None:
    corpus.write_table([], corpus.INSTRUCTIONS, clean / "instructions" / f"{split}.parquet")
    with pytest.raises(ValueError, match=rf"no instruction in the {split} split; add instructions to data\.sources"):
        run(clean, base_folder, tmp_path)


def test_missing_clean_data_names_the_stage_that_makes_it(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.parquet is missing; the stage clean_text makes it"):
        run(tmp_path, base_folder, tmp_path)


def test_a_base_without_a_tokenizer_is_an_error(clean: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        run(clean, tmp_path, tmp_path)
