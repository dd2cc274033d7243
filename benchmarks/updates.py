"""What happens to the weights that stay: masks, refinements and updates of the embedded model at 60 % per
output, with propagation, by perplexity, seconds and peak memory.

    python benchmarks/updates.py --out results/updates [--device cuda] [--draws 0 1 2] [--budget-seconds 600]
    python benchmarks/updates.py --table FILE    # the tables of docs/updates.md from what was kept

Coefficients are chosen on the embedded validation split, draw 0 of 32 windows of 512 tokens; the recipes are
then measured draw by draw on WikiText-2 (148 windows of 2048). Every line of the file is one result, written
as it comes; what does not fit into the budget is left out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from symprune import (
    RIA,
    Recipe,
    Refit,
    Sequential,
    SparseGPT,
    SymmetricRefit,
    Unstructured,
    Wanda,
    models,
    perplexity,
    prune,
)
from symprune.base import paths
from symprune.base.records import provenance
from symprune.methods.refine import ExactSwap
from symprune.pruning.calibrate import gather
from symprune.pruning.cost import GIB
from symprune.pruning.sources import WindowsBeside
from symprune.text import corpora

SIXTY, SWAPS, SCORE = Unstructured(0.6), ExactSwap(max_cycles=25), RIA(alpha=1.0)
ONE_SIDE = [Refit(damping) for damping in (0.001, 0.01, 0.03, 0.1)]
ONE_SIDE += [Refit(0.001, max_iterations=100)]
BOTH = [SymmetricRefit(1.0, a, 0.001, 0.001 * a) for a in (0.1, 0.3, 1.0)]
BOTH += [SymmetricRefit(), SymmetricRefit(0.0, 1.0, 1.0, 0.001)]
RECIPES = [
    Recipe(Wanda(), SIXTY),
    Recipe(SCORE, SIXTY),
    Recipe(SCORE, SIXTY, SWAPS),
    Recipe(SCORE, SIXTY, None, Refit()),
    Recipe(SCORE, SIXTY, SWAPS, Refit()),
    Recipe(SCORE, SIXTY, None, SymmetricRefit()),
    Recipe(SCORE, SIXTY, SWAPS, SymmetricRefit()),
    Recipe(SparseGPT(), SIXTY, None, Sequential()),
]
PAIRS = [  # the first is expected to lose less
    (RECIPES[3], RECIPES[1]),
    (RECIPES[4], RECIPES[2]),
    (RECIPES[4], RECIPES[3]),
    (RECIPES[5], RECIPES[3]),
    (RECIPES[6], RECIPES[4]),
    (RECIPES[4], RECIPES[7]),
]


def measure(args: argparse.Namespace) -> None:
    """Every recipe that the budget allows, into a file named by the device."""
    start, cuda = time.perf_counter(), args.device.startswith("cuda")
    synchronize = torch.cuda.synchronize if cuda else (lambda: None)
    name = torch.cuda.get_device_name() if cuda else provenance()["machine"]
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{name.replace(' ', '_')}.jsonl"
    tokenizer, model = models.load_tokenizer("embedded"), models.load_model("embedded", device=args.device)
    dense = models.copy_weights(model)
    validation = corpora.evaluation_windows("embedded", tokenizer, 512, 64, "validation")
    wikitext = corpora.evaluation_windows("wikitext2", tokenizer, 2048)[: args.windows]
    gradients: dict[int, dict] = {}

    def tell(**row) -> None:
        with file.open("a") as kept:
            kept.write(json.dumps(row) + "\n")

    def calibration(recipe: Recipe, draw: int):
        windows = corpora.calibration_windows("embedded", tokenizer, 32, 512, draw)
        if "gradient_gram" not in recipe.uses:
            return windows
        if draw not in gradients:
            gradients.clear()
            models.restore_weights(model, dense)
            since = time.perf_counter()
            gradients[draw] = gather(model, windows, {"gradient_gram"})
            synchronize()
            tell(what="gradients", draw=f"calibration {draw}", seconds=time.perf_counter() - since)
        return WindowsBeside(windows, gradients[draw])

    def run(what: str, recipe: Recipe, draw: int) -> None:
        if time.perf_counter() - start > args.budget_seconds:
            return
        given = calibration(recipe, draw)
        models.restore_weights(model, dense)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        synchronize()
        since = time.perf_counter()
        report = prune(model, given, recipe, batch_size=args.batch_size)
        synchronize()
        row = {"what": what, "draw": f"calibration {draw}", "recipe": recipe.label}
        row |= {"seconds": time.perf_counter() - since, "sparsity": report.sparsity}
        if updated := [linear.updated for linear in report.linears if linear.updated]:
            shares = {"before": "error_before", "after": "error_after"}
            row |= {name: statistics.fmean(x[of] for x in updated) for name, of in shares.items()}
        if cuda:
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
        row["validation"] = float(perplexity(model, validation, batch_size=args.batch_size))
        if what == "main":
            value = perplexity(model, wikitext, batch_size=args.batch_size)
            row["first8"] = float(perplexity(model, wikitext[:8], batch_size=args.batch_size))
            row |= {"wikitext": float(value), "window_losses": list(value.losses)}
        tell(**row)

    tell(what="machine", device=name, torch=torch.__version__)
    for update in (*ONE_SIDE, *BOTH) if 0 in args.draws else ():
        run("sweep", Recipe(SCORE, SIXTY, SWAPS, update), 0)
    for draw in args.draws:
        for recipe in RECIPES:
            if not args.recipes or recipe.label in args.recipes:
                run("main", recipe, draw)


def tables(file: Path) -> str:
    """Markdown: the choice on validation text, the recipes draw by draw, and paired differences."""
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    swept = {row["recipe"]: row for row in kept if row["what"] == "sweep"}
    by: dict[str, dict[str, dict]] = {}
    for row in kept:
        if row["what"] == "main":
            by.setdefault(row["recipe"], {})[row["draw"].removeprefix("calibration ")] = row
    draws = sorted({draw for rows in by.values() for draw in rows})

    def over(rows: Sequence[dict], name: str, digits: int, unit: float = 1.0) -> str:
        return f"{statistics.fmean(row[name] for row in rows) / unit:.{digits}f}"

    choice = [
        f"| {name} | {row['validation']:.2f} | {row['before']:.4f} | {row['after']:.4f} |"
        for name, row in swept.items()
    ]
    lines = []
    for name, rows in by.items():
        of = list(rows.values())
        each = " | ".join(f"{rows[d]['wikitext']:.1f}" if d in rows else "" for d in draws)
        peak = over(of, "peak_bytes", 2, GIB) if "peak_bytes" in of[0] else ""
        lines.append(f"| {name} | {each} | {over(of, 'first8', 1)} | {over(of, 'seconds', 1)} | {peak} |")
    pairs = [
        f"| {a.label} | {b.label} | {' | '.join(_difference(by, a, b, d) for d in draws)} |"
        for a, b in PAIRS
        if a.label in by and b.label in by
    ]
    head = " | ".join(f"draw {d}" for d in draws)
    right = "---:|"
    columns = right * (len(draws) + 3)
    found = {
        f"| recipe | validation perplexity | objective before | after |\n|---|{right * 3}": choice,
        f"| recipe | {head} | first 8 windows, mean | seconds | peak GiB |\n|---|{columns}": lines,
        f"| recipe | against | {head} |\n|---|---|{right * len(draws)}": pairs,
    }
    return "\n\n".join("\n".join([of, *rows]) for of, rows in found.items() if rows)


def _difference(by: dict, a: Recipe, b: Recipe, draw: str) -> str:
    """Of the mean token loss, and twice its standard error over the windows."""
    if not all(draw in by.get(recipe.label, {}) for recipe in (a, b)):
        return ""
    losses = (by[recipe.label][draw]["window_losses"] for recipe in (a, b))
    differences = [x - y for x, y in zip(*losses, strict=True)]
    error = 2 * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.fmean(differences):+.3f} ± {error:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=paths.ROOT / "results/updates")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--draws", type=int, nargs="+", default=range(5))
    parser.add_argument("--recipes", nargs="+", metavar="LABEL", choices=[r.label for r in RECIPES])
    parser.add_argument("--windows", type=int, help="of WikiText-2, the first so many (default: all 148)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--budget-seconds", type=float, default=600)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    print(tables(given.table)) if given.table else measure(given)
