import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import decoders
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wronai import base, merging, params, pretraining, prompt, qlora, shards, tokens, training

BITS = tiny.FINETUNE.quantization
SMALL = 100_000  # bytes of a shard: several of the tiny model
WHOLE = 2_000_000_000
LOW = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def merge(
    base_folder: Path,
    adapter: Path,
    tokenizer: Any,
    out: Path,
    settings: params.Merge = tiny.MERGE,
    quantization: params.Quantization = BITS,
    max_shard_size: int = WHOLE,
) -> dict[str, int]:
    what = base_folder, adapter, tokenizer, quantization, settings
    work = out.with_name(f"{out.name}-checkpoints") / merging.run_key(*what, max_shard_size)
    return merging.merge(*what, out, work=work, max_shard_size=max_shard_size)


def parity(
    base_folder: Path,
    adapter: Path,
    tokenizer: Any,
    merged: Path,
    blocks: Any,
    quantization: params.Quantization = BITS,
) -> dict[str, float | int]:
    """The parity of the folder `merged` with the adapter on the base, quantized so."""
    live = merging.trained(base_folder, adapter, tokenizer, quantization)
    return merging.compare(live, live.hidden(blocks, "live"), merging.written(merged), blocks, "merged").parity()


def assert_same_files(ours: Path, theirs: Path) -> None:
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for path in ours.iterdir():
        assert path.read_bytes() == (theirs / path.name).read_bytes(), path.name


@pytest.fixture
def blocks(blocks_folder: Path) -> Any:
    return tokens.read(blocks_folder / "validation.parquet")


