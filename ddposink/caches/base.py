"""What a cache policy is: a small frozen configuration that says which keys a query may see.

A policy knows nothing of tensors. It tells how many slots it keeps, at which length the first token
is evicted, and how many bytes of keys and values it holds: the analytic figure that every
measured one is compared with. How a policy is computed is the business of `ddposink.streaming`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ddposink.caches.codec import CODES, group_of, stored_bytes
from ddposink.errors import suggest

Positions = str  # one of POSITIONS
POSITIONS = ("cache", "absolute", "library")


@dataclass(frozen=True)
class CacheShape:
    """What one cached token costs: per-layer windows of the model's own, heads and element size.

    ``layer_windows`` has one entry per layer: the model's own sliding window in tokens, or None.
    """

    layer_windows: tuple[int | None, ...]
    kv_heads: int
    head_dim: int
    itemsize: int

    @property
    def layers(self) -> int:
        """Number of layers that hold keys and values."""
        return len(self.layer_windows)

    @property
    def bytes_per_token_layer(self) -> int:
        """Bytes of one token's key and value in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.itemsize

    def token_bytes(self, bits: str | None = None) -> int:
        """Bytes of one token's key and value in one layer, stored with ``bits``."""
        if bits is None:
            return self.bytes_per_token_layer
        return 2 * self.kv_heads * stored_bytes(self.head_dim, group_of(self.head_dim), bits)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], itemsize: int) -> CacheShape:
        """Read the shape off a model configuration (Hugging Face key names of all supported families)."""
        get = _first(config)
        layers = get("num_hidden_layers", "n_layer", "n_layers")
        heads = get("num_attention_heads", "n_head", "n_heads")
        hidden = get("hidden_size", "n_embd", "d_model")
        if config.get("model_type") == "falcon":
            kv_heads = _falcon_kv_heads(config, heads)
        else:
            kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        kinds = config.get("layer_types") or ["sliding_attention" if window else "full_attention"] * layers
        windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
        return cls(windows, kv_heads, head_dim, itemsize)


def _first(config: Mapping[str, Any]) -> Any:
    def get(*names: str) -> int:
        for name in names:
            if config.get(name):
                return int(config[name])
        raise ValueError(f"the model configuration names none of {', '.join(names)}")

    return get


def _falcon_kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("new_decoder_architecture"):
        return int(config.get("num_kv_heads") or heads)
    return 1 if config.get("multi_query", True) else heads


@dataclass(frozen=True)
class Evict:
    """When tokens leave: after every token, every ``every`` tokens (chunk), once, or by turns of the text.

    ``per`` is "token" (StreamingLLM's evaluation), "chunk", "once" (``every`` tokens are read densely, the
    cache is cut back to the budget and grows from there: what compressing a prompt means), "turn" (room is
    made before a turn, as in StreamingLLM's chat demo) or "after-turn" (the cache is cut back once a turn has
    been read). A turn ends with the end-of-turn token of the tokenizer's chat template where the text has
    any, in what is read of it or beyond, else with a blank line.
    """

    per: str = "token"
    every: int = 1

    @classmethod
    def parse(cls, text: str) -> Evict:
        """``token``, ``chunk:N``, ``once:N``, ``turn`` or ``after-turn``. Raises ValueError."""
        if text == "token":
            return cls()
        if text in ("turn", "after-turn"):
            return cls(text, 0)
        if match := re.fullmatch(r"(chunk|once):(\d+)", text):
            if int(match[2]) < 1:
                raise ValueError(f"evict={match[1]}:N needs N of at least 1")
            return cls(match[1], int(match[2]))
        known = ("token", "turn", "after-turn", "chunk:N", "once:N")
        raise ValueError(f"unknown eviction schedule '{text}'{suggest(text, known)} ({', '.join(known)})")

    def __str__(self) -> str:
        return f"{self.per}:{self.every}" if self.per in ("chunk", "once") else self.per

    @property
    def by_turns(self) -> bool:
        """Whether the text decides when tokens leave."""
        return self.per in ("turn", "after-turn")


