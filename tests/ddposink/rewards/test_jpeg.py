"""JPEG size against a file written by hand."""

import numpy as np
import torch
from PIL import Image

from ddposink.rewards import load_reward, parse_reward


def test_the_reward_is_the_size_of_the_file_in_kilobytes(tmp_path):
    images = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    images[1] = 0.5
    small = load_reward(parse_reward("jpeg_compressibility"))(images, [""] * 3)
    large = load_reward(parse_reward("jpeg_incompressibility"))(images, [""] * 3)
    assert torch.equal(small, -large)
    for i in range(3):
        pixels = np.rint(images[i].numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95)
        assert large[i].item() == np.float32((tmp_path / "x.jpg").stat().st_size / 1000)
    assert small[1] > small[0]  # a flat picture is smaller than noise


def test_values_outside_are_clipped_rather_than_wrapped():
    reward = load_reward(parse_reward("jpeg_compressibility"))
    white = torch.ones(1, 3, 16, 16)
    assert reward(white * 1.2, [""]) == reward(white, [""])
