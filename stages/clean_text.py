"""Keep the text worth training on, in three splits, and the rest with the reason why it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wronai import cleaning, corpus, params, tracking


def clean_text(raw: Path, clean: Path, rules: params.Clean, seed: int, benchmarks: Path) -> dict[str, Any]:
    """Write what passes `rules` to `clean`/documents and `clean`/instructions, the rest to `clean`/rejected.parquet.

    ValueError when nothing is kept, or more is dropped than `clean.max_share_dropped` allows.
    """
    instructions_raw = corpus.read_table(raw / "instructions.parquet", corpus.INSTRUCTIONS, "download_corpus")
    table = corpus.checked_table(raw / "documents.parquet", corpus.RAW_DOCUMENTS, "download_corpus")
    items = cleaning.read_benchmarks(benchmarks, rules.contamination_ngram)
    contamination = cleaning.Contamination(items)
    documents = cleaning.clean_documents(table, rules, seed, contamination)
    instructions = cleaning.clean_instructions(instructions_raw, rules, seed, contamination)
    outcomes = (
        ("documents", documents, corpus.DOCUMENTS),
        ("instructions", instructions, corpus.INSTRUCTIONS),
    )
    for role, tally, _ in outcomes:
        _check_share(role, tally, rules)
    for role, tally, schema in outcomes:
        for split, rows in corpus.by_split(tally.kept, tally.splits).items():
            corpus.write_table(rows, schema, clean / role / f"{split}.parquet")
    corpus.write_table(documents.rejected + instructions.rejected, corpus.REJECTED, clean / "rejected.parquet")
    return {
        "documents": _counts(documents),
        "instructions": _counts(instructions),
        "masked": dict(sorted((documents.masked + instructions.masked).items())),
        "encodings": dict(sorted(documents.encodings.items())),
        "documents_repaired": documents.repaired,
        "characters": sum(len(row["text"]) for row in documents.kept),
        "contamination": {
            item.name: {
                "items": item.items,
                "items_too_short": item.items_too_short,
                "documents": documents.contaminated[item.name],
                "instructions": instructions.contaminated[item.name],
            }
            for item in items
        },
    }


def _check_share(role: str, tally: cleaning.Tally, rules: params.Clean) -> None:
    read = len(tally.kept) + len(tally.rejected)
    if not read:
        raise ValueError(f"the raw corpus holds no {role}: expected a source of data.sources to give some")
    share = len(tally.rejected) / read
    if not tally.kept or share > rules.max_share_dropped:
        reason, times = Counter(row["reason"] for row in tally.rejected).most_common(1)[0]
        raise ValueError(
            f"clean.max_share_dropped is {rules.max_share_dropped}, and cleaning dropped {len(tally.rejected):,} of "
            f"{read:,} {role} ({share:.3f}); the reason that drops most is {reason} ({times:,}): loosen its rule, "
            "or leave the source out of data.sources"
        )


def _reasons(rejected: Iterable[corpus.Row]) -> dict[str, int]:
    return dict(sorted(Counter(row["reason"] for row in rejected).items()))


def _counts(tally: cleaning.Tally) -> dict[str, Any]:
    kept, rejected = len(tally.kept), len(tally.rejected)
    splits = Counter(tally.splits)
    sources = sorted({row["source"] for row in (*tally.kept, *tally.rejected)})
    return {
        "read": kept + rejected,
        "kept": kept,
        "share_dropped": round(rejected / (kept + rejected), 6),
        **{split: splits[split] for split in corpus.SPLITS},
        "dropped": _reasons(tally.rejected),
        "by_source": {
            source: {
                "kept": sum(row["source"] == source for row in tally.kept),
                "dropped": _reasons(row for row in tally.rejected if row["source"] == source),
            }
            for source in sources
        },
    }


if __name__ == "__main__":
    with tracking.stage("clean_text") as (config, report):
        metrics = clean_text(
            Path("data/raw"), Path("data/clean"), config.clean, config.seed, Path(config.evaluate.include_path)
        )
        report(metrics)
