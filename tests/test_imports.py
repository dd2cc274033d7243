"""Imports point one way, and `import symprune` is quick."""

import ast
import json
import subprocess
import sys

import pytest

from symprune import paths

LAYERS = [
    {"_types", "errors", "paths", "progress"},
    {"norms", "stats", "masks", "overlap", "experts", "data", "output"},
    {"models"},
    {"objective", "scores", "swap", "refine", "tasks", "cost"},
    {"recipe", "calibrate", "evaluate", "zero_shot", "gate", "theory", "results"},
    {"mask_files", "stats_files", "distributed", "rows", "executors"},
    {"journal"},
    {"prune"},
    {"stream"},
    {"experiment", "doctor", "fetch", "compare"},
    {"tables", "verdicts"},
    {"figures", "accuracy", "reported"},
    {"report"},
    {"reproduce", "verify"},
    {"cli", "commands"},
]
# Imports within a layer that make sense, importer first.
BESIDE = {
    ("refine", "swap"),
    ("evaluate", "calibrate"),
    ("cli", "commands"),
    ("verify", "reproduce"),
    ("figures", "accuracy"),
}
# What `import symprune` shows: the public names, in no layer.
PACKAGE = "__init__"

SOURCES = {file.stem: file for file in (paths.ROOT / "symprune").glob("*.py")}
LAYER_OF = {module: number for number, modules in enumerate(LAYERS) for module in modules}


def imported(module: str) -> set[str]:
    """The modules of symprune that a module imports, at its top or late."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "symprune":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("symprune."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("symprune.")}
    return found


def test_every_module_has_its_layer():
    assert SOURCES.keys() - {PACKAGE} == LAYER_OF.keys()


@pytest.mark.parametrize("module", sorted(SOURCES.keys() - {PACKAGE}))
def test_imports_point_to_a_lower_layer(module):
    for other in imported(module):
        assert other in LAYER_OF, f"{module} imports {other}, which is no module"
        assert LAYER_OF[other] < LAYER_OF[module] or (module, other) in BESIDE, f"{module} imports {other}"


def test_every_exception_within_a_layer_is_used():
    assert {(module, other) for module in LAYER_OF for other in imported(module) if LAYER_OF[other] == LAYER_OF[module]} == BESIDE


def test_only_two_modules_write_figures():
    assert {module for module, file in SOURCES.items() if "paths.figures(" in file.read_text()} == {"tables", "figures"}


def test_importing_the_package_is_quick_and_pulls_in_nothing_heavy():
    program = """
import json, sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import symprune
end = time.perf_counter()
heavy = ["pandas", "matplotlib", "datasets", "lm_eval", "papermill", "transformers", "scipy", "huggingface_hub"]
print(json.dumps({"torch": middle - start, "symprune": end - middle, "heavy": [name for name in heavy if name in sys.modules]}))
"""
    # The best of three: the machine may be busy.
    runs = [json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)]
    while runs[-1]["symprune"] > 0.5 and len(runs) < 3:
        runs.append(json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout))
    assert runs[0]["heavy"] == []
    assert min(run["symprune"] for run in runs) <= 0.5, runs
