"""What is learnt: LoRA layers on the UNet's attention, or all of the UNet; and how it leaves the training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.config import DDPOConfig

ADAPTER = "default"
WEIGHTS = "pytorch_lora_weights.safetensors"  # the file as diffusers names it


def freeze(pipeline: Any, half: torch.dtype, lora_only: bool) -> None:
    """Nothing but the policy has gradients, and what is only used for inference may be in half precision."""
    for part, dtype in (
        (pipeline.vae, half),
        (pipeline.text_encoder, half),
        (pipeline.unet, half if lora_only else torch.float32),
    ):
        part.requires_grad_(False).eval()
        if part.dtype != dtype:
            part.to(dtype=dtype)


def make_trainable(unet: Any, config: DDPOConfig) -> dict[str, Tensor]:
    """Freeze ``unet``, add LoRA layers (or unfreeze it all), and return the float32 weights to learn.

    LoRA is TRL's: Gaussian A, zero B, drawn from torch's global generator. An adapter that is already there
    is learnt on. Raises ValueError if it is of another rank, or if the targets match no module.
    """
    if not config.use_lora:
        unet.requires_grad_(True)
        unet.float()
    else:
        unet.requires_grad_(False)
        _add_adapter(unet, config)
    found = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return found


def _add_adapter(unet: Any, config: DDPOConfig) -> None:
    from peft import LoraConfig

    there = getattr(unet, "peft_config", {}).get(ADAPTER)
    if there is None:
        layers = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,  # a fraction is as good
            init_lora_weights="gaussian",
            target_modules=list(config.lora_targets),
        )
        unet.add_adapter(layers, adapter_name=ADAPTER)
        return
    if (there.r, there.lora_alpha) != (config.lora_rank, config.lora_alpha):
        raise ValueError(
            f"the UNet already has LoRA layers of rank {there.r} and alpha {there.lora_alpha}, not "
            f"{config.lora_rank} and {config.lora_alpha}: load the pipeline afresh, or configure these"
        )
    unet.set_adapter(ADAPTER)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name)


def export(pipeline: Any, config: DDPOConfig, folder: Path) -> None:
    """Write ``pytorch_lora_weights.safetensors`` (diffusers format, with rank and alpha) or ``unet/``.

    The first loads with ``pipeline.load_lora_weights(folder)``, the second with
    ``UNet2DConditionModel.from_pretrained(folder / "unet")``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unet = pipeline.unet
    if not config.use_lora:
        unet.save_pretrained(folder / "unet", safe_serialization=True)
        return
    export_layers(pipeline, folder)


def export_layers(pipeline: Any, folder: Path) -> None:
    """Write the LoRA layers alone, ``pytorch_lora_weights.safetensors``."""
    from peft.utils import get_peft_model_state_dict

    pipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name=ADAPTER),
        unet_lora_adapter_metadata=pipeline.unet.peft_config[ADAPTER].to_dict(),
        safe_serialization=True,
    )


def without_lora(unet: Any) -> Any:
    """A UNet of the same weights, shared and not copied, without adapters."""
    names = {
        name.replace(".base_layer.", "."): value
        for name, value in unet.state_dict().items()
        if "lora_" not in name
    }
    with torch.device("meta"):
        plain = type(unet).from_config(unet.config)
    plain.load_state_dict(names, assign=True)
    return plain


@contextmanager
def without(unet: Any, original: dict[str, Tensor] | None) -> Iterator[None]:
    """Inside, ``unet`` acts as before training: adapters off, or its ``original`` weights swapped in."""
    if original is None:
        unet.disable_adapters()
        try:
            yield
        finally:
            unet.enable_adapters()
        return
    learnt = copies(unet)
    _put(unet, original)
    try:
        yield
    finally:
        _put(unet, learnt)


def copies(unet: Any) -> dict[str, Tensor]:
    """All parameters, copied to the CPU."""
    return {name: p.detach().cpu().clone() for name, p in unet.named_parameters()}


@torch.no_grad()
def _put(unet: Any, values: dict[str, Tensor]) -> None:
    for name, parameter in unet.named_parameters():
        parameter.copy_(values[name])


def fingerprint(unet: Any) -> str:
    """What tells one base from another, cheaply: a hash of the first and the last layer in half precision."""
    digest = hashlib.sha256()
    for layer in (unet.conv_in, unet.conv_out):
        weight = layer.weight.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy()
        digest.update(weight.tobytes())
    return digest.hexdigest()[:16]
