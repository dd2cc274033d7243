# ruff: noqa: F811
"""Experiments measured on a Ray cluster leave the records that one process leaves, whoever dies."""

import os
import signal
import sys

import pytest
from executing import RECIPES, WANDA, answers, command, project  # noqa: F401

from symprune import UserError
from symprune.base.records import Store
from symprune.measure import Accuracy, Experiment, Protocol, WindowLosses
from symprune.measure.executors import Ray
from symprune.measure.experiment import Cell
from symprune.text.tasks import CONTINUATION


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """One output and one cache for all tests here: Ray keeps workers for tasks of the same environment, and
    each would import torch anew.
    """
    root = tmp_path_factory.mktemp("ray")
    return {"SYMPRUNE_OUTPUT": str(root / "output"), "SYMPRUNE_CACHE": str(root / "cache")}


@pytest.fixture
def protocol(protocol, folders, monkeypatch) -> dict:
    for name, folder in folders.items():
        monkeypatch.setenv(name, folder)
    return protocol


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
    profiles = ("asked here", "asked there")
    here, there = (Experiment(Protocol(**{**protocol, "profile": profile})) for profile in profiles)
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
