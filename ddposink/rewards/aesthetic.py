"""The LAION aesthetic score: how much people like a picture, guessed from its CLIP embedding alone.

CLIP ViT-L/14 and a small head trained on ratings (improved-aesthetic-predictor); the weights that TRL's
DDPO example uses. About 1 to 10. The DDPO paper trains on it: Black et al. 2023, section 5.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddposink.rewards.base import RewardFunction, RewardInfo
from ddposink.rewards.hub_kind import HubKind, Repo, pretrained, read_weights

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "aesthetic-model.pth"


class Aesthetic(HubKind):
    """Files: CLIP's config.json and model.safetensors, and aesthetic-model.pth."""

    info = RewardInfo(
        range=(1.0, 10.0),
        unit="LAION score",
        needs="1.7 GB of weights from the hub",
        licence="MIT (CLIP), Apache-2.0 (head)",
        source="github.com/christophschuhmann/improved-aesthetic-predictor",
        differentiable=True,
    )
    repos = (
        Repo("trl-lib/ddpo-aesthetic-predictor", "cf4bd10345610935a80a5d3be9a3133c50f121e4", (HEAD,)),
        Repo(
            "openai/clip-vit-large-patch14",
            "32bd64288804d66eefd0ccbe215aa642df71cc41",
            ("config.json", "model.safetensors"),
        ),
    )

    def load(self, argument: str, device: str) -> RewardFunction:
        """Vision tower and head."""
        import torch.nn.functional as F
        from transformers import CLIPVisionModelWithProjection

        from ddposink.rewards.pixels import clip_pixels, score_head

        head_folder, clip_folder = self.folders(argument)
        tower = pretrained(CLIPVisionModelWithProjection, clip_folder, device)
        head = score_head(read_weights(head_folder / HEAD), head_folder).to(device)
        size = tower.config.image_size

        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            embedded = tower(pixel_values=clip_pixels(images.to(device), size)).image_embeds
            return head(F.normalize(embedded, dim=-1)).squeeze(1)

        return reward


aesthetic = Aesthetic()
