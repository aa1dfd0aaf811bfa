"""Asking a reward: it gets pictures of its own, and one finite number a picture must come back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddposink.ddpo.several import several

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


def ask_with_gradient(reward: Reward, images: Tensor, prompts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards (B,) float32 with a history that leads to ``images`` (B, 3, H, W) in [0, 1].

    With them, of a sum of rewards, those of every part, without a history. A reward may have a method
    ``with_gradient`` for it. The gradient of a picture that has none, such as that of a standard deviation
    at a blank picture, is taken as zero. Raises ValueError, naming the reward, if it has no gradient, or not
    one finite number a picture.
    """
    name, sum_of, parts = name_of(reward), several(reward), {}
    if sum_of is None:
        found = getattr(reward, "with_gradient", reward)(_finite_backwards(images), list(prompts))
    else:
        said = sum_of.each(_finite_backwards(images), list(prompts))
        found, parts = sum(said.values()), {part: values.detach().float() for part, values in said.items()}
    if not isinstance(found, Tensor) or not found.requires_grad:
        raise ValueError(
            f"{name} has no gradient with respect to the pictures, from which algorithm 'draft' learns; use "
            f"ddpo, nft or dpo"
        )
    if found.shape != (len(prompts),):
        raise ValueError(f"{name} answered {tuple(found.shape)} for {len(prompts)} pictures, not one each")
    if not bool(torch.isfinite(found.detach()).all()):
        raise ValueError(f"{name} is not a finite number for some picture")
    return found.float().to(images.device), parts


def _finite_backwards(images: Tensor) -> Tensor:
    """``images``, whose gradient is zero for every picture for which it would not be finite."""
    passed = images.clone()

    def repair(gradient: Tensor) -> Tensor:
        fine = torch.isfinite(gradient).flatten(1).all(1)
        return torch.where(fine.view(-1, 1, 1, 1), gradient, torch.zeros_like(gradient))

    if passed.requires_grad:
        passed.register_hook(repair)
    return passed


def ask_in_parts(reward: Reward, images: Tensor, prompts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards (B,), see `ask`; with them, of a sum of rewards, those of every part."""
    if (sum_of := several(reward)) is None:
        return ask(reward, images, prompts), {}
    with torch.no_grad():
        said = sum_of.each(images.clone(), list(prompts))
    parts = {name: _answered(f"the reward '{name}'", v, images, prompts) for name, v in said.items()}
    return torch.stack(list(parts.values())).sum(0), parts


def joined(said: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parts of several batches as those of one; empty where the reward is no sum."""
    return {name: torch.cat([some[name] for some in said]) for name in (said[0] if said else ())}


class SeedWatch:
    """Notices a reward that seeds the global generators, from which a training draws.

    Prompts and noise would be the same in every training step, and nothing would tell.
    """

    def __init__(self) -> None:
        self._left: dict[str, bytes] = {}  # as the reward left them last

    @contextmanager
    def over(self, reward: Any) -> Iterator[None]:
        """Around the asking of a training step. Raises ValueError from the second step on."""
        before = _generators()
        yield
        after = _generators()
        for name, state in after.items():
            if state != before.get(name) and state == self._left.get(name):
                raise ValueError(
                    f"{name_of(reward)} sets the seed of {name}'s global generator, so that every training "
                    f"step draws the same; let it use a generator of its own"
                )
        self._left = after


def _generators() -> dict[str, bytes]:
    """The states of the global generators."""
    kind, keys, *place = np.random.get_state()
    found = {
        "Python": repr(random.getstate()).encode(),
        "numpy": repr((kind, place)).encode() + np.asarray(keys).tobytes(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_initialized():
        found["CUDA"] = torch.cuda.get_rng_state().numpy().tobytes()
    return found


def name_of(reward: Any) -> str:
    """What to call ``reward`` in a sentence."""
    name = getattr(reward, "name", None) or getattr(reward, "__qualname__", None) or type(reward).__name__
    return f"the reward '{name}'"
