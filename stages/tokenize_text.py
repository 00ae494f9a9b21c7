"""Give the tokenizer the WronAI format, and pack instructions and documents into the blocks that are trained on."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from wronai import corpus, params, tracking


def tokenize_text(
    clean: Path, base: Path, settings: params.Tokenize, seed: int, tokenizer_out: Path, tokens_out: Path
) -> dict[str, Any]:
    """Write the tokenizer to `tokenizer_out`, and the blocks of the train and validation split to `tokens_out`.

    Loss falls on the answers of instructions, and on all of documents. Both splits hold all of their instructions and,
    drawn from `seed`, as many documents as `settings.mixture` asks for, in blocks of their own. Raises ValueError if a
    split holds nothing of a kind that is asked for, or loses more examples than `settings` allow.
    """
    from wronai import tokens

    tokenizer = tokens.extend(tokens.load(base))
    tokens_out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    mixed: dict[str, Any] = {}
    for split in ("train", "validation"):
        parts: list[tokens.Blocks] = []
        tokens_in = 0  # of instructions
        if settings.mixture.instructions:
            packed, ledger = _instructions(tokenizer, clean, split, settings)
            metrics[split], tokens_in = ledger.metrics(), ledger.tokens_kept
            parts.append(packed)
        if settings.mixture.documents:
            packed, drawn = _documents(tokenizer, clean, split, settings, seed, tokens_in, tokens_out)
            mixed[split] = drawn.metrics(len(packed), settings.max_length, tokens_in)
            parts.append(packed)
        tokens.write(chain.from_iterable(part.arrays() for part in parts), tokens_out / f"{split}.parquet")
    documents = corpus.iterate_table(clean / "documents" / "validation.parquet", corpus.DOCUMENTS, "clean_text")
    metrics["documents"] = tokens.fertility(tokenizer, (document["text"] for document in documents))
    tokenizer.save_pretrained(tokenizer_out)
    return metrics | ({"mixture": mixed} if mixed else {}) | {"vocab_size": len(tokenizer)}


def _instructions(tokenizer: Any, clean: Path, split: str, settings: params.Tokenize) -> tuple[Any, Any]:
    """Blocks of all instructions of the split, and their ledger."""
    from wronai import tokens

    examples = corpus.iterate_table(clean / "instructions" / f"{split}.parquet", corpus.INSTRUCTIONS, "clean_text")
    packed, ledger = tokens.blocks(tokenizer, examples, settings.max_length, packing=settings.packing)
    if not ledger.examples:
        raise ValueError(f"{clean}: no instruction in the {split} split; add instructions to data.sources")
    found = ledger.metrics()
    for lost in ("truncated", "dropped"):
        share, allowed = found[f"share_{lost}"], getattr(settings, f"max_share_{lost}")
        if share > allowed:
            raise ValueError(
                f"{share:.3f} of the {split} examples are {lost} at {settings.max_length} tokens, the longest has "
                f"{ledger.longest}, and {ledger.with_special_tokens} hold a special token; "
                f"tokenize.max_share_{lost} allows {allowed}: raise tokenize.max_length"
            )
    return packed, ledger


def _documents(
    tokenizer: Any, clean: Path, split: str, settings: params.Tokenize, seed: int, tokens_in: int, work: Path
) -> tuple[Any, Any]:
    """Blocks of the documents that belong beside `tokens_in` tokens of instructions, or of all; and what was drawn."""
    from wronai import mixture, tokens

    shares = settings.mixture
    wanted = round(tokens_in * shares.documents / shares.instructions) if shares.instructions else None
    path = corpus.checked_table(clean / "documents" / f"{split}.parquet", corpus.DOCUMENTS, "clean_text")
    drawn = mixture.draw(tokenizer, path, settings.max_length, wanted, seed, work)
    if not len(drawn.pieces):
        raise ValueError(
            f"{clean}: no document to train on in the {split} split; add documents to data.sources, or set "
            "tokenize.mixture.documents to 0"
        )
    if wanted is not None and drawn.tokens < wanted:
        print(
            f"{split}: the documents hold {drawn.tokens:,} tokens, all of them taken; tokenize.mixture asks for "
            f"{wanted:,} beside {tokens_in:,} of instructions",
            flush=True,
        )
    bins = tokens.place(drawn.pieces.lengths.tolist(), settings.max_length, packing=settings.packing)
    return tokens.Blocks(drawn.pieces, bins), drawn


if __name__ == "__main__":
    with tracking.stage("tokenize_text") as (config, report):
        metrics = tokenize_text(
            Path("data/clean"),
            Path("models/base"),
            config.tokenize,
            config.seed,
            Path("models/tokenizer"),
            Path("data/tokens"),
        )
        report(metrics)
