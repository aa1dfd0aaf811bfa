"""A tiny random model of every causal architecture that the model library registers.

The library's own default configuration is taken and every size in it made small by its name; overrides are
few and only where that does not work. Weights are large, so that attention is sharp and a key at a wrong
place shows in the numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 272
LAYERS = 4
OWN_WINDOW = 22  # tokens that a layer with a window of its own sees: more than sink 4+20 keeps recent, less than it keeps
LARGEST = 3_000_000  # parameters
SPREAD = 0.15  # of the weights

_BY_VALUE = [
    (
        64,
        """hidden_size n_embd d_model emb_dim embedding_dim word_embed_proj_dim embedding_size
        input_embedding_size lru_width output_embedding_size dim_model_base
        backbone_hidden_size""",
    ),
    (
        96,
        """intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dff dim_ff d_inner
        feed_forward_size intermediate_size_mlp dense_intermediate_size mamba_d_ssm n_inner""",
    ),
    (
        32,
        """moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size
        shared_intermediate_size shared_experts_intermediate_size moe_shared_expert_intermediate_size
        pronunciation_embed_dim shape_embed_dim prompt_mid_dim router_hidden_size ple_embed_dim
        hidden_size_per_layer_input rel_extent moe_latent_size""",
    ),
    (24, "q_lora_rank qk_head_dim"),
    (
        16,
        """head_dim d_head kv_lora_rank qk_nope_head_dim v_head_dim kv_channels dim_head linear_key_head_dim
        linear_value_head_dim linear_head_dim swa_head_dim attention_head_size mamba_d_state state_size
        ssm_state_size mamba_d_head mamba_headdim mamba_head_dim index_head_dim mamba_dt_rank time_step_rank
        laurel_rank hc_lowrank o_lora_rank gated_norm_rank adapter_rank chunk_size mamba_chunk_size
        attention_head_dim global_head_dim""",
    ),
    (8, "qk_rope_head_dim rotary_dim d_rel"),
    (
        4,
        """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads linear_num_heads
        swa_num_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts index_n_heads
        linear_num_value_heads zero_expert_num""",
    ),
    (
        2,
        """num_key_value_heads num_kv_heads num_query_groups swa_num_key_value_heads num_experts_per_tok
        num_experts_per_token moe_k moe_topk linear_num_key_heads top_k_experts num_global_key_value_heads
        encoder_layers num_encoder_layers n_groups mamba_n_groups n_shared_experts_ num_layers_per_stack
        n_mamba_heads o_groups heads_per_ngram num_blocks_""",
    ),
    (1, "n_group topk_group num_expert_group"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_blocks"),
    (2048, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length"),
    (
        VOCABULARY,
        """vocab_size decoder_vocab_size vocab_size_per_layer_input pronunciation_vocab_size
        shape_vocab_size encoder_hash_byte_group_vocab unpadded_vocab_size""",
    ),
    (OWN_WINDOW, "sliding_window sliding_window_size attention_window_size window_size local_attention"),
]
SMALL = {name: value for value, names in _BY_VALUE for name in names.split()}
ALSO_UNSET = {"head_dim", "num_key_value_heads", "n_routed_experts", "num_experts_per_tok"}
NO_WINDOW = dict.fromkeys(("moshi", "moshi_depth", "mimi"), 4096)  # where None is no answer
TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
LAYER_LISTS = ("layer_types", "mlp_layer_types", "indexer_types", "layers_block_type")

# What the generic way does not get right.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": dict(mamba_n_heads=8, attn_layer_indices=[1, 3]),
    "granitemoehybrid": dict(mamba_n_heads=8, layer_types=["mamba", "attention"] * 2),
    "falcon_h1": dict(mamba_n_heads=8, mamba_d_ssm=128, mamba_d_head=16),
    "mamba2": dict(num_heads=8),
    "cohere_compass_text": dict(
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("full_attention", "sliding_attention")
        }
    ),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4), ffn_config=dict(ffn_hidden_size=32)
    ),
    "cohere": dict(logit_scale=1.0),
    "cohere2": dict(logit_scale=1.0),
    "cohere2_moe": dict(logit_scale=1.0),
    "inkling_text": dict(layer_types=["hybrid"] * 4, logits_mup_width_multiplier=1.0),
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "zamba2": dict(mamba_ngroups=1, n_mamba_heads=8),
    "dots3_note_text": dict(
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        swa_q_lora_rank=24,
        swa_kv_lora_rank=16,
        swa_head_dim=24,
        swa_qk_nope_head_dim=16,
        swa_v_head_dim=16,
    ),
    "gemma4_text": dict(global_head_dim=32),
    "gemma4_unified_text": dict(global_head_dim=32),
    "dots1": dict(n_shared_experts=1),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "reformer": dict(is_decoder=True, attn_layers=["local", "local"], axial_pos_embds=False),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "gemma3n_text": dict(
        num_kv_shared_layers=2, intermediate_size=[96] * 4, activation_sparsity_pattern=[0.0] * 4
    ),
    "inkling2_text": dict(layer_types=["hybrid"] * 4),
    "qwen4_exp_text": dict(
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=64,
        indexer_compress_ratio=4,
    ),
    "xmod": dict(default_language="en_XX"),
    "blt": {},
}


class TooLargeError(Exception):
    """Even the smallest model of that kind has too many parameters to be tried."""


def architectures() -> dict[str, str]:
    """Model type to class name of every causal language model that the library registers."""
    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def has_own_windows(kind: str) -> bool:
    """Whether models of that kind can have layers that see only a window."""
    try:
        return tiny_config(kind).to_dict() != tiny_config(kind, own_windows=True).to_dict()
    except Exception:  # a configuration that cannot be made tiny is tried once, and its error is in the table
        return False


def tiny_config(kind: str, own_windows: bool = False) -> PreTrainedConfig:
    """The configuration of a tiny model of that kind, with or without sliding windows of its own."""
    registered = CONFIG_MAPPING[kind]
    expected = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]).config_class
    config_class = registered if expected is None or issubclass(registered, expected) else expected
    if registered.__name__ in ("InternLM3Config", "IQuestCoderConfig"):
        config_class = registered
    return _tiny(config_class, OVERRIDES.get(config_class.model_type) or OVERRIDES.get(kind, {}), own_windows)


def _tiny(
    config_class: type[PreTrainedConfig], override: dict[str, Any], own_windows: bool
) -> PreTrainedConfig:
    default = config_class()
    small = _shrunk(default)
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            nested = OVERRIDES.get(value.model_type, {}) | override.get(name, {})
            small[name] = _tiny(type(value), nested, own_windows)
    small |= _windows(default, own_windows) | _layer_lists(default, own_windows)
    return config_class(**small | override)


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    small = {}
    for name, value in vars(config).items():
        if name not in SMALL or isinstance(value, bool):
            continue
        if (isinstance(value, int) and value) or (value is None and name in ALSO_UNSET):
            small[name] = min(SMALL[name], value or SMALL[name])
    if "qk_rope_head_dim" in small and vars(config).get("head_dim") == config.qk_rope_head_dim:
        small["head_dim"] = small["qk_rope_head_dim"]
    if "kv_lora_rank" in vars(config) and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small | {name: value for name, value in TOKENS.items() if hasattr(config, name)}


def tiny_model(kind: str, own_windows: bool = False) -> nn.Module:
    """A deterministic model of that kind in eval mode, with sharp attention."""
    config = tiny_config(kind, own_windows)
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > LARGEST:
        raise TooLargeError(f"{size / 1e6:.1f} million parameters at the smallest")
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, SPREAD, generator=generator)
            elif "sink" in name or name.endswith("temp"):  # of logits, in place of defaults that do nothing
                weight.normal_(0, 1.0, generator=generator)
            else:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    model.tie_weights()
    return model


def _windows(default: PreTrainedConfig, own_windows: bool) -> dict[str, Any]:
    """Whatever says that, and how far, layers look back by themselves."""
    found = vars(default)
    if not own_windows:  # layer types, where there are any, say so too
        return (
            {"sliding_window": NO_WINDOW.get(default.model_type)}
            if "sliding_window" in found and "layer_types" not in found
            else {}
        )
    sizes = {n: OWN_WINDOW for n in ("sliding_window", "attention_chunk_size") if n in found}
    return sizes | {name: True for name in ("use_sliding_window",) if name in found}


def _layer_lists(default: PreTrainedConfig, own_windows: bool) -> dict[str, Any]:
    """Every kind of layer that the default has, in turn."""
    lists = {}
    for name in LAYER_LISTS:
        kinds = list(dict.fromkeys(vars(default).get(name) or ()))
        if own_windows and kinds == ["full_attention"] and "sliding_window" in vars(default):
            kinds = ["sliding_attention", "full_attention"]
        if not own_windows:
            kinds = list(dict.fromkeys(kind.replace("sliding", "full") for kind in kinds))
        if kinds:
            lists[name] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    return lists
