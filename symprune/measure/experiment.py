"""Models x seeds x subjects under one protocol, each question measured once and kept as a record."""

import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from symprune.base import paths
from symprune.base.progress import announce, grid
from symprune.base.records import REPLAY, Record, Store, provenance, run_key
from symprune.measure import dense_gate, executors
from symprune.measure.bench import Bench
from symprune.measure.protocol import Protocol
from symprune.measure.questions import WindowLosses
from symprune.measure.same_code import SameCode
from symprune.methods.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One question of a grid: a measurement of a subject on a model, with one draw of calibration text."""

    model: str
    seed: int
    subject: Any
    measurement: Any

    def __str__(self) -> str:
        if self.subject is None or isinstance(self.subject, Recipe):
            what = self.subject.label if self.subject else "dense"
        else:
            what = type(self.measurement).__name__
        return f"{self.model} {what}, seed {self.seed}"


class Experiment:
    """A grid under a protocol; what a record depends on goes into its key, and nothing else.

    Whatever is on record is not measured again, unless other code would measure it otherwise (see
    `symprune.measure.same_code`); a subject that reads no calibration text is the same question
    with every seed, and asked once.
    """

    def __init__(self, protocol: Protocol):
        self.protocol = protocol
        self.store = Store(paths.records(protocol.profile))
        self._same_code = SameCode(self.store.folder)
        self._benches: dict[str, Bench] = {}

    def __getstate__(self) -> dict:
        """What a worker is sent: the protocol and where records are, not a loaded model."""
        return {**vars(self), "_benches": {}}

    def run(
        self,
        subjects: Sequence[Any],
        *measurements: Any,
        seeds: Mapping[Any, Sequence[int]] | None = None,
        executor: Callable | None = None,
    ):
        """The rows of every model, seed and subject (pandas), in the order of the subjects.

        measurements: of `symprune.measure.questions` (none: `WindowLosses`). seeds: of subjects that have
        others than the protocol's. executor: who measures, see `symprune.measure.executors` (None: what
        SYMPRUNE_EXECUTOR describes, else this process, in order). Raises ValueError for seeds of no subject.
        """
        import pandas as pd

        place = {subject: i for i, subject in enumerate(dict.fromkeys(subjects))}
        asked = dict.fromkeys(place, self.protocol.seeds) | dict(seeds or {})
        if unasked := asked.keys() - place.keys():
            raise ValueError(f"seeds of what is not asked: {', '.join(map(str, unasked))}")
        cells = self._cells(asked, measurements or (WindowLosses(),))
        self._judge(cells)
        executor = executor or executors.from_environment()
        with grid():
            if executor and not os.environ.get(REPLAY):
                executor(self.answer, list(cells), self._state)
            rows = []
            for done, cell in enumerate(cells):
                announce(str(cell), done, len(cells), measured=self._state(cell) != "recorded")
                # Where an executor left one out, it is measured here, or waited for.
                rows += [(place[cell.subject], row) for row in cell.measurement.rows(self.answer(cell))]
            announce("tables and figures", len(cells), len(cells), measured=False)
        return pd.DataFrame([row for _, row in sorted(rows, key=lambda placed: placed[0])])

    def record(self, model: str, subject: Any = None, seed: int = 0, measurement: Any = None) -> Record:
        """The record of one question, measured now if there is none."""
        return self.answer(Cell(model, seed, subject, measurement or WindowLosses()))

    def answer(self, cell: Cell) -> Record:
        """The record of a cell, measured now if there is none."""
        self._judge([cell])
        return self.store.get_or_run(
            self.question(cell), lambda: self._measure(cell), functools.partial(self._same_code.trusts, cell)
        )

    def measure_again(self, cell: Cell) -> Record:
        """The answer of a cell, measured whatever is on record, and not kept."""
        return Record(self.question(cell), self._measure(cell), provenance())

    def question(self, cell: Cell) -> dict:
        """What the record of a cell is named by."""
        return cell.measurement.question(self._bench(cell.model), cell.subject, cell.seed)

    def _cells(self, seeds: Mapping[Any, Sequence[int]], measurements: Sequence[Any]) -> list[Cell]:
        """Every question once: the models in turn, so that one is loaded at a time, then the seeds."""
        cells: dict[str, Cell] = {}
        for model in self.protocol.models:
            for seed in dict.fromkeys(itertools.chain(*seeds.values())):
                for subject in (subject for subject, of in seeds.items() if seed in of):
                    for measurement in measurements:
                        cell = Cell(model, seed, subject, measurement)
                        cells.setdefault(run_key(self.question(cell)), cell)
        return list(cells.values())

    def _state(self, cell: Cell) -> str:
        """ "recorded", "busy" while another process measures it, or "missing"."""
        return self.store.state(self.question(cell), functools.partial(self._same_code.trusts, cell))

    def _judge(self, cells: Sequence[Cell]) -> None:
        """What other code has on record of these cells is reused only where this code measures the same."""
        found = [(cell, self.store.get(self.question(cell))) for cell in cells]
        reused = [(cell, record) for cell, record in found if record is not None]
        for record in self._same_code.judge(reused, self._measure):
            self.store.put(record)

    def _measure(self, cell: Cell) -> dict:
        if isinstance(cell.subject, Recipe) and dense_gate.is_gated(cell.model, self.protocol):
            self.record(cell.model)  # on record only if it passed
        return _short(cell.measurement.measure(self._bench(cell.model), cell.subject, cell.seed))

    def _bench(self, model: str) -> Bench:
        if model not in self._benches:
            self._benches[model] = Bench(self.protocol, model)
        return self._benches[model]


def _short(metrics: Any) -> Any:
    """Numbers in lists to eight digits, more than float32 has: records are published by the thousand."""
    if isinstance(metrics, dict):
        return {name: _short(of) for name, of in metrics.items()}
    if isinstance(metrics, list):
        return [float(f"{x:.8g}") if isinstance(x, float) else _short(x) for x in metrics]
    return metrics
