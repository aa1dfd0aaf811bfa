"""Per-token NLL of a model under StreamingLLM, found without knowing how the model rotates its keys.

The whole text goes through the model once, as a batch of as many rows as the cache has places: in row p every
token stands at position p. Attention is replaced by a plain one that takes every query and every key from
the row of its place in the cache and gives all rows the same result. Positions that enter by way of queries
and keys alone leave the rows equal otherwise, which is checked at every call; where they enter elsewhere
there is no oracle. Nothing here is shared with what is tested.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

NAME = "sweep_oracle"
EQUAL = 1e-4  # relative: rows that are the same up to rounding
TRIAL = 32  # tokens; more than a model's own window, so that one that is not honoured shows
REPEATED = 8  # times one token is repeated, to see whether positions can be told to the model
# Keyword arguments of an attention call that do not change its result.
HARMLESS = {
    "position_ids", "use_cache", "output_router_logits", "output_attentions", "cache_position", "is_causal",
    "return_dict",
}  # fmt: skip
UNDERSTOOD = {"softcap", "s_aux", "sliding_window"}


class NoOracleError(Exception):
    """Positions, or attention, are not such that the oracle could say what is right; the message says why."""


@torch.no_grad()
def dense(model: nn.Module, ids: Tensor) -> Tensor:
    """(N-1,) NLL: one plain forward of the untouched model."""
    return nll(model(input_ids=ids[None], use_cache=False).logits[0], ids)


@torch.no_grad()
def streaming(model: nn.Module, ids: Tensor, sinks: int, recent: int) -> Tensor:
    """(N-1,) NLL: every token sees the first ``sinks`` and the ``recent`` ones before it, and itself.

    They stand at places 0, 1, … of the cache. Raises NoOracleError.
    """
    try:
        return _streaming(model, ids, sinks, recent)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        line = str(error).strip().splitlines()[0][:120]
        raise NoOracleError(f"the model does not run so: {type(error).__name__}: {line}") from error


def _streaming(model: nn.Module, ids: Tensor, sinks: int, recent: int) -> Tensor:
    route = _route(model)
    if route is not with_slopes:
        _check_positions_can_be_told(model, route)
    trial = ids[:TRIAL]
    plain = model(input_ids=trial[None], use_cache=False).logits[0]
    for own in (
        _no_window,
        _configured_window,
    ):  # of the layers whose call does not say how far they look back
        logits = _forward(model, route, trial, Held.of(TRIAL, 0, TRIAL), own)
        if _close(logits, plain, 1e-3):
            return nll(_forward(model, route, ids, Held.of(len(ids), sinks, recent), own), ids)
    raise NoOracleError("with nothing evicted the oracle is not the model itself")


@torch.no_grad()
def library(model: nn.Module, ids: Tensor, sinks: int, recent: int) -> Tensor:
    """(N-1,) NLL: token by token on the library's cache; tokens are dropped, keys stay as made."""
    cache, logits = DynamicCache(config=model.config), []
    for t in range(len(ids)):
        place = torch.tensor([[min(t, sinks + recent)]])
        step = ids[None, t : t + 1]
        logits.append(
            model(input_ids=step, position_ids=place, past_key_values=cache, use_cache=True).logits[0]
        )
        for layer in cache.layers:
            n = layer.keys.shape[2]
            kept = [i for i in range(n) if i < sinks or i >= n - recent] if n > sinks + recent else range(n)
            layer.keys, layer.values = layer.keys[:, :, list(kept)], layer.values[:, :, list(kept)]
    return nll(torch.cat(logits), ids)


def nll(logits: Tensor, ids: Tensor) -> Tensor:
    """(N-1,) negative log-likelihood of every next token."""
    return nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")


