"""What streaming costs: wall time against a run in memory, and the peak memory of a checkpoint several times
larger than its budget.

    python benchmarks/streaming.py [--folder DIR] [--layers 24] [--budget 2.5]

Random weights, Llama-like shapes. Bars: wall time <= 1.3 x in memory on a model that fits, the peak under the
budget on one that does not. Peaks are those that the system counts for a process of its own (VmHWM). The
checkpoints are removed at the end.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from symprune.base.records import provenance
from symprune.pruning.cost import GIB

SMALL = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 6,
}
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16}
COMMON = {"vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False}


def write_checkpoint(folder: Path, **shape: int) -> int:
    """A random Llama in bfloat16, shard by shard, without ever holding it; returns its bytes."""
    import transformers
    from safetensors.torch import save_file

    config = transformers.LlamaConfig(**COMMON, **shape, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(config).state_dict()
    files: dict[str, dict[str, torch.Size]] = {}
    for name, tensor in state.items():
        part = name.split(".")[2] if ".layers." in name else "outside"
        files.setdefault(part, {})[name] = tensor.shape
    index, total = {}, 0
    for part, shapes in files.items():
        tensors = {
            n: torch.ones(s) if len(s) == 1 else torch.randn(s) / s[1] ** 0.5 for n, s in shapes.items()
        }
        tensors = {n: tensor.bfloat16() for n, tensor in tensors.items()}
        save_file(tensors, folder / f"model-{part}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(tensors, f"model-{part}.safetensors")
        total += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return total


def work(job: dict) -> dict:
    """One run, in a process of its own."""
    import transformers.models.llama.modeling_llama  # noqa: F401 (its seconds are nobody's)

    from symprune import Recipe, Unstructured, Wanda, prune
    from symprune.models.load import load_model
    from symprune.pruning.stream import StreamedRun, Streaming

    windows = torch.randint(
        3, 32000, (job["n_calib"], job["seq_len"]), generator=torch.Generator().manual_seed(0)
    )
    recipe, planned = Recipe(Wanda(), Unstructured(0.5)), {}
    start = time.perf_counter()
    if job["stream"]:
        how = Streaming(job["dtype"], memory=job["memory"])
        streamed = StreamedRun(job["name"], windows, recipe, how=how)
        with streamed.into(job["out"]):
            pass
        plan = streamed.plan
        planned = {"predicted": plan.memory, "predicted_seconds": plan.seconds, "spill": plan.spill}
    else:
        model = load_model(job["name"], job["dtype"])
        prune(model, windows, recipe)
        model.save_pretrained(job["out"])
    seconds = time.perf_counter() - start
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    return {"seconds": seconds, "peak": peak, **planned}


def run(**job) -> dict:
    """`work` in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, help="where to write the checkpoints (default: the system's temporary folder)"
    )
    parser.add_argument(
        "--layers", type=int, default=24, help="decoder layers of the large checkpoint (default: %(default)s)"
    )
    parser.add_argument(
        "--budget", type=float, default=2.5, help="GiB for the large checkpoint (default: %(default)s)"
    )
    parser.add_argument("--n-calib", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--skip-large", action="store_true")
    parser.add_argument("--skip-small", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(work(json.loads(args.job))))
        return
    sizes = {"n_calib": args.n_calib, "seq_len": args.seq_len}
    print(f"{args.n_calib} x {args.seq_len} tokens, {provenance()['machine']}")
    print(
        f"{'':<34} {'weights GiB':>11} {'s':>7} {'predicted s':>11} {'peak GiB':>9} {'predicted':>9}"
        f" {'budget':>7}"
    )

    def show(what: str, weights: float, found: dict, budget: float | None = None) -> None:
        predicted = found.get("predicted")
        line = (
            f"{what:<34} {weights / GIB:>11.2f} {found['seconds']:>7.1f}"
            f" {found.get('predicted_seconds', 0):>11.1f}"
        )
        print(
            f"{line} {found['peak'] / GIB:>9.2f} {(predicted or 0) / GIB:>9.2f} {budget or 0:>7.2f}",
            flush=True,
        )

    with tempfile.TemporaryDirectory(dir=args.folder) as work_folder:
        folder = Path(work_folder)
        weights = 0 if args.skip_small else 2 * write_checkpoint(folder / "small", **SMALL)
        ratios = []
        for repeat in range(0 if args.skip_small else args.repeats):
            job = {"name": str(folder / "small"), "dtype": "float32", "memory": None, **sizes}
            whole = run(stream=False, out=str(folder / f"whole{repeat}"), **job)
            streamed = run(stream=True, out=str(folder / f"streamed{repeat}"), **job)
            show("in memory", weights, whole)
            show("streamed", weights, streamed)
            ratios.append(streamed["seconds"] / whole["seconds"])
        if ratios:
            print(f"streamed against in memory: {', '.join(f'{ratio:.2f}' for ratio in ratios)} x the time")
        if not args.skip_large:
            weights = 2 * write_checkpoint(folder / "large", **LARGE, num_hidden_layers=args.layers)
            job = {
                "name": str(folder / "large"),
                "dtype": "float32",
                "memory": int(args.budget * GIB),
                **sizes,
            }
            found = run(stream=True, out=str(folder / "large_out"), **job)
            show(
                f"streamed, hidden {'on disk' if found['spill'] else 'in memory'}",
                weights,
                found,
                args.budget,
            )


if __name__ == "__main__":
    main()
