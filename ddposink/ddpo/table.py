"""A denoising policy of a rectified-flow model as a table: x' = a·x + b·v + s·u for every denoising step.

Time runs from 1 (noise) to 0 (picture), x_t = (1−t)·data + t·noise, and the network predicts v = noise − data
(Liu et al. 2023; Esser et al. 2024, section 2). u is standard normal noise. Four kernels step from t to t',
with Δ = t' − t < 0:

- ``ode``: x + Δ·v, Euler's step;
- ``flow-sde`` (Flow-GRPO, Liu et al. 2025, arXiv 2505.05470, eq. 9): the same marginals at every time, with
  noise σ = η·√(t/(1−t)); at t = 1, where that is infinite, 1 − t' stands in for 1 − t as in their code;
- ``dance-sde`` (DanceGRPO, Xue et al. 2025, arXiv 2505.07818): the same with σ = η;
- ``cps`` (coefficients-preserving sampling, Wang & Yu 2025, arXiv 2509.05952): data and noise are predicted
  and mixed anew, fresh noise taking the place of predicted noise; its last step adds none.

All keep the data's part: a·(1−t) − b = 1 − t'. Noise may be confined to a window of the steps (MixGRPO, Li et
al. 2025, arXiv 2507.21802); the others are Euler's. A step with s = 0 has no density to learn from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.window import FLOW, ODE


@dataclass(frozen=True)
class Table:
    """``times`` (T+1,) from 1 to 0; ``a``, ``b``, ``s`` (T,): x' = a·x + b·v + s·u. float64, on the CPU."""

    times: Tensor
    a: Tensor
    b: Tensor
    s: Tensor

    def __len__(self) -> int:
        return len(self.a)


def grid(steps: int, shift: float = 1.0) -> Tensor:
    """(T+1,) float64 times from 1 to 0: t = shift·u / (1 + (shift−1)·u) of evenly spaced u, shifted once.

    The library's scheduler shifts its end points when it is made and the whole range again when it is asked
    for steps without naming them.
    """
    even = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return shift * even / (1 + (shift - 1) * even)


def flow_table(kernel: str, times: Tensor, eta: float, noisy: range | None = None) -> Table:
    """``kernel`` on ``times`` (T+1,), its noise scaled by ``eta``; Euler's steps outside of ``noisy``.

    Raises ValueError for a kernel that is none of `FLOW`, or a window beyond the steps.
    """
    if kernel not in FLOW:
        raise ValueError(f"'{kernel}' is no kernel of flow models: {', '.join(FLOW)}")
    steps = len(times) - 1
    noisy = range(steps) if noisy is None else noisy
    if noisy and not 0 <= noisy[0] <= noisy[-1] < steps:
        raise ValueError(f"denoising steps {noisy[0]} to {noisy[-1]} are not within the {steps} there are")
    rows = []
    for i, (t, later) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        rows.append(_step(kernel if i in noisy else ODE, t, later, eta))
    a, b, s = torch.tensor(rows, dtype=torch.float64).T
    return Table(times, a, b, s)


def _step(kernel: str, t: float, later: float, eta: float) -> tuple[float, float, float]:
    change = later - t
    if kernel == ODE:
        return 1.0, change, 0.0
    if kernel == "cps":
        kept, fresh = later * math.cos(eta * math.pi / 2), later * math.sin(eta * math.pi / 2)
        return 1 - later + kept, kept * (1 - t) - (1 - later) * t, fresh
    variance = eta**2
    if kernel == "flow-sde":
        variance *= t / (1 - (t if t < 1 else later))
    drift = change * variance / (2 * t)
    return 1 + drift, change + drift * (1 - t), math.sqrt(variance * -change)


def shift_of(scheduler: Any, tokens: int) -> float:
    """How far a flow scheduler's settings shift its times towards noise, for latents of so many ``tokens``.

    Raises ValueError for settings that a shift does not express.
    """
    config = scheduler.config
    for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal"):
        if config.get(name):
            raise ValueError(f"the scheduler's {name} is not a shift of evenly spaced times; switch it off")
    if config.get("invert_sigmas"):
        raise ValueError("the scheduler's times run from picture to noise (invert_sigmas); switch it off")
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = base + (most - base) * (tokens - low) / (high - low)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
