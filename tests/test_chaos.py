"""Real processes on one folder, killed at any moment: what they leave is continued to the same bits, and none
does another's work.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from symprune import RIA, DSnoT, Recipe, Unstructured, load_masks, perplexity, prune, save_masks
from symprune.base.files import require_disk, whole_folder
from symprune.base.records import Record, Store
from symprune.cli import main

RUN = {"model": "tiny", "recipe": "ria + dsnot"}
# A moment of each stage: the event of the interpreter, the name it is about, and its how-manieth occurrence
# in an undisturbed run.
STAGES = {
    "before anything": ("call", "prune", 1),
    "noting what was asked": ("c_call", "chmod", 1),
    "entering the decoder layers": ("call", "_enter", 2),
    "calibrating": ("call", "observe", 9),
    "scoring": ("call", "_mask_linear", 10),
    "refining": ("call", "summary", 12),
    "writing masks of the first layer": ("c_call", "chmod", 2),
    "after masks of the first layer": ("call", "zero_removed", 1),
    "running a pruned layer": ("call", "run", 3),
    "writing masks of the last layer": ("c_call", "chmod", 4),
    "saving the mask file": ("c_call", "chmod", 5),
    "writing the record": ("c_call", "chmod", 6),
}


Moment = tuple[str, str, int] | float


def kill_at(moment: Moment) -> None:
    """Make this process end itself at one of the above, or the kernel end it after so many seconds of CPU:
    in the middle of whatever it does, C code too.
    """
    if isinstance(moment, float):
        signal.setitimer(signal.ITIMER_PROF, moment)  # SIGPROF, which nothing handles
        return
    event, name, left = moment

    def watch(frame, happening, argument):
        nonlocal left
        seen = frame.f_code.co_name if happening == "call" else getattr(argument, "__name__", "")
        if happening == event and name == seen:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)


def child(folder: Path, moment: Moment | None) -> None:
    """One attempt at a pruning run: it continues what is in the folder, and may be killed at a moment."""
    started = time.process_time()
    if moment:
        kill_at(moment)
    torch.set_num_threads(1)
    model = tiny.model()

    def measure() -> dict:
        report = prune(
            model,
            tiny.windows(),
            Recipe(RIA(), Unstructured(0.5), DSnoT()),
            work=folder / "work",
            keep_masks=True,
        )
        save_masks(folder / "masks.safetensors", report.masks, model)
        refined = {linear.name: linear.refined for linear in report.linears}
        return {"refined": refined, "perplexity": float(perplexity(model, tiny.windows(2, seed=9)))}

    Store(folder / "records").get_or_run(RUN, measure)
    signal.setitimer(signal.ITIMER_PROF, 0)
    if moment is None:
        (folder / "seconds").write_text(str(time.process_time() - started))


def child_of_cli(argv: list[str], moment: Moment | None) -> None:
    """The command line in a process of its own."""
    torch.set_num_threads(1)
    if moment:
        kill_at(moment)
    sys.exit(main(argv))


def asker(folder: Path, log: Path, seconds: float) -> None:
    """Asks a store and says so in a log when it measures."""

    def measure() -> dict:
        with open(log, "a") as f:
            f.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return {"answer": 42}

    assert Store(folder).get_or_run(RUN, measure).metrics == {"answer": 42}


def saver(out: Path) -> None:
    """Begins to save a folder and never ends."""
    with whole_folder(out) as folder:
        folder.mkdir()
        (folder / "half").write_text("of a model")
        time.sleep(60)


@pytest.fixture(scope="module")
def start():
    """Starts a function in a new process; all are forked from one that has imported what they need and
    computed nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["test_chaos", "transformers.models.llama.modeling_llama", "symprune.pruning.calibrate"]
    )

    def begin(function, *args) -> multiprocessing.Process:
        process = context.Process(target=function, args=args)
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def attempt(start):
    """Runs a function in a new process to its end; returns its exit code, minus the signal if killed."""

    def run(function, *args) -> int:
        process = start(function, *args)
        process.join(120)
        return process.exitcode

    return run


def outcome(folder: Path) -> tuple[bytes, dict]:
    (record,) = Store(folder / "records")
    return (folder / "masks.safetensors").read_bytes(), record.metrics


