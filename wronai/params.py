"""The typed view of params.yaml: every value checked before the first stage does any work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from rapidfuzz import process
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# The linear layers of a Mistral, a Llama or a Qwen; prepare_base holds finetune.lora.target_modules to the base itself.
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Section(BaseModel):
    """A section of params.yaml: no unknown key, no coercion between types, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Dtype = Literal["float32", "bfloat16", "float16"]
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
    revision: Annotated[str, Field(min_length=1)] | None
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


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Mixture(Section):
    instructions: Weight
    documents: Weight

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Mixture:
        if not self.instructions and not self.documents:
            raise ValueError("instructions and documents are both 0; at least one must be above it")
        return self


class Tokenize(Section):
    max_length: Annotated[int, Field(ge=16)]
    packing: bool
    mixture: Mixture
    max_share_truncated: Share
    max_share_dropped: Share


class Lora(Section):
    r: Positive
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    bias: Literal["none"]
    target_modules: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    use_rslora: bool
    use_dora: bool
    init_lora_weights: Literal[True, "gaussian", "loftq"]

    @model_validator(mode="after")
    def _modules_differ(self) -> Lora:
        if twice := sorted({name for name in self.target_modules if self.target_modules.count(name) > 1}):
            raise ValueError(f"target_modules names {', '.join(twice)} more than once")
        return self


class Quantization(Section):
    """How the base is held while it is tuned; with neither load_in_4bit nor load_in_8bit in its compute dtype."""

    load_in_4bit: bool
    load_in_8bit: bool
    bnb_4bit_quant_type: Literal["nf4", "fp4"]
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: Dtype
    bnb_4bit_quant_storage: Literal["uint8", Dtype]

    @property
    def held(self) -> str:
        """What the adapter is trained on, for a reader: 4 bits, 8 bits, or the base as it is."""
        return "4 bits" if self.load_in_4bit else "8 bits" if self.load_in_8bit else "the base"

    @model_validator(mode="after")
    def _one_width(self) -> Quantization:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both true; at most one may be")
        return self


class Launch(Section):
    """How many processes train together, by what strategy, and where those of several machines meet."""

    processes: Positive
    strategy: Literal["ddp", "fsdp"]
    cpu_offload: bool
    machines: Positive
    main_process_ip: Annotated[str, Field(min_length=1)] | None
    main_process_port: Annotated[int, Field(ge=1, le=65535)] | None

    @model_validator(mode="after")
    def _can_be_started(self) -> Launch:
        wrong = []
        if self.processes % self.machines:
            wrong.append(
                f"processes is {self.processes}, of all machines; expected a multiple of machines, {self.machines}"
            )
        if self.machines > 1 and (self.main_process_ip is None or self.main_process_port is None):
            wrong.append(
                f"machines is {self.machines}: main_process_ip and main_process_port of machine 0 must both be set"
            )
        if self.strategy == "fsdp" and self.processes == 1:
            wrong.append("strategy is 'fsdp' and processes is 1, which shards nothing; expected 'ddp'")
        if self.cpu_offload and self.strategy != "fsdp":
            wrong.append(f"cpu_offload is true and strategy is {self.strategy!r}; only 'fsdp' offloads")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Finetune(Section):
    num_train_epochs: Annotated[float, Field(gt=0)]
    max_steps: int
    per_device_train_batch_size: Positive
    gradient_accumulation_steps: Positive
    train_sampling_strategy: Literal["random", "group_by_length"]
    learning_rate: Annotated[float, Field(gt=0)]
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None
    # Those of transformers that take no argument of their own; cosine_with_restarts and polynomial, without theirs, are
    # cosine and linear.
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt"]
    warmup_ratio: Share
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    neftune_noise_alpha: Annotated[float, Field(gt=0)] | None
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"]
    gradient_checkpointing: bool
    check_memory: bool
    activation_offloading: bool
    max_loss_ratio: Annotated[float, Field(gt=1)] | None
    eval_steps: Positive
    save_steps: Positive
    save_total_limit: Positive
    load_best_model_at_end: bool
    early_stopping_patience: Positive | None
    early_stopping_threshold: Annotated[float, Field(ge=0)]
    logging_steps: Positive
    lora: Lora
    quantization: Quantization
    launch: Launch

    @model_validator(mode="after")
    def _something_to_correct(self) -> Finetune:
        bits = self.quantization.load_in_4bit or self.quantization.load_in_8bit
        if self.lora.init_lora_weights == "loftq" and not bits:
            raise ValueError(
                "lora.init_lora_weights is 'loftq', which makes up for the error of quantization, and quantization has "
                "neither load_in_4bit nor load_in_8bit"
            )
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Finetune:
        if self.launch.strategy != "fsdp":
            return self
        wrong, held = [], self.quantization
        if held.load_in_8bit:
            wrong.append("quantization.load_in_8bit is true; launch.strategy 'fsdp' shards 4 bits or none")
        if held.load_in_4bit and held.bnb_4bit_quant_storage != held.bnb_4bit_compute_dtype:
            wrong.append(
                f"quantization.bnb_4bit_quant_storage is {held.bnb_4bit_quant_storage!r}; launch.strategy 'fsdp' "
                "shards only what is stored as the rest of a layer is, by bnb_4bit_compute_dtype "
                f"{held.bnb_4bit_compute_dtype!r}"
            )
        if "8bit" in self.optim:
            wrong.append(
                f"optim is {self.optim!r}; bitsandbytes' optimizers have no sharding strategy, so launch.strategy "
                "'fsdp' needs 'adamw_torch_fused' or 'adamw_torch'"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @model_validator(mode="after")
    def _training_agrees(self) -> Finetune:
        wrong = []
        if self.max_steps == 0 or self.max_steps < -1:
            wrong.append(f"max_steps is {self.max_steps}; expected a positive number, or -1 to go by num_train_epochs")
        if self.lr_scheduler_type == "constant" and self.warmup_ratio:
            wrong.append(
                f"warmup_ratio is {self.warmup_ratio}, and lr_scheduler_type constant has no warm-up; expected 0.0, or "
                "constant_with_warmup"
            )
        if self.load_best_model_at_end and self.save_steps % self.eval_steps:
            wrong.append(
                f"save_steps is {self.save_steps}; with load_best_model_at_end it must be a multiple of eval_steps, "
                f"{self.eval_steps}: the best is sought among the checkpoints that were evaluated"
            )
        if self.early_stopping_patience and not self.load_best_model_at_end:
            wrong.append(
                "early_stopping_patience is set, and load_best_model_at_end is false: that would keep the weights that "
                "had stopped getting better; set it to true"
            )
        if self.activation_offloading and not self.gradient_checkpointing:
            wrong.append(
                "activation_offloading is true, and gradient_checkpointing false: what is offloaded are the inputs of "
                "checkpointed layers; set it to true"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Merge(Section):
    base_weights: Literal["dequantized", "original", "auto"]
    dtype: Dtype
    parity_blocks: Positive
    min_equal_next_tokens: Share
    max_mean_kl: Annotated[float, Field(ge=0)]


Backend = Literal["hf", "vllm", "server"]


def _batch_size(value: Any) -> Any:
    """Checks the union as one: pydantic would report an error for each of its sides, under a key of its own."""
    if value != "auto" and (type(value) is not int or value < 1):
        raise ValueError(f"found {value!r}; expected a number of rows, 1 or more, or 'auto'")
    return value


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_batch_size)]


