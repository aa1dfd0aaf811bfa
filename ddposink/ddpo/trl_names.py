"""`DDPOTrainer`, `DDPOConfig` and `DefaultDDPOStableDiffusionPipeline` under the names that TRL dropped."""

from ddposink.ddpo.trl.names import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

__all__ = ["DDPOConfig", "DDPOTrainer", "DefaultDDPOStableDiffusionPipeline"]
