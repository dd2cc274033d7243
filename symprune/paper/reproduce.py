"""Notebooks: rendered from their sources, executed under a profile, gathered into a report."""

import ast
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from symprune.base import paths, progress
from symprune.base.errors import UserError, unknown
from symprune.base.files import write_whole
from symprune.base.records import Record, Store, read_lines, write_lines
from symprune.measure import executors
from symprune.measure.executors import Ray, Shard

SMOKE = "smoke"
_CELL_TIMEOUT = {SMOKE: 600}  # seconds; other profiles run for hours
_QUIET = ["--log-level=ERROR"]  # a kernel warns of its local socket each time it starts
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def notebook_names() -> list[str]:
    """Every notebook, by the name of its source."""
    return sorted(source.stem for source in paths.NOTEBOOKS.glob("[0-9][0-9]_*.py"))


def resolve_notebooks(wanted: Sequence[str]) -> list[str]:
    """Notebooks by name or number ("02"), all if none is wanted; raises UserError for one that is not
    there.
    """
    names = notebook_names()
    if not names:
        raise UserError(
            f"no notebooks in {paths.NOTEBOOKS}: run inside the project's source, or set SYMPRUNE_ROOT to it"
        )
    chosen = [[name for name in names if wish in (name, name[:2])] for wish in wanted]
    for wish, found in zip(wanted, chosen, strict=True):
        if not found:
            raise unknown("notebook", wish, names)
    return sorted({name for found in chosen for name in found}) or names


def load_profile(name: str) -> dict[str, Any]:
    """The parameters of papermill_params/<name>.yaml; raises UserError unless it has exactly the keys of the
    smoke profile.
    """
    profiles = sorted(file.stem for file in paths.PARAMS.glob("*.yaml"))
    if SMOKE not in profiles:
        raise UserError(
            f"no profiles in {paths.PARAMS}: run inside the project's source, or set SYMPRUNE_ROOT to it"
        )
    if name not in profiles:
        raise unknown("profile", name, profiles)
    values, keys = (_read_profile(paths.PARAMS / f"{n}.yaml") for n in (name, SMOKE))
    for key in values:
        if key not in keys:
            raise unknown(f"key in papermill_params/{name}.yaml", key, keys)
    if missing := sorted(set(keys) - set(values)):
        raise UserError(
            f"papermill_params/{name}.yaml lacks {', '.join(missing)}: every profile has the same keys"
        )
    if values["profile"] != name:
        raise UserError(f"papermill_params/{name}.yaml says profile: {values['profile']}: it must say {name}")
    return values


def parameters_of(notebook: str) -> dict[str, Any]:
    """Names and default values in a notebook's parameters cell; raises UserError for anything but assignments
    of literals.
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


def reproduce(
    wanted: Sequence[str], profile: str, show: bool = True, again: bool = False, executor: Ray | None = None
) -> Path:
    """Execute notebooks with papermill under a profile, into results/<profile>/; returns the path of the HTML
    report.

    A notebook takes from the profile what its parameters cell names. One that fails leaves its last good run
    in place. One that would do again what it did (same source, parameters and library, its records and
    figures still there, and no notebook before it executed) is passed over, unless `again`. executor: who
    measures what their experiments ask (None: their kernels).
    """
    chosen = _chosen(wanted, profile)
    before = {record.key for record in Store(paths.records(profile))}
    for position, (name, parameters) in enumerate(chosen.items(), start=1):
        title, stamp = f"[{position}/{len(chosen)}] {name}", Stamp(name, parameters, profile)
        if not again and stamp.holds():
            if show:
                print(f"{title}: nothing to do again", file=sys.stderr)
            continue
        again = True  # what follows may gather what this one writes
        executed = _execute(name, parameters, profile, title, show, _variables(executor))
        write_whole(paths.results(profile) / f"{name}.ipynb", executed)
        stamp.write()
    records = {record.key: record for record in Store(paths.records(profile))}
    if show:
        print(
            f"{len(records.keys() - before)} results measured, {len(before)} were on record in"
            f" {paths.records(profile)}"
        )
        print(compare_with_published(records, profile))
    published = paths.results(profile) / "records.jsonl"
    write_lines(published, (read_lines(published) | records).values())
    return write_report(profile)


def measure_shard(wanted: Sequence[str], profile: str, shard: Shard, show: bool = True) -> Path:
    """Execute notebooks only to measure what they ask, as one of n processes at it; returns the folder of
    records they have in common.

    The kernels write tables, figures and verdicts into a folder that is thrown away. Once a shard has ended,
    everything these notebooks ask is on record, see `Shard`: then `reproduce` draws and publishes it without
    measuring.
    """
    chosen = _chosen(wanted, profile)
    records = paths.records(profile)
    records.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "results" / profile / "records"
        shared.parent.mkdir(parents=True)
        shared.symlink_to(records, target_is_directory=True)
        for position, (name, parameters) in enumerate(chosen.items(), start=1):
            title = f"[{position}/{len(chosen)}] {name}, shard {shard.i}/{shard.n}"
            _execute(name, parameters, profile, title, show, _variables(shard) | {"SYMPRUNE_OUTPUT": folder})
    return records


@dataclass(frozen=True)
class Stamp:
    """What a finished run of a notebook was made from and what it left behind, to know that running it again
    would change nothing.
    """

    notebook: str
    parameters: dict[str, Any]
    profile: str

    def holds(self) -> bool:
        """Whether nothing has changed since `write`, and nothing it needs or made is gone."""
        if not self._file.exists():
            return False
        noted = json.loads(self._file.read_text(encoding="utf-8"))
        return noted["made_from"] == self._made_from() and all(Path(file).exists() for file in noted["left"])

    def write(self) -> None:
        """Note the present state: after the notebook has run."""
        from symprune.paper.tables import saved_by

        executed = paths.results(self.profile) / f"{self.notebook}.ipynb"
        left = [executed, *paths.records(self.profile).glob("*.json"), *saved_by(self.profile, self.notebook)]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(
            self._file,
            json.dumps({"made_from": self._made_from(), "left": sorted(map(str, left))}, indent=1) + "\n",
        )

    @property
    def _file(self) -> Path:
        return paths.results(self.profile) / "stamps" / f"{self.notebook}.json"

    def _made_from(self) -> str:
        digest = hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode())
        for source in [
            paths.NOTEBOOKS / f"{self.notebook}.py",
            *sorted(Path(__file__).parents[1].rglob("*.py")),
        ]:
            digest.update(source.read_bytes())
        return digest.hexdigest()


def compare_with_published(records: dict[str, Record], profile: str) -> str:
    """One line: how far the perplexities of these records are from those published for the same questions."""
    published = read_lines(paths.results(profile) / "records.jsonl")
    pairs = [
        (records[key].metrics["perplexity"], published[key].metrics["perplexity"])
        for key in records.keys() & published.keys()
        if "perplexity" in published[key].metrics
    ]
    if not pairs:
        return f"no perplexity in {profile} was published before for what was asked here"
    largest = max(abs(ours / theirs - 1) for ours, theirs in pairs)
    return f"{len(pairs)} perplexities were published before: they differ by at most {largest:.2%}"


def render(wanted: Sequence[str] = ()) -> list[Path]:
    """Execute the sources at their defaults (the smoke profile) into the paired .ipynb, the same bytes for
    the same outputs.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    written = []
    # One folder for all: the report gathers what the notebooks before it wrote.
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


