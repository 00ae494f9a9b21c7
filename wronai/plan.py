"""What a fine-tuning will hold in memory, before anything is loaded; `wronai.planner` is the command.

Everything is counted from the base's configuration, the parameters and the size of a batch; no weight is read, and
torch is not imported. The plan goes by phase, since what is held at once differs while the base is quantized, while a
step runs forward and backward, and while the optimizer moves the weights: its total is the largest of the three.
tests/test_plan.py holds the counts to what autograd, bitsandbytes and PEFT really keep, `benchmarks/plan.py` the
totals to what processes really take.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import psutil

from wronai import params, prompt

SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT = 4  # bytes; of what is trained and of its optimizer states
ROWS = len(prompt.TOKENS)  # of the embedding and of the head that are trained
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# Of the embedded default's own process on a CPU (torch, transformers, PEFT and their threads), and of CUDA's context
# with the kernels of cuBLAS and bitsandbytes. A stage measures the first itself.
CONTEXT = {"cpu": 420 * 10**6, "cuda": 500 * 10**6}
TRAINER = {"cpu": 35 * 10**6, "cuda": 0}  # what transformers' Trainer imports and starts once it is made, measured
LOGITS = 64 * 2**20  # bytes of float32 logits that a chunk of the vocabulary's loss holds at most
SLICE = 1 << 20  # values that qlora quantizes at once on a CPU
HEAP = 1 << 20  # bytes; blocks from here on go back to the system as they are freed

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Shape:
    """What the plan knows of a base: a decoder of the Mistral, Llama or Qwen kind."""

    vocab_size: int  # rows of the embedding
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    biased: bool  # whether the projections to query, key and value have biases

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of each linear layer of a decoder layer, by the name that `target_modules` gives it."""
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (query, hidden),
            "k_proj": (key, hidden),
            "v_proj": (key, hidden),
            "o_proj": (hidden, query),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }


@dataclass(frozen=True)
class Device:
    """Where the training runs: `available` bytes for this process, of which it holds `context` already."""

    kind: Kind
    context: int
    available: int


@dataclass(frozen=True)
class Plan:
    """Bytes by part and by phase; a phase holds some of the parts at once, and `total` is the largest phase.

    `uncounted` is what the training holds beside them, in words.
    """

    parts: dict[str, int]
    phases: dict[str, int]
    uncounted: list[str]

    @property
    def total(self) -> int:
        """The most that is held at once."""
        return max(self.phases.values())


def from_config(config: Mapping[str, Any], name: str = "config.json") -> Shape:
    """The shape that `config`, the config.json of a base, describes. Raises ValueError if it is of another kind."""
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if missing := [key for key in needed if not isinstance(config.get(key), int)]:
        raise ValueError(
            f"{name}: has no {', '.join(missing)}; expected the configuration of a Mistral, Llama or Qwen base"
        )
    heads = config["num_attention_heads"]
    return Shape(
        **{key: config[key] for key in needed},
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        biased=bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
    )


def read(folder: Path) -> Shape:
    """The shape of the base in `folder`. Raises FileNotFoundError or ValueError if its config.json says none."""
    return read_config(folder / "config.json")


