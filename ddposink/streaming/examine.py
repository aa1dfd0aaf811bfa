"""What a model does with positions, found by running it: the layout that exact evaluation needs, or why not.

Two short experiments, no table of names. In the first the model builds its masks and calls its
attention under a name of ours: which layers call, how far each may look back, what keys and values cost.
In the second the same few tokens stand alone at several positions: a rotary layer turns queries and keys
and touches nothing else. Whatever else happens (positions added to the embeddings, a scale that grows
with the position, masks that are no window) cannot be evaluated in local frames, and the reason is said.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from ddposink.caches import Policy
from ddposink.caches.recompute import Recompute
from ddposink.streaming.hook import NAME, attention_hook, dispatch
from ddposink.streaming.positions import Alibi, AttentionLayer, Layout, Positions, Rope
from ddposink.streaming.refusals import (
    FAILURES,
    PolicyNotAppliedError,
    UnsupportedModelError,
    UnsupportedPolicyError,
    line,
)
from ddposink.streaming.rotation import TOLERANCE, find_rotation, frequency_buffers
from ddposink.streaming.trunk import Trunk

MASKED = f"{NAME}_masked"  # like NAME, but the model builds masks, which tell what they are
REACH = 1 << 20  # tokens: a model's own window is looked for within this distance
UNDERSTOOD = ("mask", "s_aux", "position_ids")  # tensors that an attention may be given besides q, k, v
TOKENS = 6  # different tokens that are shown at every position
POSITIONS = (0, 1, 3, 8, 21, 55, 144, 377, 987)  # ratios below 3 keep measured angles unambiguous
# Frequencies that depend on the length: they are what they are only while positions stay below it.
LENGTH_DEPENDENT = {"dynamic", "longrope"}


@dataclass(frozen=True)
class Support:
    """What exact evaluation needs to know of a model, None where it is impossible; ``reason`` says why."""

    reason: str
    positions: Layout | None = None

    @property
    def path(self) -> str:
        """``exact``, or ``library`` where only the library's own cache can be used."""
        return "library" if self.positions is None else "exact"


@torch.no_grad()
def inspect(model: nn.Module, reach: int = 0) -> Support:
    """How ``model`` can be evaluated if cache positions go up to ``reach``."""
    try:
        trunk = Trunk.of(model)
        _refuse_recurrent(model)
        calls = _first_forward(trunk)
        slopes = _slopes(model)
        if slopes is None:
            positions = _rotations(trunk, list(calls), reach)
        else:
            positions = dict.fromkeys(calls, Alibi(slopes))
    except (UnsupportedModelError, PolicyNotAppliedError) as error:
        return Support(str(error))
    layout = Layout(
        {i: AttentionLayer(positions[i], call.window, call.token_bytes) for i, call in calls.items()}
    )
    return Support(_described(layout), layout)


@torch.no_grad()
def lookback(model: nn.Module) -> tuple[dict[int, int | None], Tensor | None]:
    """How far every attention layer looks back in tokens (None: over all), and the (H,) ALiBi slopes, if any.

    That is all it takes to attend over a whole text at once, wherever positions are put in. Raises
    UnsupportedModelError or PolicyNotAppliedError where it cannot be known.
    """
    calls = _first_forward(Trunk.of(model))
    return {layer: call.window for layer, call in calls.items()}, _slopes(model)


# -- first experiment: who calls, and how far may each look -------------------------------------------------


@dataclass
class Call:
    """One layer's call of its attention: its own window (None: none), and the bytes of a token's k and v."""

    window: int | None
    token_bytes: int


@dataclass
class _Masks:
    """Collects the mask functions of one forward; a mask is a tensor full of its number."""

    functions: list[Callable[..., Tensor]] = field(default_factory=list)

    def __call__(
        self, *, batch_size: int, q_length: int, kv_length: int, mask_function: Any, **more: Any
    ) -> Tensor:
        self.functions.append(mask_function)
        number = float(len(self.functions))
        return torch.full((batch_size, 1, q_length, kv_length), number, device=more.get("device"))


