"""TRL's view of a pipeline that is already loaded: TRL's own class can only load one by name."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, StableDiffusionPipeline

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.lora import make_trainable
from ddposink.ddpo.protocol import Pipeline
from ddposink.ddpo.randomness import shared_noise


def around(pipeline_class: Any, pipeline: Pipeline, config: DDPOConfig) -> Any:
    """TRL's pipeline ``pipeline_class`` sharing the modules of ``pipeline``, whose scheduler stays its own.

    Raises ValueError if TRL cannot train such a pipeline.
    """
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise ValueError(f"TRL trains a StableDiffusionPipeline, not a {type(pipeline).__name__}")
    parts = pipeline.components
    if parts["text_encoder"] is None or parts["tokenizer"] is None:
        raise ValueError("TRL needs a pipeline with a text encoder and a tokenizer; this one has none")
    return type("GivenPipeline", (GivenPipeline, pipeline_class), {})(pipeline, config)


class GivenPipeline:
    """What TRL's constructor does after loading, and LoRA layers of the configured rank."""

    sd_pipeline: Any
    use_lora: bool

    def __init__(self, pipeline: Pipeline, config: DDPOConfig) -> None:
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        parts = pipeline.components | {"scheduler": scheduler, "safety_checker": None}
        self.sd_pipeline = type(pipeline)(**parts, requires_safety_checker=False)
        self.use_lora = config.use_lora
        self.pretrained_model = pipeline.config.get("_name_or_path", "")
        self._config = config
        self.sd_pipeline.vae.requires_grad_(False)
        self.sd_pipeline.text_encoder.requires_grad_(False)
        self.sd_pipeline.unet.requires_grad_(not config.use_lora)

        if config.share_initial_noise:
            drawn, times = self.sd_pipeline.prepare_latents, config.samples_per_prompt
            self.sd_pipeline.prepare_latents = lambda *a, **k: shared_noise(drawn(*a, **k), times)

    def get_trainable_layers(self) -> Any:
        """The UNet with LoRA layers added, or as it is for full fine-tuning."""
        if not self.use_lora:
            return super().get_trainable_layers()  # type: ignore[misc]
        make_trainable(self.sd_pipeline.unet, self._config)
        return self.sd_pipeline.unet
