"""Tiny random models of several families, built from configs: float32, deterministic, no download."""

import torch
import transformers as tf
from torch import nn

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}

CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**GATED),
    "mistral, sliding window": lambda: tf.MistralConfig(**GATED, sliding_window=5),
    "qwen2": lambda: tf.Qwen2Config(**GATED),
    "qwen2, window in its last layers": lambda: tf.Qwen2Config(
        **GATED, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": lambda: tf.Qwen3Config(**GATED, head_dim=8),
    "gemma": lambda: tf.GemmaConfig(**GATED, head_dim=8),
    "gemma3, local and global layers": lambda: tf.Gemma3TextConfig(
        **GATED, head_dim=8, sliding_window=5, layer_types=LAYER_TYPES
    ),
    "opt": lambda: tf.OPTConfig(**COMMON, ffn_dim=48, word_embed_proj_dim=32),
    "gpt2": lambda: tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**COMMON, intermediate_size=48),
    "phi": lambda: tf.PhiConfig(**COMMON, intermediate_size=48),
}
# Their experts lie in one tensor, so a linear's name is not a module's.
MIXTURES = {
    "mixtral": lambda: tf.MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": lambda: tf.Qwen2MoeConfig(
        **GATED,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    ),
    "qwen3-moe": lambda: tf.Qwen3MoeConfig(
        **GATED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "olmoe": lambda: tf.OlmoeConfig(**GATED, num_experts=4, num_experts_per_tok=2),
}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


def model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> nn.Module:
    """A model with weights large enough that every layer matters."""
    torch.manual_seed(seed)
    config = (CONFIGS | MIXTURES)[family]()
    config.update(changes)
    built = tf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for parameter in built.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=0.2)
    return built.to(dtype)


def windows(n: int = 4, seq_len: int = 12, seed: int = 1) -> torch.Tensor:
    """Random tokens."""
    return torch.randint(3, 96, (n, seq_len), generator=torch.Generator().manual_seed(seed))
