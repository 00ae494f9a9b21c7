import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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


def test_a_table_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), corpus.TableWriter(tmp_path / "t.parquet", corpus.DOCUMENTS) as table:
        table.add(pa.Table.from_pylist(ROWS, schema=corpus.DOCUMENTS))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_of_a_table_do_not_depend_on_how_its_rows_came(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": f"{number:05d}", "text": "żółw " * (number % 50)} for number in range(5000)]
    rows[700]["text"] = rows[3100]["text"] = "ł" * (5 << 20)
    table = pa.Table.from_pylist(rows, schema=corpus.DOCUMENTS)
    for name, step in (("one", 5000), ("other", 37)):
        with corpus.TableWriter(tmp_path / f"{name}.parquet", corpus.DOCUMENTS) as writer:
            for start in range(0, len(rows), step):
                writer.add(table.slice(start, step))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "other.parquet").read_bytes()
    assert corpus.read_table(tmp_path / "one.parquet", corpus.DOCUMENTS, "") == rows


def test_a_row_group_holds_few_bytes(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": f"{number}", "text": f"{number}" * 1_000_000} for number in range(10)]
    corpus.write_table(rows, corpus.DOCUMENTS, tmp_path / "t.parquet")
    file = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert [file.row_group(group).num_rows for group in range(file.num_row_groups)] == [9, 1]


def document(name: str, content: bytes) -> corpus.Document:
    return corpus.Document(name, "s", "g", "", "text/plain", "web", content)


def test_raw_text_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PART_BYTES", 100)
    monkeypatch.setattr(corpus, "GROUP_BYTES", 40)
    with corpus.PartsWriter(tmp_path / "raw", corpus.RAW_DOCUMENTS) as parts:
        for number in range(12):
            parts.add(document(f"{number:02d}", b"x" * 20))
    paths = corpus.checked_parts(tmp_path / "raw", corpus.RAW_DOCUMENTS, "download_corpus")
    assert [path.name for path in paths] == ["00000.parquet", "00001.parquet"]
    rows = corpus.read_parts(tmp_path / "raw", corpus.RAW_DOCUMENTS, "download_corpus")
    assert [row["id"] for row in rows] == [f"{number:02d}" for number in range(12)]


def test_nothing_written_is_one_empty_part(tmp_path: Path) -> None:
    with corpus.PartsWriter(tmp_path / "raw", corpus.INSTRUCTIONS):
        pass
    assert corpus.read_parts(tmp_path / "raw", corpus.INSTRUCTIONS, "download_corpus") == []


def test_a_folder_without_parts_names_the_stage_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"raw/00000.parquet is missing; the stage download_corpus makes it"):
        corpus.checked_parts(tmp_path / "raw", corpus.RAW_DOCUMENTS, "download_corpus")


@pytest.mark.parametrize("run_bytes", [1, 2000, 1 << 30])
def test_sorted_runs_give_back_every_row_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_bytes: int) -> None:
    monkeypatch.setattr(corpus.SortedRuns, "RUN_BYTES", run_bytes)
    monkeypatch.setattr(corpus.SortedRuns, "SLICE_BYTES", 200)
    monkeypatch.setattr(corpus, "GROUP_BYTES", 300)
    names = [f"{number:03d}" for number in range(100)]
    came = random.Random(5).sample(names, k=100)
    runs = corpus.SortedRuns(tmp_path / "runs")
    for start in range(0, 100, 7):
        part = came[start : start + 7]
        runs.add(pa.table({"id": part, "text": [f"tekst {name}" for name in part]}))
    assert [came[number] for number in runs.order()] == names
    tables = list(runs)
    assert len(tables) > 1
    back = pa.concat_tables(tables).to_pydict()
    assert back == {"id": names, "text": [f"tekst {name}" for name in names]}


def test_no_rows_are_sorted_runs_too(tmp_path: Path) -> None:
    runs = corpus.SortedRuns(tmp_path / "runs")
    assert len(runs.order()) == 0
    assert list(runs) == []
