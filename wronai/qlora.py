"""QLoRA: a base in 4 bits, LoRA on its projections, and the rows of the ten tokens trained beside them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant, int8_vectorwise_quant, quantize_4bit
from bitsandbytes.nn import Int8Params, Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from transformers import BitsAndBytesConfig

from wronai import attention, base, launch, locks, lora, numerics, params, shards, tokens, training, vocabulary
from wronai.progress import Progress

ADAPTER = "adapter_model.safetensors"  # PEFT's name for the file of an adapter's tensors
SLICE = 1 << 20  # values quantized at once on a CPU; a multiple of every block size

# What else than data and parameters determines a training: a checkpoint of other code or libraries is not gone on from.
VERSIONS = (
    *(metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")),
    *(
        Path(inspect.getfile(module))
        for module in (attention, base, launch, lora, numerics, tokens, training, vocabulary)
    ),
    Path(__file__),
)
# Of the section `finetune`, what may change between a run and the one that goes on from its checkpoints: which of these
# are kept, when a training counts as diverged, which ends it and alters no step, and where machines meet.
CHANGES_NO_BYTE: dict[str, Any] = {
    "save_total_limit": True,
    "max_loss_ratio": True,
    "check_memory": True,
    "launch": {"main_process_ip", "main_process_port"},
}

_overrides: list[Any] = []  # holds the kernel of `quantize_in_slices` for as long as the process lives


def load_quantized(path: Path, tokenizer: Any, quantization: params.Quantization, seed: int) -> Any:
    """The base in the folder `path`, its linear layers quantized as `quantization` says, a row for every token.

    The embedding and the head keep their precision. New rows start at the mean of the old ones plus noise of
    their spread, drawn from `seed`: as far from each other as any words are, since equal ones would part slowly.
    Raises ValueError if the tokenizer is not the base's own plus the ten tokens.
    """
    compute = getattr(torch, quantization.bnb_4bit_compute_dtype)
    bits = bitsandbytes_config(quantization)
    options = {"quantization_config": bits} if bits else {}
    quantize_in_slices()
    model = base.load(path, compute, base.device(), **options)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On a CPU with AVX512-BF16, bitsandbytes repacks a layer at its first evaluation for a bfloat16 kernel
            # that has no backward: an evaluation in the middle of a training would cut its gradients from then on.
            module.support_avx512bf16_for_cpu = False
    add_rows(model, tokenizer, path, seed)
    _give_back_memory()
    return model


def bitsandbytes_config(quantization: params.Quantization) -> Any:
    """`quantization` as bitsandbytes is told it; None where nothing is quantized."""
    if not (quantization.load_in_4bit or quantization.load_in_8bit):
        return None
    return BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        load_in_8bit=quantization.load_in_8bit,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.bnb_4bit_compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, quantization.bnb_4bit_quant_storage),
    )


def quantize_in_slices() -> None:
    """Let bitsandbytes quantize a matrix on the CPU to 4 bits slice by slice, for the whole process: the same bytes.

    Its own kernel makes five float32 copies of the whole matrix, 1.2 GB for one of Mistral-7B's. Slices of a million
    values stay in the processor's cache, which makes it faster too.
    """
    if _overrides:
        return
    whole = torch.library.get_kernel("bitsandbytes::quantize_4bit", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def quantize_4bit(
        matrix: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = matrix.reshape(-1)
        parts = [
            whole.call_boxed(keys, part, blocksize, quant_type, torch.uint8) for part in torch.split(values, SLICE)
        ]
        packed = torch.cat([part for part, _ in parts])
        if quant_storage != torch.uint8:
            packed = packed.squeeze().view(quant_storage).unsqueeze(1)
        return packed, torch.cat([scales for _, scales in parts])

    library = torch.library.Library("bitsandbytes", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("quantize_4bit", quantize_4bit, "CPU")  # type: ignore[no-untyped-call]
    _overrides.append(library)


def _give_back_memory() -> None:
    """Let the C library return what loading freed: glibc would keep 0.3 GB of a 7B model's for itself."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library has no malloc_trim, and no need of it
        ctypes.CDLL(None).malloc_trim(0)


def held(layer: Any) -> torch.Tensor:
    """The weight that a linear layer computes with, float32, of shape (out, in): dequantized if it is quantized."""
    weight = layer.weight
    dense: torch.Tensor = weight.data
    if isinstance(weight, Params4bit):
        dense = dequantize_4bit(weight.data, weight.quant_state)
    elif isinstance(weight, Int8Params):
        dense = int8_vectorwise_dequant(weight.data, weight.SCB)
    return dense.float()