@dataclass(frozen=True)
class Held:
    """What each of N queries sees: ``token`` (N, W) at place 0…W-1, ``valid`` (N, W), its ``place`` (N,)."""

    token: Tensor
    valid: Tensor
    place: Tensor

    @classmethod
    def of(cls, length: int, sinks: int, recent: int) -> Held:
        """Fed one by one, evicted after each."""
        held: list[int] = []
        seen = []
        for t in range(length):
            seen.append([*held, t])
            held.append(t)
            if len(held) > sinks + recent:
                held = held[:sinks] + held[len(held) - recent :]
        width = max(map(len, seen))
        token = torch.tensor([row + [0] * (width - len(row)) for row in seen])
        count = torch.tensor([len(row) for row in seen])
        return cls(token, torch.arange(width) < count[:, None], count - 1)


Attend = Callable[..., Tensor]
Route = Callable[[nn.Module, Attend], Any]
OwnWindow = Callable[[nn.Module, int | None], int | None]


def _no_window(model: nn.Module, layer: int | None) -> None:
    return None


def _configured_window(model: nn.Module, layer: int | None) -> int | None:
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or (layer is not None and kinds[layer] == "sliding_attention")
    return getattr(config, "sliding_window", None) if slides else None


def _forward(model: nn.Module, route: Route, ids: Tensor, held: Held, own: OwnWindow) -> Tensor:
    """(N, vocabulary) under ``held``; ``own`` knows the windows of layers that do not tell theirs."""
    places = torch.arange(held.token.shape[1])

    def attend(
        q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int | None = None, **more: Any
    ) -> Tensor:
        _require(_rows_equal(v), "positions enter elsewhere than in queries and keys (learned or absolute)")
        window = more.pop("window", None) or own(model, layer)
        return _attend(held, q, k, v, scale, window=window, **more)

    with route(model, attend):
        logits = _at(model, ids, places if route is not with_slopes else None)
    _require(_rows_equal(logits), "positions change more than attention")
    return logits[0]


def _at(model: nn.Module, ids: Tensor, places: Tensor | None) -> Tensor:
    """Logits (P, N, vocabulary): in row p every token stands at ``places[p]``."""
    if places is None:
        return model(input_ids=ids[None], use_cache=False).logits
    rows = ids[None].expand(len(places), -1)
    positions = places[:, None].expand(-1, len(ids))
    return model(input_ids=rows, position_ids=positions, use_cache=False).logits


def _attend(
    held: Held,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    window: int | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """(P, H, N, Dv), the same in all rows: plain softmax attention of every query over what it sees."""
    rows, heads, length, _ = q.shape
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    place = torch.arange(held.token.shape[1])
    row = place if rows > 1 else torch.zeros_like(place)
    queries = q[row[held.place], :, torch.arange(length)]  # (N, H, D)
    keys = k[row[None].expand_as(held.token), :, held.token]  # (N, W, H, D)
    scores = torch.einsum("nhd,nwhd->nhw", queries, keys) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    distance = held.place[:, None] - place[None]  # (N, W), in the cache
    if slopes is not None:
        scores = scores - slopes[None, :, None] * distance[:, None]
    visible = held.valid if window is None else held.valid & (distance < window)
    scores = scores.masked_fill(~visible[:, None], -math.inf)
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.view(1, -1, 1).expand(length, -1, 1)], -1)
    weights = scores.softmax(-1)[..., : held.token.shape[1]]
    out = torch.einsum("nhw,nwhd->hnd", weights, v[0].transpose(0, 1)[held.token])
    return out[None].expand(rows, -1, -1, -1)


# -- checks -------------------------------------------------------------------------------------------------


def _check_positions_can_be_told(model: nn.Module, route: Route) -> None:
    """One token over and over, seeing itself alone: a key must be the same wherever its position is the same.

    Once the model counts positions itself, once they are told, of the first token in every row.
    """
    ids = torch.full((REPEATED,), 5)
    found: list[Tensor] = []

    def alone(q: Tensor, k: Tensor, v: Tensor, scale: float, **_: Any) -> Tensor:
        found.append(k)
        _require(k.shape[2] == q.shape[2], "attention goes over more than the tokens of the text")
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    with route(model, alone):
        _at(model, ids, torch.arange(REPEATED))
        told = [k[:, :, 0] for k in found]
        found.clear()
        model(input_ids=ids[None], use_cache=False)
        counted = [k[0].transpose(0, 1) for k in found]
    same = all(_close(a, b, EQUAL) for a, b in zip(told, counted, strict=True))
    _require(same, "keys depend on more than token and position (a recurrent state, or positions not heeded)")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NoOracleError(otherwise)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max().clamp(min=1e-6))


