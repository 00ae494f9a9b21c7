"""What a run depends on is recorded without secrets, once for each dvc.lock, and compared with its consequence."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from wronai import environment
from wronai.environment import MAY, SHOULD_NOT

ROOT = Path(__file__).parent.parent
HERE = {
    "python": "3.11.2",
    "machine": "x86_64",
    "cpu.model": "AMD EPYC",
    "cpu.features": "avx avx2 avx512f fma",
    "cores": "2",
    "library.torch": "2.13.0",
    "libc": "glibc 2.36",
}


def severity(numerics: str = "pinned", **changed: str) -> dict[str, str]:
    """The severity of each difference when `changed` (a double underscore stands for the dot) is observed."""
    observed = HERE | {key.replace("__", "."): value for key, value in changed.items()}
    return {found.key: found.severity for found in environment.differences(HERE, observed, numerics)}


def test_what_is_observed_names_the_versions_that_run_here_and_this_processor() -> None:
    found = environment.observe()
    assert list(found) == sorted(found)
    assert found["library.torch"] == metadata.version("torch") and found["python"].startswith("3.11")
    assert {f"library.{name}" for name in environment.LIBRARIES} <= found.keys()
    assert found["machine"] != "x86_64" or {*environment.NEEDED} <= {*found["cpu.features"].split()}
    assert int(found["cores"]) >= 1 and found["libc"] and found["cpu.model"]


def test_of_the_environment_only_what_changes_arithmetic_is_observed() -> None:
    variables = {
        "OMP_NUM_THREADS": "3",
        "TZ": "UTC",
        "HF_TOKEN": "hf_secret",
        "MLFLOW_TRACKING_URI": "u:p@h",
        "HOME": "h",
    }
    found = environment.observe(variables)
    assert {key: value for key, value in found.items() if key.startswith("variable.")} == {
        "variable.OMP_NUM_THREADS": "3",
        "variable.TZ": "UTC",
    }
    assert not {"hf_secret", "u:p@h", "h"} & {*found.values()}


def test_observing_imports_nothing_that_computes() -> None:
    code = "import sys; from wronai import environment; environment.observe(); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_same_environment_has_no_differences() -> None:
    assert environment.differences(HERE, dict(HERE)) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"library__torch": "2.14.0"},
        {"machine": "aarch64"},
        {"libc": "glibc 2.41"},
        {"python": "3.12.1"},
        {"cpu__features": "avx fma"},
        {"cpu__features": "avx avx2 avx512f"},
        {"variable__MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    ],
)
def test_what_the_pin_does_not_cover_may_change_bytes(changed: dict[str, str]) -> None:
    assert [*severity(**changed).values()] == [MAY]


@pytest.mark.parametrize(
    "changed",
    [
        {"cpu__model": "Intel Xeon"},
        {"cpu__features": "avx avx2 fma"},
        {"cores": "64"},
        {"python": "3.11.9"},
        {"variable__OMP_NUM_THREADS": "1"},
        {"variable__MKL_CBWR": "AVX2"},
        {"variable__TZ": "Asia/Tokyo"},
        {"gpu__0": "NVIDIA H200"},
    ],
)
def test_what_the_pin_covers_should_not_change_bytes(changed: dict[str, str]) -> None:
    assert [*severity(**changed).values()] == [SHOULD_NOT]


@pytest.mark.parametrize("changed", [{"cpu__model": "Intel Xeon"}, {"cores": "64"}, {"gpu__0": "NVIDIA H200"}])
def test_without_the_pin_another_processor_or_gpu_may_change_bytes(changed: dict[str, str]) -> None:
    assert [*severity("native", **changed).values()] == [MAY]
    assert severity("native", variable__TZ="Asia/Tokyo") == {"variable.TZ": SHOULD_NOT}


def test_what_may_change_bytes_comes_first_and_what_is_missing_is_named() -> None:
    observed = {key: value for key, value in HERE.items() if key != "library.torch"} | {"cores": "4"}
    assert [str(found) for found in environment.differences(HERE, observed)] == [
        "library.torch: 2.13.0 recorded, absent here (may change bytes)",
        "cores: 2 recorded, 4 here (should not change bytes)",
    ]


def test_a_machine_that_hides_its_processor_is_observed_all_the_same(tmp_path: Path) -> None:
    assert environment._processor(tmp_path / "absent")["cpu.model"]
    (tmp_path / "cpuinfo").write_text("Hardware\t: board\n\nother\n")
    assert environment._processor(tmp_path / "cpuinfo")["cpu.features"] == ""


def test_a_record_is_written_once_for_each_lock(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    assert environment.record(tmp_path)
    lock, observed = environment.read(tmp_path / "environment.json")
    assert lock == environment.md5(tmp_path / "dvc.lock") and observed == environment.observe()
    foreign = {"lock": lock, "observed": {"machine": "of another"}}
    (tmp_path / "environment.json").write_text(json.dumps(foreign))
    assert not environment.record(tmp_path)
    assert environment.read(tmp_path / "environment.json")[1] == foreign["observed"]
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    assert environment.record(tmp_path)
    assert environment.read(tmp_path / "environment.json")[1] != foreign["observed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.lock", "environment.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"lock": "x"}', '{"lock": "x", "observed": 3}'])
def test_a_damaged_record_is_named_and_written_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(ValueError, match=r'environment\.json: expected \{"lock"'):
        environment.read(tmp_path / "environment.json")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    assert environment.record(tmp_path) and environment.read(tmp_path / "environment.json")


def command(folder: Path, action: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wronai.environment", action],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_records_compares_and_says_what_is_missing(tmp_path: Path) -> None:
    done = command(tmp_path, "record")
    assert done.returncode == 1 and done.stderr.startswith("environment: dvc.lock: not found")
    assert "environment.json" in command(tmp_path, "compare").stderr
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    assert "commit both" in command(tmp_path, "record").stdout
    assert command(tmp_path, "record").stdout == ""
    assert command(tmp_path, "compare").stdout == "as in environment.json\n"


def test_the_committed_record_belongs_to_the_committed_lock_and_to_the_pins() -> None:
    lock, observed = environment.read(ROOT / "environment.json")
    assert lock == environment.md5(ROOT / "dvc.lock"), (
        "run `python -m wronai.environment record` where dvc.lock was made"
    )
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    plain = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    recorded = {key.removeprefix("library."): value for key, value in observed.items() if key.startswith("library.")}
    assert {*recorded} == {*environment.LIBRARIES}
    wanted = {name: plain[re.sub(r"[-_.]+", "-", name)] for name in recorded}
    assert {name: version.split("+")[0] for name, version in recorded.items()} == wanted
