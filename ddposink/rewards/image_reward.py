"""ImageReward (Xu et al. 2023): BLIP reads picture and prompt together, a small head scores what it read.

The weights carry the names of the original BLIP code. They are renamed for transformers' BLIP; all sizes
of the vision tower are read off the tensors. About -2 to 2, standardised by its authors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ddposink.rewards.base import RewardFunction, RewardInfo
from ddposink.rewards.hub_kind import TOKENIZER, HubKind, Repo, loading, read_weights

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG = "ImageReward.pt", "med_config.json"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of its training scores
MAX_TOKENS = 35
HEAD_WIDTH = 64  # of one attention head in every ViT of BLIP
_VISION = (
    ("visual_encoder.cls_token", "embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "embeddings.patch_embedding."),
    ("visual_encoder.norm.", "post_layernorm."),
    ("visual_encoder.blocks.", "encoder.layers."),
)
_LAYER = (
    (".attn.proj.", ".self_attn.projection."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
)


def vision_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``blip.visual_encoder.…`` under the names of transformers' BlipVisionModel."""
    found = {}
    for name, tensor in _part(state, "blip.").items():
        for old, new in _VISION:
            if name.startswith(old):
                renamed = new + name.removeprefix(old)
                for before, after in _LAYER:
                    renamed = renamed.replace(before, after)
                found[renamed] = tensor
    return found


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}


def _vision(state: Mapping[str, Tensor]) -> Any:
    from transformers import BlipVisionConfig, BlipVisionModel

    weights = vision_weights(state)
    width, _, patch, _ = weights["embeddings.patch_embedding.weight"].shape
    cells = weights["embeddings.position_embedding"].shape[1] - 1
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in weights if ".layers." in name),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * round(cells**0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    model = BlipVisionModel(config)
    model.load_state_dict(weights)
    return model


def _text(state: Mapping[str, Tensor], config: Mapping[str, Any], vision_width: int) -> Any:
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "max_position_embeddings layer_norm_eps hidden_act"
    ).split()
    known = {name: config[name] for name in names if name in config}
    model = BlipTextModel(
        BlipTextConfig(**known, encoder_hidden_size=vision_width, is_decoder=True), add_pooling_layer=False
    )
    weights = _part(state, "blip.text_encoder.")
    weights.pop("embeddings.position_ids", None)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or [name for name in missing if not name.endswith("position_ids")]:
        raise ValueError(f"text weights do not fit: {[*missing, *unexpected][0]}")
    return model


class ImageReward(HubKind):
    """Files: ImageReward.pt, med_config.json, and BERT's tokenizer."""

    info = RewardInfo(
        range=(-2.5, 2.5),
        unit="ImageReward",
        needs="1.8 GB of weights from the hub",
        licence="Apache-2.0",
        source="Xu et al. 2023",
        differentiable=True,
    )
    repos = (
        Repo("THUDM/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72", (WEIGHTS, CONFIG)),
        Repo(
            "google-bert/bert-base-uncased",
            "86b5e0934494bd15c9632b12f734a8a67f723594",
            TOKENIZER,
        ),
    )

    def load(self, argument: str, device: str) -> RewardFunction:
        """Vision tower, text tower with cross-attention, head and tokenizer."""
        from transformers import BertTokenizer

        from ddposink.rewards.pixels import clip_pixels, score_head

        own, bert = self.folders(argument)
        state = read_weights(own / WEIGHTS)
        with loading("ImageReward", own):
            config = json.loads((own / CONFIG).read_text(encoding="utf-8"))
            vision = _vision(state).to(device).eval().requires_grad_(False)
            text = _text(state, config, vision.config.hidden_size).to(device).eval().requires_grad_(False)
        with loading("the tokenizer", bert):
            tokenizer = BertTokenizer.from_pretrained(bert, local_files_only=True)
        head = score_head(_part(state, "mlp."), own).to(device)
        size = vision.config.image_size

        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            seen = vision(pixel_values=clip_pixels(images.to(device), size)).last_hidden_state
            words = tokenizer(
                prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).to(device)
            read = text(
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                encoder_hidden_states=seen,
                encoder_attention_mask=seen.new_ones(seen.shape[:2], dtype=words["input_ids"].dtype),
            ).last_hidden_state
            return (head(read[:, 0]).squeeze(1) - MEAN) / STD

        return reward


image_reward = ImageReward()
