"""Experiments measured elsewhere leave the records that one process leaves, each measured once, whoever
dies.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from symprune import NM, RIA, Magnitude, Recipe, UserError, Wanda
from symprune.base.records import Store, run_key
from symprune.cli import main
from symprune.measure import Accuracy, Experiment, Protocol, WindowLosses, executors
from symprune.measure.executors import Ray, Shard
from symprune.measure.experiment import Cell
from symprune.text.tasks import CONTINUATION

MAGNITUDE, WANDA, RIA_NM = Recipe(Magnitude()), Recipe(Wanda()), Recipe(RIA(), NM(2, 4))
RECIPES = [None, MAGNITUDE, WANDA, RIA_NM]
TOY = [None, MAGNITUDE, WANDA, Recipe(RIA())]  # what the toy notebook asks first


@pytest.fixture
def protocol(protocol, tmp_path, monkeypatch) -> dict:
    """With a cache of its own that workers, who are other processes, are told of."""
    monkeypatch.setenv("SYMPRUNE_CACHE", str(tmp_path / "cache"))
    return protocol


def answers(experiment: Experiment) -> dict:
    """What the records of an experiment say, without times and places."""
    return {
        r.key: {name: value for name, value in r.metrics.items() if not name.startswith("seconds")}
        for r in experiment.store
    }


def command(*words: str, root: Path, **variables: str) -> subprocess.Popen:
    """`symprune` in a process of its own."""
    program = "import sys; from symprune.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "SYMPRUNE_ROOT": str(root), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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


NOTEBOOK = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
profile = "smoke"
models = []
calibration_corpus = ""

# %%
from dataclasses import replace
from symprune import RIA, Magnitude, Recipe, Wanda
from symprune.base import records
from symprune.measure import Experiment, Protocol
from symprune.paper.tables import save_table

put = records.Store.put


def logged(store, record):
    with open({log!r}, "a") as file:
        file.write(record.key + chr(10))
    return put(store, record)


records.Store.put = logged
protocol = Protocol.of(globals(), evaluation_corpus=calibration_corpus, n_calib=2, n_eval=2, seq_len=32)
experiment = Experiment(protocol)
rows = experiment.run([None, Recipe(Magnitude()), Recipe(Wanda()), Recipe(RIA())])

# %%
more = Experiment(replace(protocol, n_calib=3)).run([Recipe(Magnitude()), Recipe(Wanda())])
save_table(rows[["method", "seed", "perplexity", "record"]], profile, "02_toy")
save_table(more[["method", "seed", "perplexity", "record"]], profile, "02_more")
"""


@pytest.fixture
def project(tmp_path, checkpoint, corpus, monkeypatch) -> Path:
    """A project of one notebook with two experiments, which writes down the key of every record that it
    measures.
    """
    root = tmp_path / "project"
    for folder in ("notebooks", "papermill_params"):
        (root / folder).mkdir(parents=True)
    values = {"profile": "smoke", "models": [str(checkpoint)], "calibration_corpus": str(corpus)}
    (root / "papermill_params/smoke.yaml").write_text(yaml.safe_dump(values))
    (root / "notebooks/02_toy.py").write_text(NOTEBOOK.replace("{log!r}", repr(str(tmp_path / "measured"))))
    for name, folder in {
        "ROOT": root,
        "NOTEBOOKS": root / "notebooks",
        "PARAMS": root / "papermill_params",
    }.items():
        monkeypatch.setattr(f"symprune.base.paths.{name}", folder)
    return root


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


# Ray.


