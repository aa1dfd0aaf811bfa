"""How the streaming code gets hold of a model's attention without patching modelling code.

Most families dispatch through the library's attention interface: we register one function under one
name and switch models to it. Falcon, MPT and BLOOM accept the name silently and never call the
function, so their attention modules get an adapter for as long as the hook is open: it runs the
module's own projections, hands q, k, v to us and feeds the result to the module's own output
projection. Whichever way, every layer must call exactly once per forward: anything else is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ddposink.streaming.refusals import PolicyNotAppliedError
from ddposink.streaming.trunk import Trunk

# (layer index, q (B,H,L,D), k (B,Hkv,L,D), v (B,Hkv,L,Dv), scale, extra keyword arguments) -> (B,H,L,Dv)
Attend = Callable[[int, Tensor, Tensor, Tensor, float, dict[str, Any]], Tensor]
NAME = "ddposink"


class Hook:
    """Routes every attention call of one model to ``attend`` while open; counts the calls if ``counting``.

    ``layers`` are the indices of the layers that have attention: each must call once per forward.
    """

    def __init__(self, trunk: Trunk, attend: Attend, layers: Iterable[int], *, counting: bool = True) -> None:
        self.trunk = trunk
        self.counting = counting
        self.attend = attend
        self.calls = dict.fromkeys(layers, 0)
        self.forwards = 0

    def __call__(  # noqa: D102 - the registered attention function; see `Attend`
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        if self.counting:
            self.calls[layer] = self.calls.get(layer, 0) + 1
        return self.attend(layer, q, k, v, scale, extra)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states (B*L, d) of ``ids`` (B, L) at rotary ``positions`` (B or 1, L); checks the calls."""
        hidden = self.trunk.hidden(ids, positions)
        if self.counting:
            self.forwards += 1
            self.check()
        return hidden.flatten(0, 1)

    def replayed(self) -> None:
        """A recorded forward ran once more: every layer took part, as when it was recorded and checked."""
        self.forwards += 1
        self.calls = {layer: calls + 1 for layer, calls in self.calls.items()}

    def counts(self) -> tuple[int, dict[int, int]]:
        """Forwards and calls per layer so far, for `restore`."""
        return self.forwards, dict(self.calls)

    def restore(self, counts: tuple[int, dict[int, int]]) -> None:
        """Forget the forwards since ``counts``: they were trials."""
        self.forwards, self.calls = counts[0], dict(counts[1])

    def check(self) -> None:
        """Raise PolicyNotAppliedError unless every layer called once per forward so far."""
        wrong = [layer for layer, calls in self.calls.items() if calls != self.forwards]
        if wrong or not self.calls:
            first = f" (first: {wrong[0]}, {self.calls[wrong[0]]} times)" if wrong else ""
            raise PolicyNotAppliedError(
                f"attention hook: {len(wrong)} of {len(self.calls)} layers{first} were not called once "
                f"in each of {self.forwards} forwards; the cache policy was not applied"
            )


_open: list[Hook] = []


def dispatch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **extra: Any,
) -> tuple[Tensor, None]:
    """The function registered with the library: (B,H,L,D) in, (B,L,H,D) out."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = _open[-1](module.layer_idx, query, key, value, scale, extra | {"mask": attention_mask})
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, dispatch)
# Adapted families build a mask, at which their adapters do not look. The one for eager attention is filled
# from the host, which no CUDA graph can record: they are told to build the one of true and false.
ADAPTED = "ddposink_adapted"
AttentionMaskInterface.register(
    ADAPTED, lambda **arguments: sdpa_mask(**arguments | {"allow_is_causal_skip": False})
)


@contextmanager
def attention_hook(
    trunk: Trunk, attend: Attend, layers: Iterable[int] = (), *, name: str = NAME
) -> Iterator[Hook]:
    """Route the attention of a model to ``attend``; restores everything on exit.

    ``name`` is the attention implementation that the model believes to use. Without ``layers``, whichever
    layers call are those that must go on calling.
    """
    model, hook = trunk.model, Hook(trunk, attend, layers)
    adapter = _ADAPTERS.get(model.config.model_type)
    before = model.config._attn_implementation
    adapted: list[nn.Module] = []
    _open.append(hook)
    try:
        if adapter is None:
            model.set_attn_implementation(name)
        else:
            kind, forward = adapter
            model.config._attn_implementation = ADAPTED
            adapted = [m for m in model.modules() if type(m).__name__ == kind and "forward" not in vars(m)]
            for module in adapted:
                module.forward = _bind(forward, module)
        yield hook
    finally:
        _open.remove(hook)
        for module in adapted:
            del module.forward  # uncovers the class's own method
        if adapter is None:
            model.set_attn_implementation(before)
        else:
            model.config._attn_implementation = before


@contextmanager
def alone(hook: Hook) -> Iterator[None]:
    """Calls go to ``hook`` meanwhile, whoever else is open: the same surroundings for every compiled call."""
    others, _open[:] = list(_open), [hook]
    try:
        yield
    finally:
        _open[:] = others


def _bind(forward: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(module, *args, **kwargs)


def _call(module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(B, L, H*D): the open hook's attention with heads merged."""
    out = _open[-1](module.layer_idx, q, k, v, scale, {})
    return out.transpose(1, 2).flatten(2)


def _falcon(
    module: Any, hidden_states: Tensor, alibi: Tensor | None, *_: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    q, k, v = module._split_heads(module.query_key_value(hidden_states))
    if module.new_decoder_architecture:  # undo the repetition of grouped heads: cache each key once
        groups = module.num_heads // module.num_kv_heads
        k, v = k[:, :, ::groups], v[:, :, ::groups]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if alibi is None:
        rope = _module_function(module, "apply_rotary_pos_emb")
        q, k = rope(q, k, *kwargs["position_embeddings"])
    return module.dense(_call(module, q, k, v, module.inv_norm_factor)), None


def _mpt(module: Any, hidden_states: Tensor, position_bias: Tensor, **_: Any) -> tuple[Tensor, None]:
    qkv = module.Wqkv(hidden_states)
    if module.clip_qkv:
        qkv = qkv.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    q, k, v = (x.unflatten(2, (module.n_heads, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=2))
    return module.out_proj(_call(module, q, k, v, module.softmax_scale)), None


def _bloom(module: Any, hidden_states: Tensor, residual: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    q, k, v = module._reshape(module.query_key_value(hidden_states))
    return residual + module.dense(_call(module, q, k, v, module.inv_norm_factor)), None


def _module_function(module: nn.Module, name: str) -> Callable[..., Any]:
    """A function of the file that defines ``module``'s class."""
    return getattr(sys.modules[type(module).__module__], name)


_ADAPTERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "falcon": ("FalconAttention", _falcon),
    "mpt": ("MptAttention", _mpt),
    "bloom": ("BloomAttention", _bloom),
}
