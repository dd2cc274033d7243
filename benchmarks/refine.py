"""What refinement costs beside scoring and masking, and beside an implementation that sorts every row in
full.

    python benchmarks/refine.py [--layers 30] [--repeats 3]

Weights of the embedded model's shapes, heavy-tailed and random; 60 % removed by |W| * x, then 50 cycles.
Every linear is timed by each method in turn, in one process; the table sums each linear's median. Masks equal
to the baseline's are asserted.
"""

import argparse
import statistics
import time

import torch

from symprune.methods.masks import Unstructured
from symprune.methods.refine.dsnot import DSnoT, R2DSnoT
from symprune.methods.stats import LayerStats

SHAPES = {
    "q": (576, 576),
    "k": (192, 576),
    "v": (192, 576),
    "o": (576, 576),
    "gate": (1536, 576),
    "up": (1536, 576),
    "down": (576, 1536),
}
N_SAMPLES, SEQ_LEN = 128, 2048
PATTERN = Unstructured(0.6)


def random_linear(d_out: int, d_in: int, generator: torch.Generator) -> tuple[torch.Tensor, LayerStats]:
    """Weights of Student's t, channels of log-normal scale with a mean of either sign: a few dominate, as in
    a language model.
    """
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    chi = normal(4, d_out, d_in).square().mean(0).sqrt()
    weight = 0.05 * normal(d_out, d_in) / chi
    scale = normal(d_in).exp()
    mean, within = scale * 0.3 * normal(d_in), scale.square()
    pooled = within * 1.1
    norm = ((pooled + mean.square()) * N_SAMPLES * SEQ_LEN).sqrt()
    return weight, LayerStats(norm, mean, pooled, within, None, N_SAMPLES * SEQ_LEN, N_SAMPLES)


def score_and_mask(weight: torch.Tensor, stats: LayerStats) -> torch.Tensor:
    return PATTERN(weight.abs() * stats.input_norm)


def three_full_sorts(
    weight: torch.Tensor, mask: torch.Tensor, stats: LayerStats, max_cycles: int = 50, threshold: float = 0.1
):
    """DSnoT the straightforward way: each row sorted once to grow and once for each sign to prune, then the
    cycles.
    """
    k = weight * (stats.input_mean * SEQ_LEN)
    error = (k * ~mask).sum(1)
    gain = (weight.abs() * (stats.input_mean.abs() / stats.input_var_within)).masked_fill(mask, 0)
    cost = weight.abs() * stats.input_norm
    by_gain = gain.sort(dim=1, descending=True, stable=True).indices
    n_removed = (~mask).sum(1, keepdim=True)
    is_removed = torch.arange(k.shape[1]) < n_removed
    sign = k.gather(1, by_gain).sign() * is_removed
    lists = []  # for e > 0 and for e < 0: the weights to grow, to prune, and how many there are of both
    for side in (1, -1):
        first = places(sign == side, max_cycles)
        grow = by_gain.gather(1, first)
        can_prune = mask & (k * side < 0)
        prune = cost.masked_fill(~can_prune, torch.inf).sort(dim=1, stable=True).indices[:, :max_cycles]
        lists.append((grow, prune, torch.minimum((sign == side).sum(1), can_prune.sum(1))))
    refined, rows = mask.clone(), torch.arange(len(k))
    pointers = torch.zeros(2, len(k), dtype=torch.long)
    active = torch.ones(len(k), dtype=torch.bool)
    for _ in range(max_cycles):
        active &= error.abs() > threshold
        side = (error <= 0).long()
        t = pointers[side, rows]
        active &= t < torch.stack((lists[0][2], lists[1][2]))[side, rows]
        t = t.clamp(max=max_cycles - 1)
        grown = torch.where(side == 0, lists[0][0][rows, t], lists[1][0][rows, t])
        pruned = torch.where(side == 0, lists[0][1][rows, t], lists[1][1][rows, t])
        refined[rows[active], grown[active]] = True
        refined[rows[active], pruned[active]] = False
        error = torch.where(active, error + (k[rows, pruned] - k[rows, grown]), error)
        pointers[side, rows] += active
    return refined


def places(wanted: torch.Tensor, n: int) -> torch.Tensor:
    """The columns of the first n True of each row, 0 beyond."""
    rank = wanted.cumsum(1) - 1
    columns = torch.arange(wanted.shape[1]).expand_as(rank)
    kept = wanted & (rank < n)
    return rank.new_zeros(len(wanted), n + 1).scatter_(1, torch.where(kept, rank, n), columns)[:, :n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    dsnot, r2dsnot = DSnoT(), R2DSnoT()
    seconds: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    for _ in range(options.layers):
        for shape in SHAPES.values():
            weight, stats = random_linear(*shape, generator)
            mask = score_and_mask(weight, stats)
            methods = {
                "score and mask": lambda w=weight, s=stats: score_and_mask(w, s),
                "dsnot": lambda w=weight, s=stats, m=mask: dsnot(w, m, s),
                "r2dsnot": lambda w=weight, s=stats, m=mask: r2dsnot(w, m, s),
                "dsnot, rows sorted in full": lambda w=weight, s=stats, m=mask: three_full_sorts(w, m, s),
            }
            times: dict[str, list[float]] = {name: [] for name in methods}
            masks = {}
            for _ in range(options.repeats):
                for name, method in methods.items():
                    start = time.perf_counter()
                    masks[name] = method()
                    times[name].append(time.perf_counter() - start)
            assert torch.equal(masks["dsnot"], masks["dsnot, rows sorted in full"]), (
                f"masks differ in {shape}"
            )
            assert not torch.equal(masks["dsnot"], mask)
            for name, values in times.items():
                seconds[name] = seconds.get(name, 0.0) + statistics.median(values)
    n_weights = options.layers * sum(d_out * d_in for d_out, d_in in SHAPES.values())
    print(
        f"{n_weights / 1e6:.1f} M weights, 60 % removed, 50 cycles, {torch.get_num_threads()} thread(s),"
        f" torch {torch.__version__}"
    )
    print(f"{'':28}{'seconds':>9}{'x score and mask':>18}{'x dsnot':>9}")
    for name, value in seconds.items():
        print(
            f"{name:28}{value:9.3f}{value / seconds['score and mask']:18.2f}{value / seconds['dsnot']:9.2f}"
        )


if __name__ == "__main__":
    main()
