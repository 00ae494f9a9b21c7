"""Whether the pinned numerics give the same bytes on other processors: a tiny pipeline, native and emulated.

    apt-get install qemu-user
    python benchmarks/processors.py

Pre-trains a tiny Mistral, fine-tunes it with QLoRA, merges and scores it: once for each processor and number of
threads, each in a process of its own. Five minutes in all; what is emulated takes most of it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROCESSORS = ("native", "Haswell", "EPYC-Rome")


def measure(threads: int) -> None:
    """Print a hash of the base, the adapter and the merged model, and the nats of a text."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import tiny

    from wronai import numerics

    numerics.choose("pinned")
    import torch

    from wronai import base, merging, prefixes, qlora, tokens

    torch.set_num_threads(threads)
    numerics.deterministic("pinned", tiny.SEED)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        texts = tiny.texts()
        scratch = tiny.SCRATCH.model_copy(update={"max_steps": 10})
        base.from_scratch(texts[5:], texts[:2], scratch, tiny.SEED, out / "base", tiny.ignore)
        tokenizer = tokens.extend(tokens.load(out / "base"))
        blocks, _ = tokens.blocks(tokenizer, tiny.CONVERSATIONS, tiny.BLOCK)
        tokens.write(blocks, out / "train.parquet")
        train = tokens.read(out / "train.parquet")
        settings = tiny.FINETUNE.model_copy(update={"max_steps": 6})
        model = qlora.load_quantized(out / "base", tokenizer, settings.quantization, tiny.SEED)
        model = qlora.attach(model, tokenizer, settings)
        pad = tokenizer.pad_token_id
        qlora.tune(model, train, train, settings, tiny.SEED, out / "work", pad_token_id=pad, log=tiny.ignore)
        qlora.save(model, out / "adapter")
        where = (out / "base", out / "adapter", tokenizer, settings.quantization, tiny.MERGE, out / "merged")
        merging.merge(*where, work=out / "checkpoints")
        for name in ("base/model", "adapter/adapter_model", "merged/model"):
            content = (out / f"{name}.safetensors").read_bytes()
            found[name.split("/")[0]] = hashlib.sha256(content).hexdigest()[:12]
        merged = base.load(out / "merged", torch.float32).eval()
        ids = [tokenizer.bos_token_id, *tokenizer.encode(texts[0], add_special_tokens=False)[:150]]
        requests = [prefixes.Request(tuple(ids[:end]), 40) for end in (60, 90, 150)]  # as choices after one question
        scores = prefixes.score(merged, requests, 128, prefixes.Batch(2), tiny.ignore)
        found["nats"] = repr([score for score, _ in scores])
    print(json.dumps(found))


def main() -> None:
    """Print the table: what each processor gave with one and with two threads; exit with 1 if any differs."""
    python = str(Path(sys.executable).resolve())
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_OFFLINE": "1"}
    if not shutil.which("qemu-x86_64"):
        sys.exit("qemu-x86_64 not found; it comes with Debian's qemu-user")
    seen = set()
    print(f"{'processor':10} {'threads':>7} {'base':12} {'adapter':12} {'merged':12} nats")
    for processor in PROCESSORS:
        emulator = [] if processor == "native" else ["qemu-x86_64", "-cpu", processor]
        for threads in (1, 2):
            command = [*emulator, python, __file__, str(threads)]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{processor}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            seen.add(done.stdout.splitlines()[-1])
            row = " ".join(f"{found[name]:12}" for name in ("base", "adapter", "merged"))
            print(f"{processor:10} {threads:7} {row} {found['nats']}", flush=True)
    sys.exit(len(seen) > 1)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure(int(sys.argv[1]))
    else:
        main()
