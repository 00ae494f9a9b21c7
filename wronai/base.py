"""The base model: pre-trained from scratch on the clean documents, checked before anything is built on it, loaded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from wronai import params, shards, tokens, training
from wronai.progress import Progress

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


def scratch_outline(settings: params.Scratch) -> Any:
    """The model that `from_scratch` makes, on the device "meta"."""
    with torch.device("meta"):
        return MistralForCausalLM(_mistral(settings, settings.vocab_size))


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
