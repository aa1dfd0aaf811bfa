"""The kept-set stream: any policy that chooses by content, any schedule of eviction, exactly as defined.

Per layer and key-value head the cache holds keys and values of the tokens kept, and their places in the text.
A piece of text is fed on top of them: full attention over what is held, a causal triangle over itself. When
the schedule says so the policy scores what is held, and the rest is dropped. The numbers depend on the policy
and its schedule alone, not on how a text is cut into forwards. First and recent tokens are a policy like any
other here, and so are keys and values that are stored with fewer bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddposink.caches import Policy, Schedule
from ddposink.caches.codec import group_of, stored_bytes
from ddposink.caches.held import Held, Observes
from ddposink.caches.ranked import Ranked
from ddposink.caches.refused import SLIDING
from ddposink.streaming.base import CountedStream
from ddposink.streaming.examine import check_budget
from ddposink.streaming.hook import Hook
from ddposink.streaming.kept_layer import Layer
from ddposink.streaming.kernel import attend, merge
from ddposink.streaming.observed import Observed, probabilities
from ddposink.streaming.positions import Alibi, Layout, Rope
from ddposink.streaming.refusals import UnsupportedPolicyError, require_turns
from ddposink.streaming.selection import choose


@dataclass(frozen=True)
class How:
    """How a layer attends: ``scale`` of the scores, their soft cap, the learned sink logits (H,), query heads
    that share a key-value head, and the sizes of keys and values that the bytes of a token follow from.
    """

    dtype: torch.dtype
    groups: int
    sizes: tuple[int, int, int]  # Hkv, D, Dv
    scale: float
    softcap: float | None
    sink_logit: Tensor | None


class KeptStream(CountedStream):
    """A policy on a kept set; ``turn_ends`` (N,) bool marks the last token of each turn."""

    path = "kept-set"

    def __init__(
        self, model: nn.Module, policy: Policy, layout: Layout, chunk: int, turn_ends: Tensor | None = None
    ) -> None:
        if policy.budget is not None:
            check_budget(model, policy.budget)
        super().__init__(model, layout)
        if layout.sliding:
            raise UnsupportedPolicyError(f"'{policy}' {SLIDING}")
        require_turns(policy, turn_ends)
        self.policy, self.chunk = policy, chunk
        self.absolute = policy.positions == "absolute"
        self.observes = policy.observes if isinstance(policy, Ranked) else Observes()
        self.state: dict[int, Layer] = {}
        self._how: dict[int, How] = {}
        self._tables: dict[Any, Any] = {}
        self._evicted_at: int | None = None
        ends = None if turn_ends is None else turn_ends.cpu().numpy()
        order = sorted(layout.layers)
        budgets = dict(zip(order, policy.layer_budgets(len(order)), strict=True))
        known = {budget: Schedule(policy, ends, budget) for budget in set(budgets.values())}
        self.schedules = {layer: known[budget] for layer, budget in budgets.items()}

    @property
    def missing_from(self) -> int | None:
        """The first query after the first eviction in any layer."""
        return self._evicted_at if self._evicted_at is not None and self.seen > self._evicted_at else None

    def slots(self) -> list[int]:
        """Tokens held in every layer, in order of the layers."""
        return [self._held(layer) for layer in self.schedules]

    def _held(self, layer: int) -> int:
        return self.state[layer].held if layer in self.state else 0

    def next_size(self, left: int) -> int:
        """Up to the end of the piece, the chunk size or the end."""
        if not self.policy.bounded:
            return min(left, self.chunk)
        schedule = next(iter(self.schedules.values()))  # pieces are the text's, the same in all layers
        return min(left, self.chunk, schedule.piece_end(self.seen) - self.seen)

    # -- one forward ------------------------------------------------------------------------------------

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        if self.policy.bounded:
            self._cut({i: one.kept_before(self.seen, self._held(i)) for i, one in self.schedules.items()})
        self._tables = {}
        hook.attend = self._attend
        hidden = hook.forward(ids[None], torch.zeros(1, len(ids), dtype=torch.long, device=ids.device))
        self.seen += len(ids)
        farthest = self.seen if self.absolute else max(one.width for one in self.state.values())
        self.largest_position = max(self.largest_position, farthest - 1)
        if self.policy.bounded:
            self._cut({i: one.kept_after(self.seen, self._held(i)) for i, one in self.schedules.items()})
        self.held = max(self.slots())
        return hidden

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        """q (1, H, L, D), k (1, Hkv, L, D) at rotary position 0, i.e. not rotated yet; v (1, Hkv, L, Dv)."""
        sizes = (k.shape[1], k.shape[3], v.shape[3])
        how = How(q.dtype, q.shape[1] // k.shape[1], sizes, scale, extra.get("softcap"), extra.get("s_aux"))
        self._how[layer] = how
        held, fresh = self.state[layer].width if layer in self.state else 0, q.shape[2]
        at = torch.arange(self.seen, self.seen + fresh, device=q.device, dtype=torch.int32)
        places = at if self.absolute else torch.arange(held, held + fresh, device=q.device)
        now = Layer.of(self._turned(layer, places, k) if self.absolute else k, v, at, self.policy.bits)
        now = self.state[layer].joined(now) if held else now
        keys, values = self._seen(layer, now)
        turned = self._turned(layer, places, q)
        if self.observes.received or now.ragged:  # empty slots have to be masked, as no fused kernel does
            out, received = self._watched(layer, turned, keys, values, now, at)
        else:
            out, received = self._unwatched(layer, turned, keys, values, now, how), None
        observed = now.observed.after(self.observes, q[0], at, received)
        self.state[layer] = now.observing(observed)
        return out

    def _unwatched(self, layer: int, q: Tensor, k: Tensor, v: Tensor, now: Layer, how: How) -> Tensor:
        """(1, H, L, Dv) by fused kernels: what is held, and the causal triangle of what is fed."""
        held, positions = k.shape[2] - q.shape[2], self.layout[layer].positions
        slopes = positions.slopes if isinstance(positions, Alibi) else None
        at = self._distances(now) if slopes is not None else None
        parts = [
            attend(
                q, k[:, :, own], v[:, :, own], how.scale, causal=causal, slopes=slopes,
                key_positions=None if at is None else at[:, own], softcap=how.softcap,
            )
            for own, causal in ((slice(held, None), True), (slice(held), False))[: 2 if held else 1]
        ]  # fmt: skip
        return merge(parts, how.sink_logit)

    def _watched(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, now: Layer, at: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(1, H, L, Dv), and attention received by every slot (Hkv, n + L), from the weights themselves."""
        weights = self._weights(layer, q[0], k[0], now, at)
        groups = q.shape[1] // k.shape[1]
        out = weights.to(v.dtype) @ v[0].repeat_interleave(groups, 0)
        return out[None], weights.sum(1).unflatten(0, (-1, groups)).mean(1)

    def _weights(self, layer: int, q: Tensor, k: Tensor, now: Layer, at: Tensor) -> Tensor:
        """(H, L, M) attention of turned queries at text positions ``at`` (L,) on keys no later than they."""
        how, positions = self._how[layer], self.layout[layer].positions
        bias = None
        if isinstance(positions, Alibi):
            groups = q.shape[0] // k.shape[0]
            bias = positions.slopes[:, None] * self._distances(now).repeat_interleave(groups, 0)
        see = (now.positions[:, None] <= at[:, None]) & (now.positions[:, None] >= 0)
        return probabilities(q, k, how.scale, see, bias=bias, softcap=how.softcap, sink_logit=how.sink_logit)

    def _distances(self, now: Layer) -> Tensor:
        """(Hkv, n) place of every slot, counted from the last: what ALiBi's slopes are multiplied with."""
        if self.absolute:
            return now.positions - now.positions[:, -1:]
        n = now.positions.shape[1]
        return torch.arange(1 - n, 1, device=now.positions.device).expand(len(now.positions), -1)

    def _seen(self, layer: int, now: Layer) -> tuple[Tensor, Tensor]:
        """Keys at their places and values, as attention sees them."""
        keys, values = now.plain(self._how[layer].dtype)
        if self.absolute:
            return keys, values
        return self._turned(layer, torch.arange(keys.shape[2], device=keys.device), keys), values

    def _turned(self, layer: int, places: Tensor, x: Tensor) -> Tensor:
        """``x`` (…, L, D) rotated to ``places`` (L,); tables are made once a forward."""
        rope = self.layout[layer].positions
        if not isinstance(rope, Rope) or not len(rope.inv_freq):
            return x
        key = (id(rope), int(places[0]), len(places))
        if key not in self._tables:
            self._tables[key] = rope.table(places, x.dtype)
        return rope.turn(x, self._tables[key])

    # -- eviction ---------------------------------------------------------------------------------------

    def _cut(self, counts: dict[int, int]) -> None:
        """Let every layer keep so many tokens."""
        for layer, count in counts.items():
            if count < self._held(layer):
                now = self.state[layer]
                self.state[layer] = now.only(choose(self.policy, self._view(layer, now), count))
                self._evicted_at = self.seen if self._evicted_at is None else self._evicted_at

    def _view(self, layer: int, now: Layer) -> Held:
        """The layer as the policy gets to see it."""
        (keys, values), how, queries = self._seen(layer, now), self._how[layer], now.observed.queries
        end = self.seen if self.absolute else keys.shape[2]

        def attention(count: int) -> Tensor:
            assert queries is not None
            asked = queries[:, -count:]
            places = torch.arange(end - asked.shape[1], end, device=keys.device)
            at = torch.arange(self.seen - asked.shape[1], self.seen, device=keys.device)
            return self._weights(layer, self._turned(layer, places, asked), keys[0], now, at)

        def future(count: int) -> tuple[Tensor, Tensor]:
            return self._average_turn(layer, now.observed, end, count)

        return Held(
            layer=layer,
            layers=len(self.schedules),
            seen=self.seen,
            keys=keys[0],
            values=values[0],
            positions=now.positions.long(),
            groups=how.groups,
            scale=how.scale,
            received=now.observed.received,
            attention=attention,
            future_queries=future,
        )

    def _average_turn(self, layer: int, observed: Observed, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Mean (H, D) and covariance (H, D, D) of queries under the mean rotation of the places to come."""
        assert observed.mean is not None
        assert observed.spread is not None
        mean, covariance = observed.mean, observed.spread / observed.count
        rope = self.layout[layer].positions
        if not isinstance(rope, Rope) or not len(rope.inv_freq):
            return mean, covariance
        cos, sin = rope.table(torch.arange(start, start + count, device=mean.device), torch.float32)
        average = (cos.mean(0, keepdim=True), sin.mean(0, keepdim=True))  # a rotation is linear in both

        def turn(x: Tensor) -> Tensor:
            return rope.turn(x, average)

        return turn(mean), turn(turn(covariance).transpose(1, 2)).transpose(1, 2)

    # -- what is held, and how to go back -----------------------------------------------------------------

    def nbytes(self) -> int:
        """Measured bytes of the keys and values held."""
        return sum(one.nbytes() for one in self.state.values())

    def allocated_bytes(self) -> int:
        """Measured bytes of all slots, empty ones included."""
        return sum(one.allocated() for one in self.state.values())

    def predicted_bytes(self) -> int:
        """Bytes of a token in each layer, times the tokens that the schedule keeps there."""
        return sum(self._token_bytes(layer) * kept for layer, kept in self._promised().items())

    def _promised(self) -> dict[int, int]:
        """Tokens that the schedule keeps in every layer after those fed so far."""
        if not self.policy.bounded:
            return dict.fromkeys(self.schedules, self.seen)
        known = {one: one.held(self.seen) for one in set(self.schedules.values())}
        return {layer: known[one] for layer, one in self.schedules.items()}

    def _token_bytes(self, layer: int) -> int:
        bits = self.policy.bits
        if bits is None or layer not in self._how:
            return self.layout[layer].token_bytes
        heads, *sizes = self._how[layer].sizes
        return heads * sum(stored_bytes(size, group_of(size), bits) for size in sizes)

    def state_bytes(self) -> int:
        """Measured bytes of text positions and of what the policy remembers to choose by."""
        return sum(one.state_nbytes() for one in self.state.values())

    def mark(self, steps: int) -> tuple[Any, ...]:
        """References suffice: nothing is written to."""
        return self.seen, self.held, self.largest_position, dict(self.state), self._evicted_at

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Undo the tokens fed since ``mark``."""
        self.seen, self.held, self.largest_position, state, self._evicted_at = mark
        self.state = dict(state)
