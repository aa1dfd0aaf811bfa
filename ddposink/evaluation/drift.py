"""How far a fine-tuned model has moved from the one it was: in its policy and in its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo import Engine
from ddposink.ddpo.networks import Rows, StableDiffusion
from ddposink.ddpo.policy import DenoisingPolicy
from ddposink.ddpo.schedule import float32_eta, flow_schedule, make_schedule
from ddposink.ddpo.table import flow_table
from ddposink.ddpo.window import DDIM, ODE
from ddposink.evaluation.diversity import frobenius_norm, gaussian_kl
from ddposink.evaluation.scores import Evaluator, ddim, generator
from ddposink.models.denoiser import denoiser, latent_shape

YARDSTICK = {True: (DDIM, 1.0), False: ("flow-sde", 0.7)}  # kernel and η, of DDIM models and of flow models


@torch.no_grad()
def kl_per_step(engine: Engine, evaluator: Evaluator, denoising_steps: int, pictures: int) -> float:
    """KL of the tuned from the base policy in nats per denoising step, over the tuned model's own path.

    Where training draws without noise, the noise of `YARDSTICK` is taken: without any, nothing is finite.
    At every noisy picture both models propose a Gaussian of the same variance; the step then follows the
    tuned one. Steps whose variance is zero (the last one of some schedules) have no divergence and do not
    count.
    """
    evaluator = _noisy(evaluator)
    if evaluator.network != StableDiffusion():
        return _kl_by_table(engine, evaluator, denoising_steps, pictures)
    pipeline = evaluator.pipeline
    planned = evaluator.plan()[:pictures]
    noise = [generator(prompt, seed) for prompt, seed in planned]
    guided = evaluator.guidance > 1
    prompts, negatives = [p for p, _ in planned], [evaluator.negative(seed) for _, seed in planned]
    text, negative = pipeline.encode_prompt(prompts, pipeline.device, 1, guided, negatives)
    states = torch.cat([negative, text]) if guided else text
    with ddim(pipeline), evaluator.precision():
        scheduler = pipeline.scheduler
        scheduler.set_timesteps(denoising_steps, device=pipeline.device)
        shape = latent_shape(pipeline)
        latents = _normal(noise, shape, states) * scheduler.init_noise_sigma
        found = []
        for t in scheduler.timesteps:
            fresh = _normal(noise, shape, states)
            tuned = _step(evaluator, latents, t, states, fresh)
            with engine.base():
                base = _step(evaluator, latents, t, states, fresh)
            std = _std(scheduler, int(t), denoising_steps, evaluator.eta)
            if std > 0:
                found.append(gaussian_kl(tuned, base, std).mean())
            latents = tuned
    return float(torch.stack(found).mean())


def _noisy(evaluator: Evaluator) -> Evaluator:
    """The same with noise in its steps."""
    if evaluator.eta and evaluator.kernel != ODE:
        return evaluator
    kernel, eta = YARDSTICK[evaluator.kernel == DDIM]
    return replace(evaluator, kernel=kernel if evaluator.kernel == ODE else evaluator.kernel, eta=eta)


def _kl_by_table(engine: Engine, evaluator: Evaluator, denoising_steps: int, pictures: int) -> float:
    """The same for every other kind, by the steps that are trained.

    Of a flow model every step that can be noisy is, wherever the window may be.
    """
    pipeline, config = evaluator.pipeline, engine.config
    planned = evaluator.plan()[:pictures]
    noise = [generator(prompt, seed) for prompt, seed in planned]
    last = config.sample_num_steps - config.noisy_steps
    if evaluator.kernel == DDIM:
        schedule = make_schedule(pipeline.scheduler, denoising_steps, evaluator.eta, pipeline.device)
    else:
        noisy = range(denoising_steps - last)
        table = flow_table(evaluator.kernel, evaluator.times(denoising_steps), evaluator.eta, noisy)
        schedule = flow_schedule(table, noisy, pipeline.device)
    network, guided = evaluator.network, evaluator.guidance > 1 and not evaluator.network.embeds_guidance
    texts = [evaluator.negative(seed) for _, seed in planned] if guided else []
    texts += [prompt for prompt, _ in planned]
    known = {text: network.encode(pipeline, text) for text in dict.fromkeys(texts)}
    pooled = [known[text].pooled for text in texts]
    rows = Rows(torch.stack([known[text].tokens for text in texts]), torch.stack(pooled))
    policy = DenoisingPolicy(
        unet=denoiser(pipeline),
        schedule=schedule,
        scale=evaluator.guidance,
        dtype=denoiser(pipeline).dtype,
        network=network,
    )
    latents = _normal(noise, latent_shape(pipeline), rows.tokens)
    found = []
    with evaluator.precision():
        for step, std in enumerate(schedule.sigma.tolist()):
            tuned = policy.mean(step, latents, rows)
            if std > 0:
                with engine.base():
                    base = policy.mean(step, latents, rows)
                found.append(gaussian_kl(tuned, base, std).mean())
            latents = tuned + std * _normal(noise, latent_shape(pipeline), rows.tokens)
    return float(torch.stack(found).mean())


def weight_change(engine: Engine) -> float:
    """Frobenius norm of the difference to the base weights, over all tuned matrices."""
    unet = denoiser(engine.pipeline)
    adapters = [module for module in unet.modules() if hasattr(module, "get_delta_weight")]
    if adapters:
        return frobenius_norm(
            module.get_delta_weight(name).detach() for module in adapters for name in module.active_adapters
        )
    tuned = {name: value.detach().clone() for name, value in unet.named_parameters()}
    with engine.base():
        return frobenius_norm(value.detach() - tuned[name] for name, value in unet.named_parameters())


def _step(evaluator: Evaluator, latents: Tensor, t: Tensor, states: Tensor, noise: Tensor) -> Tensor:
    """One DDIM step with the given noise: two models' results differ by their means alone."""
    pipeline, guided = evaluator.pipeline, evaluator.guidance > 1
    rows = torch.cat([latents, latents]) if guided else latents
    rows = pipeline.scheduler.scale_model_input(rows, t)
    out: Any = pipeline.unet(rows.to(states.dtype), t, encoder_hidden_states=states).sample.float()
    if guided:
        without, with_text = out.chunk(2)
        out = without + evaluator.guidance * (with_text - without)
    eta = float32_eta(pipeline.scheduler, evaluator.eta)
    return pipeline.scheduler.step(out, t, latents, eta=eta, variance_noise=noise).prev_sample


def _normal(generators: list[torch.Generator], shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(like.device)


def _std(scheduler: Any, t: int, steps: int, eta: float) -> float:
    """Standard deviation of a DDIM step; Song et al. 2021, equation 16."""
    previous = t - scheduler.config.num_train_timesteps // steps
    now = float(scheduler.alphas_cumprod[t])
    before = float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)
    return eta * ((1 - before) / (1 - now) * (1 - now / before)) ** 0.5