@pytest.mark.parametrize("max_shard_size", [WHOLE, SMALL])
@pytest.mark.parametrize(
    ("family", "lora", "bits", "settings"),
    [
        ("mistral", {}, {}, {}),
        ("mistral", {}, {"bnb_4bit_use_double_quant": False}, {"dtype": "bfloat16"}),
        ("mistral", {}, {"bnb_4bit_quant_type": "fp4"}, {}),
        ("mistral", {}, {"bnb_4bit_compute_dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ("mistral", {}, {"load_in_4bit": False, "load_in_8bit": True}, {"dtype": "float16"}),
        ("mistral", {}, {"load_in_4bit": False}, {}),
        ("mistral", {"use_rslora": True}, {}, {}),
        ("mistral", {"use_dora": True}, {}, {}),
        ("mistral", {"use_dora": True}, {"bnb_4bit_compute_dtype": "bfloat16"}, {"base_weights": "original"}),
        ("mistral", {"target_modules": ["q_proj", "down_proj"]}, {}, {}),
        ("mistral", {"target_modules": ["v_proj"]}, {}, {"base_weights": "original"}),
        ("qwen2", {}, {}, {}),
        ("qwen3", {"use_rslora": True, "use_dora": True}, {}, {"dtype": "bfloat16"}),
        ("llama", {}, {}, {"dtype": "bfloat16"}),
    ],
)
def test_the_bytes_are_those_of_a_merge_in_memory_by_peft_and_transformers(
    base_folder: Path,
    pinned: None,
    tmp_path: Path,
    family: str,
    lora: dict[str, Any],
    bits: dict[str, Any],
    settings: dict[str, Any],
    max_shard_size: int,
) -> None:
    quantization = BITS.model_copy(update=bits)
    wanted = tiny.MERGE.model_copy(update=settings)
    dtype = getattr(torch, wanted.dtype)
    original = decoders.make_base(family, base_folder, tmp_path / "base", dtype)
    tokenizer = tokens.extend(tokens.load(original))  # of the class that the family's configuration asks for
    adapter = decoders.make_adapter(original, tokenizer, quantization, tmp_path / "adapter", **lora)
    merge(original, adapter, tokenizer, tmp_path / "ours", wanted, quantization, max_shard_size)
    expected = tmp_path / "expected"
    decoders.merge_in_memory(original, adapter, tokenizer, quantization, wanted, expected, max_shard_size)
    assert_same_files(tmp_path / "ours", expected)
    assert (len(list(expected.glob("*.safetensors"))) == 1) == (max_shard_size == WHOLE)


def test_the_merged_model_says_what_the_adapter_on_4_bits_says(
    base_folder: Path, adapter_folder: Path, merged_folder: Path, blocks: Any, tokenizer: Any
) -> None:
    found = parity(base_folder, adapter_folder, tokenizer, merged_folder, blocks)
    assert found["equal_next_tokens"] == 1
    assert found["max_logit_difference"] < 1e-4
    assert abs(found["mean_kl"]) < 1e-7
    assert found["positions"] == sum(len(row["input_ids"]) for row in blocks)
    merging.check_parity(found, tiny.MERGE, "4 bits")


@pytest.mark.parametrize(
    ("family", "lora", "bits"),
    [
        ("mistral", {"use_dora": True}, {}),
        ("mistral", {"use_rslora": True}, {"load_in_4bit": False}),
        ("mistral", {"target_modules": ["q_proj"]}, {"bnb_4bit_quant_type": "fp4"}),
        ("llama", {}, {}),
        ("qwen2", {}, {}),
        ("qwen3", {}, {}),
    ],
)
def test_every_kind_of_adapter_on_every_family_is_merged_to_say_the_same(
    base_folder: Path,
    pinned: None,
    tmp_path: Path,
    blocks: Any,
    family: str,
    lora: dict[str, Any],
    bits: dict[str, Any],
) -> None:
    quantization = BITS.model_copy(update=bits)
    original = decoders.make_base(family, base_folder, tmp_path / "base")
    tokenizer = tokens.extend(tokens.load(original))
    adapter = decoders.make_adapter(original, tokenizer, quantization, tmp_path / "adapter", **lora)
    merge(original, adapter, tokenizer, tmp_path / "merged", quantization=quantization)
    found = parity(original, adapter, tokenizer, tmp_path / "merged", blocks, quantization)
    merging.check_parity(found, tiny.MERGE, "4 bits")


def test_a_merge_into_the_original_weights_is_another_model_than_was_trained_and_the_adapter_on_these(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, blocks: Any, tmp_path: Path
) -> None:
    merge(
        base_folder,
        adapter_folder,
        tokenizer,
        tmp_path / "merged",
        tiny.MERGE.model_copy(update={"base_weights": "original"}),
    )
    found = parity(base_folder, adapter_folder, tokenizer, tmp_path / "merged", blocks)
    with pytest.raises(ValueError, match=r"equal next tokens 0\.\d+, below merge\.min_equal_next_tokens, 0\.99"):
        merging.check_parity(found, tiny.MERGE, "4 bits")
    with pytest.raises(ValueError, match=r"mean KL .* nats, above merge\.max_mean_kl, 0\.0001"):
        merging.check_parity(found, tiny.MERGE, "4 bits")
    unquantized = merging.in_float32(BITS)
    same = parity(base_folder, adapter_folder, tokenizer, tmp_path / "merged", blocks, unquantized)
    merging.check_parity(same, tiny.MERGE, "the original weights")


def test_a_comparison_measures_what_it_says() -> None:
    half, skewed = [0.0, 0.0], [0.0, float(torch.tensor(3.0).log())]  # 1/2, 1/2 and 1/4, 3/4
    found = merging.Comparison()
    found.add(torch.tensor([skewed]), torch.tensor([half]), torch.tensor([1]))
    found.add(torch.tensor([half]), torch.tensor([half]), torch.tensor([tokens.IGNORED]))
    measured = found.parity()
    assert measured["mean_kl"] == pytest.approx(0.130812 / 2, abs=1e-5)
    assert measured["max_logit_difference"] == pytest.approx(1.098612, abs=1e-5)
    assert measured["equal_next_tokens"] == 0.5
    assert measured["positions"] == 2
    assert found.validation_loss() == pytest.approx(0.693147, abs=1e-5)


def test_the_choice_falls_on_the_lower_loss_and_both_are_told(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, blocks: Any
) -> None:
    live = merging.trained(base_folder, adapter_folder, tokenizer, BITS)
    hidden = live.hidden(blocks, "live")
    auto = tiny.MERGE.model_copy(update={"base_weights": "auto"})
    found = merging.choose(live, hidden, base_folder, adapter_folder, tokenizer, BITS, auto, blocks)
    losses = {name: found[name]["validation_loss"] for name in ("dequantized", "original")}
    assert found["chosen"] == min(losses, key=losses.__getitem__)
    assert abs(found["dequantized"]["mean_kl"]) < 1e-7 < found["original"]["mean_kl"]


def test_the_losses_of_the_choice_are_those_of_the_merged_models(
    base_folder: Path, adapter_folder: Path, merged_folder: Path, tokenizer: Any, blocks: Any
) -> None:
    live = merging.trained(base_folder, adapter_folder, tokenizer, BITS)
    found = merging.choose(
        live, live.hidden(blocks, "live"), base_folder, adapter_folder, tokenizer, BITS, tiny.MERGE, blocks
    )
    merged = base.load(merged_folder, torch.float32)
    expected = training.mean_loss(merged, blocks, tokenizer.pad_token_id)
    assert found["dequantized"]["validation_loss"] == pytest.approx(expected, abs=1e-5)


def test_a_merge_must_be_told_which_base_weights(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    auto = tiny.MERGE.model_copy(update={"base_weights": "auto"})
    with pytest.raises(ValueError, match=r"merge\.base_weights is 'auto'; a merge needs 'dequantized' or 'original'"):
        merge(base_folder, adapter_folder, tokenizer, tmp_path / "merged", auto)


@pytest.mark.parametrize(
    ("measured", "named"),
    [
        ({"equal_next_tokens": 0.98, "mean_kl": 0.0}, ["min_equal_next_tokens"]),
        ({"equal_next_tokens": 1.0, "mean_kl": 1e-3}, ["max_mean_kl"]),
        ({"equal_next_tokens": 0.5, "mean_kl": 1e-3}, ["min_equal_next_tokens", "max_mean_kl"]),
        ({"equal_next_tokens": 1.0, "mean_kl": float("nan")}, ["max_mean_kl"]),
    ],
)
def test_a_parity_below_a_threshold_names_each_that_is_missed(measured: dict[str, float], named: list[str]) -> None:
    with pytest.raises(ValueError, match="does not say what the adapter on 4 bits says") as found:
        merging.check_parity(measured, tiny.MERGE, "4 bits")
    assert [key for key in ("min_equal_next_tokens", "max_mean_kl") if f"merge.{key}" in str(found.value)] == named


def test_merging_changes_the_projections_and_the_ten_rows_and_nothing_else(
    merged_folder: Path, base_folder: Path, tokenizer: Any
) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (base_folder, merged_folder))
    assert set(before) == set(after)
    added = tokens.added_ids(tokenizer)
    fresh = base.load(base_folder, torch.float32)
    qlora.add_rows(fresh, tokenizer, base_folder, tiny.SEED)
    untrained = dict(fresh.named_parameters())
    for name, value in after.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(value[:600], before[name]), name
            assert bool((value[added] != untrained[name][added]).any(dim=1).all()), name
        elif name.split(".")[-2] in params.TARGET_MODULES:
            assert not torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, before[name]), name


def test_projections_without_lora_are_merged_as_training_saw_them(
    base_folder: Path, tokenizer: Any, tmp_path: Path, blocks: Any
) -> None:
    adapter = decoders.make_adapter(base_folder, tokenizer, BITS, tmp_path / "adapter", target_modules=["q_proj"])
    counts = merge(base_folder, adapter, tokenizer, tmp_path / "merged")
    assert counts == {"tensors_written": 2 * 7 + 2, "adapter_tensors": 2 * 2 + 2}
    merging.check_parity(parity(base_folder, adapter, tokenizer, tmp_path / "merged", blocks), tiny.MERGE, "4 bits")


def test_every_adapter_tensor_is_consumed(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    counts = merge(base_folder, adapter_folder, tokenizer, tmp_path / "merged")
    assert counts["adapter_tensors"] == len(load_file(adapter_folder / "adapter_model.safetensors")) == 2 * 2 * 7 + 2
    assert counts["tensors_written"] == 2 * 7 + 2


def test_a_second_merge_writes_the_same_bytes(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, merged_folder: Path, tmp_path: Path
) -> None:
    merge(base_folder, adapter_folder, tokenizer, tmp_path / "merged")
    assert_same_files(tmp_path / "merged", merged_folder)


def test_a_merge_replaces_the_model_that_the_folder_holds(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, merged_folder: Path, tmp_path: Path
) -> None:
    merge(base_folder, adapter_folder, tokenizer, tmp_path / "merged", max_shard_size=SMALL)
    assert (tmp_path / "merged" / shards.INDEX).is_file()
    merge(base_folder, adapter_folder, tokenizer, tmp_path / "merged")
    assert_same_files(tmp_path / "merged", merged_folder)


# Merges, and is killed by the kernel as it starts to write the third shard.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from wronai import numerics
numerics.choose("pinned")
import tiny
from wronai import merging, shards, tokens

numerics.deterministic("pinned", tiny.SEED)
base, adapter, tokenizer, out, checkpoints = map(Path, json.loads(sys.argv[1]))
write, files = shards.write, []

def write_two(file, *rest):
    files.append(file)
    if len(files) == 3:
        file.with_name(file.name + shards.UNFINISHED).write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(file, *rest)

shards.write = write_two
what = base, adapter, tokens.load(tokenizer), tiny.FINETUNE.quantization, tiny.MERGE
merging.merge(*what, out, work=checkpoints / merging.run_key(*what, 100_000), max_shard_size=100_000)
"""


def test_a_killed_merge_goes_on_from_the_last_finished_shard_that_is_whole_to_the_same_bytes(
    base_folder: Path,
    adapter_folder: Path,
    tokenizer: Any,
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, work = tmp_path / "merged", tmp_path / "merged-checkpoints"
    places = [base_folder, adapter_folder, tokenizer_folder, out, work]
    command = [sys.executable, "-c", KILLED, json.dumps([str(place) for place in places])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])}
    assert subprocess.run(command, env=env, timeout=300).returncode == -9
    finished = sorted(path.name for path in work.rglob("*.safetensors"))
    assert len(finished) == 2 and not out.exists()
    (shard,) = work.rglob(finished[0])
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    rewritten, write = [], shards.write
    monkeypatch.setattr(shards, "write", lambda file, *rest: rewritten.append(file.name) or write(file, *rest))
    merge(base_folder, adapter_folder, tokenizer, out, max_shard_size=SMALL)
    assert set(rewritten) & set(finished) == {shard.name}, "of the finished ones the damaged one alone"
    assert f"{shard.name}: damaged; it is merged again" in capsys.readouterr().err
    monkeypatch.setattr(shards, "write", write)
    merge(base_folder, adapter_folder, tokenizer, tmp_path / "expected", max_shard_size=SMALL)
    assert_same_files(out, tmp_path / "expected")


def test_finished_shards_of_another_merge_are_not_taken(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shards, "install", stop)
        merge(base_folder, adapter_folder, tokenizer, tmp_path / "merged")
    merge(
        base_folder, adapter_folder, tokenizer, tmp_path / "merged", tiny.MERGE.model_copy(update={"dtype": "float16"})
    )
    assert {value.dtype for value in load_file(tmp_path / "merged/model.safetensors").values()} == {torch.float16}


def rewrite(adapter: Path, change: Any) -> None:
    """Let `change` have its way with the tensors of the folder `adapter`."""
    weights = load_file(adapter / qlora.ADAPTER)
    change(weights)
    save_file(weights, adapter / qlora.ADAPTER, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.pop(LOW), f"0 tensors .* lacks 1 that it needs, such as {LOW}"),
        (lambda weights: weights.update(odd=torch.ones(1)), "holds 1 tensors that the base has no place for .* odd"),
        (
            lambda weights: weights.update({LOW: torch.ones(4, 65)}),
            r"lora_A.weight has the shape \(4, 65\), .*\(4, 64\)",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_the_base_is_one_message(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path, change: Any, says: str
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    rewrite(adapter, change)
    with pytest.raises(ValueError, match=says) as found:
        merge(base_folder, adapter, tokenizer, tmp_path / "merged")
    assert "was made for another base" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_base_with_fewer_rows_than_tokens_is_one_message(
    base_copy: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    config = json.loads((base_copy / "config.json").read_text())
    (base_copy / "config.json").write_text(json.dumps(config | {"vocab_size": 599}))
    with pytest.raises(ValueError, match="the tokenizer has 600 tokens, and the embedding 599 rows; run prepare_base"):
        merge(base_copy, adapter_folder, tokenizer, tmp_path / "merged")


def test_an_adapter_without_its_configuration_is_one_message(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"no adapter_config\.json of LoRA that PEFT can read"):
        merge(base_folder, adapter, tokenizer, tmp_path / "merged")


def test_an_adapter_of_other_rows_is_one_message(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["trainable_token_indices"]["embed_tokens"][0] = 5
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"trains the rows \[5, 601.* of embed_tokens; the ten tokens have \[600, 601"):
        merge(base_folder, adapter, tokenizer, tmp_path / "merged")


def test_the_merged_weights_have_the_type_of_the_parameter(
    base_folder: Path, adapter_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    merge(base_folder, adapter_folder, tokenizer, out, tiny.MERGE.model_copy(update={"dtype": "bfloat16"}))
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_the_merged_folder_alone_is_a_model_that_answers_in_the_format(merged_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(merged_folder)
    model = AutoModelForCausalLM.from_pretrained(merged_folder)
    assert type(model).__name__ == "MistralForCausalLM"
    assert not (merged_folder / "adapter_config.json").exists()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Jak się masz?"}],
        register="informal",
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**asked, max_new_tokens=3, do_sample=False)
    # As with Mistral's tokenizer, a part after a special token is decoded with the space that its first word has.
    assert tokenizer.decode(out[0]).startswith("<s><polish><informal><question> Jak się masz?</question><answer>")
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_contract_compares_every_token_of_every_example(merged_folder: Path, tokenizer: Any) -> None:
    counts = merging.check_contract(merged_folder, tiny.CONVERSATIONS, tokenizer)
    sizes = [len(tokens.encode(tokenizer, row["messages"], row["register"])[0]) for row in tiny.CONVERSATIONS]
    assert counts == {"contract_examples": len(tiny.CONVERSATIONS), "contract_tokens": sum(sizes)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'<answer>'", "'<answer> '"),
        ("bos_token + ", ""),
        ("'</polish>' + eos_token", "'</polish>'"),
        ("'<' + register", "'<formal' if 0 else '<informal'"),
    ],
)
def test_an_altered_template_breaks_the_contract(
    merged_folder: Path, tokenizer: Any, tmp_path: Path, old: str, new: str
) -> None:
    altered = Path(shutil.copytree(merged_folder, tmp_path / "merged"))
    served = tokens.load(altered)
    assert old in served.chat_template
    served.chat_template = served.chat_template.replace(old, new)
    served.save_pretrained(altered)
    with pytest.raises(ValueError, match="its chat template gives other token ids than training for tiny/"):
        merging.check_contract(altered, tiny.CONVERSATIONS, tokenizer)


def test_another_tokenizer_breaks_the_contract(merged_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(merged_folder, tmp_path / "merged"))
    other = tokens.extend(pretraining.train_tokenizer(tiny.texts()[:9], 600))
    other.save_pretrained(altered)
    with pytest.raises(ValueError, match="gives other token ids than training"):
        merging.check_contract(altered, tiny.CONVERSATIONS, tokenizer)


def test_end_tokens_that_are_not_supervised_break_the_contract(
    merged_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = tokens.encode

    def padded_with_the_end_token(*arguments: Any) -> tuple[list[int], list[int]]:
        ids, labels = encode(*arguments)
        return ids, [tokens.IGNORED if label == tokenizer.eos_token_id else label for label in labels]

    monkeypatch.setattr(tokens, "encode", padded_with_the_end_token)
    with pytest.raises(ValueError, match="tiny/00: not every end token is supervised"):
        merging.check_contract(merged_folder, tiny.CONVERSATIONS, tokenizer)


def test_examples_that_were_not_trained_on_are_no_part_of_the_contract(merged_folder: Path, tokenizer: Any) -> None:
    forged = tiny.conversation(99, "neutral", [("Co to jest?", "Znacznik </s> w HTML.")])
    assert merging.check_contract(merged_folder, [forged], tokenizer)["contract_examples"] == 0


def test_the_ten_tokens_are_single_ids_of_the_merged_model(merged_folder: Path) -> None:
    served = tokens.load(merged_folder)
    rows = load_file(merged_folder / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert [served.encode(token, add_special_tokens=False) for token in prompt.TOKENS] == [
        [id_] for id_ in range(rows - 10, rows)
    ]
