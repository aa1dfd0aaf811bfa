"""True shapes of well-known architectures, for ``random:NAME``: memory and speed without weights.

Configurations are public facts of the models' cards, written out so that nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

_LLAMA_2 = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {  # no model of this world: to rehearse with
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    },
    "smollm2-135m": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": True,
    },
    "llama-2-7b": _LLAMA_2 | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    "llama-2-13b": _LLAMA_2 | {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    },
    "llama-3-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "rope_theta": 500000.0,
    },
    "mistral-7b": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 32768, "sliding_window": 4096,
    },
    "pythia-6.9b": {
        "model_type": "gpt_neox", "vocab_size": 50432, "hidden_size": 4096, "intermediate_size": 16384,
        "num_hidden_layers": 32, "num_attention_heads": 32, "rotary_pct": 0.25, "max_position_embeddings": 2048,
    },
    "pythia-12b": {
        "model_type": "gpt_neox", "vocab_size": 50688, "hidden_size": 5120, "intermediate_size": 20480,
        "num_hidden_layers": 36, "num_attention_heads": 40, "rotary_pct": 0.25, "max_position_embeddings": 2048,
    },
    "falcon-7b": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32,
        "num_attention_heads": 71, "multi_query": True, "alibi": False, "parallel_attn": True, "bias": False,
        "max_position_embeddings": 2048,
    },
    "mpt-7b": {
        "model_type": "mpt", "vocab_size": 50432, "d_model": 4096, "n_heads": 32, "n_layers": 32,
        "max_seq_len": 2048,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
    },
}  # fmt: skip


def random_model(name: str, dtype: Any, device: str) -> Any:
    """A model of shape ``name`` with seeded random weights, made on ``device`` in ``dtype`` at once.

    The model's own initialisation would take minutes on a CPU and float32 copies that a GPU has no room for.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    shape = dict(SHAPES[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    fill_weights(model, device)
    return model


def fill_weights(model: Any, device: str) -> None:
    """Seeded random weights in place: small normal matrices, gains of one, biases of zero."""
    import torch

    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if label.endswith("bias") else 1.0)
