# ruff: noqa: F811
"""Experiments measured elsewhere leave the records that one process leaves, each measured once, whoever
dies.
"""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from executing import RECIPES, TOY, WANDA, command, project, protocol  # noqa: F401

from symprune import UserError
from symprune.base.records import run_key
from symprune.cli import main
from symprune.measure import Experiment, Protocol, WindowLosses, executors
from symprune.measure.executors import Ray, Shard
from symprune.measure.experiment import Cell

# Shards.


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_shard_measures_exactly_what_is_missing_and_begins_where_no_other_does(n):
    cells = [Cell("model", seed, None, WindowLosses()) for seed in range(11)]
    states = ["recorded", "missing", "busy"]
    begun = []
    measured: list[int] = []
    for i in range(1, n + 1):
        Shard(i, n)(lambda cell: measured.append(cell.seed), cells, lambda cell: "missing")
        assert sorted(measured) == list(range(11))  # all of it, had the others died
        begun.append(measured[0])
        measured.clear()
        Shard(i, n)(lambda cell: measured.append(cell.seed), cells, lambda cell: states[cell.seed % 3])
        assert sorted(measured) == [1, 4, 7, 10]
        measured.clear()
    assert len(set(begun)) == n
    assert begun[0] == 0


@pytest.mark.parametrize(("i", "n"), [(0, 2), (3, 2), (-1, 1), (1, 0)])
def test_a_shard_that_cannot_be_is_refused(i, n):
    with pytest.raises(UserError, match=r"must be i/n with 1 <= i <= n"):
        Shard(i, n)


def test_what_a_dead_process_was_measuring_is_waited_for_and_taken_over(protocol, monkeypatch):
    experiment = Experiment(Protocol(**protocol))
    asked = experiment.question(Cell(protocol["models"][0], 0, WANDA, WindowLosses()))
    lock = experiment.store.folder / ".locks" / f"{run_key(asked)}.lock"
    lock.parent.mkdir(parents=True)
    # By a name: a lock that nothing refers to is given back at once.
    holding = (
        f"import time; from filelock import FileLock; lock = FileLock({str(lock)!r}); lock.acquire();"
        " print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    there_when_killed = []

    def kill_when_nothing_else_is_left() -> None:
        deadline = time.monotonic() + 120
        while len(list(experiment.store)) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        there_when_killed.extend(record.key for record in experiment.store)
        other.kill()
        other.wait()

    killer = threading.Thread(target=kill_when_nothing_else_is_left)
    killer.start()
    monkeypatch.setenv("SYMPRUNE_EXECUTOR", "shard(i=2, n=2)")
    rows = experiment.run(RECIPES)
    killer.join()
    assert len(rows) == 6
    # the others did not wait for it
    assert set(rows["record"]) - set(there_when_killed) == {run_key(asked)}


def test_two_shards_measure_everything_once_and_leave_the_drawing_to_a_plain_run(
    project, tmp_path, monkeypatch
):
    measured = tmp_path / "measured"
    # Each shard in a folder of its own but for the output, as on two machines.
    shards = [
        command(
            "reproduce",
            "--profile",
            "smoke",
            "--json",
            "--shard",
            f"{i}/2",
            root=project,
            SYMPRUNE_CACHE=str(tmp_path / f"cache{i}"),
        )
        for i in (1, 2)
    ]
    said = [shard.communicate(timeout=300) for shard in shards]
    assert [shard.returncode for shard in shards] == [0, 0], said
    assert all(json.loads(out)["records"] == str(project / "results/smoke/records") for out, _ in said)
    keys = measured.read_text().split()
    # dense, magnitude, wanda and ria twice; magnitude is shared, wanda twice more
    assert len(keys) == len(set(keys)) == 8
    assert {path.name for path in (project / "results/smoke").iterdir()} == {"records"}
    assert not (project / "figures").exists()

    assert main(["reproduce", "--profile", "smoke", "--json"]) == 0
    assert len(measured.read_text().split()) == 8
    tables = {file.stem: pd.read_csv(file) for file in (project / "figures/smoke").glob("table_*.csv")}
    assert tables.keys() == {"table_02_toy", "table_02_more"}
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path / "alone"))
    shape = {
        name: yaml.safe_load((project / "papermill_params/smoke.yaml").read_text())[name]
        for name in ("models", "calibration_corpus")
    }
    alone = Experiment(
        Protocol(
            "smoke", **shape, evaluation_corpus=shape["calibration_corpus"], n_calib=2, n_eval=2, seq_len=32
        )
    ).run(TOY)
    assert tables["table_02_toy"]["perplexity"].tolist() == pytest.approx(
        alone["perplexity"].tolist(), rel=1e-12
    )
    assert tables["table_02_toy"]["record"].tolist() == alone["record"].tolist()


