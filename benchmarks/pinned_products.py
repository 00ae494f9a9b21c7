"""What the pin of numerics costs: training tokens per second of the embedded base, each way in the same run.

    python benchmarks/pinned_products.py

Each way is a process of its own, since torch reads its environment at import. "MKL" is the pin with torch's own
products under MKL's COMPATIBLE mode; "oneDNN" is what the pipeline does.
"""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

WAYS = ("native", "MKL", "oneDNN")


def measure(way: str, threads: int) -> None:
    """Print the tokens per second, and a hash of the weights, of twelve steps of 1,024 tokens."""
    from wronai import numerics, params

    numerics.choose("native" if way == "native" else "pinned")
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.set_num_threads(threads)
    numerics.deterministic("pinned" if way == "oneDNN" else "native", seed=1)
    scratch = params.load(Path("params.yaml")).model.scratch.model_dump()
    shape = {name: value for name, value in scratch.items() if name in MistralConfig().to_dict()}
    model = MistralForCausalLM(MistralConfig(**{**shape, "vocab_size": scratch["vocab_size"] + 10}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.randint(0, scratch["vocab_size"], (4, 256))
    started = time.monotonic()
    for step in range(14):
        if step == 2:
            started = time.monotonic()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    rate = 12 * ids.numel() / (time.monotonic() - started)
    weights = b"".join(value.detach().numpy().tobytes() for value in model.parameters())
    print(rate, hashlib.sha256(weights).hexdigest()[:12])


def main() -> None:
    """Print the table: tokens per second of each way, its ratio to native, whether one and two threads agree."""
    print(f"{'way':8} {'tok/s, 2 threads':>17} {'of native':>10} {'1 and 2 threads agree':>22}")
    native = None
    for way in WAYS:
        found = []
        for threads in (1, 2):
            command = [sys.executable, __file__, way, str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(done.stdout.split()[-2:])
        rate = float(found[1][0])
        native = native or rate
        print(f"{way:8} {rate:17,.0f} {rate / native:10.2f} {found[0][1] == found[1][1]!s:>22}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
