"""Merge an adapter into its base, shard by shard, and measure that the merged model says what was trained."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from transformers import GenerationConfig

from wronai import base, params, qlora, shards, streamed, tokens
from wronai.progress import Progress

MAX_SHARD_SIZE = 2_000_000_000  # bytes; an interrupted merge repeats at most one shard, a minute or so
SUM = ".sha256"  # of a finished shard; `sha256sum -c` reads it
ROWS = 4096  # of the embedding and the head that are merged at once: 64 MB of a 7B model in float32
POSITIONS = 256  # whose logits are compared at once: 65 MB of a 7B model in float64
VERSIONS = (*qlora.VERSIONS, *(Path(inspect.getfile(module)) for module in (shards, streamed)), Path(__file__))


class Adapter:
    """The adapter in the folder `path`, and where its tensors belong in the base whose architecture is `model`.

    `layers` are the names of the linear weights that it changes, `matrices` those that hold the ten rows. Raises
    FileNotFoundError or ValueError if it is damaged, does not fit the base, or trains other rows than those of the
    ten tokens of `tokenizer`.
    """

    def __init__(self, path: Path, model: Any, tokenizer: Any) -> None:
        stored = qlora.adapter_tensors(path)
        try:
            self.lora = LoraConfig.from_pretrained(str(path))
        except Exception as error:
            raise ValueError(
                f"{path}: no adapter_config.json of LoRA that PEFT can read: {' '.join(str(error).split())}"
            ) from None
        self.ids = tokens.added_ids(tokenizer)
        for name, trained in sorted((self.lora.trainable_token_indices or {}).items()):
            if trained != self.ids:
                raise ValueError(f"{path}: trains the rows {trained} of {name}; the ten tokens have {self.ids}")
        self.matrices = [streamed.EMBEDDING] + ([] if model.config.tie_word_embeddings else [streamed.HEAD])
        self.scaling = self.lora.lora_alpha / (math.sqrt(self.lora.r) if self.lora.use_rslora else self.lora.r)
        linear = {f"{name}.weight": tuple(layer.weight.shape) for name, layer in base.linears(model).items()}
        self.layers = [name for name in linear if name.split(".")[-2] in set(self.lora.target_modules or ())]
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.layers:
            rows, columns = linear[name]
            shapes[_stored(name, "lora_A.weight")] = (self.lora.r, columns)
            shapes[_stored(name, "lora_B.weight")] = (rows, self.lora.r)
            if self.lora.use_dora:
                shapes[_stored(name, "lora_magnitude_vector")] = (rows,)
        for name in self.matrices:
            width = model.config.hidden_size
            shapes[_stored(name, "token_adapter.trainable_tokens_delta")] = (len(self.ids), width)
        if stored != set(shapes):
            missing, odd = sorted(set(shapes) - stored), sorted(stored ^ set(shapes))
            raise ValueError(
                f"{path}: holds {len(stored - set(shapes))} tensors that the base has no place for and lacks "
                f"{len(missing)} that it needs, such as {odd[0]}; the adapter was made for another base or other "
                "finetune.lora"
            )
        self.tensors = shards.Shards(path, qlora.ADAPTER)
        for name, shape in shapes.items():
            if (found := tuple(self.tensors[name].shape)) != shape:
                raise ValueError(
                    f"{path}: {name} has the shape {found}, and the base needs {shape}; the adapter was made for "
                    "another base"
                )

    def __len__(self) -> int:
        """How many tensors it has."""
        return len(self.tensors)

    def added_to(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight`, the float32 linear weight `name`, with its delta, as PEFT would merge it; a new tensor."""
        low, high = (self.tensors[_stored(name, f"lora_{part}.weight")].float() for part in "AB")
        merged = high @ low
        merged *= self.scaling
        merged += weight
        if self.lora.use_dora:
            length = torch.linalg.norm(merged, dim=1)
            merged *= (self.tensors[_stored(name, "lora_magnitude_vector")].float() / length)[:, None]
        return merged

    def rows(self, name: str) -> dict[int, torch.Tensor]:
        """The ten trained rows of the embedding or the head, by their number."""
        trained = self.tensors[_stored(name, "token_adapter.trainable_tokens_delta")]
        return dict(zip(self.ids, trained, strict=True))


