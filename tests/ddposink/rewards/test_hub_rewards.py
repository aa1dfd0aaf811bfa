"""Rewards of the model hub, on folders in its layout: loading, pre-processing, formula, what is refused."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BertTokenizer, CLIPTokenizer

from ddposink.errors import Unavailable
from ddposink.rewards import load_reward, parse_reward
from ddposink.rewards.pixels import MEAN, STD, clip_pixels
from helpers.hub_layout import DIM, open_clip_state, write_clip, write_head, write_image_reward

PROMPTS = ["red apple", "a tiger face", "red red red red red red red red red red red red red red"]
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    model = write_clip(folder)
    write_head(folder / "aesthetic-model.pth", DIM)
    torch.save({"state_dict": open_clip_state(model), "epoch": 1}, folder / "HPS_v2.1_compressed.pt")
    return folder, model


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    return folder, *write_image_reward(folder)


def score(name, folder):
    return load_reward(parse_reward(f"{name}:path:{folder}"))(IMAGES, PROMPTS)


def cosines(folder, model):
    """Picture by picture and without padding."""
    tokenizer, found = CLIPTokenizer.from_pretrained(folder), []
    with torch.no_grad():
        for image, prompt in zip(clip_pixels(IMAGES, 32), PROMPTS, strict=True):
            words = tokenizer(prompt, truncation=True, max_length=20, return_tensors="pt")
            out = model(input_ids=words["input_ids"], pixel_values=image[None])
            found.append(F.cosine_similarity(out.image_embeds, out.text_embeds))
    return torch.cat(found)


def test_clip_score_and_pickscore_are_scaled_cosines(clip):
    folder, model = clip
    expected = cosines(folder, model)
    assert expected.std() > 1e-3
    assert torch.allclose(score("clip_score", folder), 100 * expected, atol=1e-3)
    assert torch.allclose(score("pickscore", folder), model.logit_scale.exp() * expected, atol=1e-3)


def test_hps_reads_open_clip_weights(clip):
    folder, model = clip
    assert torch.allclose(score("hps", folder), cosines(folder, model), atol=1e-5)


def test_the_aesthetic_head_sits_on_the_normalised_embedding(clip):
    folder, model = clip
    weights = torch.load(folder / "aesthetic-model.pth", weights_only=True)
    with torch.no_grad():
        x = model.get_image_features(pixel_values=clip_pixels(IMAGES, 32))
        x = F.normalize(x if isinstance(x, torch.Tensor) else x.pooler_output, dim=-1)
        for i in (0, 2, 4, 6, 7):
            x = x @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
    assert torch.allclose(score("aesthetic", folder), x[:, 0], atol=1e-5)
    assert x.std() > 1e-4


def test_the_heads_of_laion_and_of_trl_fit(tmp_path):
    """The published head is 768 wide; TRL's own module takes the same names and shapes."""
    state = write_head(tmp_path / "x.pth", 768)
    layers = torch.nn.Sequential(
        torch.nn.Linear(768, 1024), torch.nn.Dropout(), torch.nn.Linear(1024, 128), torch.nn.Dropout(),
        torch.nn.Linear(128, 64), torch.nn.Dropout(), torch.nn.Linear(64, 16), torch.nn.Linear(16, 1),
    )  # fmt: skip
    layers.load_state_dict({k.removeprefix("layers."): v for k, v in state.items()})


