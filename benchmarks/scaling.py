"""What pruning costs on paper for the sizes of published models, from their shapes alone: the tables of
docs/scaling.md.

python benchmarks/scaling.py
"""

import torch

from symprune import SketchSwap
from symprune.pruning.cost import GIB, Cost, Shape

MODELS = {  # hidden size, width of the MLP, decoder layers, heads, key and value heads, vocabulary
    "7B": (4096, 11008, 32, 32, 32, 32000),
    "70B": (8192, 28672, 80, 64, 8, 32000),
    "405B": (16384, 53248, 126, 128, 8, 128256),
}


def shape(size: str) -> Shape:
    """The shape of a Llama of this size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, mlp, layers, heads, kv_heads, vocabulary = MODELS[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
    )
    with torch.device("meta"):
        return Shape.of(LlamaForCausalLM(config))


def table() -> str:
    """Markdown: 128 windows of 2048 tokens, weights and hidden states of 2 bytes, propagation through the
    pruned layers.
    """
    columns = {size: Cost(shape(size), 128, 2048, itemsize=2) for size in MODELS}
    grams = {size: Cost(cost.shape, 128, 2048, itemsize=2, gram=True) for size, cost in columns.items()}
    rank = SketchSwap().rank
    sketches = {size: Cost(cost.shape, 128, 2048, itemsize=2, rank=rank) for size, cost in columns.items()}
    refit = {size: Cost(cost.shape, 128, 2048, itemsize=2, iterations=30) for size, cost in columns.items()}
    both = {
        size: Cost(cost.shape, 128, 2048, itemsize=2, iterations=50, gradients=True)
        for size, cost in columns.items()
    }
    rows = {
        "parameters, billions": [f"{c.shape.parameters / 1e9:.1f}" for c in columns.values()],
        "weights, GiB": [f"{c.weights / GIB:.1f}" for c in columns.values()],
        "one decoder layer, GiB": [f"{c.layer / GIB:.2f}" for c in columns.values()],
        "hidden states, GiB": [f"{c.hidden / GIB:.1f}" for c in columns.values()],
        "scores and masks, GiB": [f"{c.scoring / GIB:.2f}" for c in columns.values()],
        "peak in memory, GiB": [f"{c.in_memory / GIB:.1f}" for c in columns.values()],
        "peak streamed, GiB": [f"{c.streamed(False) / GIB:.1f}" for c in columns.values()],
        "peak streamed, hidden states on disk, GiB": [
            f"{c.streamed(True) / GIB:.1f}" for c in columns.values()
        ],
        "Gram matrices of a decoder layer, GiB": [f"{c.grams / GIB:.1f}" for c in grams.values()],
        f"sketches of {rank} columns of a decoder layer, GiB": [
            f"{c.grams / GIB:.2f}" for c in sketches.values()
        ],
        "operations, 10^15": [f"{c.operations / 1e15:.1f}" for c in columns.values()],
        "operations with Gram matrices, 10^15": [f"{c.operations / 1e15:.1f}" for c in grams.values()],
        f"operations with sketches of {rank} columns, 10^15": [
            f"{c.operations / 1e15:.1f}" for c in sketches.values()
        ],
        "refit being computed, GiB": [f"{c.updating / GIB:.1f}" for c in refit.values()],
        "refit on both sides being computed, GiB": [f"{c.updating / GIB:.1f}" for c in both.values()],
        "Gram matrices of all gradients, GiB": [f"{c.gradient_grams / GIB:.0f}" for c in both.values()],
        "operations of a refit (30 iterations), 10^15": [
            f"{c.update_operations / 1e15:.1f}" for c in refit.values()
        ],
        "operations of a refit on both sides (50 iterations), 10^15": [
            f"{c.update_operations / 1e15:.1f}" for c in both.values()
        ],
    }
    lines = ["| | " + " | ".join(MODELS) + " |", "|---|" + "---:|" * len(MODELS)]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items())])


if __name__ == "__main__":
    print(table())
