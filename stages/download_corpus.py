"""Bring every source of text together as found, with a manifest of where each byte came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wronai import corpus, files, params, sources, tracking
from wronai.progress import Progress


def download_corpus(
    wanted: Sequence[params.Source], raw: Path, downloads: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the tables documents and instructions, and manifest.json, to `raw`: from all of `wanted` or not at all.

    What comes over the network rests in `downloads` by its sha256, so that a second run fetches nothing.
    """
    harvests = [sources.Harvest() for _ in wanted]
    try:
        with (
            corpus.PartsWriter(raw / "documents", corpus.RAW_DOCUMENTS) as documents,
            corpus.PartsWriter(raw / "instructions", corpus.INSTRUCTIONS) as instructions,
        ):
            for number, (source, harvest) in enumerate(zip(wanted, harvests, strict=True)):
                progress = Progress(f"reading {source.name}", None, "texts")
                for item in sources.read(source, f"data.sources[{number}]", downloads, say, harvest):
                    (documents if isinstance(item, corpus.Document) else instructions).add(item)
                    progress.add(1)
                progress.close()
    except BaseException:
        shutil.rmtree(raw)
        raise
    by_source = {source.name: _counts(harvest) for source, harvest in zip(wanted, harvests, strict=True)}
    manifest = [
        {
            "name": source.name,
            "kind": source.kind,
            "licence": source.licence,
            "revision": harvest.revision,
            "date": harvest.date,
            **by_source[source.name],
            "skipped": dict(sorted(harvest.skipped.items())),
            "files": harvest.files,
            "ignored": harvest.ignored,
        }
        for source, harvest in zip(wanted, harvests, strict=True)
    ]
    files.write_json(raw / "manifest.json", manifest)
    return {
        "documents": sum(harvest.documents for harvest in harvests),
        "instructions": sum(harvest.instructions for harvest in harvests),
        "bytes": sum(counts["bytes"] for counts in by_source.values()),
        "files": sum(len(harvest.files) for harvest in harvests),
        "files_ignored": sum(len(harvest.ignored) for harvest in harvests),
        "by_source": by_source,
    }


def _counts(harvest: sources.Harvest) -> dict[str, Any]:
    return {
        "documents": harvest.documents,
        "instructions": harvest.instructions,
        "bytes": sum(file["bytes"] for file in harvest.files),
    }


if __name__ == "__main__":
    with tracking.stage("download_corpus") as (config, report):
        report(download_corpus(config.data.sources, Path("data/raw"), Path("data/downloads"), print))
        for source in json.loads(Path("data/raw/manifest.json").read_text(encoding="utf-8")):
            content = {name: source.pop(name) for name in ("files", "ignored", "skipped")}
            report.source(source["name"], content, {"kind_of_source": source.pop("kind"), **source})
