"""TRL's view of a pipeline that is already loaded: TRL's own class can only load one by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.engine import Pipeline

ADAPTER = "default"


def around(pipeline_class: Any, pipeline: Pipeline, config: DDPOConfig) -> Any:
    """TRL's pipeline ``pipeline_class`` sharing the modules of ``pipeline``, whose scheduler stays its own.

    Raises ValueError if TRL cannot train such a pipeline.
    """
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise ValueError(f"TRL trains a StableDiffusionPipeline, not a {type(pipeline).__name__}")
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise ValueError("TRL needs a pipeline with a text encoder and a tokenizer; this one has none")
    return type("GivenPipeline", (Given, pipeline_class), {})(pipeline, config)


class Given:
    """What TRL's constructor does after loading, and LoRA layers of the configured rank."""

    sd_pipeline: StableDiffusionPipeline
    use_lora: bool

    def __init__(self, pipeline: StableDiffusionPipeline, config: DDPOConfig) -> None:
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        parts = pipeline.components | {"scheduler": scheduler, "safety_checker": None}
        self.sd_pipeline = type(pipeline)(**parts, requires_safety_checker=False)
        self.use_lora = config.use_lora
        self.pretrained_model = pipeline.config.get("_name_or_path", "")
        self._config = config
        for module in (self.sd_pipeline.vae, self.sd_pipeline.text_encoder):
            module.requires_grad_(False)
        self.sd_pipeline.unet.requires_grad_(not config.use_lora)

    def get_trainable_layers(self) -> Any:
        """The UNet with LoRA layers added, or as it is for full fine-tuning."""
        unet = self.sd_pipeline.unet
        if not self.use_lora or ADAPTER in getattr(unet, "peft_config", {}):
            return super().get_trainable_layers()  # type: ignore[misc]
        unet.add_adapter(lora_config(self._config), adapter_name=ADAPTER)
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.to(torch.float32)
        return unet


def lora_config(config: DDPOConfig) -> LoraConfig:
    """TRL's LoRA, with rank, alpha and targets as configured."""
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        init_lora_weights="gaussian",
        target_modules=list(config.lora_targets),
    )


def base_weights(unet: Any) -> dict[str, Tensor]:
    """A copy of all weights, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in unet.state_dict().items()}


def export(pipeline: Pipeline, config: DDPOConfig, folder: Path) -> None:
    """What a stock pipeline loads: LoRA in diffusers format with rank and alpha, or a ``unet`` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    unet = pipeline.unet
    if not config.use_lora:
        unet.save_pretrained(folder / "unet")
        return
    pipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet, adapter_name=ADAPTER),
        unet_lora_adapter_metadata=unet.peft_config[ADAPTER].to_dict(),
    )
