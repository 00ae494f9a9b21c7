"""Make or fetch the base model: pre-trained on the clean documents, from a local folder, or from a hub commit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wronai import corpus, numerics, params, tracking


def prepare_base(
    clean: Path,
    model: params.Model,
    target_modules: Sequence[str],
    seed: int,
    downloads: Path,
    out: Path,
    log: Callable[..., None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the base that `model.base` asks for to the folder `out`, and check that it can be tuned.

    That it has the layers `target_modules` is checked before a base is trained or its weights are fetched. What comes
    from the hub rests in `downloads`.
    """
    from wronai import (  # torch reads its numerics as it is imported, after tracking.stage chose them
        base,
        delivery,
        pretraining,
    )

    if model.base == "local" and Path(model.path or "").resolve() == out.resolve():
        raise ValueError(f"model.path: {model.path} is where this stage puts the base; name the folder it comes from")
    if out.is_dir():
        shutil.rmtree(out)  # as DVC does: nothing may be written through a link that an earlier run left
    metrics: dict[str, Any] = {"base": model.base}
    if model.base == "scratch":
        base.check_targets(pretraining.outline(model.scratch), target_modules)
        train, validation = (_texts(clean / "documents" / f"{split}.parquet") for split in ("train", "validation"))
        metrics |= pretraining.from_scratch(train, validation, model.scratch, seed, out, log)
    elif model.base == "local":
        delivery.from_local(Path(model.path or ""), out, say)
        base.check_targets(base.outline(out), target_modules)
    else:

        def fits(folder: Path) -> None:
            base.check_targets(base.outline(folder), target_modules)

        delivery.from_hub(model.repository or "", model.revision or "", downloads, out, say, fits)
        metrics |= {"repository": model.repository, "revision": model.revision}
    return metrics | base.check(out)


def _texts(path: Path) -> list[str]:
    return [row["text"] for row in corpus.read_table(path, corpus.DOCUMENTS, "clean_text")]


if __name__ == "__main__":
    with tracking.stage("prepare_base") as (config, report):
        numerics.deterministic(config.numerics, config.seed)
        metrics = prepare_base(
            Path("data/clean"),
            config.model,
            config.finetune.lora.target_modules,
            config.seed,
            tracking.store_root() / "data/downloads",
            Path("models/base"),
            report.log,
            print,
        )
        report(metrics)
