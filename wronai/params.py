"""The typed view of params.yaml: every value checked before the first stage does any work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rapidfuzz import process
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Section(BaseModel):
    """A section of params.yaml: no unknown key, no coercion between types, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Role = Literal["documents", "instructions"]
TextKind = Literal["edited", "web", "verse"]
Register = Literal["formal", "informal", "neutral"]


class EmbeddedSource(Section):
    name: Name
    kind: Literal["embedded"]
    path: str
    licence: str


class _Texts(Section):
    """What every source but the embedded one says of itself; a limit takes a part of it, for a pilot run."""

    name: Name
    licence: str
    date: str | None = None
    max_documents: Positive | None = None
    max_bytes: Positive | None = None


class _Tables(_Texts):
    """A source whose files may hold documents or instructions."""

    role: Role
    text_kind: TextKind | None = None
    columns: dict[str, str] | None = None
    register_: Register | None = Field(default=None, alias="register")


class RemoteFile(Section):
    url: Annotated[str, Field(pattern=r"^https?://")]
    sha256: Sha256
    bytes: Positive | None = None


RemoteFiles = Annotated[list[RemoteFile], Field(min_length=1)]


class LocalSource(_Tables):
    kind: Literal["local"]
    path: str


class HttpSource(_Tables):
    kind: Literal["http"]
    urls: RemoteFiles


class HubSource(_Tables):
    """The files of a dataset repository that match a pattern, at a commit; of these the first `shards`, if set."""

    kind: Literal["hub"]
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    files: str
    shards: Positive | None = None


class _Dump(_Texts):
    """Files that hold many documents, on the web or on this machine."""

    urls: RemoteFiles | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> _Dump:
        if (self.urls is None) == (self.path is None):
            raise ValueError("exactly one of urls and path must be set")
        return self


class WikimediaSource(_Dump):
    kind: Literal["wikimedia"]


class WarcSource(_Dump):
    kind: Literal["warc"]


SOURCES = (EmbeddedSource, LocalSource, HttpSource, HubSource, WikimediaSource, WarcSource)
Source = Annotated[
    EmbeddedSource | LocalSource | HttpSource | HubSource | WikimediaSource | WarcSource, Field(discriminator="kind")
]


class Data(Section):
    sources: Annotated[list[Source], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Data:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two sources are named {twice[0]!r}; ids of documents start with the name, so it must be unique"
            )
        return self


class Rules(Section):
    """The bounds that text of one kind must keep; null switches a rule off. `wronai.quality` says what each is."""

    max_share_boilerplate: Share | None
    min_words: Positive | None
    max_words: Positive | None
    min_language_confidence: Share | None
    min_paragraph_confidence: Share | None
    max_share_silesian: Share | None
    max_share_kashubian: Share | None
    min_share_diacritics: Share | None
    min_share_function_words: Share | None
    min_stop_words: Annotated[int, Field(ge=0)] | None
    min_mean_word_length: Annotated[float, Field(gt=0)] | None
    max_mean_word_length: Annotated[float, Field(gt=0)] | None
    min_share_alphabetic_words: Share | None
    max_symbols_per_word: Annotated[float, Field(ge=0)] | None
    max_share_bullet_lines: Share | None
    max_share_ellipsis_lines: Share | None
    min_share_punctuated_lines: Share | None
    max_new_lines_per_word: Annotated[float, Field(ge=0)] | None
    max_share_duplicate_lines: Share | None
    max_share_duplicate_line_characters: Share | None
    max_share_top_2gram: Share | None
    max_share_top_3gram: Share | None
    max_share_top_4gram: Share | None
    max_share_duplicate_5grams: Share | None
    max_share_duplicate_6grams: Share | None
    max_share_duplicate_7grams: Share | None
    max_share_duplicate_8grams: Share | None
    max_share_duplicate_9grams: Share | None
    max_share_duplicate_10grams: Share | None

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Rules:
        for low, high in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} is {least}, above {high}, {most}")
        return self


class Kinds(Section):
    web: Rules
    edited: Rules
    verse: Rules
    instructions: Rules