def read_config(file: Path) -> Shape:
    """The shape of the base whose config.json is `file`, as `read`."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: not found; prepare_base fetches it with the base") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    return from_config(config, str(file))


def quantized(elements: int, rows: int, quantization: params.Quantization) -> int:
    """Bytes of a matrix of `elements` in `rows` as bitsandbytes holds it."""
    if quantization.load_in_8bit:
        return elements + FLOAT * rows
    if not quantization.load_in_4bit:
        return elements * SIZE[quantization.bnb_4bit_compute_dtype]
    blocks = math.ceil(elements / 64)
    code = 16 * FLOAT
    if not quantization.bnb_4bit_use_double_quant:
        return math.ceil(elements / 2) + FLOAT * blocks + code
    return math.ceil(elements / 2) + blocks + FLOAT * math.ceil(blocks / 256) + 256 * FLOAT + FLOAT + code


def trained(shape: Shape, lora: params.Lora) -> list[int]:
    """The elements of each tensor that is trained: LoRA's two for each target, and the rows of the ten tokens.

    Raises ValueError if a target is no linear layer of the base.
    """
    if unknown := [name for name in lora.target_modules if name not in shape.matrices]:
        raise ValueError(
            f"finetune.lora.target_modules: the plan knows no linear layer {', '.join(unknown)}; "
            f"it knows {', '.join(shape.matrices)}"
        )
    tensors = []
    for name in lora.target_modules:
        rows, columns = shape.matrices[name]
        tensors += [lora.r * columns, rows * lora.r, *([rows] if lora.use_dora else [])] * shape.num_hidden_layers
    return tensors + [ROWS * shape.hidden_size] * (1 if shape.tie_word_embeddings else 2)


def optimizer_states(tensors: Sequence[int], optim: str, kind: Kind) -> int:
    """Bytes of the two states of each tensor: AdamW's in float32, or for 8 bits a byte each and a float32 per 256.

    bitsandbytes keeps the states of tensors of fewer than 4,096 elements in 32 bits. On a GPU it pages those of 100,000
    and more: they give way to the CPU's memory when the GPU's is short, so they are not counted.
    """
    if optim.startswith("paged") and kind == "cuda":
        tensors = [count for count in tensors if count < 100_000]
    if "8bit" not in optim:
        return sum(2 * FLOAT * count for count in tensors)
    return sum(2 * (count + FLOAT * math.ceil(count / 256)) if count >= 4096 else 8 * count for count in tensors)


def saved_by_layer(shape: Shape, settings: params.Finetune, kind: Kind) -> int:
    """Bytes that autograd keeps for each token of one decoder layer, between its forward and its backward.

    RMSNorm computes in float32 and keeps its input so; attention, in float32 on a CPU, keeps query, key, value and
    output, keys and values repeated for each head; SwiGLU three of its width; LoRA its input, once for all that share
    it unless each drops out for itself, and then with the mask. What DoRA and 8 bits keep beside that is not in it
    (`_uncounted`).
    """
    computed = SIZE[settings.quantization.bnb_4bit_compute_dtype]
    query = shape.num_attention_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    norms = 2 * (
        FLOAT * hidden + 2 * FLOAT
    )  # the input, which is a copy of a shorter one, and the factor of each token
    attention = 4 * (computed if kind == "cuda" else FLOAT) * query + FLOAT * shape.num_attention_heads
    swiglu = 3 * computed * inner
    mask = 0 if not settings.lora.lora_dropout else 1 if kind == "cuda" else computed
    targets = set(settings.lora.target_modules)
    inputs = 0
    for group in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
        count = len(targets.intersection(group))
        width = shape.matrices[group[0]][1]
        inputs += width * (count * (computed + mask) if mask else computed * bool(count))
    ranks = len(targets) * settings.lora.r * computed
    return norms + attention + swiglu + inputs + ranks


def make(
    shape: Shape,
    settings: params.Finetune,
    longest: int,
    kind: Kind,
    context: int,
    vocabulary: int | None = None,
) -> Plan:
    """The plan of fine-tuning a base of `shape` on blocks of at most `longest` tokens.

    `context` is what the process holds before anything is loaded, `vocabulary` the tokens of the tokenizer with the
    ten; by default the embedding has no spare row for them, as Mistral's has none.
    """
    quantization = settings.quantization
    computed = SIZE[quantization.bnb_4bit_compute_dtype]
    rows = max(shape.vocab_size, vocabulary or shape.vocab_size + ROWS)
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    matrices = [(height * width, height) for height, width in shape.matrices.values()]
    largest = max(elements for elements, _ in matrices)
    table = rows * hidden * computed
    tables = table * (1 if shape.tie_word_embeddings else 2)
    biases = sum(shape.matrices[name][0] for name in ("q_proj", "k_proj", "v_proj")) if shape.biased else 0
    tensors = trained(shape, settings.lora)
    adapter = FLOAT * sum(tensors)

    batch = settings.per_device_train_batch_size * longest
    saved = saved_by_layer(shape, settings, kind) * batch
    states = hidden * computed * batch
    offloaded = settings.activation_offloading and kind == "cuda"
    if settings.gradient_checkpointing:
        kept, recomputed = (1 if offloaded else layers + 1) * states, saved
    else:
        kept, recomputed = states + layers * saved, 0
    dequantized = computed * largest if quantization.load_in_4bit or quantization.load_in_8bit else 0
    # The backward of a layer begins with down_proj: LoRA's gradient; then the matrix itself, with its own gradient
    # beside that one, when the input that LoRA had kept is free again.
    work = dequantized + computed * shape.intermediate_size * batch
    # Logits in float32 and, before and after, rounded; the gradient of the last hidden states stays until the backward.
    chunk = min(LOGITS, FLOAT * rows * batch)
    logits = chunk + (chunk * computed // FLOAT if computed < FLOAT else 0)

    parts = {
        "context of the process": context,
        "trainer": TRAINER[kind],
        "linear layers": layers * sum(quantized(elements, height, quantization) for elements, height in matrices),
        "embedding and head": tables,
        "norms and biases": computed * (layers * (2 * hidden + biases) + hidden),
        "LoRA and the ten tokens' rows": adapter,
        "gradients": adapter,
        "optimizer states": optimizer_states(tensors, settings.optim, kind),
        "hidden states kept" if settings.gradient_checkpointing else "activations kept": kept,
        "one layer recomputed": recomputed,
        "gradients inside of a layer": work - min(work, dequantized),
        "one matrix dequantized": min(work, dequantized),
        "a chunk of logits": logits,
    }
    weights = context + sum(parts[name] for name in ("linear layers", "embedding and head", "norms and biases"))
    learned = weights + TRAINER[kind] + 2 * adapter + parts["optimizer states"]
    phases = {
        "loading": weights + max(table, _while_quantizing(largest, quantization, kind)),
        "forward and backward": learned + kept + max(recomputed + work, logits),
        "optimizer step": learned + (adapter if settings.optim == "adamw_torch" and kind == "cuda" else 0),
    }
    return Plan(parts, phases, _uncounted(settings))


def _uncounted(settings: params.Finetune) -> list[str]:
    """What no part of a plan stands for."""
    found = []
    if settings.lora.use_dora:
        found.append(
            "the outputs that DoRA keeps of each projection, and the dense matrices of their norms "
            "(finetune.lora.use_dora)"
        )
    if settings.quantization.load_in_8bit:
        found.append("the inputs that LLM.int8() keeps for its backward (finetune.quantization.load_in_8bit)")
    return found


def _while_quantizing(elements: int, quantization: params.Quantization, kind: Kind) -> int:
    """Bytes beside the weights while a matrix of `elements` is quantized; the file that it comes from is not counted.

    On a CPU it stays where it is mapped and goes slice by slice, with the packed slices beside their whole; a GPU takes
    it as it is.
    """
    computed = SIZE[quantization.bnb_4bit_compute_dtype]
    if kind == "cuda":
        return computed * elements
    if quantization.load_in_4bit:
        return elements // 2 + min(elements, SLICE) * 5 * FLOAT
    return 2 * elements if quantization.load_in_8bit else 0


def anonymous() -> int:
    """The bytes of memory that this process alone holds; file pages, which can be given back, are not in it."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^RssAnon:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    return psutil.Process().memory_info().rss


