"""Pin the arithmetic of torch so that a stage gives the same bytes on every x86-64 processor with AVX2."""

import os
import random
import sys
import warnings
from typing import Any, Literal

# Torch, oneDNN and MKL choose kernels by processor, and read these once, when torch is imported. Each is needed:
# vendors differ in MKL's products and vector functions even at the same instruction set.
PINNED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "TORCHINDUCTOR_DETERMINISTIC": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the promise is one of CPUs; a GPU gives other bytes
}

_overrides: list[Any] = []  # holds the kernels that `deterministic` registered for as long as the process lives


def choose(numerics: Literal["pinned", "native"]) -> None:
    """Set the environment that torch reads at import; `native` leaves the choice to the libraries.

    Raises RuntimeError if torch is imported already under another choice: it would silently go unheeded.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Threads that spin long while they wait make a step take many times as long when another program wants the core.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if numerics == "native":
        return
    if "torch" in sys.modules and any(os.environ.get(name) != value for name, value in PINNED.items()):
        raise RuntimeError("torch was imported before its numerics were pinned; import it after numerics.choose()")
    os.environ.update(PINNED)


def deterministic(numerics: Literal["pinned", "native"], seed: int) -> None:
    """Seed every generator; when `numerics` is pinned, also refuse what is not deterministic and pin the products."""
    import numpy as np
    import torch

    # What transformers.set_seed does, which imports PEFT and bitsandbytes first: 4 s of each stage.
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if numerics == "pinned":
        # As torch.use_deterministic_algorithms(True), which imports a compiler first; it heeds PINNED once it comes.
        torch.set_deterministic_debug_mode("error")
        # It costs time, and nothing here reads such memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if not _overrides:
            _pin_products()


def _pin_products() -> None:
    """Give float32 matrix products to oneDNN instead of MKL, and take float32 roots in float64, for the whole process.

    Under MKL's COMPATIBLE mode the bytes of a product whose columns are not a multiple of eight depend on the number of
    threads (4,106 rows of a head do), and it takes two to three times as long. Its float32 roots are approximate, and
    in other places on other processors; rounded from float64 they are exact. Other types keep their kernel.
    """
    import torch

    def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32 and left.numel() and right.numel():
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
            return product
        out = left.new_empty(left.shape[0], right.shape[1])
        return torch.ops.aten.mm.out(left, right, out=out)  # type: ignore[no-any-return]

    def sqrt(values: torch.Tensor) -> torch.Tensor:
        if values.dtype == torch.float32:
            wide = values.double()
            return torch.ops.aten.sqrt.out(wide, out=torch.empty_like(wide)).float()  # type: ignore[no-any-return]
        kind = values.dtype if values.dtype.is_floating_point or values.dtype.is_complex else torch.get_default_dtype()
        out = torch.empty_like(values, dtype=kind)
        return torch.ops.aten.sqrt.out(values, out=out)  # type: ignore[no-any-return]

    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of every kernel that is replaced
        library.impl("mm", mm, "CPU")  # type: ignore[no-untyped-call]
        library.impl("sqrt", sqrt, "CPU")  # type: ignore[no-untyped-call]
    _overrides.append(library)
