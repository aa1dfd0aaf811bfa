"""The image–text encoder: its form, its training, and that the embedded one knows its emoji."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.encoder_card import recall
from ddposink.embedded.train_encoder import EncoderRecipe, contrastive_loss, overlap, train
from ddposink.errors import Unavailable
from ddposink.models.augment import augment, move, quantise
from ddposink.models.contrastive import (
    FOLDER,
    Encoder,
    Shape,
    encoder_sha256,
    fit,
    load_encoder,
    make_towers,
    save_encoder,
    words_of,
)
from ddposink.rewards import load_reward, parse_reward

SHAPE = Shape(("apple", "cat", "face", "red"), size=16, channels=(8, 16), features=12, text_width=8, dim=6)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(SHAPE, make_towers(SHAPE))


def test_embeddings_have_length_one_and_features_feed_them(encoder):
    images = torch.rand(5, 3, 16, 16)
    assert encoder.image(images).shape == (5, 6)
    assert encoder.features(images).shape == (5, 12)
    assert torch.allclose(encoder.image(images).norm(dim=1), torch.ones(5))
    assert torch.equal(encoder.project(encoder.features(images)), encoder.image(images))
    text = encoder.text(["red apple", "", "zebra", "Apple, RED!"])
    assert torch.allclose(text.norm(dim=1), torch.ones(4))
    assert torch.equal(text[0], text[3])  # neither order nor case nor punctuation counts
    assert torch.equal(text[1], text[2])  # nothing known
    assert not torch.allclose(text[0], text[1])


def test_a_picture_is_judged_alike_in_any_batch_and_size(encoder):
    images = torch.rand(4, 3, 16, 16)
    assert torch.allclose(encoder.image(images)[2:3], encoder.image(images[2:3]), atol=1e-6)
    ramp, small = (torch.linspace(0.5 / n, 1 - 0.5 / n, n).expand(1, 3, n, n) for n in (64, 16))
    assert torch.allclose(fit(ramp, 16)[..., 1:-1], small[..., 1:-1], atol=1e-5)
    assert encoder.image(torch.rand(2, 3, 50, 30)).shape == (2, 6)


def test_it_is_loaded_as_it_was_saved(encoder, tmp_path):
    save_encoder(SHAPE, encoder.towers, tmp_path)
    loaded = load_encoder(tmp_path)
    images = torch.rand(3, 3, 16, 16)
    assert loaded.shape == SHAPE
    assert torch.allclose(loaded.image(images), encoder.image(images), atol=1e-2)  # half precision
    assert not any(p.requires_grad for p in loaded.towers.parameters())
    before = encoder_sha256(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert encoder_sha256(tmp_path) != before


def test_a_damaged_encoder_is_told_in_one_line(encoder, tmp_path):
    with pytest.raises(Unavailable, match="cannot be loaded"):
        load_encoder(tmp_path)
    save_encoder(SHAPE, encoder.towers, tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(Unavailable, match=r"^the image–text encoder in [^\n]+$"):
        load_encoder(tmp_path)


def test_words():
    assert words_of("Red-Apple, cat's FACE_1 Éclair") == ["red", "apple", "cat", "s", "face", "1", "éclair"]


def test_overlap_is_the_jaccard_index():
    found = overlap(["man running", "woman running", "red apple", "running man"])
    assert found[0].tolist() == pytest.approx([1, 1 / 3, 0, 1])


def test_the_loss_leaves_out_pairs_that_are_alike():
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(4, 6, generator=generator), dim=1) for _ in range(2))
    alike = torch.zeros(4, 4, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = alike[2, 2] = True
    scale, expected = torch.tensor(5.0), 0.0
    for i in range(4):
        for one, other in ((a, b), (b, a)):
            left = [j for j in range(4) if i == j or not alike[i, j]]
            scores = torch.stack([scale * one[i] @ other[j] for j in left])
            expected += -torch.log_softmax(scores, 0)[left.index(i)] / 8
    assert contrastive_loss(a, b, scale, alike).item() == pytest.approx(expected.item(), abs=1e-5)


def test_recall_counts_ranks():
    seen = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.9, 0.1]])
    read = torch.eye(3)
    assert recall(seen, read, 1) == (pytest.approx(2 / 3), pytest.approx(1.0))
    assert recall(seen, read, 2) == (1.0, 1.0)


def test_changed_pictures_stay_pictures_and_are_reproducible():
    images = torch.rand(9, 3, 64, 64)
    one = augment(images, torch.Generator().manual_seed(3))
    assert torch.equal(one, augment(images, torch.Generator().manual_seed(3)))
    assert one.shape == images.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert (one - images).abs().mean((1, 2, 3)).min() > 0.01
    white = torch.ones(2, 3, 64, 64)
    assert torch.allclose(move(white, torch.Generator().manual_seed(0)), white)  # what moves in is paper


def test_coarse_quantisation_keeps_the_mean_of_a_flat_picture():
    flat = torch.full((1, 3, 16, 16), 0.5)
    found = quantise(flat, torch.Generator().manual_seed(0))
    assert found.std() < 1e-6
    assert (found - flat).abs().max() < 0.02


def squares(count=24):
    """Coloured squares at places, captioned with both."""
    images, captions = [], []
    for colour, rgb in {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}.items():
        for place in range(count // 3):
            picture = np.full((64, 64, 3), 255, np.uint8)
            y, x = divmod(place, 4)
            picture[8 + 30 * y : 26 + 30 * y, 15 * x : 15 * x + 14] = rgb
            images.append(picture)
            captions.append(f"{colour} p{place}")
    return EmojiSet(np.stack(images), tuple(captions), tuple(captions), ("x",) * count)


def test_training_lowers_the_loss_and_is_reproducible():
    emoji = squares()
    shape = Shape(
        tuple(sorted({w for c in emoji.captions for w in words_of(c)})), channels=(4, 8, 8, 8), features=16
    )
    recipe = EncoderRecipe(steps=30, batch=24, learning_rate=1e-2, average=0.8)
    runs = [list(train(emoji, recipe, shape)) for _ in range(2)]
    losses = [[loss for _, loss, _ in run] for run in runs]
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5]) - 0.3


def test_the_card_of_the_embedded_encoder_reports_a_usable_one():
    card = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
    assert card["recall"]["as drawn"]["text@1"] > 0.8
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 5e6


@pytest.mark.assets
def test_the_embedded_encoder_knows_its_emoji():
    from ddposink.assets.emoji import load_emoji
    from ddposink.embedded.encoder_card import pictures

    emoji, reward = load_emoji(), load_reward(parse_reward("alignment"))
    named = [emoji.index(c) for c in ("red apple", "tiger face", "rocket", "sunflower", "octopus")]
    images, prompts = pictures(emoji)[named], [emoji.captions[i] for i in named]
    table = torch.stack([reward(images, [prompt] * len(images)) for prompt in prompts])
    assert table.argmax(1).tolist() == list(range(len(named)))
    assert table.diagonal().min() > table.fill_diagonal_(-100).max()
