"""What makes the results of two runs differ: libraries, processor, C library, variables; recorded, and compared.

    python -m wronai.environment record     # environment.json, if dvc.lock is another since it was written
    python -m wronai.environment compare    # what differs here from environment.json

No host name, no path, no user, and of the environment only variables that are named here: it can stand in git.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from wronai import numerics as pin

RECORD = "environment.json"  # at the root of the project, in git
ABSENT = "absent"  # stands for a library that is not installed, a variable that is not set
MAY = "may change bytes"
SHOULD_NOT = "should not change bytes"

# Those whose code, or whose data, ends up in the bytes of an out.
LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "brotli",
    "courlan",
    "daft",
    "datasets",
    "dvc",
    "dvc-data",
    "ftfy",
    "htmldate",
    "jinja2",
    "justext",
    "lingua-language-detector",
    "llvmlite",
    "lm-eval",
    "lxml",
    "markdown-it-py",
    "matplotlib",
    "numba",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "pydantic",
    "python-stdnum",
    "regex",
    "ruamel.yaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "trafilatura",
    "transformers",
    "zstandard",
)
FEATURES = (
    "amx_bf16",
    "amx_int8",
    "amx_tile",
    "avx",
    "avx2",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx512bw",
    "avx512dq",
    "avx512f",
    "avx512vl",
    "avx_vnni",
    "f16c",
    "fma",
    "sse4_1",
    "sse4_2",
)
NEEDED = ("avx2", "fma")  # of these the pin is made: without one of them it gives other bytes
# Variables that choose kernels, count threads, or order what Python or the C library does.
KERNELS = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "NUMBA_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
OF_GPUS = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")  # the pin uses none
THREADS = (
    "GOMP_SPINCOUNT",
    "MKL_DYNAMIC",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
CUSTOMS = ("LANG", "LC_ALL", "PYTHONHASHSEED", "PYTHONUTF8", "TZ")


class Difference(NamedTuple):
    """One thing that is not as it was recorded, and whether that reaches the bytes: MAY or SHOULD_NOT."""

    key: str
    recorded: str
    observed: str
    severity: str

    def __str__(self) -> str:
        return f"{self.key}: {self.recorded} recorded, {self.observed} here ({self.severity})"


def observe(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What this machine and this interpreter are, flat, sorted by key; what is not there has no key.

    `variables` is the environment of the process that will compute. Nothing that computes is imported.
    """
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "libc": _libc(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        **_processor(Path("/proc/cpuinfo")),
        **_gpus(),
    }
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[f"library.{name}"] = metadata.version(name)
    found |= {f"variable.{name}": variables[name] for name in (*KERNELS, *THREADS, *CUSTOMS) if name in variables}
    return dict(sorted(found.items()))


def differences(
    recorded: Mapping[str, str], observed: Mapping[str, str], numerics: Literal["pinned", "native"] = "pinned"
) -> list[Difference]:
    """What differs, that which may change bytes first; `numerics` is the parameter of that name.

    Pinned numerics give the same bytes on every x86-64 processor with AVX2 and FMA, by any number of threads; native
    ones on the same processor by the same number.
    """
    found = []
    for key in sorted(recorded.keys() | observed.keys()):
        was, now = recorded.get(key, ABSENT), observed.get(key, ABSENT)
        if was != now:
            found.append(Difference(key, was, now, MAY if _reaches(key, was, now, numerics) else SHOULD_NOT))
    return sorted(found, key=lambda difference: difference.severity != MAY)


def _reaches(key: str, was: str, now: str, numerics: str) -> bool:
    """Whether a difference in `key` may reach the bytes of an out."""
    kind, _, name = key.partition(".")
    if key == "python":
        return was.split(".")[:2] != now.split(".")[:2]
    if kind == "library" or key in ("machine", "system", "libc"):
        return True
    if kind == "variable" and name in CUSTOMS:
        return False
    if numerics == "native":
        return True
    if key == "cpu.features":
        return any((feature in was.split()) != (feature in now.split()) for feature in NEEDED)
    if kind == "variable":
        return (
            name in KERNELS and name not in pin.PINNED and name not in OF_GPUS
        )  # a stage sets those of the pin itself
    return False


def _libc() -> str:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        if named := os.confstr("CS_GNU_LIBC_VERSION"):
            return named
    return " ".join(platform.libc_ver()).strip() or ABSENT


def _processor(cpuinfo: Path) -> dict[str, str]:
    """Model and features of the first core, as Linux names them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return {"cpu.model": platform.processor() or ABSENT}
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = {*named.get("flags", "").split()}
    return {
        "cpu.model": named.get("model name") or platform.processor() or ABSENT,
        "cpu.features": " ".join(feature for feature in FEATURES if feature in flags),
    }


def _gpus() -> dict[str, str]:
    """Names and driver of NVIDIA's GPUs; nothing where there is no driver, or no library that asks it."""
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
    except Exception:  # any that a broken driver raises: then there is none to compute on
        return {}
    try:
        found = {"gpu.driver": str(pynvml.nvmlSystemGetDriverVersion())}
        for number in range(pynvml.nvmlDeviceGetCount()):
            found[f"gpu.{number}"] = str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(number)))
        return found
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def md5(path: Path) -> str:
    """The hash that DVC gives a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def read(path: Path) -> tuple[str, dict[str, str]]:
    """The md5 of the dvc.lock that a record belongs to, and what was observed then. Raises ValueError, OSError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["lock"]), {str(key): str(value) for key, value in content["observed"].items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path.name}: expected {{"lock": md5 of dvc.lock, "observed": {{…}}}}, found something else ({error!r}); '
            "`python -m wronai.environment record` writes it anew"
        ) from None


def record(root: Path) -> bool:
    """Write the record of the project at `root`, unless it belongs to its dvc.lock already; whether it was written.

    So a fresh clone on another machine, where `dvc repro` leaves dvc.lock as it is, stays clean.
    """
    if not (root / "dvc.lock").is_file():
        raise ValueError("dvc.lock: not found; `dvc repro` writes it, and the environment is recorded after it")
    lock, target = md5(root / "dvc.lock"), root / RECORD
    with contextlib.suppress(ValueError, OSError):
        if read(target)[0] == lock:
            return False
    text = json.dumps({"lock": lock, "observed": observe()}, indent=2, ensure_ascii=False) + "\n"
    handle, name = tempfile.mkstemp(prefix=f".{RECORD}.", dir=root)
    try:
        with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 (a handle, not a path)
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m wronai.environment", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=("record", "compare"))
    action = parser.parse_args(arguments).action
    try:
        if action == "record":
            if record(Path()):
                print(f"{RECORD} belongs to this dvc.lock now; commit both")
            return
        found = differences(read(Path(RECORD))[1], observe())
    except (ValueError, OSError) as error:
        sys.exit(f"environment: {error}")
    print("\n".join(map(str, found)) or f"as in {RECORD}")


if __name__ == "__main__":
    main()
