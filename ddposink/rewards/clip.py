"""How well a picture fits its prompt, by a CLIP model: CLIP score and PickScore.

CLIP score is 100 times the cosine of OpenAI's ViT-L/14 (Hessel et al. 2021, without the clamp at zero, so
that a bad picture still has a direction). PickScore (Kirstain et al. 2023) is a ViT-H/14 tuned on choices
of people, multiplied by its learnt scale as its authors do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddposink.rewards.base import RewardFunction, RewardInfo
from ddposink.rewards.hub_kind import TOKENIZER, HubKind, Repo, loading, pretrained

if TYPE_CHECKING:
    from torch import Tensor

VIT_H = Repo(  # whose tokenizer PickScore and HPS use
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    ("config.json", *TOKENIZER),
)


def similarity(model: Any, tokenizer: Any, device: str) -> RewardFunction:
    """(B,) cosine of picture and prompt under a transformers CLIPModel."""
    import torch.nn.functional as F

    from ddposink.rewards.pixels import clip_pixels

    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings

    def cosine(images: Tensor, prompts: list[str]) -> Tensor:
        words = tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        found = model(
            input_ids=words["input_ids"].to(device),
            attention_mask=words["attention_mask"].to(device),
            pixel_values=clip_pixels(images.to(device), size),
        )
        return F.cosine_similarity(found.image_embeds, found.text_embeds, dim=-1)

    return cosine


def tokenizer_in(folder: Path) -> Any:
    """CLIP's tokenizer. Raises Unavailable."""
    from transformers import CLIPTokenizer

    with loading("the tokenizer", folder):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


class ClipScore(HubKind):
    """Files: config.json, model.safetensors and the tokenizer's two."""

    info = RewardInfo(
        range=(0.0, 100.0),
        unit="100·cosine",
        needs="1.7 GB of weights from the hub",
        licence="MIT",
        source="Hessel et al. 2021",
        differentiable=True,
    )
    repos = (
        Repo(
            "openai/clip-vit-large-patch14",
            "32bd64288804d66eefd0ccbe215aa642df71cc41",
            ("config.json", "model.safetensors", *TOKENIZER),
        ),
    )

    def load(self, argument: str, device: str) -> RewardFunction:
        """Both towers and the tokenizer."""
        from transformers import CLIPModel

        (folder,) = self.folders(argument)
        cosine = similarity(pretrained(CLIPModel, folder, device), tokenizer_in(folder), device)
        return lambda images, prompts: 100 * cosine(images, prompts)


class PickScore(HubKind):
    """Files as for CLIP score; the tokenizer is that of LAION's ViT-H/14."""

    info = RewardInfo(
        range=(15.0, 26.0),
        unit="PickScore",
        needs="4 GB of weights from the hub",
        licence="MIT",
        source="Kirstain et al. 2023",
        differentiable=True,
    )
    repos = (
        Repo(
            "yuvalkirstain/PickScore_v1",
            "a4e4367c6dfa7288a00c550414478f865b875800",
            ("config.json", "model.safetensors"),
        ),
        VIT_H,
    )

    def load(self, argument: str, device: str) -> RewardFunction:
        """Both towers and the tokenizer."""
        from transformers import CLIPModel

        folder, words = self.folders(argument)
        model = pretrained(CLIPModel, folder, device)
        cosine, scale = similarity(model, tokenizer_in(words), device), float(model.logit_scale.exp())
        return lambda images, prompts: scale * cosine(images, prompts)


clip_score = ClipScore()
pickscore = PickScore()
