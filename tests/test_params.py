"""A wrong params.yaml ends the run at once, and its message names the key."""

import copy
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from wronai import params

ROOT = Path(__file__).parent.parent
GOOD = params.read(ROOT / "params.yaml")


def wrong(key: str, value: Any) -> str:
    """The message for params.yaml with `value` at the dotted `key`."""
    raw = copy.deepcopy(GOOD)
    *path, last = key.split(".")
    section = raw
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(params.ParamsError) as caught:
        params.parse(raw, "params.yaml")
    return str(caught.value)


def test_the_shipped_parameters_load() -> None:
    assert params.load(ROOT / "params.yaml").finetune.lora.r == GOOD["finetune"]["lora"]["r"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("finetune.lora.r", 0, "finetune.lora.r: found 0; expected: input should be greater than or equal to 1"),
        ("finetune.learning_rate", "fast", 'finetune.learning_rate: found "fast"'),
        ("finetune.lora.r", "16", 'finetune.lora.r: found "16"'),
        ("finetune.lora.lora_dropout", 1.5, "finetune.lora.lora_dropout: found 1.5"),
        ("finetune.quantization.bnb_4bit_quant_type", "nf5", 'finetune.quantization.bnb_4bit_quant_type: found "nf5"'),
        ("finetune.lora.target_modules", [""], 'finetune.lora.target_modules[0]: found ""'),
        ("finetune.lora.target_modules", ["q_proj", "q_proj"], "lora: target_modules names q_proj more than once"),
        ("finetune.max_steps", 0, "finetune: max_steps is 0"),
        ("finetune.launch.processes", 0, "finetune.launch.processes: found 0"),
        ("finetune.launch.machines", 2, "finetune.launch: processes is 1, of all machines; expected a multiple of"),
        ("finetune.launch.machines", 2, "main_process_ip and main_process_port of machine 0 must both be set"),
        ("finetune.launch.strategy", "fsdp", "finetune.launch: strategy is 'fsdp' and processes is 1"),
        ("finetune.launch.cpu_offload", True, "cpu_offload is true and strategy is 'ddp'; only 'fsdp' offloads"),
        ("finetune.quantization.load_in_8bit", True, "load_in_4bit and load_in_8bit are both true"),
        ("finetune.lora.init_lora_weights", "pissa", 'finetune.lora.init_lora_weights: found "pissa"'),
        ("finetune.lora.init_lora_weights", "loftq", "init_lora_weights is 'loftq'; its singular vectors"),
        ("finetune.lr_scheduler_type", "polynomial", 'finetune.lr_scheduler_type: found "polynomial"'),
        (
            "finetune.lr_scheduler_type",
            "constant",
            "warmup_ratio is 0.05, and lr_scheduler_type constant has no warm-up",
        ),
        ("finetune.train_sampling_strategy", "sorted", 'finetune.train_sampling_strategy: found "sorted"'),
        (
            "finetune.max_loss_ratio",
            1.0,
            "finetune.max_loss_ratio: found 1.0; expected: input should be greater than 1",
        ),
        (
            "finetune.check_memory",
            "yes",
            'finetune.check_memory: found "yes"; expected: input should be a valid boolean',
        ),
        ("finetune.save_total_limit", 0, "finetune.save_total_limit: found 0"),
        ("finetune.early_stopping_patience", 3, "early_stopping_patience is set, and load_best_model_at_end is false"),
        ("finetune.loraplus_lr_ratio", 0.0, "finetune.loraplus_lr_ratio: found 0.0"),
        ("clean.rules.web.min_words", 200_000, "clean.rules.web: min_words is 200000, above max_words"),
        ("clean.minhash_bands", 1_000_000_000, "clean.minhash_bands: found 1000000000; expected: input should be less"),
        ("clean.rules.edited.min_mean_word_length", 13.0, "above max_mean_word_length"),
        ("clean.share_test", 0.97, "leave nothing to train on"),
        ("model.scratch.hidden_size", 193, "RoPE needs an even number"),
        ("model.scratch.num_key_value_heads", 4, "not a multiple of num_key_value_heads"),
        ("model.scratch.block_size", 4096, "above max_position_embeddings"),
        ("model.base", "local", "path is empty"),
        ("model.base", "hub", "repository (owner/name) and revision (40 hex digits of a commit) must both be set"),
        ("model.built_from", "data", "model: built_from is 'data'; with base scratch it must be 'data/clean'"),
        ("model.revision", "", 'model.revision: found ""'),
        ("tokenize.max_length", 4096, "tokenize.max_length is 4096, above model.scratch.max_position_embeddings"),
        (
            "tokenize.mixture",
            {"instructions": 0.0, "documents": 0.0},
            "tokenize.mixture: instructions and documents are",
        ),
        (
            "tokenize.mixture.documents",
            -0.1,
            "tokenize.mixture.documents: found -0.1; expected: input should be greater",
        ),
        ("tokenize.mixture.documents", float("inf"), "tokenize.mixture.documents: found"),
        ("finetune.optim", "adamw_torch", "numerics: pinned needs 'adamw_torch_fused'"),
        ("finetune.quantization.bnb_4bit_compute_dtype", "bfloat16", "numerics: pinned needs 'float32'"),
        ("evaluate.dtype", "bfloat16", "evaluate.dtype is 'bfloat16'; numerics: pinned needs 'float32'"),
        ("evaluate.max_length", 4096, "evaluate.max_length is 4096, above model.scratch.max_position_embeddings"),
        ("evaluate.limit", 0, "evaluate.limit: found 0; expected: input should be greater than or equal to 1"),
        ("evaluate.batch_size", 0, "evaluate.batch_size: found 0; expected"),
        ("evaluate.batch_size", "automatic", "evaluate.batch_size: found 'automatic'; expected"),
        ("evaluate.backend", "tgi", "evaluate.backend: found \"tgi\"; expected: input should be 'hf', 'vllm' or"),
        ("evaluate.backend", "vllm", "evaluate.backend is 'vllm'; numerics: pinned needs 'hf'"),
        ("evaluate.backend", "server", "evaluate: backend is 'server': server.url and server.model must both be set"),
        ("evaluate.server.url", "host:8000", 'evaluate.server.url: found "host:8000"'),
        ("evaluate.tasks", [], "evaluate.tasks: found []"),
        ("evaluate.tasks", ["language", "language"], "evaluate: tasks names language more than once"),
        ("evaluate.tasks", ["language", "../raw"], 'evaluate.tasks[1]: found "../raw"'),
        ("evaluate.tasks", ["language", "text"], "evaluate: tasks names text"),
        ("evaluate.answers.generations", 0, "evaluate.answers.generations: found 0"),
        (
            "evaluate.answers.samples",
            127,
            "evaluate.answers: samples is 127, above generations, 126, of which they are",
        ),
        ("data.sources", [], "data.sources: found []"),
        ("data.sources", GOOD["data"]["sources"] * 2, "two sources are named 'sample'"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: Any, says: str) -> None:
    assert says in wrong(key, value)


def test_a_server_and_as_many_rows_as_fit_are_values_of_evaluate() -> None:
    raw = copy.deepcopy(GOOD)
    raw["numerics"] = "native"
    server = {"url": "http://127.0.0.1:8000/v1/completions", "model": "wronai-{model}", "concurrent": 1}
    raw["evaluate"] |= {"backend": "server", "server": server, "batch_size": "auto", "num_fewshot": None, "limit": 3}
    found = params.parse(raw, "params.yaml").evaluate
    assert (found.batch_size, found.server.model, found.limit) == ("auto", "wronai-{model}", 3)


def test_a_server_that_would_be_asked_of_one_model_alone_is_refused() -> None:
    raw = copy.deepcopy(GOOD)
    raw["numerics"] = "native"
    server = {"url": "http://127.0.0.1:8000/v1/completions", "model": "wronai", "concurrent": 1}
    raw["evaluate"] |= {"backend": "server", "server": server}
    with pytest.raises(params.ParamsError, match=r"asked of one model; expected \{model\}"):
        params.parse(raw, "params.yaml")
    server["url"] = "http://{model}:8000/v1/completions"
    assert params.parse(raw, "params.yaml").evaluate.server.url == server["url"]


def test_how_a_model_is_scored_does_not_depend_on_what_else_is_scored() -> None:
    found = params.load(ROOT / "params.yaml").evaluate
    other = {"tasks": ["generation"], "include_path": "mine", "bootstrap_resamples": 100, "num_fewshot": 5}
    assert found.model_copy(update=other).scoring == found.scoring
    assert found.model_copy(update={"max_length": 64}).scoring != found.scoring
    assert params.flatten(found.scoring).items() <= params.flatten(found).items()


def changed(**values: Any) -> str:
    """The message for params.yaml with these values of finetune.quantization and, of loftq, without its bits."""
    raw = copy.deepcopy(GOOD)
    raw["finetune"]["quantization"] |= values
    raw["finetune"]["lora"]["init_lora_weights"] = "loftq" if not any(values.values()) else True
    with pytest.raises(params.ParamsError) as caught:
        params.parse(raw, "params.yaml")
    return str(caught.value)


def test_eight_bits_are_refused_under_pinned_numerics() -> None:
    assert "load_in_8bit is true; numerics: pinned needs float32" in changed(load_in_4bit=False, load_in_8bit=True)


def test_loftq_without_quantization_is_refused() -> None:
    assert "which makes up for the error of quantization" in changed(load_in_4bit=False, load_in_8bit=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"load_best_model_at_end": True, "save_steps": 150}, "save_steps is 150; .* a multiple of eval_steps, 100"),
        ({"activation_offloading": True, "gradient_checkpointing": False}, "and gradient_checkpointing false"),
    ],
)
def test_two_parameters_of_the_training_that_contradict_each_other_are_refused(
    changes: dict[str, Any], says: str
) -> None:
    raw = copy.deepcopy(GOOD)
    raw["finetune"] |= changes
    with pytest.raises(params.ParamsError, match=says):
        params.parse(raw, "params.yaml")


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("numerics", "pinned", "finetune.launch.strategy is 'fsdp', which needs GPUs"),
        ("quantization", {"load_in_4bit": False, "load_in_8bit": True}, "load_in_8bit is true; launch.strategy 'fsdp'"),
        ("quantization", {"bnb_4bit_quant_storage": "uint8"}, "bnb_4bit_quant_storage is 'uint8'; launch.strategy"),
        ("optim", "paged_adamw_8bit", "optim is 'paged_adamw_8bit'; bitsandbytes' optimizers have no sharding"),
    ],
)
def test_fsdp_is_refused_with_what_it_cannot_shard(section: str, values: Any, says: str) -> None:
    raw = copy.deepcopy(GOOD)
    raw["numerics"] = "native"
    raw["finetune"]["launch"] |= {"processes": 2, "strategy": "fsdp"}
    raw["finetune"]["quantization"]["bnb_4bit_quant_storage"] = "float32"
    params.parse(raw, "params.yaml")
    if section == "numerics":
        raw[section] = values
    elif isinstance(values, dict):
        raw["finetune"][section] |= values
    else:
        raw["finetune"][section] = values
    with pytest.raises(params.ParamsError, match=re.escape(says)):
        params.parse(raw, "params.yaml")


