"""dvc.yaml says what the code does, and the house keeps its order."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wronai import graph, params

ROOT = Path(__file__).parent.parent
GRAPH = params.read(ROOT / "dvc.yaml")["stages"]
STAGES = list(GRAPH)
MODULES = sorted(path.stem for path in (ROOT / "wronai").glob("*.py") if path.stem != "__init__")
DOORS = {
    "mlflow": {"machine", "store"},
    "peft": {"base", "lora", "qlora", "merging", "streamed", "training", "vocabulary"},
    "bitsandbytes": {"base", "qlora", "streamed", "training"},
    "daft": {"cleaning", "duplicates"},
    "dvc": {"delivery", "experiments", "graph", "integrity"},
    "lm_eval": {"benchmarks", "engines", "hub_benchmarks", "paged", "scoring", "served"},
    "trafilatura": {"markup"},
    "ftfy": {"decoding"},
    "lingua": {"language"},
    "stdnum": {"personal_data"},
}
# What only shows a run in MLflow: no out of a stage depends on it, unless the stage is the one that publishes.
VIEWS = {f"wronai/{module}.py" for module in ("environment", "graph", "machine", "redaction", "store")}
WITHOUT_TORCH = ("params", "prompt", "cleaning", "sources", "progress", "tracking", "profiles", "planner")


def imports(path: Path) -> set[str]:
    """Every module that the file imports, inside functions too, with `from a import b` as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> set[str]:
    """The modules of wronai that the file imports."""
    parts = [name.split(".") for name in imports(path)]
    return {part[1] for part in parts if part[0] == "wronai" and len(part) > 1 and part[1] in MODULES}


def called(folder: Path) -> set[str]:
    """The modules of wronai whose functions the lm_eval tasks below `folder` call."""
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.yaml")]
    return {module for text in texts for module in re.findall(r"!function wronai\.(\w+)\.", text)}


def closure(path: Path) -> set[str]:
    """The Python files of the project that the file is made of, itself included."""
    found, todo = {path.relative_to(ROOT).as_posix()}, own(path)
    if "benchmarks" in todo or "scoring" in todo:
        todo |= called(ROOT / "benchmarks" / "tasks")
    while todo:
        module = todo.pop()
        name = f"wronai/{module}.py"
        if name not in found:
            found.add(name)
            todo |= own(ROOT / name)
    return found


def deps(stage: str) -> set[str]:
    """The Python files that a stage depends on."""
    made_of = closure(ROOT / f"stages/{stage}.py")
    return made_of if stage == graph.PUBLISHER else made_of - VIEWS


def read_in_main(path: Path) -> set[str]:
    """The dotted keys of params.yaml that the `__main__` block of a stage reads as `config.…`."""
    main = next(node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    chains = set()
    for node in ast.walk(main):
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.fullmatch(r"config(\.\w+)+", text):
            chains.add(text.removeprefix("config."))
    if "evaluate.scoring" in chains:
        chains = chains - {"evaluate.scoring"} | {f"evaluate.{key}" for key in params.Scoring.model_fields}
    return {chain for chain in chains if not any(other.startswith(f"{chain}.") for other in chains)}


@pytest.mark.parametrize("stage", STAGES)
def test_the_python_deps_of_a_stage_are_the_files_that_it_imports(stage: str) -> None:
    assert set(graph.declared(ROOT / "dvc.yaml")[stage].sources) == deps(stage)


def test_what_only_shows_a_run_is_imported_by_nothing_that_computes() -> None:
    files = {name for stage in STAGES for name in closure(ROOT / f"stages/{stage}.py")} - VIEWS
    users = {name for name in files if {f"wronai/{module}.py" for module in own(ROOT / name)} & VIEWS}
    assert users == {"wronai/tracking.py", f"stages/{graph.PUBLISHER}.py"}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "publish_report"])
def test_the_params_of_a_stage_are_those_that_it_reads(stage: str) -> None:
    assert set(GRAPH[stage]["params"]) == read_in_main(ROOT / f"stages/{stage}.py")


def test_publish_report_depends_on_every_section() -> None:
    declared = {key.split(".")[0] for key in GRAPH["publish_report"]["params"]}
    assert declared == set(params.Params.model_fields)


def test_publish_report_depends_on_every_file_in_metrics() -> None:
    made = {next(iter(out)) for entry in GRAPH.values() for kind in ("metrics", "plots") for out in entry.get(kind, [])}
    made |= {next(iter(out)) for entry in GRAPH.values() for out in entry.get("outs", []) if isinstance(out, dict)}
    declared = {dep for dep in GRAPH["publish_report"]["deps"] if not dep.endswith(".py")}
    models = {"models/adapter", "models/merged"}  # whose bytes the MLflow run tells, and which it may register
    assert declared - models == {path for path in made if path.startswith("metrics/")}


def test_the_functions_that_tasks_call_are_part_of_the_stages_that_read_tasks() -> None:
    assert "suite" in called(ROOT / "benchmarks/tasks")
    for stage in ("prepare_benchmarks", "score_benchmarks", "score_text"):
        assert "wronai/suite.py" in closure(ROOT / f"stages/{stage}.py")


def test_the_files_in_stages_are_the_stages_of_the_graph() -> None:
    assert sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__") == sorted(STAGES)
    for stage, entry in GRAPH.items():
        assert entry["cmd"].split() == [
            "python", "-m", f"stages.{stage}", *(f"${{item.{axis}}}" for axis in entry.get("matrix", {}))
        ]  # fmt: skip


def test_every_stage_says_what_it_does() -> None:
    assert all(len(entry["desc"]) > 20 for entry in GRAPH.values())


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_a_stage(stage: str) -> None:
    assert not any(name.startswith("stages") for name in imports(ROOT / f"stages/{stage}.py"))


@pytest.mark.parametrize(("dependency", "doors"), DOORS.items())
def test_each_dependency_has_its_door(dependency: str, doors: set[str]) -> None:
    files = [*(ROOT / "wronai").glob("*.py"), *(ROOT / "stages").glob("*.py")]
    users = {path.stem for path in files if any(name.split(".")[0] == dependency for name in imports(path))}
    assert users and users <= doors


def test_modules_import_each_other_downward_only() -> None:
    above = {module: own(ROOT / f"wronai/{module}.py") for module in MODULES}
    while above:
        bottom = {module for module, needs in above.items() if not needs & set(above)}
        assert bottom, f"a circle among {sorted(above)}"
        above = {module: needs for module, needs in above.items() if module not in bottom}


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not {"utils", "common", "helpers", "misc"} & set(MODULES)


def test_text_code_is_importable_without_torch() -> None:
    code = f"import sys; from wronai import {', '.join(WITHOUT_TORCH)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_dependency_is_pinned_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.\-]+==[\w.+!]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    missing = [name for name in named if re.sub(r"[-_.]+", "-", re.split(r"==|\[", name)[0]).lower() not in pinned]
    assert not missing


def test_nothing_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".lock", ".json", ""}:
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not re.search(r"(?<![\w.\-/])/(work|root|home)/\w", text), name
