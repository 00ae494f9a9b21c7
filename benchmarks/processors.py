"""Whether the pinned numerics give the same bytes elsewhere: a tiny pipeline, natively, emulated, and otherwise run.

    apt-get install qemu-user
    python benchmarks/processors.py

Pre-trains a tiny Mistral, fine-tunes it with QLoRA, merges it, scores it in several batches, compares the scores and
draws the loss: in each way below in a process of its own. `tests/test_processors.py` holds the results together.
"""

import contextlib
import ctypes
import dataclasses
import datetime
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EMULATED = ("Haswell", "EPYC-Rome")  # the oldest Intel processor with AVX2, and one of AMD's
DAYS = 10_000  # how far the clock is shifted
FOUND = ("base", "adapter", "merged", "nats", "compared", "figure")  # what must be the same


@dataclasses.dataclass(frozen=True)
class Way:
    """How the tiny pipeline is run: on which processor, by how many threads, under which variables, on which date."""

    processor: str = "native"
    threads: int = 1
    variables: tuple[tuple[str, str], ...] = ()
    days: int = 0


def elsewhere(folder: Path) -> dict[str, Way]:
    """One way for each thing that may be otherwise on another machine, and must not matter. `folder` is empty."""
    for name in ("temporary", "home"):
        (folder / name).mkdir()
    listed = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
    polish = [name for name in listed if name.lower() in ("pl_pl.utf8", "pl_pl.utf-8")]
    user = {"USER": "ktos", "LOGNAME": "ktos", "HOME": str(folder / "home")}
    return {
        "two threads": Way(threads=2),
        "another folder": Way(variables=(("TMPDIR", str(folder / "temporary")),)),
        "another locale": Way(variables=(("LC_ALL", (polish or ["C"])[0]),)),
        "another time zone": Way(variables=(("TZ", "Asia/Tokyo"),)),
        "another hash seed": Way(variables=(("PYTHONHASHSEED", "7"),)),
        "another user": Way(variables=tuple(user.items())),
        "another date": Way(days=DAYS),
    }


def together(ways: dict[str, Way]) -> Way:
    """All of them at once."""
    variables = tuple(pair for way in ways.values() for pair in way.variables)
    return Way("native", max(way.threads for way in ways.values()), variables, max(way.days for way in ways.values()))


