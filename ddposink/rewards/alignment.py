"""How well a picture fits its prompt, by the embedded encoder: a stand-in for CLIP score.

100 times the cosine of `ddposink.models.contrastive`, which knows 1,412 emoji and their words and no
more. Of use for the embedded pipeline only; not comparable with CLIP score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddposink.models.contrastive import encoder_sha256, load_encoder
from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind

if TYPE_CHECKING:
    from torch import Tensor


class Alignment(RewardKind):
    """Prompts of unknown words all mean the same to it."""

    info = RewardInfo(
        range=(-100.0, 100.0),
        unit="100·cosine",
        needs="nothing (the encoder is part of the package)",
        licence="Apache-2.0",
        source="ddposink/data/emoji-clip",
        differentiable=True,
    )

    def identity(self, argument: str) -> dict[str, str]:
        """Hash of the encoder."""
        return {"sha256": encoder_sha256()}

    def load(self, argument: str, device: str) -> RewardFunction:
        """The embedded encoder."""
        encoder = load_encoder(device=device)

        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            return 100 * (encoder.image(images) * encoder.text(prompts)).sum(-1)

        return reward


alignment = Alignment()
