"""Asking a reward: it gets pictures of its own, and one finite number a picture must come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.several import Several

Reward = Callable[[Tensor, list[str]], Tensor]


def ask(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """Rewards (B,) float32, on the device of ``images`` (B, 3, H, W) in [0, 1], for B ``prompts``.

    The reward may write into what it gets: it is a copy. Raises ValueError, naming the reward, if it does
    not answer with one finite number a picture; whatever the reward itself raises is passed on.
    """
    name = name_of(reward)
    with torch.no_grad():
        answer = reward(images.clone(), list(prompts))
    return _answered(name, answer, images, prompts)


def _answered(name: str, answer: Any, images: Tensor, prompts: list[str]) -> Tensor:
    if isinstance(answer, Tensor) and answer.requires_grad:
        raise ValueError(f"{name} answered a tensor with gradients; return it detached")
    try:
        found = torch.as_tensor(answer, dtype=torch.float32, device=images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} answered {type(answer).__name__}, not one number a picture") from error
    if found.shape != (len(prompts),):
        raise ValueError(f"{name} answered {tuple(found.shape)} for {len(prompts)} pictures, not one each")
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{name} is not a finite number for some picture")
    return found


def ask_each(reward: Several, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """Rewards (B,) of every part of a sum, see `ask`."""
    with torch.no_grad():
        found = reward.each(images.clone(), list(prompts))
    return {name: _answered(f"the reward '{name}'", v, images, prompts) for name, v in found.items()}


def name_of(reward: Any) -> str:
    """What to call ``reward`` in a sentence."""
    name = getattr(reward, "name", None) or getattr(reward, "__qualname__", None) or type(reward).__name__
    return f"the reward '{name}'"
