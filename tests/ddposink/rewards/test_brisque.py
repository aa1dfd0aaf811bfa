"""BRISQUE against a plain, scalar reading of its definition, and its parameters against their source."""

import zipfile

import numpy as np
import pytest
import torch
from scipy import ndimage, optimize, signal, special

from ddposink.assets.packages import PackageSource, download
from ddposink.rewards import load_reward, parse_reward
from ddposink.rewards.brisque import PARAMETERS
from ddposink.rewards.brisque_score import features

SVM_SHA256 = "19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d"


def photographs(count, size=64, seed=0):
    """Smooth random fields with some grain: pictures as the regression knows them."""
    generator = np.random.default_rng(seed)
    found = []
    for i in range(count):
        field = generator.normal(size=(3, size, size))
        field = ndimage.gaussian_filter(field, (0, 1 + i % 4, 1 + i % 4))
        field = 0.5 + 0.18 * field / field.std() + 0.02 * generator.normal(size=field.shape)
        found.append(field.clip(0, 1))
    return torch.from_numpy(np.stack(found)).float()


def plain_score(picture):
    """One (3, H, W) picture: loops, a convolution, a root finder and one kernel at a time."""
    grey = np.tensordot([0.2125, 0.7154, 0.0721], np.rint(picture.numpy() * 255.0) / 255.0, axes=1)
    found = plain_statistics(grey) + plain_statistics(halved(grey))
    with np.load(PARAMETERS) as p:
        x = -1 + 2 * (np.array(found) - p["minimum"]) / (p["maximum"] - p["minimum"])
        terms = [
            c * np.exp(-p["gamma"] * np.sum((x - v) ** 2))
            for v, c in zip(p["support_vectors"].astype(float), p["coefficients"].astype(float), strict=True)
        ]
        return sum(terms) - float(p["rho"])


def halved(grey):
    """Cubic convolution with a = -0.75 at the middle between pixels, edges repeated; half a pixel is even."""
    weights = np.array([-0.09375, 0.59375, 0.59375, -0.09375])
    height, width = (round(side / 2) for side in grey.shape)
    for axis in (0, 1):
        padded = np.pad(grey, [(1, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 4, axis=axis)
        grey = (windows[::2] if axis == 0 else windows[:, ::2]) @ weights
    return grey[:height, :width]


def plain_statistics(grey):
    y, x = np.indices((7, 7)) - 3
    kernel = np.exp(-(x**2 + y**2) / (2 * (7 / 6) ** 2))
    kernel /= kernel.sum()
    mean = signal.convolve2d(grey, kernel, "same")
    deviation = np.sqrt(np.abs(mean**2 - signal.convolve2d(grey**2, kernel, "same")))
    m = (grey - mean) / (deviation + 1 / 255)
    shape, _, left, right = plain_fit(m)
    found = [shape, (left + right) / 2]
    for product in (
        m[:, :-1] * m[:, 1:], m[:-1] * m[1:], m[:-1, :-1] * m[1:, 1:], m[1:, :-1] * m[:-1, 1:],
    ):  # fmt: skip
        found += plain_fit(product)
    return found


def plain_fit(x):
    left, right = np.mean(x[x < 0] ** 2), np.mean(x[x >= 0] ** 2)
    g = np.sqrt(left / right)
    ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2

    def difference(a):
        return special.gamma(2 / a) ** 2 / (special.gamma(1 / a) * special.gamma(3 / a)) - ratio

    shape = optimize.brentq(difference, 0.2, 10)
    scale = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    mean = (np.sqrt(right) - np.sqrt(left)) * scale * special.gamma(2 / shape) / special.gamma(1 / shape)
    return [shape, mean, left, right]


def test_the_score_is_that_of_the_plain_reading():
    images = photographs(6)
    reward = load_reward(parse_reward("brisque"))
    found = reward(images, [""] * 6)
    assert found.tolist() == pytest.approx([-plain_score(picture) for picture in images], abs=2e-3)
    for size in (51, 65):  # sides may be odd
        (picture,) = odd = photographs(1, size)
        assert reward(odd, [""]).item() == pytest.approx(-plain_score(picture), abs=2e-3)


def test_a_batch_is_scored_as_its_pictures_are():
    images = photographs(5)
    reward = load_reward(parse_reward("brisque"))
    one_by_one = torch.cat([reward(images[i : i + 1], [""]) for i in range(5)])
    assert torch.allclose(reward(images, [""] * 5), one_by_one, atol=1e-3)


def test_damage_is_seen():
    images = photographs(8)
    reward = load_reward(parse_reward("brisque"))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images + 0.3 * noise).clamp(0, 1)
    assert (reward(noisy, [""] * 8) < reward(images, [""] * 8)).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_a_flat_picture_has_a_finite_score(value):
    score = load_reward(parse_reward("brisque"))(torch.full((2, 3, 64, 64), value), ["", ""])
    assert torch.isfinite(score).all()
    assert (score < -50).all()


def test_pictures_with_flat_parts_or_one_sign_are_finite():
    images = torch.zeros(4, 3, 64, 64)
    images[0, :, 30:34, 30:34] = 1
    images[1, :, ::2] = 1
    images[2, 0, 5, 5] = 1
    images[3] = torch.rand(3, 64, 64)
    assert torch.isfinite(features(images)).all()


def test_too_small_a_picture_is_refused():
    with pytest.raises(ValueError, match="at least 16×16"):
        features(torch.rand(1, 3, 8, 64))


@pytest.mark.assets
def test_the_parameters_are_those_of_the_package(tmp_path):
    import hashlib
    import pickletools

    wheel = download("pypi", PackageSource("brisque", "0.2.0", 155_541), tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        svm = archive.read("brisque/models/svm.txt")
        scale = archive.read("brisque/models/normalize.pickle")
    assert hashlib.sha256(svm).hexdigest() == SVM_SHA256
    head, rows = svm.decode().split("SV\n")
    said = dict(line.split(maxsplit=1) for line in head.splitlines())
    limits = [arg for op, arg, _ in pickletools.genops(scale) if op.name == "BINFLOAT"]
    with np.load(PARAMETERS, allow_pickle=False) as p:
        assert (float(said["gamma"]), float(said["rho"])) == (p["gamma"], p["rho"])
        assert limits == [*p["minimum"], *p["maximum"]]
        for row, coefficient, vector in zip(
            rows.splitlines(), p["coefficients"], p["support_vectors"], strict=True
        ):
            first, *entries = row.split()
            values = np.zeros(36, np.float32)
            for index, value in (entry.split(":") for entry in entries):
                values[int(index) - 1] = float(value)
            assert np.float32(first) == coefficient
            assert np.array_equal(values, vector)