def _stored(name: str, kind: str) -> str:
    """What PEFT calls the tensor of a `kind` that belongs to the weight `name` of the base."""
    return f"base_model.model.{name.removesuffix('.weight')}.{kind}"


class Base:
    """The weights of the base in `path` as the adapter was trained on them: with the ten rows, grown where it must be.

    Those rows alone are new: every token of the tokenizer is the base's own or one of the ten. Raises ValueError if
    `tokenizer` is not the base's with tokens added, or the base has fewer rows than tokens.
    """

    def __init__(self, path: Path, adapter: Path, tokenizer: Any) -> None:
        own, _ = qlora.tokens_to_add(tokenizer, path)
        self.path = path
        self.model = base.load(path, torch.float32, device="meta")  # shapes alone
        rows = self.model.get_input_embeddings().weight.shape[0]
        if own > rows:
            raise ValueError(f"{path}: the tokenizer has {own} tokens, and the embedding {rows} rows; run prepare_base")
        self.adapter = Adapter(adapter, self.model, tokenizer)
        self.stored = shards.Shards(path)
        if len(tokenizer) > rows:
            self.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.stored[name]

    def take(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """The rows of the numbers `rows`, float32."""
        known = self.stored[name]
        inside = rows < len(known)
        taken = torch.zeros(len(rows), known.shape[1])
        taken[inside] = known[rows[inside]].float()
        for id_, row in self.adapter.rows(name).items():
            taken[rows == id_] = row.float()
        return taken

    def height(self, name: str) -> int:
        """How many rows the embedding or the head has."""
        return int(self.model.get_input_embeddings().weight.shape[0])


class Merged(Base):
    """The weights of the merged model in `dtype`, each computed when it is asked for.

    `dequantized` adds each delta to what training held: the linear weight, quantized as `quantization` says, and
    dequantized; of a layer without LoRA that alone. `original` adds it to the base's own weight. Sums are float32 and
    rounded once. It takes no GPU.
    """

    def __init__(
        self,
        path: Path,
        adapter: Path,
        tokenizer: Any,
        quantization: params.Quantization,
        base_weights: Literal["dequantized", "original"],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(path, adapter, tokenizer)
        self._quantization, self._original, self.dtype = quantization, base_weights == "original", dtype
        self._adapted = set(self.adapter.layers)
        held = set() if self._original else {f"{name}.weight" for name in base.linears(self.model)}
        self.changed = self._adapted | held | set(self.adapter.matrices)
        # A tied head is the embedding, and has no parameter of its own here.
        self.specs = {name: shards.Spec(dtype, tuple(value.shape)) for name, value in self.model.named_parameters()}

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self.stored[name]
        if name in self.changed:
            weight = weight.float() if self._original else qlora.round_trip(weight, self._quantization)
            if name in self._adapted:
                weight = self.adapter.added_to(name, weight)
        return weight.to(self.dtype)

    def take(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """The rows of the numbers `rows` of the embedding or the head."""
        return super().take(name, rows).to(self.dtype)

    def parts(self, name: str) -> Iterator[torch.Tensor]:
        """The weight `name` in pieces of consecutive rows."""
        if name not in self.adapter.matrices:
            yield self[name]
            return
        height = self.height(name)
        for start in range(0, height, ROWS):
            yield self.take(name, torch.arange(start, min(start + ROWS, height)))


def run_key(
    base_path: Path,
    adapter: Path,
    tokenizer: Any,
    quantization: params.Quantization,
    settings: params.Merge,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> str:
    """A name for what `merge` writes: shards that were finished under it are those of this merge."""
    return qlora.run_key(
        *("merge", base_path, adapter, tokens.added_ids(tokenizer), quantization),
        *(settings.base_weights, settings.dtype, max_shard_size),
        *VERSIONS,
    )


@torch.no_grad()
def merge(
    base_path: Path,
    adapter: Path,
    tokenizer: Any,
    quantization: params.Quantization,
    settings: params.Merge,
    out: Path,
    *,
    work: Path,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> dict[str, int]:
    """Write the merged model, in `settings.dtype`, with `tokenizer` and its chat template to the folder `out`.

    Shard by shard, in the memory of a few matrices. Finished shards wait in the folder `work`, which must be of this
    merge alone (`run_key`), so that a merge that was killed goes on from there; `out` gets links to them when all are
    finished, and the index and the configuration last. They stay in `work`, which is the caller's to remove. Returns
    how many tensors of the base were written anew, and how many the adapter has. Raises ValueError if
    `settings.base_weights` is still auto (`choose` decides).
    """
    if settings.base_weights == "auto":
        raise ValueError("merge.base_weights is 'auto'; a merge needs 'dequantized' or 'original'")
    dtype = getattr(torch, settings.dtype)
    weights = Merged(base_path, adapter, tokenizer, quantization, settings.base_weights, dtype)
    files = shards.plan(weights.specs, max_shard_size)
    work.mkdir(parents=True, exist_ok=True)
    left = {file: names for file, names in files.items() if not _is_whole(work / file)}
    resumed = f" (resumed at shard {len(files) - len(left) + 1} of {len(files)})" if len(left) < len(files) else ""
    sizes = {name: spec.bytes for name, spec in weights.specs.items()}
    progress = Progress(f"merge{resumed}", sum(sizes[name] for names in left.values() for name in names), "B")
    for file, names in left.items():
        digest = shards.write(work / file, {name: weights.specs[name] for name in names}, weights.parts, progress.add)
        (work / file).with_suffix(SUM).write_text(f"{digest}  {file}\n", encoding="utf-8")
    progress.close()
    shards.install(work, files, out)
    shards.write_index(out, files, weights.specs, weights.model.num_parameters())
    _write_configuration(weights, settings, tokenizer, out)
    return {"tensors_written": len(weights.changed), "adapter_tensors": len(weights.adapter)}


def _is_whole(shard: Path) -> bool:
    """Whether `shard` was finished and has the bytes that it had then; one that has not is named."""
    known = shard.with_suffix(SUM)
    if not shard.exists() or not known.exists():
        return False
    with shard.open("rb") as file:
        found = f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {shard.name}\n"
    if known.read_text(encoding="utf-8") == found:
        return True
    sys.stderr.write(f"{shard}: damaged; it is merged again\n")
    return False


def _write_configuration(weights: Merged, settings: params.Merge, tokenizer: Any, out: Path) -> None:
    """Write what transformers needs beside the weights: the two configurations and the tokenizer."""
    config, generation = weights.model.config, weights.model.generation_config
    if (weights.path / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(weights.path, local_files_only=True)
    config.architectures = [type(weights.model).__name__]
    config.dtype = settings.dtype
    generation.pad_token_id = config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(out)
    generation.save_pretrained(out)
    tokenizer.save_pretrained(out)


def trained(base_path: Path, adapter: Path, tokenizer: Any, quantization: params.Quantization) -> streamed.Adapted:
    """The adapter on the base as `quantization` held it, to be run layer by layer."""
    weights = Base(base_path, adapter, tokenizer)
    return streamed.Adapted(base_path, weights, quantization, weights.adapter.lora, weights.adapter.tensors)


def written(merged: Path) -> streamed.Decoder:
    """The merged model in the folder `merged`, to be run layer by layer, in float32 whatever it is stored in."""
    return streamed.Decoder(merged, shards.Shards(merged), torch.float32)


def in_float32(quantization: params.Quantization) -> params.Quantization:
    """The quantization that is none: weights as they are, computed with in float32."""
    return quantization.model_copy(
        update={"load_in_4bit": False, "load_in_8bit": False, "bnb_4bit_compute_dtype": "float32"}
    )


class Comparison:
    """How far apart two models are, from the logits of both at positions that are added one after another."""

    def __init__(self) -> None:
        self._largest = 0.0
        self._equal = 0
        self._divergences: list[float] = []
        self._losses: list[float] = []

    def add(self, ours: torch.Tensor, theirs: torch.Tensor, following: torch.Tensor) -> None:
        """Add positions: logits (positions, vocabulary) of both, and the label of the token that follows each."""
        self._largest = max(self._largest, float((ours - theirs).abs().max()))
        self._equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        ours, theirs = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        # By position first: the bytes of a sum over a whole matrix depend on the number of threads.
        self._divergences += (ours.exp() * (ours - theirs)).sum(-1).tolist()
        supervised = following != tokens.IGNORED
        self._losses += (-theirs[supervised].gather(1, following[supervised, None])).flatten().tolist()

    def parity(self) -> dict[str, float | int]:
        """The largest difference of logits, the mean Kullback-Leibler divergence of the second model from the first
        in nats, and the share of positions where both hold the same token most likely.
        """
        return {
            "max_logit_difference": self._largest,
            "mean_kl": math.fsum(self._divergences) / len(self._divergences),
            "equal_next_tokens": self._equal / len(self._divergences),
            "positions": len(self._divergences),
        }

    def validation_loss(self) -> float:
        """Cross entropy of the second model in nats per supervised token."""
        return math.fsum(self._losses) / len(self._losses)


def compare(
    ours: streamed.Decoder, hidden: list[torch.Tensor], theirs: streamed.Decoder, blocks: Any, what: str
) -> Comparison:
    """How far `theirs` is from `ours`, whose `hidden` states at `blocks` are known; `what` names the progress."""
    found = Comparison()
    for ours_at, theirs_at, block in zip(hidden, theirs.hidden(blocks, what), blocks, strict=True):
        following = torch.tensor([*block["labels"][1:], tokens.IGNORED])
        for start in range(0, len(following), POSITIONS):
            some = slice(start, start + POSITIONS)
            found.add(ours.logits(ours_at[some]), theirs.logits(theirs_at[some]), following[some])
    return found


@torch.no_grad()
def choose(
    live: streamed.Adapted,
    hidden: list[torch.Tensor],
    base_path: Path,
    adapter: Path,
    tokenizer: Any,
    quantization: params.Quantization,
    settings: params.Merge,
    blocks: Any,
) -> dict[str, Any]:
    """Which base weights make the better merged model: those of the lower loss on `blocks`; nothing is written.

    Both are measured as they would be stored, in `settings.dtype`. Returns the choice under `chosen`, and of each its
    validation loss in nats per supervised token and its mean divergence from `live`, whose `hidden` states are known.
    """
    measured: dict[str, Any] = {}
    for name in ("dequantized", "original"):
        weights = Merged(base_path, adapter, tokenizer, quantization, name, getattr(torch, settings.dtype))
        candidate = streamed.Decoder(base_path, weights, torch.float32)
        found = compare(live, hidden, candidate, blocks, f"merged into {name} weights")
        measured[name] = {"validation_loss": found.validation_loss(), "mean_kl": found.parity()["mean_kl"]}
    # Of equal losses the first: it keeps what was trained.
    return {"chosen": min(measured, key=lambda name: measured[name]["validation_loss"]), **measured}


def check_parity(measured: dict[str, float | int], settings: params.Merge, what: str) -> None:
    """Raise ValueError if `measured`, the parity with `what` was trained, is worse than `settings` allow."""
    wrong = []
    if not measured["equal_next_tokens"] >= settings.min_equal_next_tokens:  # so that NaN is worse than any threshold
        wrong.append(
            f"equal next tokens {measured['equal_next_tokens']:.4f}, below merge.min_equal_next_tokens, "
            f"{settings.min_equal_next_tokens}"
        )
    if not measured["mean_kl"] <= settings.max_mean_kl:
        wrong.append(f"mean KL {measured['mean_kl']:.2e} nats, above merge.max_mean_kl, {settings.max_mean_kl}")
    if wrong:
        raise ValueError(f"the merged model does not say what the adapter on {what} says: " + "; ".join(wrong))


def check_contract(merged: Path, examples: list[dict[str, Any]], trained: Any) -> dict[str, int]:
    """Whether the folder `merged` alone gives the very token ids of training; returns what was compared.

    `examples` (id, register, messages) are encoded by its own chat template, as a user's transformers would, and by
    `trained`, the tokenizer of the training tokens; and their end tokens must all be supervised. Those that hold a
    special token were not trained on. Raises ValueError.
    """
    examples = [example for example in examples if not tokens.forges(trained, example["messages"])]
    served = tokens.load_as_served(merged)
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
