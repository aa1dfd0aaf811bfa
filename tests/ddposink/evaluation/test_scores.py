"""Pictures at fixed noise, their scores, sheets of them, and how far a model has moved."""

import numpy as np
import pytest
import torch

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.evaluation import scores as evaluation
from ddposink.evaluation.drift import kl_per_step, weight_change
from ddposink.evaluation.scores import Evaluator, Pictures, prompt_means, prompt_spread, score
from ddposink.evaluation.sheet import SIDE, sheet
from helpers.tiny import brightness, tiny_pipeline


def evaluator(pipeline, seeds=2, **changes):
    return Evaluator(pipeline, ("cat", "dog"), seeds, **({"guidance": 3.0, "eta": 1.0} | changes))


def test_a_picture_depends_on_its_prompt_and_seed_and_on_nothing_else(monkeypatch):
    pipeline = tiny_pipeline()
    drawn = evaluator(pipeline).draw(3)
    assert drawn.images.shape == (4, 3, 16, 16)
    assert drawn.prompts == ["cat", "cat", "dog", "dog"]
    torch.manual_seed(99)
    monkeypatch.setattr(evaluation, "BATCH", 1)
    assert torch.allclose(evaluator(pipeline).draw(3).images, drawn.images, atol=1e-6)
    more = evaluator(pipeline, seeds=3).draw(3)
    assert torch.allclose(more.images[[0, 1, 3, 4]], drawn.images, atol=1e-6)
    assert torch.allclose(evaluator(pipeline).draw(3, limit=1).images, drawn.images[:1], atol=1e-6)
    assert not torch.allclose(drawn.images[0], drawn.images[1], atol=1e-3)


def test_the_seeds_of_a_prompt_take_the_negative_prompts_in_turn():
    pipeline = tiny_pipeline()
    both, dull, dark, none = (
        evaluator(pipeline, negatives=negatives).draw(3).images
        for negatives in (("dull", "dark"), ("dull",), ("dark",), ("",))
    )
    assert torch.allclose(both[::2], dull[::2], atol=1e-6)
    assert torch.allclose(both[1::2], dark[1::2], atol=1e-6)
    assert (dull - none).abs().max() > 1e-3
    assert (dull - dark).abs().max() > 1e-3
    assert torch.equal(evaluator(pipeline).draw(3).images, none)
    unguided = [evaluator(pipeline, guidance=1.0, negatives=(n,)).draw(3).images for n in ("", "dull")]
    assert torch.equal(*unguided)


def test_drawing_leaves_the_pipeline_and_the_global_noise_alone():
    pipeline = tiny_pipeline()
    scheduler, state = pipeline.scheduler, torch.get_rng_state()
    evaluator(pipeline).draw(3)
    assert pipeline.scheduler is scheduler
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_are_averaged_within_a_prompt():
    pictures = Pictures(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2) / 4, ["a", "a", "b", "b"])
    scores = score(pictures, {"brightness": brightness})["brightness"]
    assert scores.tolist() == [0, 0.25, 0.5, 0.75]
    assert prompt_means(scores, pictures).tolist() == [0.125, 0.625]
    assert prompt_spread(scores, pictures) == pytest.approx(0.25 / 2**0.5)
    assert prompt_spread(scores[:2], Pictures(pictures.images[:2], ["a", "b"])) is None


@pytest.fixture(scope="module", params=["lora", "full"])
def engine(request):
    config = DDPOConfig(
        sample_num_steps=3, sample_batch_size=4, sample_num_batches_per_epoch=1, train_batch_size=4,
        train_learning_rate=1e-2, mixed_precision="no", use_lora=request.param == "lora", threads=1,
        sample_guidance_scale=3.0, engine="native",
    )  # fmt: skip
    return make_engine(config, tiny_pipeline(), brightness, ["cat", "dog"])


def test_an_untrained_model_has_not_moved_and_a_trained_one_has(engine):
    watched = evaluator(engine.pipeline)
    before = watched.draw(3).images
    assert kl_per_step(engine, watched, 3, 4) == pytest.approx(0, abs=1e-9)
    assert weight_change(engine) == pytest.approx(0, abs=1e-9)
    list(engine.run(2))
    divergence = kl_per_step(engine, watched, 3, 4)
    assert divergence > 1e-9
    with_negatives = evaluator(engine.pipeline, negatives=("dull", "dark"))
    assert kl_per_step(engine, with_negatives, 3, 4) != pytest.approx(divergence, rel=1e-6)
    assert weight_change(engine) > 1e-6
    assert not torch.allclose(watched.draw(3).images, before, atol=1e-6)
    with engine.base():
        assert torch.allclose(watched.draw(3).images, before, atol=1e-6)


def test_the_divergence_is_that_of_two_gaussians_of_one_step():
    """Against a plain computation: one step, means and variance from the paper's formulas."""
    pipeline, other = tiny_pipeline(0), tiny_pipeline(1)

    class Two:
        """An engine whose base is another model."""

        def __init__(self):
            self.pipeline = pipeline

        def base(self):
            import contextlib

            @contextlib.contextmanager
            def swapped():
                own, pipeline.unet = pipeline.unet, other.unet
                yield
                pipeline.unet = own

            return swapped()

    watched = evaluator(pipeline, guidance=1.0)
    found = kl_per_step(Two(), watched, 2, 1)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(2)
    noise = evaluation.generator("cat", 0)
    x = torch.randn(4, 8, 8, generator=noise)[None]
    text, _ = pipeline.encode_prompt(["cat"], pipeline.device, 1, False)
    expected = []
    with torch.no_grad():
        for t in scheduler.timesteps.tolist():
            fresh = torch.randn(4, 8, 8, generator=noise)[None]
            a = scheduler.alphas_cumprod[t].double()
            previous = t - 1000 // 2
            b = (
                scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
            ).double()
            sigma = ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
            means = []
            for unet in (pipeline.unet, other.unet):
                e = unet(x, t, encoder_hidden_states=text).sample
                x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
                means.append(b.sqrt() * x0 + (1 - b - sigma**2).sqrt() * e)
            expected.append(float((means[0] - means[1]).square().sum() / (2 * sigma**2)))
            x = (means[0] + sigma * fresh).float()
    assert found == pytest.approx(np.mean(expected), rel=1e-3)


def test_sheets_enlarge_without_smoothing_and_cut_long_labels():
    red, blue = torch.zeros(2, 3, 4, 4).unbind()
    red, blue = red.index_fill(0, torch.tensor(0), 1), blue.index_fill(0, torch.tensor(2), 1)
    page = sheet([[red, blue], [blue]], ["a", "a very long caption that cannot fit above a picture"])
    colours = page.getcolors(maxcolors=1 << 20)
    assert {(255, 0, 0), (0, 0, 255)} <= {colour for _, colour in colours}
    assert sum(n for n, colour in colours if colour == (0, 0, 255)) == 2 * SIDE**2
    with pytest.raises(ValueError, match="at least one"):
        sheet([], [])