def round_trip(weight: torch.Tensor, quantization: params.Quantization) -> torch.Tensor:
    """What `held` gives for a layer of `load_quantized` that has `weight` in the base; float32, on the same device."""
    value = weight.to(getattr(torch, quantization.bnb_4bit_compute_dtype))
    if quantization.load_in_4bit:
        quantize_in_slices()
        packed, state = quantize_4bit(
            value,
            quant_type=quantization.bnb_4bit_quant_type,
            compress_statistics=quantization.bnb_4bit_use_double_quant,
        )
        value = dequantize_4bit(packed, state)
    elif quantization.load_in_8bit:
        rows, scales, _ = int8_vectorwise_quant(value.to(torch.float16))
        value = int8_vectorwise_dequant(rows, scales)
    return value.float()


def add_rows(model: Any, tokenizer: Any, path: Path, seed: int) -> None:
    """Give `model`, the base of the folder `path`, a row for every token of `tokenizer`; see `load_quantized`.

    The rows of tokens that the base knows already, as one that this pipeline made does, stay as they are.
    """
    old, added = tokens_to_add(tokenizer, path)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if layers[0].weight is layers[1].weight:
        layers.pop()
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        weight = layer.weight.data
        weight[added] = new_rows(weight[:old], len(added), generator).to(weight)


def tokens_to_add(tokenizer: Any, path: Path) -> tuple[int, list[int]]:
    """How many tokens the base in `path` has itself, and the ids of those of the ten that it lacks.

    Raises ValueError if `tokenizer` is not the base's own plus the ten tokens.
    """
    own = tokens.load(path)
    if {**tokenizer.get_vocab(), **own.get_vocab()} != tokenizer.get_vocab():
        raise ValueError(
            f"{path}: the tokenizer of the training tokens is not this base's with tokens added; "
            "run tokenize_text again"
        )
    return len(own), sorted(set(tokens.added_ids(tokenizer)) - set(own.get_vocab().values()))


