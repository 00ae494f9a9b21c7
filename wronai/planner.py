"""Plan the memory of a fine-tuning before anything has run: `python -m wronai.planner`, or `make plan`.

It stands apart from `wronai.plan`, which a stage depends on: a change of how a base is found trains nothing anew.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from wronai import downloads, numerics, params, plan, tracking

CONFIG = "config.json"


def shape(model: params.Model, folder: Path) -> plan.Shape:
    """The shape of the base that `model` names: of one from scratch by its parameters, else by its config.json.

    Of a base from the hub that file alone is fetched, to `folder`, where prepare_base finds it too. models/base is not
    asked: it may hold another base still. Raises ValueError or OSError, with one message each.
    """
    if model.base == "scratch":
        return plan.from_config(model.scratch.model_dump())
    if model.base == "local":
        if not (Path(model.path or "") / CONFIG).is_file():
            raise FileNotFoundError(f"model.path: {model.path}: no {CONFIG}; expected a folder that holds a base model")
        return plan.read(Path(model.path or ""))
    repository = downloads.Repository("model", model.repository or "", model.revision or "", "model")
    listed = downloads.list_hub(repository, folder, _say).files
    found = [file for file in listed if file.name == CONFIG]
    if not found:
        raise FileNotFoundError(f"{repository}: no {CONFIG}; there is {downloads.some(listed)}")
    return plan.read_config(downloads.fetch_files(repository, found, folder, _say)[0])


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def device(memory: str | None, kind: plan.Kind | None) -> plan.Device:
    """The device to plan for: that of this machine, or with `memory` a GPU, unless `kind` says cpu.

    Raises ValueError if it is not to be known.
    """
    if memory is not None:
        kind = kind or "cuda"
        return plan.Device(kind, plan.CONTEXT[kind], plan.parse_amount(memory))
    found = plan.here()
    if kind and kind != found.kind:
        raise ValueError(f"--device {kind}: this machine has none to ask; say --memory too, such as 8GB")
    # What this process holds is less than what the stage will hold before it loads anything.
    return replace(found, context=max(found.context, plan.CONTEXT["cpu"])) if found.kind == "cpu" else found


def main(arguments: list[str]) -> int:
    """Print the plan of params.yaml in the working directory; 1 if it does not fit, or cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m wronai.planner", description="what finetune_qlora will hold in memory"
    )
    parser.add_argument("--memory", help="of the device to plan for, such as 8GB; by default that of this machine")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="with --memory: a GPU, unless this says cpu")
    asked = parser.parse_args(arguments)
    try:
        config = params.load(Path("params.yaml"))
        numerics.choose(config.numerics)  # pinned ones hide the GPU from the stage, and so from the plan
        base = shape(config.model, tracking.store_root() / "data/downloads")
        where = device(asked.memory, asked.device)
        settings, longest = config.finetune, config.tokenize.max_length
        made = plan.make(base, settings, longest, where.kind, where.context)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    batch = f"{settings.per_device_train_batch_size} x {longest:,} tokens"
    print(f"{base.num_hidden_layers} layers of {base.hidden_size:,}, {base.vocab_size:,} tokens known; batch {batch}")
    print(plan.table(made, where))
    if made.total <= where.available:
        return 0
    print(plan.advice(plan.changes(base, settings, longest, where), base, where))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
