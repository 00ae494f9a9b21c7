"""Every profile applies, keeps the comments, and holds the values that it promises."""

import re
import shutil
from pathlib import Path

import pytest

from wronai import params, profiles

ROOT = Path(__file__).parent.parent
PROFILES = sorted((ROOT / "profiles").rglob("*.yaml"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_applies_and_keeps_every_comment(profile: Path, target: Path) -> None:
    before = re.findall(r"# .*", target.read_text())
    difference = profiles.apply(profile, target)
    assert params.load(target)
    assert re.findall(r"# .*", target.read_text()) == before
    assert difference.startswith("--- params.yaml")
    assert not re.search(r"^[+].*:$", difference, re.MULTILINE), "an empty value, where null stood"
    assert "path:  " not in target.read_text()


def test_mistral_7b_has_the_values_of_wronai(target: Path) -> None:
    profiles.apply(ROOT / "profiles/mistral-7b.yaml", target)
    config = params.load(target)
    lora, quantization, finetune = config.finetune.lora, config.finetune.quantization, config.finetune
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.bias) == (16, 32, 0.1, "none")
    assert set(lora.target_modules) == set(params.TARGET_MODULES)
    assert (quantization.load_in_4bit, quantization.bnb_4bit_quant_type) == (True, "nf4")
    assert (quantization.bnb_4bit_use_double_quant, quantization.bnb_4bit_compute_dtype) == (True, "bfloat16")
    assert (finetune.per_device_train_batch_size, finetune.gradient_accumulation_steps) == (1, 16)
    assert finetune.gradient_checkpointing
    assert config.model.repository == "mistralai/Mistral-7B-v0.1"
    assert (config.evaluate.dtype, config.evaluate.batch_size) == ("bfloat16", "auto")
    assert config.evaluate.max_length == config.tokenize.max_length
    assert not config.evaluate.answers.do_sample


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ddp", {"gradient_accumulation_steps", "launch.processes"}),
        (
            "fsdp",
            {
                "gradient_accumulation_steps",
                "launch.processes",
                "launch.strategy",
                "optim",
                "quantization.bnb_4bit_quant_storage",
            },
        ),
    ],
)
def test_several_gpus_change_how_mistral_7b_is_trained_and_not_what(
    name: str, changes: set[str], target: Path, tmp_path: Path
) -> None:
    several = Path(shutil.copyfile(target, tmp_path / "several.yaml"))
    profiles.apply(ROOT / "profiles/mistral-7b.yaml", target)
    profiles.apply(ROOT / f"profiles/mistral-7b-{name}.yaml", several)
    one, other = params.load(target), params.load(several)
    before, after = params.flatten(one), params.flatten(other)
    assert {key for key in before if before[key] != after[key]} == {f"finetune.{key}" for key in changes}
    rows = [found.gradient_accumulation_steps * found.launch.processes for found in (one.finetune, other.finetune)]
    assert rows[0] == rows[1], "rows of a step"


@pytest.mark.parametrize("before", PROFILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("after", PROFILES, ids=lambda path: path.stem)
def test_what_a_profile_gives_does_not_depend_on_the_one_before_it(
    before: Path, after: Path, target: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copyfile(target, tmp_path / "alone.yaml"))
    profiles.apply(after, alone)
    profiles.apply(before, target)
    profiles.apply(after, target)
    assert target.read_text() == alone.read_text()


@pytest.mark.parametrize("over", ["odd", "gpt-5"])
def test_a_profile_over_none_that_is_there_writes_nothing(over: str, target: Path, tmp_path: Path) -> None:
    profile = tmp_path / "odd.yaml"
    profile.write_text(f"over: {over}\n")
    before = target.read_bytes()
    with pytest.raises(params.ParamsError, match=rf"odd\.yaml: over: found '{over}'; expected another profile"):
        profiles.apply(profile, target)
    assert target.read_bytes() == before


def test_a_profile_with_an_unknown_key_writes_nothing(target: Path, tmp_path: Path) -> None:
    profile = tmp_path / "odd.yaml"
    profile.write_text("finetune:\n  lora:\n    rank: 8\n")
    before = target.read_bytes()
    with pytest.raises(params.ParamsError, match=r"odd\.yaml: finetune\.lora\.rank"):
        profiles.apply(profile, target)
    assert target.read_bytes() == before


def test_a_profile_with_a_wrong_value_writes_nothing(target: Path, tmp_path: Path) -> None:
    profile = tmp_path / "odd.yaml"
    profile.write_text("finetune:\n  lora:\n    r: 0\n")
    before = target.read_bytes()
    with pytest.raises(params.ParamsError, match=r"finetune\.lora\.r: found 0"):
        profiles.apply(profile, target)
    assert target.read_bytes() == before


def test_an_unknown_name_lists_the_profiles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert profiles.main(["gpt-5"]) == 1
    assert "expected one of: mistral-7b" in capsys.readouterr().err
