"""Policies that choose by content: a budget, what is protected, and one function that scores what is held.

A ranked policy is written ``name B``, B being tokens, followed by its options: ``snapkv 512 window=32``. It
implements `Ranked.scores`; whatever is not protected (the first ``sinks`` and the last ``recent`` tokens)
stays in order of its score. `ddposink.streaming.kept` computes it.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ddposink.caches.base import Evict, Policy
from ddposink.caches.held import Held, Observes

if TYPE_CHECKING:
    from torch import Tensor

_BASE = ("sinks", "window", "positions", "evict", "bits")


@dataclass(frozen=True)
class Ranked(Policy):
    """``size`` slots a layer and head: ``sinks`` first and ``window`` recent tokens (``recent=`` in the text
    form) are protected, the highest scores fill the rest.
    """

    size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "library":
            raise ValueError(f"{self.kind} has no positions=library")
        if self.sinks < 0 or self.window < 0:
            raise ValueError(f"sinks and recent must not be negative, got {self.sinks} and {self.window}")
        if self.size < max(1, self.sinks + self.window):
            raise ValueError(
                f"a budget of {self.size} tokens is below the {self.sinks} sinks and {self.window} recent "
                f"tokens that '{self.kind}' protects: it must be at least {max(1, self.sinks + self.window)}"
            )
        if self.evict.per == "turn" and self.room < 1:
            raise ValueError(
                f"evict=turn needs room, but all {self.size} tokens of '{self.kind}' are protected"
            )

    @property
    def observes(self) -> Observes:
        """What must be remembered for `scores`; nothing unless a policy says otherwise."""
        return Observes()

    @abstractmethod
    def scores(self, held: Held) -> Tensor:
        """(Hkv, n) float: the higher, the rather a token stays. No NaN; pure, and blind to the future."""

    def keep(self, held: Held, count: int) -> Tensor | None:
        """(Hkv, count) slots that stay, for a policy that no scores can express; None: by `scores`."""
        return None

    def share_out(self, scores: Tensor, count: int) -> Tensor | None:
        """(Hkv,) int64 unprotected tokens that each head keeps, ``count`` on average; None: the same for all.

        ``scores`` (Hkv, n) are -inf where there is nothing to choose; no head can keep more than it holds.
        """
        return None

    def layer_budget(self, layer: int, layers: int) -> int:
        """Slots of one layer; all the same unless a policy says otherwise."""
        return self.size

    @property
    def budget(self) -> int | None:
        """``size``: slots a layer and head, on average over the layers."""
        return self.size

    @property
    def room(self) -> int:
        """What neither sinks nor recent tokens take."""
        return self.size - self.sinks - self.window

    def layer_budgets(self, layers: int) -> list[int | None]:
        """What `layer_budget` says of each layer."""
        return [self.layer_budget(layer, layers) for layer in range(layers)]

    def resized(self, tokens: int) -> Policy:
        """The same with ``tokens`` slots, of which at most two are protected at either end."""
        few = max(0, min(2, (tokens - 1) // 2))
        return replace(self, size=tokens, sinks=min(self.sinks, few), window=min(self.window, few))

    @property
    def label(self) -> str:
        """``snapkv 512 window=32``: options that are not the default of this size are named."""
        plain = type(self).from_text(str(self.size))
        words = [f"{self.kind} {self.size}"]
        for name, own in self._own().items():
            if getattr(self, own) != getattr(plain, own):
                value = getattr(self, own)
                words.append(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
        return self._options(" ".join(words))

    @classmethod
    def _own(cls) -> dict[str, str]:
        """Option of the text form → field."""
        own = {"sinks": "sinks", "recent": "window"}
        return own | {f.name: f.name for f in fields(cls) if f.name not in (*_BASE, "size")}

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """The options that all policies share, what is protected, and the policy's own."""
        return (*super().option_names(), *cls._own())

    @classmethod
    def defaults(cls, size: int) -> dict[str, Any]:
        """Fields whose default depends on the budget, e.g. half of it as recent tokens."""
        return {}

    @classmethod
    def from_text(cls, size: str, **options: object) -> Ranked:
        """``512`` → a budget of 512 tokens; ``50%`` is a share of what evict=once:N reads."""
        evict = options.get("evict")
        tokens = _tokens(cls.kind, size, evict)
        kinds = {f.name: str(f.type) for f in fields(cls)}
        given = {}
        for name, value in options.items():
            field = cls._own().get(name, name)
            given[field] = _read(cls.kind, name, value, kinds[field]) if name in cls._own() else value
        return cls(**({"size": tokens} | cls.defaults(tokens) | given))


def _tokens(kind: str, size: str, evict: object) -> int:
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)%", size):
        if not isinstance(evict, Evict) or evict.per != "once":
            raise ValueError(f"a share ('{kind} {size}') needs evict=once:N, whose N tokens it is a share of")
        return round(float(match[1]) / 100 * evict.every)
    if not re.fullmatch(r"\d+", size):
        raise ValueError(
            f"'{kind}' is written with a budget, '{kind} 512' (tokens), '{kind} 50% evict=once:2048' or "
            f"'{kind} 11MiB', got '{kind} {size}'".rstrip()
        )
    return int(size)


def _read(kind: str, name: str, value: object, type_name: str) -> object:
    """An option's value as the type of its field. Raises ValueError."""
    text = str(value).lower()
    if type_name == "bool":
        if text in ("true", "false"):
            return text == "true"
        raise ValueError(f"'{kind}': {name} is true or false, got '{value}'")
    try:
        return {"int": int, "float": float}[type_name](text)
    except ValueError:
        raise ValueError(f"'{kind}': {name} is a number ({type_name}), got '{value}'") from None
