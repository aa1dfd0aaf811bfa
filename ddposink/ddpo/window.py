"""The kernels of denoising steps by name, and which steps are noisy in a training step. No torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

DDIM, ODE = "ddim", "ode"
STOCHASTIC = ("flow-sde", "dance-sde", "cps")
FLOW = (ODE, *STOCHASTIC)
KERNELS = (DDIM, *FLOW)
MOVES = ("fixed", "progressive", "random")


@dataclass(frozen=True)
class Window:
    """The denoising steps that are noisy in a training step, of the ``steps`` that may be.

    ``size`` of them in a row; ``progressive`` ones begin ``stride`` further after every ``every`` training
    steps, until they reach the end, ``random`` ones at a multiple of the stride drawn for each training
    step from ``seed``, so that a resumed training meets the same.
    """

    steps: int
    size: int
    stride: int = 1
    every: int = 1
    moves: str = "fixed"
    seed: int = 0

    def at(self, training_step: int) -> range:
        """Denoising steps that are noisy in training step ``training_step``, counted from 0."""
        last = self.steps - self.size
        begin = 0
        if self.moves == "progressive":
            begin = min(last, self.stride * (training_step // self.every))
        elif self.moves == "random":
            draw = random.Random(f"{self.seed}:{training_step // self.every}")
            begin = self.stride * draw.randrange(last // self.stride + 1)
        return range(begin, begin + self.size)
