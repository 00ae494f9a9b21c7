"""The pin is in force, covers the products, and cannot come too late."""

import subprocess
import sys

import pytest

from wronai import numerics

CLEAN = f"import os, sys; [os.environ.pop(name, None) for name in {list(numerics.PINNED)}]; "


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_pin_after_the_import_of_torch_is_refused() -> None:
    code = f"{CLEAN}import torch; from wronai import numerics; numerics.choose('pinned')"
    assert "torch was imported before its numerics were pinned" in run(code).stderr


def test_native_leaves_the_choice_to_the_libraries() -> None:
    code = (
        f"{CLEAN}from wronai import numerics; "
        f"numerics.choose('native'); print([name for name in {list(numerics.PINNED)} if name in os.environ])"
    )
    assert run(code).stdout.strip() == "[]"


@pytest.mark.parametrize("shape", [(3, 5, 7), (512, 192, 4106), (1, 64, 10)])
def test_a_pinned_product_is_the_product_and_does_not_depend_on_the_threads(
    shape: tuple[int, int, int], pinned: None
) -> None:
    import torch

    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(left @ right.t())
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    assert torch.allclose(found[0].double(), left.double() @ right.t().double(), atol=1e-3)


def test_other_types_keep_their_product(pinned: None) -> None:
    import torch

    assert torch.equal(torch.eye(3, dtype=torch.int64) @ torch.arange(9).view(3, 3), torch.arange(9).view(3, 3))
    assert (torch.ones(2, 3, dtype=torch.float64) @ torch.ones(3, 2, dtype=torch.float64)).dtype == torch.float64


def test_a_pinned_root_is_the_nearest_and_has_its_gradient(pinned: None) -> None:
    import torch

    values = torch.rand(20_000).requires_grad_()
    root = values.sqrt()
    assert torch.equal(root, values.detach().double().sqrt().float())
    root.sum().backward()
    assert torch.allclose(values.grad, 0.5 / root.detach())
    assert torch.equal(torch.tensor([4, 9]).sqrt(), torch.tensor([2.0, 3.0]))
    assert torch.tensor([4.0], dtype=torch.bfloat16).sqrt().dtype == torch.bfloat16


def test_every_generator_starts_at_the_seed_as_by_transformers(pinned: None) -> None:
    import random

    import numpy as np
    import torch
    from transformers import set_seed

    drawn = []
    for seed in (numerics.deterministic, lambda _, number: set_seed(number)):
        seed("pinned", 7)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_the_pin_refuses_what_is_not_deterministic_and_imports_no_compiler() -> None:
    code = (
        f"{CLEAN}from wronai import numerics; numerics.choose('pinned'); numerics.deterministic('pinned', 1); "
        "import torch; print(torch.are_deterministic_algorithms_enabled()); "
        "print({'peft', 'torch._inductor', 'torch._dynamo'} & set(sys.modules)); "
        "import torch._inductor.config as compiler; print(compiler.deterministic)"
    )
    assert run(code).stdout.split("\n")[:3] == ["True", "set()", "True"]
