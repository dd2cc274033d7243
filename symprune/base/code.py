"""Which code answers: a digest of the syntax of every module that a number depends on."""

import ast
import functools
from pathlib import Path

from symprune.base.files import short_sha256

# base knows no science, paper and cli read records only: what they do is seen again whenever they run.
ANSWERING = ("methods", "models", "text", "pruning", "measure")


@functools.cache
def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """A hash of the syntax trees of `ANSWERING` without docstrings: comments and layout have no part in it.

    Fields that hold nothing have none either: versions of Python differ in which they know.
    """
    files = sorted(file for folder in ANSWERING for file in (package / folder).rglob("*.py"))
    trees = (_syntax(file.read_text(encoding="utf-8")) for file in files)
    names = (file.relative_to(package).as_posix() for file in files)
    return short_sha256(part for pair in zip(names, trees, strict=True) for part in pair)


def _syntax(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            del node.body[0]
        for name, value in list(ast.iter_fields(node)):
            if value == []:
                delattr(node, name)
    return ast.dump(tree)
