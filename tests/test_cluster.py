"""The same plan on a Ray cluster gives the same bytes, also when a worker dies on the way."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.clean_text import clean_text
from stages.download_corpus import download_corpus
from wronai import corpus, params

ROOT = Path(__file__).parent.parent
PARTS = 8


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample, its documents in several parts."""
    folder = tmp_path_factory.mktemp("raw")
    config = params.load(ROOT / "params.yaml")
    download_corpus(config.data.sources, folder / "raw", folder / "downloads", lambda line: None)
    whole = folder / "raw" / "documents" / "00000.parquet"
    rows = pq.read_table(whole)
    step = -(-rows.num_rows // PARTS)
    for number in range(PARTS):
        part = rows.slice(number * step, step)
        with corpus.TableWriter(whole.with_name(f"{number:05d}.parquet"), corpus.RAW_DOCUMENTS) as table:
            table.add(pa.Table.from_batches(part.to_batches()))
    return folder / "raw"


@pytest.fixture(scope="module")
def native(raw: Path, bundles: Path) -> dict[str, bytes]:
    config = params.load(ROOT / "params.yaml")
    clean = raw.with_name("native")
    clean_text(raw, clean, config.clean, config.seed, bundles)
    return contents(clean)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def on_cluster(raw: Path, bundles: Path, clean: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "tests" / "cluster.py"), str(raw), str(bundles), str(clean), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "*"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_cluster_gives_the_same_bytes(raw: Path, bundles: Path, native: dict[str, bytes], tmp_path: Path) -> None:
    on_cluster(raw, bundles, tmp_path / "clean")
    assert contents(tmp_path / "clean") == native


def test_a_worker_that_dies_on_the_way_changes_nothing(
    raw: Path, bundles: Path, native: dict[str, bytes], tmp_path: Path
) -> None:
    said = on_cluster(raw, bundles, tmp_path / "clean", "lose")
    assert "a worker is gone after 2 batches" in said
    assert contents(tmp_path / "clean") == native
