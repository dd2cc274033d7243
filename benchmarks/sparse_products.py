"""Whether zeros make a product faster on this processor: a pruned weight dense, as CSR, and packed.

    python benchmarks/sparse_products.py [--sparsity 0.5 0.9 0.99] [--tokens 1 64 512] [--repeats 5]

Linears of SmolLM2-135M, float32. packed: the values that are kept and their places, unpacked before each
product. fewer rows: the dense product with as many weights as are left, which is what could be saved at best.
Ways take turns within a repeat; medians of the ratios to dense.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from symprune import NM, Unstructured
from symprune.base.records import provenance

SHAPES = ((576, 576), (1536, 576), (576, 1536))


def ways(weight: Tensor, mask: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Products with the weight that the mask leaves, by how it is held."""
    pruned = weight * mask
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR is in beta, torch says
        csr = pruned.to_sparse_csr()
    values, unpacked = pruned[mask], torch.zeros_like(weight)
    fewer = weight[: max(1, round(len(weight) * mask.float().mean().item()))].clone()
    return {
        "dense": lambda x: x @ pruned.t(),
        "CSR": lambda x: (csr @ x.t()).t(),
        "packed": lambda x: x @ unpacked.masked_scatter_(mask, values).t(),
        "fewer rows": lambda x: x @ fewer.t(),
    }


def ratios(sparsity: float | None, tokens: int, repeats: int, at_least: float = 0.02) -> dict[str, float]:
    """Seconds by way, relative to dense, for the linears together; sparsity: None for 2:4."""
    generator = torch.Generator().manual_seed(0)
    pattern = NM(2, 4) if sparsity is None else Unstructured(sparsity)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    made = [ways(weight, pattern(weight.abs())) for weight in weights]
    inputs = [torch.randn(tokens, weight.shape[1], generator=generator) for weight in weights]
    seconds: dict[str, list[float]] = {name: [] for name in made[0]}
    for _ in range(repeats + 1):  # the first warms up
        for name, taken in seconds.items():
            n, start = 0, time.perf_counter()
            while n < 3 or time.perf_counter() - start < at_least:
                for one, x in zip(made, inputs, strict=True):
                    one[name](x)
                n += 1
            taken.append((time.perf_counter() - start) / n)
    return {
        name: statistics.median(t / d for t, d in zip(taken[1:], seconds["dense"][1:], strict=True))
        for name, taken in seconds.items()
    }


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.9, 0.99])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads of {provenance()['machine']}, torch {torch.__version__}\n")
    names = ["CSR", "packed", "fewer rows"]
    print(f"| removed | tokens | {' | '.join(names)} |\n|---|---:|{'---:|' * len(names)}")
    for sparsity in [*args.sparsity, None]:
        for tokens in args.tokens:
            found = ratios(sparsity, tokens, args.repeats)
            removed = "2:4" if sparsity is None else f"{sparsity:.0%}"
            print(f"| {removed} | {tokens} | {' | '.join(f'{found[n]:.2f}' for n in names)} |", flush=True)


if __name__ == "__main__":
    main()
