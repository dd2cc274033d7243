"""Seconds, bytes per second and ratio of every score and pattern over the weights of a small language model.

    python benchmarks/scores.py [--model PATH_OR_ID] [--threads N] [--repeats N]

The yardstick is one elementwise pass over the same weights, `|W| * row * column` in place, and a copy.
Repetitions of everything are interleaved and medians reported, so that a busy machine slows all rows of the
table alike. The C library is told to keep freed memory: otherwise whether a result lands on fresh pages,
which cost more than the arithmetic, is luck that differs from row to row. The bar: ratio at most 2.0 for each
deterministic score. GB/s counts the weights read once and the scores written once, as does the copy; reads a
score needs beyond that lower its figure.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from symprune.methods.masks import NM, Unstructured
from symprune.methods.scores import RIA, SCORES, GeneralDiagonal, LpNorm, StochRIA, Symmetric, SymWanda
from symprune.methods.stats import LayerStats

LINEARS = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
BAR = 2.0


def random_weights(layers: int = 30) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 0.05 for _ in range(layers) for shape in LINEARS]


def model_weights(name: str) -> list[Tensor]:
    from symprune.models.layers import named_linears, weight_view
    from symprune.models.load import load_model

    return [
        weight_view(linear).detach().float().contiguous()
        for linear in named_linears(load_model(name)).values()
    ]


def statistics_of(weight: Tensor) -> LayerStats:
    d_out, d_in = weight.shape
    x = torch.rand(d_in) + 0.5
    return LayerStats(x, x, x, x, torch.rand(d_out) + 0.5, n_tokens=1, n_samples=1)


def deterministic() -> dict[str, object]:
    scores = {name: score() for name, score in SCORES.items() if score is not StochRIA}
    extra = [
        SymWanda(balance="unit-mean"),
        Symmetric(squared=True),
        RIA(alpha=1.0),
        GeneralDiagonal(balance="unit-mean"),
    ]
    return scores | {
        repr(score): score for score in [*extra, *(LpNorm(p=p) for p in (0.5, 2.0, 3.0, 4.0, float("inf")))]
    }


def stochastic() -> dict[str, object]:
    return {
        f"stochria {s} {beta}": StochRIA(beta=beta, sampling=s)
        for s in ("independent", "shared", "weighted", "stratified")
        for beta in (0.01, 0.1)
    }


def keep_freed_memory() -> None:
    """glibc only: no mapping of its own for a large block, and no return of free memory to the system."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def measure(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each job; one round runs every job once."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="hub id or local folder (default: random weights of the shapes of a 135M model)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    weights = model_weights(options.model) if options.model else random_weights()
    calibrated = [(weight, statistics_of(weight)) for weight in weights]

    def over_all(work: Callable[[Tensor, LayerStats], object]) -> Callable[[], None]:
        def job() -> None:
            for weight, stats in calibrated:  # one result alive at a time, as in a pruning run
                work(weight, stats)

        return job

    def elementwise(weight: Tensor, stats: LayerStats) -> Tensor:
        return weight.abs().mul_(stats.output_norm[:, None]).mul_(stats.input_norm).clone()

    fixed, sampled = deterministic(), stochastic()
    jobs = {"copy": over_all(lambda w, s: w.clone()), "elementwise pass": over_all(elementwise)}
    jobs |= {name: over_all(score) for name, score in (fixed | sampled).items()}
    seconds = measure(jobs, options.repeats)
    patterns = {
        repr(p): p for p in (Unstructured(0.5, "output"), Unstructured(0.5, "layer"), NM(2, 4), NM(4, 8))
    }
    selection = measure(
        {name: over_all(lambda w, s, p=p: p(w)) for name, p in patterns.items()}, options.repeats
    )

    entries = sum(weight.numel() for weight in weights)
    moved = 2 * sum(weight.numel() * weight.element_size() for weight in weights)
    print(
        f"{len(weights)} linears, {entries / 1e6:.1f}M weights, {options.threads} threads, median of"
        f" {options.repeats}"
    )
    print(f"{'':44s}{'seconds':>9s}{'GB/s':>8s}{'ratio':>8s}")
    for name, value in (seconds | selection).items():
        ratio = value / seconds["elementwise pass"]
        over = "  over the bar" if name in fixed and ratio > BAR else ""
        print(f"{name:44s}{value:9.4f}{moved / value / 1e9:8.2f}{ratio:8.2f}{over}")


if __name__ == "__main__":
    main()
