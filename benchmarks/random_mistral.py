"""Write a checkpoint of Mistral-7B's shape with random weights: 14.5 GB of bfloat16 safetensors and a tokenizer.

    python benchmarks/random_mistral.py FOLDER [--layers 32] [--hidden 4096]

The tokenizer is trained on the documents of the sample and filled up to Mistral's 32,000 tokens with words that never
occur. The weights are drawn on the GPU if there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SPREAD = 0.02  # as transformers draws a Mistral's weights


def main() -> None:
    """Write the folder, and say how large it is and how long that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    arguments = parser.parse_args()
    started = time.monotonic()
    size = write(arguments.folder, arguments.layers, arguments.hidden)
    print(f"{arguments.folder}: {size / 1e9:.1f} GB in {time.monotonic() - started:.0f} s")


def write(folder: Path, layers: int = 32, hidden: int = 4096) -> int:
    """Write the checkpoint, one shard for the embedding and head and one for each two layers; returns its bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, MistralConfig

    config = MistralConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        sliding_window=4096,
        max_position_embeddings=32_768,
        dtype="bfloat16",
        architectures=["MistralForCausalLM"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer(config.vocab_size).save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    shards: dict[int, list[str]] = {}
    for name in shapes:
        layer = name.removeprefix("model.layers.").split(".")[0]
        shards.setdefault(1 + int(layer) // 2 if layer.isdigit() else 0, []).append(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": {}}
    for number, names in sorted(shards.items()):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            value = torch.ones(shapes[name], dtype=torch.bfloat16, device=device)
            if "norm" not in name:
                value.normal_(std=SPREAD, generator=generator)
            tensors[name] = value.cpu()
            index["weight_map"][name] = file
            index["metadata"]["total_size"] += value.nbytes
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return int(index["metadata"]["total_size"])


def tokenizer(size: int) -> Any:
    """A tokenizer of `size` tokens that splits Polish as one of the sample's documents does."""
    from tokenizers import Tokenizer

    from wronai import pretraining

    texts = [
        json.loads(line)["text"]
        for path in sorted((ROOT / "data/sample/documents").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    trained = pretraining.train_tokenizer(texts, size)
    described = json.loads(trained.backend_tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    vocabulary |= {f"<unused_{number}>": number for number in range(len(vocabulary), size)}
    trained._tokenizer = Tokenizer.from_str(json.dumps(described))
    return trained


if __name__ == "__main__":
    main()
