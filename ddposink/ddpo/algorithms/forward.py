"""Noising a clean picture, and what the network ought to say of it: for flow and DDIM models alike.

    x_t = α_t x_0 + σ_t ε,    ε ~ N(0, 1)

Flow models: α = 1 − t, σ = t, and the output is the velocity ε − x_0. DDIM models: α² = ᾱ, σ² = 1 − ᾱ, and
the output is ε, the velocity α ε − σ x_0 or x_0. At a given x_t these outputs are affine functions of each
other, x̂_0 = c(t) x_t + d(t) u; so mixtures of outputs whose weights add up to one mean the same in all, and
errors differ by the factor d(t) alone: x̂_0 − x_0 = d(t) (u − u*), with u* the output that is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.schedule import predicted

FLOW = "flow"


@dataclass(frozen=True)
class ForwardProcess:
    """Coefficients (T,) float32 at the times of the denoising steps; see the module docstring.

    ``prediction``: "flow", "epsilon", "v_prediction" or "sample", what the network says.
    """

    alpha: Tensor
    sigma: Tensor
    of_latents: Tensor  # c
    of_output: Tensor  # d
    prediction: str

    def noised(self, step: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """x_t (B,C,H,W) of ``clean`` latents at the times of denoising steps ``step`` (B,)."""
        return _row(self.alpha, step) * clean + _row(self.sigma, step) * noise

    def target(self, step: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """The output u* (B,C,H,W) that is right."""
        if self.prediction == FLOW:
            return noise - clean
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        return _row(self.alpha, step) * noise - _row(self.sigma, step) * clean

    def clean(self, step: Tensor, noised: Tensor, output: Tensor) -> Tensor:
        """The clean latents x̂_0 (B,C,H,W) that ``output`` means at ``noised``."""
        return _row(self.of_latents, step) * noised + _row(self.of_output, step) * output


def forward_process(scheduler: Any, timesteps: Tensor, flow: bool) -> ForwardProcess:
    """At ``timesteps`` (T,) of a `DenoisingSchedule`. Raises ValueError for an unknown prediction."""
    if flow:
        t = timesteps.double() / 1000
        return _process(FLOW, 1 - t, t, torch.ones_like(t), -t, device=timesteps.device)
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler.from_config(scheduler.config)
    alphas = ddim.alphas_cumprod.double()[timesteps.cpu()]
    prediction = ddim.config.prediction_type
    clean, _ = predicted(prediction, alphas, 1 - alphas)
    return _process(prediction, alphas.sqrt(), (1 - alphas).sqrt(), *clean, device=timesteps.device)


def drawn_times(samples: int, learnt: int, of: int, device: torch.device) -> Tensor:
    """(samples, learnt): different denoising steps of the first ``of`` for each sample, at random."""
    return torch.rand((samples, of), device=device).argsort(1)[:, :learnt]


def _process(
    prediction: str, alpha: Tensor, sigma: Tensor, c: Tensor, d: Tensor, device: torch.device
) -> ForwardProcess:
    alpha, sigma, c, d = (values.to(device, torch.float32) for values in (alpha, sigma, c, d))
    return ForwardProcess(alpha, sigma, c, d, prediction)


def _row(table: Tensor, step: Tensor) -> Tensor:
    return table[step].view(-1, 1, 1, 1)
