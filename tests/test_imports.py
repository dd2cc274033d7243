"""Imports point from folder to folder one way, never in a circle, and `import symprune` is quick."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import symprune
from symprune.base import paths

PACKAGE = paths.ROOT / "symprune"
# A folder imports from those before it in this list, and from itself.
FOLDERS = ["base", "methods", "models", "text", "pruning", "measure", "paper", "cli"]
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
    if file.parent != PACKAGE
}


def imported(file: Path) -> set[str]:
    """The modules of symprune that a file imports, at its top or late, without the leading `symprune.`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            if node.module == "symprune":
                found |= {alias.name for alias in node.names}
            elif (node.module or "").startswith("symprune."):
                module = node.module.removeprefix("symprune.")
                inner = {f"{module}.{alias.name}" for alias in node.names} & MODULES.keys()
                found |= inner or {module}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("symprune.") for a in node.names if a.name.startswith("symprune.")}
    return found


def test_every_module_lies_in_a_folder_with_a_rank():
    assert {module.split(".")[0] for module in MODULES} == set(FOLDERS)
    assert [file.name for file in PACKAGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_never_point_to_a_later_folder(module):
    for other in imported(MODULES[module]):
        assert other in MODULES, f"{module} imports {other}, which is no module"
        assert FOLDERS.index(other.split(".")[0]) <= FOLDERS.index(module.split(".")[0]), (
            f"{module} imports {other}"
        )


def test_no_modules_import_each_other_in_a_circle():
    # Within its own folder a module names the file it needs: `symprune.methods` imports all that is in it.
    TopologicalSorter({module: imported(file) for module, file in MODULES.items()}).prepare()


def test_a_folder_hands_on_names_and_computes_nothing():
    for file in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(file.read_text()).body:
            assert isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)), file


def test_only_two_modules_write_figures():
    writers = {module for module, file in MODULES.items() if "paths.figures(" in file.read_text()}
    assert writers == {"paper.tables", "paper.style"}


def run(program: str) -> dict:
    return json.loads(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    )


HEAVY = [
    "pandas",
    "matplotlib",
    "datasets",
    "lm_eval",
    "papermill",
    "transformers",
    "scipy",
    "huggingface_hub",
]


def test_importing_the_public_names_is_quick_and_pulls_in_nothing_heavy():
    program = f"""
import json, sys, time
start = time.process_time()
import torch
middle = time.process_time()
from symprune import *
end = time.process_time()
assert RIA and prune and zero_shot
print(json.dumps({{"symprune": end - middle, "heavy": [name for name in {HEAVY} if name in sys.modules]}}))
"""
    runs = [run(program)]
    while runs[-1]["symprune"] > 0.5 and len(runs) < 3:  # the best of three: the machine may be busy
        runs.append(run(program))
    assert runs[0]["heavy"] == []
    assert min(each["symprune"] for each in runs) <= 0.5, runs


@pytest.mark.parametrize(("option", "shown"), [("--help", "prune"), ("--version", symprune.__version__)])
def test_help_and_version_need_no_torch(option, shown):
    program = f"""
import contextlib, io, json, sys
from symprune.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as found:
    main([{option!r}])
assert {shown!r} in found.getvalue()
print(json.dumps([name for name in {["torch", "numpy", *HEAVY]} if name in sys.modules]))
"""
    assert run(program) == []
