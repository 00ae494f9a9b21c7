"""Keep the text worth training on, in three splits, and the rest with the reason why it went."""

from __future__ import annotations

import csv
import shutil
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wronai import cleaning, contamination, corpus, params, rules_page, tracking
from wronai.progress import Progress

EDGES = sorted({round(2 ** (quarter / 4)) for quarter in range(160)})  # characters, of the bins of lengths; up to 2^40


def clean_text(raw: Path, clean: Path, rules: params.Clean, seed: int, benchmarks: Path) -> dict[str, Any]:
    """Write what passes `rules` to `clean`/documents and `clean`/instructions, the rest to `clean`/rejected.parquet.

    A page to judge the rules by is `clean`/rules.html. ValueError when nothing is kept, or more is dropped than
    `clean.max_share_dropped` allows.
    """
    documents = _parts(raw / "documents", corpus.RAW_DOCUMENTS)
    instructions = _parts(raw / "instructions", corpus.INSTRUCTIONS)
    items = contamination.read_benchmarks(benchmarks, rules.contamination_ngram)
    cleaner = cleaning.Cleaner(rules, seed, contamination.Matcher(items))
    cleaning.start(rules)
    try:
        judged = []
        for judge, parts, role in (
            (cleaning.judge_documents, documents, "documents"),
            (cleaning.judge_instructions, instructions, "instructions"),
        ):
            progress = Progress("cleaning", corpus.count_rows(parts), role)
            judged.append(judge(parts, cleaner, clean / "runs" / role, progress.add))
            progress.close()
        for of_role in judged:
            _check_share(of_role, rules)
        examples = rules_page.Examples()
        with corpus.TableWriter(clean / "rejected.parquet", corpus.REJECTED) as rejects:
            for of_role, schema in zip(judged, (corpus.DOCUMENTS, corpus.INSTRUCTIONS), strict=True):
                cleaning.write(of_role, schema, clean / of_role.role, rejects, examples)
    except BaseException:
        shutil.rmtree(clean, ignore_errors=True)
        raise
    shutil.rmtree(clean / "runs")
    metrics = _metrics(judged, items)
    histograms = [histogram for of_role in judged for histogram in of_role.histograms]
    (clean / "rules.html").write_text(rules_page.page(metrics, histograms, examples), encoding="utf-8")
    return metrics


def write_lengths(documents: Path, out: Path) -> None:
    """How many of the kept documents in the folder `documents` are how long, by source, as the CSV file `out`.

    Lengths are in characters, four bins to each doubling, from the shortest document to the longest: a row for each
    source and bin.
    """
    counts: dict[str, Counter[int]] = {}
    for split in corpus.SPLITS:
        for batch in pq.ParquetFile(documents / f"{split}.parquet").iter_batches(columns=["source", "text"]):
            lengths = pc.utf8_length(batch.column("text")).to_pylist()
            for source, length in zip(batch.column("source").to_pylist(), lengths, strict=True):
                counts.setdefault(source, Counter())[bisect(EDGES, length) - 1] += 1
    bins = {number for of_source in counts.values() for number in of_source}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["source", "from_characters", "below_characters", "documents"])
        for source in sorted(counts):
            for number in range(min(bins), max(bins) + 1):
                writer.writerow([source, EDGES[number], EDGES[number + 1], counts[source][number]])


def _parts(folder: Path, schema: pa.Schema) -> list[Path]:
    parts = corpus.checked_parts(folder, schema, "download_corpus")
    if not corpus.count_rows(parts):
        raise ValueError(f"the raw corpus holds no {folder.name}: expected a source of data.sources to give some")
    return parts


def _check_share(judged: cleaning.Judged, rules: params.Clean) -> None:
    dropped = Counter(reason for reason in judged.reasons if reason is not None)
    read = len(judged.reasons)
    share = dropped.total() / read
    if dropped.total() == read or share > rules.max_share_dropped:
        reason, times = dropped.most_common(1)[0]
        raise ValueError(
            f"clean.max_share_dropped is {rules.max_share_dropped}, and cleaning dropped {dropped.total():,} of "
            f"{read:,} {judged.role} ({share:.3f}); the reason that drops most is {reason} ({times:,}): loosen its "
            "rule, or leave the source out of data.sources"
        )


def _metrics(judged: Sequence[cleaning.Judged], items: Sequence[contamination.Benchmark]) -> dict[str, Any]:
    documents, instructions = judged
    facts = documents.facts
    encodings = Counter(name for name in facts.column("encoding").to_pylist() if name)
    return {
        "documents": _counts(documents),
        "instructions": _counts(instructions),
        "masked": dict(sorted((documents.masked() + instructions.masked()).items())),
        "encodings": dict(sorted(encodings.items())),
        "documents_repaired": sum(facts.column("repaired").to_pylist()),
        "documents_cut": sum(cut > 0 for cut in facts.column("cut").to_pylist()),
        "characters_cut": sum(facts.column("cut").to_pylist()),
        "characters": sum(facts.column("length").filter(documents.kept).to_pylist()),
        "contamination": {
            item.name: {
                "items": item.items,
                "items_too_short": item.items_too_short,
                "documents": int(documents.contaminated[number]),
                "instructions": int(instructions.contaminated[number]),
            }
            for number, item in enumerate(items)
        },
    }


def _counts(judged: cleaning.Judged) -> dict[str, Any]:
    kept, dropped = Counter[str](), Counter[tuple[str, str]]()
    for source, reason in zip(judged.facts.column("source").to_pylist(), judged.reasons, strict=True):
        if reason is None:
            kept[source] += 1
        else:
            dropped[source, reason] += 1
    reasons = Counter[str]()
    for (_, reason), times in dropped.items():
        reasons[reason] += times
    splits = Counter(judged.splits[judged.kept.to_numpy(zero_copy_only=False)])
    read = kept.total() + dropped.total()
    return {
        "read": read,
        "kept": kept.total(),
        "share_dropped": round(dropped.total() / read, 6),
        **{split: splits[split] for split in corpus.SPLITS},
        "dropped": dict(sorted(reasons.items())),
        "by_source": {
            source: {
                "kept": kept[source],
                "dropped": {reason: times for (of, reason), times in sorted(dropped.items()) if of == source},
            }
            for source in sorted({*kept, *(of for of, _ in dropped)})
        },
    }


if __name__ == "__main__":
    with tracking.stage("clean_text") as (config, report):
        metrics = clean_text(Path("data/raw"), Path("data/clean"), config.clean, config.seed, Path("data/benchmarks"))
        write_lengths(Path("data/clean/documents"), Path("metrics/document_lengths.csv"))
        report(metrics)