def write_report(profile: str) -> Path:
    """results/<profile>/report.html from the executed 10_report, or from the last executed notebook if that
    was not run.
    """
    import nbformat
    from nbconvert import HTMLExporter

    executed = sorted(paths.results(profile).glob("[0-9][0-9]_*.ipynb"))
    notebook = nbformat.read(executed[-1], as_version=4)
    html, _ = HTMLExporter(
        template_name="lab", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    ).from_notebook_node(notebook, resources={"metadata": {"name": f"symprune: {profile}"}})
    report = paths.results(profile) / "report.html"
    write_whole(report, html)
    return report


def _known(notebook: str, profile: dict[str, Any]) -> dict[str, Any]:
    parameters = parameters_of(notebook)
    for name in parameters:
        if name not in profile:
            raise unknown(f"parameter in notebook {notebook}", name, profile)
    return parameters


def _chosen(wanted: Sequence[str], profile: str) -> dict[str, dict[str, Any]]:
    """The parameters of each notebook: all are checked before one runs."""
    values = load_profile(profile)
    return {name: {key: values[key] for key in _known(name, values)} for name in resolve_notebooks(wanted)}


def _execute(
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
    with tempfile.TemporaryDirectory() as work, _progress_bar(title, show) as reports:
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


def _variables(executor: Ray | Shard | None) -> dict[str, str]:
    return {executors.VARIABLE: executors.to_text(executor)} if executor else {}


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0]


def _in_notebooks() -> dict:
    return {"metadata": {"path": str(paths.NOTEBOOKS)}}


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


@contextlib.contextmanager
def _progress_bar(title: str, show: bool) -> Iterator[Path]:
    """A bar that follows the file which a kernel reports into: notebook, recipe, time left."""
    from tqdm import tqdm

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "progress"
        file.touch()
        terminal = sys.stderr.isatty()  # a log gets a line for each recipe, not a bar redrawn twice a second
        shape = "{desc} |{bar}| {n}/{total} [{elapsed}<{remaining}]"
        bar = tqdm(total=0, desc=title, disable=not (show and terminal), dynamic_ncols=True, bar_format=shape)
        finished = threading.Event()

        def follow() -> None:
            seen = 0
            while not finished.wait(0.5):
                lines = file.read_text().split("\n")[:-1]  # the last may not be written to its end yet
                for line in lines[seen:]:
                    report = json.loads(line)
                    if report["done"] == 0:  # another grid begins: its time left is its own
                        bar.reset(total=report["total"])
                    bar.update(report["done"] - bar.n)
                    bar.set_description(f"{title}: {report['label']}")
                    if show and not terminal:
                        print(
                            f"{title} {report['done']}/{report['total']}: {report['label']}",
                            file=sys.stderr,
                            flush=True,
                        )
                seen = len(lines)
                bar.refresh()

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        start = time.monotonic()
        try:
            yield file
        finally:
            finished.set()
            follower.join()
            summary = f"{title}: {time.monotonic() - start:.0f} s"
            bar.set_description(summary)
            bar.close()
            if show and not terminal:
                print(summary, file=sys.stderr, flush=True)


def _read_profile(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    # what PyYAML raises on odd values
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold key: value lines")
    return values
