"""The stage finetune_qlora as it is, with a meter: `python steps.py OUT.json`, in the root of the project."""

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, "")  # `python -m` finds the project's modules here, and a script does not

from wronai import numerics, params

if __name__ == "__main__":
    numerics.choose(params.load(Path("params.yaml")).numerics)
    import meter

    from wronai import training

    measure = meter.Meter(pad_token_id=-1).install()
    passes: list[tuple[float, float]] = []
    mean_loss = training.mean_loss

    def timed(*args: Any, **kwargs: Any) -> float:
        began = time.perf_counter()
        loss = mean_loss(*args, **kwargs)
        passes.append((began, time.perf_counter()))
        return loss

    training.mean_loss = timed
    out = Path(sys.argv.pop(1))
    runpy.run_module("stages.finetune_qlora", run_name="__main__", alter_sys=True)
    steps = [(mark["began"], mark["ended"]) for mark in measure.marks]
    out.write_text(json.dumps({"steps": steps, "validation": passes}), encoding="utf-8")
