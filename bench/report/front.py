"""The front of a picture: the points that no other beats, as a staircase. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from bench.report.panels import Line

FRONT = "the front"  # what the staircase is called in legends


def front(lines: Iterable[Line], *, higher: bool) -> Line | None:
    """The best y to be had for at most so much x, as a staircase over all points of ``lines``.

    None if there is but one point. ``higher`` says which y is better.
    """
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if np.isfinite(y)]
    steps: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1] if higher else p[1])):
        if not steps or (y > steps[-1][1] if higher else y < steps[-1][1]):
            steps.append((float(x), float(y)))
    if len(points) < 2:
        return None
    corners = [steps[0]]
    for (_, before), (x, y) in pairwise(steps):
        corners += [(x, before), (x, y)]
    corners.append((max(float(x) for x, _ in points), steps[-1][1]))
    array = np.array(corners).T
    nothing = np.full(len(corners), np.nan)
    return Line(array[0], array[1], nothing, nothing)
