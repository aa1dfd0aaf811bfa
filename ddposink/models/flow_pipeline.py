"""Stable Diffusion 3 as the engines see a pipeline: a ``unet`` that is a transformer, text in one tensor.

The engines know one call, ``unet(latents, timesteps, encoder_hidden_states=rows)``, and one tensor of text
for a prompt. A flow transformer wants token embeddings and a pooled vector: here the pooled one travels as
the last row of the tokens and is taken off again before the forward. The stock pipeline's own calls pass
both and are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

ABSENT_TOKENS = 256  # zeros that the stock pipeline puts in the place of an absent T5's tokens


class FlowPipeline(StableDiffusion3Pipeline):
    """A `StableDiffusion3Pipeline` with the attributes that the engines use."""

    absent_tokens = ABSENT_TOKENS

    @property
    def unet(self) -> Any:
        """The denoiser; it answers the engines' call once `packed` has been applied to it."""
        return self.transformer

    @unet.setter
    def unet(self, value: Any) -> None:
        self.transformer = packed(value)

    @torch.no_grad()
    def text_rows(self, prompt: str) -> Tensor:
        """(L+1, D) of one prompt: its tokens' embeddings (L, D) and, padded with zeros, the pooled one."""
        tokens, _, pooled, _ = self.encode_prompt(
            prompt, prompt, prompt, do_classifier_free_guidance=False, max_sequence_length=self.absent_tokens
        )
        width = tokens.shape[-1] - pooled.shape[-1]
        return torch.cat([tokens[0], torch.nn.functional.pad(pooled, (0, width))])

    def drawn(
        self, prompts: Sequence[str], negatives: Sequence[str], times: Tensor, guidance: float,
        noise: list[torch.Generator],
    ) -> Tensor:  # fmt: skip
        """Pictures (B, 3, H, W) in [0, 1] by the stock pipeline's Euler steps between ``times`` (T+1,)."""
        own = float(self.scheduler.config.shift)
        unshifted = times[:-1] / (own - (own - 1) * times[:-1])  # the scheduler shifts what it is given
        found: Tensor = self(
            prompt=list(prompts),
            negative_prompt=list(negatives),
            num_inference_steps=len(unshifted),
            sigmas=unshifted.tolist(),
            guidance_scale=guidance,
            generator=noise,
            max_sequence_length=self.absent_tokens,
            output_type="pt",
        ).images
        return found


def packed(transformer: Any) -> Any:
    """``transformer``, which from now on also takes text as `FlowPipeline.text_rows` packs it."""
    plain, width = type(transformer).forward, transformer.config.pooled_projection_dim

    def forward(
        hidden_states: Tensor,
        timestep: Any = None,
        encoder_hidden_states: Any = None,
        pooled_projections: Any = None,
        **rest: Any,
    ) -> Any:
        if pooled_projections is None:
            pooled_projections = encoder_hidden_states[:, -1, :width]
            encoder_hidden_states = encoder_hidden_states[:, :-1]
            timestep = timestep.expand(len(hidden_states))
        return plain(transformer, hidden_states, encoder_hidden_states, pooled_projections, timestep, **rest)

    transformer.forward = forward
    return transformer


def is_flow(pipeline: Any) -> bool:
    """Whether ``pipeline`` is a flow model's, prepared for the engines."""
    return isinstance(pipeline, FlowPipeline)
