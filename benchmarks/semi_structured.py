"""Products with 2:4 weights by torch's `to_sparse_semi_structured`, and with the same ones dense, on a GPU.

    python benchmarks/semi_structured.py

Weights take turns, so that each comes from memory as it would in a model; medians of ten rounds.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear

from symprune import NM

# The linears of a decoder layer of Llama-2-7B: d_out, d_in, and how many of that shape.
LINEARS = {"attention": (4096, 4096, 4), "gate and up": (11008, 4096, 2), "down": (4096, 11008, 1)}
TOKENS = (1, 16, 64, 2048)  # of a product: decoding, and a prompt
BACKENDS = {"cusparselt": False, "cutlass": True}
_CACHE = 2**28  # bytes that no processor's cache holds


@torch.no_grad()
def products(d_out: int, d_in: int, dtype: torch.dtype, graph: bool, end: float) -> Iterator[dict]:
    """Microseconds of a product by backend and tokens.

    graph: replayed as CUDA graphs, without Python's part in each call. end: the moment to stop at.
    """
    n = max(2, math.ceil(_CACHE / (d_out * d_in * dtype.itemsize)))
    dense = [torch.randn(d_out, d_in, device="cuda", dtype=dtype) for _ in range(n)]
    dense = [weight.mul_(NM(2, 4)(weight.abs().float())) for weight in dense]
    inputs = {tokens: torch.randn(tokens, d_in, device="cuda", dtype=dtype) for tokens in TOKENS}
    dense_us = {tokens: microseconds(x, dense, graph) for tokens, x in inputs.items()}
    for backend, cutlass in BACKENDS.items():
        row = {"d_out": d_out, "d_in": d_in, "graph": graph, "backend": backend}
        try:
            torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = cutlass
            sparse = [torch.sparse.to_sparse_semi_structured(weight) for weight in dense]
            for tokens, x in inputs.items():
                if time.perf_counter() > end:
                    yield row | {"tokens": tokens, "left_out": "no time"}
                    continue
                expected = linear(x, dense[0]).float()
                error = (linear(x, sparse[0]).float() - expected).norm() / expected.norm()
                took = {"dense_us": dense_us[tokens], "sparse_us": microseconds(x, sparse, graph)}
                yield row | {"tokens": tokens, "error": error.item(), **took}
        except Exception as error:  # what this GPU or this torch has not
            yield row | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def microseconds(x: Tensor, weights: list[Tensor], graph: bool) -> float:
    """The median of one product with one of the weights, which take turns."""

    def run() -> None:
        for weight in weights:
            linear(x, weight)

    for _ in range(2):
        run()
    torch.cuda.synchronize()
    again: Callable[[], object] = run
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        again = captured.replay
        again()
    taken = []
    for _ in range(10):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        again()
        stop.record()
        stop.synchronize()
        taken.append(1000 * start.elapsed_time(stop) / len(weights))
    return statistics.median(taken)


def table(rows: list[dict]) -> str:
    """Markdown: the seven linears of a decoder layer together, milliseconds and the ratio to dense."""
    counts = {(d_out, d_in): count for d_out, d_in, count in LINEARS.values()}
    lines = [
        "| backend | calls | tokens | dense, ms | 2:4, ms | dense / 2:4 |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for backend in BACKENDS:
        for graph in (False, True):
            for tokens in TOKENS:
                wanted = {"backend": backend, "graph": graph, "tokens": tokens}
                of = [r for r in rows if "sparse_us" in r and all(r[k] == v for k, v in wanted.items())]
                if len(of) < len(counts):
                    continue
                dense, sparse = (
                    sum(r[kind] * counts[r["d_out"], r["d_in"]] for r in of) / 1000
                    for kind in ("dense_us", "sparse_us")
                )
                calls = "replayed" if graph else "by PyTorch"
                lines.append(
                    f"| {backend} | {calls} | {tokens} | {dense:.3f} | {sparse:.3f} | {dense / sparse:.2f} |"
                )
    failed = {f"{r['backend']}: {r['failed']}" for r in rows if "failed" in r}
    return "\n".join([*lines, *(f"\nNot to be had on this machine: {why}" for why in sorted(failed))])


def main() -> None:
    """Print one table."""
    rows: list[dict] = []
    for graph in (False, True):
        for d_out, d_in, _ in LINEARS.values():
            rows += products(d_out, d_in, torch.bfloat16, graph, math.inf)
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
