"""Rewards that say they are differentiable are: their gradient is that of finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ddposink.rewards import RewardError, checked, load_reward, parse_reward, reward_infos
from ddposink.rewards.base import RewardInfo
from helpers.hub_layout import DIM, open_clip_state, write_clip, write_head, write_image_reward

PROMPTS = ["red apple", "a tiger face"]


def smooth_pictures() -> torch.Tensor:
    """(2, 3, 64, 64) far from black and white."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 16, 16, generator=generator)
    fine = torch.rand(2, 3, 64, 64, generator=generator)
    return 0.2 + 0.4 * torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear") + 0.2 * fine


def check_gradient(reward: Any, step: float, close: float) -> None:
    """Along the gradient itself, where the slope is its norm."""
    images = smooth_pictures().requires_grad_()
    found = reward.with_gradient(images, PROMPTS)
    assert torch.allclose(found.detach(), reward(images.detach(), PROMPTS), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    norm = gradient.norm()
    assert float(norm) > 0
    sides = [
        reward(images.detach() + sign * step * gradient / norm, PROMPTS).double().sum() for sign in (1, -1)
    ]
    assert float((sides[0] - sides[1]) / (2 * step) / norm) == pytest.approx(1, rel=close)


@pytest.mark.parametrize("name", ["alignment", "preference", "weighted:1*alignment+2*preference"])
def test_the_embedded_ones(name: str) -> None:
    check_gradient(load_reward(parse_reward(name)), 0.05, 0.05)


def test_brisque_takes_rounding_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded pictures have no slope; the gradient is that of the score of pictures that are not."""
    images = smooth_pictures().requires_grad_()
    rounded = load_reward(parse_reward("brisque")).with_gradient(images, PROMPTS)
    (found,) = torch.autograd.grad(rounded.sum(), images)
    monkeypatch.setattr(
        "ddposink.rewards.brisque_score.to_uint8",
        lambda images: 255 * images.detach().double().permute(0, 2, 3, 1),
    )
    unrounded = load_reward(parse_reward("brisque")).with_gradient(images, PROMPTS)
    (exact,) = torch.autograd.grad(unrounded.sum(), images)
    assert float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0)) > 0.9
    check_gradient(load_reward(parse_reward("brisque")), 1e-3, 0.02)


@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hps", "aesthetic", "image_reward"])
def test_those_of_the_hub(name: str, tmp_path: Path) -> None:
    if name == "image_reward":
        write_image_reward(tmp_path)
    else:
        model = write_clip(tmp_path)
        write_head(tmp_path / "aesthetic-model.pth", DIM)
        torch.save({"state_dict": open_clip_state(model), "epoch": 1}, tmp_path / "HPS_v2.1_compressed.pt")
    check_gradient(load_reward(parse_reward(f"{name}:path:{tmp_path}")), 0.05, 0.1)


def test_noise_has_a_gradient_that_knows_nothing() -> None:
    reward, images = load_reward(parse_reward("noise")), smooth_pictures().requires_grad_()
    found = reward.with_gradient(images, PROMPTS)
    assert torch.equal(found.detach(), reward(images.detach(), PROMPTS))
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert abs(float(gradient.mean())) < 0.05
    assert float(gradient.std()) == pytest.approx(1, abs=0.05)
    again = torch.autograd.grad(reward.with_gradient(images, PROMPTS).sum(), images)[0]
    assert torch.equal(gradient, again)
    assert abs(float(torch.corrcoef(gradient.flatten(1))[0, 1])) < 0.05


def test_those_without_are_known_before_anything_is_loaded() -> None:
    known = {name for name, info in reward_infos().items() if info.differentiable}
    hub = {"aesthetic", "clip_score", "pickscore", "hps", "image_reward"}
    assert known == {"alignment", "preference", "brisque", "noise"} | hub
    assert parse_reward("weighted:1*alignment+1*brisque").differentiable
    assert not parse_reward("weighted:1*alignment+1*jpeg_compressibility").differentiable


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda images, prompts: images.detach().mean((1, 2, 3)), "has no gradient"),
        (lambda images, prompts: images.mean(), "returned shape"),
        (lambda images, prompts: images.mean((1, 2, 3)) / 0, "not finite"),
    ],
)
def test_a_bad_answer_is_told_with_its_batch(function: Any, said: str) -> None:
    info = RewardInfo((0, 1), "", "", "", "", differentiable=True)
    with pytest.raises(RewardError, match=said) as caught:
        checked("odd", info, function).with_gradient(smooth_pictures().requires_grad_(), PROMPTS)
    assert caught.value.images.shape == (2, 3, 64, 64)
