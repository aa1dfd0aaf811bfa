"""DDPO: fine-tuning a diffusion pipeline on a reward. Callers need `DDPOConfig` and `make_engine`."""

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.engine import DivergedError, Engine, RewardFunction, StepLog, make_engine

__all__ = ["DDPOConfig", "DivergedError", "Engine", "RewardFunction", "StepLog", "make_engine"]
