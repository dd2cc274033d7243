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

from symprune import RIA, ExactSwap, Refit, Unstructured, models, perplexity
from symprune.base.progress import track
from symprune.base.records import provenance
from symprune.methods.stats import LayerStats, StatsAccumulator
from symprune.models.layers import named_linears, weight_view
from symprune.text import corpora

SIXTY, SCORE, SWAPS = Unstructured(0.6), RIA(alpha=1.0), ExactSwap(max_cycles=25)


@torch.enable_grad()
def gather(model, windows) -> dict[str, tuple[LayerStats, torch.Tensor]]:
    """The statistics of every linear, and its Gram matrix with tokens weighed by their gradients."""
    linears = named_linears(model)
    sums = {
        name: StatsAccumulator(*reversed(weight_view(of).shape), gram=True) for name, of in linears.items()
    }
    weighed = {
        name: torch.zeros(weight_view(of).shape[1], weight_view(of).shape[1]) for name, of in linears.items()
    }

    def receive(name: str, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        x = inputs.flatten(0, -2) * gradient.flatten(0, -2).norm(dim=-1, keepdim=True)
        weighed[name] += x.T @ x

    def observe(name: str, _, given, outputs) -> None:
        inputs = given[0].detach()
        sums[name].update(inputs.flatten(0, -2))
        outputs.register_hook(partial(receive, name, inputs))

    hooks = [linear.register_forward_hook(partial(observe, name)) for name, linear in linears.items()]
    model.requires_grad_(False)
    for window in track(windows, "gathering"):
        embeddings = model.get_input_embeddings()(window[None]).detach().requires_grad_()
        model(inputs_embeds=embeddings, labels=window[None], use_cache=False).loss.backward()
    for hook in hooks:
        hook.remove()
    return {name: (sums[name].finish(), weighed[name]) for name in linears}


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
        gathered = gather(model, corpora.calibration_windows("embedded", tokenizer, args.n_calib, 512, draw))
        for tokens in ("alike", "weighed"):
            for way in ("mask", "swaps", "refit", "swaps, refit"):
                if (tokens, way) == ("weighed", "mask"):
                    continue  # RIA reads no Gram matrix
                models.restore_weights(model, dense)
                for name, linear in named_linears(model).items():
                    stats, other = gathered[name]
                    if tokens == "weighed":  # what RIA reads stays
                        stats = replace(stats, gram=other)
                    weight = weight_view(linear)
                    mask = SIXTY(SCORE(weight, stats))
                    mask = SWAPS(weight, mask, stats) if "swaps" in way else mask
                    weight.copy_(Refit()(weight, mask, stats) if "refit" in way else weight * mask)
                tell(draw=draw, tokens=tokens, way=way, validation=float(perplexity(model, validation)))


if __name__ == "__main__":
    with torch.no_grad():
        main()
