"""How each kind of pipeline encodes a prompt and asks its denoising network: the only place that knows.

All take latents (B, C, H, W), a time and rows of text, and give (B, C, H, W): noise, velocity or clean
latents for DDIM, v = noise − data for flow models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ddposink.models.denoiser import denoiser_name

MOST_TOKENS = 512  # that T5 is asked to read, whose tokenizer may know no limit


class Text(NamedTuple):
    """One prompt: ``tokens`` (L, D) and, where the network wants it, ``pooled`` (E,)."""

    tokens: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Text of a batch: ``tokens`` (B, L, D), ``pooled`` (B, E) or None."""

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, dtype: torch.dtype) -> Rows:
        """The same in another precision."""
        return Rows(self.tokens.to(dtype), None if self.pooled is None else self.pooled.to(dtype))


class Network(Protocol):
    """A kind of pipeline. ``flow``: rectified flow; ``embeds_guidance``: the scale is one of its inputs."""

    flow: bool
    embeds_guidance: bool

    @property
    def length(self) -> int:
        """Tokens of T5; 0 where there is none."""

    def encode(self, pipeline: Any, prompt: str) -> Text:
        """``prompt`` alone, as the pipeline itself would encode it."""

    def ask(self, model: Any, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        """The output of ``model`` for latents ``x`` at ``time``: one, or (B,), in [0, 1000)."""


@dataclass(frozen=True)
class StableDiffusion:
    """Stable Diffusion 1 and 2: a UNet that reads one text encoder's last states."""

    flow = embeds_guidance = False
    length = 0

    def encode(self, pipeline: Any, prompt: str) -> Text:
        """See `Network.encode`."""
        encoder = pipeline.text_encoder
        return Text(encoder(tokens(pipeline.tokenizer, [prompt]).to(encoder.device))[0][0])

    def ask(self, model: Any, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        """See `Network.ask`."""
        output: Tensor = model(x, time, encoder_hidden_states=rows.tokens, return_dict=False)[0]
        return output


@dataclass(frozen=True)
class StableDiffusionXL:
    """SDXL: two text encoders, a pooled text, and sizes as further conditions (``size``: of the picture)."""

    size: tuple[int, int]
    flow = embeds_guidance = False
    length = 0

    def encode(self, pipeline: Any, prompt: str) -> Text:
        """See `Network.encode`; the empty prompt is encoded like any other, as where it is named."""
        found = pipeline.encode_prompt(
            prompt, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        return Text(found[0][0], found[2][0])

    def ask(self, model: Any, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        """See `Network.ask`. A picture of full size, uncropped."""
        sizes = torch.tensor([[*self.size, 0, 0, *self.size]], dtype=x.dtype, device=x.device)
        added = {"text_embeds": rows.pooled, "time_ids": sizes.expand(len(x), -1)}
        output: Tensor = model(
            x, time, encoder_hidden_states=rows.tokens, added_cond_kwargs=added, return_dict=False
        )[0]
        return output


@dataclass(frozen=True)
class StableDiffusion3:
    """SD3 and SD3.5: a transformer; ``length`` tokens of T5, or of zeros in its place."""

    length: int
    flow = True
    embeds_guidance = False

    def encode(self, pipeline: Any, prompt: str) -> Text:
        """See `Network.encode`."""
        found = pipeline.encode_prompt(
            prompt, None, None, device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False, max_sequence_length=self.length,
        )  # fmt: skip
        return Text(found[0][0], found[2][0])

    def ask(self, model: Any, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        """See `Network.ask`."""
        output: Tensor = model(
            hidden_states=x,
            timestep=time.expand(len(x)),
            encoder_hidden_states=rows.tokens,
            pooled_projections=rows.pooled,
            return_dict=False,
        )[0]
        return output


@dataclass(frozen=True)
class Flux:
    """Flux: a transformer on 2x2 squares of latents; guidance ``scale`` is an input of the distilled one."""

    length: int
    scale: float | None
    flow = True
    embeds_guidance = True

    def encode(self, pipeline: Any, prompt: str) -> Text:
        """See `Network.encode`."""
        device = pipeline.text_encoder.device
        found = pipeline.encode_prompt(prompt, None, device=device, max_sequence_length=self.length)
        return Text(found[0][0], found[1][0])

    def ask(self, model: Any, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        """See `Network.ask`."""
        count, channels, height, width = x.shape
        scale = None if self.scale is None else torch.full((count,), self.scale, device=x.device)
        packed = x.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        output = model(
            hidden_states=packed.reshape(count, height * width // 4, channels * 4),
            timestep=(time / 1000).expand(count),
            guidance=scale,
            pooled_projections=rows.pooled,
            encoder_hidden_states=rows.tokens,
            txt_ids=x.new_zeros(rows.tokens.shape[1], 3),
            img_ids=_places(height // 2, width // 2, x),
            return_dict=False,
        )[0]
        squares = output.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return squares.reshape(x.shape)


def network_of(pipeline: Any, length: int | None, scale: float) -> Network:
    """How ``pipeline`` is asked. ``length``: tokens of T5; None is the library's number, 0 without a T5.

    Without T5 the library puts zeros in the place of its tokens, 256 unless told otherwise, which say
    nothing and take most of the time of a small picture. ``scale``: of guidance.
    """
    kind = type(pipeline).__name__
    if "Flux" in kind:
        embedded = pipeline.transformer.config.guidance_embeds
        return Flux(MOST_TOKENS if length is None else length, scale if embedded else None)
    if denoiser_name(pipeline) == "transformer":
        return StableDiffusion3(sd3_length(pipeline, length))
    if "XL" in kind:
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        return StableDiffusionXL((side, side))
    return StableDiffusion()


def sd3_length(pipeline: Any, length: int | None) -> int:
    """Tokens of T5, or zeros in their place, in an SD3 pipeline's text: see `network_of`."""
    if length is None:
        return 256 if getattr(pipeline, "text_encoder_3", None) is not None else 0
    return length


def tokens(tokenizer: Any, prompts: list[str]) -> Tensor:
    """(B, L) ids as the text encoder sees them: padded, and cut off at L tokens."""
    length = min(tokenizer.model_max_length, MOST_TOKENS)
    found: Tensor = tokenizer(
        prompts, return_tensors="pt", padding="max_length", truncation=True, max_length=length
    ).input_ids
    return found


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """(height·width, 3): zero, row and column of every square."""
    rows, columns = torch.arange(height), torch.arange(width)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return torch.cat([torch.zeros(len(places), 1), places], 1).to(like.device, like.dtype)