def test_an_unknown_key_is_told_the_nearest_one() -> None:
    assert "finetune.lora.alpha: unknown key; the nearest valid key is finetune.lora.lora_alpha" in wrong(
        "finetune.lora.alpha", 32
    )


def test_a_missing_key_is_named() -> None:
    raw = copy.deepcopy(GOOD)
    del raw["merge"]["dtype"]
    with pytest.raises(params.ParamsError, match=r"merge\.dtype: missing"):
        params.parse(raw, "params.yaml")


def test_all_errors_are_listed_at_once() -> None:
    raw = copy.deepcopy(GOOD)
    raw["seed"], raw["finetune"]["lora"]["r"] = -1, 0
    with pytest.raises(params.ParamsError, match="2 errors") as caught:
        params.parse(raw, "params.yaml")
    assert "seed:" in str(caught.value) and "finetune.lora.r:" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["seed: [1", "- 1\n- 2\n", "\udce9".encode("utf-8", "surrogateescape").decode("latin-1")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(params.ParamsError):
        params.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(params.ParamsError, match="not found"):
        params.load(tmp_path / "params.yaml")


def test_a_float_as_set_param_writes_it_is_a_float(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("weight_decay: 0.0\n", "weight_decay: 3e-05\n", 1))
    assert params.load(path).finetune.weight_decay == 3e-05


def test_flatten_gives_dotted_keys() -> None:
    assert params.flatten({"lora": {"r": 8, "modules": ["q"]}, "sources": [{"name": "a"}]}) == {
        "lora.r": 8,
        "lora.modules": ["q"],
        "sources.0.name": "a",
    }


def test_the_first_stage_ends_in_seconds_with_one_message_and_exit_code_1(tmp_path: Path) -> None:
    yaml = YAML()
    values = yaml.load(ROOT / "params.yaml")
    values["finetune"]["quantization"]["bnb_4bit_quant_type"] = "nf5"
    yaml.dump(values, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "stages.download_corpus"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert time.monotonic() - started < 20
    assert done.returncode == 1
    assert "finetune.quantization.bnb_4bit_quant_type" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/corpus.md"])
def test_the_sources_that_the_pages_show_are_valid(page: str) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    found = YAML(typ="safe").load(shown)
    sources = found["data"]["sources"] if isinstance(found, dict) else found
    assert len(params.Data.model_validate({"sources": sources}).sources) == len(sources) > 0
