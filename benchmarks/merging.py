"""Peak anonymous memory and seconds of a merge, by the depth of the model, beside a merge that is whole in memory.

    python benchmarks/merging.py [--layers 2 4 8] [--hidden 4096] [--how shards memory]

Makes bases of random bfloat16 weights in the shape of Mistral-7B (0.5 GB, and 0.44 GB a layer) and adapters for them in
a temporary folder, and merges each in processes of their own: by `wronai.merging`, shard by shard, and by loading the
base and the 4-bit model, adding with PEFT and saving with transformers. Memory is RssAnon, looked at every 20 ms: pages
of files, which the kernel takes back when it wants, do not count.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import full_size

from wronai import numerics, params

ROOT = Path(__file__).parent.parent


def configured() -> tuple[params.Finetune, params.Merge]:
    """The default parameters with the quantization and the type of a 7B model."""
    config = params.load(ROOT / "params.yaml")
    quantization = config.finetune.quantization.model_copy(update={"bnb_4bit_compute_dtype": "bfloat16"})
    finetune = config.finetune.model_copy(update={"quantization": quantization})
    return finetune, config.merge.model_copy(update={"dtype": "bfloat16"})


def make(folder: Path, layers: int, hidden: int) -> None:
    """Write a base of random weights, its tokenizer with the ten tokens, and an adapter to `folder`."""
    import random_mistral
    import torch
    from peft.tuners.lora import LoraConfig
    from safetensors.torch import save_file

    from wronai import base, qlora, tokens

    out = folder / "base"
    random_mistral.write(out, layers, hidden)
    shape = base.load(out, torch.float32, device="meta")
    extended = tokens.extend(tokens.load(out))
    extended.save_pretrained(folder / "tokenizer")
    lora, ids = configured()[0].lora, tokens.added_ids(extended)
    tensors = {}
    for name, layer in base.linears(shape).items():
        stem, (rows, columns) = f"base_model.model.{name}", layer.weight.shape
        tensors[f"{stem}.lora_A.weight"] = torch.randn(lora.r, columns) * 0.02
        tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, lora.r) * 0.02
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"base_model.model.{name}.token_adapter.trainable_tokens_delta"] = torch.randn(10, hidden)
    LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        target_modules=sorted(lora.target_modules),
        trainable_token_indices={"embed_tokens": ids, "lm_head": ids},
    ).save_pretrained(str(folder / "adapter"))
    save_file(tensors, folder / "adapter" / qlora.ADAPTER, {"format": "pt"})


def in_memory(base_path: Path, adapter: Path, tokenizer: Any, quantization: params.Quantization, out: Path) -> None:
    """What `finetune_qlora`'s users do without a streaming merge: load both, add, save."""
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    from wronai import base, qlora

    live = PeftModel.from_pretrained(qlora.load_quantized(base_path, tokenizer, quantization, 0), adapter)
    merged = base.load(base_path, torch.float32)
    qlora.add_rows(merged, tokenizer, base_path, 0)
    weights = dict(merged.named_parameters())
    with torch.no_grad():
        for name, module in live.base_model.model.named_modules():
            if isinstance(module, LoraLayer):
                held = qlora.held(module.get_base_layer())
                weights[f"{name}.weight"].copy_(held + module.get_delta_weight("default").float())
            elif isinstance(module, TrainableTokensLayer):
                rows = weights[f"{name.removesuffix('.token_adapter')}.weight"]
                rows[module.token_indices["default"]] = module.trainable_tokens_delta["default"].float()
    merged.to(torch.bfloat16).save_pretrained(out, max_shard_size="2GB")


def merge(folder: Path, how: str) -> None:
    """Merge what `make` wrote, `how` it is said: shards or memory."""
    from wronai import merging, tokens

    finetune, settings = configured()
    where = (folder / "base", folder / "adapter", tokens.load(folder / "tokenizer"), finetune.quantization)
    if how == "shards":
        merging.merge(*where, settings, folder / how, work=folder / "checkpoints")
    else:
        in_memory(*where, folder / how)


def watched(*arguments: str) -> tuple[float, float]:
    """Run this script with `arguments`; its seconds, and its peak of anonymous memory in GB."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen([sys.executable, __file__, *arguments], cwd=ROOT, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, full_size.anonymous(process.pid))
            time.sleep(0.02)
        if process.returncode:
            assert process.stderr
            raise SystemExit(process.stderr.read().decode())
    return time.monotonic() - started, peak / 1e9


def main() -> None:
    """Print the table, or do the one thing that the first argument says."""
    numerics.choose("native")
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1 and sys.argv[1] == "make":
        return make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    if len(sys.argv) > 1 and sys.argv[1] == "merge":
        return merge(Path(sys.argv[2]), sys.argv[3])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--how", nargs="+", default=["shards", "memory"])
    asked = parser.parse_args()
    print(f"{'layers':>6} {'merge':8} {'seconds':>8} {'peak GB':>8}")
    for layers in asked.layers:
        with tempfile.TemporaryDirectory() as folder:
            watched("make", folder, str(layers), str(asked.hidden))
            for how in asked.how:
                seconds, peak = watched("merge", folder, how)
                print(f"{layers:6} {how:8} {seconds:8.0f} {peak:8.2f}", flush=True)


if __name__ == "__main__":
    main()
