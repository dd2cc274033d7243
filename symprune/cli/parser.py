"""The `symprune` command: prune, eval, calibrate, merge, apply, verify, diff, fetch, reproduce,
verify-report, render, doctor.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence

from symprune.base.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 if it worked, 2 with one line on stderr for bad input, 1 for a failed notebook or a
    bug.
    """
    args = _parser().parse_args(argv)
    try:
        from symprune.cli import commands  # late: torch takes seconds, and --help needs none of it

        answer = getattr(commands, args.run)(args)
        print(json.dumps(answer.facts) if args.json else answer.text)
        return 0
    except Exception as error:
        if args.debug:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, (UserError, OSError, RuntimeError)):
            text = f"{type(error).__name__}{': ' * bool(text)}{text} (--debug shows where)"
        print(f"symprune: error: {text}", file=sys.stderr)
        return 2 if isinstance(error, (UserError, OSError)) else 1
    except KeyboardInterrupt:
        print("symprune: interrupted; what was finished is kept", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"symprune: error: {' '.join(message.split())} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"must be i/n with 1 <= i <= n, such as 2/4, not {text!r}")
    return int(i), int(n)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GiB|MiB|GB|MB)", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a size such as 6GiB or 800MB, not {text!r}")
    return int(float(found[1]) * {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}[found[2]])


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else _at_least_one(text)


