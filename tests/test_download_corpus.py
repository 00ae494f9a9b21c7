import json
from pathlib import Path
from typing import Any

import pytest

from stages.download_corpus import download_corpus
from wronai import corpus, params

TEXT = "Rzeka wylała w nocy i zabrała most."


def run(tmp_path: Path, *sources: dict[str, Any]) -> dict[str, Any]:
    wanted = params.Data.model_validate({"sources": list(sources)}).sources
    return download_corpus(wanted, tmp_path / "raw", tmp_path / "downloads", lambda line: None)


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "teksty"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    (folder / "b.html").write_bytes("<p>żółw</p>".encode("cp1250"))
    (folder / "LICENSE").write_text("CC0")
    fields = {"kind": "local", "path": str(folder), "licence": "CC0-1.0", "role": "documents", "text_kind": "web"}
    return {"name": "teksty", **fields}


@pytest.fixture
def questions(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "pytania.jsonl"
    path.write_text(json.dumps({"question": "Ile?", "answer": "Dwa."}) + "\n")
    return {"name": "pytania", "kind": "local", "path": str(path), "licence": "CC-BY-4.0", "role": "instructions"}


def test_all_sources_land_in_two_tables(tmp_path: Path, texts: dict[str, Any], questions: dict[str, Any]) -> None:
    run(tmp_path, texts, questions)
    documents = corpus.read_parts(tmp_path / "raw" / "documents", corpus.RAW_DOCUMENTS, "download_corpus")
    assert [(row["id"], row["source"], row["content"]) for row in documents] == [
        ("teksty/a.txt", "teksty", TEXT.encode()),
        ("teksty/b.html", "teksty", "<p>żółw</p>".encode("cp1250")),
    ]
    rows = corpus.read_parts(tmp_path / "raw" / "instructions", corpus.INSTRUCTIONS, "download_corpus")
    assert [row["id"] for row in rows] == ["pytania/pytania.jsonl#000001"]


def test_metrics_count_documents_and_bytes_by_source(
    tmp_path: Path, texts: dict[str, Any], questions: dict[str, Any]
) -> None:
    metrics = run(tmp_path, texts, questions)
    assert metrics["documents"] == 2 and metrics["instructions"] == 1
    assert metrics["files"] == 3 and metrics["files_ignored"] == 1
    assert metrics["by_source"]["teksty"] == {"documents": 2, "instructions": 0, "bytes": len(TEXT.encode()) + 11}
    assert metrics["bytes"] == sum(source["bytes"] for source in metrics["by_source"].values())


def test_the_manifest_names_licence_and_files_and_no_absolute_path(tmp_path: Path, texts: dict[str, Any]) -> None:
    run(tmp_path, texts)
    manifest = (tmp_path / "raw" / "manifest.json").read_text()
    source = json.loads(manifest)[0]
    assert (source["name"], source["kind"], source["licence"]) == ("teksty", "local", "CC0-1.0")
    assert [file["path"] for file in source["files"]] == ["a.txt", "b.html"]
    assert source["ignored"] == ["LICENSE"]
    assert str(tmp_path) not in manifest


def test_a_second_run_gives_the_same_bytes(tmp_path: Path, texts: dict[str, Any], questions: dict[str, Any]) -> None:
    run(tmp_path, texts, questions)
    before = contents(tmp_path / "raw")
    assert sorted(before) == ["documents/00000.parquet", "instructions/00000.parquet", "manifest.json"]
    run(tmp_path, texts, questions)
    assert contents(tmp_path / "raw") == before


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_one_bad_source_leaves_nothing_behind(tmp_path: Path, texts: dict[str, Any], questions: dict[str, Any]) -> None:
    Path(questions["path"]).write_text("{\n")
    with pytest.raises(ValueError, match=r"data.sources\[1\]: pytania.jsonl line 1 is no JSON"):
        run(tmp_path, texts, questions)
    assert not (tmp_path / "raw").exists()
