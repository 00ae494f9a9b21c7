from pathlib import Path

import pytest

from wronai import corpus

ROWS = [
    {"id": "b", "source": "s", "genre": "g", "title": "t", "text": "Zażółć gęślą jaźń."},
    {"id": "a", "source": "s", "genre": "g", "title": "t", "text": "Pchnąć w tę łódź jeża."},
]


def test_tables_come_back_sorted_by_id(tmp_path: Path) -> None:
    corpus.write_table(ROWS, corpus.DOCUMENTS, tmp_path / "t.parquet")
    assert corpus.read_table(tmp_path / "t.parquet", corpus.DOCUMENTS, "clean_text") == [ROWS[1], ROWS[0]]


def test_the_order_of_rows_does_not_change_the_bytes(tmp_path: Path) -> None:
    corpus.write_table(ROWS, corpus.DOCUMENTS, tmp_path / "one.parquet")
    corpus.write_table(reversed(ROWS), corpus.DOCUMENTS, tmp_path / "other.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "other.parquet").read_bytes()


def test_messages_survive_parquet(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Ile nóg ma pająk?"}, {"role": "assistant", "content": "Osiem."}]
    row = {"id": "a", "source": "s", "register": "neutral", "task": "question", "messages": messages}
    corpus.write_table([row], corpus.INSTRUCTIONS, tmp_path / "i.parquet")
    assert corpus.read_table(tmp_path / "i.parquet", corpus.INSTRUCTIONS, "clean_text") == [row]


def test_a_missing_table_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the stage download_corpus makes it"):
        corpus.read_table(tmp_path / "t.parquet", corpus.DOCUMENTS, "download_corpus")


def test_a_damaged_table_names_the_stage_to_run_again(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"no readable Parquet file .* run the stage download_corpus again"):
        corpus.read_table(tmp_path / "t.parquet", corpus.DOCUMENTS, "download_corpus")


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    corpus.write_table(ROWS, corpus.DOCUMENTS, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"has the columns .*'text'.*expected .*'messages'"):
        corpus.read_table(tmp_path / "t.parquet", corpus.INSTRUCTIONS, "clean_text")


def test_splits_depend_on_content_and_seed_alone() -> None:
    texts = [f"tekst numer {number}" for number in range(200)]
    splits = [corpus.split_of(text, 42, 0.1, 0.2) for text in texts]
    assert [corpus.split_of(text, 42, 0.1, 0.2) for text in reversed(texts)] == splits[::-1]
    assert [corpus.split_of(text, 43, 0.1, 0.2) for text in texts] != splits


def test_splits_have_about_the_shares_asked_for() -> None:
    splits = [corpus.split_of(f"tekst numer {number}", 42, 0.1, 0.2) for number in range(2000)]
    assert splits.count("validation") == pytest.approx(200, abs=45)
    assert splits.count("test") == pytest.approx(400, abs=60)


def test_every_split_is_there_if_empty() -> None:
    assert corpus.by_split(ROWS, ["train", "train"]) == {"train": ROWS, "validation": [], "test": []}
