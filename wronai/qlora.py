"""QLoRA: a base in 4 bits, LoRA on its projections, and the rows of the ten tokens trained beside them."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training
from safetensors import SafetensorError, safe_open
from transformers import BitsAndBytesConfig

from wronai import attention, base, params, tokens, training

# What else than data and parameters determines a training: a checkpoint of other code or libraries is not gone on from.
VERSIONS = (
    *(metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")),
    *(Path(inspect.getfile(module)) for module in (attention, base, tokens, training)),
    Path(__file__),
)


def load_quantized(path: Path, tokenizer: Any, quantization: params.Quantization, seed: int) -> Any:
    """The base in the folder `path` with its linear layers in 4 bits, and a row for every token of `tokenizer`.

    The embedding and the head keep their precision. New rows start at the mean of the old ones plus noise of
    their spread, drawn from `seed`: as far from each other as any words are, since equal ones would part slowly.
    Raises ValueError if the tokenizer is not the base's own plus the ten tokens.
    """
    compute = getattr(torch, quantization.bnb_4bit_compute_dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute,
    )
    model = base.load(path, compute, base.device(), quantization_config=config)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On a CPU with AVX512-BF16, bitsandbytes repacks a layer at its first evaluation for a bfloat16 kernel
            # that has no backward: an evaluation in the middle of a training would cut its gradients from then on.
            module.support_avx512bf16_for_cpu = False
    add_rows(model, tokenizer, path, seed)
    return model


def add_rows(model: Any, tokenizer: Any, path: Path, seed: int) -> None:
    """Give `model`, the base of the folder `path`, a row for every token of `tokenizer`; see `load_quantized`.

    The rows of tokens that the base knows already, as one that this pipeline made does, stay as they are.
    """
    own = tokens.load(path)
    if {**tokenizer.get_vocab(), **own.get_vocab()} != tokenizer.get_vocab():
        raise ValueError(
            f"{path}: the tokenizer of the training tokens is not this base's with tokens added; "
            "run tokenize_text again"
        )
    old = len(own)
    added = sorted(set(tokens.added_ids(tokenizer)) - set(own.get_vocab().values()))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        known = layer.weight.data[:old].float().cpu()
        noise = torch.randn(len(added), known.shape[1], generator=generator) * known.std(0)
        layer.weight.data[added] = (known.mean(0) + noise).to(layer.weight)


def attach(model: Any, tokenizer: Any, settings: params.Finetune) -> Any:
    """`model` with LoRA on `settings.lora.target_modules`, and with the ten tokens' embedding and head rows trained.

    From here on it attends by `attention.packed`: it takes packed blocks alone.
    """
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    model.config.use_cache = False
    model.set_attn_implementation(attention.NAME)
    added = tokens.added_ids(tokenizer)
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora.r,
            lora_alpha=settings.lora.lora_alpha,
            lora_dropout=settings.lora.lora_dropout,
            bias=settings.lora.bias,
            target_modules=list(settings.lora.target_modules),
            trainable_token_indices={"embed_tokens": added, "lm_head": added},
        ),
    )


def tune(
    model: Any,
    blocks: Any,
    validation: Any,
    settings: params.Finetune,
    seed: int,
    work: Path,
    *,
    pad_token_id: int,
    log: Callable[..., None],
) -> training.Outcome:
    """Train the adapter of `model` in place; checkpoints in `work`."""
    steps = optimizer_steps(len(blocks), settings)
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return training.train(
        model,
        blocks,
        validation,
        tokens.epochs(len(blocks), steps * per_step, seed),
        {
            "max_steps": steps,
            "per_device_train_batch_size": settings.per_device_train_batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": settings.lr_scheduler_type,
            "warmup_steps": round(settings.warmup_ratio * steps),
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "optim": settings.optim,
            "activation_checkpointing": settings.gradient_checkpointing,
            "activation_checkpointing_kwargs": {"use_reentrant": False},
            "eval_strategy": "steps",
            "eval_steps": settings.eval_steps,
            "save_strategy": "steps",
            "save_steps": settings.save_steps,
            "logging_steps": settings.logging_steps,
            "seed": seed,
            "use_cpu": not torch.cuda.is_available(),
            "bf16": torch.cuda.is_available() and settings.quantization.bnb_4bit_compute_dtype == "bfloat16",
        },
        work,
        pad_token_id=pad_token_id,
        what="fine-tuning",
        log=log,
    )


def optimizer_steps(rows: int, settings: params.Finetune) -> int:
    """How many optimizer steps a training on `rows` blocks takes: max_steps, or num_train_epochs over the blocks."""
    if settings.max_steps > 0:
        return settings.max_steps
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return max(1, math.ceil(settings.num_train_epochs * rows / per_step))


def save(model: Any, out: Path) -> None:
    """Write the adapter to the folder `out`: LoRA matrices and the ten rows, not the whole embedding and head."""
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # a set, whose order changes with PYTHONHASHSEED
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's form for a model card, empty


def load_adapter(model: Any, path: Path) -> Any:
    """`model` with the adapter of the folder `path`. Raises ValueError if it is damaged or does not fit the model.

    PEFT leaves a tensor that the file lacks at its random start, and one that it cannot place unread: here both fail.
    """
    stored = adapter_tensors(path)
    try:
        loaded = PeftModel.from_pretrained(model, path, local_files_only=True)
    except Exception as error:
        raise ValueError(f"{path}: the adapter does not fit the base: {' '.join(str(error).split())}") from None
    placed = set(get_peft_model_state_dict(loaded, save_embedding_layers=False))
    if stored != placed:
        odd = sorted(stored ^ placed)
        raise ValueError(
            f"{path}: holds {len(stored - placed)} tensors that the base has no place for and lacks "
            f"{len(placed - stored)} that it needs, such as {odd[0]}; the adapter was made for another base or other "
            "finetune.lora"
        )
    loaded.eval()
    return loaded


def adapter_tensors(path: Path) -> set[str]:
    """The names of the tensors of the adapter in the folder `path`. Raises ValueError if the file is damaged."""
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no adapter_model.safetensors; finetune_qlora writes it")
    try:
        with safe_open(file, "pt") as opened:
            return set(opened.keys())
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged ({error}); run finetune_qlora again") from None


def run_key(*determines: object) -> str:
    """A name for the run that `determines` it: paths stand for the bytes in them, all else for its repr."""
    digest = hashlib.sha256()
    for item in determines:
        files = (
            sorted(path for path in item.rglob("*") if path.is_file())
            if isinstance(item, Path) and item.is_dir()
            else [item]
        )
        for file in files:
            if isinstance(file, Path):
                digest.update(file.name.encode() + b"\0")
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
            else:
                digest.update(repr(file).encode() + b"\0")
    return digest.hexdigest()[:16]