@dataclass(frozen=True)
class Change:
    """Values of params.yaml that would need less: what to write, what it saves, and the plan with it."""

    keys: str
    saves: int
    total: int
    settings: params.Finetune
    longest: int


def changes(
    shape: Shape, settings: params.Finetune, longest: int, device: Device, vocabulary: int | None = None
) -> list[Change]:
    """Every change of one thing that makes the plan smaller, best first, each by the plan made again with it.

    What can go down in steps goes no further than it must, if that is enough.
    """
    before = make(shape, settings, longest, device.kind, device.context, vocabulary).total
    found = []
    for steps in _steps(settings, longest, device.kind):
        tried = []
        for keys, changed, length in steps:
            total = make(shape, changed, length, device.kind, device.context, vocabulary).total
            tried.append(Change(keys, before - total, total, changed, length))
            if total <= device.available:
                break
        found += [change for change in tried[-1:] if change.saves > 0]
    return sorted(found, key=lambda change: -change.saves)


def _steps(settings: params.Finetune, longest: int, kind: Kind) -> Iterator[list[tuple[str, params.Finetune, int]]]:
    """Each thing that could be changed, as its steps from the smallest change to the largest."""
    quantization, lora = settings.quantization, settings.lora

    def to(section: params.Section | None = None, **values: Any) -> params.Finetune:
        if section is None:
            return settings.model_copy(update=values)
        name = "lora" if section is lora else "quantization"
        return settings.model_copy(update={name: section.model_copy(update=values)})

    yield [(f"tokenize.max_length: {length}", settings, length) for length in _halves(longest, 128)]
    rows, accumulated = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    yield [
        (
            f"finetune.per_device_train_batch_size: {fewer} "
            f"(and gradient_accumulation_steps: {accumulated * rows // fewer}, for as many tokens a step)",
            to(per_device_train_batch_size=fewer, gradient_accumulation_steps=accumulated * rows // fewer),
            longest,
        )
        for fewer in _halves(rows, 1)
    ]
    yield [(f"finetune.lora.r: {rank}", to(lora, r=rank), longest) for rank in _halves(lora.r, 4)]
    # What pinned numerics refuse, and a training that looks pinned is told so.
    unpinned = " (and numerics: native)" if settings.optim == "adamw_torch_fused" else ""
    optim = "paged_adamw_8bit" if kind == "cuda" else "adamw_8bit"
    single = {
        "finetune.gradient_checkpointing: true": to(gradient_checkpointing=True),
        "finetune.lora.use_dora: false": to(lora, use_dora=False),
        "finetune.lora.lora_dropout: 0.0": to(lora, lora_dropout=0.0),
        "finetune.quantization.load_in_4bit: true": to(quantization, load_in_4bit=True, load_in_8bit=False),
        "finetune.quantization.bnb_4bit_use_double_quant: true": to(quantization, bnb_4bit_use_double_quant=True),
        f"finetune.quantization.bnb_4bit_compute_dtype: bfloat16{unpinned}": to(
            quantization, bnb_4bit_compute_dtype="bfloat16"
        ),
        f"finetune.optim: {optim}{unpinned}": to(optim=optim),
    }
    if kind == "cuda":
        keys = "" if settings.gradient_checkpointing else " (with gradient_checkpointing: true)"
        single[f"finetune.activation_offloading: true{keys}"] = to(
            activation_offloading=True, gradient_checkpointing=True
        )
    for keys, changed in single.items():
        yield [(keys, changed, longest)]


def _halves(value: int, least: int) -> list[int]:
    """`value` halved again and again, down to `least`."""
    return [value >> times for times in range(1, value.bit_length()) if value >> times >= least]


def table(plan: Plan, device: Device) -> str:
    """The plan for a person: bytes by part and phase, and how the total stands to what the device has."""
    rows = [(name, held) for name, held in plan.parts.items() if held]
    width = max(len(name) for name in chain(plan.parts, plan.phases))
    lines = [f"  {name:<{width}}  {amount(held):>9}" for name, held in rows]
    lines.append("at once:")
    lines += [f"  {name:<{width}}  {amount(held):>9}" for name, held in plan.phases.items()]
    where = "GPU" if device.kind == "cuda" else "CPU"
    left = device.available - plan.total
    verdict = f"{amount(left)} to spare" if left >= 0 else f"{amount(-left)} too much"
    lines.append(f"total {amount(plan.total)} of {amount(device.available)} on the {where}: {verdict}")
    lines += [f"not counted: {what}" for what in plan.uncounted]
    return "\n".join(lines)


def advice(found: Sequence[Change], shape: Shape, device: Device, vocabulary: int | None = None) -> str:
    """What to change in params.yaml, one change a line, and what it takes where no single one is enough."""
    if not found:
        return "no parameter makes it smaller: take a device with more memory, or a smaller base"
    lines = ["change one of these in params.yaml; what it saves and what is then needed:"]
    lines += [
        f"  {change.keys}: saves {amount(change.saves)}, needs {amount(change.total)}"
        + ("" if change.total <= device.available else ", not enough alone")
        for change in found
    ]
    if all(change.total > device.available for change in found):
        settings, longest, taken = found[0].settings, found[0].longest, [found[0].keys]
        total = found[0].total
        while total > device.available and (further := changes(shape, settings, longest, device, vocabulary)):
            settings, longest, total = further[0].settings, further[0].longest, further[0].total
            taken.append(further[0].keys)
        enough = "enough" if total <= device.available else "the least that parameters can do, and not enough"
        lines.append(f"together {'; '.join(taken)}: needs {amount(total)}, {enough}")
    return "\n".join(lines)


def check(shape: Shape, settings: params.Finetune, longest: int, device: Device, vocabulary: int | None = None) -> Plan:
    """The plan. If `check_memory` is set and it does not fit, raises ValueError with its table and what to change."""
    plan = make(shape, settings, longest, device.kind, device.context, vocabulary)
    if settings.check_memory and plan.total > device.available:
        found = changes(shape, settings, longest, device, vocabulary)
        raise ValueError(
            "the fine-tuning does not fit into the memory of this machine (finetune.check_memory: false tries anyway)\n"
            f"{table(plan, device)}\n{advice(found, shape, device, vocabulary)}"
        )
    return plan


def here() -> Device:
    """The device that a training in this process would run on, and the memory that is left of it now."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()  # which opens CUDA's context, if nothing has
        return Device("cuda", CONTEXT["cuda"], free + CONTEXT["cuda"])
    return of_cpu(anonymous())


def of_cpu(held: int, context: int | None = None) -> Device:
    """The CPU of this machine for a process that holds `held` bytes already and `context` of them while it trains."""
    room = min([psutil.virtual_memory().available, *rooms()])
    room //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of the processes that the launcher started here
    return Device("cpu", held if context is None else context, room + held)


def rooms(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """The bytes left in each control group of version 2 that bounds this process; file pages count as left."""
    if not groups.is_file():
        return
    for line in groups.read_text(encoding="utf-8").splitlines():
        number, _, path = line.split(":", 2)
        if number != "0":
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            most = folder / "memory.max"
            if most.is_file() and (limit := most.read_text().strip()) != "max":
                used = int((folder / "memory.current").read_text())
                found = re.search(r"^file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
                yield int(limit) - used + (int(found[1]) if found else 0)
            if folder == root:
                break


def give_freed_memory_back() -> None:
    """Let the C library return every large block as it is freed, here and in processes started from now on.

    The plan supposes it. glibc would keep those below 32 MB in its heap, which falls to pieces between the tensors of a
    step: 1.65 GB where 1.07 are held. Small models train slower by it, as each block is then cleared anew.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such option
        for option, name in ((-3, "MALLOC_MMAP_THRESHOLD_"), (-1, "MALLOC_TRIM_THRESHOLD_")):
            ctypes.CDLL(None).mallopt(option, HEAP)
            os.environ[name] = str(HEAP)  # which a process reads as it starts


def amount(count: int) -> str:
    """Bytes for a person: "5.61 GB", of a billion bytes each."""
    unit = next(unit for unit in ("GB", "MB", "kB", "B") if count >= UNITS[unit] or unit == "B")
    return f"{count / UNITS[unit]:.{2 if unit == 'GB' else 0}f} {unit}"


def parse_amount(text: str) -> int:
    """The bytes that `text`, such as "8GB" or "7.5 GiB", says. Raises ValueError if it says none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?i?B)\s*", text)
    if not found or found[2] not in UNITS:
        raise ValueError(f"memory: found {text!r}; expected a number and its unit, such as 8GB or 7.5GiB")
    return round(float(found[1]) * UNITS[found[2]])
