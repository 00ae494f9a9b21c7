"""Make or fetch the base model: pre-trained on the clean documents, from a local folder, or from a hub revision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wronai import corpus, numerics, params, tracking


def prepare_base(clean: Path, model: params.Model, seed: int, out: Path, log: Callable[..., None]) -> dict[str, Any]:
    """Write the base that `model.base` asks for to the folder `out`, and check that it can be tuned."""
    from wronai import base  # torch reads its numerics as it is imported, after tracking.stage has chosen them

    metrics: dict[str, Any] = {"base": model.base}
    if model.base == "scratch":
        train, validation = (_texts(clean / "documents" / f"{split}.parquet") for split in ("train", "validation"))
        metrics |= base.from_scratch(train, validation, model.scratch, seed, out, log)
    elif model.base == "local":
        base.from_local(Path(model.path or ""), out)
    else:
        base.from_hub(model.repository or "", model.revision or "", out)
        metrics |= {"repository": model.repository, "revision": model.revision}
    return metrics | base.check(out)


def _texts(path: Path) -> list[str]:
    return [row["text"] for row in corpus.read_table(path, corpus.DOCUMENTS, "clean_text")]


if __name__ == "__main__":
    with tracking.stage("prepare_base") as (config, report):
        numerics.deterministic(config.numerics, config.seed)
        report(prepare_base(Path("data/clean"), config.model, config.seed, Path("models/base"), report.log))
