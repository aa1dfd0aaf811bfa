"""One denoising step as numbers: per step a few coefficients, computed once in float64.

DDIM with η > 0 (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16) is a Gaussian whose mean is linear in the
current latents and the UNet's output,

    x_{t-1} ~ N(a_t x_t + b_t u_t, σ_t²),

whatever the UNet predicts (noise, velocity or the clean latents). So are the steps of flow models, see
`ddposink.ddpo.table`. Tables of a, b and σ replace the scheduler's arithmetic and its gathers in every step.
Only clipped latents are not linear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.table import Table

NO_SIGNAL = 1e-7  # ᾱ below which dividing by its root is dividing by nothing


@dataclass(frozen=True)
class Clipped:
    """Coefficients (T,) where predicted clean latents are clipped to ± ``range``: a mean that is not linear,

    ``of_clean`` · clip(``clean_latents`` x + ``clean_output`` u) + ``noise_latents`` x + ``noise_output`` u.
    """

    range: float
    clean_latents: Tensor
    clean_output: Tensor
    noise_latents: Tensor
    noise_output: Tensor
    of_clean: Tensor

    def mean(self, step: int | Tensor, x: Tensor, u: Tensor) -> Tensor:
        """Of the next latents (B,C,H,W), float32; see `DenoisingSchedule.mean`."""
        clean = _row(self.clean_latents, step) * x + _row(self.clean_output, step) * u
        noise = _row(self.noise_latents, step) * x + _row(self.noise_output, step) * u
        return _row(self.of_clean, step) * clean.clamp(-self.range, self.range) + noise


@dataclass(frozen=True)
class DenoisingSchedule:
    """Coefficients (T,) of every denoising step, first to last, float32 on ``timesteps``' device.

    Steps of ``noisy`` have a density; the others' σ is 0.
    """

    timesteps: Tensor  # (T,) what the network is told: int64, of flow models float32 in (0, 1000]
    latents: Tensor  # a
    output: Tensor  # b
    sigma: Tensor
    log_scale: Tensor  # log σ + ½ log 2π
    noisy: range
    clipped: Clipped | None = None  # a and b do not tell the mean then

    def __len__(self) -> int:
        return len(self.timesteps)

    def mean(self, step: int | Tensor, latents: Tensor, output: Tensor) -> Tensor:
        """Mean of the next latents, float32. ``step``: one for all rows, or (B,); the others (B,C,H,W)."""
        x, u = latents.float(), output.float()
        if self.clipped is not None:
            return self.clipped.mean(step, x, u)
        return _row(self.latents, step) * x + _row(self.output, step) * u

    def log_prob(
        self, step: int | Tensor, mean: Tensor, following: Tensor, reduction: str = "mean"
    ) -> Tensor:
        """Log-density (B,) of the ``following`` latents; per dimension on average (TRL's), or the sum."""
        scaled = ((following - mean) / _row(self.sigma, step)).flatten(1)
        squares = scaled.square()
        if reduction == "sum":
            return -0.5 * squares.sum(1) - squares.shape[1] * self.log_scale[step]
        return -0.5 * squares.mean(1) - self.log_scale[step]

    def divergence(self, step: int | Tensor, mean: Tensor, other: Tensor, reduction: str = "sum") -> Tensor:
        """KL (B,) between Gaussians of this step with two means (B,C,H,W): ‖Δμ‖²/(2σ²), in nats.

        Over all dimensions, or per dimension on average; differentiable. Exact, as the variances are equal.
        """
        squares = ((mean - other) / _row(self.sigma, step)).flatten(1).square()
        return 0.5 * (squares.sum(1) if reduction == "sum" else squares.mean(1))


def make_schedule(scheduler: Any, steps: int, eta: float, device: torch.device) -> DenoisingSchedule:
    """The DDIM schedule of ``steps`` denoising steps with a pipeline's scheduler settings, as TRL runs it.

    The step before the last timestep is timestep 0 (TRL clamps; DDIM's ``final_alpha`` is never used).
    Raises ValueError if a step would have no variance, or the settings are not expressible.
    """
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler.from_config(scheduler.config)
    if ddim.config.thresholding:
        raise ValueError(
            "dynamic thresholding is for pixel-space models; set the scheduler's thresholding to false"
        )
    ddim.set_timesteps(steps)
    times, length = ddim.timesteps, ddim.config.num_train_timesteps
    if int(times.max()) >= length:
        raise ValueError(f"{steps} denoising steps start beyond the schedule's {length} timesteps; use fewer")
    previous = (times - length // steps).clamp(0, length - 1)
    alpha, alpha_previous = ddim.alphas_cumprod.double()[times], ddim.alphas_cumprod.double()[previous]
    beta = 1 - alpha
    variance = (1 - alpha_previous) / beta * (1 - alpha / alpha_previous)
    if not bool((variance > 0).all()):
        at = int(times[variance <= 0][0])
        raise ValueError(
            f"the denoising step at timestep {at} has no variance, so its log-probability is undefined; the "
            f"scheduler needs steps_offset 1 (as Stable Diffusion's) or timestep_spacing 'trailing'"
        )
    sigma = eta * variance.sqrt()
    clean, noise = predicted(ddim.config.prediction_type, alpha, beta)
    direction = (1 - alpha_previous - sigma**2).clamp(min=0).sqrt()
    of_clean = alpha_previous.sqrt()

    def table(values: Tensor) -> Tensor:
        return values.to(device, torch.float32)

    clipped = None
    if ddim.config.clip_sample:
        clipped = Clipped(
            range=float(ddim.config.clip_sample_range),
            clean_latents=table(clean[0]),
            clean_output=table(clean[1]),
            noise_latents=table(direction * noise[0]),
            noise_output=table(direction * noise[1]),
            of_clean=table(of_clean),
        )
    return DenoisingSchedule(
        timesteps=times.to(device),
        latents=table(of_clean * clean[0] + direction * noise[0]),
        output=table(of_clean * clean[1] + direction * noise[1]),
        sigma=table(sigma),
        log_scale=table(_log_scale(sigma)),
        noisy=range(steps if eta > 0 else 0),
        clipped=clipped,
    )


def flow_schedule(table: Table, noisy: range, device: torch.device) -> DenoisingSchedule:
    """The steps of a flow model's ``table``, of which those of ``noisy`` have a density."""
    return DenoisingSchedule(
        timesteps=(1000 * table.times[:-1]).to(device, torch.float32),
        latents=table.a.to(device, torch.float32),
        output=table.b.to(device, torch.float32),
        sigma=table.s.to(device, torch.float32),
        log_scale=_log_scale(table.s).to(device, torch.float32),
        noisy=noisy,
    )


def _log_scale(sigma: Tensor) -> Tensor:
    return sigma.log() + 0.5 * math.log(2 * math.pi)


def float32_eta(scheduler: Any, eta: float) -> float:
    """``eta`` for code that computes DDIM's steps in float32: the library's, and TRL's.

    With zero terminal SNR and η = 1 the first step's 1 − ᾱ − σ² is zero, which float32 may round below zero,
    and its root is then no number. An η smaller by a millionth stays on the right side.
    """
    return min(eta, 1 - 2**-20) if scheduler.config.get("rescale_betas_zero_snr") else eta


def check_signal(scheduler: Any, steps: int) -> None:
    """Raise ValueError if a UNet that predicts noise is asked where there is nothing but noise.

    With zero terminal SNR (Lin et al. 2024, arXiv 2305.08891, section 3.1) the first denoising step divides
    by the signal's part, which is zero.
    """
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    times = ddim.timesteps.clamp(max=ddim.config.num_train_timesteps - 1)
    alpha = ddim.alphas_cumprod[times]
    if ddim.config.prediction_type == "epsilon" and float(alpha.min()) < NO_SIGNAL:
        raise ValueError(
            f"at timestep {int(times[alpha.argmin()])} nothing of the picture is left (zero terminal SNR), "
            f"and a UNet that predicts the noise says nothing about the picture there; zero terminal SNR is "
            f"for v_prediction: use a model trained so, or set rescale_betas_zero_snr to false"
        )


def predicted(
    prediction: str, alpha: Tensor, beta: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Clean latents and noise, each as coefficients (T,) of (latents, UNet output).

    ``alpha``: ᾱ (T,), ``beta``: 1 − ᾱ. Raises ValueError for an unknown ``prediction``.
    """
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "epsilon":
        return (1 / alpha.sqrt(), -(beta / alpha).sqrt()), (zero, one)
    if prediction == "v_prediction":
        return (alpha.sqrt(), -beta.sqrt()), (beta.sqrt(), alpha.sqrt())
    if prediction == "sample":
        return (zero, one), (1 / beta.sqrt(), -(alpha / beta).sqrt())
    raise ValueError(f"prediction_type '{prediction}' is unknown: epsilon, v_prediction, sample")


def _row(table: Tensor, step: int | Tensor) -> Tensor:
    value = table[step]
    return value.view(-1, 1, 1, 1) if value.ndim else value
