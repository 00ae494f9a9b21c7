"""A small Mistral and its tokenizer, trained from nothing on the clean documents: the base of the embedded default."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from wronai import params, tokens, training
from wronai.progress import Progress

SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2, as in Mistral


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A BPE tokenizer with byte fallback, built as Mistral's: no text is unknown, and decoding gives the text back.

    Spaces become "▁", and a text starts with one even where it has none, as does each part between special tokens: the
    first word of an answer is then the token that it is anywhere else. Digits stand alone.
    """
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer can only reserve the ids of the bytes as special tokens; in the tokenizer they are ordinary ones.
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        clean_up_tokenization_spaces=False,
    )


def from_scratch(
    texts: Sequence[str],
    validation: Sequence[str],
    settings: params.Scratch,
    seed: int,
    out: Path,
    log: Callable[..., None],
) -> dict[str, float | int]:
    """Pre-train a Mistral on `texts`, save it with its tokenizer to `out`, and return its metrics.

    Raises ValueError if the texts do not fill one block.
    """
    size = sum(len(text.encode()) for text in texts)
    print(f"training a tokenizer on {len(texts):,} documents, {size:,} bytes", flush=True)
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    print(f"encoding them with its {len(tokenizer):,} tokens", flush=True)
    (blocks, tokens_in), (held_out, _) = (
        _blocks(tokenizer, split, settings.block_size) for split in (texts, validation)
    )
    if not blocks or not held_out:
        raise ValueError(
            f"the clean documents hold {len(blocks)} training and {len(held_out)} validation blocks of "
            f"{settings.block_size} tokens (model.scratch.block_size); a base needs at least one of each: add documents"
        )
    disable_progress_bar()
    model = MistralForCausalLM(_mistral(settings, len(tokenizer)))
    pad = tokenizer.unk_token_id
    with tempfile.TemporaryDirectory() as work:
        training.train(
            model,
            datasets.Dataset.from_list(blocks),
            None,
            tokens.epochs(len(blocks), settings.max_steps * settings.per_device_train_batch_size, seed),
            {
                "max_steps": settings.max_steps,
                "per_device_train_batch_size": settings.per_device_train_batch_size,
                "learning_rate": settings.learning_rate,
                "lr_scheduler_type": "cosine",
                "warmup_steps": round(settings.warmup_ratio * settings.max_steps),
                "weight_decay": settings.weight_decay,
                "optim": "adamw_torch_fused",
                "adam_beta2": 0.95,
                "max_grad_norm": 1.0,
                "logging_steps": 10,
                "save_strategy": "no",
                "eval_strategy": "no",
                "seed": seed,
                "use_cpu": not torch.cuda.is_available(),
            },
            Path(work),
            pad_token_id=pad,
            what="pre-training",
            log=log,
        )
    progress = Progress("validation", len(held_out), "blocks")
    loss = training.mean_loss(model, held_out, pad, progress)
    progress.close()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "parameters": model.num_parameters(),
        "vocab_size": len(tokenizer),
        "documents": len(texts),
        "tokens": tokens_in,
        "tokens_in_blocks": len(blocks) * settings.block_size,
        "tokens_seen": settings.max_steps * settings.per_device_train_batch_size * settings.block_size,
        "validation_loss": loss,
    }


def _mistral(settings: params.Scratch, vocab_size: int) -> MistralConfig:
    return MistralConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        sliding_window=settings.sliding_window,
        max_position_embeddings=settings.max_position_embeddings,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        tie_word_embeddings=False,
    )


def _blocks(tokenizer: Any, texts: Sequence[str], size: int) -> tuple[list[dict[str, list[int]]], int]:
    """The texts one after another, each between its begin and end token, cut into full blocks of `size` tokens.

    Beside the blocks the tokens of the whole stream, of which the last, fewer than `size`, may fill no block.
    """
    stream: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []:
        stream += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    cut = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    return [{"input_ids": block, "labels": block, "position_ids": list(range(size))} for block in cut], len(stream)


def outline(settings: params.Scratch) -> Any:
    """The model that `from_scratch` makes, on the device "meta"."""
    with torch.device("meta"):
        return MistralForCausalLM(_mistral(settings, settings.vocab_size))
