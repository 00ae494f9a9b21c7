"""Bases of other families, tiny and random: their tokenizers in the shape that each publishes, through every stage."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from stages.finetune_qlora import finetune_qlora
from stages.merge_adapters import merge_adapters
from stages.tokenize_text import tokenize_text
from wronai import base, corpus, merging, numerics, params, pretraining, prompt, qlora, tokens

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# How the families part a text into what BPE then works on: contractions, words with what stands before them, digits,
# signs, white space. They differ in how many digits stand together.
PARTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SETTINGS = params.Tokenize(
    max_length=tiny.BLOCK,
    packing=True,
    mixture=params.Mixture(instructions=0.1, documents=0.9),
    max_share_truncated=0.3,
    max_share_dropped=0.0,
)
TEXTS = [
    "Zażółć gęślą jaźń, ZAŻÓŁĆ GĘŚLĄ JAŹŃ.",
    "„Tak” – powiedział… ‚nie’?",
    "😀 👩‍👩‍👧 I'LL",
    "a\tb\n\n  c  \r\n",
    " spacja z przodu i z tyłu ",
    "12 345,67 zł, 2026 rok i 3×10⁸ m/s",
    "中文, кириллица\u0000, <0x41>",
    "",
]


def words_after_a_space(folder: Path, prepends: bool) -> None:
    """Mistral's and Llama 2's tokenizer: BPE with byte fallback, "▁" for a space and before a text.

    In older files (`prepends`) that is a normalizer, and each part between special tokens begins with "▁"; in newer
    ones the first part alone does.
    """
    pretraining.train_tokenizer(tiny.texts(), 600).save_pretrained(folder)
    if prepends:
        tiny.prefix_words_as_mistral_does(folder)
    else:
        described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        described |= {"normalizer": None, "pre_tokenizer": spaces}
        (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    configure(
        folder,
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token=None,
        add_bos_token=True,
        add_eos_token=False,
        legacy=prepends,
        sp_model_kwargs={},
    )


def bytes_in_parts(folder: Path, digits: str, special: list[str], begin: str | None, *, nfc: bool) -> None:
    """Llama 3's and Qwen's tokenizer: BPE on the bytes of each part, special tokens after all others."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=not nfc))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    parts = pre_tokenizers.Split(Regex(PARTS.replace("DIGITS", digits)), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        tiny.texts(), trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if begin:
        template = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    tokenizer.save(str(folder / "tokenizer.json"))


def llama3_tokenizer(folder: Path) -> None:
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    bytes_in_parts(folder, r"\p{N}{1,3}", [begin, end, "<|reserved_special_token_0|>"], begin, nfc=False)
    configure(
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=begin,
        eos_token=end,
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
    )


def qwen_tokenizer(folder: Path) -> None:
    bytes_in_parts(folder, r"\p{N}", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, nfc=True)
    configure(
        folder,
        tokenizer_class="Qwen2Tokenizer",
        bos_token=None,
        eos_token="<|endoftext|>",
        unk_token=None,
        pad_token="<|endoftext|>",
        add_bos_token=False,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template="{{ messages }}",
        model_max_length=32768,
    )


def configure(folder: Path, **described: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")


@dataclass(frozen=True)
class Family:
    """What a family publishes, and what the ten tokens and their format then find: begin, end and padding token."""

    write_tokenizer: Callable[[Path], None]
    config: type[PreTrainedConfig]
    tied: bool
    begin: str
    end: str
    padding: str
    spare_rows: int = 0  # of the embedding, beyond the tokens


FAMILIES = {
    "mistral": Family(
        lambda folder: words_after_a_space(folder, prepends=True), MistralConfig, False, "<s>", "</s>", "<unk>"
    ),
    "llama2": Family(
        lambda folder: words_after_a_space(folder, prepends=False), LlamaConfig, False, "<s>", "</s>", "<unk>"
    ),
    "llama3": Family(llama3_tokenizer, LlamaConfig, True, "<|begin_of_text|>", "<|end_of_text|>", "<polish>"),
    "qwen2": Family(qwen_tokenizer, Qwen2Config, True, "", "<|endoftext|>", "<polish>", spare_rows=45),
    "qwen3": Family(qwen_tokenizer, Qwen3Config, False, "", "<|endoftext|>", "<polish>", spare_rows=3),
}


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory, pinned: None, family: Family) -> Path:
    """A base of the family with random weights and a tokenizer of 600 tokens, as prepare_base leaves it."""
    folder = tmp_path_factory.mktemp("family")
    family.write_tokenizer(folder)
    rows = len(tokens.load(folder)) + family.spare_rows
    torch.manual_seed(tiny.SEED)
    own = {"sliding_window": 24} if family.config is MistralConfig else {"head_dim": 16}
    config = family.config(vocab_size=rows, tie_word_embeddings=family.tied, initializer_range=0.1, **SMALL, **own)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenized(tmp_path_factory: pytest.TempPathFactory, family_folder: Path) -> Path:
    """What tokenize_text made for the family, of conversations and documents: tokens/ and tokenizer/; and clean/."""
    folder = tmp_path_factory.mktemp("tokenized")
    documents = [tiny.document(number, text) for number, text in enumerate(tiny.texts())]
    for split, part in (("train", slice(6, None)), ("validation", slice(0, 6))):
        corpus.write_table(
            tiny.CONVERSATIONS[part], corpus.INSTRUCTIONS, folder / "clean/instructions" / f"{split}.parquet"
        )
        corpus.write_table(documents[part], corpus.DOCUMENTS, folder / "clean/documents" / f"{split}.parquet")
    tokenize_text(folder / "clean", family_folder, SETTINGS, tiny.SEED, folder / "tokenizer", folder / "tokens")
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_split_as_tokenizer_json_says(family_folder: Path, text: str) -> None:
    said = Tokenizer.from_file(str(family_folder / "tokenizer.json")).encode(text, add_special_tokens=False)
    own = tokens.load(family_folder)
    ids = own(text, add_special_tokens=False)["input_ids"]
    assert ids == said.ids
    assert own.decode(ids).strip(" ") == text.strip(" ")


