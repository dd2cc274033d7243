"""A model of a published size, with random weights, pruned on this machine's GPU by each recipe: seconds and
peak memory beside the prediction of `symprune.pruning.cost`, Wanda beside a plain loop as published, and 2:4
beside dense products.

    python benchmarks/gpu_check.py [--out results/gpu_check] [--size 7B] [--windows 128] [--few 32]
    python benchmarks/gpu_check.py --table FILE    # the tables of docs/scaling.md from what was kept

Every part that is finished is written at once. One that would outlast its share of --budget-seconds is cut at
a decoder layer, and says so. `--size tiny --device cpu` rehearses all but the products on a processor.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import semi_structured
import torch
from timed_pruning import (
    SIZES,
    agreement,
    build,
    fill,
    kept_by_layer,
    measured,
    plain_passes,
    pruned,
    published_loop,
    synchronize,
)

from symprune import NM, RIA, DSnoT, Magnitude, R2DSnoT, Recipe, StochRIA, Unstructured, Wanda
from symprune.base.files import write_whole
from symprune.base.records import provenance
from symprune.methods.refine import ExactSwap
from symprune.models.layers import decoder_layers
from symprune.models.load import DTYPES
from symprune.pruning.cost import AUTO, GIB
from symprune.pruning.runner import runs_by_layer

WANDA = Recipe(Wanda(), Unstructured(0.5))
RECIPES = [
    Recipe(Magnitude(), Unstructured(0.5)),
    Recipe(RIA(), Unstructured(0.5)),
    Recipe(StochRIA(), Unstructured(0.5)),
    Recipe(Wanda(), NM(2, 4)),
    Recipe(Wanda(), Unstructured(0.6), DSnoT()),
    Recipe(Wanda(), Unstructured(0.6), R2DSnoT()),
    Recipe(Wanda(), Unstructured(0.5), ExactSwap()),
]
LOOP, PASSES = "wanda, the published loop", "two passes and nothing else"


class Check:
    """What was found so far, in a file that is written anew after each part."""

    def __init__(self, file: Path, about: dict, budget: float, only: Sequence[str] = ("",)):
        """only: words of the parts that are done; the others stay what the file says."""
        kept = json.loads(file.read_text())["parts"] if file.is_file() and list(only) != [""] else {}
        self.file, self.found = file, {**about, "parts": kept}
        self.start, self.budget, self.only = time.perf_counter(), budget, only

    def part(self, name: str, share: float, work: Callable[[float], dict]) -> None:
        """Do `work`, told the moment at which its share of the budget is over, and keep what it returns."""
        if not any(word in name for word in self.only):
            return
        start = time.perf_counter()
        end = min(start + share * self.budget, self.start + self.budget)
        try:
            found = work(end) if end > start else {"left_out": "the budget was spent"}
        except Exception as error:  # what a machine lacks is told, and the other parts go on
            found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        self.found["parts"][name] = found | {"part_seconds": time.perf_counter() - start}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, json.dumps(self.found, indent=1) + "\n")
        print(f"{time.perf_counter() - self.start:6.1f} s  {name}: {json.dumps(found)[:300]}", flush=True)


def ceilings(device: str, dtype: str) -> dict:
    """Operations a second of a large product, and bytes a second of a copy, written and read."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))

    def per_second(work: Callable[[], object], amount: float) -> float:
        for _ in range(3):
            work()
        synchronize()
        start = time.perf_counter()
        for _ in range(10):
            work()
        synchronize()
        return 10 * amount / (time.perf_counter() - start)

    return {
        "operations_per_second": per_second(lambda: a @ b, 2 * n**3),
        "bytes_per_second": per_second(lambda: a.copy_(b), 2 * a.nbytes),
    }


