import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from stages.clean_text import clean_text, write_lengths
from stages.download_corpus import download_corpus
from wronai import corpus, params, personal_data

EXPECTED: dict[str, dict[str, Any]] = json.loads(Path("data/sample/dirty/expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def config() -> params.Params:
    return params.load(Path("params.yaml"))


@pytest.fixture(scope="module")
def sample(
    tmp_path_factory: pytest.TempPathFactory, config: params.Params, bundles: Path
) -> tuple[Path, dict[str, Any]]:
    """The embedded sample, downloaded and cleaned with the parameters of the project; and the metrics."""
    folder = tmp_path_factory.mktemp("sample")
    sources = [source for source in config.data.sources if source.kind == "embedded"]
    download_corpus(sources, folder / "raw", folder / "downloads", lambda line: None)
    return folder, clean_text(folder / "raw", folder / "clean", config.clean, config.seed, bundles)


def kept(folder: Path, role: str) -> dict[str, corpus.Row]:
    schema = {"documents": corpus.DOCUMENTS, "instructions": corpus.INSTRUCTIONS}[role]
    tables = [corpus.read_table(folder / "clean" / role / f"{split}.parquet", schema, "") for split in corpus.SPLITS]
    return {row["id"]: row for table in tables for row in table}


def rejected(folder: Path) -> dict[str, corpus.Row]:
    rows = corpus.read_table(folder / "clean" / "rejected.parquet", corpus.REJECTED, "")
    return {row["id"]: row for row in rows}


def test_every_dirty_file_is_expected() -> None:
    files = {path.name for path in Path("data/sample/dirty").iterdir()} - {"expected.json"}
    assert files == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(name for name, entry in EXPECTED.items() if entry["kept"]))
def test_a_dirty_file_worth_keeping_is_kept_clean(sample: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, _ = sample
    text = kept(folder, "documents")[f"sample/dirty/{name}"]["text"]
    assert [part for part in EXPECTED[name]["contains"] if part not in text] == []
    assert [part for part in EXPECTED[name]["lacks"] if part in text] == []
    masked = {placeholder: text.count(f"[{placeholder}]") for placeholder in personal_data.PLACEHOLDERS}
    assert {placeholder: times for placeholder, times in masked.items() if times} == EXPECTED[name]["masked"]


@pytest.mark.parametrize("name", sorted(name for name, entry in EXPECTED.items() if not entry["kept"]))
def test_a_dirty_file_not_worth_keeping_goes_for_its_reason(sample: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, _ = sample
    assert rejected(folder)[f"sample/dirty/{name}"]["reason"] == EXPECTED[name]["reason"]


def test_every_good_document_and_instruction_of_the_sample_survives(sample: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = sample
    lost = {id: (row["reason"], row["value"]) for id, row in rejected(folder).items() if "/dirty/" not in id}
    assert lost == {}


def test_the_metrics_add_up(sample: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = sample
    for role in ("documents", "instructions"):
        counts = metrics[role]
        assert counts["kept"] == len(kept(folder, role)) == sum(counts[split] for split in corpus.SPLITS)
        assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
        assert all(counts[split] > 0 for split in corpus.SPLITS)
    assert metrics["documents_repaired"] >= 5
    assert metrics["masked"]["PESEL"] >= 2


def test_a_second_run_gives_the_same_bytes(
    sample: tuple[Path, dict[str, Any]], config: params.Params, bundles: Path, tmp_path: Path
) -> None:
    folder, metrics = sample
    assert clean_text(folder / "raw", tmp_path, config.clean, config.seed, bundles) == metrics
    assert len(contents(tmp_path)) == 8
    assert contents(tmp_path) == contents(folder / "clean")


def test_a_benchmark_more_that_no_text_quotes_changes_no_byte_of_the_clean_text(
    sample: tuple[Path, dict[str, Any]], config: params.Params, bundles: Path, tmp_path: Path
) -> None:
    folder, metrics = sample
    more = shutil.copytree(bundles, tmp_path / "bundles")
    tiny.bundle(more, "zagadki", [{"text": "Co to jest: ma cztery nogi, jedno oparcie, a nigdy jeszcze nie usiadło?"}])
    found = clean_text(folder / "raw", tmp_path / "clean", config.clean, config.seed, more)
    added = {"items": 1, "items_too_short": 0, "documents": 0, "instructions": 0}
    assert found["contamination"].pop("zagadki") == added
    assert found == metrics
    assert contents(tmp_path / "clean") == contents(folder / "clean")


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_page_to_judge_the_rules_by_shows_each_reason(sample: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = sample
    page = (folder / "clean" / "rules.html").read_text(encoding="utf-8")
    assert [reason for reason in metrics["documents"]["dropped"] if f'<h3 id="{reason}">' not in page] == []
    assert str(folder) not in page


def test_every_kept_document_is_in_the_bin_of_its_length(sample: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, metrics = sample
    write_lengths(folder / "clean" / "documents", tmp_path / "metrics" / "lengths.csv")
    rows = list(csv.DictReader((tmp_path / "metrics" / "lengths.csv").open(encoding="utf-8")))
    assert sum(int(row["documents"]) for row in rows) == metrics["documents"]["kept"]
    lengths = [len(row["text"]) for row in kept(folder, "documents").values()]
    for row in rows:
        low, high = int(row["from_characters"]), int(row["below_characters"])
        assert int(row["documents"]) == sum(low <= length < high for length in lengths), row
    assert {row["source"] for row in rows} == {"sample"}
    assert [row["from_characters"] for row in rows[1:]] == [row["below_characters"] for row in rows[:-1]]


def test_each_source_has_every_bin(tmp_path: Path) -> None:
    texts = {"train": [("b", "x" * 100)], "validation": [("a", "ż" * 300)], "test": [("a", "y")]}
    for split, rows in texts.items():
        (tmp_path / "documents").mkdir(exist_ok=True)
        table = pa.table({"source": [source for source, _ in rows], "text": [text for _, text in rows]})
        pq.write_table(table, tmp_path / "documents" / f"{split}.parquet")
    write_lengths(tmp_path / "documents", tmp_path / "lengths.csv")
    lines = (tmp_path / "lengths.csv").read_text().splitlines()
    assert lines[:2] == ["source,from_characters,below_characters,documents", "a,1,2,1"]
    assert len(lines) == 1 + 2 * (len(lines) // 2) and "a,256,304,1" in lines and "b,91,108,1" in lines


PROSE = (
    "Na skraju wsi stał dom, w którym od lat nikt nie mieszkał. Dzieci mówiły, że straszy tam o północy, ale stary "
    "młynarz śmiał się i powtarzał, że to tylko wiatr gra na potłuczonych szybach."
)


def write_raw(folder: Path, *texts: str) -> Path:
    documents = [
        corpus.Document(f"s/{i}", "s", "g", "", "text/plain", "edited", text.encode()) for i, text in enumerate(texts)
    ]
    messages = [{"role": "user", "content": "Ile nóg ma pająk?"}, {"role": "assistant", "content": "Osiem."}]
    instruction = corpus.Instruction("s/i", "s", "neutral", "question", messages)
    for role, schema, items in (
        ("documents", corpus.RAW_DOCUMENTS, documents),
        ("instructions", corpus.INSTRUCTIONS, [instruction]),
    ):
        with corpus.PartsWriter(folder / role, schema) as parts:
            for item in items:
                parts.add(item)
    return folder


def test_dropping_more_than_allowed_fails_with_the_numbers(
    tmp_path: Path, config: params.Params, bundles: Path
) -> None:
    raw = write_raw(tmp_path / "raw", PROSE, "Za krótkie.", "To też.")
    with pytest.raises(
        ValueError, match=r"clean.max_share_dropped is 0.5, .* 2 of 3 documents \(0.667\); .* too_short \(2\)"
    ):
        clean_text(raw, tmp_path / "clean", config.clean, 42, bundles)


def test_keeping_nothing_fails_whatever_share_is_allowed(tmp_path: Path, config: params.Params, bundles: Path) -> None:
    raw = write_raw(tmp_path / "raw", "Za krótkie.")
    lenient = config.clean.model_copy(update={"max_share_dropped": 1.0})
    with pytest.raises(ValueError, match=r"dropped 1 of 1 documents"):
        clean_text(raw, tmp_path / "clean", lenient, 42, bundles)


def test_no_documents_at_all_fail(tmp_path: Path, config: params.Params, bundles: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"holds no documents: expected a source of data.sources to give some"):
        clean_text(raw, tmp_path / "clean", config.clean, 42, bundles)


def test_a_failed_cleaning_writes_nothing(tmp_path: Path, config: params.Params, bundles: Path) -> None:
    raw = write_raw(tmp_path / "raw", "Za krótkie.")
    with pytest.raises(ValueError, match="too_short"):
        clean_text(raw, tmp_path / "clean", config.clean, 42, bundles)
    assert not (tmp_path / "clean").exists()


def test_missing_input_names_the_stage_that_makes_it(tmp_path: Path, config: params.Params, bundles: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the stage download_corpus makes it"):
        clean_text(tmp_path, tmp_path / "clean", config.clean, 42, bundles)
