"""Bytes that a training must hold: predicted from shapes, and counted from the tensors themselves."""

from __future__ import annotations

import math
from typing import Any

import torch

from ddposink.ddpo import Engine
from ddposink.ddpo.pairs import PreferencePairs
from ddposink.models.denoiser import denoiser, latent_shape

ADAM_MOMENTS = 2


def state_bytes(engine: Engine) -> int:
    """Actual bytes of all weights of the pipeline and of gradients and optimizer moments alive now."""
    optimizer: Any = getattr(engine, "optimizer", None)
    tensors = {id(t): t for module in _modules(engine) for t in (*module.parameters(), *module.buffers())}
    gradients = [p.grad for p in denoiser(engine.pipeline).parameters() if p.grad is not None]
    moments = [
        value
        for state in (optimizer.state.values() if optimizer is not None else ())
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    return sum(t.numel() * t.element_size() for t in (*tensors.values(), *gradients, *moments))


def state_bytes_analytic(engine: Engine, pairs: PreferencePairs | None = None) -> int:
    """Predicted bytes of weights, two Adam moments and the trajectories of one training step.

    A trajectory is T+1 latents of one sample, T log-probabilities and T timesteps. Where ``pairs`` are
    learnt from, there are the latents of all of their pictures instead, and those of a step once more.
    """
    weights = sum(p.numel() * p.element_size() for module in _modules(engine) for p in module.parameters())
    trained = [p for p in denoiser(engine.pipeline).parameters() if p.requires_grad]
    moments = ADAM_MOMENTS * sum(p.numel() * p.element_size() for p in trained)
    config, latent = engine.config, 4 * math.prod(latent_shape(engine.pipeline))
    steps = config.sample_num_steps
    if pairs is not None:
        return weights + moments + (len(pairs.pictures) + 2 * config.samples_per_epoch) * latent
    return weights + moments + config.samples_per_epoch * ((steps + 1) * latent + steps * (4 + 8))


def _modules(engine: Engine) -> list[torch.nn.Module]:
    return [part for part in engine.pipeline.components.values() if isinstance(part, torch.nn.Module)]
