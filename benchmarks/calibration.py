"""What gathering statistics costs: a pass over the decoder layers with statistics against the same pass
without.

    python benchmarks/calibration.py [--model embedded] [--n-calib 8] [--seq-len 512] [--repeats 5]

The two passes alternate in one process; the ratio of their medians is what to quote. The bar is 1.15 for
input statistics.
"""

import argparse
import contextlib
import statistics
import time

from symprune.base.records import provenance
from symprune.models.layers import linears_by_layer
from symprune.models.load import load_model, load_tokenizer
from symprune.pruning.calibrate import collecting
from symprune.pruning.runner import LayerRunner
from symprune.text.corpora import calibration_windows

FIELDS = {
    "plain": None,
    "input statistics": {"input_norm", "input_mean", "input_var", "input_var_within"},
    "input and output statistics": {"input_norm", "output_norm"},
    "Gram matrices": {"gram"},
}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--n-calib", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    windows = calibration_windows("embedded", tokenizer, args.n_calib, args.seq_len, seed=0)
    seconds: dict[str, list[float]] = {name: [] for name in FIELDS}
    for repeat in range(args.repeats + 1):
        for name, uses in FIELDS.items():
            runner = LayerRunner(model, windows)
            start = time.perf_counter()
            for index, linears in enumerate(linears_by_layer(model)):
                with contextlib.nullcontext() if uses is None else collecting(linears, uses) as sums:
                    runner.run(index)
                if sums is not None:
                    sums.finish()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain"])
    print(
        f"{args.model}, {args.n_calib} x {args.seq_len} tokens, {args.repeats} repeats,"
        f" {provenance()['machine']}"
    )
    print(f"{'pass over the decoder layers with':<34} {'median s':>9} {'ratio':>6}")
    for name, values in seconds.items():
        print(f"{name:<34} {statistics.median(values):>9.2f} {statistics.median(values) / plain:>6.2f}")


if __name__ == "__main__":
    main()
