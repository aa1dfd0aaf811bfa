"""Which evaluator a model gets, and why: the table of families whose positions we can re-base.

``exact``  rotary or ALiBi family in the table: parallel evaluation and ring decode, same numbers.
``decode`` token by token with the library's own cache, keys left as the model made them: learned
           absolute positions (GPT-2, OPT), unknown families.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ddposink.caches import CacheShape
from ddposink.streaming.positions import Alibi, Positions, Rope

ROTARY = {
    "llama": "Llama, SmolLM",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt_oss": "GPT-OSS",
    "olmo2": "OLMo 2",
    "falcon": "Falcon",
}
ALIBI = {"mpt": "MPT", "bloom": "BLOOM"}
LEARNED = {"gpt2": "GPT-2", "opt": "OPT", "gpt_neo": "GPT-Neo"}
# Frequencies that depend on the length: re-basing is exact only while positions stay below it.
LENGTH_DEPENDENT = {"dynamic", "longrope"}
# Configuration keys that change scores or logits in ways the streaming code does not reproduce.
UNSUPPORTED_KEYS = ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class Support:
    """``path`` is "exact" or "decode"; ``reason`` says why, for people and records."""

    path: str
    reason: str
    positions: Positions | None = None


class UnsupportedPolicyError(ValueError):
    """This policy cannot be measured on this model; the message says why."""


def inspect(model: nn.Module) -> Support:
    """Decide the path for ``model`` from its configuration."""
    config = model.config.get_text_config()
    kind = config.model_type
    odd = [key for key in UNSUPPORTED_KEYS if getattr(config, key, None)]
    if odd:
        return Support("decode", f"{kind} sets {odd[0]}, which parallel evaluation does not reproduce")
    if kind in LEARNED:
        return Support("decode", f"{LEARNED[kind]} has learned absolute positions: keys cannot be re-based")
    if kind == "falcon" and config.alibi:
        return Support("decode", "Falcon-RW rounds its ALiBi biases to bfloat16 at absolute positions")
    if kind in ALIBI:
        return Support("exact", f"{ALIBI[kind]}: ALiBi biases re-based", Alibi(_slopes(model, config)))
    if kind in ROTARY:
        inv_freq = model.base_model.rotary_emb.inv_freq.detach().float()
        return Support("exact", f"{ROTARY[kind]}: rotary positions re-based", Rope(inv_freq))
    return Support("decode", f"model type '{kind}' is not in the table of verified families")


def check_budget(model: nn.Module, budget: int) -> None:
    """Refuse budgets at which length-dependent rotary scaling would change frequencies mid-way."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in LENGTH_DEPENDENT:
        return
    limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    if budget + 1 > limit:
        raise UnsupportedPolicyError(
            f"{rope['rope_type']} rotary scaling changes its frequencies beyond {limit} positions, so keys "
            f"already cached would become inconsistent: choose sinks + window below {limit}"
        )


def own_windows(model: nn.Module) -> list[int | None]:
    """The model's own sliding window per layer, None where attention is full."""
    config = model.config.get_text_config()
    return list(CacheShape.from_config(config.to_dict(), itemsize=4).layer_windows)


def _slopes(model: nn.Module, config: Any) -> torch.Tensor:
    """(H,) float32 slopes, read off the biases that the model itself builds."""
    base = model.base_model
    device = next(model.parameters()).device
    if config.model_type == "mpt":
        pair = base.build_mpt_alibi_tensor(base.num_heads, 2, device=device)  # (H,1,2): -slope, 0
        return -pair[:, 0, 0].float()
    build = sys.modules[type(base).__module__].build_alibi_tensor
    ones = torch.ones(1, 2, device=device)
    return build(ones, config.num_attention_heads, torch.float32)[:, 0, 1]
