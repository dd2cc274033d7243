"""What refinement costs beside scoring and masking, and what the window of its engine gains.

    python benchmarks/refine.py [--repeats 5] [--threads 1 2]

Linears of a decoder layer of the embedded model with their real weights and statistics, and a random one of
LLaMA's width; 60 % removed by |W| * x, then 50 cycles. Every linear is timed by each method in turn, in one
process; what is printed are medians. "in full" sorts every row in full, without a window; that the masks are
the same is asserted.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from symprune.methods.masks import Unstructured
from symprune.methods.refine.dsnot import Criteria, DSnoT, R2DSnoT
from symprune.methods.refine.engine import refine
from symprune.methods.stats import LayerStats, StatsAccumulator
from symprune.models import decoder_layers, load_model, load_tokenizer, prunable_linears, weight_view
from symprune.text import calibration_windows

N_SAMPLES, SEQ_LEN, WIDTH = 8, 512, 4096
PATTERN = Unstructured(0.6)
Linear = tuple[torch.Tensor, LayerStats]


def embedded_linears() -> Iterator[tuple[str, Linear]]:
    """Linears of different shapes of one decoder layer, with the statistics of their inputs."""
    model = load_model("embedded")
    windows = calibration_windows("embedded", load_tokenizer("embedded"), N_SAMPLES, SEQ_LEN, seed=0)
    layers = decoder_layers(model)
    linears = prunable_linears(layers[len(layers) // 2])
    by_shape = {linear.weight.shape: name for name, linear in linears.items()}
    for name in by_shape.values():
        linear = linears[name]
        weight = weight_view(linear)
        sums = StatsAccumulator(weight.shape[1], weight.shape[0])
        hook = linear.register_forward_hook(lambda _, inputs, __, sums=sums: sums.update(inputs[0]))
        with torch.no_grad():
            model(windows)
        hook.remove()
        yield name, (weight, sums.finish())


def random_linear() -> Linear:
    """Weights of Student's t, channels of log-normal scale with a mean of either sign: a few dominate, as in
    a language model.
    """
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weight = 0.05 * normal(WIDTH, WIDTH) / normal(4, WIDTH, WIDTH).square().mean(0).sqrt()
    scale = normal(WIDTH).exp()
    mean, within = scale * 0.3 * normal(WIDTH), scale.square()
    pooled, tokens = within * 1.1, N_SAMPLES * SEQ_LEN
    norm = ((pooled + mean.square()) * tokens).sqrt()
    return weight, LayerStats(norm, mean, pooled, within, None, tokens, N_SAMPLES)


def methods(weight: torch.Tensor, stats: LayerStats) -> dict[str, Callable[[], torch.Tensor]]:
    def score_and_mask() -> torch.Tensor:
        return PATTERN(weight.abs() * stats.input_norm)

    def criteria() -> Criteria:
        return Criteria.of(r2dsnot, weight, mask, stats)

    mask, r2dsnot = score_and_mask(), R2DSnoT()
    return {
        "score and mask": score_and_mask,
        "dsnot": lambda: DSnoT()(weight, mask, stats),
        "r2dsnot": lambda: r2dsnot(weight, mask, stats),
        "r2dsnot, in full": lambda: refine(criteria(), mask, r2dsnot.limits, window=False).mask,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print(f"milliseconds, 60 % removed, 50 cycles, torch {torch.__version__}")
    linears = [*embedded_linears(), ("random", random_linear())]
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, (weight, stats) in linears:
            times: dict[str, list[float]] = {}
            masks = {}
            for _ in range(options.repeats):
                for method, call in methods(weight, stats).items():
                    start = time.perf_counter()
                    masks[method] = call()
                    times.setdefault(method, []).append(time.perf_counter() - start)
            assert torch.equal(masks["r2dsnot"], masks["r2dsnot, in full"]), f"masks differ in {name}"
            assert not torch.equal(masks["r2dsnot"], masks["score and mask"])
            median = {method: 1e3 * statistics.median(values) for method, values in times.items()}
            gain = median["r2dsnot, in full"] / median["r2dsnot"]
            shape = " x ".join(map(str, weight.shape))
            row = "  ".join(f"{method} {value:.1f}" for method, value in median.items())
            print(f"{threads} thread(s), {name} {shape}: {row}, the window gains {gain:.1f} x", flush=True)


if __name__ == "__main__":
    main()
