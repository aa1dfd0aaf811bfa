"""Denoising steps of rectified flow as numbers: a table of (a, b, s) like DDIM's.

A flow model gives v = noise − x₀ at x_t = (1−t)·x₀ + t·noise. One step from t to t' < t is

    x' = a·x + b·v + s·u,    u ~ N(0, 1),

with, for Δ = t − t':

- ``ode``: a = 1, b = −Δ, s = 0 (Euler; Liu et al. 2023);
- ``flow-sde``: a = 1 − σ²Δ/2t, b = −Δ·(1 + σ²(1−t)/2t), s = σ√Δ with σ² = η²·t/(1−t)
  (Flow-GRPO, arXiv 2505.05470, eq. 9 and after; at t = 1 its code divides by 1−t', and so does this);
- ``dance-sde``: the same with σ = η (DanceGRPO, arXiv 2505.07818, section 3);
- ``cps``: (1−t')·x̂₀ + t'·(cos(ηπ/2)·noise + sin(ηπ/2)·u), which keeps the noise level at t'
  (coefficient-preserving sampling, arXiv 2509.05952).

Every kernel moves the clean picture alike: a(1−t) − b = 1 − t'. Inside an SDE window (MixGRPO, arXiv
2507.21802) a kernel is stochastic; the steps outside are ``ode``, have no density, and are not learnt from.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddposink.ddpo.schedule import DenoisingSchedule

KERNELS = ("flow-sde", "dance-sde", "cps")  # those with a density
TIMESTEPS = 1000  # what the networks are told of t


def flow_times(steps: int, shift: float) -> Tensor:
    """(T+1,) float64 from 1 to 0: t = shift·u / (1 + (shift−1)·u) at u = 1 − i/T (Esser et al. 2024, eq. 23).

    Made here and not by a library's scheduler: the shift is applied exactly once.
    """
    if not shift > 0:
        raise ValueError(f"the shift of a flow's times must be positive, not {shift!r}")
    even = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return shift * even / (1 + (shift - 1) * even)


def flow_table(times: Tensor, kernel: str, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and s, each (T,) float64, of the steps between ``times`` (T+1,).

    Raises ValueError for a kernel that is none of ``ode`` and `KERNELS`.
    """
    now, then = times[:-1], times[1:]
    gap = now - then
    if kernel == "ode" or eta == 0:
        return torch.ones_like(now), -gap, torch.zeros_like(now)
    if kernel == "cps":
        kept, fresh = math.cos(eta * math.pi / 2), math.sin(eta * math.pi / 2)
        return (1 - then) + then * kept, -(1 - then) * now + then * kept * (1 - now), then * fresh
    if kernel == "flow-sde":
        below = torch.where(now == 1, then, now)
        variance = eta**2 * now / (1 - below)
    elif kernel == "dance-sde":
        variance = torch.full_like(now, eta**2)
    else:
        raise ValueError(f"kernel '{kernel}' is unknown: ode, {', '.join(KERNELS)}")
    pull = variance / (2 * now)
    return 1 - pull * gap, -gap * (1 + pull * (1 - now)), (variance * gap).sqrt()


def make_flow_schedule(
    steps: int, shift: float, kernel: str, eta: float, window: range, device: torch.device
) -> DenoisingSchedule:
    """The table of ``steps`` denoising steps, ``kernel`` in the ``window`` of them and ``ode`` elsewhere."""
    times = flow_times(steps, shift)
    inside = torch.tensor([step in window for step in range(steps)])
    still, moving = flow_table(times, "ode", 0.0), flow_table(times, kernel, eta)
    a, b, s = (torch.where(inside, one, other) for one, other in zip(moving, still, strict=True))

    def table(values: Tensor) -> Tensor:
        return values.to(device, torch.float32)

    zero = table(torch.zeros(steps))
    return DenoisingSchedule(
        timesteps=table(TIMESTEPS * times[:-1]),
        latents=table(a),
        output=table(b),
        sigma=table(s),
        log_scale=table(torch.where(s > 0, s, 1).log() + 0.5 * math.log(2 * math.pi)),
        clip=None,
        clean_latents=zero,
        clean_output=zero,
        noise_latents=zero,
        noise_output=zero,
        of_clean=zero,
        deterministic=bool((s == 0).any()),
    )
