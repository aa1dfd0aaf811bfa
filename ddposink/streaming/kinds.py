"""Which kind of stream measures a policy on a model, and why that one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ddposink.caches import Evict, Policy
from ddposink.caches.offloaded import Offloaded
from ddposink.caches.recompute import Recompute
from ddposink.caches.refused import LATENT, on_kept_set
from ddposink.caches.static import Static
from ddposink.streaming.base import Stream
from ddposink.streaming.decode import DecodeStream
from ddposink.streaming.dense import DenseStream
from ddposink.streaming.exact import ExactStream
from ddposink.streaming.examine import Support
from ddposink.streaming.kept import KeptStream
from ddposink.streaming.library import LibraryStream, StaticStream
from ddposink.streaming.positions import Layout
from ddposink.streaming.recompute import RecomputeStream
from ddposink.streaming.reference import ReferenceStream
from ddposink.streaming.refusals import FAILURES, UnsupportedPolicyError
from ddposink.streaming.schedule import ScheduledStream
from ddposink.streaming.trunk import Trunk

# (policy, layout, tokens per forward, ends of turns) -> a new stream
Maker = Callable[[Policy, Layout, int, Tensor | None], Stream]


@dataclass(frozen=True)
class Kind:
    """``make`` makes streams of this kind, ``reason`` says in one line why it was chosen.

    ``layout`` is what they need to know of the model, None for the library's own cache. ``prove`` makes
    streams for the proof where those differ (a recorded step is proven unrecorded).
    """

    make: Maker
    reason: str
    layout: Layout | None = None
    prove: Maker | None = None


def choose(
    model: nn.Module, policy: Policy, support: Support, evaluator: str, capacity: int, decode: str
) -> Kind:
    """The kind of stream for ``policy`` on ``model``; see `open_stream` for arguments and errors."""
    layout = support.positions
    if policy.bits is not None and (layout is None or policy.positions == "library"):
        raise UnsupportedPolicyError(
            f"'{policy}' cannot be measured on this model: the library's own cache stores keys and values as "
            f"they were made, not with fewer bits" + (f" ({support.reason})" if layout is None else "")
        )
    if policy.positions == "library":
        return _library(model, f"the library's own cache, asked for; {support.reason}")
    if isinstance(policy, Static):
        return Kind(
            lambda p, _, chunk, __: StaticStream(model, p, chunk),
            f"the library's own cache, asked for; {support.reason}",
        )
    if isinstance(policy, Offloaded):
        return _library(model, f"the library's own cache, asked for; {support.reason}")
    if isinstance(policy, Recompute):
        return Kind(
            lambda p, _, chunk, __: RecomputeStream(model, p, chunk),  # type: ignore[arg-type]
            "the untouched model on every window",
        )
    if layout is not None and on_kept_set(policy):
        return _kept(model, policy, layout, support.reason, evaluator)
    if layout is None:
        return _without_layout(model, policy, support.reason, evaluator)
    if evaluator == "reference":
        return Kind(
            lambda p, found, _, ends: ReferenceStream(model, p, found, ends),
            "plain StreamingLLM, asked for",
            layout,
        )
    if not policy.bounded:
        return _dense(model, layout, support.reason, capacity)
    if policy.evict.per != "token":
        if evaluator == "decode":
            raise UnsupportedPolicyError(f"decode evicts after every token; '{policy}' does not")
        return Kind(
            lambda p, found, chunk, ends: ScheduledStream(model, p, found, chunk, ends),
            f"one forward per piece; {support.reason}",
            layout,
        )
    if evaluator == "decode":
        return Kind(
            lambda p, found, _, __: DecodeStream(model, p, found, mode=decode),
            "token by token, asked for",
            layout,
            lambda p, found, _, __: DecodeStream(model, p, found, mode="eager"),
        )
    return Kind(
        lambda p, found, chunk, _: ExactStream(model, p, found, chunk, decode=decode),
        support.reason,
        layout,
        lambda p, found, chunk, _: ExactStream(model, p, found, chunk, decode="eager"),
    )


def _kept(model: nn.Module, policy: Policy, layout: Layout, reason: str, evaluator: str) -> Kind:
    if evaluator == "reference":
        raise UnsupportedPolicyError(f"there is no reference evaluation of '{policy}'")
    if _caches_less(model, layout):
        raise UnsupportedPolicyError(f"'{policy}' {LATENT}")
    return Kind(
        lambda p, found, chunk, ends: KeptStream(model, p, found, chunk, ends),
        f"a kept set of every layer and head; {reason}",
        layout,
    )


def _library(model: nn.Module, reason: str) -> Kind:
    return Kind(lambda p, _, chunk, __: LibraryStream(model, p, chunk), reason)


def _without_layout(model: nn.Module, policy: Policy, reason: str, evaluator: str) -> Kind:
    if evaluator in ("exact", "reference"):
        raise UnsupportedPolicyError(f"no {evaluator} evaluation on this model: {reason}")
    if policy.bounded:
        raise UnsupportedPolicyError(
            f"'{policy}' cannot be measured on this model: {reason}{_way_out(model, policy)}"
        )
    return _library(model, reason)


def _way_out(model: nn.Module, policy: Policy) -> str:
    """The name under which something can be measured all the same, if there is any."""
    if on_kept_set(policy):
        return ""
    other = replace(policy, positions="library", evict=Evict())
    try:
        LibraryStream(model, other, 1)
    except (UnsupportedPolicyError, *FAILURES):
        return ""
    return f"; the library's own cache, whose keys stay as they were made, is another policy: '{other}'"


def _dense(model: nn.Module, layout: Layout, reason: str, capacity: int) -> Kind:
    if layout.sliding:
        return _library(model, f"dense on the library's own cache; {reason}")
    if _caches_less(model, layout):
        return _library(
            model, "dense on the library's own cache, which holds less than the keys attended (latents)"
        )
    return Kind(
        lambda _, found, chunk, __: DenseStream(model, found, chunk, capacity),
        f"dense in chunks; {reason}",
        layout,
    )


@torch.no_grad()
def _caches_less(model: nn.Module, layout: Layout) -> bool:
    """Whether the library holds less of a token than the keys and values that its attention gets."""
    trunk, cache = Trunk.of(model), DynamicCache(config=model.config)
    one = torch.zeros(1, 1, dtype=torch.long, device=trunk.device)
    trunk.hidden(one, one, cache)
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    cached = sum(x.numel() * x.element_size() for x in held if x is not None)
    return cached < sum(layer.token_bytes for layer in layout.layers.values())
