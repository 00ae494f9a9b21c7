"""Score one model on held-out text, and let it answer held-out questions: `python -m stages.score_text base`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from wronai import corpus, files, numerics, params, tracking


def score_text(
    model: Path,
    clean: Path,
    retention: Path,
    settings: params.Scoring,
    answers: params.Answers,
    max_bytes_per_source: int | None,
    seed: int,
    *,
    tuned: bool,
    out: Path,
) -> dict[str, Any]:
    """Write the nats of each held-out text to `out`/text.parquet, and each answer to `out`/answers.parquet.

    Texts are the documents and answers in the test split of `clean`, and the documents of other languages in the folder
    `retention`. The tuned model's answers are also scored in the WronAI format, and it answers in both registers.
    Answers are scored a second time after another's questions, which shows how much the question helps.
    Raises ValueError if there is nothing held out.
    """
    documents = corpus.read_table(clean / "documents" / "test.parquet", corpus.DOCUMENTS, "clean_text")
    examples = corpus.read_table(clean / "instructions" / "test.parquet", corpus.INSTRUCTIONS, "clean_text")
    if not documents or not examples:
        raise ValueError(
            f"{clean}: {len(documents)} documents and {len(examples)} instructions in the test split; evaluation needs "
            "some of both: raise clean.share_test, or add sources"
        )
    kept = read_retention(retention)

    import pandas as pd

    from wronai import backends, scoring

    documents, kept = (scoring.some(rows, max_bytes_per_source, settings.limit) for rows in (documents, kept))
    examples = examples[: settings.limit]
    engine = backends.open_model(model, settings)
    scored = [
        scoring.score_documents(engine, documents, settings.max_length).assign(kind="documents", format="plain"),
        scoring.score_documents(engine, kept, settings.max_length).assign(kind="retention", format="plain"),
    ]
    scored += [
        scoring.score_answers(engine, examples, settings.max_length, chat=chat).assign(
            kind="answers", format="wronai" if chat else "plain"
        )
        for chat in ([False, True] if tuned else [False])
    ]
    scored.append(
        scoring.score_answers(engine, scoring.exchanged(examples), settings.max_length, chat=tuned).assign(
            kind="answers to others", format="wronai" if tuned else "plain"
        )
    )
    out.mkdir(parents=True, exist_ok=True)
    pd.concat(scored, ignore_index=True).to_parquet(out / "text.parquet", index=False)
    drawn = scoring.sample(examples, answers.generations, seed)
    said = pd.DataFrame(_answers(engine, drawn, answers, seed, tuned=tuned))
    said.to_parquet(out / "answers.parquet", index=False)
    summary = {
        "documents": len(documents),
        "retention": len(kept),
        "answers": len(examples),
        "xz_bits_per_byte": scoring.xz_bits_per_byte(row["text"] for row in documents),
        "max_length": settings.max_length,
        "partial": settings.limit is not None,
    }
    files.write_json(out / "summary.json", summary)
    return summary


def _answers(
    engine: Any, drawn: list[dict[str, Any]], settings: params.Answers, seed: int, *, tuned: bool
) -> list[dict[str, Any]]:
    """A row for each answer: to each question as the tuned model would be asked, and to the samples in other ways."""
    from wronai import scoring

    samples = drawn[: settings.samples]
    ways: list[tuple[str, list[dict[str, Any]], str | None, bool]] = [("plain", samples, None, True)]
    if tuned:
        ways = [
            ("own", drawn, None, False),
            ("own greedy", drawn, None, True),
            ("formal", samples, "formal", True),
            ("informal", samples, "informal", True),
        ]
    rows = []
    for way, examples, register, greedy in ways:
        questions: Any = [(row["messages"][:1], register or row["register"]) for row in examples]
        found = scoring.answer(engine, questions, settings, seed, chat=tuned, greedy=greedy)
        rows += [
            {
                "id": example["id"],
                "way": way,
                "register": example["register"],
                "question": example["messages"][0]["content"],
                "reference": example["messages"][1]["content"],
                "answer": said.text,
                "tokens": said.tokens,
                "ended": said.ended,
                "closed": said.closed,
            }
            for example, said in zip(examples, found, strict=True)
        ]
    return rows


def read_retention(folder: Path) -> list[dict[str, Any]]:
    """The documents in the JSON Lines of `folder`, a source for each file. Raises ValueError for one that is wrong."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                found.append({"source": path.stem, "id": str(row["id"]), "text": str(row["text"])})
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} line {number}: expected a JSON object with id and text, found {line[:60]!r} ({error}); "
                    "evaluate.retention names its folder"
                ) from None
    if not found:
        raise ValueError(f"{folder} (evaluate.retention) holds no .jsonl file with documents")
    return found


if __name__ == "__main__":
    (model,) = sys.argv[1:]
    with tracking.stage("score_text", model) as (config, report):
        numerics.deterministic(config.numerics, config.seed)
        out = Path("data/scores") / model / "text"
        score_text(
            Path("models") / model,
            Path("data/clean"),
            Path(config.evaluate.retention),
            config.evaluate.scoring,
            config.evaluate.answers,
            config.evaluate.max_bytes_per_source,
            config.seed,
            tuned=model == "merged",
            out=out,
        )
        report.read(out / "summary.json")