def test_processes_share_what_is_measured_and_one_draws(project, tmp_path):
    here, file = tmp_path / "here", project / "notebooks/02_toy.py"
    together = f"""
import os, time
with open({str(here)!r}, "a") as f:
    f.write(str(os.getpid()) + chr(10))
end = time.monotonic() + 120
while len(open({str(here)!r}).read().split()) < 2 and time.monotonic() < end:
    time.sleep(0.05)

put = records.Store.put"""
    log = 'file.write(str(os.getpid()) + " " + record.key + chr(10))'
    file.write_text(
        file.read_text()
        .replace("\nput = records.Store.put", together)
        .replace("file.write(record.key + chr(10))", log + "; time.sleep(0.2)")
    )
    command_line = ("reproduce", "--profile", "smoke", "--processes", "2")
    out, err = (running := command(*command_line, root=project)).communicate(timeout=300)
    assert running.returncode == 0, err
    whose = [line.split() for line in (tmp_path / "measured").read_text().splitlines()]
    assert len({key for _, key in whose}) == len(whose) == 8
    assert {pid for pid, _ in whose} == set(here.read_text().split())
    assert len({pid for pid, _ in whose}) == 2
    assert "8 results measured" in out
    assert {file.stem for file in (project / "figures/smoke").glob("table_*.csv")} == {
        "table_02_toy",
        "table_02_more",
    }
    # again: nothing to do, no process is started for it
    out, err = (running := command(*command_line, root=project)).communicate(timeout=300)
    assert running.returncode == 0, err
    assert len(here.read_text().split()) == 2
    assert "nothing to do again" in err


def lives(pid: str) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_helps_a_killed_run_ends_with_it(project, tmp_path):
    here, file = tmp_path / "here", project / "notebooks/02_toy.py"
    endless = f"""
import os, time
with open({str(here)!r}, "a") as f:
    f.write(f"{{os.getpid()}} {{os.getppid()}}" + chr(10))
time.sleep(600)

put = records.Store.put"""
    file.write_text(file.read_text().replace("\nput = records.Store.put", endless))
    running = command("reproduce", "--profile", "smoke", "--processes", "2", root=project)
    wait_until(lambda: here.exists() and len(here.read_text().split()) == 4)
    running.kill()
    running.communicate()
    kernels_and_theirs = set(here.read_text().split())
    assert len(kernels_and_theirs) == 4
    wait_until(lambda: not any(map(lives, kernels_and_theirs)))


def wait_until(holds, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_shard_that_fails_says_where_and_its_notebook_is_kept(project, capsys):
    file = project / "notebooks/02_toy.py"
    file.write_text(file.read_text().split("# %%\nfrom")[0] + "# %%\nraise ArithmeticError('no')\n")
    assert main(["reproduce", "--profile", "smoke", "--json", "--shard", "2/2"]) == 1
    failed = project / "results/smoke/02_toy.failed.ipynb"
    assert (
        f"notebook 02_toy failed in cell 2 with ArithmeticError: no; see {failed}" in capsys.readouterr().err
    )
    assert failed.exists()


# What the command line passes on.


@pytest.mark.parametrize(
    "executor", [Ray(), Ray(address="ray://head:10001", num_gpus=0.5, retries=0), Shard(2, 4)]
)
def test_an_executor_is_read_back_from_the_environment(executor, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_EXECUTOR", executors.to_text(executor))
    assert executors.from_environment() == executor
    monkeypatch.delenv("SYMPRUNE_EXECUTOR")
    assert executors.from_environment() is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--executor", "ray"], Ray()),
        (["--executor", "ray(num_gpus=1.0)", "--address", "auto"], Ray(address="auto", num_gpus=1.0)),
        ([], None),
    ],
)
def test_reproduce_is_told_who_measures(words, expected, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(
        "symprune.paper.reproduce.reproduce",
        lambda *_, executor, **__: told.append(executor) or Path("report.html"),
    )
    assert main(["reproduce", *words]) == 0
    assert told == [expected]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--address", "auto"], "give --executor ray with it"),
        (["--executor", "rya"], "unknown executor 'rya': did you mean ray"),
        (["--executor", "shard(i=1,n=2)"], "unknown executor 'shard'"),
        (["--executor", "ray", "--shard", "1/2"], "--executor would be ignored: --shard only measures"),
        (["--again", "--shard", "1/2"], "--again would be ignored: --shard only measures"),
        (["--executor", "ray", "--processes", "2"], "--processes would be ignored: the executor measures"),
        (["--shard", "3/2"], "must be i/n with 1 <= i <= n"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, capsys):
    try:
        code = main(["reproduce", *words])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert re.search(message, capsys.readouterr().err)
