"""Human Preference Score v2.1: a CLIP ViT-H/14 tuned on choices of people (Wu et al. 2023).

Its weights are those of an open-clip model; they are renamed for transformers' CLIP, so that no further
package is needed. The score is the cosine, usually between 0.2 and 0.35.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddposink.rewards.base import RewardFunction, RewardInfo
from ddposink.rewards.clip import VIT_H, similarity, tokenizer_in
from ddposink.rewards.hub_kind import HubKind, Repo, loading, read_weights

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "HPS_v2.1_compressed.pt"
_TOWERS = (
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
)
_LAYER = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an open-clip model under the names of transformers' CLIPModel."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "logit_scale":
            found[name] = tensor
        elif name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = (
                tensor.T
            )
        elif ".attn.in_proj_" in name:
            stem, kind = _renamed(name).split(".attn.in_proj_")
            for part, letter in zip(tensor.chunk(3), "qkv", strict=True):
                found[f"{stem}.self_attn.{letter}_proj.{kind}"] = part
        else:
            found[_renamed(name)] = tensor
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def _renamed(name: str) -> str:
    for old, new in _TOWERS:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in _LAYER:
        name = name.replace(old, new)
    return name


def _load(weights: Path, config: Path, device: str) -> Any:
    from transformers import CLIPConfig, CLIPModel

    with loading("the preference model", weights):
        state = from_open_clip(read_weights(weights))
        model = CLIPModel(CLIPConfig.from_pretrained(config, local_files_only=True))
        missing, unexpected = model.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.endswith("position_ids")]
        unexpected = [name for name in unexpected if name != "attn_mask"]
        if missing or unexpected:
            raise ValueError(f"{len(missing)} weights are missing and {len(unexpected)} unknown: "
                             f"{[*missing, *unexpected][0]}")  # fmt: skip
    return model.to(device).eval().requires_grad_(False)


class HumanPreferenceScore(HubKind):
    """Files: HPS_v2.1_compressed.pt; config.json and tokenizer of LAION's ViT-H/14."""

    info = RewardInfo(
        range=(0.0, 1.0),
        unit="cosine",
        needs="3.9 GB of weights from the hub",
        licence="Apache-2.0",
        source="Wu et al. 2023",
        differentiable=True,
    )
    repos = (Repo("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", (WEIGHTS,)), VIT_H)

    def load(self, argument: str, device: str) -> RewardFunction:
        """Both towers and the tokenizer."""
        own, clip = self.folders(argument)
        return similarity(_load(own / WEIGHTS, clip, device), tokenizer_in(clip), device)


hps = HumanPreferenceScore()
