"""StreamingLLM as written down, slow and plain: the yardstick for everything clever.

One token at a time, keys kept in a list, evicted by dropping from it. A cached key must be had at any place
that its token will ever take in the cache. So every token is fed as many times as there are places, once at
each, in one batch: the *model itself* rotates, and what it does is not known here. As positions enter by
queries and keys alone, all rows stay equal but for these; that they do is checked. Shares no code with the
fast paths: no frequencies, no local frames, no turns, no ring, no log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.streaming.base import CountedStream
from ddposink.streaming.hook import Hook
from ddposink.streaming.positions import Alibi, Layout
from ddposink.streaming.refusals import UnsupportedModelError

STILL = 1e-2  # share of the values' size by which rows may differ (kernels round by batch)


class ReferenceStream(CountedStream):
    """Any policy and eviction schedule, one token per forward: of one stream, or of B in step (B, 1).

    ``turn_ends`` (N,) bool marks the last token of each turn, for schedules by turns. Of ``layout`` only
    ALiBi slopes and the model's own windows are used.
    """

    path = "reference"

    def __init__(
        self, model: nn.Module, policy: Policy, layout: Layout, turn_ends: Tensor | None = None
    ) -> None:
        super().__init__(model, layout)
        self.policy = policy
        self.turn_ends = turn_ends
        self.text: list[int] = []  # text positions of the tokens held
        # Per layer and token held: keys (P, B, Hkv, D), one for every place, and values (B, Hkv, Dv).
        self.tokens: dict[int, list[tuple[Tensor, Tensor]]] = {}
        # In cache positions a token moves towards the front, so it needs a key at every place up to its own.
        self.moves = policy.bounded and policy.positions != "absolute" and layout.rotary

    def next_size(self, left: int) -> int:
        """One token."""
        return 1

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        hook.attend = self._attend
        self._make_room()
        place = len(self.text) if self.policy.bounded and self.policy.positions == "cache" else self.seen
        rows = list(range(place + 1)) if self.moves else [place]
        ids = torch.atleast_2d(ids)
        positions = torch.tensor(rows, device=ids.device).repeat_interleave(len(ids))[:, None]
        self._rows, self._streams = len(rows), len(ids)
        hidden = hook.forward(ids.repeat(len(rows), 1), positions)
        self.text.append(self.seen)
        self.seen += 1
        self.largest_position = max(self.largest_position, place)
        self._evict()
        self.held = len(self.text)
        return hidden[: len(ids)]

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        """q (P*B,H,1,D), k and v likewise, one token at P places -> (P*B,H,1,Dv), P times the same."""
        q, k, v = (x[:, :, 0].unflatten(0, (self._rows, self._streams)) for x in (q, k, v))
        self._check(layer, v)
        held = self.tokens.setdefault(layer, [])
        held.append((k, v[-1]))
        keys = torch.stack([one[i] if len(one) > 1 else one[0] for i, (one, _) in enumerate(held)], 2)
        values = torch.stack([value for _, value in held], 2)  # (B, Hkv, n, Dv)
        out = self._softmax(layer, q[-1], keys, values, scale, extra)
        return out[:, :, None].repeat(self._rows, 1, 1, 1)

    def _softmax(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        """One query (B,H,D) over the n tokens held, itself last: (B,H,Dv)."""
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = (q[:, :, None] @ k.transpose(2, 3))[:, :, 0].float() * scale  # (B, H, n)
        if (cap := extra.get("softcap")) is not None:
            scores = torch.tanh(scores / cap) * cap
        distance = self._distances().to(scores.device)
        one = self.layout[layer]
        if isinstance(one.positions, Alibi):
            scores = scores - one.positions.slopes.view(1, -1, 1) * distance
        if one.window is not None:
            scores = scores.masked_fill(distance >= one.window, -torch.inf)
        if (logit := extra.get("s_aux")) is not None:
            scores = torch.cat([scores, logit.float().view(1, -1, 1).expand(len(scores), -1, -1)], -1)
            weights = scores.softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        return (weights.to(v.dtype)[:, :, None] @ v)[:, :, 0]

    def _distances(self) -> Tensor:
        """(n,) from each token held to the one being fed, in cache or in text positions."""
        if self.policy.bounded and self.policy.positions == "cache":
            return torch.arange(len(self.text), -1, -1)
        return self.seen - torch.tensor([*self.text, self.seen])

    def _check(self, layer: int, v: Tensor) -> None:
        if self._rows > 1 and float((v - v[:1]).abs().max()) > STILL * float(v.abs().max()):
            raise UnsupportedModelError(
                f"the values of layer {layer} depend on the position: no reference for such a model"
            )

    def _make_room(self) -> None:
        """``evict=turn``: before a turn (at most a window of it) hold so little that it fits."""
        policy = self.policy
        if policy.evict.per != "turn":
            return
        begin = self.seen
        while begin > 0 and not self._ends(begin):
            begin -= 1
        if (self.seen - begin) % policy.window:
            return  # in the middle of a piece that room was made for
        end = self.seen + 1
        while end - self.seen < policy.window and not self._ends(end):
            end += 1
        self._drop(policy.sinks + policy.window - (end - self.seen))

    def _evict(self) -> None:
        policy = self.policy
        if policy.bounded and policy.evict.per != "turn" and self._due():
            self._drop(policy.sinks + policy.window)

    def _drop(self, keep: int) -> None:
        """Keep the sinks and the most recent tokens, ``keep`` in all."""
        gone = len(self.text) - keep
        if gone > 0:
            first = self.policy.sinks
            self.text = self.text[:first] + self.text[first + gone :]
            self.tokens = {i: held[:first] + held[first + gone :] for i, held in self.tokens.items()}

    def _due(self) -> bool:
        evict = self.policy.evict
        return self._ends(self.seen) if evict.per == "after-turn" else self.seen % evict.every == 0

    def _ends(self, count: int) -> bool:
        """Whether a turn ends with the first ``count`` tokens: it is marked so, or the text ends."""
        assert self.turn_ends is not None, f"evict={self.policy.evict} needs turn_ends"
        return count <= len(self.turn_ends) and bool(
            count == len(self.turn_ends) or self.turn_ends[count - 1]
        )

    def kept(self) -> int:
        """Tokens that must be held: here they are listed one by one."""
        return len(self.text)

    def mark(self, steps: int) -> tuple[Any, ...]:
        """Copies of the lists suffice: tensors are never written to."""
        tokens = {layer: list(held) for layer, held in self.tokens.items()}
        return self.seen, self.held, self.largest_position, tokens, list(self.text)

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Undo the tokens fed since ``mark``."""
        self.seen, self.held, self.largest_position, tokens, text = mark
        self.tokens, self.text = {layer: list(held) for layer, held in tokens.items()}, list(text)

    def nbytes(self) -> int:
        """Measured bytes of one key and one value of every token held."""
        return sum(
            (keys[0].numel() + value.numel()) * value.element_size()
            for held in self.tokens.values()
            for keys, value in held
        )

    def allocated_bytes(self) -> int:
        """Measured bytes of the keys at all places, and of the values."""
        return sum(
            (keys.numel() + value.numel()) * value.element_size()
            for held in self.tokens.values()
            for keys, value in held
        )
