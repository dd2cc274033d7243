"""Tokens weighed by their loss gradient inside the Gram matrix: a mask, swaps and refit with and without it.

    python benchmarks/token_weights.py --out results/token_weights.jsonl [--draws 2] [--n-calib 8]

sum over tokens of g^2 x x^T, g the norm of the loss gradient at the linear's output, beside the plain sum of
x x^T; both of the dense model, the embedded one, at 60 % of each output from RIA with alpha = 1. Perplexity
is of the embedded validation split. Every line of the file is one result, written as it comes.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from symprune import RIA, ExactSwap, Recipe, Refit, Unstructured, models, perplexity, prune
from symprune.base.progress import track
from symprune.base.records import provenance
from symprune.methods.stats import LayerStats
from symprune.models.layers import named_linears, weight_view
from symprune.pruning.calibrate import collecting
from symprune.text import corpora

SWAPS = ExactSwap(max_cycles=25)
WAYS = {"mask": (), "swaps": (SWAPS,), "refit": (None, Refit()), "swaps, refit": (SWAPS, Refit())}


def gather(model, windows) -> tuple[dict[str, LayerStats], dict[str, LayerStats]]:
    """The statistics of every linear, and the same with tokens weighed by their gradients inside G alone."""
    linears = named_linears(model)
    widths = {name: weight_view(linear).shape[1] for name, linear in linears.items()}
    weighed = {name: torch.zeros(width, width) for name, width in widths.items()}

    def receive(name: str, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        x = inputs.flatten(0, -2) * gradient.flatten(0, -2).norm(dim=-1, keepdim=True)
        weighed[name] += x.T @ x

    def observe(name: str, _, given, outputs) -> None:
        outputs.register_hook(partial(receive, name, given[0].detach()))

    hooks = [linear.register_forward_hook(partial(observe, name)) for name, linear in linears.items()]
    model.requires_grad_(False)
    with collecting(linears, {"input_norm", "gram"}) as sums, torch.enable_grad():
        for window in track(windows, "gathering"):
            embeddings = model.get_input_embeddings()(window[None]).detach().requires_grad_()
            model(inputs_embeds=embeddings, labels=window[None], use_cache=False).loss.backward()
    for hook in hooks:
        hook.remove()
    alike = sums.finish()
    return alike, {name: replace(stats, gram=weighed[name]) for name, stats in alike.items()}


def main() -> None:
    """Write a line per mask, update and Gram matrix."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--n-calib", type=int, default=8)
    args = parser.parse_args()
    tokenizer, model = models.load_tokenizer("embedded"), models.load_model("embedded")
    dense = models.copy_weights(model)
    validation = corpora.evaluation_windows("embedded", tokenizer, 256, 18, "validation")

    def tell(**row) -> None:
        with args.out.open("a") as kept:
            kept.write(json.dumps(row) + "\n")
        print(row, flush=True)

    tell(what="machine", **provenance())
    for draw in range(args.draws):
        models.restore_weights(model, dense)
        windows = corpora.calibration_windows("embedded", tokenizer, args.n_calib, 512, draw)
        for tokens, stats in zip(("alike", "weighed"), gather(model, windows), strict=True):
            for way, parts in WAYS.items():
                if (tokens, way) == ("weighed", "mask"):
                    continue  # RIA reads no Gram matrix
                models.restore_weights(model, dense)
                prune(model, stats, Recipe(RIA(alpha=1.0), Unstructured(0.6), *parts), propagate="dense")
                tell(draw=draw, tokens=tokens, way=way, validation=float(perplexity(model, validation)))


if __name__ == "__main__":
    main()
