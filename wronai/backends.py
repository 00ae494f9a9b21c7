"""What `evaluate.backend` names: a model in this process, in vLLM on this machine's GPU, or on a server."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from wronai import engines, params, served


def open_model(folder: Path, settings: params.Scoring) -> Any:
    """What answers for the model in `folder`. Raises ValueError or OSError if it cannot."""
    if settings.backend == "server":
        return served.Served(folder, settings)
    if settings.backend == "vllm":
        return _in_vllm(folder, settings)
    return engines.in_process(folder, settings)


def _in_vllm(folder: Path, settings: params.Scoring) -> Any:
    otherwise = "choose hf, or server for a vLLM that runs elsewhere"
    if find_spec("vllm") is None:
        raise ValueError(
            "evaluate.backend is 'vllm', which is not installed: pip install vllm on a machine with a GPU; "
            f"or {otherwise}"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"evaluate.backend is 'vllm', which needs a GPU, and torch sees none: {otherwise}")
    try:
        from wronai import paged  # loads vLLM, which takes hold of the GPU
    except ImportError as error:
        raise ValueError(f"evaluate.backend is 'vllm', which cannot be loaded here ({error}): {otherwise}") from None
    return paged.InVllm(folder, settings)
