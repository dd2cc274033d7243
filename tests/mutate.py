"""Mutation check: flips a comparison, a sign, a factor or an axis at a time and prints what no test notices.

    python tests/mutate.py methods.masks methods.scores --seconds 600

Works on a copy of the package and its tests; not part of the test suite. Every mutant meets its module's
tests, until one fails.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "methods.scores": ["test_scores.py"],
    "methods.score_inputs": ["test_scores.py"],
    "methods.norms": ["test_norms.py", "test_scores.py"],
    "methods.masks": ["test_masks.py"],
    "methods.stats": ["test_stats.py", "test_calibrate.py", "test_stats_files.py"],
    "methods.objective": ["test_objective.py"],
    "methods.pairs": ["test_objective.py"],
    "methods.overlap": ["test_overlap.py"],
    "methods.refine.dsnot": ["test_refine.py"],
    "methods.refine.engine": ["test_refine.py"],
    "methods.refine.exact_swap": ["test_refine.py"],
    "methods.update.refit": ["test_update.py"],
    "methods.update.sequential": ["test_update.py"],
    "methods.update.update": ["test_update.py"],
    "models.experts": ["test_models.py", "test_prune.py"],
    "pruning.mask_files": ["test_mask_files.py"],
    "pruning.packed_masks": ["test_mask_files.py"],
    "pruning.journal": ["test_prune.py"],
}
FLIPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
AXIS_METHODS = {
    *("sum", "flip", "cumsum", "any", "all", "argmax", "argmin", "mean", "amax", "amin", "sort", "size"),
    *("squeeze", "unsqueeze", "gather", "scatter_", "argsort", "flatten"),
}
SIGN_METHODS = {"abs", "neg", "abs_", "neg_", "sign_"}  # left out by cloning instead


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Every mutant of a module: what was changed, and the changed source."""
    tree = ast.parse(source)
    for place, node in enumerate(_computing(tree)):
        for number in range(_changes(node)):
            changed = copy.deepcopy(tree)
            target = next(other for there, other in enumerate(_computing(changed)) if there == place)
            before = ast.unparse(target)
            _change(target, number)
            yield f"line {node.lineno}: {before}  ->  {ast.unparse(target)}", ast.unparse(changed)


def _computing(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module that compute, in a fixed order: no annotation, and nothing of a message."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "bases", "decorator_list"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and not isinstance(node, (ast.Raise, ast.JoinedStr)):
                yield node
                yield from _computing(node)


def _changes(node: ast.AST) -> int:
    if isinstance(node, ast.Compare):
        return sum(type(op) in FLIPS for op in node.ops)
    if isinstance(node, (ast.BinOp, ast.AugAssign)):
        return int(type(node.op) in FLIPS)
    if isinstance(node, ast.UnaryOp):
        return int(isinstance(node.op, (ast.USub, ast.Invert)))
    if isinstance(node, ast.Subscript):
        return int(_new_axis(node) is not None or _is_axis_of_shape(node))
    return len(_axes(node)) + _drops_sign(node) if isinstance(node, ast.Call) else 0


def _change(node: ast.AST, number: int) -> None:
    if isinstance(node, ast.Compare):
        flippable = [i for i, op in enumerate(node.ops) if type(op) in FLIPS]
        node.ops[flippable[number]] = FLIPS[type(node.ops[flippable[number]])]()
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        node.op = FLIPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.operand = ast.UnaryOp(node.op, node.operand)  # twice is not at all
    elif isinstance(node, ast.Subscript):
        if (place := _new_axis(node)) is not None:
            beside, axes = place - 1 if place else 1, node.slice.elts
            axes[place], axes[beside] = axes[beside], axes[place]
        else:
            node.slice.value = 1 - node.slice.value
    elif number < len(_axes(node)):
        axis = _axes(node)[number]
        axis.value = 1 if axis.value == 0 else axis.value - 1
    else:
        node.func.attr = "clone"


def _axes(call: ast.Call) -> list[ast.Constant]:
    by_name = [keyword.value for keyword in call.keywords if keyword.arg in ("dim", "axis")]
    by_place = (
        call.args[:1] if isinstance(call.func, ast.Attribute) and call.func.attr in AXIS_METHODS else []
    )
    return [
        value
        for value in [*by_name, *by_place]
        if isinstance(value, ast.Constant) and type(value.value) is int
    ]


def _drops_sign(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in SIGN_METHODS and not call.args


def _new_axis(node: ast.Subscript) -> int | None:
    """Where x[:, None] has its None."""
    axes = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
    return next(
        (i for i, axis in enumerate(axes) if isinstance(axis, ast.Constant) and axis.value is None), None
    )


def _is_axis_of_shape(node: ast.Subscript) -> bool:
    of_shape = isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    return of_shape and isinstance(node.slice, ast.Constant) and node.slice.value in (0, 1)


def survives(copied: Path, tests: list[str], seconds: float) -> bool:
    """Whether all tests pass in that copy of the project, in a forked process; a hang counts as noticed."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        signal.alarm(int(seconds))
        sys.path.insert(0, str(copied))
        import pytest

        options = ["-x", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0"]
        os._exit(int(pytest.main([*options, *(str(copied / "tests" / test) for test in tests)])))
    return os.waitpid(pid, 0)[1] == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)} (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=3600, help="stop after that long (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the mutants (default: %(default)s)")
    args = parser.parse_args()
    import pytest  # noqa: F401 (imported once, before the forks)
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    end, survivors, tried = time.monotonic() + args.seconds, [], 0
    sys.dont_write_bytecode = True
    os.environ["SYMPRUNE_ROOT"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        copied, package = Path(folder), Path(folder) / "symprune"
        for part in ("symprune", "tests"):
            shutil.copytree(ROOT / part, copied / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copied)
        os.chdir(copied)
        files = {
            module: package / Path(*module.split(".")).with_suffix(".py") for module in args.modules or TESTS
        }
        chosen = [(module, *mutant) for module, file in files.items() for mutant in mutants(file.read_text())]
        random.Random(args.seed).shuffle(chosen)
        for module in {module for module, *_ in chosen}:
            if not survives(copied, TESTS[module], 300):
                sys.exit(f"{', '.join(TESTS[module])} fails without any mutation")
        for module, what, changed in chosen:
            if time.monotonic() > end:
                break
            original = files[module].read_text()
            files[module].write_text(changed)
            if survives(copied, TESTS[module], 300):
                survivors.append(f"{module}.py {what}")
                print(survivors[-1], flush=True)
            files[module].write_text(original)
            tried += 1
    print(f"{tried} of {len(chosen)} mutants tried, {len(survivors)} survived")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
