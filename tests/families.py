"""Every causal family that transformers registers, built tiny from its configuration: what becomes of it."""

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers as tf
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from symprune import Recipe, Unstructured, UserError, Wanda
from symprune.models import quiet_transformers
from symprune.models.causal import require_causal
from symprune.models.layers import is_expert, left_dense_by_layer, linears_by_layer
from symprune.pruning.calibrate import collecting
from symprune.pruning.checks import check_layers
from symprune.pruning.sources import source_of

TABLE = Path(__file__).parents[1] / "docs" / "families.md"
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SECONDS = 20  # for one family
_MOST_WEIGHTS = 30_000_000

# Sizes by the names that configurations give them.
_SMALL = {
    32: "hidden_size d_model n_embd dim emb_dim embedding_size width lru_width word_embed_proj_dim"
    " embed_dim hidden_dim rotary_dim_total attention_hidden_size input_embedding_size dim_model",
    48: "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim dim_ff"
    " d_inner block_ff_dim dense_intermediate_size ffn_intermediate_size",
    24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"
    " moe_shared_expert_intermediate_size shared_intermediate_size",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
    " attention_heads num_experts num_local_experts n_routed_experts moe_num_experts linear_num_value_heads"
    " global_num_attention_heads swa_num_attention_heads",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_top_k moe_k top_k_experts"
    " linear_num_key_heads encoder_layers decoder_layers swa_num_key_value_heads global_num_key_value_heads"
    " num_experts_per_token num_global_key_value_heads",
    1: "n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts pretraining_tp",
    8: "head_dim global_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim"
    " linear_value_head_dim kv_channels state_size mamba_d_state ssm_state_size d_kv dim_head index_head_dim"
    " swa_head_dim swa_v_head_dim",
    16: "kv_lora_rank q_lora_rank hidden_size_per_layer_input mamba_d_head"
    " time_step_rank mamba_dt_rank laurel_rank",
    96: "vocab_size n_vocab vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions n_ctx max_seq_len seq_length context_length",
}
SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
_EVEN_IF_NONE = {
    "head_dim",
    "num_key_value_heads",
    "n_routed_experts",
    "moe_intermediate_size",
    "num_experts_per_tok",
    "n_shared_experts",
    "n_group",
    "topk_group",
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_expand": 2, "mamba_n_groups": 1}
_DENSE_THEN_EXPERTS = {"first_k_dense_replace": 1, "mlp_layer_types": ["dense", "sparse"]}
_ZAMBA = {  # one block of attention in several layers
    **{"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2, "mamba_expand": 2},
    **{"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4, "mamba_d_state": 8},
    **{"use_mamba_kernels": False, "adapter_rank": 4},
}
_SHARED = {  # the last layers take their keys and values from earlier ones
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
# What the sizes above do not say of a family.
OWN: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "codegen": {"rotary_dim": 8},
    "deepseek_v3": _DENSE_THEN_EXPERTS,
    "deepseek_v32": _DENSE_THEN_EXPERTS,
    "glm_moe_dsa": _DENSE_THEN_EXPERTS,
    "dbrx": {
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    },
    "falcon_h1": _MAMBA,
    "gemma3n_text": {**_SHARED, "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": _SHARED,
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1, "moe_router_topk": 1},
    "zamba": {**_ZAMBA, "layers_block_type": ["mamba", "mamba", "hybrid"] * 2, "n_mamba_heads": 2},
    "zamba2": {
        **{**_ZAMBA, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 8, "mamba_headdim": 8},
        **{"num_hidden_layers": 4, "hybrid_layer_ids": [1, 3], "mamba_ngroups": 1, "num_mem_blocks": 1},
    },
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Found:
    """What became of a family: linears found, matrices left dense by reason, and the way taken."""

    way: str
    linears: int = 0
    left_dense: str = ""

    def row(self, family: str) -> str:
        """A line of the table."""
        return f"| {family} | {self.linears or ''} | {self.left_dense} | {self.way} |"


def table(found: dict[str, Found]) -> str:
    """The table of all families."""
    ways = Counter(each.way.split(":")[0] for each in found.values())
    return "\n".join(
        [
            "# Model families",
            "",
            "Every causal family that transformers registers, built tiny from its configuration: the"
            " linears found in its decoder layers, the matrices there that are left dense, and the way"
            " their statistics are gathered, equal to the bit to those of plain forwards unless it says"
            " differs. `tests/families.py` draws this table, `tests/test_families.py` compares it.",
            "",
            "; ".join(f"{way}: {n}" for way, n in ways.most_common()) + ".",
            "",
            "| family | linears | left dense | way taken |",
            "|---|---|---|---|",
            *(each.row(family) for family, each in sorted(found.items())),
            "",
        ]
    )


def drawn() -> str:
    """The table as it is now."""
    return table({family: find(family) for family in FAMILIES})


def find(family: str) -> Found:
    """What becomes of a family."""
    with quiet_transformers(), _at_most(SECONDS):
        try:
            model = build(family)
        except Exception as error:
            return Found(f"not built: {_first_line(error)}")
        linears = dense = None
        try:
            linears = linears_by_layer(model)
            dense = left_dense_by_layer(model)
            check_layers(linears, tiny.windows(), Recipe(Wanda(), Unstructured(0.5)), "dense")
            require_causal(model)
            way, unreached = _way(model, linears)
        except UserError as error:
            return Found(f"refused: {str(error).splitlines()[0]}")
        except Exception:
            return Found("crashes")  # by which error depends on whether types are checked
    reasons = Counter(matrix.reason for layer in dense for matrix in layer.values())
    if unreached:
        reasons["reached by no token"] = unreached
    told = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
    return Found(way, sum(map(len, linears)) - unreached, told)


def build(family: str) -> nn.Module:
    """A tiny model of weights that matter, every layer of it."""
    config = shrunken(family)
    with torch.device("meta"):
        n_weights = sum(p.numel() for p in tf.AutoModelForCausalLM.from_config(config).parameters())
    if n_weights > _MOST_WEIGHTS:
        raise ValueError(f"its smallest configuration has {n_weights} weights")
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2 and parameter.is_floating_point():
            nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        model(input_ids=tiny.windows(1), use_cache=False)
    return model


def shrunken(family: str) -> tf.PretrainedConfig:
    """The family's own configuration with small sizes."""
    return tf.AutoConfig.for_model(family, **_small(tf.AutoConfig.for_model(family)))


def _small(config: tf.PretrainedConfig) -> dict[str, Any]:
    plain = config.to_dict()
    small = {
        name: SIZES[name]
        for name, value in plain.items()
        if name in SIZES and (type(value) is int or (value is None and name in _EVEN_IF_NONE))
    }
    if "kv_lora_rank" in small:  # latent attention: every head has keys of its own
        small["num_key_value_heads"] = small["num_attention_heads"]
    small |= {name: 2 for name in ("bos_token_id", "eos_token_id") if plain.get(name) is not None}
    if plain.get("pad_token_id") is not None:
        small["pad_token_id"] = 0
    small |= {name: value for name, value in {"sliding_window": 5}.items() if plain.get(name)}
    layers = next((name for name in _LAYERS if isinstance(plain.get(name), int)), None)
    if layers:
        kept = _layers_kept(plain.get("layer_types") or plain.get("layers_block_type"), plain[layers])
        small[layers] = len(kept)
        small |= {
            name: [value[i] for i in kept]
            for name, value in plain.items()
            if isinstance(value, list) and len(value) == plain[layers]
        }
    for name in plain:
        if isinstance(plain[name], dict) and isinstance(sub := getattr(config, name), tf.PretrainedConfig):
            small[name] = {**_small(sub), "model_type": sub.model_type}
    if "is_decoder" in plain:  # a masked model must be told to be a decoder
        small["is_decoder"] = True
    return {**small, **OWN.get(config.model_type, {})}


def _layers_kept(kinds: list[str] | None, n_layers: int) -> list[int]:
    """The first of each kind of layer, and at least two."""
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        return list(range(min(n_layers, 2)))
    kept = sorted({kinds.index(kind) for kind in kinds})
    return sorted({*kept, kept[-1] + 1} & set(range(n_layers))) if len(kept) == 1 else kept


@torch.no_grad()
def _way(model: nn.Module, layers: list[dict[str, nn.Module]]) -> tuple[str, int]:
    """The way of the source, "differs" where its statistics are not those of plain forwards; and how many
    linears no token reached though they are no experts.
    """
    recipe, windows = Recipe(Wanda(), Unstructured(0.5)), tiny.windows(2)
    linears = {name: linear for layer in layers for name, linear in layer.items()}
    with collecting(linears, recipe.uses) as sums:
        for window in windows:
            model(input_ids=window[None], use_cache=False)
    plain, source = sums.finish(), source_of(model, windows, recipe, "dense")
    equal = True
    for index, each in enumerate(layers):
        found = source.statistics(index, each)
        source.advance(index)
        equal &= all(
            found[name].n_tokens == plain[name].n_tokens
            and torch.equal(found[name].input_norm, plain[name].input_norm)
            for name in each
        )
    unreached = sum(plain[name].n_tokens == 0 and not is_expert(name) for name in linears)
    return (source.way if equal else "differs"), unreached


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Inside, a family that takes longer is given up."""

    def give_up(*_):
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].replace("|", "/")[:120]
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    TABLE.write_text(drawn(), encoding="utf-8")
