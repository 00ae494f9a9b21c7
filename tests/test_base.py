import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from wronai import base, params, tokens

SHAPE = {
    "vocab_size": 608,  # more rows than the tokenizer has tokens, as many bases have
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "mistral": MistralConfig(**SHAPE, sliding_window=24, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=False),
}
MARKS = {  # a weight that only this family has, or what it is without
    "qwen2": "model.layers.0.self_attn.q_proj.bias",
    "qwen3": "model.layers.0.self_attn.q_norm.weight",
}


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_the_check_gives_the_size_of_the_base(base_folder: Path) -> None:
    model = base.load(base_folder, torch.float32)
    assert base.check(base_folder) == {"parameters": model.num_parameters(), "vocab_size": 600}


def test_a_base_without_safetensors_is_refused(base_copy: Path) -> None:
    (base_copy / "model.safetensors").rename(base_copy / "pytorch_model.bin")
    says = r"no \*\.safetensors \(there is pytorch_model\.bin\); only weights in safetensors are loaded"
    with pytest.raises(FileNotFoundError, match=says):
        base.check(base_copy)


def test_a_base_whose_weights_have_another_layout_is_refused(base_copy: Path) -> None:
    (base_copy / "model.safetensors").rename(base_copy / "consolidated.safetensors")
    says = r"neither model\.safetensors nor model\.safetensors\.index\.json; there is consolidated\.safetensors$"
    with pytest.raises(FileNotFoundError, match=says):
        base.check(base_copy)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}', "{}"])