@dataclass(frozen=True)
class Policy:
    """Base of all policies: ``sinks`` first tokens and ``window`` recent ones are kept.

    ``positions``: ``cache`` numbers keys by their place in the cache, as StreamingLLM does (the
    distance to a sink stops growing once eviction starts); ``absolute`` keeps text positions, so
    that sinks recede for ever; ``library`` evicts from the model library's own cache and leaves keys as they
    were made, a new token standing at the last place of the cache: all there is for learned positions.
    """

    kind: ClassVar[str]
    sinks: int = 0
    window: int = 0
    positions: Positions = "cache"
    evict: Evict = Evict()
    bits: str | None = None  # one of `codec.CODES`: keys and values are stored so; None as they were made

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not '{self.positions}'")
        if self.bits is not None and self.bits not in CODES:
            raise ValueError(f"bits must be one of {', '.join(CODES)}, not '{self.bits}'")

    @property
    def bounded(self) -> bool:
        """Whether the cache stops growing."""
        return True

    @property
    def budget(self) -> int | None:
        """Slots kept between steps: sinks + window; None if unbounded."""
        return self.sinks + self.window

    @property
    def least_budget(self) -> int | None:
        """Slots of the layer that keeps the fewest: the budget, unless layers differ."""
        return self.budget

    @property
    def evicts_from(self) -> int | None:
        """Index of the first query that misses an earlier token; None if none does or the text decides.

        Evicting per token the query of token S+R still sees everything (S+R cached tokens and itself).
        """
        return None if self.least_budget is None else self._evicts_from(self.least_budget)

    def cached(self, length: int) -> int:
        """Tokens held after ``length`` tokens were fed (by turns: at most, right after a turn)."""
        return length if self.budget is None else self._cached(self.budget, length)

    def layer_budgets(self, layers: int) -> list[int | None]:
        """Slots of each of ``layers`` layers; None if unbounded."""
        return [self.budget] * layers

    def slots(self, length: int, layers: int) -> list[int]:
        """Tokens held in each of ``layers`` layers after ``length`` tokens."""
        budgets = self.layer_budgets(layers)
        if len(set(budgets)) == 1:
            return [self.cached(length)] * layers
        return [length if one is None else self._cached(one, length) for one in budgets]

    def _evicts_from(self, budget: int) -> int | None:
        """Where a layer of ``budget`` slots misses its first token."""
        if self.evict.by_turns:
            return None
        if self.evict.per == "once":
            return self.evict.every if budget < self.evict.every else None
        return (budget // self.evict.every + 1) * self.evict.every

    def _cached(self, budget: int, length: int) -> int:
        """Tokens that a layer of ``budget`` slots holds after ``length`` tokens."""
        start = self._evicts_from(budget)
        if start is None:
            return length if self.evict.per == "once" else min(length, budget)
        if length < start:
            return length
        return budget + (length - start if self.evict.per == "once" else length % self.evict.every)

    @property
    def room(self) -> int:
        """Slots of the budget that nothing protects: what a turn may take before it is read."""
        return self.window

    def resized(self, tokens: int) -> Policy:
        """The same with a budget of ``tokens`` slots, for the proof of a stream."""
        return replace(self, window=tokens - self.sinks)

    def nbytes(self, shape: CacheShape, length: int) -> int:
        """Analytic bytes of keys and values held after ``length`` tokens.

        Layers with a sliding window of the model's own need, and hold, window - 1 tokens, unless a bounded
        policy keeps fewer recent ones: then its budget, of which the sinks may be in sight.
        """
        layers = zip(self.slots(length, shape.layers), shape.layer_windows, strict=True)
        per_layer = (
            kept if own is None or (self.bounded and own - 1 > self.window) else min(kept, own - 1)
            for kept, own in layers
        )
        return sum(shape.token_bytes(self.bits) * tokens for tokens in per_layer)

    @property
    def family(self) -> str:
        """The label without its size: policies that differ in nothing else are one line of a picture."""
        words = self.label.split()
        return " ".join(word for i, word in enumerate(words) if i != 1 or "=" in word)

    @property
    def label(self) -> str:
        """Canonical text form; `ddposink.caches.parse_policy` reads it back."""
        return self._options(self.kind)

    def _options(self, head: str) -> str:
        parts = [head]
        if self.positions != "cache":
            parts.append(f"positions={self.positions}")
        if self.evict != Evict():
            parts.append(f"evict={self.evict}")
        if self.bits is not None:
            parts.append(f"bits={self.bits}")
        return " ".join(parts)

    def __str__(self) -> str:
        return self.label

    @classmethod
    def from_text(cls, size: str, **options: object) -> Policy:
        """The policy whose name is followed by ``size``. Raises ValueError naming what was expected."""
        raise NotImplementedError(f"{cls.__name__} does not say how it is written")

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Names that may appear as ``name=value`` in the text form."""
        return tuple(f.name for f in fields(cls) if f.name in {"positions", "evict", "bits"})
