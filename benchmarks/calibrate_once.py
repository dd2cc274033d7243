"""What n recipes cost on one model with one calibration, and what sequential propagation costs over two plain
passes.

    python benchmarks/calibrate_once.py [--model embedded] [--n-calib 4] [--seq-len 512] [--repeats 3]

Everything alternates in one process; medians of ratios within a repeat. Bars: n recipes <= one calibration +
n x 3 elementwise passes over the weights; sequential <= 1.15 x two plain passes over the decoder layers
(scoring and masking taken out).
"""

import argparse
import statistics
import time

from symprune import NM, RIA, Recipe, Unstructured, Wanda
from symprune.base.records import provenance
from symprune.models.layers import copy_weights, named_linears, restore_weights, weight_view
from symprune.models.load import load_model, load_tokenizer
from symprune.pruning.calibrate import gather
from symprune.pruning.prune import prune
from symprune.pruning.runner import LayerRunner
from symprune.text.corpora import calibration_windows


def timed(work) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--n-calib", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    windows = calibration_windows("embedded", tokenizer, args.n_calib, args.seq_len, seed=0)
    pristine, linears = copy_weights(model), named_linears(model)
    recipes = [Recipe(RIA(alpha=i / 8), Unstructured(0.3 + i / 40)) for i in range(16)]
    sequential = Recipe(Wanda(), NM(2, 4))

    def plain(passes: int) -> None:
        runner = LayerRunner(model, windows)
        for index in range(len(runner.layers)):
            for _ in range(passes):
                runner.run(index, keep=False)
            runner.run(index)

    def elementwise() -> None:
        for linear in linears.values():
            weight_view(linear).mul(1.0)

    def many(n: int) -> None:
        found = gather(model, windows)
        for recipe in recipes[:n]:
            prune(model, found, recipe, "dense")
            restore_weights(model, pristine)

    def propagate() -> dict[str, float]:
        return prune(model, windows, sequential).seconds

    rows: dict[str, list[tuple[float, float]]] = {}
    for repeat in range(args.repeats + 1):
        one_pass, two_passes, touch = (
            timed(lambda: gather(model, windows)),
            timed(lambda: plain(1)),
            timed(elementwise),
        )
        measured = {
            f"{n} recipes, one calibration": (timed(lambda n=n: many(n)), one_pass + 3 * n * touch)
            for n in (1, 4, 16)
        }
        stages = propagate()
        restore_weights(model, pristine)
        measured["sequential propagation, calibration and second pass"] = stages["calibrate"], two_passes
        measured["sequential propagation, scoring and masking too"] = sum(stages.values()), two_passes
        for name, pair in measured.items() if repeat else ():  # the first round warms up
            rows.setdefault(name, []).append(pair)
    print(
        f"{args.model}, {args.n_calib} x {args.seq_len} tokens, {args.repeats} repeats,"
        f" {provenance()['machine']}"
    )
    print(
        f"one elementwise pass over the weights: {touch:.3f} s; one calibration: {one_pass:.2f} s; two plain"
        f" passes: {two_passes:.2f} s"
    )
    print(f"{'':<54} {'median s':>9} {'bar s':>7} {'ratio':>6}")
    for name, pairs in rows.items():
        seconds, bar = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:<54} {seconds:>9.2f} {bar:>7.2f} {statistics.median(a / b for a, b in pairs):>6.2f}")


if __name__ == "__main__":
    main()
