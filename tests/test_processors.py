"""The same bytes on other processors, and whatever else a machine has otherwise; each run is a process of its own."""

import datetime
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import processors  # noqa: E402

from wronai import environment  # noqa: E402

pytestmark = [
    pytest.mark.processors,
    pytest.mark.skipif(
        not {*environment.NEEDED} <= {*environment.observe().get("cpu.features", "").split()},
        reason=f"the pin is made for x86-64 processors with AVX2 and FMA, this is {platform.machine()}",
    ),
]


def bytes_of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in processors.FOUND}


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    """As this machine runs it, by one thread."""
    return processors.run(processors.Way())


def test_two_threads_folder_locale_time_zone_hash_seed_user_and_date_change_nothing(
    here: dict[str, Any], tmp_path: Path
) -> None:
    ways = processors.elsewhere(tmp_path)
    found = processors.run(processors.together(ways))
    shifted = datetime.datetime.now() + datetime.timedelta(days=processors.DAYS)
    assert found["way"]["threads"] == 2 and here["way"]["threads"] == 1
    assert abs(found["way"]["year"] - shifted.year) <= 1
    assert found["way"]["folder"] == str(tmp_path / "temporary")
    if bytes_of(found) != bytes_of(here):  # which of them it was
        alone = {name: processors.run(way) for name, way in ways.items()}
        guilty = [name for name, other in alone.items() if bytes_of(other) != bytes_of(here)]
        pytest.fail(f"{', '.join(guilty) or 'all together, none alone'}: other bytes, {found} instead of {here}")


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="no qemu-x86_64: it comes with Debian's qemu-user")
@pytest.mark.parametrize("processor", processors.EMULATED)
def test_another_processor_gives_the_same_bytes(processor: str, here: dict[str, Any]) -> None:
    found = processors.run(processors.Way(processor))
    assert not found["way"]["avx512f"]
    assert bytes_of(found) == bytes_of(here)
