"""The base model: checked before anything is built on it, and loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from wronai import shards, tokens

FILES = (  # of a base, beside its weights; the chat template is the project's own
    shards.INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# model_type of the architectures that are tested. Their logits are the head's product with the last hidden states and
# nothing more, and nothing scales what passes between their layers: wronai.vocabulary and wronai.streamed rely on it.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
STORED = ("BF16", "F16", "F32")  # types of weights in safetensors that are numbers as they stand


def outline(path: Path) -> Any:
    """The model whose configuration and tokenizer are in the folder `path`, on the device "meta": no weight is read.

    Raises ValueError or FileNotFoundError if it is none that this pipeline can tune: of another family than FAMILIES,
    quantized already, or with a tokenizer that has more tokens than the embedding has rows.
    """
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no config.json; expected the folder of a model as transformers saves it")
    try:
        described = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{file}: damaged; expected a JSON object") from None
    if (family := described.get("model_type")) not in FAMILIES:
        raise ValueError(f"{file}: model_type is {family!r}; expected one of {', '.join(FAMILIES)}")
    if quantized := described.get("quantization_config"):
        raise ValueError(
            f"{file}: quantized already (quant_method {dict(quantized).get('quant_method')!r}); expected full weights, "
            "which finetune_qlora quantizes itself"
        )
    model = load(path, torch.float32, device="meta")
    tokenizer = tokens.load(path)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, and the embedding {rows} rows: "
            "they do not belong together"
        )
    return model


def linears(model: Any) -> dict[str, torch.nn.Linear]:
    """The layers that quantization touches and LoRA may sit on, by name: all linear ones but the head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def check_targets(model: Any, target_modules: Sequence[str]) -> None:
    """ValueError if one of `target_modules` is not the last part of the name of a linear layer of `model`."""
    there = sorted({name.rpartition(".")[2] for name in linears(model)})
    if unknown := [name for name in target_modules if name not in there]:
        raise ValueError(
            f"finetune.lora.target_modules: the base has no linear layer {', '.join(unknown)}; "
            f"it has {', '.join(there)}"
        )


def check(path: Path) -> dict[str, float | int]:
    """Whether the folder `path` holds a base that this pipeline can tune; returns its size and that of its vocabulary.

    Reads the configuration, the tokenizer and the headers of the weights, so it takes no memory to speak of. Beside
    what `outline` raises, ValueError or FileNotFoundError if the weights are not whole: no safetensors, or not all that
    the index names, or one that is damaged, or a weight that is missing, of another shape, or no plain number.
    """
    stored: dict[str, tuple[list[int], str]] = {}
    for name in shards.weight_files_in(path):
        try:
            # Reads the header, and whether the file is as long as it says.
            with safe_open(path / name, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118  # it is no mapping and cannot be iterated
                    described = weights.get_slice(key)
                    stored[key] = (described.get_shape(), described.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{path / name}: damaged ({error})") from None
    model = outline(path)
    wanted = dict(model.named_parameters())  # a head that is tied to the embedding is there once
    if missing := sorted(set(wanted) - set(stored)):
        raise ValueError(f"{path}: lacks {len(missing)} weights of its architecture, such as {missing[0]}")
    for name, weight in wanted.items():
        shape, dtype = stored[name]
        if shape != list(weight.shape):
            raise ValueError(f"{path}: {name} has the shape {shape}, and config.json makes it {list(weight.shape)}")
        if dtype not in STORED:
            raise ValueError(f"{path}: {name} is stored as {dtype}; expected one of {', '.join(STORED)}")
    tied = {"tied_embeddings": True} if model.config.tie_word_embeddings else {}
    return {"parameters": model.num_parameters(), "vocab_size": model.get_input_embeddings().weight.shape[0]} | tied


def device() -> str:
    """Where a model runs: on the GPU of this process, if torch sees one.

    It has a number, without which accelerate takes a quantized model of one of several processes for misplaced.
    """
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def load(path: Path, dtype: torch.dtype, device: str | None = None, **options: Any) -> Any:
    """The model in the folder `path`, on the CPU unless `device` is given; on the device "meta" only its shape.

    Raises FileNotFoundError if it has no weights in safetensors, ValueError if it cannot be loaded, or lacks a weight:
    transformers would start that at random and say so in a log alone.
    """
    disable_progress_bar()  # of shards, which takes no time here; the stages show their own
    if device != "meta" and path.is_dir():
        shards.safetensors_in([file.name for file in path.iterdir()], path)
    try:
        if device == "meta":
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    AutoConfig.from_pretrained(path, local_files_only=True), dtype=dtype
                )
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            device_map={"": device} if device else None,
            **options,
        )
    except Exception as error:  # a damaged file raises whatever its format's library raises
        raise ValueError(
            f"{path}: not a causal language model that transformers can load: {' '.join(str(error).split())}"
        ) from None
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{path}: lacks {len(missing)} weights of its architecture, such as {missing[0]}")
    return model
