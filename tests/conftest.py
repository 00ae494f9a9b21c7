"""Models for the tests: real, tiny, made once a session, and under the numerics that the embedded default pins."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wronai import numerics

numerics.choose("pinned")  # torch reads it as it is imported, and some test imports torch first
os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small lose by a second thread, and bytes are the same
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # of this process; stages say so themselves
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two threads that spin for each other on a busy core take minutes

import tiny  # noqa: E402


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named after their argument: packed ones hold the time, and two workers must collect the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def no_overrides_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """That library knows parameters with 32-bit states by their `id`, which a later test's may have again."""
    if "bitsandbytes" in sys.modules:
        monkeypatch.setattr(sys.modules["bitsandbytes"].optim.GlobalOptimManager, "_instance", None)


@pytest.fixture(scope="session")
def pinned() -> None:
    """Arithmetic whose bytes repeat; for every test that computes with torch."""
    numerics.deterministic("pinned", tiny.SEED)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, pinned: None) -> Path:
    """A Mistral of 100,000 parameters, pre-trained for a moment, with its tokenizer. Copy it before you change it."""
    from wronai import pretraining

    folder = tmp_path_factory.mktemp("base")
    texts = tiny.texts()
    numerics.deterministic("pinned", tiny.SEED)
    pretraining.from_scratch(texts[5:], texts[:5], tiny.SCRATCH, tiny.SEED, folder, tiny.ignore)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """The base's tokenizer with the ten tokens and the chat template."""
    from wronai import tokens

    folder = tmp_path_factory.mktemp("tokenizer")
    tokens.extend(tokens.load(base_folder)).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    from wronai import tokens

    return tokens.load(tokenizer_folder)


@pytest.fixture(scope="session")
def blocks_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """The packed blocks of `tiny.CONVERSATIONS`, in both splits."""
    from wronai import tokens

    folder = tmp_path_factory.mktemp("tokens")
    for split, examples in (("train", tiny.CONVERSATIONS), ("validation", tiny.CONVERSATIONS[:6])):
        packed, _ = tokens.blocks(tokens.load(tokenizer_folder), examples, tiny.BLOCK)
        tokens.write(packed, folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def tuned(
    tmp_path_factory: pytest.TempPathFactory, base_folder: Path, tokenizer_folder: Path, blocks_folder: Path
) -> tuple[Path, dict[str, Any]]:
    """The folder that finetune_qlora wrote to (adapter/, loss_curve.csv), and the metrics that it returned."""
    from stages.finetune_qlora import finetune_qlora

    folder = tmp_path_factory.mktemp("tuned")
    numerics.deterministic("pinned", tiny.SEED)
    metrics = finetune_qlora(
        blocks_folder,
        base_folder,
        tokenizer_folder,
        tiny.FINETUNE,
        tiny.SEED,
        folder / "checkpoints",
        folder / "adapter",
        folder / "loss_curve.csv",
        tiny.ignore,
        tiny.ignore,
    )
    return folder, metrics


@pytest.fixture(scope="session")
def adapter_folder(tuned: tuple[Path, dict[str, Any]]) -> Path:
    return tuned[0] / "adapter"


@pytest.fixture(scope="session")
def merged_folder(
    tmp_path_factory: pytest.TempPathFactory, base_folder: Path, adapter_folder: Path, tokenizer_folder: Path
) -> Path:
    """The adapter merged into the dequantized base."""
    from wronai import merging, tokens

    folder = tmp_path_factory.mktemp("merged")
    merging.merge(
        base_folder,
        adapter_folder,
        tokens.load(tokenizer_folder),
        tiny.FINETUNE.quantization,
        tiny.MERGE,
        folder,
        work=tmp_path_factory.mktemp("checkpoints"),
    )
    return folder


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundles of the benchmarks that the embedded default names."""
    from wronai import benchmarks, params

    root = Path(__file__).parent.parent
    settings = params.load(root / "params.yaml").evaluate
    folder = tmp_path_factory.mktemp("benchmarks")
    benchmarks.prepare(settings.tasks, root / settings.include_path, folder / "fetched", folder / "bundles")
    return folder / "bundles"


@pytest.fixture
def base_copy(tmp_path: Path, base_folder: Path) -> Path:
    """A copy of the base to damage."""
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


@pytest.fixture
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone in which the smallest graph has run, for one test of faults to break."""
    import faults

    folder = faults.prepared(tmp_path_factory)
    yield folder
    shutil.rmtree(folder)
