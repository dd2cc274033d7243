"""Zero-shot scoring in memory beside lm-eval's own command line on the same saved model: wall time and
accuracy.

    SYMPRUNE_DATA=folder python benchmarks/zero_shot.py [--model embedded] [--examples 200] [--batch-size 8]
    [--repeats 1]

ARC-easy from SYMPRUNE_DATA. Both sides start a new process and load the model and the task themselves; they
take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lm_eval
import yaml

from symprune import UserError
from symprune.base import paths
from symprune.models.load import locate
from symprune.text.tasks import source_of

TASK = "arc_easy"


def timed(command: list[str]) -> tuple[tuple[float, float], str]:
    """Seconds that a command took, by the wall and of the processor (steadier on a busy machine), and its
    stdout.
    """
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return (time.perf_counter() - start, processor), done.stdout


def ours(model: Path, options: argparse.Namespace) -> tuple[tuple[float, float], float, float]:
    """Seconds, acc and acc_norm of `symprune eval`."""
    sizes = ["--limit", str(options.examples), "--batch-size", str(options.batch_size)]
    seconds, out = timed(
        [
            str(Path(sys.executable).with_name("symprune")),
            "eval",
            str(model),
            "--tasks",
            TASK,
            *sizes,
            "--json",
        ]
    )
    score = json.loads(out)["tasks"][TASK]
    return seconds, score["acc"], score["acc_norm"]


def theirs(
    model: Path, task: Path, work: Path, options: argparse.Namespace
) -> tuple[tuple[float, float], float, float]:
    """Seconds, acc and acc_norm of lm-eval's command, given the task's file, so that it need not read all the
    others.
    """
    arguments = f"pretrained={model},dtype=float32"
    sizes = ["--limit", str(options.examples), "--batch_size", str(options.batch_size), "--device", "cpu"]
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--model_args",
        arguments,
        "--tasks",
        str(task),
        *sizes,
    ]
    seconds, _ = timed([*command, "--output_path", str(work / "out")])
    (file,) = (work / "out").rglob("results*.json")
    (score,) = json.loads(file.read_text())["results"].values()
    file.unlink()
    return seconds, score["acc,none"], score["acc_norm,none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    if paths.hub_mirror() is None:
        raise UserError("set SYMPRUNE_DATA to a folder that holds allenai/ai2_arc")
    os.environ["HF_HUB_OFFLINE"] = "1"
    model, source = locate(options.model), source_of(TASK)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        official = Path(lm_eval.__file__).parent / "tasks/arc/arc_easy.yaml"
        # not in the folder, and not read for no examples
        splits = {"training_split": None, "validation_split": None}
        config = {
            "include": str(official),
            "dataset_path": str(paths.hub_mirror() / source["repo"]),
            **splits,
        }
        (work / "arc_easy.yaml").write_text(yaml.safe_dump(config))
        runs = []
        for _ in range(options.repeats):
            runs.append((ours(model, options), theirs(model, work / "arc_easy.yaml", work, options)))
    print(
        f"{TASK}, {options.examples} examples, {options.model}, batch size {options.batch_size}, median of"
        f" {options.repeats}"
    )
    print(f"{'':10}{'wall s':>9}{'CPU s':>9}{'acc':>9}{'acc_norm':>10}")
    medians = []
    for side, name in enumerate(("symprune", "lm-eval")):
        wall, processor = (statistics.median(run[side][0][clock] for run in runs) for clock in (0, 1))
        medians.append((wall, processor))
        print(f"{name:10}{wall:9.1f}{processor:9.1f}{runs[0][side][1]:9.4f}{runs[0][side][2]:10.4f}")
    wall, processor = (ours / theirs for ours, theirs in zip(*medians, strict=True))
    print(
        f"{wall:.2f} times the wall time of lm-eval's command line, {processor:.2f} times its processor time"
    )
    assert all(x[1:] == y[1:] for x, y in runs), "accuracies differ"


if __name__ == "__main__":
    main()