class Clean(Section):
    runner: Literal["native", "ray"]
    ray_address: str | None
    rules: Kinds
    mask_personal_data: bool
    minhash_bands: Annotated[int, Field(ge=1, le=256)]
    minhash_rows: Annotated[int, Field(ge=1, le=64)]
    minhash_ngram: Annotated[int, Field(ge=1, le=64)]
    contamination: Literal["drop", "count"]
    contamination_ngram: Annotated[int, Field(ge=8)]
    share_validation: Annotated[float, Field(gt=0, lt=1)]
    share_test: Annotated[float, Field(gt=0, lt=1)]
    max_share_dropped: Share

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Clean:
        if self.share_validation + self.share_test >= 1:
            raise ValueError(
                f"share_validation {self.share_validation} and share_test {self.share_test} leave nothing to train on"
            )
        return self


class Scratch(Section):
    vocab_size: Annotated[int, Field(ge=512)]  # 256 bytes, 3 special tokens, and room for merges
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    sliding_window: Positive
    max_position_embeddings: Positive
    max_steps: Positive
    per_device_train_batch_size: Positive
    block_size: Annotated[int, Field(ge=8)]
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_ratio: Share
    weight_decay: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _heads_divide(self) -> Scratch:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}; RoPE needs an even number of dimensions for each of the "
                f"{self.num_attention_heads} heads (num_attention_heads)"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, not a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}"
            )
        if self.block_size > self.max_position_embeddings:
            raise ValueError(
                f"block_size is {self.block_size}, above max_position_embeddings, {self.max_position_embeddings}"
            )
        return self


class Model(Section):
    base: Literal["scratch", "local", "hub"]
    built_from: str
    path: str | None
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    scratch: Scratch

    @model_validator(mode="after")
    def _base_is_said(self) -> Model:
        if self.base == "local" and not self.path:
            raise ValueError("base is local, and path is empty: it must name the folder of the base")
        if self.base == "hub" and not (self.repository and self.revision):
            raise ValueError(
                "base is hub: repository (owner/name) and revision (40 hex digits of a commit) must both be set"
            )
        expected = {"scratch": "data/clean", "local": self.path, "hub": "stages/prepare_base.py"}[self.base]
        if self.built_from != expected:
            raise ValueError(f"built_from is {self.built_from!r}; with base {self.base} it must be {expected!r}")
        return self


class Tokenize(Section):
    max_length: Annotated[int, Field(ge=16)]
    max_share_truncated: Share
    max_share_dropped: Share


class Lora(Section):
    r: Positive
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    bias: Literal["none"]
    target_modules: Annotated[list[Literal[TARGET_MODULES]], Field(min_length=1)]  # type: ignore[valid-type]


class Quantization(Section):
    load_in_4bit: Literal[True]
    bnb_4bit_quant_type: Literal["nf4", "fp4"]
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"]


class Finetune(Section):
    num_train_epochs: Annotated[float, Field(gt=0)]
    max_steps: int
    per_device_train_batch_size: Positive
    gradient_accumulation_steps: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"]
    warmup_ratio: Share
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"]
    gradient_checkpointing: bool
    eval_steps: Positive
    save_steps: Positive
    logging_steps: Positive
    lora: Lora
    quantization: Quantization

    @model_validator(mode="after")
    def _some_steps(self) -> Finetune:
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                f"max_steps is {self.max_steps}; expected a positive number, or -1 to go by num_train_epochs"
            )
        return self


class Merge(Section):
    base_weights: Literal["dequantized", "original"]
    dtype: Literal["float32", "bfloat16", "float16"]
    parity_blocks: Positive
    min_equal_next_tokens: Share
    max_mean_kl: Annotated[float, Field(ge=0)]


class Evaluate(Section):
    include_path: str
    tasks: Annotated[list[str], Field(min_length=1)]
    dtype: Literal["float32", "bfloat16", "float16"]
    num_fewshot: Annotated[int, Field(ge=0)]
    batch_size: Positive
    max_length: Annotated[int, Field(ge=16)]
    generations: Positive
    samples: Positive
    max_new_tokens: Positive
    do_sample: bool
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    repetition_penalty: Annotated[float, Field(ge=1)]
    bootstrap_resamples: Annotated[int, Field(ge=100)]


