"""Compare the tuned model with its base: benchmarks, bits per byte on held-out text, and answers to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wronai import corpus, numerics, params, tracking


def evaluate_benchmarks(
    base: Path, merged: Path, clean: Path, settings: params.Evaluate, seed: int, samples: Path
) -> dict[str, Any]:
    """Score the models in the folders `base` and `merged`, and write the answers to read to the JSON Lines `samples`.

    The tuned model is asked in the WronAI format by its own chat template, the base in plain text.
    """
    import torch

    from wronai import base as base_model
    from wronai import scoring, tokens

    models = {name: base_model.load(path, torch.float32).eval() for name, path in (("base", base), ("tuned", merged))}
    tokenizers = {"base": tokens.load(base), "tuned": tokens.load(merged)}
    documents = corpus.read_table(clean / "documents" / "test.parquet", corpus.DOCUMENTS, "clean_text")
    examples = corpus.read_table(clean / "instructions" / "test.parquet", corpus.INSTRUCTIONS, "clean_text")
    if not documents or not examples:
        raise ValueError(
            f"{clean}: {len(documents)} documents and {len(examples)} instructions in the test split; evaluation needs "
            "some of both: raise clean.share_test, or add sources"
        )
    items, on_documents, on_answers = {}, {}, {}
    for name, model in models.items():
        print(f"evaluating the {name} model")
        chat = name == "tuned"
        items[name] = scoring.benchmarks(model, tokenizers[name], settings, seed, chat=chat)
        on_documents[name] = scoring.score_documents(model, tokenizers[name], documents, settings.max_length)
        on_answers[name] = scoring.score_answers(model, tokenizers[name], examples, settings.max_length, chat=chat)
    asked = examples[: settings.generations]
    questions = [example["messages"][:1] for example in asked]
    tokenizer = tokenizers["tuned"]
    prompts = [
        tokenizer.apply_chat_template(
            question, register=example["register"], add_generation_prompt=True, tokenize=False
        )
        for question, example in zip(questions, asked, strict=True)
    ]
    answers = scoring.answer(models["tuned"], tokenizer, prompts, settings, seed)
    closed = [
        scoring.is_closed(ids, tokenizer, example["register"]) for ids, example in zip(answers, asked, strict=True)
    ]
    plain = [tokenizers["base"].bos_token + scoring.plain(question) for question in questions[: settings.samples]]
    tokenizers["base"].pad_token = tokenizer.pad_token
    before = scoring.answer(models["base"], tokenizers["base"], plain, settings, seed)
    samples.parent.mkdir(parents=True, exist_ok=True)
    with samples.open("w", encoding="utf-8") as file:
        for example, ids, base_ids, is_closed in zip(asked, answers, before, closed, strict=False):
            row = {
                "id": example["id"],
                "register": example["register"],
                "question": example["messages"][0]["content"],
                "reference": example["messages"][1]["content"],
                "tuned": tokenizer.decode(ids, skip_special_tokens=True),
                "closed": is_closed,
                "base": tokenizers["base"].decode(base_ids, skip_special_tokens=True),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    bits = {
        kind: scoring.compare_bits(scores["base"], scores["tuned"], settings.bootstrap_resamples, seed)
        for kind, scores in (("documents", on_documents), ("answers", on_answers))
    }
    return {
        "benchmarks": scoring.compare(items["base"], items["tuned"]),
        "num_fewshot": settings.num_fewshot,
        "bits_per_byte": {**bits, "documents_xz": scoring.xz_bits_per_byte(row["text"] for row in documents)},
        "generations": {
            "answers": len(answers),
            "closed": sum(closed) / len(closed),
            "mean_tokens": sum(len(ids) for ids in answers) / len(answers),
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
            Path("metrics/samples.jsonl"),
        )
        report(metrics)
