"""Layers of a script's own: a pipeline class that overrides ``get_trainable_layers`` says what is learnt."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddposink.ddpo import lora
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.randomness import Randomness


@dataclass(frozen=True)
class Layers:
    """What is learnt by ``names`` of the UNet's parameters, and the random state after it was drawn."""

    config: DDPOConfig
    names: frozenset[str]
    randomness: Randomness

    def put_into(self, engine: Any) -> None:
        """Let a native engine, at step 0, learn these and nothing else."""
        found = {}
        for name, parameter in engine.pipeline.unet.named_parameters():
            parameter.requires_grad_(name in self.names)
            if name in self.names:
                parameter.data = parameter.data.float()
                found[name] = parameter
        engine._ranks.share_weights(found.values())
        engine._learner.weights, engine._randomness = found, self.randomness


def overridden_layers(sd_pipeline: Any, config: DDPOConfig, device: torch.device) -> Layers:
    """The pipeline's layers, seeded as TRL seeds. Raises ValueError if an engine cannot train them."""
    unet = sd_pipeline.unet
    unet.requires_grad_(not config.use_lora)
    randomness = Randomness(config.seed + int(os.environ.get("RANK", "0")), device)
    with randomness.active():
        answer = sd_pipeline.get_trainable_layers()
    names = frozenset(name for name, parameter in unet.named_parameters() if parameter.requires_grad)
    if answer is not unet or not names:
        raise ValueError(
            "get_trainable_layers must answer the pipeline's UNet, some of which requires gradients"
        )
    if not config.use_lora:
        return Layers(config, names, randomness)
    there = getattr(unet, "peft_config", {}).get(lora.ADAPTER)
    if there is None:
        raise ValueError(
            f"get_trainable_layers added no LoRA adapter '{lora.ADAPTER}': add it, or give use_lora=False"
        )
    targets = there.target_modules
    named = (targets,) if isinstance(targets, str) else tuple(sorted(targets))
    config = replace(config, lora_rank=there.r, lora_alpha=there.lora_alpha, lora_targets=named)
    return Layers(config, names, randomness)
