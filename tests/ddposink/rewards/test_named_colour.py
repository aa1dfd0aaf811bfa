"""The rule on colours: pictures of known colours, prompts with and without one."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ddposink.rewards import RewardError, load_reward, parse_reward
from ddposink.rewards.named_colour import BROWN, COLOURED, COLOURS, HUES, LEAST, PALE, colours, named
from ddposink.workloads.ddpo_params import DdpoParams

TYPICAL = {
    "red": (220, 40, 40), "orange": (245, 140, 20), "yellow": (250, 215, 40), "green": (60, 170, 70),
    "blue": (50, 110, 220), "purple": (140, 70, 200), "pink": (240, 130, 190), "brown": (120, 75, 40),
}  # fmt: skip


def picture(colour: tuple[int, int, int], part: float = 0.3, ground: int = 255) -> torch.Tensor:
    """(3, 32, 32): some rows of a colour on a ground of grey."""
    found = torch.full((3, 32, 32), ground / 255)
    found[:, : round(32 * part)] = (torch.tensor(colour) / 255)[:, None, None]
    return found


def test_every_colour_is_told_from_every_other() -> None:
    reward = load_reward(parse_reward("named_colour"))
    for name, colour in TYPICAL.items():
        images = torch.stack([picture(colour)] * len(COLOURS))
        found = reward(images, [f"{other} thing" for other in COLOURS]).tolist()
        assert found == [float(other == name) for other in COLOURS], name


def plain(pixel: tuple[float, float, float]) -> str | None:
    """One pixel by the standard library's HSV and the rule in words."""
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    if saturation < COLOURED or value < COLOURED:
        return None
    order = sorted(HUES, key=lambda name: HUES[name])
    below = [name for name in order if HUES[name] <= 360 * hue]
    name = below[-1] if below else "red"
    if name in ("orange", "yellow") and value < BROWN:
        return "brown"
    return "pink" if name == "red" and saturation < PALE and value >= BROWN else name


def test_pixels_against_the_plain_rule() -> None:
    pixels = torch.rand(3, 2000, generator=torch.Generator().manual_seed(0))
    said = [plain(tuple(p)) for p in pixels.T.double().tolist()]  # type: ignore[arg-type]
    expected = np.array([said.count(name) for name in COLOURS]) / 2000
    found = colours(pixels.view(1, 3, 40, 50))[0].numpy()
    assert np.abs(found - expected).max() <= 2 / 2000  # a rounding at an edge
    assert (expected > 0).all()


def test_an_empty_picture_has_no_colour() -> None:
    """Reward hacking by drawing less does not pay."""
    reward, red = load_reward(parse_reward("named_colour")), TYPICAL["red"]
    tiny = torch.ones(3, 32, 32)
    tiny[:, 0, : int(LEAST * 32 * 32) - 1] = (torch.tensor(red) / 255)[:, None]
    images = torch.stack([torch.ones(3, 32, 32), torch.zeros(3, 32, 32), tiny, picture(red, ground=20)])
    assert reward(images, ["red"] * 4).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("prompt", "colour"),
    [
        ("red apple", "red"), ("a BLUE book", "blue"), ("cat face", None), ("red and blue flag", None),
        ("redhead", None), ("red, red rose", "red"), ("white rabbit", None), ("", None),
    ],
)  # fmt: skip
def test_named(prompt: str, colour: str | None) -> None:
    assert named(prompt) == colour


def test_a_prompt_without_a_colour_gets_no_number() -> None:
    reward = load_reward(parse_reward("named_colour"))
    with pytest.raises(RewardError, match=r"the prompt 'cat face' does not name exactly one colour"):
        reward(torch.ones(2, 3, 8, 8), ["red apple", "cat face"])


def cell(tmp_path: Any, **values: Any) -> Any:
    (tmp_path / "colours.txt").write_text("red apple\nblue book\n")
    prompts = f"file:{tmp_path / 'colours.txt'}"
    return DdpoParams(
        **{"pipeline": "emoji-sd", "reward": "named_colour", "steps": 0, "prompts": prompts,
           "eval_prompts": prompts} | values
    )  # fmt: skip


@pytest.mark.parametrize("reward", ["named_colour", "weighted:1*brisque+10*named_colour"])
def test_it_is_trained_on_where_all_prompts_name_one(reward: str, tmp_path: Any) -> None:
    assert cell(tmp_path, reward=reward).reward == reward
    for name in ("prompts", "eval_prompts"):
        why = rf"on {name} 'emoji-heldout': 16 of 16 prompts do not name exactly one colour of red"
        with pytest.raises(ValidationError, match=why):
            cell(tmp_path, reward=reward, **{name: "emoji-heldout"})


def test_gdpo_is_for_several_rewards(tmp_path: Any) -> None:
    assert cell(tmp_path, reward="weighted:1*brisque+10*named_colour", combine_rewards="gdpo")
    with pytest.raises(ValidationError, match=r"'gdpo' needs several rewards, and 'named_colour' is one"):
        cell(tmp_path, combine_rewards="gdpo")
