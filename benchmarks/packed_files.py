"""What packing saves of a pruned model's files, and what loading takes then.

    python benchmarks/packed_files.py [--model embedded] [--repeats 3]

Pruned by magnitude: which weights go does not matter to sizes. Loads take turns within a repeat, the first
warms up; medians of the ratios. Bytes are of the weight files.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from symprune import Recipe, prune
from symprune.base.records import provenance
from symprune.models import DTYPES, load_model, locate, quiet_transformers
from symprune.models.packed import pack, unpack

PATTERNS = ("0.5", "0.6", "2:4")


def measure(model: str, dtype: str, pattern: str, repeats: int, work: Path) -> dict[str, float]:
    """Ratios of bytes and of seconds, and the seconds that packing and unpacking take."""
    pruned = load_model(model, dtype)
    prune(pruned, None, Recipe("magnitude", pattern))
    with quiet_transformers():
        pruned.save_pretrained(work / "plain")
    del pruned
    start = time.perf_counter()
    sizes = pack(work / "plain", work / "packed")
    packing = time.perf_counter() - start
    start = time.perf_counter()
    unpack(work / "packed", work / "again")
    unpacking = time.perf_counter() - start
    ratios, plain = [], []
    for _ in range(repeats + 1):
        seconds = {}
        for name in ("plain", "packed"):
            start = time.perf_counter()
            sum(p.sum() for p in load_model(str(work / name), dtype).parameters())  # every page is read
            seconds[name] = time.perf_counter() - start
        ratios.append(seconds["packed"] / seconds["plain"])
        plain.append(seconds["plain"])
    return {
        "MB": sizes.plain / 1e6,
        "packed MB": sizes.packed / 1e6,
        "ratio": sizes.packed / sizes.plain,
        "pack s": packing,
        "unpack s": unpacking,
        "load s": statistics.median(plain[1:]),
        "load ratio": statistics.median(ratios[1:]),
    }


def main() -> None:
    """Print a table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="embedded")
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    locate(args.model)  # converted before anything is timed
    meta = provenance()
    print(f"{args.model}; {meta.get('processor', meta.get('device', ''))}\n")
    columns = ("MB", "packed MB", "ratio", "pack s", "unpack s", "load s", "load ratio")
    print(f"| dtype | pattern | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for dtype in args.dtypes:
        for pattern in PATTERNS:
            with tempfile.TemporaryDirectory() as work:
                found = measure(args.model, dtype, pattern, args.repeats, Path(work))
            print(f"| {dtype} | {pattern} | {' | '.join(f'{found[c]:.2f}' for c in columns)} |", flush=True)


if __name__ == "__main__":
    main()