def run(way: Way) -> dict[str, Any]:
    """What `measure` found that way. Raises RuntimeError with what it said if it failed."""
    emulator = [] if way.processor == "native" else ["qemu-x86_64", "-cpu", way.processor]
    # The interpreter itself, not the link in the environment: an emulated one does not find what lies beside the link.
    command = [*emulator, str(Path(sys.executable).resolve()), __file__, str(way.threads), str(way.days)]
    fixed = {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    pinned = ("ATEN_", "DNNL_", "MKL_", "ONEDNN_")  # who calls may have pinned its own; each run pins itself
    given = {name: value for name, value in os.environ.items() if not name.startswith(pinned)}
    environment = {**given, **fixed, **dict(way.variables)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: exit status {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shift_clock(days: int) -> None:
    """Let this process live on another date: x86-64 Linux, before it has a second thread.

    `datetime` cannot be replaced, since C extensions hold on to its layout. So the C library's clock_gettime is, by one
    that adds `days` to the clock of the day: Python, C++ and Rust ask it. The kernel's clock, and with it the times of
    files, stays as it is.
    """
    system_call = "b8e40000000f0585c0751185ff750d"  # and return if it failed or was of another clock
    add_seconds = "48b9" + (days * 86_400).to_bytes(8, "little", signed=True).hex() + "48010ec3"
    shifted = bytes.fromhex(system_call + add_seconds)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    to = libc.mmap(None, mmap.PAGESIZE, everything, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)  # never unmapped
    entry = ctypes.cast(libc.clock_gettime, ctypes.c_void_p).value or 0
    page = ctypes.c_void_p(entry & ~(mmap.PAGESIZE - 1))
    if to in (None, ctypes.c_void_p(-1).value) or libc.mprotect(page, ctypes.c_size_t(2 * mmap.PAGESIZE), everything):
        raise OSError(ctypes.get_errno(), "no memory that may be written and executed, so the clock stays")
    ctypes.memmove(to, shifted, len(shifted))
    ctypes.memmove(entry, bytes.fromhex("48b8") + to.to_bytes(8, "little") + bytes.fromhex("ffe0"), 12)  # jump there
    local, utc, formatted = time.localtime, time.gmtime, time.strftime  # these ask the C library's time()
    time.localtime = lambda at=None: local(time.time() if at is None else at)
    time.gmtime = lambda at=None: utc(time.time() if at is None else at)
    time.strftime = lambda form, at=None: formatted(form, time.localtime() if at is None else at)


def measure(threads: int) -> dict[str, Any]:
    """Hashes of the base, the adapter and the merged model, the nats of texts, their comparison, the hash of a figure.

    And in `way` what shows that this process runs as it was asked to.
    """
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import tiny

    from wronai import numerics

    numerics.choose("pinned")
    import numpy as np
    import pandas as pd
    import torch

    from wronai import base, comparison, merging, prefixes, pretraining, qlora, report, tokens

    torch.set_num_threads(threads)
    numerics.deterministic("pinned", tiny.SEED)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        out = Path(folder)
        texts = tiny.texts()
        scratch = tiny.SCRATCH.model_copy(update={"max_steps": 4})
        pretraining.from_scratch(texts[5:], texts[:2], scratch, tiny.SEED, out / "base", tiny.ignore)
        tokenizer = tokens.extend(tokens.load(out / "base"))
        blocks, _ = tokens.blocks(tokenizer, tiny.CONVERSATIONS, tiny.BLOCK)
        tokens.write(blocks, out / "train.parquet")
        train = tokens.read(out / "train.parquet")
        settings = tiny.FINETUNE.model_copy(update={"max_steps": 3})
        model = qlora.load_quantized(out / "base", tokenizer, settings.quantization, tiny.SEED)
        model = qlora.attach(model, tokenizer, settings)
        pad = tokenizer.pad_token_id
        qlora.tune(model, train, train, settings, tiny.SEED, out / "work", pad_token_id=pad, log=tiny.ignore)
        qlora.save(model, out / "adapter")
        where = (out / "base", out / "adapter", tokenizer, settings.quantization, tiny.MERGE, out / "merged")
        merging.merge(*where, work=out / "checkpoints")
        for name in ("base/model", "adapter/adapter_model", "merged/model"):
            found[name.split("/")[0]] = _hash((out / f"{name}.safetensors").read_bytes())
        scores = {}
        for name in ("base", "merged"):
            ids = [tokenizer.bos_token_id, *tokenizer.encode(texts[0], add_special_tokens=False)[:150]]
            ends = (60, 70, 80, 90, 120, 150)  # as choices after one question, in three batches
            requests = [prefixes.Request(tuple(ids[:end]), 40) for end in ends]
            loaded = base.load(out / name, torch.float32).eval()
            scored = prefixes.score(loaded, requests, 128, prefixes.Batch(2), tiny.ignore)
            scores[name] = [score for score, _ in scored]
        found["nats"] = scores["merged"]
        both = pd.DataFrame({"value_base": scores["base"], "value_tuned": scores["merged"]})
        found["compared"] = comparison.compare(both, 200, tiny.SEED, "tiny", higher_is_better=True)
        rows = [f"{step},{loss},{loss + 1}\n" for step, loss in enumerate(scores["merged"])]
        (out / "loss.csv").write_text("step,loss,eval_loss\n" + "".join(rows))
        found["figure"] = _hash(report.loss_curve(out / "loss.csv").encode())
        found["way"] = {
            "threads": torch.get_num_threads(),
            "avx512f": bool(np._core._multiarray_umath.__cpu_features__["AVX512F"]),
            "year": datetime.datetime.now().year,
            "folder": str(out.parent),
        }
    return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def main() -> None:
    """Print the table: what each way gave, and its seconds; exit with 1 if any differs."""
    if not shutil.which("qemu-x86_64"):
        sys.exit("qemu-x86_64 not found; it comes with Debian's qemu-user")
    seen = set()
    with tempfile.TemporaryDirectory() as folder:
        ways = {"native": Way(), "all of it": together(elsewhere(Path(folder)))}
        ways |= {processor: Way(processor) for processor in EMULATED}
        print(f"{'way':10} {'seconds':>7} {'base':12} {'adapter':12} {'merged':12} {'figure':12} nats")
        for name, way in ways.items():
            started = time.monotonic()
            found = run(way)
            seen.add(json.dumps({key: found[key] for key in FOUND}))
            row = " ".join(f"{found[key]:12}" for key in ("base", "adapter", "merged", "figure"))
            print(f"{name:10} {time.monotonic() - started:7.0f} {row} {found['nats'][:2]}", flush=True)
    sys.exit(len(seen) > 1)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        if days := int(sys.argv[2]):
            shift_clock(days)
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
