"""Policies that choose by content, as their papers write them: one token at a time, lists, loops, float64.

For a Llama-like model. Shares no code with the fast path: heads are Python lists of tokens, rotations are
matrices, every softmax is over one query's visible tokens, scores are loops over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddposink.streaming.hook import attention_hook
from ddposink.streaming.trunk import Trunk


@dataclass
class Token:
    """Of one key-value head: place in the text, key before rotation, value, and the attention it received."""

    at: int
    key: np.ndarray
    value: np.ndarray
    received: list[float] = field(default_factory=list)


def rotation(place: int, size: int, base: float) -> np.ndarray:
    """(D, D) matrix that turns a head (half-split pairs) to ``place``."""
    half = size // 2
    matrix = np.zeros((size, size))
    for i in range(half):
        angle = place / base ** (2 * i / size)
        matrix[i, i] = matrix[half + i, half + i] = np.cos(angle)
        matrix[i, half + i], matrix[half + i, i] = -np.sin(angle), np.sin(angle)
    return matrix


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


class PlainKept:
    """``policy`` read for its options only; ``turns`` unsupported, evict token, chunk:N or once:N."""

    def __init__(self, model: Any, policy: Any) -> None:
        self.model, self.policy = model, policy
        self.base = model.config.rope_parameters["rope_theta"]
        self.layers = model.config.num_hidden_layers
        self.heads: dict[tuple[int, int], list[Token]] = {}
        self.queries: dict[tuple[int, int], list[np.ndarray]] = {}
        self.seen = 0

    def hidden(self, ids: Tensor) -> Tensor:
        """Hidden states (n, d) of ``ids`` (n,), one by one."""
        trunk, rows = Trunk.of(self.model), []
        with torch.no_grad(), attention_hook(trunk, self.attend, range(self.layers)) as hook:
            for one in ids:
                rows.append(hook.forward(one.view(1, 1), torch.zeros(1, 1, dtype=torch.long)))
                self.seen += 1
                self.evict()
        return torch.cat(rows)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: Any) -> Tensor:
        self.scale, self.groups = scale, q.shape[1] // k.shape[1]
        for head in range(k.shape[1]):
            token = Token(self.seen, k[0, head, 0].double().numpy(), v[0, head, 0].double().numpy())
            self.heads.setdefault((layer, head), []).append(token)
        out = []
        for head in range(q.shape[1]):
            query = q[0, head, 0].double().numpy()
            self.queries.setdefault((layer, head), []).append(query)
            tokens = self.heads[layer, head // self.groups]
            weights = softmax(self.scores(query, len(tokens) - 1, self.seen, tokens))
            for token, weight in zip(tokens, weights, strict=True):
                token.received.append(weight / self.groups)
            out.append(sum(w * t.value for w, t in zip(weights, tokens, strict=True)))
        return torch.tensor(np.stack(out)).to(q.dtype)[None, :, None]

    def scores(self, query: np.ndarray, slot: int, at: int, tokens: list[Token]) -> np.ndarray:
        """Of one query at cache ``slot`` and text place ``at``, over ``tokens``; later tokens are -inf."""
        size = len(query)
        absolute = self.policy.positions == "absolute"
        turned = rotation(at if absolute else slot, size, self.base) @ query
        return np.array(
            [
                self.scale * turned @ self.key(i, token) if token.at <= at else -np.inf
                for i, token in enumerate(tokens)
            ]
        )

    def key(self, slot: int, token: Token) -> np.ndarray:
        place = token.at if self.policy.positions == "absolute" else slot
        return rotation(place, len(token.key), self.base) @ token.key

    def evict(self) -> None:
        evict = self.policy.evict
        due = self.seen == evict.every if evict.per == "once" else self.seen % evict.every == 0
        if not due:
            return
        self.before = dict(self.heads)
        shared = {}
        for layer, head in list(self.heads):
            tokens = self.before[layer, head]
            budget = self.policy.layer_budget(layer, self.layers)
            if self.policy.kind == "adakv":
                if layer not in shared:
                    shared[layer] = self.shared(layer, budget)
                budget = shared[layer].get(head, len(tokens))
            if len(tokens) > budget:
                self.heads[layer, head] = self.kept(layer, head, tokens, budget)

    def kept(self, layer: int, head: int, tokens: list[Token], budget: int) -> list[Token]:
        scores = getattr(self, self.policy.kind.replace("-", "_"))(layer, head, tokens)
        stay = {t.at for t in tokens if t.at < self.policy.sinks or t.at >= self.seen - self.policy.window}
        order = sorted(range(len(tokens)), key=lambda i: -scores[i])
        for i in order:
            if len(stay) < budget:
                stay.add(tokens[i].at)
        return [t for t in tokens if t.at in stay]

    def last(self, layer: int, head: int, tokens: list[Token], count: int) -> list[np.ndarray]:
        """Attention over ``tokens`` of a head's last ``count`` queries, at the end of what is held."""
        asked = self.queries[layer, head][-count:]
        n, found = len(tokens), []
        for i, query in enumerate(asked):
            back = len(asked) - i
            found.append(softmax(self.scores(query, n - back, self.seen - back, tokens)))
        return found

    def query_heads(self, head: int) -> range:
        return range(head * self.groups, (head + 1) * self.groups)

    # -- scores ---------------------------------------------------------------------------------------------

    def h2o(self, layer: int, head: int, tokens: list[Token]) -> list[float]:
        """Queries so far each gave every group's head its weight."""
        divide = (lambda t: self.seen - t.at) if self.policy.average else (lambda t: 1)
        return [sum(t.received) / divide(t) for t in tokens]

    def tova(self, layer: int, head: int, tokens: list[Token]) -> list[float]:
        """All heads of the layer hold the same tokens."""
        every = range(len({h for la, h in self.heads if la == layer}) * self.groups)
        rows = [self.last(layer, h, self.before[layer, h // self.groups], 1)[0] for h in every]
        return list(np.mean(rows, axis=0))

    def snapkv(self, layer: int, head: int, tokens: list[Token]) -> list[float]:
        window, kernel = self.policy.window, self.policy.kernel
        total = np.zeros(len(tokens))
        for query_head in self.query_heads(head):
            mean = np.mean(self.last(layer, query_head, tokens, window), axis=0)
            for i, token in enumerate(tokens):
                if token.at >= self.seen - window:
                    mean[i] = 0.0
            for i in range(len(tokens)):
                for j in range(i - kernel // 2, i + kernel // 2 + 1):
                    if 0 <= j < len(tokens):
                        total[i] += mean[j] / kernel
        return list(total)

    pyramidkv = adakv = snapkv

    def shared(self, layer: int, budget: int) -> dict[int, int]:
        """Tokens that each head keeps under Ada-KV; nothing if the layer is not full yet."""
        heads = sorted(h for la, h in self.before if la == layer)
        if sum(len(self.before[layer, h]) for h in heads) <= budget * len(heads):
            return {}
        every = []
        for h in heads:
            tokens = self.before[layer, h]
            free = [
                (s, h)
                for s, t in zip(self.snapkv(layer, h, tokens), tokens, strict=True)
                if self.policy.sinks <= t.at < self.seen - self.policy.window
            ]
            every += free
        spare = {h: sum(1 for _, g in every if g == h) for h in heads}
        count = budget - self.policy.sinks - self.policy.window
        best = sorted(every, key=lambda one: -one[0])[: count * len(heads)]
        share = {h: sum(1 for _, g in best if g == h) for h in heads}
        wanted = {h: (1 - self.policy.floor) * share[h] + self.policy.floor * count for h in heads}
        found = {h: min(int(wanted[h]), spare[h]) for h in heads}
        while sum(found.values()) < count * len(heads):
            open_heads = [h for h in heads if found[h] < spare[h]]
            found[max(open_heads, key=lambda h: wanted[h] - found[h])] += 1
        return {h: found[h] + self.policy.sinks + self.policy.window for h in heads}

    def knorm(self, layer: int, head: int, tokens: list[Token]) -> list[float]:
        return [-float(np.linalg.norm(t.key)) for t in tokens]

    def keydiff(self, layer: int, head: int, tokens: list[Token]) -> list[float]:
        unit = [(k := self.key(i, t)) / np.linalg.norm(k) for i, t in enumerate(tokens)]
        anchor = np.mean(unit, axis=0)
        return [-float(u @ anchor / np.linalg.norm(anchor)) for u in unit]

    def expected_attention(self, layer: int, head: int, tokens: list[Token]) -> list[float]:
        size, start = len(tokens[0].key), self.seen if self.policy.positions == "absolute" else len(tokens)
        average = np.mean([rotation(start + i, size, self.base) for i in range(self.policy.future)], axis=0)
        total = np.zeros(len(tokens))
        for query_head in self.query_heads(head):
            asked = np.array(self.queries[layer, query_head][self.policy.sinks :])
            mean, covariance = average @ asked.mean(0), average @ np.cov(asked.T, bias=True) @ average.T
            keys = [self.key(i, t) for i, t in enumerate(tokens)]
            scores = [self.scale * mean @ k + self.scale**2 / 2 * k @ covariance @ k for k in keys]
            free = [i for i, t in enumerate(tokens) if t.at >= self.policy.sinks]
            total[free] += softmax(np.array(scores)[free]) / self.groups
        return [w * float(np.linalg.norm(t.value)) for w, t in zip(total, tokens, strict=True)]

    def lagkv(self, layer: int, head: int, tokens: list[Token]) -> list[float]:
        sinks, lag = self.policy.sinks, self.policy.lag
        scores = [1.0] * sinks + [2.0] * (len(tokens) - sinks)
        parts = (len(tokens) - sinks) // lag - 1
        for part in range(parts):
            own = range(sinks + part * lag, sinks + (part + 1) * lag)
            following = range(own.stop, own.stop + lag)
            total = np.zeros(lag)
            for read in (lambda i: self.key(i, tokens[i]), lambda i: tokens[i].value):
                after = np.array([read(i) for i in following])
                low, high = after.min(0), after.max(0)
                scaled = [np.std((read(i) - low) / (high - low), ddof=1) for i in own]
                total += softmax(np.array(scaled))
            for rank, i in enumerate(np.argsort(total)):
                scores[own.start + i] = (rank + 1) / lag
        return scores
