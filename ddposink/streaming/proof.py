"""Every stream proves itself when it opens: a few tokens, two comparisons, before anything is recorded.

1. Nothing evicted: the stream, fed in pieces, against one plain forward of the untouched model. Whatever
   the model does to its hidden states and logits, whatever it carries from token to token, is in there.
2. Under eviction: the same kind of stream at a tiny budget, the model's own windows cut down likewise,
   against the plain reference, whose keys are rotated by the model itself.

Logits are compared, relative to their own spread, so that random weights prove as much as trained ones.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ddposink.caches import Evict, Policy, Ranked, Sink
from ddposink.streaming.base import Stream
from ddposink.streaming.kinds import Maker
from ddposink.streaming.positions import Layout
from ddposink.streaming.reference import ReferenceStream
from ddposink.streaming.refusals import NotProvenError
from ddposink.streaming.trunk import Trunk

# Largest relative error of a token's logits; a kernel's rounding stays a hundred times below.
TOLERANCE = {torch.float64: 2e-3, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 0.2}
TOKENS = 17  # odd, and not divided by any piece
PIECE = 7  # tokens a forward
SINKS, WINDOW = 2, 3  # of the tiny budget: eviction starts at token 5, blocks of 3
EVERY = 4  # and no chunk of evict=chunk:N is longer than this
OWN = 3  # what a window of the model's own is cut down to under the tiny budget


@torch.no_grad()
def prove(make: Maker, policy: Policy, trunk: Trunk, layout: Layout | None) -> None:
    """Raise NotProvenError unless streams from ``make`` give the model's own numbers.

    Without ``layout`` (the library's own cache) only what the model itself defines is compared.
    """
    vocabulary = trunk.model.config.get_text_config().vocab_size
    ids = torch.randint(3, vocabulary, (TOKENS,), generator=torch.Generator().manual_seed(7)).to(trunk.device)
    turns = torch.zeros(TOKENS, dtype=torch.bool)
    turns[[3, 4, 11]] = True
    policy = replace(policy, bits=None)  # fewer bits are not the model's own numbers; the machinery is
    unbound = _unbound(policy)
    whole = layout or Layout({})
    compare_logits(
        _logits(make(unbound, whole, PIECE, turns), ids),
        trunk.plain_logits(ids),
        ids,
        "with nothing evicted",
        "one plain forward of the model",
    )
    if layout is None or not policy.bounded:
        return
    tiny = _tiny(policy)
    near = layout.narrowed(OWN)
    compare_logits(
        _logits(make(tiny, near, PIECE, turns), ids),
        _logits(ReferenceStream(trunk.model, tiny, near, turns), ids),
        ids,
        f"under eviction ('{tiny}')",
        "the plain reference",
    )


def _unbound(policy: Policy) -> Policy:
    """The policy with so large a budget that the few tokens evict nothing."""
    if isinstance(policy, Ranked):
        found: Policy = policy
        for tokens in (TOKENS, 8 * TOKENS, 64 * TOKENS):  # until the smallest layer's share is enough
            found = policy.resized(tokens)
            if (found.least_budget or 0) >= TOKENS:
                break
        return found
    return (
        replace(policy, sinks=min(policy.sinks, SINKS)).resized(TOKENS + SINKS) if policy.bounded else policy
    )


def _tiny(policy: Policy) -> Policy:
    """Sinks and a window at a tiny budget, on the policy's schedule and positions, which the reference knows.

    What a ranked policy chooses is its own business; that the stream drops, places and attends what it is
    told is proven with these. A text that is cut once is cut in chunks here.
    """
    every = min(policy.evict.every, EVERY)
    evict = Evict("chunk", every) if policy.evict.per in ("chunk", "once") else policy.evict
    if isinstance(policy, Ranked):
        return Sink(sinks=SINKS, window=WINDOW, positions=policy.positions, evict=evict)
    return replace(policy, sinks=min(policy.sinks, SINKS), window=WINDOW, evict=evict)


def _logits(stream: Stream, ids: Tensor) -> Tensor:
    """(n, vocabulary) of the stream, fed in whatever pieces it asks for."""
    pieces = []
    with stream.attached():
        while stream.seen < len(ids):
            size = min(PIECE, stream.next_size(len(ids) - stream.seen))
            pieces.append(stream.feed(ids[stream.seen : stream.seen + size]))
    return stream.head.logits(torch.cat(pieces))


def compare_logits(found: Tensor, expected: Tensor, ids: Tensor, when: str, yardstick: str) -> None:
    """Raise NotProvenError unless every token's logits (n, vocabulary) agree.

    They are centred (a softmax knows no offset) and their error is relative to their spread.
    """
    tolerance = TOLERANCE[found.dtype]
    a, b = (x.float() - x.float().mean(-1, keepdim=True) for x in (found, expected))
    error = (a - b).square().mean(-1).sqrt() / b.square().mean().sqrt()
    # In half precision a mixture of experts may route one token otherwise: one in four may differ.
    worst = error.quantile(0.75) if found.dtype in (torch.float16, torch.bfloat16) else error.max()
    if not bool(worst <= tolerance):
        mine, theirs = (_nll(x, ids) for x in (found, expected))
        raise NotProvenError(
            f"this stream does not give the model's own numbers {when}: its mean NLL of {len(ids) - 1} "
            f"tokens is {mine:.6f} where {yardstick} gives {theirs:.6f} (logits off by {float(worst):.2g} of "
            f"their spread)"
        )


def _nll(logits: Tensor, ids: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:]))
