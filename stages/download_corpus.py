"""Bring every source of text together as found, with a manifest of where each byte came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wronai import corpus, params, sources, tracking


def download_corpus(
    wanted: Sequence[params.Source], raw: Path, downloads: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write documents.parquet, instructions.parquet and manifest.json to `raw`, from all of `wanted` or not at all.

    What comes over the network rests in `downloads` by its sha256, so that a second run fetches nothing.
    """
    harvests = [sources.collect(source, f"data.sources[{i}]", downloads, say) for i, source in enumerate(wanted)]
    manifest = [
        {
            "name": source.name,
            "kind": source.kind,
            "licence": source.licence,
            "files": harvest.files,
            "ignored": harvest.ignored,
            "documents": len(harvest.documents),
            "instructions": len(harvest.instructions),
        }
        for source, harvest in zip(wanted, harvests, strict=True)
    ]
    documents = [document for harvest in harvests for document in harvest.documents]
    instructions = [instruction for harvest in harvests for instruction in harvest.instructions]
    corpus.write_table(corpus.as_rows(documents), corpus.RAW_DOCUMENTS, raw / "documents.parquet")
    corpus.write_table(corpus.as_rows(instructions), corpus.INSTRUCTIONS, raw / "instructions.parquet")
    tracking.write_json(raw / "manifest.json", manifest)
    return {
        "documents": len(documents),
        "instructions": len(instructions),
        "bytes": sum(file["bytes"] for harvest in harvests for file in harvest.files),
        "files": sum(len(harvest.files) for harvest in harvests),
        "files_ignored": sum(len(harvest.ignored) for harvest in harvests),
        "by_source": {
            source.name: {
                "documents": len(harvest.documents),
                "instructions": len(harvest.instructions),
                "bytes": sum(file["bytes"] for file in harvest.files),
            }
            for source, harvest in zip(wanted, harvests, strict=True)
        },
    }


if __name__ == "__main__":
    with tracking.stage("download_corpus") as (config, report):
        report(download_corpus(config.data.sources, Path("data/raw"), Path("data/downloads"), print))
