"""Give the tokenizer the WronAI format, and pack the instructions into blocks with loss on the answers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wronai import corpus, params, tracking


def tokenize_text(
    clean: Path, base: Path, settings: params.Tokenize, tokenizer_out: Path, tokens_out: Path
) -> dict[str, Any]:
    """Write the tokenizer to `tokenizer_out`, and the blocks of the train and validation split to `tokens_out`.

    Raises ValueError if a split holds no example, or loses more than `settings` allow.
    """
    from wronai import tokens

    tokenizer = tokens.extend(tokens.load(base))
    metrics: dict[str, Any] = {}
    for split in ("train", "validation"):
        examples = corpus.read_table(clean / "instructions" / f"{split}.parquet", corpus.INSTRUCTIONS, "clean_text")
        if not examples:
            raise ValueError(f"{clean}: no instruction in the {split} split; add instructions to data.sources")
        blocks, ledger = tokens.blocks(tokenizer, examples, settings.max_length)
        metrics[split] = ledger.metrics()
        for lost in ("truncated", "dropped"):
            share, allowed = metrics[split][f"share_{lost}"], getattr(settings, f"max_share_{lost}")
            if share > allowed:
                raise ValueError(
                    f"{share:.3f} of the {split} examples are {lost} at {settings.max_length} tokens, the longest has "
                    f"{ledger.longest}, and {ledger.with_special_tokens} hold a special token; "
                    f"tokenize.max_share_{lost} allows {allowed}: raise tokenize.max_length"
                )
        tokens.write(blocks, tokens_out / f"{split}.parquet")
    documents = corpus.read_table(clean / "documents" / "validation.parquet", corpus.DOCUMENTS, "clean_text")
    metrics["documents"] = tokens.fertility(tokenizer, [document["text"] for document in documents])
    tokenizer.save_pretrained(tokenizer_out)
    return metrics | {"vocab_size": len(tokenizer)}


if __name__ == "__main__":
    with tracking.stage("tokenize_text") as (config, report):
        metrics = tokenize_text(
            Path("data/clean"), Path("models/base"), config.tokenize, Path("models/tokenizer"), Path("data/tokens")
        )
        report(metrics)
