"""Which tokens of a layer stay: what is protected, then the highest scores. A policy's answer is checked."""

from __future__ import annotations

import torch
from torch import Tensor

from ddposink.caches import Policy
from ddposink.caches.held import Held
from ddposink.caches.ranked import Ranked
from ddposink.streaming.refusals import NotFiniteError, PolicyFaultError

ROUNDING = 2.0**-20  # of a score in single precision: what differs by no more is equal


def choose(policy: Policy, held: Held, count: int) -> Tensor:
    """(Hkv, n) int64 ascending slots that stay of ``held``, ``count`` a head; -1 in front where a head keeps
    fewer than the one with the most. Raises PolicyFaultError for a faulty policy.

    Sinks and recent tokens of the policy are protected; where even they do not fit (room made for a turn),
    the recent ones yield. Equal scores, as far as single precision can tell: the earlier token stays.
    """
    positions = held.positions
    sinks = (positions >= 0) & (positions < policy.sinks)
    if not isinstance(policy, Ranked):
        return _highest(torch.where(sinks, torch.inf, positions.double()), [count] * len(positions))
    if (kept := policy.keep(held, count)) is not None:
        return _checked_slots(policy, kept, held, count)
    scores = _levelled(_checked(policy, policy.scores(held), held))
    recent = positions >= held.seen - policy.window
    # One scale for all: ranks of the scores, above them the recent tokens, above these the sinks.
    ranks = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1).neg().double()
    length = positions.shape[1]
    ranks = torch.where(recent, length + (positions - held.seen).double() + policy.window, ranks)
    ranks = torch.where(sinks, torch.inf, ranks).masked_fill(positions < 0, -torch.inf)
    free = (positions >= 0) & ~recent & ~sinks
    return _highest(ranks, _by_head(policy, scores.masked_fill(~free, -torch.inf), free, count))


def _levelled(scores: Tensor) -> Tensor:
    """``scores`` (Hkv, n), those of single precision that differ by rounding alone made one: the highest.

    The same word has the same key wherever it stands in the first layer: which of them stays must not depend
    on how a text was cut into forwards.
    """
    if scores.dtype is not torch.float32:
        return scores
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, :-1] - ordered[:, 1:] > ROUNDING * ordered[:, 1:].abs()
    places = torch.arange(scores.shape[1], device=scores.device)
    first = torch.where(begins, places, 0).cummax(-1).values
    return torch.empty_like(scores).scatter(-1, order, ordered.gather(-1, first))


def _highest(ranks: Tensor, counts: list[int]) -> Tensor:
    """Ascending slots of the ``counts`` highest ranks of each head, filled up in front with -1."""
    order, most = ranks.argsort(dim=-1, descending=True, stable=True), max(counts)
    if min(counts) == most:
        return order[:, :most].sort(-1).values
    slots = order[:, :most].clone()
    for row, count in zip(slots, counts, strict=True):
        row[count:] = -1
    return slots.sort(-1).values


def _by_head(policy: Ranked, scores: Tensor, free: Tensor, count: int) -> list[int]:
    """How many tokens each head keeps: ``count`` unless the policy shares them out among the heads."""
    heads, spare = len(scores), free.sum(-1)
    protected = (policy.sinks + policy.window) if count >= policy.sinks + policy.window else count
    shares = policy.share_out(scores, count - protected)
    if shares is None:
        return [count] * heads
    if (
        shares.shape != spare.shape
        or shares.is_floating_point()
        or int(shares.sum()) != heads * (count - protected)
    ):
        raise PolicyFaultError(f"'{policy}' shared out {shares.tolist()}, not {count - protected} a head")
    if bool((shares > spare).any()) or bool((shares < 0).any()):
        raise PolicyFaultError(f"'{policy}' gave a head {shares.tolist()} tokens of {spare.tolist()}")
    return [int(share) + protected for share in shares]


def _checked(policy: Ranked, scores: object, held: Held) -> Tensor:
    """The scores if they are what a policy promises. Raises PolicyFaultError naming the policy."""
    name, shape = f"'{policy}' (layer {held.layer})", tuple(held.positions.shape)
    if not isinstance(scores, Tensor):
        raise PolicyFaultError(f"{name} gave {type(scores).__name__} for its scores, not a tensor")
    if tuple(scores.shape) != shape:
        raise PolicyFaultError(
            f"{name} gave scores of shape {tuple(scores.shape)} for {shape[1]} tokens in {shape[0]} "
            f"key-value heads: expected {shape}"
        )
    if not scores.is_floating_point():
        raise PolicyFaultError(f"{name} gave scores of {scores.dtype}: expected floating point numbers")
    if bool(scores.isnan().any()):
        if bool(held.keys.isnan().any()) or bool(held.values.isnan().any()):
            raise NotFiniteError(f"{name} cannot choose: the model's own keys or values are NaN")
        raise PolicyFaultError(f"{name} gave NaN scores for {int(scores.isnan().sum())} tokens")
    return scores.detach()


def _checked_slots(policy: Ranked, kept: object, held: Held, count: int) -> Tensor:
    """Slots that a policy chose by itself, if they may be: (Hkv, count), each once, none that is not held."""
    name, shape = f"'{policy}' (layer {held.layer})", (len(held.positions), count)
    if not isinstance(kept, Tensor) or tuple(kept.shape) != shape or kept.is_floating_point():
        found = tuple(kept.shape) if isinstance(kept, Tensor) else type(kept).__name__
        raise PolicyFaultError(f"{name} kept slots {found}: expected integers of shape {shape}")
    length = held.positions.shape[1]
    if bool(((kept < 0) | (kept >= length)).any()):
        raise PolicyFaultError(f"{name} kept a slot beyond the {length} tokens held: no such token yet")
    slots = kept.long().sort(-1).values
    if bool((slots[:, 1:] == slots[:, :-1]).any()):
        raise PolicyFaultError(f"{name} kept a token twice")
    protected = (held.positions < policy.sinks) | (held.positions >= held.seen - policy.window)
    if int(protected.gather(1, slots).sum()) < min(count * len(slots), int(protected.sum())):
        raise PolicyFaultError(f"{name} dropped a token that it says it protects (sinks or recent)")
    return slots
