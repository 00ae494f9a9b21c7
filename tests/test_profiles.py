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
