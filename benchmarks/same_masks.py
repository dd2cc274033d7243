"""Whether a mask is the same under other vector instructions and thread counts, in float32 and in float64.

Recipes on SmolLM2-135M in the cpu profile's sizes, pruned and evaluated in a process for each setting:

    python benchmarks/same_masks.py [recipe ...]
"""

import json
import os
import subprocess
import sys
import time

SETTINGS = {
    "best, 1 thread": {},
    "best, 2 threads": {"OMP_NUM_THREADS": "2"},
    "avx2, 1 thread": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "default, 1 thread": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
RECIPES = {
    "wanda 60 %": 'Recipe("wanda", Unstructured(0.6))',
    "ria 2:4": 'Recipe("ria", NM(2, 4))',
    "ria 60 % + r2dsnot": 'Recipe("ria", Unstructured(0.6), "r2dsnot")',
    "magnitude 60 % + dsnot": 'Recipe("magnitude", Unstructured(0.6), "dsnot")',
    "ri 70 % per layer": 'Recipe("ri", Unstructured(0.7, "layer"))',
    "ria 60 %, refit": 'Recipe("ria", Unstructured(0.6), update="refit(max_iterations=10)")',
    "ria 60 %, both sides": 'Recipe("ria", Unstructured(0.6), update="symmetric_refit(max_iterations=10)")',
}
CHILD = """
import json, sys, time
from symprune import NM, Recipe, Unstructured, calibrating_in, perplexity, prune
from symprune.base.files import short_sha256
from symprune.models import load_model, load_tokenizer
from symprune.text import calibration_windows, evaluation_windows
tokenizer = load_tokenizer("embedded")
windows = calibration_windows("embedded", tokenizer, 5, 128, seed=0)
evaluation = evaluation_windows("embedded", tokenizer, 128, 12)
for dtype in sys.argv[2:]:
    model = load_model("embedded")
    start = time.process_time()
    with calibrating_in(None if dtype == "float32" else dtype):
        masks = prune(model, windows, eval(sys.argv[1]), keep_masks=True).masks
    seconds = time.process_time() - start
    digest = short_sha256(mask.numpy() for mask in masks.values())
    print(json.dumps([dtype, digest, float(perplexity(model, evaluation)), seconds]))
"""


def main() -> None:
    """A line for each recipe and precision: equal masks or not, the largest difference of perplexities."""
    for name in sys.argv[1:] or RECIPES:
        found: dict[str, list] = {"float32": [], "float64": []}
        start = time.perf_counter()
        for changes in SETTINGS.values():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
            child = [sys.executable, "-c", CHILD, RECIPES[name], *found]
            done = subprocess.run(child, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            for dtype, *rest in map(json.loads, done.stdout.splitlines()):
                found[dtype].append(rest)
        for dtype, runs in found.items():
            digests, perplexities, seconds = zip(*runs, strict=True)
            off = max(perplexities) / min(perplexities) - 1
            print(
                f"{name}, {dtype}: {len(set(digests))} different masks under {len(SETTINGS)} settings,"
                f" perplexities {perplexities[0]:.4f} and up to {off:.3%} off, {seconds[0]:.1f} s of CPU",
                flush=True,
            )
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
