"""The scripts of benchmarks/ take hours, so no test runs them; what they name in the library must be there."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


def named(path: Path) -> set[tuple[str, str]]:
    """Each module of wronai that the script imports, with each name that it takes from it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "wronai"
        for alias in node.names
    }
    return {
        (modules[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_benchmark_takes_from_the_library_is_there(path: Path) -> None:
    missing = [
        f"{module}.{name}"
        for module, name in sorted(named(path))
        if not hasattr(importlib.import_module(f"wronai.{module}"), name)
    ]
    assert missing == []


def test_the_walk_finds_what_scripts_name() -> None:
    assert ("qlora", "attach") in named(ROOT / "benchmarks/gpu/training.py")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_benchmark_says_how_it_is_run_or_who_imports_it(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    name = path.relative_to(ROOT).as_posix()
    imported = path.stem in {"rehearsal", "meter"} or path.parent.name == "others"
    assert imported or f"python {name}" in said
