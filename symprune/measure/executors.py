"""Where an experiment is measured: on a Ray cluster, or by several processes that share a folder of records.

An executor only sees to it that records are there; the experiment then finds them in its store, and measures
what is still missing. It is called as `executor(measure, cells, state)`: the cells of a grid in order,
`measure(cell)` leaves its record, `state(cell)` is "recorded", "busy" while another process measures it, or
"missing". A cell has a model and a seed, and its `str` says what it is.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from symprune.base import paths
from symprune.base.errors import UserError
from symprune.base.progress import announce
from symprune.methods.recipe import parse_method

# environment variable: the executor of experiments that are given none, such as shard(i=2,n=4)
VARIABLE = "SYMPRUNE_EXECUTOR"


@dataclass(frozen=True)
class Shard:
    """One of n processes that are told to measure the same, over one folder of records; i counts from 1.

    Each begins at its own n-th of the questions, and goes on through those of the others: what is on record
    or being measured is passed over. So none waits while there is work, and what a process that died or never
    started left is done by the others.
    """

    i: int = 1
    n: int = 1

    def __post_init__(self):
        if not 1 <= self.i <= self.n:
            raise UserError(f"shard {self.i}/{self.n}: must be i/n with 1 <= i <= n, such as 2/4")

    def __call__(self, measure: Callable, cells: Sequence[Any], state: Callable[[Any], str]) -> None:
        """Measure what no other process has measured or is measuring."""
        begin = (self.i - 1) * len(cells) // self.n
        for done, cell in enumerate([*cells[begin:], *cells[:begin]]):
            if state(cell) == "missing":
                announce(str(cell), done, len(cells))
                measure(cell)


@dataclass(frozen=True)
class Ray:
    """Tasks on a Ray cluster (pip install 'symprune[ray]'), each one model and seed, so that a worker
    calibrates once.

    address: of the cluster ("": the one that $RAY_ADDRESS names, else one started here); num_gpus: of each
    task; retries: of a task whose worker died, which measures only what is not yet on record. Every node
    needs the project, its packages, and the output folder at the same paths. Raises UserError without Ray,
    RuntimeError for a task whose workers all died.
    """

    address: str = ""
    num_gpus: float = 0.0
    retries: int = 2

    def __call__(self, measure: Callable, cells: Sequence[Any], state: Callable[[Any], str]) -> None:
        """Measure what is not on record, and wait for it; the first error is raised after all tasks have
        ended.
        """
        groups: dict[tuple[str, int], list] = {}
        for cell in cells:
            if state(cell) != "recorded":
                groups.setdefault((cell.model, cell.seed), []).append(cell)
        if not groups:
            return
        ray = self._connected()
        options = {
            "num_gpus": self.num_gpus,
            "max_retries": self.retries,
            "runtime_env": {"env_vars": _variables()},
        }
        task = ray.remote(_measure_all).options(**options)
        whose = {task.remote(measure, group, os.getcwd()): key for key, group in groups.items()}
        pending, errors = list(whose), []
        while pending:
            model, seed = whose[pending[0]]
            announce(f"{model}, seed {seed}", len(groups) - len(pending), len(groups))
            (ended,), pending = ray.wait(pending)
            try:
                ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                errors.append(error.cause)
            except ray.exceptions.RayError as error:
                model, seed = whose[ended]
                errors.append(
                    RuntimeError(
                        f"the workers that measured {model}, seed {seed}, died {self.retries + 1} times:"
                        f" {error}"
                    )
                )
        if errors:
            raise errors[0]

    def _connected(self):
        try:
            import ray
        except ImportError as error:
            raise UserError("the executor ray needs Ray: run `pip install 'symprune[ray]'`") from error
        if not ray.is_initialized():  # it ends with this process
            try:
                ray.init(address=self.address or None, log_to_driver=False)
            except ConnectionError as error:
                raise UserError(
                    f"cannot reach a Ray cluster at {self.address or '$RAY_ADDRESS'}: {error}"
                ) from error
        return ray


EXECUTORS = {"ray": Ray, "shard": Shard}


def from_environment() -> Ray | Shard | None:
    """The executor that SYMPRUNE_EXECUTOR describes (None: not set, everything is measured here, in
    order).
    """
    text = os.environ.get(VARIABLE)
    return parse_method("executor", text, EXECUTORS) if text else None


def to_text(executor: Ray | Shard) -> str:
    """What `from_environment` reads the executor back from."""
    (name,) = (name for name, cls in EXECUTORS.items() if type(executor) is cls)
    return f"{name}({', '.join(f'{f.name}={getattr(executor, f.name)!r}' for f in fields(executor))})"


def absolute_paths() -> dict[str, str]:
    """Environment variables by which a process that runs in another folder finds the same project, outputs,
    cache and data.
    """
    mirror = paths.hub_mirror()
    folders = {
        "SYMPRUNE_ROOT": paths.ROOT,
        "SYMPRUNE_OUTPUT": paths.output(),
        "SYMPRUNE_CACHE": paths.cache(),
    }
    return {
        name: str(folder)
        for name, folder in {**folders, **({"SYMPRUNE_DATA": mirror} if mirror else {})}.items()
    }


def _variables() -> dict[str, str]:
    """What workers must know of this process's environment; no token, which Ray would show to everyone on the
    cluster.
    """
    same = ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
    return {name: os.environ[name] for name in same if name in os.environ} | absolute_paths()


def _measure_all(measure: Callable[..., Any], cells: Sequence[Any], folder: str) -> None:
    """What a worker does: the store makes it safe to do again."""
    os.chdir(folder)  # a model or a corpus may be named relative to it
    for cell in cells:
        measure(cell)