@pytest.fixture(scope="module")
def undisturbed(attempt, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert attempt(child, folder, None) == 0
    return folder


def test_the_same_run_in_another_process_has_the_same_bits(attempt, undisturbed, tmp_path):
    assert attempt(child, tmp_path, None) == 0
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_at_any_stage_is_continued_to_the_same_bits(attempt, undisturbed, tmp_path, stage):
    assert attempt(child, tmp_path, STAGES[stage]) == -signal.SIGKILL, "the stage was not reached"
    assert not list((tmp_path / "records").glob("*.json"))
    assert attempt(child, tmp_path, None) == 0
    assert outcome(tmp_path) == outcome(undisturbed)
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == [
        ".lock",
        "asked.json",
        *(f"layer_00{i}.safetensors" for i in range(3)),
    ]


def test_a_run_killed_again_and_again_at_random_moments_ends_with_the_same_bits(
    attempt, undisturbed, tmp_path
):
    rng, seconds = random.Random(0), float((undisturbed / "seconds").read_text())
    kills = chain = 0
    while kills < 20:
        folder = tmp_path / str(chain)
        folder.mkdir()
        while (code := attempt(child, folder, rng.uniform(0, seconds))) != 0:
            assert code == -signal.SIGPROF
            kills += 1
        assert outcome(folder) == outcome(undisturbed), chain
        chain += 1


def test_what_was_finished_is_not_computed_again(attempt, undisturbed, tmp_path):
    # the first of the third layer
    assert attempt(child, tmp_path, ("call", "_mask_linear", 15)) == -signal.SIGKILL
    assert attempt(child, tmp_path, ("call", "_mask_linear", 8)) == 0  # seven are left


@pytest.mark.parametrize("moment", [("c_call", "chmod", 4), ("c_call", "rename", 2)], ids=str)
def test_a_command_killed_while_it_saves_leaves_no_model_and_ends_the_same(
    attempt, checkpoint, corpus, tmp_path, moment
):
    def command(out: str) -> list[str]:
        line = [
            "prune",
            checkpoint,
            "--corpus",
            corpus,
            "--seq-len",
            32,
            "--n-calib",
            2,
            "--work",
            tmp_path / "work",
            "--out",
            tmp_path / out,
        ]
        return [str(word) for word in line]

    assert attempt(child_of_cli, command("a"), moment) == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    assert list(tmp_path.glob(".a.*"))
    assert attempt(child_of_cli, command("a"), None) == 0
    assert not list(tmp_path.glob(".a.*"))
    plain = [word for word in command("b") if word not in ("--work", str(tmp_path / "work"))]
    assert attempt(child_of_cli, plain, None) == 0
    a, b = tmp_path / "a", tmp_path / "b"
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert {n: m.tolist() for n, m in load_masks(a).masks.items()} == {
        n: m.tolist() for n, m in load_masks(b).masks.items()
    }
    records = [Record.from_json((folder / "symprune.json").read_text()) for folder in (a, b)]
    assert records[0].run == records[1].run
    assert records[0].metrics["linears"] == records[1].metrics["linears"]


# Two processes, one folder.


def test_of_two_processes_with_one_question_one_measures_and_both_have_the_answer(start, tmp_path):
    processes = [start(asker, tmp_path / "records", tmp_path / "log", 0.5) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert len(list(Store(tmp_path / "records"))) == 1


def test_the_lock_of_a_killed_process_dies_with_it(start, tmp_path):
    log = tmp_path / "log"
    first = start(asker, tmp_path / "records", log, 60)
    while not log.exists() or not log.read_text():
        time.sleep(0.02)
    second = start(asker, tmp_path / "records", log, 0)
    second.join(0.3)
    assert second.exitcode is None  # waits
    first.kill()
    second.join(60)
    assert second.exitcode == 0
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "clean", [lambda out: require_disk(out, 0), lambda out: save(out)], ids=["before", "while saving"]
)
def test_what_a_killed_save_left_is_removed_and_what_a_living_one_writes_is_not(start, tmp_path, clean):
    out, other = tmp_path / "model[1]", tmp_path / "model1"
    killed, living, neighbour = (start(saver, target) for target in (out, out, other))
    while len(halves := list(tmp_path.glob(".*/*/half"))) < 3 or not all(half.read_text() for half in halves):
        time.sleep(0.02)
    killed.kill()
    killed.join(60)
    neighbour.kill()
    neighbour.join(60)
    clean(out)
    left = sorted(half.parent.name for half in tmp_path.glob(".*/*/half"))
    assert left == ["model1", "model[1]"]  # another folder's leftovers are not this one's to remove
    living.kill()
    living.join(60)
    shutil.rmtree(out, ignore_errors=True)
    clean(out)
    assert [half.parent.name for half in tmp_path.glob(".*/*/half")] == ["model1"]


def save(out: Path) -> None:
    with whole_folder(out) as folder:
        folder.mkdir()


def test_a_work_folder_serves_one_process_at_a_time(start, tmp_path, undisturbed):
    from symprune import UserError
    from symprune.pruning.journal import Journal

    asked = json.loads((undisturbed / "work" / "asked.json").read_text())
    with Journal(tmp_path / "work", asked):
        process = start(child, tmp_path, None)
        process.join(60)
        assert process.exitcode == 1
    with (
        Journal(tmp_path / "work", asked),
        pytest.raises(UserError, match="another process works in"),
        Journal(tmp_path / "work", asked),
    ):
        pass
