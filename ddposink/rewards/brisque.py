"""BRISQUE, negated: technical quality of a picture judged without a reference.

Mittal, Moorthy and Bovik 2012, "No-Reference Image Quality Assessment in the Spatial Domain": 36
statistics of locally normalised luminance, put through a support vector regression that was trained on
human opinions of distorted photographs. The parameters are those of PyPI `brisque` 0.2.0; the
computation is ours, batched. It knows photographs: on small drawings, with large flat areas, its
absolute values mean little, and what raises it is worth a look.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = Path(__file__).parent.parent / "data" / "brisque" / "parameters.npz"


class Brisque(RewardKind):
    """0 to -100 on photographs, best to worst; drawings go beyond, what it never saw nears -155.8."""

    info = RewardInfo(
        range=(-156.0, 30.0),
        unit="−BRISQUE",
        needs="nothing (parameters are part of the package)",
        licence="Apache-2.0 (PyPI brisque 0.2.0)",
        source="Mittal et al. 2012",
        differentiable=True,
    )

    def identity(self, argument: str) -> dict[str, str]:
        """Hash of the parameters."""
        return {"sha256": hashlib.sha256(PARAMETERS.read_bytes()).hexdigest()}

    def load(self, argument: str, device: str) -> RewardFunction:
        """Parameters as tensors on ``device``."""
        from ddposink.rewards.brisque_score import Regression, features

        regression = Regression.read(PARAMETERS, device)

        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            return -regression(features(images)).float()

        return reward


brisque = Brisque()