def _options(*parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Options that several commands share."""
    return argparse.ArgumentParser(add_help=False, parents=parents)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="symprune",
        description=(
            "Prune language models after training, and reproduce 'Symmetric Pruning of Large Language"
            " Models'."
        ),
        epilog=(
            "MODEL is `embedded` (SmolLM2-135M, installed with the package), a folder written by"
            " save_pretrained, or a hub id."
        ),
    )
    common = _options()
    common.add_argument("--json", action="store_true", help="print one JSON object, no progress bars")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    path = _options()
    path.add_argument(
        "--layers-path",
        metavar="PATH",
        help="list of decoder layers, where it is not found: model.decoder.blocks",
    )
    place = _options()
    place.add_argument("model", metavar="MODEL", help="embedded, a local folder, or a hub id")
    place.add_argument(
        "--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)"
    )
    place.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, ..., or auto for all GPUs (default: %(default)s)"
    )
    text = _options(place)
    text.add_argument(
        "--corpus",
        default="embedded",
        help="embedded, wikitext2, c4, or a .txt or .jsonl file (default: %(default)s)",
    )
    text.add_argument(
        "--seq-len",
        type=_at_least_one,
        default=512,
        help="tokens per window (default: %(default)s; the papers use 2048)",
    )
    text.add_argument(
        "--batch-size",
        type=_batch_size,
        default=1,
        help="windows per forward pass, or auto (default: %(default)s)",
    )
    draw = _options()
    draw.add_argument(
        "--n-calib",
        type=_at_least_one,
        default=16,
        help="calibration windows (default: %(default)s; the papers use 128)",
    )
    draw.add_argument(
        "--seed", type=int, default=0, help="seed of the calibration windows (default: %(default)s)"
    )
    notebooks = _options()
    notebooks.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="names or numbers (default: all)")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        run: str, *parents: argparse.ArgumentParser, help: str, description: str, example: str
    ) -> argparse.ArgumentParser:
        name = run.removeprefix("run_").replace("_", "-")
        epilog = f"example: symprune {example}"
        p = subparsers.add_parser(
            name, parents=[*parents, common], help=help, description=description, epilog=epilog
        )
        p.set_defaults(run=run)
        return p

    p = command(
        "run_prune",
        text,
        path,
        draw,
        help="prune a model and save it, or its masks",
        description=(
            "Prune every linear inside the decoder layers; save the model with its masks and its record, or"
            " the masks alone."
        ),
        example="prune embedded --score 'ria(alpha=1.0)' --sparsity 0.6 --out pruned/",
    )
    p.add_argument(
        "--score",
        default="ria",
        help="a score, with hyperparameters if wanted: wanda, 'ria(alpha=1.0)' (default: %(default)s)",
    )
    p.add_argument(
        "--pattern",
        default="unstructured",
        help="unstructured, or n:m to keep n of every m: 2:4, 4:8 (default: %(default)s)",
    )
    p.add_argument(
        "--sparsity",
        type=float,
        default=0.5,
        help="fraction removed, for unstructured (default: %(default)s)",
    )
    p.add_argument(
        "--group",
        default="output",
        help="output: rows compete on their own; layer: the whole matrix (default: %(default)s)",
    )
    p.add_argument(
        "--refine",
        default="none",
        help="a training-free refinement of the mask: dsnot, r2dsnot (default: %(default)s)",
    )
    p.add_argument(
        "--propagate",
        help=(
            "pruned: calibrate on what pruned layers send on; dense (default: pruned, with --statistics"
            " dense)"
        ),
    )
    p.add_argument(
        "--out", metavar="DIR", help="folder to write model, masks and record into; must not exist"
    )
    p.add_argument(
        "--masks", metavar="FILE", help="file to write the masks into, at one bit per weight; must not exist"
    )
    p.add_argument(
        "--work",
        metavar="DIR",
        help="folder that records finished decoder layers: the same command continues after a kill",
    )
    p.add_argument(
        "--statistics",
        metavar="FILE",
        help="statistics of `symprune calibrate` or `merge`, instead of windows",
    )
    p.add_argument(
        "--stream",
        action="store_true",
        help="keep one decoder layer in memory at a time, for models larger than memory",
    )
    p.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="with --stream: a budget such as 6GiB; hidden states may go to disk",
    )

    p = command(
        "run_eval",
        text,
        help="measure a model's perplexity, or its zero-shot accuracy",
        description=(
            "Measure perplexity by the pruning papers' convention; with --tasks, accuracy on zero-shot tasks"
            " by lm-eval instead."
        ),
        example="eval pruned/ --n-eval 16; or: symprune eval pruned/ --tasks boolq,rte --batch-size 8",
    )
    p.add_argument(
        "--split", default="evaluation", help="calibration, validation or evaluation (default: %(default)s)"
    )
    p.add_argument(
        "--n-eval",
        type=_at_least_one,
        default=None,
        help="windows, spread evenly over the split (default: all)",
    )
    p.add_argument(
        "--tasks",
        help="zero-shot tasks by name, with commas between: continuation, boolq, rte, hellaswag, ...",
    )
    p.add_argument(
        "--limit",
        type=_at_least_one,
        default=None,
        help="examples of each task, the first so many (default: all)",
    )

    p = command(
        "run_calibrate",
        text,
        path,
        draw,
        help="gather the statistics of a dense model into a file",
        description=(
            "Gather sums over calibration windows for any number of recipes (prune --statistics), and no"
            " text: docs/scaling.md."
        ),
        example="calibrate embedded --shard 1/2 --out part1.safetensors",
    )
    p.add_argument(
        "--gather",
        default="",
        help="what is not gathered unless asked for: output_norm, gram, or both with a comma",
    )
    p.add_argument(
        "--output-side",
        default="activations",
        help="what output_norm is of: activations or gradients (default: %(default)s)",
    )
    p.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="gather on the I-th of N parts of the windows, to be merged",
    )
    p.add_argument("--out", metavar="FILE", required=True, help="file to write; must not exist")

    p = command(
        "run_merge",
        help="merge statistics gathered on different windows",
        description=(
            "Merge the statistics of several files, as if gathered in one go; from other processes, machines"
            " or owners of text."
        ),
        example="merge part1.safetensors part2.safetensors --out all.safetensors",
    )
    p.add_argument("files", nargs="+", metavar="FILE", help="files of `symprune calibrate` or `merge`")
    p.add_argument("--out", metavar="FILE", required=True, help="file to write; must not exist")

    p = command(
        "run_apply",
        place,
        path,
        help="apply masks to the model they were made for, or to a fine-tuned one",
        description=(
            "Set the weights that a mask file removes to zero and save the model with its masks and its"
            " record."
        ),
        example="apply embedded masks.safetensors --out pruned/",
    )
    p.add_argument("masks", metavar="MASKS", help="a mask file, or the folder of a pruned model")
    p.add_argument(
        "--other-weights",
        action="store_true",
        help="apply although the weights differ: after fine-tuning, or merging an adapter",
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="folder to write model, masks and record into; must not exist",
    )

    p = command(
        "run_verify",
        path,
        help="check masks against their pattern, and a model against its masks",
        description=(
            "Count every group of a mask file; for a pruned model, also compare its weights with what was"
            " pruned."
        ),
        example="verify pruned/",
    )
    p.add_argument("masks", metavar="MASKS", help="a mask file, or the folder of a pruned model")
    p.add_argument(
        "--model", metavar="MODEL", help="check that the masks were made for this model, dense or pruned"
    )

    p = command(
        "run_diff",
        help="compare two mask files",
        description=(
            "Compare two mask files: Jaccard overlap of the kept weights, and the fraction of weights decided"
            " alike."
        ),
        example="diff pruned/ masks.safetensors",
    )
    p.add_argument("a", metavar="A", help="a mask file, or the folder of a pruned model")
    p.add_argument("b", metavar="B", help="another over the same linears")

    p = command(
        "run_fetch",
        help="copy benchmark data from the hub into a folder",
        description=(
            "Copy the data of tasks and corpora from the hub into a folder for SYMPRUNE_DATA; what is there"
            " already is kept."
        ),
        example="fetch --out data/ boolq rte wikitext2",
    )
    p.add_argument(
        "names", nargs="*", metavar="NAME", help="tasks, and the corpora wikitext2 and c4 (default: all)"
    )
    p.add_argument("--out", metavar="DIR", required=True, help="folder to write or to complete")

    p = command(
        "run_reproduce",
        notebooks,
        help="execute the notebooks and write every table and figure",
        description=(
            "Execute the notebooks under a profile (papermill_params/PROFILE.yaml); what is on record is not"
            " measured again."
        ),
        example="reproduce 02 --profile cpu",
    )
    p.add_argument("--profile", default="cpu", help="a file in papermill_params/ (default: %(default)s)")
    p.add_argument(
        "--again",
        action="store_true",
        help="execute also what would do again what it did (records are still reused)",
    )
    p.add_argument(
        "--executor", metavar="NAME", help="who measures: ray, or 'ray(num_gpus=1.0)' (default: this process)"
    )
    p.add_argument(
        "--address",
        help="of the Ray cluster, with --executor (default: $RAY_ADDRESS, else one is started here)",
    )
    p.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="only measure, as the I-th of N processes over one output folder",
    )

    p = command(
        "run_verify_report",
        notebooks,
        help="check published tables against published records",
        description=(
            "Draw every table, figure and verdict of a profile again from its published records alone, and"
            " compare."
        ),
        example="verify-report --profile cpu",
    )
    p.add_argument("--profile", default="cpu", help="a file in papermill_params/ (default: %(default)s)")

    command(
        "run_render",
        notebooks,
        help="execute notebooks/*.py into their .ipynb pairs",
        description=(
            "Execute the sources at their default (smoke) parameters into the committed .ipynb pairs."
        ),
        example="render 02",
    )
    command(
        "run_doctor",
        help="show what this machine can run",
        description=(
            "Show processor, memory, disk, GPU, the embedded model and corpus, whether the hub answers, and"
            " what is installed."
        ),
        example="doctor",
    )
    return parser
