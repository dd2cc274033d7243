"""Notebooks: found by name, rendered from their sources, executed by papermill."""

import ast
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from symprune.base import paths, progress
from symprune.base.errors import UserError, unknown
from symprune.base.files import write_whole
from symprune.measure import executors
from symprune.paper.profiles import SMOKE

_CELL_TIMEOUT = {SMOKE: 600}  # seconds; other profiles run for hours
_QUIET = ["--log-level=ERROR"]  # a kernel warns of its local socket each time it starts
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def notebook_names() -> list[str]:
    """Every notebook, by the name of its source."""
    return sorted(source.stem for source in paths.NOTEBOOKS.glob("[0-9][0-9]_*.py"))


def resolve_notebooks(wanted: Sequence[str]) -> list[str]:
    """Notebooks by name or number ("02" or "2"), all if none is wanted; raises UserError for one that is not
    there.
    """
    names = notebook_names()
    if not names:
        raise UserError(
            f"no notebooks in {paths.NOTEBOOKS}: run inside the project's source, or set SYMPRUNE_ROOT to it"
        )
    chosen = [[name for name in names if wish in (name, name[:2], str(int(name[:2])))] for wish in wanted]
    for wish, found in zip(wanted, chosen, strict=True):
        if not found:
            raise unknown("notebook", wish, names)
    wished = {name for found in chosen for name in found}
    return [name for name in names if name in wished] or names


def parameters_of(notebook: str) -> dict[str, Any]:
    """Names and default values in a notebook's parameters cell.

    Raises UserError for anything but assignments of literals.
    """
    import jupytext

    cells = jupytext.read(paths.NOTEBOOKS / f"{notebook}.py").cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise UserError(f"notebook {notebook} needs exactly one cell tagged parameters, it has {len(tagged)}")
    values = {}
    try:
        for statement in ast.parse(tagged[0].source).body:
            (target,) = statement.targets
            values[target.id] = ast.literal_eval(statement.value)
    except (AttributeError, ValueError, SyntaxError) as error:
        raise UserError(
            f"notebook {notebook}: the parameters cell holds assignments of literals only"
        ) from error
    return values


def render(wanted: Sequence[str] = ()) -> list[Path]:
    """Execute the sources at their defaults (the smoke profile) into the paired .ipynb.

    The same bytes for the same outputs.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    written = []
    # One folder for all: a record serves every notebook after it.
    with tempfile.TemporaryDirectory() as output, environment(SYMPRUNE_OUTPUT=output):
        for name in resolve_notebooks(wanted):
            notebook = jupytext.read(paths.NOTEBOOKS / f"{name}.py")
            try:
                NotebookClient(
                    notebook,
                    timeout=_CELL_TIMEOUT[SMOKE],
                    kernel_name="python3",
                    resources=_in_notebooks(),
                    extra_arguments=_QUIET,
                ).execute()
            except CellExecutionError as error:
                raise RuntimeError(
                    f"notebook {name} failed with {error.ename}: {_first_line(error.evalue)}"
                ) from error
            except (CellTimeoutError, DeadKernelError) as error:
                raise RuntimeError(f"notebook {name} failed: {_first_line(str(error))}") from error
            target = paths.NOTEBOOKS / f"{name}.ipynb"
            write_whole(target, nbformat.writes(cleaned(notebook)) + "\n")
            written.append(target)
    return written


def execute(
    name: str, parameters: dict[str, Any], profile: str, title: str, show: bool, variables: dict[str, str]
) -> str:
    """The executed notebook; where it fails, it is kept as <name>.failed.ipynb. variables: for its kernel."""
    import jupytext
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    folder = paths.results(profile)
    folder.mkdir(parents=True, exist_ok=True)
    failed = folder / f"{name}.failed.ipynb"
    with tempfile.TemporaryDirectory() as work, progress.following(title, show) as reports:
        source, executed = Path(work) / f"{name}.ipynb", Path(work) / "executed.ipynb"
        nbformat.write(jupytext.read(paths.NOTEBOOKS / f"{name}.py"), source)
        with environment(
            TQDM_DISABLE="1", **{progress.FILE: str(reports)}, **(executors.absolute_paths() | variables)
        ):
            try:
                papermill.execute_notebook(
                    source,
                    executed,
                    parameters=parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    cwd=str(paths.NOTEBOOKS),
                    execution_timeout=_CELL_TIMEOUT.get(profile),
                    extra_arguments=_QUIET,
                )
            except papermill.PapermillExecutionError as error:
                write_whole(failed, executed.read_text())
                reason = f"{error.ename}: {_first_line(error.evalue)}"
                if error.ename == "UserError":
                    raise UserError(f"notebook {name}: {error.evalue}") from error
                raise RuntimeError(
                    f"notebook {name} failed in cell {error.cell_index} with {reason}; see {failed}"
                ) from error
            except (CellTimeoutError, DeadKernelError) as error:
                raise RuntimeError(f"notebook {name} failed: {_first_line(str(error))}") from error
        failed.unlink(missing_ok=True)
        return nbformat.writes(cleaned(nbformat.read(executed, as_version=4))) + "\n"


def cleaned(notebook):
    """The notebook without what differs from run to run or from tool to tool: ids, times, papermill's and
    jupytext's notes.
    """
    notebook.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat_minor = 5
    for position, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        cell.id = f"cell-{position:02d}"
        for out in cell.get("outputs", []):
            out.get("metadata", {}).pop("execution", None)
    return notebook


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for the kernels started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _in_notebooks() -> dict:
    return {"metadata": {"path": str(paths.NOTEBOOKS)}}


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0]
