"""The policy of DDPO's Markov decision process: one denoising step of the guided network, a Gaussian.

Sampling and learning go through the same few lines, so that before an update their log-probabilities are
the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.networks import Network, Rows, StableDiffusion, Text, tokens
from ddposink.ddpo.schedule import DenoisingSchedule


@dataclass(frozen=True)
class Conditions:
    """Text of some rows, by reference: embeddings (P, L, D) and for each row which of them (B,).

    ``pooled`` (P, E) is there where the network wants it.
    """

    embeddings: Tensor
    prompt: Tensor
    negative: Tensor
    pooled: Tensor | None = None

    def take(self, rows: Tensor | slice) -> Conditions:
        """The same for fewer, or repeated, rows."""
        return Conditions(self.embeddings, self.prompt[rows], self.negative[rows], self.pooled)

    def rows(self, guided: bool) -> Rows:
        """What the network reads: B rows, or under guidance 2B with the negative ones first."""
        which = torch.cat([self.negative, self.prompt]) if guided else self.prompt
        return Rows(self.embeddings[which], None if self.pooled is None else self.pooled[which])


@dataclass
class DenoisingPolicy:
    """``unet``, the network, may be a compiled module; ``scale`` is the guidance scale.

    ``guided`` and ``learns_guided``: whether sampling and learning ask it twice, with and without the text.
    """

    unet: Any
    schedule: DenoisingSchedule
    scale: float
    dtype: torch.dtype  # what the network is fed
    autocast: torch.dtype | None = None
    reduction: str = "mean"
    network: Network = field(default_factory=StableDiffusion)
    guided: bool = True
    learns_guided: bool = True

    def output(self, latents: Tensor, timesteps: Tensor, text: Rows) -> Tensor:
        """Guided output (B,C,H,W). ``text`` has B rows, or 2B if guidance is wanted."""
        guided = len(text) > len(latents)
        x = latents.to(self.dtype)
        if guided:
            x = torch.cat([x, x])
            timesteps = torch.cat([timesteps, timesteps]) if timesteps.ndim else timesteps
        with self._autocast(latents.device.type):
            output = self.network.ask(self.unet, x, timesteps, text.to(self.dtype))
        if not guided:
            return output
        negative, positive = output.float().chunk(2)
        return torch.add(negative, positive - negative, alpha=self.scale)

    def mean(self, step: int | Tensor, latents: Tensor, text: Rows) -> Tensor:
        """Mean (B,C,H,W) of the latents that follow ``latents``, differentiable. ``step``: one, or (B,)."""
        return self.schedule.mean(step, latents, self.output(latents, self.schedule.timesteps[step], text))

    def log_prob(self, step: int | Tensor, mean: Tensor, following: Tensor) -> Tensor:
        """Log-density (B,) of ``following``, given the `mean` of the step."""
        return self.schedule.log_prob(step, mean, following, self.reduction)

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(device, self.autocast)


class Texts:
    """Embeddings of prompts, each encoded once; alone, so that no other prompt can change its bits."""

    KEPT = 4096

    def __init__(self, pipeline: Any, negatives: Sequence[str], network: Network | None = None) -> None:
        self._pipeline, self._network = pipeline, network or StableDiffusion()
        self._known: dict[str, Text] = {}
        self._negatives = [self._encode(text) for text in negatives]

    def conditions(self, prompts: Sequence[str], batch: int, group: int = 1) -> Conditions:
        """For ``prompts`` in batches of ``batch``; groups of ``group`` take the negative prompts in turn."""
        distinct = list(dict.fromkeys(prompts))
        place = {prompt: i + len(self._negatives) for i, prompt in enumerate(distinct)}
        texts = [*self._negatives, *(self._get(prompt) for prompt in distinct)]
        embeddings = torch.stack([text.tokens for text in texts])
        pooled = [text.pooled for text in texts if text.pooled is not None]
        negative = [i % batch // group % len(self._negatives) for i in range(len(prompts))]
        device = embeddings.device
        return Conditions(
            embeddings,
            torch.tensor([place[prompt] for prompt in prompts], device=device),
            torch.tensor(negative, device=device),
            torch.stack(pooled) if pooled else None,
        )

    def _get(self, prompt: str) -> Text:
        if prompt not in self._known:
            if len(self._known) >= self.KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[prompt] = self._encode(prompt)
        return self._known[prompt]

    @torch.no_grad()
    def _encode(self, prompt: str) -> Text:
        return self._network.encode(self._pipeline, prompt)


def reader(pipeline: Any) -> Any:
    """The tokenizer of the text encoder that reads the most: the last of several."""
    names = ("tokenizer_3", "tokenizer_2", "tokenizer")
    return next(found for name in names if (found := getattr(pipeline, name, None)) is not None)


def same_to_the_model(tokenizer: Any, prompts: Sequence[str]) -> list[list[str]]:
    """Different prompts of which the text encoder sees the same tokens, in lists of two and more."""
    alike: dict[tuple[int, ...], list[str]] = {}
    distinct = list(dict.fromkeys(prompts))
    for prompt, ids in zip(distinct, tokens(tokenizer, distinct).tolist(), strict=True):
        alike.setdefault(tuple(ids), []).append(prompt)
    return [texts for texts in alike.values() if len(texts) > 1]
