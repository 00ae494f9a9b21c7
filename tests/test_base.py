import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from wronai import base, numerics, tokens

UNLOADABLE = r"not a (causal language model|tokenizer) that transformers can (load|read)"
REVISION = "0123456789abcdef0123456789abcdef01234567"


# Downloads, each in its turn, and says what each came to. In a process of its own: the address is read at import.
DOWNLOAD = """
import json, sys
from pathlib import Path
from wronai import base

said = []
for repository, revision, out in json.loads(sys.argv[1]):
    try:
        base.from_hub(repository, revision, Path(out))
        said.append("")
    except ValueError as error:
        said.append(str(error))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def downloads(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of a base that was downloaded, and what else was said by what was asked for."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(base_folder, folder / "repository")
    (folder / "repository/pytorch_model.bin").write_text("not wanted")
    refusals = {"wronai/closed": (401, "GatedRepo"), "wronai/broken": (501, "")}
    asked = {"tiny": REVISION, "no commit": "f" * 40, "none": REVISION, "closed": REVISION, "broken": REVISION}
    wanted = [
        (f"wronai/{name.replace('no commit', 'tiny')}", revision, str(folder / name))
        for name, revision in asked.items()
    ]
    with hub.serve(folder / "repository", "wronai/tiny", REVISION, refusals) as endpoint:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", DOWNLOAD, json.dumps(wanted)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "tiny", dict(zip(asked, json.loads(done.stdout), strict=True))


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_base_from_scratch_is_the_mistral_of_its_parameters(base_folder: Path) -> None:
    config = base.load(base_folder, torch.float32, device="meta").config
    assert config.model_type == "mistral"
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (600, 64, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.sliding_window) == (4, 2, 24)
    assert config.tie_word_embeddings is False
    tokenizer = tokens.load(base_folder)
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_pre_training_repeats_to_the_byte_and_is_better_than_chance(base_folder: Path, tmp_path: Path) -> None:
    numerics.deterministic("pinned", tiny.SEED)
    texts = tiny.texts()
    metrics = base.from_scratch(texts[5:], texts[:5], tiny.SCRATCH, tiny.SEED, tmp_path, tiny.ignore)
    assert metrics["validation_loss"] < math.log(600) - 0.5
    assert (metrics["tokens_seen"], metrics["documents"]) == (80 * 2 * 64, len(texts) - 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in base_folder.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (base_folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize("split", [(["Ala ma kota."], tiny.texts()), (tiny.texts(), ["Ala ma kota."]), ([], [])])
def test_too_little_text_is_an_error_that_says_what_is_missing(
    split: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a base needs at least one of each: add documents"):
        base.from_scratch(*split, tiny.SCRATCH, tiny.SEED, tmp_path, tiny.ignore)


def test_blocks_of_running_text_are_cut_from_the_stream_of_documents(base_folder: Path) -> None:
    tokenizer = tokens.load(base_folder)
    texts = tiny.texts()[:2]
    stream = [id_ for text in texts for id_ in tokenizer(f"<s>{text}</s>", add_special_tokens=False)["input_ids"]]
    blocks, count = base._blocks(tokenizer, texts, 16)
    assert count == len(stream)
    assert [id_ for block in blocks for id_ in block["input_ids"]] == stream[: len(stream) // 16 * 16]


def test_the_bytes_of_the_vocabulary_are_no_special_tokens(base_folder: Path) -> None:
    tokenizer = tokens.load(base_folder)
    assert tokenizer.all_special_tokens == ["<s>", "</s>", "<unk>"]
    assert tokenizer.convert_tokens_to_ids("<0x00>") == 3
    assert (
        tokenizer.decode(tokenizer("<s>ż漢", add_special_tokens=False)["input_ids"], skip_special_tokens=True) == "ż漢"
    )


def test_a_digit_stands_alone() -> None:
    tokenizer = base.train_tokenizer(["W 1939 i w 1939, a potem w 1939."] * 9, 300)
    assert tokenizer.tokenize("w 1939") == ["▁w", "▁", "1", "9", "3", "9"]


def test_the_check_gives_the_size_of_the_base(base_folder: Path) -> None:
    model = base.load(base_folder, torch.float32)
    assert base.check(base_folder) == {"parameters": model.num_parameters(), "vocab_size": 600}


def test_a_local_base_is_copied_without_what_is_not_its(base_copy: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "modeling_custom.py", "optimizer.pt"):
        (base_copy / name).write_text("x")
    base.from_local(base_copy, tmp_path / "out")
    base.check(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert names.isdisjoint({"pytorch_model.bin", "modeling_custom.py", "optimizer.pt"})


def test_a_local_base_that_is_not_there_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.path: .*none: no such folder"):
        base.from_local(tmp_path / "none", tmp_path / "out")


def test_a_base_without_safetensors_is_refused(base_copy: Path) -> None:
    (base_copy / "model.safetensors").rename(base_copy / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors; only weights in safetensors are loaded"):
        base.check(base_copy)


def test_a_base_without_tokenizer_json_is_refused(base_copy: Path) -> None:
    (base_copy / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        base.check(base_copy)


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "no-such-model"}', '{"model_type": "vit"}'])
def test_a_broken_configuration_is_one_clear_error(base_copy: Path, content: str) -> None:
    (base_copy / "config.json").write_text(content)
    with pytest.raises(ValueError, match=UNLOADABLE) as found:
        base.check(base_copy)
    assert "\n" not in str(found.value)


def test_a_base_without_a_configuration_is_one_clear_error(base_copy: Path) -> None:
    (base_copy / "config.json").unlink()
    with pytest.raises(ValueError, match="not a causal language model that transformers can load"):
        base.check(base_copy)


def test_code_in_a_base_is_not_run(base_copy: Path) -> None:
    rewrite_config(
        base_copy, model_type="custom", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.C"}
    )
    (base_copy / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match=UNLOADABLE):
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
    with pytest.raises(FileNotFoundError, match=r"names model-00002-of-00002\.safetensors, which the base lacks"):
        base.check(base_copy)


def test_a_missing_weight_is_not_made_up(base_copy: Path) -> None:
    weights = load_file(base_copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base_copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights .* such as model\.layers\.1\.mlp\.up_proj\.weight"):
        base.load(base_copy, torch.float32)


def test_weights_of_another_shape_are_refused(base_copy: Path) -> None:
    rewrite_config(base_copy, hidden_size=32)
    with pytest.raises(ValueError, match="not a causal language model that transformers can load"):
        base.load(base_copy, torch.float32)


def test_a_hub_base_is_that_of_its_commit_and_nothing_else(
    downloads: tuple[Path, dict[str, str]], base_folder: Path
) -> None:
    folder, said = downloads
    assert said["tiny"] == ""
    base.check(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in base_folder.iterdir())
    for path in base_folder.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("no commit", "no such commit in the repository (model.revision)"),
        ("none", "no such repository, or a private one that HF_TOKEN does not open"),
        ("closed", "gated; accept its terms on the hub and set HF_TOKEN"),
        ("broken", "the download failed: "),
    ],
)
def test_what_the_hub_refuses_is_one_line_that_names_the_key(
    downloads: tuple[Path, dict[str, str]], asked: str, reason: str
) -> None:
    said = downloads[1][asked]
    assert said.startswith("model.repository: wronai/")
    assert reason in said
    assert "\n" not in said


def test_a_base_with_subfolders_is_copied(base_copy: Path, tmp_path: Path) -> None:
    shutil.copytree(base_copy, base_copy / "tokenizer_old")
    base.from_local(base_copy, tmp_path / "out")
    base.check(tmp_path / "out")
