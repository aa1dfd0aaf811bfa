"""From answers to the figures of a cell. Pure: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.workload import Missing, Samples
from ddposink.workloads.recall_reader import Answer

Measured = dict[str, float | int | Missing | Samples | None]
Z = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(right: int, asked: int, z: float = Z) -> tuple[float, float]:
    """Limits of a share of independent answers (Wilson, JASA 22, 1927); 95 % unless ``z`` says otherwise.

    They stay within 0 and 1 and are no point where all or none are right, as a mean's own interval is.
    """
    if not 0 <= right <= asked or not asked:
        raise ValueError(f"{right} of {asked} is no share")
    share, weight = right / asked, z * z / asked
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / asked + weight / (4 * asked))
    low, high = middle - half, middle + half
    return (0.0 if right == 0 else low), (1.0 if right == asked else high)


def figures(answers: Sequence[Answer]) -> Measured:
    """Metrics of a cell's answers, at least one."""
    asked, right = len(answers), sum(answer.right for answer in answers)
    low, high = wilson(right, asked)
    nll = [answer.nll for answer in answers]
    return {
        "accuracy": Samples(right / asked, tuple(float(answer.right) for answer in answers)),
        "accuracy_low": low,
        "accuracy_high": high,
        "answer_nll": Samples(math.fsum(nll) / asked, tuple(nll)),
        "questions_asked": asked,
        "true_distance": sum(answer.distance for answer in answers) / asked,
        "tokens_fed": sum(answer.read for answer in answers),
        "kv_bytes": max(answer.kv_bytes for answer in answers),
    }
