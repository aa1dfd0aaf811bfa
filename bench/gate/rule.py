"""When a noisy difference counts: enough of it, surely enough, in a family of many.

A single threshold on a ratio cries wolf on a noisy machine and sleeps on a quiet one. Here a metric is
called worse only if all three agree: the paired t-test (Holm-adjusted over every cell and metric of the
gate), the bootstrap interval of the log-ratio, and an effect large enough to care about. It passes only
if an effect of that size can be ruled out; whatever lies between is undecided, and how many more pairs
would probably decide it is computed. Looking several times (``looks``) costs significance every time.

Two sessions of one machine differ by more than the runs within either (temperature, neighbours, memory
layout), and no test over the runs can see that. Values from different sessions are therefore held
against an allowance, and only a difference beyond it counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from bench.errors import UserError
from bench.stats import Shift, block_bootstrap_mean, holm, mean_shift

MOST_PAIRS = 1000  # beyond, no number of pairs is promised
_STILL = 1e-12  # a spread below this is none


class Verdict(StrEnum):
    """What the gate says of one metric of one cell."""

    PASS = "pass"
    REGRESSED = "regressed"
    IMPROVED = "improved"
    INCONCLUSIVE = "inconclusive"
    INCOMPARABLE = "incomparable"


@dataclass(frozen=True)
class Rule:
    """The terms of a decision.

    ``alpha``: chance that a gate without any true change calls something changed, all cells and metrics
    together, both directions. ``miss``: chance that a change as large as the minimum effect passes.
    ``effect``: minimum effect of noisy metrics that declare none. ``allowance``: relative difference
    granted to values from different sessions. ``looks``: how often the data may be judged.
    """

    alpha: float = 0.02
    miss: float = 0.05
    effect: float = 0.05
    allowance: float = 0.25
    looks: int = 1
    least_pairs: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5 or not 0 < self.miss < 0.5:
            raise ValueError("alpha and miss must lie between 0 and 0.5")

    @classmethod
    def asked(cls, alpha: float, allowance: float = allowance, looks: int = looks) -> Rule:
        """The rule a command line asks for. Raises UserError for what is none."""
        if not 0 < alpha < 0.5:
            raise UserError(f"--alpha {alpha:g}: should lie between 0 and 0.5", hint="for example 0.02")
        if not 0 <= allowance < math.inf:
            raise UserError(f"--allowance {allowance:g}: should be a share", hint="for example 0.25")
        return cls(alpha=alpha, allowance=allowance, looks=looks)


@dataclass(frozen=True)
class Evidence:
    """Logarithms of one metric on both sides, larger meaning worse; ``paired`` if measured side by side."""

    base: tuple[float, ...]
    head: tuple[float, ...]
    effect: float  # smallest relative effect worth reporting
    paired: bool = True


@dataclass(frozen=True)
class Decision:
    """A verdict with its reasons. ``shift`` and the limits are log-ratios, positive meaning worse."""

    verdict: Verdict
    pairs: int
    shift: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    more_pairs: int | None = None  # None unless inconclusive and within reach
    reason: str = ""


def decide(family: Sequence[Evidence], rule: Rule) -> list[Decision]:
    """One decision per piece of evidence; the significance level is shared by all of them."""
    shifts = [_shift(evidence, rule) for evidence in family]
    tested = [i for i, shift in enumerate(shifts) if shift is not None]
    p_values = {i: shifts[i].p_value(_threshold(family[i], rule)[0]) for i in tested}  # type: ignore[union-attr]
    adjusted = dict(zip(tested, holm([p_values[i] for i in tested]), strict=True)) if tested else {}
    decisions = []
    for i, (evidence, shift) in enumerate(zip(family, shifts, strict=True)):
        if shift is None:
            decisions.append(_too_few(evidence, rule))
        else:
            decisions.append(_decide(evidence, shift, p_values[i], adjusted[i], len(tested), rule))
    return decisions


def pairs_needed(shift: Shift, effect: float, family: int, rule: Rule) -> int | None:
    """Pairs at which a mean and spread like these would be decided; None if that is out of reach."""
    spread = shift.error * math.sqrt(shift.n)
    n = np.arange(max(shift.n + 1, rule.least_pairs), MOST_PAIRS + 1)
    tail = rule.alpha / rule.looks / 2 / max(family, 1)
    size, limit = abs(shift.estimate), math.log1p(effect)
    worse = scipy_stats.t.ppf(1 - tail, n - 1) * spread / np.sqrt(n) < size
    clear = (
        shift.estimate + scipy_stats.t.ppf(1 - rule.miss / rule.looks, n - 1) * spread / np.sqrt(n) < limit
    )
    enough = worse if size >= limit else clear
    return int(n[np.argmax(enough)]) if enough.any() else None


def detectable(spread: float, pairs: int, family: int, rule: Rule, power: float = 0.8) -> float:
    """Relative effect that ``pairs`` pairs find with probability ``power``.

    ``spread`` is the standard deviation of the log-ratio of a pair.
    """
    if pairs < 2:
        return math.inf
    tail = rule.alpha / rule.looks / 2 / max(family, 1)
    steps = scipy_stats.t.ppf(1 - tail, pairs - 1) + scipy_stats.t.ppf(power, pairs - 1)
    return math.expm1(min(float(steps) * spread / math.sqrt(pairs), 700.0))


def _shift(evidence: Evidence, rule: Rule) -> Shift | None:
    least = rule.least_pairs if evidence.paired else 2
    if min(len(evidence.base), len(evidence.head)) < least:
        return None
    shift = mean_shift(evidence.head, evidence.base, paired=evidence.paired)
    return shift if shift.error > _STILL else Shift(shift.estimate, 0.0, shift.df, shift.n)


def _threshold(evidence: Evidence, rule: Rule) -> tuple[float, float]:
    """Log-ratios: the difference that is granted, and the one that is worth reporting."""
    if evidence.paired:
        return _STILL, math.log1p(evidence.effect)
    limit = math.log1p(max(evidence.effect, rule.allowance))
    return limit, limit


def _decide(
    evidence: Evidence, shift: Shift, p_value: float, adjusted: float, family: int, rule: Rule
) -> Decision:
    granted, limit = _threshold(evidence, rule)
    reach = shift.bound(rule.alpha / rule.looks / 2)
    decision = Decision(
        Verdict.PASS,
        shift.n,
        shift=shift.estimate,
        low=shift.estimate - reach,
        high=shift.estimate + reach,
        p_value=p_value,
        p_adjusted=adjusted,
    )
    sure = adjusted <= rule.alpha / rule.looks and abs(shift.estimate) >= limit
    if sure and (not evidence.paired or _bootstrap_agrees(evidence, granted, rule)):
        return replace(decision, verdict=Verdict.REGRESSED if shift.estimate > 0 else Verdict.IMPROVED)
    if shift.estimate + shift.bound(rule.miss / rule.looks) < limit:
        return decision
    if not evidence.paired:
        reason = f"within or near the {rule.allowance * 100:g} % that separate sessions may differ by"
        return replace(decision, verdict=Verdict.INCONCLUSIVE, reason=reason)
    needed = pairs_needed(shift, evidence.effect, family, rule)
    more = None if needed is None else needed - shift.n
    reason = "" if more else f"not even {MOST_PAIRS} pairs would settle it"
    return replace(decision, verdict=Verdict.INCONCLUSIVE, more_pairs=more, reason=reason)


def _bootstrap_agrees(evidence: Evidence, granted: float, rule: Rule) -> bool:
    gaps: NDArray[np.float64] = np.asarray(evidence.head) - np.asarray(evidence.base)
    if np.ptp(gaps) <= _STILL:
        return True
    found = block_bootstrap_mean(gaps, block=1, level=1 - rule.alpha / rule.looks)
    return found.low > granted or found.high < -granted


def _too_few(evidence: Evidence, rule: Rule) -> Decision:
    n = min(len(evidence.base), len(evidence.head))
    if evidence.paired:
        more = rule.least_pairs - n
        return Decision(Verdict.INCONCLUSIVE, n, more_pairs=more, reason=f"only {n} pairs of processes")
    reason = "needs at least two processes on each side (repeat: in the suite)"
    return Decision(Verdict.INCONCLUSIVE, n, reason=reason)
