from pathlib import Path
from typing import Any

import pytest
import tiny

from stages.tokenize_text import tokenize_text
from wronai import corpus, params, prompt, tokens

SETTINGS = params.Tokenize(
    max_length=tiny.BLOCK,
    packing=True,
    mixture=params.Mixture(instructions=1.0, documents=0.0),
    max_share_truncated=0.0,
    max_share_dropped=0.0,
)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A folder as clean_text leaves it."""
    folder = tmp_path / "clean"
    for split, examples in (("train", tiny.CONVERSATIONS), ("validation", tiny.CONVERSATIONS[:6])):
        corpus.write_table(examples, corpus.INSTRUCTIONS, folder / "instructions" / f"{split}.parquet")
    documents = [tiny.document(number, text) for number, text in enumerate(tiny.texts())]
    for split, part in (("train", documents[3:]), ("validation", documents[:3])):
        corpus.write_table(part, corpus.DOCUMENTS, folder / "documents" / f"{split}.parquet")
    return folder


def run(clean: Path, base: Path, out: Path, **changes: Any) -> dict[str, Any]:
    settings = SETTINGS.model_copy(update=changes)
    return tokenize_text(clean, base, settings, tiny.SEED, out / "tokenizer", out / "tokens")


def mixed(instructions: float, documents: float) -> params.Mixture:
    return params.Mixture(instructions=instructions, documents=documents)


def kinds(tokenizer: Any, tokens_out: Path, split: str) -> dict[str, int]:
    """The tokens in the blocks of instructions and in those of documents, told apart by whether they hold an answer."""
    counts = {"instructions": 0, "documents": 0}
    answer = tokenizer.convert_tokens_to_ids(prompt.ANSWER)
    for block in tokens.read(tokens_out / f"{split}.parquet"):
        counts["instructions" if answer in block["input_ids"] else "documents"] += len(block["input_ids"])
    return counts


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


@pytest.mark.parametrize(("instructions", "documents"), [(0.7, 0.3), (3.0, 1.0)])
def test_documents_take_their_share_of_the_tokens_in_both_splits(
    clean: Path, base_folder: Path, tmp_path: Path, instructions: float, documents: float
) -> None:
    alone = run(clean, base_folder, tmp_path / "alone")
    metrics = run(clean, base_folder, tmp_path, mixture=mixed(instructions, documents))
    tokenizer = tokens.load(tmp_path / "tokenizer")
    for split in ("train", "validation"):
        counts, found = kinds(tokenizer, tmp_path / "tokens", split), metrics["mixture"][split]
        assert metrics[split] == alone[split]
        assert counts["instructions"] == metrics[split]["tokens_kept"]
        assert counts["documents"] == found["tokens"]
        least = counts["instructions"] * documents / instructions
        assert round(least) <= found["tokens"] < least + tiny.BLOCK
        assert found["share_documents"] == found["tokens"] / sum(counts.values())
    own = [tokens.read(out / "tokens" / "train.parquet").to_list() for out in (tmp_path / "alone", tmp_path)]
    assert own[1][: len(own[0])] == own[0]
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == ["train.parquet", "validation.parquet"]


def test_a_mixture_repeats_and_follows_the_seed(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"mixture": mixed(0.7, 0.3)})
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tokenize_text(clean, base_folder, settings, seed, tmp_path / name / "tokenizer", tmp_path / name)
        files.append((tmp_path / name / "train.parquet").read_bytes())
    assert files[0] == files[1] != files[2]


def test_documents_alone_are_continued_pre_training(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    corpus.write_table([], corpus.INSTRUCTIONS, clean / "instructions" / "train.parquet")
    metrics = run(clean, base_folder, tmp_path, mixture=mixed(0.0, 1.0))
    assert not {"train", "validation"} & set(metrics)
    for split, count in (("train", len(tiny.texts()) - 3), ("validation", 3)):
        found = metrics["mixture"][split]
        assert found["documents"] == found["documents_available"] == count
        assert found["share_documents"] == 1.0
    rows = tokens.read(tmp_path / "tokens" / "train.parquet")
    supervised = sum(label != tokens.IGNORED for row in rows for label in row["labels"])
    assert metrics["mixture"]["train"]["tokens_supervised"] == supervised
    assert metrics["mixture"]["train"]["blocks"] == len(rows)


def test_fewer_documents_than_the_mixture_asks_for_are_all_taken_and_it_is_said(
    clean: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(clean, base_folder, tmp_path, mixture=mixed(0.01, 0.99))["mixture"]["train"]
    assert found["documents"] == found["documents_available"]
    assert "train: the documents hold" in (said := capsys.readouterr().out)
    assert f"{found['tokens']:,} tokens, all of them taken; tokenize.mixture asks for" in said


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_mixture_without_documents_is_an_error(clean: Path, base_folder: Path, tmp_path: Path, split: str) -> None:
    corpus.write_table([], corpus.DOCUMENTS, clean / "documents" / f"{split}.parquet")
    with pytest.raises(ValueError, match=rf"no document to train on in the {split} split; .*mixture"):
        run(clean, base_folder, tmp_path, mixture=mixed(0.7, 0.3))


def test_without_packing_every_row_is_one_example_or_piece(clean: Path, base_folder: Path, tmp_path: Path) -> None:
    metrics = run(clean, base_folder, tmp_path, packing=False, mixture=mixed(0.7, 0.3))
    rows = tokens.read(tmp_path / "tokens" / "train.parquet")
    assert all(row["position_ids"] == list(range(len(row["input_ids"]))) for row in rows)
    assert len(rows) == metrics["train"]["examples_kept"] + metrics["mixture"]["train"]["pieces"]
    assert metrics["train"]["packing_efficiency"] < 0.6
