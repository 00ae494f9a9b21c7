"""The memory plan counts what libraries keep, adds up by phase, and knows what would need less."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import tiny

from wronai import params, plan, profiles, qlora, vocabulary

ROOT = Path(__file__).parent.parent
MISTRAL = plan.from_config(tiny.MISTRAL_7B)
GPU = plan.Device("cuda", 5 * 10**8, 8 * 10**9)
CPU = plan.Device("cpu", 5 * 10**8, 8 * 10**9)


def finetune(section: str = "", **values: Any) -> params.Finetune:
    """The parameters of the Mistral-7B profile with `values` over them, or over their section."""
    raw = profiles.load(ROOT / "profiles/mistral-7b.yaml", ROOT / "params.yaml").finetune.model_dump()
    changed = {section: raw[section] | values} if section else values
    return params.Finetune.model_validate(raw | changed)


# The base


def test_mistral_has_seven_billion_weights() -> None:
    linear = 32 * sum(rows * columns for rows, columns in MISTRAL.matrices.values())
    assert linear + 2 * 32000 * 4096 + 4096 * (2 * 32 + 1) == 7_241_732_096


def test_the_shape_of_a_base_is_read_from_its_configuration(base_folder: Path) -> None:
    assert plan.read(base_folder) == plan.from_config(tiny.SCRATCH.model_dump())


def test_qwen2_has_biases_and_ties_what_it_says() -> None:
    config = {**tiny.SCRATCH.model_dump(), "model_type": "qwen2", "tie_word_embeddings": True, "head_dim": 32}
    shape = plan.from_config(config)
    assert (shape.biased, shape.tie_word_embeddings, shape.matrices["o_proj"]) == (True, True, (64, 128))


def test_a_configuration_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.json: has no intermediate_size; expected the configuration of a Mistral"):
        plan.from_config({**tiny.SCRATCH.model_dump(), "intermediate_size": None}, "x.json")


def test_a_base_that_is_not_there_names_the_stage_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json: not found; prepare_base fetches it"):
        plan.read(tmp_path)


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        plan.read(tmp_path)


# What libraries keep


@pytest.mark.parametrize("double", [True, False])
def test_four_bits_take_what_bitsandbytes_keeps(double: bool) -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(96, 1024), quant_type="nf4", compress_statistics=double)
    tensors = [packed, state.absmax, state.code]
    tensors += [state.offset, state.state2.absmax, state.state2.code] if double else []
    quantization = finetune("quantization", bnb_4bit_use_double_quant=double).quantization
    assert plan.quantized(96 * 1024, 96, quantization) == sum(tensor.nbytes for tensor in tensors)


def test_eight_bits_take_a_byte_and_none_the_compute_dtype() -> None:
    eight = finetune("quantization", load_in_4bit=False, load_in_8bit=True).quantization
    assert plan.quantized(1000, 10, eight) == 1000 + 40
    assert plan.quantized(1000, 10, finetune("quantization", load_in_4bit=False).quantization) == 2000


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_trained_is_what_peft_trains(base_folder: Path, tokenizer: Any, dora: bool) -> None:
    settings = tiny.FINETUNE.model_copy(update={"lora": tiny.FINETUNE.lora.model_copy(update={"use_dora": dora})})
    tuned = qlora.load_quantized(base_folder, tokenizer, settings.quantization, tiny.SEED)
    tuned = qlora.attach(tuned, tokenizer, settings)
    real = sorted(value.numel() for value in tuned.parameters() if value.requires_grad)
    assert sorted(plan.trained(plan.read(base_folder), settings.lora)) == real


def test_a_target_that_the_base_lacks_is_named_with_those_that_it_has() -> None:
    lora = finetune("lora", target_modules=["q_proj", "self_attn.q_proj"]).lora
    with pytest.raises(
        ValueError, match=r"^finetune\.lora\.target_modules: .* layer self_attn\.q_proj; it knows q_proj,"
    ):
        plan.trained(MISTRAL, lora)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit"])
def test_the_optimizer_states_are_those_of_the_optimizer(optim: str) -> None:
    import bitsandbytes
    import torch

    counts = [5000, 4096, 100]
    values = [torch.nn.Parameter(torch.ones(count)) for count in counts]
    for value in values:
        value.grad = torch.ones_like(value)
    optimizer: Any = bitsandbytes.optim.AdamW8bit(values) if "8bit" in optim else torch.optim.AdamW(values, fused=True)
    optimizer.step()
    names = {"exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2"}
    states = [state[name] for state in optimizer.state.values() for name in names & set(state)]
    assert plan.optimizer_states(counts, optim, "cpu") == sum(state.nbytes for state in states)


def test_states_that_a_gpu_pages_are_not_counted_there() -> None:
    assert plan.optimizer_states([100_000, 5000], "paged_adamw_8bit", "cuda") == 2 * 5000 + 2 * 4 * 20
    assert plan.optimizer_states([100_000], "paged_adamw_8bit", "cpu") > 200_000


@pytest.mark.parametrize(
    ("dtype", "dropout"), [("float32", 0.0), ("float32", 0.1), ("bfloat16", 0.0), ("bfloat16", 0.1)]
)
def test_a_layer_keeps_for_its_backward_what_autograd_saves(
    base_folder: Path, tokenizer: Any, dtype: str, dropout: float
) -> None:
    import torch

    settings = tiny.FINETUNE.model_copy(
        update={
            "lora": tiny.FINETUNE.lora.model_copy(update={"lora_dropout": dropout}),
            "quantization": tiny.FINETUNE.quantization.model_copy(update={"bnb_4bit_compute_dtype": dtype}),
            "gradient_checkpointing": False,
        }
    )
    tuned = qlora.load_quantized(base_folder, tokenizer, settings.quantization, tiny.SEED)
    tuned = qlora.attach(tuned, tokenizer, settings).train()
    count = 20  # tokens; below the sliding window, since a mask would be kept too
    ids = torch.arange(count)[None]

    def saved() -> int:
        kept: dict[int, Any] = {}  # storages, held so that no address is used twice
        own = {value.untyped_storage().data_ptr() for value in chain(tuned.parameters(), tuned.buffers())}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = tuned(input_ids=ids, position_ids=ids, labels=ids, use_cache=False)
        assert output.loss.requires_grad
        return sum(storage.nbytes() for storage in kept.values())

    layers = tuned.get_base_model().model.layers
    both = saved()
    dropped = layers[1]
    del layers[1]
    one = both - saved()
    layers.append(dropped)
    planned = count * plan.saved_by_layer(plan.read(base_folder), settings, "cpu")
    assert planned == pytest.approx(one, rel=0.01)


# The sum


def test_the_total_is_the_largest_phase_and_each_part_counts_where_it_is_held() -> None:
    made = plan.make(MISTRAL, finetune(), 2048, "cuda", 0)
    parts, tokens = made.parts, 2048
    assert parts["embedding and head"] == 2 * 32010 * 4096 * 2
    assert parts["hidden states kept"] == 33 * tokens * 4096 * 2
    assert parts["one matrix dequantized"] == 4096 * 14336 * 2
    assert parts["a chunk of logits"] == plan.LOGITS * 3 // 2
    assert parts["gradients"] == parts["LoRA and the ten tokens' rows"] == 4 * (41_943_040 + 20 * 4096)
    weights = sum(parts[name] for name in ("linear layers", "embedding and head", "norms and biases"))
    assert made.phases["loading"] == weights + 32010 * 4096 * 2
    assert made.phases["optimizer step"] == weights + 2 * parts["gradients"] + parts["optimizer states"]
    assert made.total == made.phases["forward and backward"] > made.phases["loading"]


def test_mistral_7b_fits_into_8_gb_at_2048_tokens_and_into_6_gb_of_a_cpu_at_128() -> None:
    assert plan.make(MISTRAL, finetune(), 2048, "cuda", plan.CONTEXT["cuda"]).total < 8 * 10**9
    assert plan.make(MISTRAL, finetune(), 128, "cpu", plan.CONTEXT["cpu"]).total < 6 * 10**9


def test_a_matrix_of_8_bits_is_dequantized_as_one_of_4_and_one_of_16_is_not() -> None:
    def dequantized(**bits: bool) -> int:
        return plan.make(MISTRAL, finetune("quantization", **bits), 512, "cuda", 0).parts["one matrix dequantized"]

    assert dequantized(load_in_4bit=False, load_in_8bit=True) == dequantized(load_in_4bit=True) > 0
    assert dequantized(load_in_4bit=False) == 0


def test_without_checkpointing_every_layer_keeps_what_else_one_does() -> None:
    off = plan.make(MISTRAL, finetune(gradient_checkpointing=False), 512, "cpu", 0).parts
    on = plan.make(MISTRAL, finetune(), 512, "cpu", 0).parts
    assert off["activations kept"] > 31 * on["one layer recomputed"]
    assert not off["one layer recomputed"]


def test_offloading_leaves_one_hidden_state_on_a_gpu_and_changes_nothing_on_a_cpu() -> None:
    offloaded = finetune(activation_offloading=True)
    assert plan.make(MISTRAL, offloaded, 512, "cuda", 0).parts["hidden states kept"] == 512 * 4096 * 2
    assert plan.make(MISTRAL, offloaded, 512, "cpu", 0) == plan.make(MISTRAL, finetune(), 512, "cpu", 0)


def test_tied_embeddings_are_held_and_trained_once() -> None:
    tied = replace(MISTRAL, tie_word_embeddings=True)
    one, two = (plan.make(shape, finetune(), 512, "cpu", 0).parts for shape in (tied, MISTRAL))
    assert 2 * one["embedding and head"] == two["embedding and head"]
    assert two["gradients"] - one["gradients"] == 4 * 10 * 4096


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("lora", {"use_dora": True}, "not counted: the outputs that DoRA keeps"),
        ("quantization", {"load_in_4bit": False, "load_in_8bit": True}, "not counted: the inputs that LLM"),
        ("lora", {"use_dora": False}, None),
    ],
)
def test_what_is_not_counted_is_said(section: str, values: dict[str, Any], says: str | None) -> None:
    text = plan.table(plan.make(MISTRAL, finetune(section, **values), 512, "cuda", 0), GPU)
    assert says in text if says else "not counted" not in text


# What would need less

LARGE = {"per_device_train_batch_size": 4, "gradient_checkpointing": False, "optim": "adamw_torch"}


@pytest.mark.parametrize("device", [GPU, CPU])
def test_every_change_saves_what_it_says_and_the_best_comes_first(device: plan.Device) -> None:
    settings = finetune(**LARGE)
    quantization = settings.quantization.model_copy(
        update={"load_in_4bit": False, "load_in_8bit": True, "bnb_4bit_use_double_quant": False}
    )
    lora = settings.lora.model_copy(update={"use_dora": True})
    settings = settings.model_copy(update={"quantization": quantization, "lora": lora})
    before = plan.make(MISTRAL, settings, 2048, device.kind, device.context).total
    found = plan.changes(MISTRAL, settings, 2048, device)
    assert [change.saves for change in found] == sorted((change.saves for change in found), reverse=True)
    for change in found:
        after = plan.make(MISTRAL, change.settings, change.longest, device.kind, device.context).total
        assert (change.saves, change.total) == (before - after, after)
        assert change.saves > 0
        assert params.Finetune.model_validate(change.settings.model_dump()) == change.settings
    keys = " ".join(change.keys for change in found)
    for key in ("max_length", "batch_size", "checkpointing", "optim", "load_in_4bit", "lora.r", "lora_dropout"):
        assert key in keys
    assert ("activation_offloading" in keys) == (device.kind == "cuda")


def test_a_change_in_steps_goes_no_further_than_it_must() -> None:
    settings = finetune(per_device_train_batch_size=8)
    total = plan.make(MISTRAL, settings, 4096, "cpu", 0).total
    half = plan.make(MISTRAL, settings, 2048, "cpu", 0).total
    room = plan.Device("cpu", 0, (total + half) // 2)
    first = {change.keys.split(":")[0]: change for change in plan.changes(MISTRAL, settings, 4096, room)}
    assert first["tokenize.max_length"].longest == 2048
    changed = first["finetune.per_device_train_batch_size"].settings
    assert (changed.per_device_train_batch_size, changed.gradient_accumulation_steps) == (4, 32)


def test_a_plan_that_does_not_fit_is_refused_with_its_table_and_what_to_change() -> None:
    settings = finetune(**LARGE)
    with pytest.raises(ValueError) as refused:
        plan.check(MISTRAL, settings, 2048, GPU)
    text = str(refused.value)
    assert text.startswith("the fine-tuning does not fit into the memory of this machine")
    for expected in ("activations kept", "of 8.00 GB on the GPU", "too much", "gradient_checkpointing: true: saves"):
        assert expected in text


def test_a_plan_that_fits_is_given_back_and_one_that_does_not_when_it_is_not_checked() -> None:
    assert plan.check(MISTRAL, finetune(), 2048, GPU).total <= GPU.available
    unchecked = finetune(check_memory=False, **LARGE)
    assert plan.check(MISTRAL, unchecked, 2048, GPU).total > GPU.available


def test_changes_that_are_not_enough_alone_are_added_up() -> None:
    settings = finetune(**{**LARGE, "per_device_train_batch_size": 8})
    device = plan.Device("cuda", 5 * 10**8, 6 * 10**9)
    found = plan.changes(MISTRAL, settings, 4096, device)
    assert all(change.total > device.available for change in found)
    text = plan.advice(found, MISTRAL, device)
    assert text.count("not enough alone") == len(found)
    assert text.splitlines()[-1].startswith("together ") and text.endswith(", enough")


def test_a_base_that_no_parameter_makes_fit_says_so() -> None:
    device = plan.Device("cuda", 5 * 10**8, 2 * 10**9)
    text = plan.advice(plan.changes(MISTRAL, finetune(), 2048, device), MISTRAL, device)
    assert text.endswith("the least that parameters can do, and not enough")
    assert plan.advice([], MISTRAL, device).startswith("no parameter makes it smaller")


# What the device has


def test_the_room_of_a_control_group_is_its_limit_less_what_is_used_and_is_no_file(tmp_path: Path) -> None:
    inner = tmp_path / "outer/inner"
    inner.mkdir(parents=True)
    (tmp_path / "groups").write_text("4:memory:/old\n0::/outer/inner\n")
    for folder, limit in ((inner, "max"), (tmp_path / "outer", "1000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 500\nfile 200\n")
    assert list(plan.rooms(tmp_path, tmp_path / "groups")) == [500]
    assert list(plan.rooms(tmp_path, tmp_path / "absent")) == []


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = plan.of_cpu(0).available
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert plan.of_cpu(0).available == pytest.approx(alone / 4, rel=0.2)


def test_this_process_holds_memory() -> None:
    assert 10**7 < plan.anonymous() < 10**11


@pytest.mark.parametrize(
    ("text", "count"), [("8GB", 8 * 10**9), (" 7.5 GiB ", 7.5 * 2**30), ("300MB", 3 * 10**8), ("12 B", 12)]
)
def test_amounts_are_read_with_their_unit(text: str, count: int) -> None:
    assert plan.parse_amount(text) == count


@pytest.mark.parametrize("text", ["8", "GB", "8 gb", "8iB"])
def test_an_amount_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a number and its unit, such as 8GB"):
        plan.parse_amount(text)


def test_amounts_are_written_with_three_digits() -> None:
    assert [plan.amount(count) for count in (5_612_345_678, 84_400_000, 2048, 12)] == [
        "5.61 GB",
        "84 MB",
        "2 kB",
        "12 B",
    ]


# What a process takes


def test_the_plan_of_the_tiny_model_is_within_a_tenth_of_what_its_training_takes(
    base_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    settings = tiny.FINETUNE.model_copy(update={"max_steps": 2, "gradient_accumulation_steps": 1})
    command = [sys.executable, "benchmarks/plan.py", "--train", str(tmp_path), "128", "1", settings.model_dump_json()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    planned = plan.make(plan.read(base_folder), settings, 128, "cpu", found["context"]).total
    assert planned == pytest.approx(max(found["loading"], found["training"]), rel=0.1)


# docs/hardware.md

TOKENS = (512, 1024, 2048, 4096)
CARDS = (8, 12, 16, 24, 48, 80)  # GB
BASES = {  # the shapes of their config.json
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, 151936, True),
    "Mistral-7B": (4096, 14336, 32, 32, 8, 32000, False),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, 152064, False),
}


def base(name: str) -> plan.Shape:
    hidden, inner, layers, heads, keys, vocabulary, tied = BASES[name]
    return plan.Shape(vocabulary, hidden, inner, layers, heads, keys, hidden // heads, tied, name.startswith("Qwen"))


def on_a_gpu(name: str, tokens: int, **values: Any) -> int:
    shape = base(name)
    spare = shape.vocab_size if name.startswith("Qwen") else None  # Qwen's embedding has rows to spare for the ten
    return plan.make(shape, finetune(**values), tokens, "cuda", plan.CONTEXT["cuda"], spare).total


def hardware() -> list[str]:
    """The planned tables of docs/hardware.md."""
    lines = [f"| base, GB at | {' | '.join(f'{tokens:,}' for tokens in TOKENS)} | 4,096, offloading |"]
    lines.append("| --- |" + " ---: |" * (len(TOKENS) + 1))
    for name in BASES:
        totals = [on_a_gpu(name, tokens) for tokens in TOKENS] + [on_a_gpu(name, 4096, activation_offloading=True)]
        lines.append(f"| {name} | {' | '.join(f'{total / 1e9:.2f}' for total in totals)} |")
    lines += ["", f"| card | {' | '.join(BASES)} |", "| --- |" + " ---: |" * len(BASES)]
    for card in CARDS:
        cells = []
        for name in BASES:
            rows = [n for n in (1, 2, 4, 8, 16, 32) if on_a_gpu(name, 2048, per_device_train_batch_size=n) < card * 1e9]
            cells.append(str(max(rows)) if rows else "–")
        lines.append(f"| {card} GB | {' | '.join(cells)} |")
    return lines


def test_the_tables_of_the_hardware_page_are_what_the_plan_says() -> None:
    page = (ROOT / "docs/hardware.md").read_text(encoding="utf-8")
    for table in "\n".join(hardware()).split("\n\n"):
        assert f"\n\n{table}\n\n" in page


def test_the_plan_knows_the_chunks_of_what_it_plans() -> None:
    assert (plan.LOGITS, plan.SLICE) == (vocabulary.CHUNK_BYTES, qlora.SLICE)


def test_freed_memory_goes_back_in_the_processes_that_are_started_too() -> None:
    """The C library learns from a freed block of 8 MB to keep one of 4 MB, unless it is told what to map."""
    child = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.free(libc.malloc(8 << 20))
address = libc.malloc(4 << 20)
maps = [line for line in open("/proc/self/maps") if "[heap]" in line]
print(any(int(part.split("-")[0], 16) <= address < int(part.split()[0].split("-")[1], 16) for part in maps))
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    told = f"from wronai import plan; plan.give_freed_memory_back(); {parent}"
    found = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for code in (parent, told)
    ]
    assert found == ["True", "False"]