def test_a_damaged_index_is_named(base_copy: Path, index: str) -> None:
    (base_copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(
        ValueError, match=r"model\.safetensors\.index\.json is damaged; expected JSON with a weight_map"
    ):
        base.check(base_copy)


def test_a_base_without_tokenizer_json_is_refused(base_copy: Path) -> None:
    (base_copy / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        base.check(base_copy)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "config.json: damaged; expected a JSON object"),
        ("7", "config.json: damaged; expected a JSON object"),
        ("{}", "model_type is None; expected one of llama, mistral, qwen2, qwen3"),
        ('{"model_type": "no-such-model"}', "model_type is 'no-such-model'; expected one of llama, mistral,"),
        ('{"model_type": "vit"}', "model_type is 'vit'; expected one of llama, mistral"),
        ('{"model_type": "llama", "hidden_size": "x"}', "not a causal language model that transformers can load"),
    ],
)
def test_a_broken_configuration_is_one_clear_error(base_copy: Path, content: str, says: str) -> None:
    (base_copy / "config.json").write_text(content)
    with pytest.raises(ValueError) as found:
        base.check(base_copy)
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_a_base_without_a_configuration_is_one_clear_error(base_copy: Path) -> None:
    (base_copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        base.check(base_copy)


def test_code_in_a_base_is_not_run(base_copy: Path) -> None:
    (base_copy / "evil.py").write_text("raise SystemExit('ran')")
    code = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.C"}
    rewrite_config(base_copy, auto_map=code)
    base.check(base_copy)
    rewrite_config(base_copy, model_type="custom", auto_map=code)
    with pytest.raises(ValueError, match="model_type is 'custom'"):
        base.check(base_copy)


def test_a_quantized_base_is_refused(base_copy: Path) -> None:
    rewrite_config(base_copy, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(ValueError, match=r"quantized already \(quant_method 'awq'\); expected full weights"):
        base.check(base_copy)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(base_copy: Path) -> None:
    larger = tokens.load(base_copy)
    larger.add_tokens(["nowy"])
    larger.save_pretrained(base_copy)
    with pytest.raises(ValueError, match="tokenizer has 601 tokens, and the embedding 600 rows"):
        base.check(base_copy)


def test_truncated_weights_are_damaged(base_copy: Path) -> None:
    file = base_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        base.check(base_copy)
    with pytest.raises(ValueError, match="not a causal language model that transformers can load"):
        base.load(base_copy, torch.float32)


def test_a_missing_shard_is_named(base_copy: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (base_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"names model-00002-of-00002\.safetensors, which it lacks"):
        base.check(base_copy)


def test_a_missing_weight_is_not_made_up(base_copy: Path) -> None:
    weights = load_file(base_copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base_copy / "model.safetensors", {"format": "pt"})
    for look in (base.check, lambda path: base.load(path, torch.float32)):
        with pytest.raises(ValueError, match=r"lacks 1 weights .* such as model\.layers\.1\.mlp\.up_proj\.weight"):
            look(base_copy)


def test_weights_of_another_shape_are_refused(base_copy: Path) -> None:
    rewrite_config(base_copy, hidden_size=32)
    says = r"embed_tokens\.weight has the shape \[600, 64\], and config\.json makes it \[600, 32\]"
    with pytest.raises(ValueError, match=says):
        base.check(base_copy)
    with pytest.raises(ValueError, match="not a causal language model that transformers can load"):
        base.load(base_copy, torch.float32)


def test_weights_that_are_no_plain_numbers_are_refused(base_copy: Path) -> None:
    weights = load_file(base_copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, base_copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name} is stored as F8_E4M3; expected one of BF16, F16, F32"):
        base.check(base_copy)


def made(config: PretrainedConfig, folder: Path, base_folder: Path) -> Any:
    """A random model of the configuration in `folder`, with the tokenizer of the tiny base; returns the model."""
    torch.manual_seed(tiny.SEED)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    tokens.load(base_folder).save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", base.FAMILIES)
def test_a_base_of_each_family_is_checked_and_loaded(family: str, base_folder: Path, tmp_path: Path) -> None:
    model = made(CONFIGS[family], tmp_path, base_folder)
    expected = {"parameters": model.num_parameters(), "vocab_size": 608}
    assert base.check(tmp_path) == expected | ({"tied_embeddings": True} if family == "qwen2" else {})
    ids = torch.arange(40)[None]
    loaded = base.load(tmp_path, torch.float32).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    names = set(dict(model.named_parameters()))
    assert [kind for kind, mark in MARKS.items() if mark in names] == [kind for kind in MARKS if kind == family]
    assert ("lm_head.weight" in names) == (family != "qwen2")


@pytest.mark.parametrize("family", base.FAMILIES)
def test_lora_may_sit_on_every_linear_layer_but_the_head(family: str, base_folder: Path, tmp_path: Path) -> None:
    made(CONFIGS[family], tmp_path, base_folder)
    outline = base.outline(tmp_path)
    layers = base.linears(outline)
    assert len(layers) == 2 * len(params.TARGET_MODULES)
    assert {name.rpartition(".")[2] for name in layers} == set(params.TARGET_MODULES)
    base.check_targets(outline, params.TARGET_MODULES)


@pytest.mark.parametrize("unknown", ["lm_head", "proj", "q_norm", "query_key_value", "self_attn.q_proj"])
def test_a_layer_that_the_base_lacks_is_named_with_those_that_it_has(unknown: str, base_folder: Path) -> None:
    with pytest.raises(ValueError) as found:
        base.check_targets(base.outline(base_folder), ["q_proj", unknown])
    assert str(found.value) == (
        f"finetune.lora.target_modules: the base has no linear layer {unknown}; "
        "it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_a_base_of_another_family_is_refused(base_folder: Path, tmp_path: Path) -> None:
    made(GPT2Config(vocab_size=608, n_embd=64, n_layer=2, n_head=4), tmp_path, base_folder)
    with pytest.raises(ValueError, match="model_type is 'gpt2'; expected one of llama, mistral, qwen2, qwen3"):
        base.check(tmp_path)


def test_14_gb_are_checked_in_little_memory(base_folder: Path, tmp_path: Path) -> None:
    config = MistralConfig(tie_word_embeddings=False, vocab_size=32_000)  # transformers' defaults are Mistral-7B's
    config.save_pretrained(tmp_path)
    tokens.load(base_folder).save_pretrained(tmp_path)
    with torch.device("meta"):
        wanted = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    header: dict[str, Any] = {}
    end = 0
    for name, weight in wanted.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(weight.shape),
            "data_offsets": [end, end := end + 2 * weight.numel()],
        }
    head = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + end)  # a hole, which takes no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert base.check(tmp_path) == {"parameters": 7_241_732_096, "vocab_size": 32_000}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
