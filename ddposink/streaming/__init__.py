"""Streaming evaluation: open the stream that measures a policy on a model, and prove it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.streaming.base import Stream
from ddposink.streaming.contrast import contrasted, key_tokens
from ddposink.streaming.decode import MODES, DecodeStream
from ddposink.streaming.dense import DenseStream
from ddposink.streaming.divergence import Divergence
from ddposink.streaming.exact import ExactStream
from ddposink.streaming.examine import (
    check_text_positions,
    inspect,
    length_limit,
    longest_turn,
    rebased_reach,
)
from ddposink.streaming.kept import KeptStream
from ddposink.streaming.kinds import choose
from ddposink.streaming.library import LibraryStream
from ddposink.streaming.perplexity import evaluate, stream_nll
from ddposink.streaming.positions import Layout
from ddposink.streaming.proof import prove
from ddposink.streaming.reference import ReferenceStream
from ddposink.streaming.refusals import (
    NotFiniteError,
    NotProvenError,
    PolicyFaultError,
    PolicyNotAppliedError,
    UnsupportedModelError,
    UnsupportedPolicyError,
    refuse_by_configuration,
    refusing_what_does_not_run,
)
from ddposink.streaming.schedule import ScheduledStream
from ddposink.streaming.trunk import Trunk

FARTHEST = 131_072  # position at which rotations are examined
EVALUATORS = ("auto", "exact", "decode", "reference")


@dataclass(frozen=True)
class Choice:
    """The stream that will measure, and the reason in one line.

    ``renew`` makes another of the same kind, for a text of its own, given the ends of its turns; it need not
    be proven again.
    """

    stream: Stream
    reason: str
    renew: Callable[[Tensor | None], Stream]


def open_stream(
    model: nn.Module,
    policy: Policy,
    *,
    evaluator: str = "auto",
    chunk: int = 1024,
    capacity: int = 0,
    turn_ends: Tensor | None = None,
    decode: str = "auto",
    length: int = 0,
) -> Choice:
    """The stream for ``policy`` on ``model``, proven on a few tokens (see `proof`).

    ``evaluator="auto"`` takes exact parallel evaluation. Raises UnsupportedPolicyError if the policy cannot
    be expressed on this model, at this ``length`` of text, or if the evaluator asked for cannot be had;
    UnsupportedModelError if the model is none that can be streamed; NotProvenError if the stream does not
    give the model's own numbers. Schedules other than per token have one evaluator that serves as exact.
    ``decode`` says how ring decode runs (see `DecodeStream`).
    """
    with refusing_what_does_not_run():
        trunk = Trunk.of(model)
        turn = longest_turn(turn_ends)
        check_text_positions(model, policy, length, turn)
        # No farther than that: angles beyond are too coarse in float32 to be told from a fault.
        reach = min(rebased_reach(policy, length, turn), FARTHEST)
        support = inspect(model, max(policy.budget or 0, reach))
        kind = choose(model, policy, support, evaluator, capacity, decode)
        step = 1 if evaluator == "decode" else chunk
        layout = kind.layout or Layout({})
        stream = kind.make(policy, layout, step, turn_ends)
        prove(kind.prove or kind.make, policy, trunk, kind.layout)
        return Choice(stream, kind.reason, lambda ends: kind.make(policy, layout, step, ends))


__all__ = [
    "EVALUATORS",
    "MODES",
    "Choice",
    "DecodeStream",
    "DenseStream",
    "Divergence",
    "ExactStream",
    "KeptStream",
    "LibraryStream",
    "NotFiniteError",
    "NotProvenError",
    "PolicyFaultError",
    "PolicyNotAppliedError",
    "ReferenceStream",
    "ScheduledStream",
    "Stream",
    "UnsupportedModelError",
    "UnsupportedPolicyError",
    "contrasted",
    "evaluate",
    "inspect",
    "key_tokens",
    "length_limit",
    "open_stream",
    "refuse_by_configuration",
    "stream_nll",
]