class Tracking(Section):
    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    """params.yaml as a whole, with the laws that hold between its sections."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    numerics: Literal["pinned", "native"]
    data: Data
    clean: Clean
    model: Model
    tokenize: Tokenize
    finetune: Finetune
    merge: Merge
    evaluate: Evaluate
    tracking: Tracking

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        wrong = []
        if self.numerics == "pinned":
            compute = self.finetune.quantization.bnb_4bit_compute_dtype
            if compute != "float32":
                wrong.append(
                    f"finetune.quantization.bnb_4bit_compute_dtype is {compute!r}; numerics: pinned needs 'float32'"
                )
            if self.evaluate.dtype != "float32":
                wrong.append(f"evaluate.dtype is {self.evaluate.dtype!r}; numerics: pinned needs 'float32'")
            if self.finetune.optim != "adamw_torch_fused":
                wrong.append(f"finetune.optim is {self.finetune.optim!r}; numerics: pinned needs 'adamw_torch_fused'")
        if self.model.base == "scratch":
            positions = self.model.scratch.max_position_embeddings
            for section, length in (("tokenize", self.tokenize.max_length), ("evaluate", self.evaluate.max_length)):
                if length > positions:
                    wrong.append(
                        f"{section}.max_length is {length}, above model.scratch.max_position_embeddings, {positions}"
                    )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class ParamsError(ValueError):
    """params.yaml does not say what the pipeline can run; the message lists every error, one a line."""


def load(path: Path) -> Params:
    """Read `path` as DVC does (YAML 1.2) and check it whole.

    Raises ParamsError with one line for each error: the dotted key, what was found, what is expected, and for an
    unknown key the nearest valid one.
    """
    return parse(read(path), path.name)


def read(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file `path`, unchecked. Raises ParamsError if it cannot be read."""
    try:
        raw = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run this from the root of the project") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    return raw


def parse(raw: Mapping[str, Any], name: str) -> Params:
    """The typed view of `raw`, a mapping as in params.yaml; `name` is the file that messages name."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        problems = [line for details in error.errors() for line in _explain(details)]
    count = f"{len(problems)} error" + ("s" if len(problems) > 1 else "")
    raise ParamsError("\n".join([f"{name}: {count}", *(f"  {problem}" for problem in problems)]))


def _explain(details: Any) -> list[str]:
    """One pydantic error as lines that start with its dotted key."""
    kinds = {kind for source in SOURCES for kind in get_args(source.model_fields["kind"].annotation)}
    location = [part for part in details["loc"] if part not in kinds]
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    if details["type"] == "extra_forbidden":
        parent, _, last = _unindexed(key).rpartition(".")
        valid = sorted(set(_keys(Params)))
        siblings = [name for name in valid if name.rpartition(".")[0] == parent]
        near = process.extractOne(last, {name: name.rpartition(".")[2] for name in siblings}, score_cutoff=60)
        nearest = near[2] if near else process.extract(_unindexed(key), valid, limit=1)[0][0]
        return [f"{key}: unknown key; the nearest valid key is {nearest}"]
    if details["type"] == "missing":
        return [f"{key}: missing; every key must stand in the file"]
    if details["type"] == "value_error":
        text = str(details["ctx"]["error"])
        return [f"{key}: {line}" if key else line for line in text.splitlines()]
    expected = details["msg"][0].lower() + details["msg"][1:]
    return [f"{key}: found {json.dumps(details['input'], ensure_ascii=False, default=str)}; expected: {expected}"]


def _unindexed(key: str) -> str:
    return ".".join(part.split("[")[0] for part in key.split("."))


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that `section` may hold; a list counts as its items."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        schema = field.annotation
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            yield from _keys(schema, f"{key}.")
        elif key == "data.sources":
            for source in SOURCES:
                yield from _keys(source, f"{key}.")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level of dotted keys: `{"lora": {"r": 8}}` is `{"lora.r": 8}`."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def select(config: Params, keys: list[str]) -> dict[str, Any]:
    """The values below the dotted `keys`, such as `["seed", "finetune.lora"]`, flattened to their full dotted keys."""
    return {
        key: value
        for key, value in flatten(config).items()
        if any(key == wanted or key.startswith(f"{wanted}.") for wanted in keys)
    }
