"""Compare the tuned model with its base: benchmarks, bits per byte on held-out text, and answers to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wronai import corpus, numerics, params, tracking


def evaluate_benchmarks(
    base: Path, merged: Path, clean: Path, settings: params.Evaluate, seed: int, scores: Path, samples: Path
) -> dict[str, Any]:
    """Score the models in the folders `base` and `merged`, and write the answers to read to the JSON Lines `samples`.

    Every single score of both goes to the folder `scores`: benchmarks, documents and answers, each a Parquet file.
    The tuned model is asked in the WronAI format by its own chat template, the base in plain text. One model is held at
    a time. Raises ValueError if there is nothing held out to score them on.
    """
    import torch

    from wronai import base as base_model
    from wronai import scoring, tokens

    documents = corpus.read_table(clean / "documents" / "test.parquet", corpus.DOCUMENTS, "clean_text")
    examples = corpus.read_table(clean / "instructions" / "test.parquet", corpus.INSTRUCTIONS, "clean_text")
    if not documents or not examples:
        raise ValueError(
            f"{clean}: {len(documents)} documents and {len(examples)} instructions in the test split; evaluation needs "
            "some of both: raise clean.share_test, or add sources"
        )
    for path in (base, merged):
        base_model.check(path)  # before hours go into the first of the two
    asked = scoring.sample(examples, settings.generations, seed)
    items, on_documents, on_answers, answers, tokenizers = {}, {}, {}, {}, {}
    for name, path in (("base", base), ("tuned", merged)):
        print(f"evaluating the {name} model", flush=True)
        chat = name == "tuned"
        tokenizer = tokenizers[name] = tokens.load(path)
        model = base_model.load(path, getattr(torch, settings.dtype), device=base_model.device()).eval()
        items[name] = scoring.benchmarks(model, tokenizer, settings, seed, chat=chat)
        on_documents[name] = scoring.score_documents(model, tokenizer, documents, settings.max_length)
        on_answers[name] = scoring.score_answers(model, tokenizer, examples, settings.max_length, chat=chat)
        questions = [(example["messages"][:1], example["register"]) for example in asked]
        if not chat:
            questions = questions[: settings.samples]  # to read beside the tuned ones; a base has nothing to close
        prompts = [scoring.asked(tokenizer, turns, register, chat=chat) for turns, register in questions]
        answers[name] = scoring.answer(model, tokenizer, prompts, settings, seed)
        del model
    before, after = (
        [tokenizers[name].decode(ids, skip_special_tokens=True) for ids in answers[name]] for name in answers
    )
    closed = [
        scoring.is_closed(ids, tokenizers["tuned"], example["register"])
        for ids, example in zip(answers["tuned"], asked, strict=True)
    ]
    samples.parent.mkdir(parents=True, exist_ok=True)
    with samples.open("w", encoding="utf-8") as file:
        for example, of_base, of_tuned, is_closed in zip(asked, before, after, closed, strict=False):
            row = {
                "id": example["id"],
                "register": example["register"],
                "question": example["messages"][0]["content"],
                "reference": example["messages"][1]["content"],
                "tuned": of_tuned,
                "closed": is_closed,
                "base": of_base,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    scores.mkdir(parents=True, exist_ok=True)
    for kind, found, on in (
        ("benchmarks", items, ["task", "item", "metric"]),
        ("documents", on_documents, ["id", "bytes"]),
        ("answers", on_answers, ["id", "bytes"]),
    ):
        scoring.paired(found["base"], found["tuned"], on).to_parquet(scores / f"{kind}.parquet", index=False)
    bits = {
        kind: scoring.compare_bits(found["base"], found["tuned"], settings.bootstrap_resamples, seed)
        for kind, found in (("documents", on_documents), ("answers", on_answers))
    }
    lengths = [len(ids) for ids in answers["tuned"]]
    return {
        "benchmarks": scoring.compare(items["base"], items["tuned"]),
        "num_fewshot": settings.num_fewshot,
        "bits_per_byte": {**bits, "documents_xz": scoring.xz_bits_per_byte(row["text"] for row in documents)},
        "generations": {
            "answers": len(asked),
            "closed": sum(closed) / len(closed),
            "mean_tokens": sum(lengths) / len(lengths),
        },
    }


if __name__ == "__main__":
    with tracking.stage("evaluate_benchmarks") as (config, report):
        numerics.deterministic(config.numerics, config.seed)
        metrics = evaluate_benchmarks(
            Path("models/base"),
            Path("models/merged"),
            Path("data/clean"),
            config.evaluate,
            config.seed,
            Path("data/scores"),
            Path("metrics/samples.jsonl"),
        )
        report(metrics)