def test_the_base_fits_its_tokenizer(family: Family, family_folder: Path) -> None:
    assert base.check(family_folder)["vocab_size"] == len(tokens.load(family_folder)) + family.spare_rows


def test_it_begins_ends_and_pads_with_what_the_family_has(family: Family, tokenized: Path) -> None:
    tokenizer = tokens.load(tokenized / "tokenizer")
    assert (tokenizer.bos_token or "", tokenizer.eos_token) == (family.begin, family.end)
    assert tokenizer.pad_token == family.padding != tokenizer.eos_token


def test_the_template_gives_the_ids_of_training_whatever_the_text(family: Family, tokenized: Path) -> None:
    tokenizer = tokens.load(tokenized / "tokenizer")
    for question in TEXTS:
        for answer in TEXTS:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            ids, labels = tokens.encode(tokenizer, messages, "formal")
            asked = tokenizer.apply_chat_template(messages, register="formal", return_assistant_tokens_mask=True)
            assert asked["input_ids"] == ids
            supervised = [label for label in labels if label != tokens.IGNORED]
            closing = f"</answer></formal></polish>{family.end}"
            assert tokenizer.decode(supervised).strip(" ") == (answer + closing).strip(" ")
            assert ids[: len(ids) - len(supervised)][-1] == tokenizer.convert_tokens_to_ids("<answer>")


def test_auto_tokenizer_beside_the_model_gives_the_ids_of_training(
    family_folder: Path, tokenized: Path, tmp_path: Path
) -> None:
    trained = tokens.load(tokenized / "tokenizer")
    trained.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((family_folder / "config.json").read_bytes())
    examples = [*tiny.CONVERSATIONS, tiny.conversation(99, "formal", list(zip(TEXTS[:6], TEXTS[2:], strict=True)))]
    assert merging.check_contract(tmp_path, examples, trained)["contract_examples"] == len(examples)
    served = tokens.load_as_served(tmp_path)
    for text in TEXTS:
        ids = trained(text, add_special_tokens=False)["input_ids"]
        assert served(text, add_special_tokens=False)["input_ids"] == ids
        assert served.decode(ids) == trained.decode(ids)


def test_blocks_hold_examples_and_pieces_that_begin_and_end_as_the_family_does(family: Family, tokenized: Path) -> None:
    tokenizer = tokens.load(tokenized / "tokenizer")
    texts = {"conversation": 0, "document": 0}
    for row in tokens.read(tokenized / "tokens/train.parquet"):
        for text in tokenizer.decode(row["input_ids"]).split(family.end)[:-1]:
            kind = "conversation" if "<polish>" in text else "document"
            texts[kind] += 1
            if kind == "conversation":
                assert text.startswith(f"{family.begin}<polish>") and text.endswith("</polish>")
    assert texts["conversation"] == len(tiny.CONVERSATIONS[6:]) and texts["document"] > 0


def test_a_text_with_a_token_of_the_family_is_not_trained_on(family: Family, tokenized: Path) -> None:
    tokenizer = tokens.load(tokenized / "tokenizer")
    for token in tokenizer.added_tokens_decoder.values():
        assert tokens.forges(tokenizer, [{"role": "user", "content": f"Co to jest {token}?"}])


def test_it_is_quantized_with_a_row_for_every_token(family: Family, family_folder: Path, tokenized: Path) -> None:
    tokenizer = tokens.load(tokenized / "tokenizer")
    model = qlora.load_quantized(family_folder, tokenizer, tiny.FINETUNE.quantization, tiny.SEED)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding.shape[0] == max(len(tokenizer), len(tokenizer) - len(prompt.TOKENS) + family.spare_rows)
    assert (embedding is head) == family.tied
    assert embedding[tokens.added_ids(tokenizer)].float().std(0).min() > 0


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, family_folder: Path, tokenized: Path) -> tuple[Path, Any]:
    """The adapter that finetune_qlora wrote for the family, and the metrics that it returned."""
    folder = tmp_path_factory.mktemp("tuned")
    numerics.deterministic("pinned", tiny.SEED)
    metrics = finetune_qlora(
        tokenized / "tokens",
        family_folder,
        tokenized / "tokenizer",
        tiny.FINETUNE.model_copy(update={"max_steps": 12, "eval_steps": 12, "save_steps": 12}),
        tiny.SEED,
        folder / "checkpoints",
        folder / "adapter",
        folder / "loss_curve.csv",
        tiny.ignore,
        tiny.ignore,
    )
    return folder / "adapter", metrics


def test_training_lowers_the_loss(adapter: tuple[Path, Any]) -> None:
    assert adapter[1]["validation_loss"] < adapter[1]["validation_loss_before"]


def test_the_merged_model_says_what_the_adapter_says_and_is_served_the_ids_of_training(
    family_folder: Path, tokenized: Path, adapter: tuple[Path, Any], tmp_path: Path
) -> None:
    metrics = merge_adapters(
        adapter[0],
        family_folder,
        tokenized / "tokenizer",
        tokenized / "tokens",
        tokenized / "clean/instructions/train.parquet",
        tiny.FINETUNE.quantization,
        tiny.MERGE,
        tmp_path / "checkpoints",
        tmp_path / "merged",
    )
    assert metrics["parity"]["equal_next_tokens"] >= tiny.MERGE.min_equal_next_tokens
    assert metrics["contract_examples"] == len(tiny.CONVERSATIONS[6:])
