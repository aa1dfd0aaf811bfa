"""Small random models, one per supported family, with weights large enough for sharp attention."""

from __future__ import annotations

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 131
LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ROPE = {"rope_theta": 10000.0}


def _scaled(**scaling: object) -> LlamaConfig:
    return LlamaConfig(**LLAMA_LIKE, rope_parameters=ROPE | scaling)


def _falcon(**kwargs: object) -> FalconForCausalLM:
    return FalconForCausalLM(
        FalconConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCAB,
            initializer_range=0.2, alibi=False, **kwargs,
        )
    )  # fmt: skip


FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)),
    "llama-linear": lambda: LlamaForCausalLM(_scaled(rope_type="linear", factor=4.0)),
    "llama3": lambda: LlamaForCausalLM(
        _scaled(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=128)
    ),
    "llama-yarn": lambda: LlamaForCausalLM(
        _scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)
    ),
    "llama-dynamic": lambda: LlamaForCausalLM(_scaled(rope_type="dynamic", factor=4.0)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**LLAMA_LIKE, sliding_window=None)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**LLAMA_LIKE, sliding_window=20)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**LLAMA_LIKE, head_dim=16)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                      vocab_size=VOCAB, initializer_range=0.2)
    ),
    "falcon-7b-like": lambda: _falcon(multi_query=True),
    "falcon-40b-like": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "mpt": lambda: MptForCausalLM(
        MptConfig(d_model=64, n_heads=4, n_layers=3, vocab_size=VOCAB, max_seq_len=2048, initializer_range=0.2)
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(hidden_size=64, n_head=4, n_layer=3, vocab_size=VOCAB, initializer_range=0.2)
    ),
    "gpt-oss": lambda: GptOssForCausalLM(
        GptOssConfig(hidden_size=64, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=16, vocab_size=VOCAB, num_local_experts=4,
                     num_experts_per_tok=2, sliding_window=20, initializer_range=0.2,
                     max_position_embeddings=512, pad_token_id=None,
                     rope_parameters=ROPE | {"rope_type": "yarn", "factor": 4.0, "truncate": False,
                                             "original_max_position_embeddings": 128})
    ),
}  # fmt: skip

LEARNED = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=64)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB,
                  word_embed_proj_dim=64, max_position_embeddings=64, pad_token_id=1)
    ),
}  # fmt: skip


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """A deterministic model of that family in eval mode, fp32, one thread's worth of work."""
    torch.manual_seed(seed)
    model = (FAMILIES | LEARNED)[name]().eval()
    for module in model.modules():
        if hasattr(module, "sinks") and isinstance(module.sinks, torch.nn.Parameter):
            torch.nn.init.normal_(module.sinks)
        if type(module).__name__ == "GptOssExperts":
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    return model
