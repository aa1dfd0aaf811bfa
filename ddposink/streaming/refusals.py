"""What the streaming code refuses to measure: each error is one sentence for a record."""

from __future__ import annotations


class UnsupportedModelError(ValueError):
    """This model cannot be streamed; the message says why."""


class UnsupportedPolicyError(ValueError):
    """This policy cannot be measured on this model; the message says why."""


class PolicyNotAppliedError(RuntimeError):
    """The attention hook was not called once per layer: the numbers would be of another policy."""


class NotProvenError(RuntimeError):
    """A stream does not give the numbers of the model itself; the message has both."""