def _rows_equal(x: Tensor) -> bool:
    return _close(x, x[:1], EQUAL)


# -- ways into a model's attention --------------------------------------------------------------------------


def _route(model: nn.Module) -> Route:
    """The way by which this model's attention can be replaced."""
    for route in (through_interface, through_method, through_kernel, with_slopes):
        calls: list[int] = []

        def note(
            q: Tensor, k: Tensor, v: Tensor, scale: float, _calls: list[int] = calls, **_: Any
        ) -> Tensor:
            _calls.append(1)
            return v.repeat_interleave(q.shape[1] // v.shape[1], 1)

        with route(model, note):
            model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
        if calls:
            return route
    raise NoOracleError("the model has attention of its own that cannot be replaced")


_attending: list[Attend] = []


def _registered(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **extra: Any,
) -> tuple[Tensor, None]:
    _require(attention_mask is None, "the model hands its attention a mask of its own")
    odd = {name for name, value in extra.items() if value is not None} - HARMLESS - UNDERSTOOD
    _require(not odd, f"attention is told more than the oracle knows: {', '.join(sorted(odd))}")
    out = _attending[-1](
        query,
        key,
        value,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=extra.get("softcap"),
        s_aux=extra.get("s_aux"),
        window=extra.get("sliding_window"),
        layer=getattr(module, "layer_idx", None),
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _registered)


@contextmanager
def through_interface(model: nn.Module, attend: Attend) -> Iterator[None]:
    """Most families call a function that the library looks up by name."""
    before = model.config._attn_implementation
    _attending.append(attend)
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        _attending.pop()
        model.set_attn_implementation(before)


@contextmanager
def through_method(model: nn.Module, attend: Attend) -> Iterator[None]:
    """GPT-J and its kin have a method ``_attn`` of (B, H, N, D) tensors."""
    modules = [module for module in model.modules() if hasattr(module, "_attn")]
    for module in modules:
        module._attn = lambda q, k, v, *_, **__: [attend(q, k, v, q.shape[-1] ** -0.5), None]
    try:
        yield
    finally:
        for module in modules:
            del module._attn


@contextmanager
def through_kernel(model: nn.Module, attend: Attend) -> Iterator[None]:
    """Falcon calls torch's kernel from its own code."""
    original = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = lambda q, k, v, *_, **__: attend(
        q, k, v, q.shape[-1] ** -0.5
    )
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original


@contextmanager
def with_slopes(model: nn.Module, attend: Attend) -> Iterator[None]:
    """MPT and BLOOM add ALiBi biases: written out here, on the modules' own projections."""
    forwards = {"MptAttention": _mpt, "BloomAttention": _bloom}
    modules = [module for module in model.modules() if type(module).__name__ in forwards]
    for module in modules:
        forward = forwards[type(module).__name__]
        module.forward = types.MethodType(
            lambda self, *args, _forward=forward, **kwargs: _forward(self, attend, *args, **kwargs), module
        )
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _slopes(heads: int) -> Tensor:
    """(H,) of ALiBi (Press et al. 2022) for a power of two heads."""
    return torch.tensor([2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)])


def _mpt(self: Any, attend: Attend, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    q, k, v = (
        x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in self.Wqkv(hidden_states).chunk(3, -1)
    )
    out = attend(q, k, v, self.softmax_scale, slopes=_slopes(self.n_heads))
    return self.out_proj(out.transpose(1, 2).flatten(2)), None


def _bloom(
    self: Any, attend: Attend, hidden_states: Tensor, residual: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    fused = self.query_key_value(hidden_states).unflatten(-1, (self.num_heads, 3, -1))
    q, k, v = (fused[..., i, :].transpose(1, 2) for i in range(3))
    out = attend(q, k, v, self.inv_norm_factor, slopes=_slopes(self.num_heads))
    return residual + self.dense(out.transpose(1, 2).flatten(2)), None