class Server(Section):
    """A server that speaks the OpenAI completions protocol and holds the model; read with backend server alone."""

    url: Annotated[str, Field(pattern=r"^https?://")] | None
    model: Annotated[str, Field(min_length=1)] | None
    concurrent: Positive


class Scoring(Section):
    """The part of `evaluate` that decides how one model is scored, whatever it is scored on."""

    backend: Backend
    server: Server
    dtype: Dtype
    limit: Positive | None
    batch_size: BatchSize
    max_length: Annotated[int, Field(ge=16)]


class Answers(Section):
    """Held-out questions that are answered: how many, how, and how many of them are saved to be read."""

    generations: Positive
    samples: Positive
    max_new_tokens: Positive
    do_sample: bool
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    repetition_penalty: Annotated[float, Field(ge=1)]

    @model_validator(mode="after")
    def _samples_are_answers(self) -> Answers:
        if self.samples > self.generations:
            raise ValueError(f"samples is {self.samples}, above generations, {self.generations}, of which they are")
        return self


class Evaluate(Scoring):
    include_path: str
    num_fewshot: Annotated[int, Field(ge=0)] | None
    tasks: Annotated[list[Annotated[str, Field(pattern=r"^[\w][\w.-]*$")]], Field(min_length=1)]
    retention: str
    max_bytes_per_source: Positive | None
    answers: Answers
    bootstrap_resamples: Annotated[int, Field(ge=100)]

    @property
    def scoring(self) -> Scoring:
        """The keys of `Scoring` alone."""
        return Scoring(**{key: getattr(self, key) for key in Scoring.model_fields})

    @model_validator(mode="after")
    def _can_be_scored(self) -> Evaluate:
        wrong = []
        if twice := sorted({name for name in self.tasks if self.tasks.count(name) > 1}):
            wrong.append(f"tasks names {', '.join(twice)} more than once")
        if "text" in self.tasks:
            wrong.append("tasks names text, where score_text keeps its scores; give the folder another name")
        if self.backend == "server" and (self.server.url is None or self.server.model is None):
            wrong.append("backend is 'server': server.url and server.model must both be set")
        elif self.backend == "server" and "{model}" not in f"{self.server.url} {self.server.model}":
            wrong.append(
                "backend is 'server': base and tuned would both be asked of one model; expected {model}, which becomes "
                "base or merged, in server.url or in server.model"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Tracking(Section):
    experiment: Annotated[str, Field(min_length=1)]
    log_adapter: bool
    registered_model_name: Annotated[str, Field(pattern=r"^[^/:'\"\s]+$")] | None


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
            if self.finetune.launch.strategy == "fsdp":
                wrong.append("finetune.launch.strategy is 'fsdp', which needs GPUs; numerics: pinned is of CPUs")
            compute = self.finetune.quantization.bnb_4bit_compute_dtype
            if compute != "float32":
                wrong.append(
                    f"finetune.quantization.bnb_4bit_compute_dtype is {compute!r}; numerics: pinned needs 'float32'"
                )
            if self.evaluate.dtype != "float32":
                wrong.append(f"evaluate.dtype is {self.evaluate.dtype!r}; numerics: pinned needs 'float32'")
            if self.evaluate.backend != "hf":
                wrong.append(
                    f"evaluate.backend is {self.evaluate.backend!r}; numerics: pinned needs 'hf', this process"
                )
            if self.finetune.quantization.load_in_8bit:
                wrong.append(
                    "finetune.quantization.load_in_8bit is true; numerics: pinned needs float32, and it takes float16"
                )
            if self.finetune.lora.init_lora_weights == "loftq":
                wrong.append(
                    "finetune.lora.init_lora_weights is 'loftq'; its singular vectors are not the same on every "
                    "processor, so it needs numerics: native"
                )
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
