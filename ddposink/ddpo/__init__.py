"""DDPO: fine-tuning a diffusion pipeline on a reward. Callers need `DDPOConfig` and `make_engine`.

Scripts written for TRL find its names in `ddposink.ddpo.trl_names`; the two classes are also here.
"""

from typing import Any

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.engine import make_engine
from ddposink.ddpo.protocol import DivergedError, Engine, RewardFunction, StepLog

TRL_NAMES = ("DDPOTrainer", "DefaultDDPOStableDiffusionPipeline")
__all__ = ["DDPOConfig", "DivergedError", "Engine", "RewardFunction", "StepLog", "make_engine"]


def __getattr__(name: str) -> Any:
    """TRL's names need torch and diffusers, so they are imported when asked for."""
    if name not in TRL_NAMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from ddposink.ddpo.names import trainer

    return getattr(trainer, name)