def new_rows(known: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` rows at the mean of the rows `known` plus noise of their spread, float32 on the CPU.

    Column by column, some at a time: in float32 as a whole the embedding of a 7B model takes half a gigabyte.
    """
    mean, spread = (
        torch.cat(parts)
        for parts in zip(
            *((part.mean(0), part.std(0)) for part in (some.float().cpu() for some in torch.split(known, 256, dim=1))),
            strict=True,
        )
    )
    return mean + torch.randn(count, len(mean), generator=generator) * spread


def attach(model: Any, tokenizer: Any, settings: params.Finetune) -> Any:
    """`model`, of `load_quantized`, with LoRA on `settings.lora.target_modules` and the ten tokens' rows trained.

    Of tied embeddings the head follows the one matrix. What is trained is float32; all else keeps its precision.
    From here on it attends by `attention.packed`: it takes packed blocks alone.
    """
    for value in model.parameters():
        value.requires_grad_(False)
    model.config.use_cache = False
    model.set_attn_implementation(attention.NAME)
    added = tokens.added_ids(tokenizer)
    tied = model.config.tie_word_embeddings
    chosen = settings.lora
    loftq = chosen.init_lora_weights == "loftq"
    tuned = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=chosen.r,
            lora_alpha=chosen.lora_alpha,
            lora_dropout=chosen.lora_dropout,
            bias=chosen.bias,
            target_modules=list(chosen.target_modules),
            use_rslora=chosen.use_rslora,
            use_dora=chosen.use_dora,
            init_lora_weights=True if loftq else chosen.init_lora_weights,
            trainable_token_indices={"embed_tokens": added} | ({} if tied else {"lm_head": added}),
        ),
    )
    if loftq:
        make_up_for_quantization(tuned, Path(model.name_or_path))
    for value in tuned.parameters():
        if value.requires_grad:
            value.data = value.data.float()
    lora.install(tuned)
    vocabulary.install(tuned)
    return tuned


@torch.no_grad()
def make_up_for_quantization(tuned: Any, path: Path) -> None:
    """Start each LoRA of `tuned` at the best approximation of what quantization lost of the base in `path`.

    That is LoftQ (arXiv 2310.08659) with one iteration: B A is the truncated singular value decomposition of the error,
    over LoRA's scaling. The quantized weights stay as they are.
    """
    layers = [
        (name.removeprefix("base_model.model."), module)
        for name, module in tuned.named_modules()
        if isinstance(module, LoraLayer)
    ]
    stored = shards.Shards(path)
    progress = Progress("LoftQ", len(layers), "matrices")
    for name, layer in layers:
        kept = held(layer.get_base_layer())
        error = (stored[f"{name}.weight"].to(kept) - kept) / layer.scaling["default"]
        rank = layer.r["default"]
        # Twice the rank and four iterations come within a thousandth of the full decomposition, which takes minutes.
        left, values, right = torch.svd_lowrank(error, q=min(2 * rank, *error.shape), niter=4)
        root = values[:rank].sqrt()
        layer.lora_A["default"].weight.data.copy_(root[:, None] * right[:, :rank].T)
        layer.lora_B["default"].weight.data.copy_(left[:, :rank] * root)
        if layer.use_dora["default"]:
            layer.lora_magnitude_vector["default"].update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A["default"].weight,
                lora_B=layer.lora_B["default"].weight,
                scaling=layer.scaling["default"],
            )
        progress.add(1)
    progress.close()


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
    order = tokens.epochs(len(blocks), steps * global_batch(settings), seed)
    if settings.train_sampling_strategy == "group_by_length":
        order = training.group_by_length(order, training.lengths(blocks), global_batch(settings))
    return training.train(
        model,
        blocks,
        validation,
        order,
        arguments(settings, steps, seed, torch.cuda.is_available()) | launch.arguments(model, settings.launch),
        work,
        pad_token_id=pad_token_id,
        what="fine-tuning",
        log=log,
        loraplus_lr_ratio=settings.loraplus_lr_ratio,
        early_stopping=training.EarlyStopping(settings.early_stopping_patience, settings.early_stopping_threshold)
        if settings.early_stopping_patience
        else None,
        max_loss_ratio=settings.max_loss_ratio,
    )


def arguments(settings: params.Finetune, steps: int, seed: int, gpu: bool) -> dict[str, Any]:
    """The TrainingArguments of `settings`, in a process with or without a `gpu`."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    return {
        "max_steps": steps,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": round(settings.warmup_ratio * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": settings.optim,
        "neftune_noise_alpha": settings.neftune_noise_alpha,
        "activation_checkpointing": settings.gradient_checkpointing,
        # On a CPU the activations are where offloading would take them.
        "activation_checkpointing_kwargs": {"use_reentrant": False, "offload": settings.activation_offloading and gpu},
        "eval_strategy": "steps",
        "eval_steps": settings.eval_steps,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": settings.save_total_limit,
        "logging_steps": settings.logging_steps,
        "seed": seed,
        "use_cpu": not gpu,
        "bf16": gpu and settings.quantization.bnb_4bit_compute_dtype == "bfloat16",
        **(best if settings.load_best_model_at_end else {}),
    }


def global_batch(settings: params.Finetune) -> int:
    """The rows of one optimizer step, over all processes."""
    return settings.per_device_train_batch_size * settings.gradient_accumulation_steps * training.processes()


def optimizer_steps(rows: int, settings: params.Finetune) -> int:
    """How many optimizer steps a training on `rows` blocks takes: max_steps, or num_train_epochs over the blocks."""
    if settings.max_steps > 0:
        return settings.max_steps
    return max(1, math.ceil(settings.num_train_epochs * rows / global_batch(settings)))


def save(model: Any, out: Path) -> None:
    """Write the adapter to the folder `out`: LoRA matrices and the ten rows, not the whole embedding and head.

    Every one of several processes must call it, and the first writes.
    """
    trained = launch.gathered(model)
    if not training.is_main_process():
        return
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # a set, whose order changes with PYTHONHASHSEED
    model.save_pretrained(out, save_embedding_layers=False, state_dict=trained)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's form for a model card, empty


def adapter_tensors(path: Path) -> set[str]:
    """The names of the tensors of the adapter in the folder `path`.

    Raises FileNotFoundError if there are none in safetensors, ValueError if the file is damaged.
    """
    file = path / ADAPTER
    if not file.is_file():
        pickled = " (adapter_model.bin is a pickle, and not loaded)" if (path / "adapter_model.bin").exists() else ""
        raise FileNotFoundError(f"{path}: no {ADAPTER}{pickled}; finetune_qlora writes it")
    try:
        with safe_open(file, "pt") as opened:
            return set(opened.keys())
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged ({error}); run finetune_qlora again") from None


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Keep runs of the same key, as two experiments may be, from writing to the folder `work` at once: one waits.

    Of several processes the main one holds the lock, and the others wait with it.
    """
    if not training.is_main_process():
        launch.wait_for_all()
        yield
        return
    work.parent.mkdir(parents=True, exist_ok=True)
    file = work.with_name(f"{work.name}.lock")
    with locks.alone(file, f"{work}: another run does the same", _say):
        try:
            launch.wait_for_all()
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is held: who waited for a file that is gone asks anew


def _say(line: str) -> None:
    sys.stderr.write(
        f"{line}\n"
    )  # at once: print writes the end of a line apart, and another thread's may come between


def run_key(*determines: object) -> str:
    """A name for the run that `determines` it: paths stand for the bytes in them, all else for its repr.

    What computes it belongs to it too: whether torch is bound to deterministic algorithms, and the kinds of GPU here.
    """
    digest = hashlib.sha256()
    for item in (torch.are_deterministic_algorithms_enabled(), _hardware(), *determines):
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


def _hardware() -> list[str]:
    """The names of this machine's kinds of GPU: the same in each of its processes, whichever of them it trains on."""
    if not torch.cuda.is_available():
        return ["cpu"]
    return sorted({torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())})
