"""Merge an adapter into its base, and measure that the merged model says what the adapter on 4 bits says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer

from wronai import base, params, qlora, tokens, training


def merged_weights(
    live: Any, original: Any, base_weights: Literal["dequantized", "original"]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 value of each weight that the adapter of `live` changes, by the names of the base.

    `live` is the adapter on the 4-bit base, `original` the base before quantization. The adapter was trained on what
    the 4 bits say, so `dequantized` adds its delta to that; `original` adds it to weights it never saw. A layer that
    was quantized but not adapted is given too: the merged model must hold what training held.
    """
    dense = dict(original.named_parameters())
    for name, module in live.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            full = dense[f"{name}.weight"].data.float() if base_weights == "original" else _dequantized(weight)
            yield f"{name}.weight", full + module.get_delta_weight("default").float()
        elif isinstance(module, TrainableTokensLayer):
            rows = module.get_base_layer().weight.data.float().clone()
            rows[module.token_indices["default"]] = module.trainable_tokens_delta["default"].data.float()
            yield f"{name.removesuffix('.token_adapter')}.weight", rows
        elif _is_4bit(module) and not name.endswith(".base_layer") and base_weights == "dequantized":
            yield f"{name}.weight", _dequantized(module.weight)


def _is_4bit(module: Any) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def _dequantized(weight: Any) -> torch.Tensor:
    dense: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return dense.float()


@torch.no_grad()
def merge(
    base_path: Path,
    adapter: Path,
    tokenizer: Any,
    quantization: params.Quantization,
    seed: int,
    settings: params.Merge,
    out: Path,
) -> dict[str, int]:
    """Write the merged model, in `settings.dtype`, with `tokenizer` and its chat template to the folder `out`.

    Returns how many tensors of the base were written anew. Raises ValueError if an adapter tensor found no place.
    """
    live = qlora.load_adapter(qlora.load_quantized(base_path, tokenizer, quantization, seed), adapter)
    merged = base.load(base_path, torch.float32)
    qlora.add_rows(merged, tokenizer, base_path, seed)
    weights = dict(merged.named_parameters())
    changed = 0
    for name, value in merged_weights(live, merged, settings.base_weights):
        weights[name].data.copy_(value)
        changed += 1
    adapted = [module for module in live.modules() if isinstance(module, LoraLayer | TrainableTokensLayer)]
    consumed = sum(2 if isinstance(module, LoraLayer) else 1 for module in adapted)
    tensors = len(qlora.adapter_tensors(adapter))
    if consumed != tensors:
        raise ValueError(
            f"{adapter}: the merge consumed {consumed} of its {tensors} tensors; it knows LoRA and token rows only"
        )
    merged.to(getattr(torch, settings.dtype))
    merged.config.dtype = settings.dtype
    merged.generation_config.pad_token_id = merged.config.pad_token_id = tokenizer.pad_token_id
    merged.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"tensors_written": changed, "adapter_tensors": tensors}


@torch.no_grad()
def parity(live: Any, merged: Any, blocks: Any, pad_token_id: int) -> dict[str, float | int]:
    """How far apart `live`, the adapter on 4 bits, and `merged` are on `blocks`.

    The largest difference of logits, the mean Kullback-Leibler divergence of merged from live in nats, and the share
    of positions where both hold the same token most likely.
    """
    largest, divergence, equal, positions = 0.0, 0.0, 0, 0
    for block in blocks:
        batch = training.collate([block], pad_token_id)
        batch.pop("labels")
        ours, theirs = (
            model(**{key: value.to(model.device) for key, value in batch.items()}, use_cache=False)
            .logits[0]
            .float()
            .cpu()
            for model in (live, merged)
        )
        largest = max(largest, float((ours - theirs).abs().max()))
        ours, theirs = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        # By position first: the bytes of a sum over a whole matrix depend on the number of threads.
        divergence += math.fsum((ours.exp() * (ours - theirs)).sum(-1).tolist())
        equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        positions += len(ours)
    return {
        "max_logit_difference": largest,
        "mean_kl": divergence / positions,
        "equal_next_tokens": equal / positions,
        "positions": positions,
    }


def check_parity(measured: dict[str, float | int], settings: params.Merge) -> None:
    """Raise ValueError if `measured` by `parity` is worse than `settings` allow."""
    wrong = []
    if not measured["equal_next_tokens"] >= settings.min_equal_next_tokens:  # so that NaN is worse than any threshold
        wrong.append(
            f"equal next tokens {measured['equal_next_tokens']:.4f}, below merge.min_equal_next_tokens, "
            f"{settings.min_equal_next_tokens}"
        )
    if not measured["mean_kl"] <= settings.max_mean_kl:
        wrong.append(f"mean KL {measured['mean_kl']:.2e} nats, above merge.max_mean_kl, {settings.max_mean_kl}")
    if wrong:
        raise ValueError("the merged model does not say what the adapter on 4 bits says: " + "; ".join(wrong))


def check_contract(merged: Path, examples: list[dict[str, Any]], trained: Any) -> dict[str, int]:
    """Whether the folder `merged` alone gives the very token ids of training; returns what was compared.

    `examples` (id, register, messages) are encoded by its own chat template, as a user's transformers would, and by
    `trained`, the tokenizer of the training tokens; and their end tokens must all be supervised. Those that hold a
    special token were not trained on. Raises ValueError.
    """
    examples = [example for example in examples if not tokens.forges(trained, example["messages"])]
    served = tokens.load(merged)
    end = [*served.convert_tokens_to_ids(["</answer>", "</polish>"]), served.eos_token_id]
    compared = 0
    for example in examples:
        ids, labels = tokens.encode(trained, example["messages"], example["register"])
        serving = served.apply_chat_template(example["messages"], register=example["register"], return_dict=True)[
            "input_ids"
        ]
        if serving != ids:
            raise ValueError(
                f"{merged}: its chat template gives other token ids than training for {example['id']}: "
                f"{serving[:12]}…, trained on {ids[:12]}…"
            )
        closing = [token for token in labels if token in end]
        answers = len(example["messages"]) // 2
        if closing != [end[0]] * answers + end[1:]:
            raise ValueError(
                f"{example['id']}: not every end token is supervised: labels hold {closing}, expected "
                f"{answers} × {end[0]}, then {end[1:]}"
            )
        compared += len(ids)
    return {"contract_examples": len(examples), "contract_tokens": compared}
