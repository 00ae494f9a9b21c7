"""What the tiny models of the tests are made of: texts, conversations and parameters."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wronai import params

SEED = 42
BLOCK = 128  # tokens in a packed block; several times the sliding window
SCRATCH = params.Scratch(
    vocab_size=600,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=24,
    max_position_embeddings=256,
    max_steps=80,
    per_device_train_batch_size=2,
    block_size=64,
    learning_rate=1.0e-2,
    warmup_ratio=0.05,
    weight_decay=0.1,
)
# What is not tiny: the shape in the config.json of Mistral-7B, for plans that read no weight.
MISTRAL_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
FINETUNE = params.Finetune(
    num_train_epochs=4,
    max_steps=-1,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=2,
    train_sampling_strategy="random",
    learning_rate=5.0e-3,
    loraplus_lr_ratio=None,
    lr_scheduler_type="cosine",
    warmup_ratio=0.1,
    weight_decay=0.0,
    max_grad_norm=1.0,
    neftune_noise_alpha=None,
    optim="adamw_torch_fused",
    gradient_checkpointing=True,
    check_memory=True,
    activation_offloading=False,
    max_loss_ratio=None,
    eval_steps=4,
    save_steps=3,
    save_total_limit=2,
    load_best_model_at_end=False,
    early_stopping_patience=None,
    early_stopping_threshold=0.0,
    logging_steps=2,
    lora=params.Lora(
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        bias="none",
        target_modules=list(params.TARGET_MODULES),
        use_rslora=False,
        use_dora=False,
        init_lora_weights=True,
    ),
    quantization=params.Quantization(
        load_in_4bit=True,
        load_in_8bit=False,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="float32",
        bnb_4bit_quant_storage="uint8",
    ),
    launch=params.Launch(
        processes=1, strategy="ddp", cpu_offload=False, machines=1, main_process_ip=None, main_process_port=None
    ),
)
MERGE = params.Merge(
    base_weights="dequantized", dtype="float32", parity_blocks=4, min_equal_next_tokens=0.99, max_mean_kl=1.0e-4
)
EVALUATE = params.Evaluate(
    include_path="benchmarks/tasks",
    tasks=["language"],
    num_fewshot=0,
    backend="hf",
    server=params.Server(url=None, model=None, concurrent=2),
    dtype="float32",
    limit=None,
    batch_size=4,
    max_length=64,
    retention="data/sample/retention",
    max_bytes_per_source=None,
    answers=params.Answers(
        generations=3,
        samples=2,
        max_new_tokens=12,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        repetition_penalty=1.1,
    ),
    bootstrap_resamples=200,
)

_TURNS = [
    ("formal", [("Która jest godzina?", "Jest za pięć ósma, proszę Pani.")]),
    ("informal", [("Co zjesz na śniadanie?", "Zjem jajecznicę na maśle, a ty?")]),
    ("neutral", [("Podaj stolicę Polski.", "Warszawa.")]),
    ("formal", [("Gdzie złożyć wniosek?", "W pokoju 12."), ("A do kiedy?", "Do końca miesiąca, proszę Pana.")]),
    ("informal", [("Pożyczysz mi rower?", "Jasne, bierz."), ("A kask?", "Kask też."), ("Dzięki!", "Nie ma sprawy.")]),
    ("neutral", [("Popraw: „poszłem do domu”.", "„Poszedłem do domu” – tak mówi mężczyzna.")]),
    ("formal", [("Czy mogę prosić o fakturę?", "Oczywiście, zaraz ją Państwu wystawię.")]),
    ("informal", [("Jak się masz?", "Świetnie 😀, właśnie wróciłem znad morza.")]),
    ("neutral", [("Ile to jest 2 + 2?", "To jest 4."), ("A razy 10?", "To jest 40.")]),
]


def conversation(number: int, register: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    """An instruction as clean_text stores it."""
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    return {"id": f"tiny/{number:02d}", "source": "tiny", "register": register, "task": "talk", "messages": messages}


CONVERSATIONS = [conversation(number, *_TURNS[number % len(_TURNS)]) for number in range(18)]


def texts() -> list[str]:
    """Some of the Polish documents of the embedded corpus."""
    lines = Path("data/sample/documents/news.jsonl").read_text(encoding="utf-8").splitlines()[:25]
    return [json.loads(line)["text"] for line in lines]


def document(number: int, text: str) -> dict[str, str]:
    """A document as clean_text stores it."""
    return {"id": f"tiny/{number:02d}", "source": "tiny", "genre": "news", "title": "", "text": text}


def bundle(folder: Path, task: str, items: Sequence[dict[str, Any]]) -> None:
    """A bundle of one task in `folder`/`task`, as far as clean_text reads it."""
    items_file = folder / task / task / "test.parquet"
    items_file.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(key for item in items for key in item)
    pq.write_table(pa.table({key: [item.get(key) for item in items] for key in columns}), items_file)
    (folder / task / "bundle.json").write_text(json.dumps({"tasks": {task: {"asked": "test"}}}), encoding="utf-8")


def prefix_words_as_mistral_does(folder: Path) -> None:
    """Let the tokenizer in `folder` put "▁" before each stretch of text between special tokens, as Mistral's does."""
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    prefix = {"type": "Prepend", "prepend": "▁"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    described |= {"pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": [prefix, spaces]}}
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")


def ignore(*_: object, **__: object) -> None:
    """Takes what a stage logs or measures."""
