"""What a sketch costs: its statistics beside a plain pass, swaps under it beside exact swaps.

    python benchmarks/sketch.py [--rank 64] [--n-calib 2] [--seq-len 512] [--layers 4] [--repeats 3] [--best]

Decoder layers of the embedded model, dense. Everything alternates in one process; medians of ratios within a
repeat; the objective left is a mean over linears. With --best, exact swaps by the best of all pairs, too,
which takes minutes. Bars: statistics at most 1.3 x a pass without statistics, swaps at most 1.3 x those of
`ExactSwap`.
"""

import argparse
import statistics
import time
from functools import partial

from symprune import ExactSwap, SketchSwap, Unstructured, Wanda
from symprune.base.records import provenance
from symprune.methods.refine.exact_swap import objective
from symprune.methods.sketch import use_of
from symprune.models.layers import linears_by_layer, weight_view
from symprune.models.load import load_model, load_tokenizer
from symprune.pruning.calibrate import collecting
from symprune.pruning.runner import LayerRunner
from symprune.text.corpora import calibration_windows


def timed(work) -> float:
    """Processor seconds that a call takes: a busy machine changes them little."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--n-calib", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--best", action="store_true", help="exact swaps by the best of all pairs, too")
    args = parser.parse_args()
    model, tokenizer = load_model("embedded"), load_tokenizer("embedded")
    windows = calibration_windows("embedded", tokenizer, args.n_calib, args.seq_len, seed=0)
    runner, layers = LayerRunner(model, windows), linears_by_layer(model)[: args.layers]
    sketch = use_of(args.rank)

    def gather(uses) -> dict:
        found = {}
        for index, linears in enumerate(layers):
            with collecting(linears, uses) as sums:
                runner.run(index, keep=False)
            found |= sums.finish()
        return found

    def plain() -> None:
        for index in range(len(layers)):
            runner.run(index, keep=False)

    stats = gather({"input_norm", "gram", *sketch})
    weights = {name: weight_view(linear) for linears in layers for name, linear in linears.items()}
    masks = {name: Unstructured(0.6)(Wanda()(weight, stats[name])) for name, weight in weights.items()}

    refined: dict[str, dict] = {}  # masks, by what was done

    def refine(what: str, refiner) -> None:
        refined[what] = {name: refiner(weight, masks[name], stats[name]) for name, weight in weights.items()}

    def left(what: str) -> float:
        """Of ||X (w_hat - w)||^2."""
        after, before = (
            [objective(weight, of[name], stats[name].gram).sum() for name, weight in weights.items()]
            for of in (refined[what], masks)
        )
        return statistics.fmean(float(a / b) for a, b in zip(after, before, strict=True))

    works = {
        "pass without statistics": plain,
        "statistics": lambda: gather({"input_norm"}),
        f"statistics with a sketch of {args.rank}": lambda: gather({"input_norm", *sketch}),
        "statistics with the Gram matrix": lambda: gather({"input_norm", "gram"}),
    }
    refiners = {"exact swaps": ExactSwap(), f"swaps under a sketch of {args.rank}": SketchSwap(args.rank)}
    refiners |= {"exact swaps, best pairs": ExactSwap(pair="best")} if args.best else {}
    works |= {name: partial(refine, name, refiner) for name, refiner in refiners.items()}
    rounds = [{name: timed(work) for name, work in works.items()} for _ in range(args.repeats + 1)][1:]
    print(f"{args.layers} layers, {args.n_calib} x {args.seq_len} tokens, {provenance()['machine']}")
    for name in works:
        base = "exact swaps" if "swaps" in name else "pass without statistics"
        seconds = statistics.median(times[name] for times in rounds)
        ratio = statistics.median(times[name] / times[base] for times in rounds)
        objective_left = f", {left(name):.3f} of the objective" if name in refined else ""
        print(f"{name:<36} {seconds:>8.2f} s {ratio:>6.2f} x {base}{objective_left}")


if __name__ == "__main__":
    main()
