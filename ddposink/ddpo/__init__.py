"""DDPO: fine-tuning a diffusion pipeline on a reward. `DDPOConfig` and `make_engine` are all a caller needs."""

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.engine import DivergedError, Engine, RewardFunction, StepLog, make_engine

__all__ = ["DDPOConfig", "DivergedError", "Engine", "RewardFunction", "StepLog", "make_engine"]
