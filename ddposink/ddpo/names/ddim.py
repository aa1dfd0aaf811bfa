"""TRL's denoising step, which also says how likely its result was.

The native engine has the same step as tables (`ddposink.ddpo.schedule`); this one takes any timestep, as
methods and pipelines written for TRL may.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class DDPOSchedulerOutput:
    """The latents (B,C,H,W) after a denoising step, and their log-probability (B,)."""

    latents: Tensor
    log_probs: Tensor


def ddim_step(
    scheduler: Any,
    model_output: Tensor,
    timestep: Any,
    sample: Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Any = None,
    prev_sample: Tensor | None = None,
) -> DDPOSchedulerOutput:
    """One step from ``sample`` (B,C,H,W) at ``timestep``, () or (B,); drawn, or to ``prev_sample`` as given.

    DDIM (arXiv 2010.02502, eq. 12 and 16) as TRL runs it: the step before the last timestep is timestep 0.
    Raises ValueError without timesteps, or if both a generator and the result are given.
    """
    if scheduler.num_inference_steps is None:
        raise ValueError("the scheduler has no timesteps yet: call its set_timesteps first")
    if prev_sample is not None and generator is not None:
        raise ValueError(
            "give a generator or prev_sample, not both: nothing is drawn where the result is known"
        )
    settings, times = scheduler.config, torch.as_tensor(timestep).cpu()
    length = settings.num_train_timesteps
    before = (times - length // scheduler.num_inference_steps).clamp(0, length - 1)
    alpha, alpha_before = (_column(scheduler.alphas_cumprod.cpu()[at], sample) for at in (times, before))
    beta = 1 - alpha
    clean, noise = _predicted(settings.prediction_type, model_output, sample, alpha)
    if settings.thresholding:
        clean = scheduler._threshold_sample(clean)
    elif settings.clip_sample:
        clean = clean.clamp(-settings.clip_sample_range, settings.clip_sample_range)
    if use_clipped_model_output:
        noise = (sample - alpha.sqrt() * clean) / beta.sqrt()
    sigma = eta * ((1 - alpha_before) / beta * (1 - alpha / alpha_before)).sqrt()
    mean = alpha_before.sqrt() * clean + (1 - alpha_before - sigma**2).sqrt() * noise
    if prev_sample is None:
        from diffusers.utils.torch_utils import randn_tensor

        shape, device = model_output.shape, model_output.device
        drawn = randn_tensor(shape, generator=generator, device=device, dtype=model_output.dtype)
        prev_sample = mean + sigma * drawn
    squares = (prev_sample.detach() - mean) ** 2 / (2 * sigma**2)
    log_prob = -squares - sigma.log() - 0.5 * math.log(2 * math.pi)
    return DDPOSchedulerOutput(prev_sample.type(sample.dtype), log_prob.flatten(1).mean(1))


def _column(values: Tensor, like: Tensor) -> Tensor:
    """() or (B,) to what multiplies (B,C,H,W)."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)).to(like.device)


def _predicted(kind: str, output: Tensor, sample: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latents and the noise that a UNet's output means."""
    root, beta_root = alpha.sqrt(), (1 - alpha).sqrt()
    if kind == "epsilon":
        return (sample - beta_root * output) / root, output
    if kind == "v_prediction":
        return root * sample - beta_root * output, root * output + beta_root * sample
    if kind == "sample":
        return output, (sample - root * output) / beta_root
    raise ValueError(f"prediction_type '{kind}' is unknown: epsilon, v_prediction, sample")