_collect: list[_Masks] = []
AttentionInterface.register(MASKED, dispatch)
AttentionMaskInterface.register(MASKED, lambda **arguments: _collect[-1](**arguments))


def _first_forward(trunk: Trunk) -> dict[int, Call]:
    """What every attention layer did in one forward of two tokens, in order of the layers."""
    calls: dict[int, Call] = {}
    masks = _Masks()

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]) -> Tensor:
        _refuse_more(layer, q, k, extra)
        window = _window(trunk, extra.get("mask"), masks, layer)
        calls[layer] = Call(window, sum(x[:, :, 0].numel() * x.element_size() for x in (k, v)))
        return _itself(q, v)

    _collect.append(masks)
    try:
        with attention_hook(trunk, attend, name=MASKED) as hook:
            two = torch.arange(2, device=trunk.device)[None]
            hook.forward(torch.zeros_like(two), two)
    except (UnsupportedModelError, PolicyNotAppliedError):
        raise
    except FAILURES as error:
        kind = type(trunk.model).__name__
        raise UnsupportedModelError(
            f"{kind} does not run with its attention replaced: {line(error)}"
        ) from error
    finally:
        _collect.pop()
    return dict(sorted(calls.items()))


def _refuse_more(layer: int, q: Tensor, k: Tensor, extra: dict[str, Any]) -> None:
    """Attention over more than the tokens fed, or with tensors that are not understood here."""
    if k.shape[2] != q.shape[2]:
        raise UnsupportedModelError(f"layer {layer} attends to {k.shape[2]} keys of {q.shape[2]} tokens")
    odd = [name for name, value in extra.items() if isinstance(value, Tensor) and name not in UNDERSTOOD]
    if odd:
        raise UnsupportedModelError(
            f"the attention of layer {layer} takes '{odd[0]}', which is not understood"
        )


def _itself(q: Tensor, v: Tensor) -> Tensor:
    """Every query attends to its own token only: (B,H,L,Dv)."""
    return v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def _window(trunk: Trunk, mask: Tensor | None, masks: _Masks, layer: int) -> int | None:
    """The window in tokens that ``mask`` stands for, None if all earlier tokens are seen."""
    if mask is None:
        return None
    values = mask.flatten()
    number = int(values[0]) if bool((values == values[0]).all()) else 0
    if 1 <= number <= len(masks.functions):
        return _window_of(masks.functions[number - 1], layer, trunk.device)
    config = trunk.model.config.get_text_config().to_dict()
    limited = [key for key, value in config.items() if ("window" in key or "chunk" in key) and value]
    causal = torch.ones(2, 2, dtype=torch.bool, device=mask.device).tril()
    as_bool = mask if mask.dtype is torch.bool else mask == 0
    if limited or mask.shape[-2:] != (2, 2) or bool((as_bool != causal).any()):
        raise UnsupportedModelError(f"layer {layer} has a mask of its own that is no sliding window")
    return None


def _window_of(visible: Callable[..., Tensor], layer: int, device: torch.device) -> int | None:
    """Read a mask function: the distance from which on keys are hidden, None if none is.

    Asked at two queries far apart: what does not depend on the distance alone is no window.
    """
    found = set()
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    for query in (REACH, REACH - 4099):
        distance = torch.arange(query + 1, device=device)
        seen = visible(zero, zero, zero + query, (query - distance).view(1, 1, 1, -1))
        seen = torch.broadcast_to(seen, (1, 1, 1, query + 1)).flatten()
        count = int(seen.sum())
        found.add(count if count <= query and bool(seen[:count].all()) else None if bool(seen.all()) else -1)
    if len(found) != 1 or found & {-1, 0}:
        raise UnsupportedModelError(f"layer {layer} hides keys by more than their distance (chunks, blocks)")
    return found.pop()


# -- second experiment: what a position does ----------------------------------------------------------------


