"""What the streaming code refuses to measure: each error is one sentence for a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ddposink.caches import Policy
from ddposink.caches.refused import refusal


class UnsupportedModelError(ValueError):
    """This model cannot be streamed; the message says why."""


class UnsupportedPolicyError(ValueError):
    """This policy cannot be measured on this model; the message says why."""


class PolicyNotAppliedError(RuntimeError):
    """The attention hook was not called once per layer: the numbers would be of another policy."""


class PolicyFaultError(RuntimeError):
    """A policy that ranks what is held gave an answer that is none; the message names it."""


class NotFiniteError(RuntimeError):
    """The model's own keys or values are NaN, and a policy had to choose among them."""

    nan = True  # the outcome of the cell, as where no policy has to choose


class NotProvenError(RuntimeError):
    """A stream does not give the numbers of the model itself; the message has both."""


REFUSALS = (
    UnsupportedModelError,
    UnsupportedPolicyError,
    PolicyFaultError,
    PolicyNotAppliedError,
    NotFiniteError,
    NotProvenError,
)
# How models fail that want other inputs, another cache or other attention than they are given.
FAILURES = (AttributeError, IndexError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError)


@contextmanager
def refusing_what_does_not_run() -> Iterator[None]:
    """A model that fails on the few tokens of an opening is refused with its error, not a crash."""
    try:
        yield
    except REFUSALS:
        raise
    except FAILURES as error:
        if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") or "memory" in str(error).lower():
            raise  # of the machine, not of the model
        raise UnsupportedModelError(f"this model does not run as a stream: {line(error)}") from error


def line(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    text = (str(error).strip().splitlines() or ["no reason given"])[0][:160]
    return f"{type(error).__name__}: {text}"


def require_turns(policy: Policy, turn_ends: Tensor | None) -> None:
    """Raise UnsupportedPolicyError if a policy evicts by turns and nobody knows where they end."""
    if policy.evict.by_turns and turn_ends is None:
        raise UnsupportedPolicyError(
            f"evict={policy.evict} needs a corpus whose turns are known (a tokenizer's text)"
        )


def refuse_by_configuration(policy: Policy, config: Mapping[str, Any] | None) -> None:
    """Raise UnsupportedPolicyError where a model's configuration says enough; before weights are loaded."""
    if why := refusal(policy, config or {}):
        raise UnsupportedPolicyError(why)