def test_without_ray_the_extra_is_named(protocol, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'symprune\[ray\]'"):
        Experiment(Protocol(**protocol)).run([None], executor=Ray())


def test_what_is_on_record_needs_no_cluster(protocol, monkeypatch):
    Experiment(Protocol(**protocol)).run([None])
    monkeypatch.setitem(sys.modules, "ray", None)
    assert len(Experiment(Protocol(**protocol)).run([None], executor=Ray())) == 1


@pytest.fixture(scope="module")
def cluster():
    """A real Ray of two workers, on this machine."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
        # its daemons have to be up within fixed times, which a busy machine may miss
        for attempts_left in (2, 1, 0):
            try:
                ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
                break
            except Exception:
                ray.shutdown()
                if not attempts_left:
                    raise
        yield ray
        ray.shutdown()


def test_ray_leaves_the_records_of_a_local_run_and_a_killed_worker_is_replaced(
    cluster, protocol, tmp_path, monkeypatch
):
    here = Experiment(Protocol(**{**protocol, "profile": "here"}))
    expected = here.run(RECIPES)
    there = Experiment(Protocol(**{**protocol, "profile": "there"}))
    killed, log = tmp_path / "killed", tmp_path / "log"

    def with_a_kill(measure, cells, state):
        def measure_or_die(cell):
            with open(log, "a") as file:
                file.write(f"{cell.seed} {os.getpid()}\n")
            # the last of this group: the one before is on record
            if cell == cells[-1] and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            measure(cell)

        Ray(retries=1)(measure_or_die, cells, state)

    with monkeypatch.context() as patch:
        patch.setattr("symprune.models.load_model", None)  # not in this process
        rows = there.run(RECIPES, executor=with_a_kill)
    assert killed.exists()
    assert answers(there) == answers(here)
    assert len(answers(there)) == 6
    assert rows["record"].tolist() == expected["record"].tolist()
    workers = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for seed, pid in workers if seed == "1"}) == 2  # it died, and another took its place
    assert [seed for seed, _ in workers].count("0") == 4
    assert [seed for seed, _ in workers].count("1") == 4
    first = there.record(protocol["models"][0], WANDA, 1)
    file = there.store.folder / f"{first.key}.json"
    # what was on record when it died was not measured again
    assert file.stat().st_mtime <= killed.stat().st_mtime


def test_what_a_task_raises_is_raised_here_after_the_others_have_ended(cluster, protocol):
    # longer than the model's positions
    experiment = Experiment(Protocol(**{**protocol, "seq_len": 200, "eval_seq_len": 32}))
    with pytest.raises(UserError, match=r"^seq_len 200 is above the 128 positions"):
        experiment.run([WANDA, None], executor=Ray())


def test_a_task_whose_workers_all_die_is_named(cluster):
    def always_killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="that measured tiny, seed 3, died 1 times"):
        Ray(retries=0)(always_killed, [Cell("tiny", 3, None, WindowLosses())], lambda cell: "missing")


def test_zero_shot_scores_of_workers_are_those_of_a_local_run(cluster, protocol, monkeypatch):
    recipes, accuracy = [None, WANDA], Accuracy(CONTINUATION, limit=3, batch_size=2)
    here, there = (Experiment(Protocol(**{**protocol, "profile": profile})) for profile in ("here", "there"))
    expected = here.run(recipes, accuracy)
    with monkeypatch.context() as patch:
        patch.setattr("symprune.models.load_model", None)  # not in this process
        rows = there.run(recipes, accuracy, executor=Ray())
    assert rows["record"].tolist() == expected["record"].tolist()
    assert answers(there) == answers(here)
    assert len(answers(there)) == 3


def test_reproduce_sends_its_work_to_the_cluster_at_an_address(cluster, project, tmp_path):
    """From a process that is none of the cluster's: the notebook's kernel measures nothing, and draws what
    the workers left.
    """
    address = cluster.get_runtime_context().gcs_address
    asked = command(
        "reproduce", "--profile", "smoke", "--json", "--executor", "ray", "--address", address, root=project
    )
    _, err = asked.communicate(timeout=300)
    assert asked.returncode == 0, err
    records = list(Store(project / "results/smoke/records"))
    assert len(records) == 8
    assert not (tmp_path / "measured").exists()  # the kernel would have written down what it measures
    assert {file.stem for file in (project / "figures/smoke").glob("table_*.csv")} == {
        "table_02_toy",
        "table_02_more",
    }