def _rotations(trunk: Trunk, layers: list[int], reach: int) -> dict[int, Positions]:
    """The rotation of every layer in ``layers``; equal ones are one object."""
    at = _shown_positions(trunk.model, reach)
    heads = _show(trunk, at)
    buffers = frequency_buffers(trunk.model)
    dtype = next(trunk.model.parameters()).dtype
    ropes: list[Rope] = []
    found: dict[int, Positions] = {}
    for layer in layers:
        queries, keys, values = heads[layer]
        _refuse_embedded(layer, values, dtype)
        rope = find_rotation(at, torch.cat([queries, keys], 1), buffers, dtype)
        if rope is None:
            raise UnsupportedModelError(
                f"positions change queries and keys of layer {layer} by something else than a fixed rotation"
            )
        found[layer] = next((known for known in ropes if _same(known, rope)), rope)
        ropes.append(rope)
    return found


def _shown_positions(model: nn.Module, reach: int) -> list[int]:
    """Positions at which tokens are shown: as far as the model keeps its frequencies, and ``reach``."""
    config = model.config.get_text_config()
    limit = length_limit(model)
    most = limit or getattr(config, "max_position_embeddings", None) or POSITIONS[-1] + 1
    far = [reach] if reach and (limit is None or reach < limit) else []
    return sorted({p for p in POSITIONS if p < most} | set(far))


Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys, values: each (P, tokens * heads, D)


def _show(trunk: Trunk, at: list[int]) -> dict[int, Heads]:
    """Queries, keys and values of ``TOKENS`` tokens, each alone, at every position of ``at``."""
    seen: dict[int, Heads] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]) -> Tensor:
        seen[layer] = tuple(x[:, :, 0].unflatten(0, (len(at), TOKENS)).flatten(1, 2) for x in (q, k, v))
        return _itself(q, v)

    vocabulary = trunk.model.config.get_text_config().vocab_size
    ids = torch.linspace(1, vocabulary - 1, TOKENS, device=trunk.device).long().repeat(len(at))[:, None]
    positions = torch.tensor(at, device=trunk.device).repeat_interleave(TOKENS)[:, None]
    try:
        with attention_hook(trunk, attend) as hook:
            hook.forward(ids, positions)
    except (IndexError, RuntimeError) as error:
        if isinstance(error, PolicyNotAppliedError):
            raise
        raise UnsupportedModelError(f"positions up to {at[-1]:,} cannot be had: {line(error)}") from error
    return seen


def _refuse_embedded(layer: int, values: Tensor, dtype: torch.dtype) -> None:
    """Values that depend on the position: it is part of the embeddings."""
    size = values.float().square().mean().sqrt()
    if float((values - values[0]).float().abs().max()) > 5 * TOLERANCE[dtype] * float(size):
        raise UnsupportedModelError(
            "learned absolute positions (or sinusoidal ones) are in the embeddings: keys cannot be re-based"
            if layer == 0
            else f"positions change the values of layer {layer}: keys cannot be re-based"
        )


def _same(a: Rope, b: Rope) -> bool:
    return (
        (a.start, a.interleaved) == (b.start, b.interleaved)
        and a.inv_freq.shape == b.inv_freq.shape
        and torch.equal(a.inv_freq, b.inv_freq)
    )


# -- what is known of a model otherwise ---------------------------------------------------------------------


