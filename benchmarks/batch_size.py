"""How many tokens of one forward pass keep this machine busy: calibration and perplexity by batch size.

    python benchmarks/batch_size.py [--model embedded] [--device cpu] [--windows 8] [--seq-len 128 512]
    [--repeats 3]

Batch sizes take turns within a repeat; medians of the ratios to one window at a time. The bound of "auto" on
a processor comes from here.
"""

import argparse
import statistics
import time

from symprune import perplexity
from symprune.base.records import provenance
from symprune.models.load import load_model, load_tokenizer
from symprune.pruning.calibrate import gather
from symprune.pruning.cost import batch_size_of
from symprune.text.corpora import calibration_windows


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = load_model(args.model, device=args.device), load_tokenizer(args.model)
    sizes = [2**i for i in range(args.windows.bit_length())]
    print(f"{args.model}, {args.windows} windows, {args.repeats} repeats, {provenance()['machine']}")
    print(
        f"{'':<12} {'seq_len':>7} {'auto':>5} {'s of 1':>7}  "
        + " ".join(f"{'x' + str(size):>6}" for size in sizes)
    )
    for seq_len in args.seq_len:
        windows = calibration_windows("embedded", tokenizer, args.windows, seq_len, seed=0)
        for name, work in {"calibration": gather, "perplexity": perplexity}.items():
            rounds: list[list[float]] = []
            for _ in range(args.repeats + 1):
                rounds.append([])
                for size in sizes:
                    start = time.perf_counter()
                    work(model, windows, batch_size=size)
                    rounds[-1].append(time.perf_counter() - start)
            # the first warms up
            ratios = [
                statistics.median(taken[i] / taken[0] for taken in rounds[1:]) for i in range(len(sizes))
            ]
            one = statistics.median(taken[0] for taken in rounds[1:])
            auto = batch_size_of("auto", model, windows, logits=work is perplexity)
            print(
                f"{name:<12} {seq_len:>7} {auto:>5} {one:>7.2f}  "
                + " ".join(f"{ratio:>6.2f}" for ratio in ratios),
                flush=True,
            )


if __name__ == "__main__":
    main()
