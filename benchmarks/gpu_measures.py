"""What the GPU benchmarks measure, as functions that run on any device: a CPU test keeps them honest.

The bound of decode at batch 1 is memory traffic: every weight and every cached key and value is read once
per token. What the device can move is measured, not taken from a data sheet: half of a copy's traffic is
reading, half writing, so a copy of n bytes in t seconds moves 2n/t.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ddposink.models.denoiser import latent_shape
from ddposink.streaming import Stream


def wait(device: str) -> None:
    """Until everything queued is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str, rounds: int = 10, warm_up: int = 3) -> float:
    """Shortest time of ``run`` with everything it queued: the rate that the device can do."""
    times = []
    for number in range(warm_up + rounds):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        if number >= warm_up:
            times.append(time.perf_counter() - begun)
    return min(times)


def copy_rate(device: str, size: int = 2**32) -> float:
    """Bytes per second that pass the device's memory, read and written together, in a large copy."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device)


def matmul_rate(dtype: torch.dtype, device: str = "cuda", size: int = 8192) -> float:
    """FLOP/s of a large matrix product: what could be had at best."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: a @ a, device)


def traffic(model: nn.Module, kv_bytes: int) -> int:
    """Bytes a decode step has to read: all weights that take part, and the keys and values held.

    The input embedding is a look-up of one row; tied to the output projection it is read whole, once.
    """
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    embedding = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight.data_ptr() != embedding.data_ptr():
        weights.pop(embedding.data_ptr())
    return sum(weights.values()) + kv_bytes


def fill(stream: Stream, ids: Tensor, length: int) -> None:
    """Read ``length`` tokens in parallel; inside ``with stream.attached()``."""
    while stream.seen < length:
        size = stream.next_size(length - stream.seen)
        stream.feed(ids[stream.seen : stream.seen + size])


def ring_step(stream: Stream, ids: Tensor) -> Callable[[], Tensor]:
    """Feeds one more token and computes its logits; ``stream`` is attached and decodes."""
    project = stream.model.get_output_embeddings()

    def step() -> Tensor:
        at = stream.seen % len(ids)
        return project(stream.feed(ids[at : at + 1]))

    return step


def library_step(model: nn.Module, ids: Tensor, context: int) -> Callable[[], Tensor]:
    """The model library's eager dense decode at ``context`` tokens: the cache is cut back after each step."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.base_model(ids[None, :context], past_key_values=cache)

    @torch.no_grad()
    def step() -> Tensor:
        logits = model(ids[None, context : context + 1], past_key_values=cache).logits[0]
        cache.crop(-1)
        return logits

    return step


def per_step(step: Callable[[], Any], device: str, steps: int, rounds: int = 3) -> float:
    """Seconds a step takes when ``steps`` of them are queued one behind the other, as in generation."""

    def several() -> None:
        for _ in range(steps):
            step()

    return seconds(several, device, rounds=rounds, warm_up=1) / steps


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    """A reward that costs nothing: the mean of the picture. (B,3,H,W) -> (B,)"""
    return images.float().mean((1, 2, 3))


def forward_flops(pipeline: Any) -> int:
    """Operations of one UNet forward of one sample, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    unet = pipeline.unet
    width = unet.config.cross_attention_dim
    like: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    latents = torch.zeros(1, *latent_shape(pipeline), **like)
    text = torch.zeros(1, pipeline.tokenizer.model_max_length, width, **like)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(latents, torch.ones((), device=unet.device), encoder_hidden_states=text)
    return counter.get_total_flops()


def ddpo_flops(pipeline: Any, samples: int, denoising_steps: int) -> int:
    """Least operations of drawing and learning from ``samples`` under guidance with LoRA, one inner epoch.

    2T forwards are drawn and 2T learnt from; frozen weights have no gradient, so that a backward costs one
    forward, not two.
    """
    return samples * (2 * denoising_steps + 2 * 2 * denoising_steps) * forward_flops(pipeline)