def test_image_reward_reads_picture_and_prompt_together(blip):
    folder, vision, text, head = blip
    tokenizer, expected = BertTokenizer.from_pretrained(folder), []
    with torch.no_grad():
        for image, prompt in zip(clip_pixels(IMAGES, 32), PROMPTS, strict=True):
            seen = vision(pixel_values=image[None]).last_hidden_state
            words = tokenizer(prompt, truncation=True, max_length=35, return_tensors="pt")["input_ids"]
            x = text(input_ids=words, encoder_hidden_states=seen).last_hidden_state[:, 0]
            for i in (0, 2, 4, 6, 7):
                x = x @ head[f"mlp.layers.{i}.weight"].T + head[f"mlp.layers.{i}.bias"]
            expected.append((x[0, 0] - 0.16717362830052426) / 1.0333394966054072)
    found = score("image_reward", folder)
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    swapped = load_reward(parse_reward(f"image_reward:path:{folder}"))(IMAGES, PROMPTS[::-1])
    assert not torch.allclose(found[0], swapped[0], atol=1e-4)
    assert not torch.allclose(found[1:], found[:1].expand(2), atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (100, 80), (50, 224), (224, 224)])
def test_pictures_are_prepared_as_the_image_processor_does(shape):
    height, width = shape
    grid = torch.stack(
        torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    )
    image = torch.cat([grid, (grid[:1] * 9).sin() * 0.5 + 0.5])
    found = clip_pixels(image[None], 224)[0]
    picture = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    short = min(shape)
    picture = picture.resize((224 * width // short, 224 * height // short), Image.Resampling.BICUBIC)
    left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
    pixels = np.asarray(picture.crop((left, top, left + 224, top + 224))) / 255.0
    expected = (pixels - np.array(MEAN)) / np.array(STD)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 0.02  # a picture file rounds to 1/255


def test_a_pickle_is_refused(clip, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((clip[0] / name).read_bytes())

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"layers.0.weight": Bomb()}, tmp_path / "aesthetic-model.pth")
    with pytest.raises(Unavailable, match="could not be loaded"):
        load_reward(parse_reward(f"aesthetic:path:{tmp_path}"))


@pytest.mark.parametrize("damage", ["truncated", "other model", "nothing"])
def test_damaged_weights_are_told_in_one_line(clip, tmp_path, damage):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((clip[0] / name).read_bytes())
    weights = (clip[0] / "model.safetensors").read_bytes()
    if damage == "other model":
        config = json.loads((tmp_path / "config.json").read_text())
        config["vision_config"]["num_hidden_layers"] = 3
        (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(
        {"truncated": weights[:-1000], "other model": weights, "nothing": b""}[damage]
    )
    with pytest.raises(Unavailable, match=r"^CLIPModel in '.*' could not be loaded: [^\n]+$"):
        score("clip_score", tmp_path)


def test_open_clip_weights_that_do_not_fit_are_refused(clip, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((clip[0] / name).read_bytes())
    state = open_clip_state(clip[1])
    del state["visual.ln_post.bias"]
    torch.save({"state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(
        Unavailable, match=r"1 weights are missing and 0 unknown: vision_model\.post_layernorm\.bias"
    ):
        score("hps", tmp_path)


def test_a_folder_or_commit_that_cannot_be_is_told_when_the_suite_is_read(clip, tmp_path):
    with pytest.raises(ValueError, match=r"has no file med_config.json|has no file ImageReward.pt; needed:"):
        parse_reward(f"image_reward:path:{clip[0]}")
    with pytest.raises(ValueError, match="'@main' is no commit: write @ and the 40 hexadecimal digits"):
        parse_reward("pickscore@main")
    with pytest.raises(ValueError, match="expected @COMMIT or :path:DIR after the name, not 'DIR'"):
        parse_reward("hps:DIR")


def test_identities_name_commits_or_contents(clip):
    folder = clip[0]
    assert parse_reward("pickscore@" + "12" * 20).identity() == {
        "yuvalkirstain/PickScore_v1": "12" * 20,
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    }
    before = parse_reward(f"aesthetic:path:{folder}").identity()
    assert before != parse_reward(f"clip_score:path:{folder}").identity()


@pytest.mark.parametrize("name", ["aesthetic", "clip_score", "pickscore", "hps", "image_reward"])
def test_without_a_hub_the_reason_is_one_line(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match=r"^weights not available offline: .* HF_HUB_OFFLINE is set$"):
        load_reward(parse_reward(name))
