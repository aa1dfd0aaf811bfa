"""`DDPOTrainer`, `DDPOConfig` and `DefaultDDPOStableDiffusionPipeline` under the names that TRL dropped."""

from ddposink.ddpo.names.trainer import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

__all__ = ["DDPOConfig", "DDPOTrainer", "DefaultDDPOStableDiffusionPipeline"]
