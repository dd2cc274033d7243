"""The `symprune` command: prune, eval, calibrate, merge, apply, verify, diff, pack, unpack, fetch,
reproduce, verify-report, verify-records, render, doctor.
"""

import argparse

import symprune
from symprune.cli import options
from symprune.cli.given import Default


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options; `run` of what is parsed names the file and function that serve it."""
    parser = options.Parser(
        prog="symprune",
        description="Prune language models after training, and reproduce 'Symmetric Pruning of Large Language"
        " Models'.",
        epilog="MODEL is `embedded` (SmolLM2-135M, installed with the package), a folder written by"
        " save_pretrained, or a hub id.",
    )
    parser.add_argument("--version", action="version", version=f"symprune {symprune.__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        run: str, *parents: argparse.ArgumentParser, help: str, description: str, example: str
    ) -> argparse.ArgumentParser:
        name = run.partition(".run_")[2].replace("_", "-")
        texts = {"help": help, "description": description, "epilog": f"example: symprune {example}"}
        p = subparsers.add_parser(name, parents=[*parents, options.common()], **texts)
        p.set_defaults(run=run)
        return p

    text, path, draw = options.model_and_text(), options.layers_path(), options.draw()
    precision = options.calibration_dtype()
    notebooks, profile = options.notebooks(), options.profile()

    p = command(
        "pruning.run_prune",
        *(text, path, draw, precision, options.recipe()),
        help="prune a model and save it, or its masks",
        description="Prune every linear inside the decoder layers; save the model with its masks and its"
        " record, or the masks alone.",
        example="prune embedded --score 'ria(alpha=1.0)' --sparsity 0.6 --out pruned/",
    )
    p.add_argument(
        "--propagate",
        help="pruned: calibrate on what pruned layers send on; dense (default: pruned, with --statistics"
        " dense)",
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
        help="statistics of `symprune calibrate` or `merge`, instead of windows; with --propagate pruned,"
        " their gradients beside windows",
    )
    p.add_argument(
        "--stream",
        action="store_true",
        help="keep one decoder layer in memory at a time, for models larger than memory",
    )
    p.add_argument(
        "--memory",
        type=options.size,
        metavar="SIZE",
        help="with --stream: a budget such as 6GiB; hidden states may go to disk",
    )

    p = command(
        "measuring.run_eval",
        text,
        help="measure a model's perplexity, or its zero-shot accuracy",
        description="Measure perplexity by the pruning papers' convention; with --tasks, accuracy on"
        " zero-shot tasks by lm-eval instead.",
        example="eval pruned/ --n-eval 16; or: symprune eval pruned/ --tasks boolq,rte --batch-size 8",
    )
    p.add_argument(
        "--split",
        default=Default("evaluation"),
        help="calibration, validation or evaluation (default: %(default)s)",
    )
    p.add_argument(
        "--n-eval",
        type=options.at_least_one,
        help="windows, from as many articles as there are (default: all)",
    )
    p.add_argument(
        "--tasks",
        help="zero-shot tasks by name, with commas between: continuation, boolq, rte, hellaswag, ...",
    )
    p.add_argument(
        "--limit",
        type=options.at_least_one,
        help="examples of each task, the first so many (default: all)",
    )

    p = command(
        "pruning.run_calibrate",
        *(text, path, draw, precision),
        help="gather the statistics of a dense model into a file",
        description="Gather sums over calibration windows for any number of recipes (prune --statistics), and"
        " no text: docs/scaling.md.",
        example="calibrate embedded --shard 1/2 --out part1.safetensors",
    )
    p.add_argument(
        "--gather",
        default=Default(""),
        help="what is gathered only if asked for: output_norm, gram, gradient_gram, sketch64 (any number)",
    )
    p.add_argument(
        "--output-side",
        default=Default("activations"),
        help="what output_norm is of: activations or gradients (default: %(default)s)",
    )
    p.add_argument(
        "--shard",
        type=options.shard,
        metavar="I/N",
        help="gather on the I-th of N parts of the windows, to be merged",
    )
    p.add_argument("--out", metavar="FILE", required=True, help="file to write; must not exist")

    p = command(
        "pruning.run_merge",
        help="merge statistics gathered on different windows",
        description="Merge the statistics of several files, as if gathered in one go; from other processes,"
        " machines or owners of text.",
        example="merge part1.safetensors part2.safetensors --out all.safetensors",
    )
    p.add_argument("files", nargs="+", metavar="FILE", help="files of `symprune calibrate` or `merge`")
    p.add_argument("--out", metavar="FILE", required=True, help="file to write; must not exist")

    p = command(
        "masks.run_apply",
        *(options.model(), path),
        help="apply masks to the model they were made for, or to a fine-tuned one",
        description="Set the weights that a mask file removes to zero and save the model with its masks and"
        " its record.",
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
        "masks.run_verify",
        path,
        help="check masks against their pattern, and a model against its masks",
        description="Count every group of a mask file; for a pruned model, also compare its weights with what"
        " was pruned.",
        example="verify pruned/",
    )
    p.add_argument("masks", metavar="MASKS", help="a mask file, or the folder of a pruned model")
    p.add_argument(
        "--model", metavar="MODEL", help="check that the masks were made for this model, dense or pruned"
    )

    p = command(
        "masks.run_diff",
        help="compare two mask files",
        description="Compare two mask files: Jaccard overlap of the kept weights, and the fraction of weights"
        " decided alike.",
        example="diff pruned/ masks.safetensors",
    )
    p.add_argument("a", metavar="A", help="a mask file, or the folder of a pruned model")
    p.add_argument("b", metavar="B", help="another over the same linears")

    p = command(
        "packing.run_pack",
        help="save a pruned model without its zeros, in a smaller folder",
        description="Write a model's folder with a bit for each weight and the weights that are not zero; all"
        " else is copied. It is not faster: symprune unpacks it as it loads it.",
        example="pack pruned/ --out packed/",
    )
    p.add_argument("model", metavar="MODEL", help="embedded, a local folder, or a hub id")
    p.add_argument("--out", metavar="DIR", required=True, help="folder to write; must not exist")
    p = command(
        "packing.run_unpack",
        help="make a packed folder one that transformers reads",
        description="Write a packed folder as it was before it was packed, every byte of it.",
        example="unpack packed/ --out pruned/",
    )
    p.add_argument("folder", metavar="DIR", help="a folder that `symprune pack` wrote")
    p.add_argument("--out", metavar="DIR", required=True, help="folder to write; must not exist")

    p = command(
        "measuring.run_fetch",
        help="copy benchmark data from the hub into a folder",
        description="Copy the data of tasks and corpora from the hub into a folder for SYMPRUNE_DATA; what is"
        " there already is kept.",
        example="fetch --out data/ boolq rte wikitext2",
    )
    p.add_argument(
        "names", nargs="*", metavar="NAME", help="tasks, and the corpora wikitext2 and c4 (default: all)"
    )
    p.add_argument("--out", metavar="DIR", required=True, help="folder to write or to complete")

    p = command(
        "reproducing.run_reproduce",
        *(notebooks, profile),
        help="execute the notebooks and write every table and figure",
        description="Execute the notebooks under a profile (papermill_params/PROFILE.yaml); what is on record"
        " is not measured again.",
        example="reproduce 02 --profile cpu",
    )
    p.add_argument(
        "--set",
        dest="settings",
        type=options.setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value than the profile's; results go to PROFILE_set, or to profile=NAME",
    )
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
        "--processes",
        type=options.at_least_one,
        metavar="N",
        help="processes that share what is to be measured, and the cores (default: 1)",
    )
    p.add_argument(
        "--shard",
        type=options.shard,
        metavar="I/N",
        help="only measure, as the I-th of N processes over one output folder",
    )

    command(
        "reproducing.run_verify_report",
        *(notebooks, profile),
        help="check what is published against its records",
        description="Draw every table, figure and verdict of a profile, and its report, again from its"
        " published records alone, and compare.",
        example="verify-report --profile cpu",
    )
    p = command(
        "reproducing.run_verify_records",
        profile,
        help="measure a sample of a profile's records again",
        description="Measure again a record of each score, pattern, refinement and measurement of a profile,"
        " and compare: to the bit on the processor on record, within 0.1 % elsewhere.",
        example="verify-records --profile cpu",
    )
    p.add_argument("--device", help="where to measure (default: the profile's)")
    command(
        "reproducing.run_render",
        notebooks,
        help="execute notebooks/*.py into their .ipynb pairs",
        description="Execute the sources at their smoke parameters into the committed .ipynb pairs.",
        example="render 02",
    )
    command(
        "doctor.run_doctor",
        help="show what this machine can run",
        description="Show processor, memory, disk, GPU, the embedded model and corpus, whether the hub"
        " answers, and what is installed.",
        example="doctor",
    )
    return parser
