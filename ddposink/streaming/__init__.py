"""Streaming evaluation: which stream measures a policy on a model, and why that one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.streaming.base import Stream
from ddposink.streaming.decode import MODES, DecodeStream
from ddposink.streaming.dense import DenseStream
from ddposink.streaming.exact import ExactStream
from ddposink.streaming.families import UnsupportedPolicyError, inspect, own_windows
from ddposink.streaming.hook import PolicyNotAppliedError, probe
from ddposink.streaming.library import LibraryStream
from ddposink.streaming.perplexity import evaluate, stream_nll
from ddposink.streaming.reference import ReferenceStream
from ddposink.streaming.schedule import ScheduledStream

EVALUATORS = ("auto", "exact", "decode", "reference")


@dataclass(frozen=True)
class Choice:
    """The stream that will measure, and the reason in one line."""

    stream: Stream
    reason: str


def open_stream(
    model: nn.Module,
    policy: Policy,
    *,
    evaluator: str = "auto",
    chunk: int = 1024,
    capacity: int = 0,
    turn_ends: Tensor | None = None,
    decode: str = "auto",
) -> Choice:
    """The stream for ``policy`` on ``model``.

    ``evaluator="auto"`` takes exact parallel evaluation where it is exact and says why where it is not.
    Raises UnsupportedPolicyError if the policy cannot be expressed on this model, or if the evaluator
    asked for cannot be had. Schedules other than per token have one evaluator that serves as exact.
    ``decode`` says how ring decode runs (see `DecodeStream`).
    """
    chunk = 1 if evaluator == "decode" else chunk
    support = inspect(model)
    if support.path == "exact" and (why := probe(model)) is not None:
        raise PolicyNotAppliedError(why)
    if support.positions is None:
        if evaluator in ("exact", "reference"):
            raise UnsupportedPolicyError(f"no {evaluator} evaluation on this model: {support.reason}")
        return Choice(LibraryStream(model, policy, chunk), support.reason)
    positions = support.positions
    if evaluator == "reference":
        return Choice(ReferenceStream(model, policy, positions, turn_ends), "plain StreamingLLM, asked for")
    if not policy.bounded:
        if any(own is not None for own in own_windows(model)):
            return Choice(
                LibraryStream(model, policy, chunk), "dense on a model with sliding layers of its own"
            )
        return Choice(DenseStream(model, positions, chunk, capacity), f"dense in chunks; {support.reason}")
    if policy.evict.per != "token":
        if evaluator == "decode":
            raise UnsupportedPolicyError(f"decode evicts after every token; '{policy}' does not")
        return Choice(
            ScheduledStream(model, policy, positions, chunk, turn_ends),
            f"one forward per piece; {support.reason}",
        )
    if evaluator == "decode":
        return Choice(DecodeStream(model, policy, positions, mode=decode), "token by token, asked for")
    return Choice(ExactStream(model, policy, positions, chunk, decode=decode), support.reason)


__all__ = [
    "EVALUATORS",
    "MODES",
    "Choice",
    "DecodeStream",
    "DenseStream",
    "ExactStream",
    "LibraryStream",
    "PolicyNotAppliedError",
    "ReferenceStream",
    "ScheduledStream",
    "Stream",
    "UnsupportedPolicyError",
    "evaluate",
    "inspect",
    "open_stream",
    "stream_nll",
]
