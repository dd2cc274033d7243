"""The whole of the evidence in one call: notebooks executed under a profile, records published, the
report.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symprune.base import paths
from symprune.base.errors import unknown
from symprune.base.files import write_whole
from symprune.base.records import Record, Store, read_lines, write_lines
from symprune.measure import executors
from symprune.measure.executors import Ray, Shard
from symprune.paper.findings import write_findings
from symprune.paper.notebooks import environment, execute, parameters_of, resolve_notebooks
from symprune.paper.profiles import ALL, NO_SETTINGS, load_profile
from symprune.paper.report import write_report


def reproduce(
    wanted: Sequence[str],
    profile: str,
    show: bool = True,
    again: bool = False,
    executor: Ray | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    processes: int = 1,
) -> Path:
    """Execute notebooks with papermill under a profile, into results/<profile>/; returns the path of the HTML
    report.

    A notebook takes from the profile what its parameters cell names. One that fails leaves its last good run
    in place. One that would do again what it did (same source, parameters and library, its records and
    figures still there) is passed over, unless `again`. executor: who measures what their experiments ask
    (None: their kernels). processes: more than one share what is to be measured, and the processor's cores.
    settings: see `load_profile`.
    """
    asked = profile
    profile, chosen = _chosen(wanted, profile, settings)
    before = {record.key for record in Store(paths.records(profile))}
    stamps = {name: Stamp(name, parameters, profile) for name, parameters in chosen.items()}
    open_ones = [name for name, stamp in stamps.items() if again or not stamp.holds()]
    with _helpers(open_ones, asked, settings, processes) as ours:
        for position, (name, parameters) in enumerate(chosen.items(), start=1):
            title = f"[{position}/{len(chosen)}] {name}"
            if name not in open_ones:
                if show:
                    print(f"{title}: nothing to do again", file=sys.stderr)
                continue
            executed = execute(name, parameters, profile, title, show, _variables(executor or ours))
            write_whole(paths.results(profile) / f"{name}.ipynb", executed)
            stamps[name].write()
    records = {record.key: record for record in Store(paths.records(profile))}
    if show:
        print(
            f"{len(records.keys() - before)} results measured, {len(before)} were on record in"
            f" {paths.records(profile)}"
        )
        print(compare_with_published(records, profile))
    published = paths.results(profile) / "records.jsonl"
    write_lines(published, (read_lines(published) | records).values())
    write_findings(profile)
    return write_report(profile)


def measure_shard(
    wanted: Sequence[str],
    profile: str,
    shard: Shard,
    show: bool = True,
    settings: Mapping[str, Any] = NO_SETTINGS,
) -> Path:
    """Execute notebooks only to measure what they ask, as one of n processes at it; returns the folder of
    records they have in common.

    The kernels write tables, figures and verdicts into a folder that is thrown away. Once a shard has ended,
    everything these notebooks ask is on record, see `Shard`: then `reproduce` draws and publishes it without
    measuring.
    """
    profile, chosen = _chosen(wanted, profile, settings)
    records = paths.records(profile)
    records.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "results" / profile / "records"
        shared.parent.mkdir(parents=True)
        shared.symlink_to(records, target_is_directory=True)
        for position, (name, parameters) in enumerate(chosen.items(), start=1):
            title = f"[{position}/{len(chosen)}] {name}, shard {shard.i}/{shard.n}"
            execute(name, parameters, profile, title, show, _variables(shard) | {"SYMPRUNE_OUTPUT": folder})
    return records


@contextlib.contextmanager
def _helpers(
    wanted: Sequence[str], profile: str, settings: Mapping[str, Any], processes: int
) -> Iterator[Shard | None]:
    """While inside, other processes measure what these notebooks ask; yields the share that is left to this
    one. What a helper fails at, this process meets as well, and tells.
    """
    if processes == 1 or not wanted:
        yield None
        return
    spawn = multiprocessing.get_context("spawn")  # the children of a process with threads
    shards = [Shard(i, processes) for i in range(1, processes + 1)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", threads)):
        helpers = [spawn.Process(target=_help, args=(wanted, profile, s, settings)) for s in shards[1:]]
        try:
            for helper in helpers:
                helper.start()
            yield shards[0]
        except BaseException:
            for helper in helpers:
                if helper.is_alive() and helper.pid:
                    os.kill(helper.pid, signal.SIGINT)  # ends it as the user would: nothing is left behind
            raise
        finally:
            for helper in helpers:
                helper.join()


def _help(wanted: Sequence[str], profile: str, shard: Shard, settings: Mapping[str, Any]) -> None:
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    with contextlib.suppress(Exception, KeyboardInterrupt):
        measure_shard(wanted, profile, shard, False, settings)


def _end_with_the_first() -> None:
    """Interrupt this process when the one that started it is gone, which may have been killed."""
    if first := multiprocessing.parent_process():
        first.join()
        os.kill(os.getpid(), signal.SIGINT)


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


def _chosen(
    wanted: Sequence[str], profile: str, settings: Mapping[str, Any]
) -> tuple[str, dict[str, dict[str, Any]]]:
    """The profile's name, and the parameters of each notebook (none wanted: of those that the profile lists),
    checked before one runs.
    """
    values = load_profile(profile, settings)
    listed = values.get("notebooks", ALL)
    chosen = {}
    for name in resolve_notebooks(wanted or ([] if listed == ALL else listed)):
        parameters = parameters_of(name)
        for parameter in parameters:
            if parameter not in values:
                raise unknown(f"parameter in notebook {name}", parameter, values)
        chosen[name] = {parameter: values[parameter] for parameter in parameters}
    return values["profile"], chosen


def _variables(executor: Ray | Shard | None) -> dict[str, str]:
    return {executors.VARIABLE: executors.to_text(executor)} if executor else {}
