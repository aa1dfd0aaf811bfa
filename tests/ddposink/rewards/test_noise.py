import torch

from ddposink.rewards import load_reward, parse_reward


def test_noise_is_normal_and_belongs_to_the_picture():
    images = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    reward = load_reward(parse_reward("noise"))
    values = reward(images, ["x"] * 400)
    assert torch.equal(values.flip(0), reward(images.flip(0), ["y"] * 400))
    assert abs(values.mean()) < 0.2
    assert abs(values.std() - 1) < 0.15
    brightness = images.mean((1, 2, 3))
    assert abs(torch.corrcoef(torch.stack([values, brightness]))[0, 1]) < 0.2
