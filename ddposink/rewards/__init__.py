"""Rewards by name: one file each, one line of registration here; other packages add theirs by entry points.

Text form: ``NAME`` · ``NAME@REVISION`` (weights of the model hub at another commit) · ``NAME:path:DIR``
(weights in a folder) · ``preference:NAME`` · ``weighted:0.5*alignment+0.5*brisque`` ·
``http://127.0.0.1:PORT/PATH`` (a server's, see `ddposink.rewards.http`) ·
``python:package.module:function``, the last only where the command line allows it.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import lru_cache

from ddposink import plugins
from ddposink.errors import suggest
from ddposink.rewards.base import (
    Checked,
    Reward,
    RewardError,
    RewardFunction,
    RewardInfo,
    RewardKind,
    checked,
)

# name → module:attribute of a RewardKind, imported when the name is used
REWARDS = {
    "jpeg_compressibility": "ddposink.rewards.jpeg:compressibility",
    "jpeg_incompressibility": "ddposink.rewards.jpeg:incompressibility",
    "brisque": "ddposink.rewards.brisque:brisque",
    "alignment": "ddposink.rewards.alignment:alignment",
    "preference": "ddposink.rewards.preference:preference",
    "aesthetic": "ddposink.rewards.aesthetic:aesthetic",
    "clip_score": "ddposink.rewards.clip:clip_score",
    "pickscore": "ddposink.rewards.clip:pickscore",
    "hps": "ddposink.rewards.hps:hps",
    "image_reward": "ddposink.rewards.image_reward:image_reward",
    "weighted": "ddposink.rewards.weighted:weighted",
    "noise": "ddposink.rewards.noise:noise",
    "named_colour": "ddposink.rewards.named_colour:named_colour",
    "http": "ddposink.rewards.http:server",
    "https": "ddposink.rewards.http:secure_server",
    "python": "ddposink.workloads.python_reward:python",
}


@dataclass(frozen=True)
class RewardRef:
    """A reward's name and what follows it; see `parse_reward`."""

    kind: str
    argument: str = ""

    @property
    def name(self) -> str:
        """Canonical text form; `parse_reward` reads it back."""
        return self.kind + (self.argument if self.argument[:1] in ("", "@") else f":{self.argument}")

    def __str__(self) -> str:
        return self.name

    @property
    def info(self) -> RewardInfo:
        """What it needs and what its numbers are."""
        return _kind(self.kind).info

    @property
    def runs_code(self) -> bool:
        """Whether loading it runs code that its name gives."""
        return _kind(self.kind).runs_code(self.argument)

    @property
    def differentiable(self) -> bool:
        """Whether it has a gradient with respect to the pictures."""
        return _kind(self.kind).differentiable(self.argument)

    def unanswered(self, prompts: tuple[str, ...]) -> str | None:
        """Why it has no number for pictures of some ``prompts``, in words; None if it has for all."""
        return _kind(self.kind).unanswered(self.argument, prompts)

    def identity(self) -> dict[str, str]:
        """What its numbers depend on: revisions, sha256 or definition. No network, no torch."""
        return _kind(self.kind).identity(self.argument)


def parse_reward(text: str, allow_python: bool = False) -> RewardRef:
    """Read a reward's text form. Raises ValueError naming what was expected and the nearest word."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]*)(?:(@.*)|:(.*))?", str(text), re.DOTALL)
    name = match[1] if match else str(text)
    if match is None or name not in reward_names():
        known = reward_names()
        raise ValueError(f"unknown reward '{name}'{suggest(name, known)}; known: {', '.join(known)}")
    argument = match[2] or match[3] or ""
    try:
        ref = RewardRef(name, _kind(name).parse(argument))
    except ValueError as error:
        raise ValueError(f"reward '{text}': {error}") from error
    if ref.runs_code and not allow_python:
        raise ValueError(
            f"reward '{text}' runs code that the suite names; allow it on the command line: --allow-code"
        )
    return ref


def load_reward(ref: RewardRef, device: str = "cpu") -> Checked:
    """The reward, checked. Raises Unavailable in one line if its weights cannot be had here."""
    kind = _kind(ref.kind)
    return checked(ref.name, kind.info, kind.load(ref.argument, device))


@lru_cache(maxsize=64)
def _kind(name: str) -> RewardKind:
    if name not in REWARDS:
        return plugins.load(plugins.REWARDS, name, RewardKind)
    module, attribute = REWARDS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def reward_names() -> list[str]:
    """All names, ours first. Raises ValueError if an installed package claims one of ours."""
    added = plugins.installed(plugins.REWARDS)
    if taken := sorted(added.keys() & REWARDS.keys()):
        raise ValueError(f"an installed package claims the reward '{taken[0]}', which is ours")
    return [*REWARDS, *added]


def reward_infos() -> dict[str, RewardInfo]:
    """Facts of every reward by name; imports their modules, and torch with none of them."""
    return {name: _kind(name).info for name in reward_names()}


__all__ = [
    "REWARDS",
    "Reward",
    "RewardError",
    "RewardFunction",
    "RewardInfo",
    "RewardKind",
    "RewardRef",
    "checked",
    "load_reward",
    "parse_reward",
    "reward_infos",
    "reward_names",
]
