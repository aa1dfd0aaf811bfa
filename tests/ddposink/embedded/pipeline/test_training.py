"""Training the tiny pipeline: the same bits after an interruption, latents that a stock pipeline can use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.latents import FAVOURED, encode_images, normalise, weights_of
from ddposink.embedded.pipeline.stages import BEGIN, SMALL, Recipes, image_tensor
from ddposink.embedded.pipeline.text import encode, make_text_encoder, make_tokenizer
from ddposink.embedded.pipeline.training import PipelineRecipe, load_state, save_state, train
from ddposink.embedded.pipeline.unet import make_scheduler
from ddposink.embedded.pipeline.vae import draw_batch, make_vae
from ddposink.prompts import SETS


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    """Eight coloured pictures."""
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    captions = ("red apple", "green apple", "cat face", "man cook", "clock face one", "pear", "bus", "a zoo")
    categories = ("Food & Drink",) * 3 + ("People & Body",) + ("Objects",) * 4
    return EmojiSet(images, captions, captions, categories)


def finish(stage: str, emoji: EmojiSet, recipes: Recipes, folder: Path) -> dict[str, torch.Tensor]:
    state, loss = BEGIN[stage](emoji, recipes, folder)
    for _ in train(state, loss, folder / f"{stage}.safetensors"):
        pass
    return {name: p.detach().clone() for name, p in state.model.named_parameters()} | state.average


@pytest.mark.parametrize("stage", ["vae", "decoder", "unet"])
def test_cut_off_and_gone_on_with_ends_in_the_same_bits(stage: str, emoji: EmojiSet, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        if stage != "vae":
            finish("vae", emoji, SMALL, folder)
    wanted = finish(stage, emoji, SMALL, whole)
    finish(stage, emoji, replace(SMALL, **{stage: replace(getattr(SMALL, stage), stop=2)}), cut)
    found = finish(stage, emoji, SMALL, cut)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_decoders_training_leaves_the_encoder_as_it_was(emoji: EmojiSet, tmp_path: Path) -> None:
    finish("vae", emoji, SMALL, tmp_path)
    state, loss = BEGIN["decoder"](emoji, SMALL, tmp_path)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    for _ in train(state, loss, tmp_path / "decoder.safetensors"):
        pass
    changed = {n for n, p in state.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    assert all(torch.equal(state.average[n], before[n]) for n in before if n.startswith("encoder."))


def test_a_checkpoint_of_another_recipe_is_refused(emoji: EmojiSet, tmp_path: Path) -> None:
    state, _ = BEGIN["vae"](emoji, SMALL, tmp_path)
    save_state(state, tmp_path / "vae.safetensors")
    other = replace(SMALL, vae=replace(SMALL.vae, batch=3))
    with pytest.raises(ValueError, match="was trained with batch=2: repeat that or choose another --out"):
        BEGIN["vae"](emoji, other, tmp_path)
    longer = replace(SMALL.vae, steps=99, stop=None)
    assert load_state(replace(state, recipe=longer), tmp_path / "vae.safetensors").recipe.last == 99


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = PipelineRecipe(steps=100, learning_rate=1.0, warm_up=10)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.01 < rates[-1] < 0.02
    assert recipe.last == 100
    assert replace(recipe, stop=7).last == 7


def test_normalised_latents_have_mean_0_and_deviation_1_and_decode_as_before(emoji: EmojiSet) -> None:
    vae, images = make_vae(SMALL.vae), image_tensor(emoji)
    with torch.no_grad():
        vae.quant_conv.bias.add_(torch.linspace(-2, 3, 16))
        vae.post_quant_conv.weight.add_(0.3)
    pixels = images.float() / 127.5 - 1
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        wanted, spread = (
            vae.decode(before.mean).sample,
            before.std / before.mean.std((0, 2, 3))[:, None, None],
        )
        normalise(vae, images)
        after = vae.encode(pixels).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, wanted, rtol=1e-3, atol=1e-4)
    latents = encode_images(vae, images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), rtol=1e-4, atol=0)
    torch.testing.assert_close(after.std, spread, rtol=1e-3, atol=1e-5)
    assert vae.config.scaling_factor == 1.0


def test_crops_early_and_whole_pictures_later(emoji: EmojiSet) -> None:
    images = image_tensor(emoji)
    early, late = (draw_batch(images, SMALL.vae, step, torch.Generator().manual_seed(1)) for step in (0, 3))
    assert early.shape == (2, 3, 32, 32)
    assert late.shape == (2, 3, 64, 64)
    whole = images.float() / 127.5 - 1
    assert all(any(torch.equal(x, y) or torch.equal(x, y.flip(2)) for y in whole) for x in late)


def test_every_word_is_one_token_and_nothing_is_unknown() -> None:
    texts = ["red apple", "slice of pizza", "jack-o-lantern"]
    tokenizer = make_tokenizer(texts)
    assert encode(tokenizer, texts)[1].tolist().count(tokenizer.eos_token_id) == 16 - 4
    strange = "zebra Ж 5é"
    assert tokenizer.decode(encode(tokenizer, [strange])[0], skip_special_tokens=True).split()[0] == "zebra"
    assert tokenizer.eos_token_id not in tokenizer(strange).input_ids[1:-1]


def test_the_tokenizer_is_the_same_every_time() -> None:
    """The trainer breaks ties by ids that it hands out in a random order, unless told otherwise."""
    words = [f"{a}{b}{c}" for a in "qwert" for b in "aeiou" for c in "zxcvb"]
    first = make_tokenizer(words)
    for _ in range(3):
        again = make_tokenizer(words)
        assert again.get_vocab() == first.get_vocab()
        assert encode(again, words).tolist() == encode(first, words).tolist()


def test_the_tokenizer_and_the_encoder_survive_saving(tmp_path: Path) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = make_tokenizer(["red apple", "pear"])
    encoder = make_text_encoder(tokenizer, width=32, layers=1).eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder.save_pretrained(tmp_path / "encoder")
    ids = encode(tokenizer, ["red pear", ""])
    again = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert torch.equal(encode(again, ["red pear", ""]), ids)
    loaded = CLIPTextModel.from_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, encoder(ids).last_hidden_state)


def test_prompts_are_drawn_more_often_and_people_less(emoji: EmojiSet) -> None:
    weights = dict(zip(emoji.captions, weights_of(emoji).tolist(), strict=True))
    assert "red apple" in SETS["emoji-train"]
    assert weights["red apple"] == FAVOURED
    assert weights["green apple"] == 1
    assert weights["man cook"] == pytest.approx(0.4)
    assert weights["clock face one"] == pytest.approx(0.25)


def test_the_scheduler_is_stable_diffusions_with_v_prediction() -> None:
    scheduler = make_scheduler()
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.alphas_cumprod[0] == pytest.approx(1 - 0.00085)
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.0047, abs=1e-4)