def check(args: argparse.Namespace) -> Check:
    """Every part, in the order of what it would be missed for."""
    on_gpu = args.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "processor"
    about = {
        "device": name,
        "cuda": torch.version.cuda if on_gpu else None,
        **provenance(),
        "size": args.size,
        "dtype": args.dtype,
        "seq_len": args.seq_len,
    }
    file = args.out / f"{re.sub('[^A-Za-z0-9]+', '_', name)}.json"
    kept = Check(file, about, args.budget_seconds, args.only)
    start = time.perf_counter()
    model = build(args.size, args.dtype, args.device)
    vocabulary = SIZES[args.size][-1]
    windows = torch.randint(
        vocabulary, (args.windows, args.seq_len), generator=torch.Generator().manual_seed(0)
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    built = {"parameters": parameters, "seconds": time.perf_counter() - start}
    kept.part("model", 1, lambda end: built | ceilings(args.device, args.dtype))
    masks: dict[str, dict] = {}

    def loop(end: float) -> dict:
        found = measured(model, end, lambda: published_loop(model, windows, 0.5))
        if found["layers"] == len(decoder_layers(model)):
            masks[LOOP] = kept_by_layer(model)
        return {"windows": len(windows), "batch_size": 1} | found

    def recipe(recipe: Recipe, windows: torch.Tensor, batch_size: int | str = AUTO) -> Callable:
        return lambda end: pruned(model, windows, recipe, batch_size, end)

    def wanda(end: float) -> dict:
        found = pruned(model, windows, WANDA, AUTO, end)
        return found | (agreement(masks[LOOP], kept_by_layer(model)) if LOOP in masks else {})

    def by_layer(end: float) -> dict:
        fill(model)
        return {"to_the_bit": runs_by_layer(model, windows[:2])}

    kept.part("runner", 0.1, by_layer)
    measured(
        model, math.inf, lambda: published_loop(model, windows[:2, :16], 0.5)
    )  # warm: libraries, kernels
    kept.part(LOOP, 0.25, loop)
    kept.part(WANDA.label, 0.2, wanda)
    kept.part(PASSES, 0.2, lambda end: measured(model, end, lambda: plain_passes(model, windows, AUTO)))
    kept.part(
        f"{WANDA.label}, of the dense model",
        0.2,
        lambda end: pruned(model, windows, WANDA, AUTO, end, "dense"),
    )
    for other in RECIPES:
        kept.part(other.label, 0.12, recipe(other, windows[: args.few]))
    kept.part(f"{WANDA.label}, a window at a time", 0.15, recipe(WANDA, windows, 1))
    for graph in (False, True) if on_gpu else ():
        for kind, (d_out, d_in, _) in semi_structured.LINEARS.items():

            def rows(end: float, shape: tuple = (d_out, d_in), graph: bool = graph) -> dict:
                return {"rows": list(semi_structured.products(*shape, DTYPES[args.dtype], graph, end))}

            kept.part(f"2:4, {kind}{', replayed' * graph}", 0.08, rows)
    return kept


def tables(found: dict) -> str:
    """Markdown: what was found, for docs/scaling.md."""
    parts = found["parts"]
    layers = SIZES[found["size"]][2]
    lines = [
        "| | windows | at once | layers | s | predicted | peak, GiB | predicted |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, part in parts.items():
        if "seconds" not in part or "layers" not in part:
            continue
        predicted, bytes_predicted = part.get("predicted_seconds"), part.get("predicted_peak")
        numbers = [
            f"{part['windows']}",
            f"{part['batch_size']}",
            f"{part['layers']} of {layers}",
            f"{part['seconds']:.1f}",
            "" if predicted is None else f"{predicted:.1f}",
            f"{part['peak'] / GIB:.1f}" if "peak" in part else "",
            "" if bytes_predicted is None else f"{bytes_predicted / GIB:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    text = ["\n".join(lines)]
    ours, theirs = (parts.get(name, {}).get("seconds_of_all_layers") for name in (WANDA.label, LOOP))
    if ours and theirs:
        text.append(f"Ours takes {ours / theirs:.2f} of the published loop's time.")
    if theirs and "seconds_of_all_layers" in parts.get(PASSES, {}):
        least = parts[PASSES]["seconds_of_all_layers"] / theirs
        text.append(f"Two passes over the layers, without statistics and masks, take {least:.2f} of it.")
    if "alike_last" in parts.get(WANDA.label, {}):
        first, last = (parts[WANDA.label][f"alike_{layer}"] for layer in ("first", "last"))
        text.append(
            f"The two decide {first:.4%} of the first decoder layer's weights alike, {last:.2%} of the last."
        )
    text += [f"{name}: {part['failed']}" for name, part in parts.items() if "failed" in part]
    text += [f"{name}: left out, {part['left_out']}." for name, part in parts.items() if "left_out" in part]
    rows = [row for part in parts.values() for row in part.get("rows", [])]
    return "\n\n".join([*text, *([semi_structured.table(rows)] if rows else [])])


def main() -> None:
    """Run every part, or print the tables of what was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/gpu_check"), help="folder to write into")
    parser.add_argument("--size", choices=SIZES, default="7B")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--windows", type=int, default=128, help="for Wanda and the published loop")
    parser.add_argument("--few", type=int, default=32, help="windows for the other recipes")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--budget-seconds", type=float, default=300)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="parts whose names hold one")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the tables of a file of --out")
    args = parser.parse_args()
    found = json.loads(args.table.read_text()) if args.table else check(args).found
    print(tables(found))


if __name__ == "__main__":
    main()
