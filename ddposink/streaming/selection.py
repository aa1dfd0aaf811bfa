"""Which tokens of a layer stay: what is protected, then the highest scores. A policy's answer is checked."""

from __future__ import annotations

import torch
from torch import Tensor

from ddposink.caches import Policy
from ddposink.caches.held import Held
from ddposink.caches.ranked import Ranked
from ddposink.streaming.refusals import PolicyFaultError


def choose(policy: Policy, held: Held, count: int) -> Tensor:
    """(Hkv, count) int64 ascending slots that stay of ``held``. Raises PolicyFaultError for a faulty policy.

    Sinks and recent tokens of the policy are protected; where even they do not fit (room made for a turn),
    the recent ones yield. Equal scores: the earlier token stays.
    """
    positions = held.positions
    sinks = positions < policy.sinks
    if not isinstance(policy, Ranked):
        return _highest(torch.where(sinks, torch.inf, positions.double()), count)
    if (kept := policy.keep(held, count)) is not None:
        return _checked_slots(policy, kept, held, count)
    scores = _checked(policy, policy.scores(held), held)
    recent = positions >= held.seen - policy.window
    # One scale for all: ranks of the scores, above them the recent tokens, above these the sinks.
    ranks = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1).neg().double()
    length = positions.shape[1]
    ranks = torch.where(recent, length + (positions - held.seen).double() + policy.window, ranks)
    return _highest(torch.where(sinks, torch.inf, ranks), count)


def _highest(ranks: Tensor, count: int) -> Tensor:
    order = ranks.argsort(dim=-1, descending=True, stable=True)[:, :count]
    return order.sort(-1).values


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
