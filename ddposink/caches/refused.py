"""On which models a policy cannot be defined, by the configuration alone: said before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddposink.caches.base import Policy
from ddposink.caches.ranked import Ranked

_STATES = ("mamba", "rwkv", "recurrent_gemma", "xlstm", "falcon_mamba")  # no attention in any layer
LATENT = "cannot be defined on this model: it caches latents, not the keys and values of heads"
SLIDING = (
    "on a model with sliding layers of its own: those hold their own window, and tokens chosen in the others "
    "alone are not this policy"
)
_FULL = {"full_attention", "sliding_attention", "attention"}


def on_kept_set(policy: Policy) -> bool:
    """Whether a policy chooses by content, stores fewer bits, or is cut back once: the general stream's."""
    return isinstance(policy, Ranked) or policy.bits is not None or policy.evict.per == "once"


def refusal(policy: Policy, config: Mapping[str, Any]) -> str | None:
    """Why ``policy`` cannot be defined on a model of this configuration, in one sentence; None if it may be.

    What no configuration tells is found when the stream opens.
    """
    if not on_kept_set(policy):
        return None
    config = config.get("text_config") or config
    kinds = set(config.get("layer_types") or ())
    if config.get("kv_lora_rank"):
        return f"'{policy}' {LATENT}"
    if str(config.get("model_type", "")).startswith(_STATES):
        return f"'{policy}' cannot be defined on this model: it is recurrent and has no attention to look at"
    if other := sorted(kinds - _FULL):
        return f"'{policy}' cannot be defined on this model: it has layers of kind {', '.join(other)}"
    if "sliding_attention" in kinds:
        return f"'{policy}' {SLIDING}"
    return None