def _refuse_recurrent(model: nn.Module) -> None:
    """Layers that carry a state from token to token which is no keys and values."""
    try:
        layers = DynamicCache(config=model.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return  # a configuration the cache cannot read: the stream's proof must do
    states = sum(hasattr(layer, "recurrent_states") for layer in layers)
    if states:
        raise UnsupportedModelError(
            f"{states} of {len(layers)} layers are recurrent or convolutional: a policy over keys and values "
            f"alone would not bound what this model carries"
        )


def length_limit(model: nn.Module) -> int | None:
    """Positions from which on rotary frequencies change with the length; None if they never do."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    limits = [
        int(one.get("original_max_position_embeddings") or config.max_position_embeddings)
        for one in nested or [rope]
        if one.get("rope_type") in LENGTH_DEPENDENT
    ]
    return min(limits, default=None)


def check_budget(model: nn.Module, budget: int) -> None:
    """Refuse budgets at which length-dependent rotary scaling would change frequencies mid-way."""
    limit = length_limit(model)
    if limit is not None and budget + 1 > limit:
        raise UnsupportedPolicyError(
            f"this model's rotary scaling changes its frequencies beyond {limit} positions, so keys already "
            f"cached would become inconsistent: choose sinks + window below {limit}"
        )


def longest_turn(ends: Tensor | None) -> int | None:
    """Tokens of the longest turn, given the (N,) ends; None where nothing is known of them."""
    if ends is None or not len(ends):
        return None
    stops = [*ends.nonzero().flatten().tolist(), len(ends) - 1]
    return max(stop - before for before, stop in pairwise([-1, *stops]))


def rebased_reach(policy: Policy, length: int, turn: int | None = None) -> int:
    """Positions that keys are given here at most, within ``length`` tokens; 0 where the model gives them.

    ``turn``: tokens of the longest turn, if it is known.
    """
    evict, budget = policy.evict, policy.budget
    if policy.positions == "library" or isinstance(policy, Recompute) or (budget is None and not policy.bits):
        return 0
    if budget is None or policy.positions == "absolute":
        return max(length, budget or 0)
    if evict.per == "after-turn":
        return max(budget, length if turn is None else min(length, budget + turn))
    if evict.per == "once":
        return max(budget, length)
    if evict.per == "chunk":
        return max(budget, min(length, budget + evict.every - 1))
    return budget


def check_text_positions(model: nn.Module, policy: Policy, length: int, turn: int | None = None) -> None:
    """Refuse positions at which a length-dependent rotary scaling has other frequencies.

    ``turn``: see `rebased_reach`.
    """
    limit = length_limit(model)
    if limit is not None and policy.positions != "absolute" and rebased_reach(policy, length, turn) > limit:
        raise UnsupportedPolicyError(
            f"'{policy}' over {length:,} tokens: this model's rotary scaling changes its frequencies beyond "
            f"{limit} positions, so keys already cached would become inconsistent"
        )
    if policy.bounded and policy.positions == "absolute" and limit is not None and length > limit:
        raise UnsupportedPolicyError(
            f"positions=absolute over {length:,} tokens: this model's rotary scaling changes its frequencies "
            f"beyond {limit} positions, so keys already cached would become inconsistent"
        )


def _slopes(model: nn.Module) -> Tensor | None:
    """(H,) float32 ALiBi slopes, read off the biases that the model itself builds; None without ALiBi."""
    config, base = model.config.get_text_config(), model.base_model
    device = next(model.parameters()).device
    if config.model_type == "falcon" and config.alibi:
        raise UnsupportedModelError("Falcon-RW rounds its ALiBi biases to bfloat16 at absolute positions")
    if config.model_type == "mpt":
        pair = base.build_mpt_alibi_tensor(base.num_heads, 2, device=device)  # (H,1,2): -slope, 0
        return -pair[:, 0, 0].float()
    if config.model_type == "bloom":
        build = sys.modules[type(base).__module__].build_alibi_tensor
        ones = torch.ones(1, 2, device=device)
        return build(ones, config.num_attention_heads, torch.float32)[:, 0, 1]
    return None


def _described(layout: Layout) -> str:
    """One line on what was found, e.g. ``rotary positions re-based (16 pairs, interleaved)``."""
    kinds = Counter(_kind(layer.positions) for layer in layout.layers.values())
    windows = Counter(window for window in layout.windows.values() if window is not None)
    parts = [kind if len(kinds) == 1 else f"{count} layers {kind}" for kind, count in kinds.items()]
    parts += [f"{count} layers with a window of {window} of their own" for window, count in windows.items()]
    return ", ".join(parts)


def _kind(positions: Positions) -> str:
    if isinstance(positions, Alibi):
        return "ALiBi biases re-based"
    pairs = len(positions.inv_freq)
    if not pairs:
        return "without positions"
    style = "interleaved " * positions.interleaved
    at = f" from dimension {positions.start}" * bool(positions.start)
    return f"rotary positions re-based ({pairs} {style}pairs{at})"
