"""Pictures of a pipeline at fixed prompts and noise, scored on every reward.

The noise of a picture depends on its prompt and seed only: never on the model, the batch it is drawn
in or what was drawn before. So the same picture of two models differs by the models alone, and the
difference of their scores is a paired one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddposink.ddpo.networks import Network, network_of
from ddposink.ddpo.schedule import float32_eta
from ddposink.ddpo.table import grid, shift_of
from ddposink.ddpo.window import DDIM
from ddposink.models.denoiser import latent_shape, tokens_of

Scorer = Callable[[Tensor, list[str]], Tensor]
BATCH = 32


@dataclass(frozen=True)
class Pictures:
    """N pictures, prompts in order, all seeds of a prompt side by side.

    images: (N, 3, H, W) float32 in [0, 1] on the CPU; prompts: N texts.
    """

    images: Tensor
    prompts: list[str]

    @property
    def groups(self) -> dict[str, list[int]]:
        """Indices of the pictures of each prompt."""
        found: dict[str, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            found.setdefault(prompt, []).append(i)
        return found


@dataclass(frozen=True)
class Evaluator:
    """How pictures are drawn; see `draw`. ``autocast`` is a dtype for the UNet or None.

    The seeds of a prompt take the ``negatives`` in turn, as the samples of a training batch do.
    """

    pipeline: Any
    prompts: tuple[str, ...]
    seeds: int
    guidance: float
    eta: float
    autocast: torch.dtype | None = None
    negatives: tuple[str, ...] = ("",)
    kernel: str = DDIM
    shift: float | None = None  # of a flow model's times; None: as its scheduler says
    length: int | None = None  # tokens of T5, see `network_of`

    def plan(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every picture."""
        return [(prompt, seed) for prompt in self.prompts for seed in range(self.seeds)]

    def negative(self, seed: int) -> str:
        """The negative prompt of pictures of a seed; without guidance it has no effect."""
        return self.negatives[seed % len(self.negatives)]

    @torch.no_grad()
    def draw(self, denoising_steps: int, limit: int | None = None) -> Pictures:
        """All pictures (or the first ``limit``) through the stock pipeline.

        With a DDIM scheduler, whose steps are noisy as in training; flow models by Euler's steps without
        noise, whatever kernel they are trained with.
        """
        planned = self.plan()[:limit]
        images, options = [], self._options(denoising_steps)  # asked of the pipeline's own scheduler
        with self.lent(), self.precision():
            for at in range(0, len(planned), BATCH):
                part = planned[at : at + BATCH]
                if not self.network.embeds_guidance:
                    options["negative_prompt"] = [self.negative(seed) for _, seed in part]
                images.append(
                    self.pipeline(
                        prompt=[prompt for prompt, _ in part],
                        num_inference_steps=denoising_steps,
                        guidance_scale=self.guidance,
                        generator=[generator(prompt, seed) for prompt, seed in part],
                        output_type="pt",
                        **options,
                    ).images.float().cpu()
                )  # fmt: skip
        return Pictures(torch.cat(images).clamp(0, 1), [prompt for prompt, _ in planned])

    @property
    def network(self) -> Network:
        """How the pipeline's network is asked."""
        return network_of(self.pipeline, self.length, self.guidance)

    def lent(self) -> AbstractContextManager[None]:
        """Inside, the pipeline has the scheduler that pictures are drawn with."""
        return ddim(self.pipeline) if self.kernel == DDIM else euler(self.pipeline)

    def times(self, denoising_steps: int) -> Tensor:
        """(T+1,) times of a flow model."""
        shift = self.shift or shift_of(self.pipeline.scheduler, tokens_of(self.pipeline))
        return grid(denoising_steps, shift)

    def _options(self, denoising_steps: int) -> dict[str, Any]:
        if self.kernel == DDIM:
            return {"eta": float32_eta(self.pipeline.scheduler, self.eta)}
        scale = self.pipeline.vae_scale_factor
        _, height, width = latent_shape(self.pipeline)
        return {
            "sigmas": self.times(denoising_steps)[:-1].tolist(),  # shifted once: the lent scheduler does not
            "max_sequence_length": self.network.length,
            "height": height * scale,
            "width": width * scale,
        }

    def precision(self) -> Any:
        """The precision in which the model was trained."""
        device = self.pipeline.device.type
        return torch.autocast(device, self.autocast, enabled=self.autocast is not None)


def generator(prompt: str, seed: int) -> torch.Generator:
    """The noise of one picture. On the CPU, so that every device draws the same."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


@contextmanager
def ddim(pipeline: Any) -> Iterator[None]:
    """Lend the pipeline a DDIM scheduler of its own, and silence its progress bar."""
    from diffusers import DDIMScheduler

    with _lend(pipeline, DDIMScheduler.from_config(pipeline.scheduler.config)):
        yield


@contextmanager
def euler(pipeline: Any) -> Iterator[None]:
    """Lend a flow pipeline a scheduler that takes times as they are, and silence its progress bar."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    with _lend(pipeline, FlowMatchEulerDiscreteScheduler()):
        yield


@contextmanager
def _lend(pipeline: Any, scheduler: Any) -> Iterator[None]:
    own, quiet = pipeline.scheduler, getattr(pipeline, "_progress_bar_config", {})
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = own
        pipeline.set_progress_bar_config(**quiet)


def score(pictures: Pictures, scorers: Mapping[str, Scorer]) -> dict[str, np.ndarray]:
    """(N,) float64 scores by every scorer. Raises whatever a scorer raises."""
    found = {}
    for name, scorer in scorers.items():
        parts = [
            scorer(pictures.images[at : at + BATCH], pictures.prompts[at : at + BATCH]).double().cpu()
            for at in range(0, len(pictures.prompts), BATCH)
        ]
        found[name] = torch.cat(parts).numpy()
    return found


def prompt_means(values: np.ndarray, pictures: Pictures) -> np.ndarray:
    """(number of prompts,): pictures of one prompt are no independent observations."""
    return np.array([values[index].mean() for index in pictures.groups.values()])


def prompt_spread(values: np.ndarray, pictures: Pictures) -> float | None:
    """Pooled standard deviation of pictures of one prompt; None where no prompt has two pictures.

    What the noise alone does to a score, which is also all that a policy can learn from.
    """
    parts = [values[index] for index in pictures.groups.values() if len(index) > 1]
    if not parts:
        return None
    squares = sum(float(((part - part.mean()) ** 2).sum()) for part in parts)
    return float((squares / sum(len(part) - 1 for part in parts)) ** 0.5)
