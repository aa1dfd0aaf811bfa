"""What all workloads that take a cache policy say of it, and read of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from bench.version import source_hash
from bench.workload import Scalar, Skip
from ddposink import plugins
from ddposink.caches import CacheShape, Policy, in_tokens
from ddposink.errors import Unavailable
from ddposink.models.language import ModelRef

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
HELP = (
    "cache policy: 'dense', 'window 1024', 'sink 4+1020', 'recompute 512', 'quantized 4', 'static 4096', "
    "'offloaded', or one that chooses by content: h2o, tova, snapkv, pyramidkv, adakv, knorm, keydiff, "
    "expected-attention, lagkv, random, each with a budget of tokens ('h2o 512'), bytes ('h2o 11MiB') or a "
    "share ('h2o 50% evict=once:2048'); options positions=cache|absolute|library, "
    "evict=token|chunk:N|once:N|turn|after-turn, bits=2|4|8|fp8, sinks=N, recent=N and the policy's own"
)


# Of configurations: latents instead of keys and values, values of another size, layers that share or differ.
UNEVEN = "kv_lora_rank v_head_dim global_head_dim num_global_key_value_heads num_kv_shared_layers".split()


def bytes_become_tokens(data: Any) -> Any:
    """A cell's raw parameters with a budget in bytes written in the tokens that it buys of this model.

    A label says what runs. Raises ValueError if the model's configuration is not here, or nothing fits.
    """
    if not isinstance(data, dict) or not {"model", "policy"} <= data.keys():
        return data
    text = str(data["policy"])
    if not re.search(r"\d[kKMG]?i?B\b", text):
        return data
    config = ModelRef.parse(str(data["model"])).config_dict()
    if config is None:
        raise ValueError(
            f"'{text}': a budget in bytes needs the model's configuration, which is not here; give tokens"
        )
    itemsize = ITEMSIZE.get(str(data.get("dtype", "float32")), 4)
    config = config.get("text_config") or config
    if odd := [key for key in UNEVEN if config.get(key)]:
        raise ValueError(
            f"'{text}': a budget in bytes needs layers that all hold keys and values of one size; this model "
            f"has {odd[0]}: give tokens"
        )
    try:
        shape = CacheShape.from_config(config, itemsize)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"'{text}': the model's configuration does not tell its sizes: {error}") from error
    return {**data, "policy": in_tokens(text, shape)}


def policy_columns(policy: Policy) -> dict[str, Scalar]:
    """What a table or an exclusion may ask of a policy; sinks, window and budget are None if unbounded."""
    return {
        "policy": policy.label,
        "kind": policy.kind,
        "family": policy.family,
        "bits": policy.bits,
        "sinks": policy.sinks if policy.bounded else None,
        "window": policy.window if policy.bounded else None,
        "budget": policy.budget,
        "positions": policy.positions,
        "evict": str(policy.evict),
    }


class Identified(Protocol):
    """A reference that knows what it refers to."""

    def identity(self) -> dict[str, str]:
        """Revision or sha256. Raises Unavailable."""


def identity_of(model: str, policy: Policy | None, **read: Identified) -> dict[str, str]:
    """Revision or sha256 of a model and of what it reads, by name; the source of a policy that is not ours.

    Raises Skip if one cannot be identified.
    """
    refs: Mapping[str, Identified] = {"model": ModelRef.parse(model), **read}
    try:
        found = {f"{name}.{k}": v for name, ref in refs.items() for k, v in ref.identity().items()}
        if policy is not None and (module := plugins.module_of(plugins.POLICIES, policy.kind)):
            found["policy.source"] = source_hash(module)
    except Unavailable as error:
        raise Skip(str(error)) from error
    return found
