"""Drawing trajectories: all batches of an epoch side by side, random numbers in the order TRL draws them.

One time-first tensor holds every trajectory. Its slots are filled with noise first (a batch at a time, as
TRL would), and a denoising step turns the noise of its slot into latents in place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.judge import Reward, ask_in_parts, joined
from ddposink.ddpo.layout import decoded_at_once
from ddposink.ddpo.policy import Conditions, DenoisingPolicy
from ddposink.ddpo.randomness import shared_noise


@dataclass(frozen=True)
class BaseMeans:
    """What the base model would have done on some samples, see `ddposink.ddpo.reference`.

    ``means`` (T, M, C, H, W) of noisy steps; ``place`` (N,): which of the M a sample is, -1 if not asked of.
    """

    means: Tensor
    place: Tensor

    def of(self, step: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Means (B, C, H, W) of pairs, and (B,) which of them are known; the others mean nothing."""
        place = self.place[sample]
        return self.means[step, place.clamp(min=0)], place >= 0  # no selection: its size would be waited for


@dataclass
class Trajectories:
    """N samples of T denoising steps; ``graph`` keeps log-probabilities that still have their history."""

    prompts: list[str]
    text: Conditions
    latents: Tensor  # (T+1, N, C, H, W) float32
    log_probs: Tensor  # (T, N) float32, 0 where a step has no density
    graph: list[tuple[slice, Tensor]]  # rows, and their (T, rows) log-probabilities
    source: Tensor  # (N,) on the CPU: the first sample that starts from the same latents, prompt and negative
    together: int = 0  # the denoising step up to which samples that start alike have the same latents
    means: Tensor | None = None  # (T, N, C, H, W) of the policy that drew them, where it is asked for
    base: BaseMeans | None = None


@dataclass(frozen=True)
class Draw:
    """How much to draw: ``batches`` of ``batch`` samples, ``rows`` of them in one forward."""

    batch: int
    batches: int
    rows: int
    guided: bool
    keep_graph: bool = False
    shared: int = 1  # samples in a row that start from the same latents
    steps: int | None = None  # denoising steps taken, of all; the slots of the others keep their noise
    keep_means: bool = False  # of noisy steps


def sample(
    policy: DenoisingPolicy, text: Conditions, prompts: list[str], draw: Draw, shape: Sequence[int]
) -> Trajectories:
    """Draw trajectories with latents of ``shape`` (C, H, W) for ``prompts``, ``batches`` times ``batch``."""
    steps, count = len(policy.schedule), draw.batch * draw.batches
    device = text.embeddings.device
    latents = torch.empty((steps + 1, count, *shape), device=device)
    for start in range(0, count, draw.batch):
        rows = slice(start, start + draw.batch)
        for slot in range(steps + 1):
            latents[slot, rows] = torch.randn(
                (draw.batch, *shape), device=device, dtype=text.embeddings.dtype
            )
    latents[0] = shared_noise(latents[0], draw.shared)
    found = Trajectories(
        prompts,
        text,
        latents,
        torch.zeros((steps, count), device=device),
        [],
        sources(text, draw.shared),
        policy.schedule.noisy.start,
        torch.zeros_like(latents[1:]) if draw.keep_means else None,
    )
    for start in range(0, count, draw.rows):
        rows = slice(start, min(start + draw.rows, count))
        if draw.keep_graph:
            found.graph.append((rows, _denoise(policy, found, rows, draw)))
        else:
            with torch.inference_mode():
                _denoise(policy, found, rows, draw)
    return found


def sources(text: Conditions, shared: int) -> Tensor:
    """`Trajectories.source` where the latents of every ``shared`` samples in a row are the same."""
    samples = torch.arange(len(text.prompt))
    if shared == 1:
        return samples
    inputs = torch.stack([samples // shared, text.prompt.cpu(), text.negative.cpu()])
    _, which = torch.unique(inputs, dim=1, return_inverse=True)
    first = torch.full((len(samples),), len(samples)).scatter_reduce(0, which, samples, "amin")
    return first[which]


def _denoise(policy: DenoisingPolicy, found: Trajectories, rows: slice, draw: Draw) -> Tensor:
    """Fill in the latents of ``rows``, and return the log-probabilities (noisy steps, rows)."""
    guided = draw.guided
    schedule, embeddings = policy.schedule, found.text.take(rows).rows(guided)
    first, which = torch.unique(found.source[rows], return_inverse=True)
    log_probs = []
    for step in range(len(schedule) if draw.steps is None else draw.steps):
        if step <= found.together and len(first) < len(which):  # the same input for many samples
            mean = policy.mean(step, found.latents[step, first], found.text.take(first).rows(guided))[which]
        else:
            mean = policy.mean(step, found.latents[step, rows], embeddings)
        following = found.latents[step + 1, rows].mul_(schedule.sigma[step]).add_(mean.detach())
        if step in schedule.noisy and found.means is not None:
            found.means[step, rows] = mean.detach()
        if step in schedule.noisy:
            log_probs.append(policy.log_prob(step, mean, following))
            found.log_probs[step, rows] = log_probs[-1].detach()
    return torch.stack(log_probs) if log_probs else found.log_probs[:0, rows]


@torch.inference_mode()
def pictures(pipeline: Any, latents: Tensor) -> Tensor:
    """See `decoded`; without a gradient."""
    return decoded(pipeline, latents)


def decoded(pipeline: Any, latents: Tensor) -> Tensor:
    """Decode latents (B,C,H,W) to pictures (B,3,H',W') in [0, 1], float32."""
    vae = pipeline.vae
    rows = decoded_at_once(latents, len(vae.config.block_out_channels))
    found = []
    scaled = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    for some in scaled.to(vae.dtype).split(rows):
        decoded = vae.decode(some, return_dict=False)[0]
        found.append((decoded.float() * 0.5 + 0.5).clamp(0, 1))
    return torch.cat(found)


@dataclass(frozen=True)
class Judged:
    """``rewards`` (N,) float32; of a sum of rewards also its ``parts`` by name; seconds in the reward."""

    rewards: Tensor
    parts: dict[str, Tensor]
    seconds: float

    def cpu_parts(self) -> dict[str, Tensor]:
        """``parts`` on the CPU."""
        return {name: values.cpu() for name, values in self.parts.items()}


def judged(pipeline: Any, found: Trajectories, reward: Reward, batch: int) -> Judged:
    """The finished samples, judged a sampling batch at a time as TRL does. Raises ValueError: see `ask`."""
    answers, seconds = [], 0.0
    for start in range(0, len(found.prompts), batch):
        rows = slice(start, start + batch)
        images, prompts = pictures(pipeline, found.latents[-1, rows]), found.prompts[rows]
        if images.is_cuda:
            torch.cuda.synchronize(images.device)  # the reward waits for the pictures, and is not their time
        begun = time.perf_counter()
        answers.append(ask_in_parts(reward, images, prompts))
        seconds += time.perf_counter() - begun
    whole, each = zip(*answers, strict=True)
    return Judged(torch.cat(whole), joined(each), seconds)
