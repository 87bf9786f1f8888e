"""Tiny random models of many architectures, by the names of transformers' configurations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING

from w2sr.policy import Policy, new_policy

VOCAB = 61
WINDOW = 8
"""Tokens that a sliding-window layer reads: fewer than the segments of the tests have."""

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128, "attn_pdrop": 0.0}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HALF = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
HEAD = {"head_dim": 8}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    },
    "original_max_position_embeddings": 24,
}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "max_position_embeddings": 24}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}

RIGHT: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama yarn": {"rope_parameters": YARN},
    "qwen2": {},
    "qwen2 windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 24},
    "qwen3": HEAD,
    "qwen3_moe": {**HEAD, **MOE},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4},
    "gemma": HEAD,
    "gemma2": {**HEAD, "sliding_window": WINDOW, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**HEAD, **HALF},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "phi3 longrope": LONGROPE,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": {},
    "gpt_oss": {**HEAD, **HALF, "num_local_experts": 4},
    "opt": OPT,
    "biogpt": {},
    "starcoder2": {},
    "olmo2": {},
    "olmo3": HALF,
    "cohere": {"logit_scale": 0.5},
    "cohere2": {**HALF, "logit_scale": 0.5},
    "smollm3": {},
    "glm4": HEAD,
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.3},
    "granitemoe": {"logits_scaling": 8.0, "num_local_experts": 4},
    "exaone4": HALF,
    "nanochat": {},
    "deepseek_v3": {
        **LATENT, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip

LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
TWO_KINDS = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
DECODER = {
    "vocab_size": VOCAB, "d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48, "decoder_attention_heads": 4,
    "encoder_layers": 1, "encoder_ffn_dim": 48, "encoder_attention_heads": 4, "max_position_embeddings": 128,
    "is_decoder": True, "is_encoder_decoder": False, "init_std": 0.2,
}  # fmt: skip
BLOOM = {"n_head": 4, "n_layer": 2}
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": VOCAB, "max_seq_len": 128}
NEO = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]}
XGLM = {"vocab_size": VOCAB, "d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48, "init_std": 0.2}
NEMOTRON = {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8}
CHUNKS = {"attention_chunk_size": WINDOW, "layer_types": ["chunked_attention", "full_attention"]}
PROPHET = {
    "vocab_size": VOCAB, "hidden_size": 32, "decoder_ffn_dim": 48, "num_encoder_layers": 1, "num_decoder_layers": 2,
    "num_decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "is_decoder": True, "is_encoder_decoder": False, "add_cross_attention": False, "init_std": 0.2,
}  # fmt: skip

PACKED = "packed log-probabilities differ from its own by"
OUTSIDE = "attention classes of their own, outside of transformers' AttentionInterface"
SHORT = 12
"""Positions of a model whose frequencies depend on the length beyond: fewer than a segment of the probe has."""
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5_text": (
        rf"\(layers: full_attention, linear_attention\): {PACKED} 0\.\d+ nats",
        {**HEAD, **LINEAR, **TWO_KINDS},
    ),
    "qwen3_next": (PACKED, {**HEAD, **LINEAR, **TWO_KINDS, **MOE, "shared_expert_intermediate_size": 24}),
    "nemotron_h": (PACKED, {**NEMOTRON, "hybrid_override_pattern": "M*"}),
    "bamba": (PACKED, {**MAMBA2, "attn_layer_indices": [1]}),
    "granitemoehybrid": (PACKED, {**MAMBA2, "layer_types": ["mamba", "attention"], "num_local_experts": 4}),
    "olmo_hybrid": (PACKED, {**LINEAR, **TWO_KINDS, "linear_num_key_heads": 4}),
    "jamba": (PACKED, {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False}),
    "minimax": (PACKED, {**HEAD, **TWO_KINDS, "block_size": 8, "num_local_experts": 2}),
    "mamba": (PACKED, {"state_size": 8}),
    "mamba2": (PACKED, {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "rwkv": (PACKED, {"attention_hidden_size": 32, "context_length": 128}),
    "lfm2": (PACKED, {"layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": (PACKED, {**HEAD, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": WINDOW}),
    "bloom": (PACKED, BLOOM),
    "xglm": ("XGLMForCausalLM", XGLM),
    "openai-gpt": (f"{PACKED}|outside of transformers' AttentionInterface", GPT),
    "prophetnet": (PACKED, PROPHET),
    "bart": (PACKED, DECODER),
    "diffllama": ("logits of generated tokens differ from its own by", {}),
    "hyperclovax": (PACKED, {"logits_scaling": 0.5}),
    "llama4_text": (f"a mask that reaches back {WINDOW} tokens", {**HEAD, **CHUNKS}),
    "doge": ("DogeForCausalLM", {}),
    "stablelm": ("StableLmAttention was given no layout", {}),
    "falcon": (OUTSIDE, {**COMMON, "multi_query": True}),
    "gptj": (OUTSIDE, {**GPT, "rotary_dim": 4}),
    "gpt_neo": (OUTSIDE, NEO),
    "mpt": ("MptForCausalLM", MPT),
    "llama dynamic": (f"positions depend on the length beyond {SHORT}", {**DYNAMIC, "max_position_embeddings": SHORT}),
}


def tiny(name: str, changes: dict[str, Any]) -> Policy:
    """A random model of an architecture (the first word of `name`), its biases and sinks too."""
    torch.manual_seed(3)
    own = {} if "vocab_size" in changes else COMMON
    policy = new_policy(CONFIG_MAPPING[name.split()[0]](**{**own, **changes}))
    with torch.no_grad():
        for parameter_name, parameter in policy.named_parameters():
            if parameter_name.endswith(("bias", "sinks")):
                parameter.normal_()
    return policy
