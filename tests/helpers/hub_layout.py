"""Folders in the layout of the hub's repositories, with small random weights."""

import json
from itertools import pairwise

import torch
from torch import nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

WIDTH, DIM = 64, 32


def write_tokenizer(folder):
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77).save_pretrained(
        folder
    )
    return len(words)


def write_clip(folder, size=32, heads=2, dim=DIM):
    """config.json, model.safetensors and tokenizer of a tiny CLIP; returns the model."""
    torch.manual_seed(0)
    vocabulary = write_tokenizer(folder)
    common = {
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "projection_dim": dim,
    }
    text = {"hidden_size": WIDTH, "vocab_size": vocabulary, "max_position_embeddings": 20}
    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    vision = {"hidden_size": WIDTH, "image_size": size, "patch_size": 8}
    config = CLIPConfig(text_config=common | text | ids, vision_config=common | vision, projection_dim=dim)
    model = CLIPModel(config).eval()
    for parameter in model.parameters():  # the library's start is so small that all pictures look the same
        nn.init.normal_(parameter, std=0.2) if parameter.ndim else None
    model.save_pretrained(folder)
    return model


def write_head(file, width, prefix="layers."):
    torch.manual_seed(1)
    sizes = [width, 1024, 128, 64, 16, 1]
    state = {}
    for index, (inside, outside) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        layer = nn.Linear(inside, outside)
        layer.weight.data *= 3
        state |= {f"{prefix}{index}.weight": layer.weight.data, f"{prefix}{index}.bias": layer.bias.data}
    if file:
        torch.save(state, file)
    return state


def open_clip_state(model):
    """A transformers CLIPModel's weights as open-clip names them, written from open-clip's side."""
    own, state = model.state_dict(), {}
    sides = [("vision_model", "visual.", 2), ("text_model", "", 2)]
    for side, prefix, layers in sides:
        for i in range(layers):
            theirs, ours = f"{prefix}transformer.resblocks.{i}", f"{side}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                qkv = [own[f"{ours}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                state[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(qkv)
                for a, b in [
                    ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
                ]:  # fmt: skip
                    state[f"{theirs}.{a}.{kind}"] = own[f"{ours}.{b}.{kind}"]
    for kind in ("weight", "bias"):
        state[f"visual.ln_pre.{kind}"] = own[f"vision_model.pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = own[f"vision_model.post_layernorm.{kind}"]
        state[f"ln_final.{kind}"] = own[f"text_model.final_layer_norm.{kind}"]
    embeddings = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    state |= {theirs: own[ours] for theirs, ours in embeddings.items()}
    state["visual.proj"] = own["visual_projection.weight"].T.contiguous()
    state["text_projection"] = own["text_projection.weight"].T.contiguous()
    return state


def write_image_reward(folder):
    """ImageReward.pt, med_config.json and tokenizer; returns vision model, text model and head weights."""
    torch.manual_seed(2)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"red apple tiger face a".split()]
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}, do_lower_case=True).save_pretrained(folder)
    med = {
        "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 96,
        "vocab_size": 12, "max_position_embeddings": 40, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
        "architectures": ["BertModel"], "encoder_width": 128, "add_cross_attention": True,
    }  # fmt: skip
    (folder / "med_config.json").write_text(json.dumps(med))
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, image_size=32,
            patch_size=16, layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    known = {
        k: v for k, v in med.items() if k not in ("architectures", "encoder_width", "add_cross_attention")
    }
    text = BlipTextModel(BlipTextConfig(**known, encoder_hidden_size=128), add_pooling_layer=False).eval()
    for parameter in [*vision.parameters(), *text.parameters()]:
        nn.init.normal_(parameter, std=0.15)
    state = write_head(None, 48, prefix="mlp.layers.")
    head = dict(state)
    state |= {f"blip.text_encoder.{name}": tensor for name, tensor in text.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    state["blip.text_proj.weight"] = torch.zeros(4, 48)  # of its pre-training, unused
    for name, tensor in vision.state_dict().items():
        state["blip.visual_encoder." + timm_name(name)] = tensor
    torch.save(state, folder / "ImageReward.pt")
    return vision, text, head


def timm_name(name):
    """A BlipVisionModel's weight as the original vision transformer names it."""
    whole = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
        "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
        "post_layernorm.weight": "norm.weight",
        "post_layernorm.bias": "norm.bias",
    }
    if name in whole:
        return whole[name]
    parts = {"encoder.layers": "blocks", "self_attn.qkv": "attn.qkv", "self_attn.projection": "attn.proj"}
    for ours, theirs in (parts | {"layer_norm1": "norm1", "layer_norm2": "norm2"}).items():
        name = name.replace(ours, theirs)
    return name
