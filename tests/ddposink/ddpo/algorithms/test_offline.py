"""`dpo` from a file of pairs: a plain reference, no queries, resuming, and pictures of another size."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.algorithms.offline import in_turn
from ddposink.ddpo.randomness import Randomness
from helpers.pairs import write_choices
from helpers.plain_algorithms import plain_offline_step
from helpers.tiny import brightness, tiny_pipeline
from helpers.tiny_flow import tiny_flux, tiny_sd3, tiny_sdxl

VALUES: dict[str, Any] = {
    "algorithm": "dpo",
    "dpo_beta": 12_800.0,
    "sample_num_steps": 3,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 1,
    "train_batch_size": 4,
    "train_learning_rate": 3e-3,
    "train_adam_weight_decay": 0.0,
}
FLOW = VALUES | {"sample_kernel": "ode", "sample_guidance_scale": 1.0}
DDIM = VALUES | {"sample_kernel": "ddim", "sample_guidance_scale": 2.0}
BOTH = [(tiny_sd3, FLOW), (tiny_pipeline, DDIM)]
KINDS = pytest.mark.parametrize(("pipeline", "base"), BOTH, ids=["flow", "ddim"])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_choices(tmp_path_factory.mktemp("pairs")))


def never(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    raise AssertionError("a reward was asked")


def engine(pipeline: Any, file: str, base: dict[str, Any], **values: Any) -> Any:
    return make_engine(DDPOConfig(**base | {"dpo_pairs": file} | values), pipeline, never, ["red fox"])


def weights(one: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in one._learner.weights.items()}


@KINDS
def test_a_training_step_is_the_plain_one(pipeline: Any, base: dict[str, Any], file: str) -> None:
    trained = pipeline()
    one = engine(trained, file, base, train_timestep_fraction=0.7)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in one._learner.weights.values():  # so that no term of the loss is zero
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    before, plain = weights(one), copy.deepcopy(trained)
    randomness = Randomness(one.config.seed, torch.device("cpu"))
    randomness.restore(one._randomness.tensors())
    (log,) = one.run(1)
    with randomness.active():
        loss = plain_offline_step(plain, pipeline(), one.config, in_turn(6, 0, 0, 4).tolist())
    assert log.loss == pytest.approx(loss, rel=1e-4)
    network = getattr(plain, "transformer", None) or plain.unet
    wanted = {n: p.detach() for n, p in network.named_parameters() if "lora_" in n}
    after = weights(one)
    assert max(float((after[n] - before[n]).abs().max()) for n in after) > 1e-3
    off = torch.cat([(after[n] - wanted[n]).abs().flatten() for n in after])
    assert float(off.quantile(0.99)) < 2e-4  # Adam's first step is a sign: where a gradient is nothing, any
    assert float(off.max()) < 7e-3


@KINDS
def test_nothing_is_drawn_and_no_reward_is_asked(pipeline: Any, base: dict[str, Any], file: str) -> None:
    one = engine(pipeline(), file, base, train_num_inner_epochs=2)
    network, asked = one._policy.unet, []
    network.register_forward_pre_hook(
        lambda _, args, named: asked.append(
            len(args[0] if args else named["hidden_states"]) * (3 if torch.is_grad_enabled() else 1)
        ),
        with_kwargs=True,
    )
    assert one.invariant().off <= 1e-6
    asked.clear()
    (log,) = one.run(1)
    assert log.loss == pytest.approx(math.log(2), abs=0.3)
    assert (log.reward_mean, log.reward_std, log.flat_share, log.reward_s, log.samples) == (None,) * 4 + (0,)
    assert log.unet_forwards == sum(asked) == 2 * 4 * 2 * 4 * 3


@pytest.mark.parametrize(
    ("pipeline", "base"), [(tiny_flux, FLOW | {"sample_guidance_scale": 3.0}), (tiny_sdxl, DDIM)]
)
def test_other_kinds_of_pipeline_learn_too(pipeline: Any, base: dict[str, Any], file: str) -> None:
    one = engine(pipeline(), file, base)
    before = weights(one)
    first, _ = one.run(2)
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(one).items())


@KINDS
def test_a_resumed_training_is_the_uninterrupted_one(
    pipeline: Any, base: dict[str, Any], file: str, tmp_path: Path
) -> None:
    one, other = (engine(pipeline(), file, base) for _ in range(2))
    list(one.run(2))
    one.save(tmp_path / "at")
    losses = [log.loss for log in one.run(4)]
    other.load(tmp_path / "at")
    assert [log.loss for log in other.run(4)] == losses
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_a_checkpoint_goes_on_where_the_same_pairs_lie_elsewhere_and_not_with_others(
    file: str, tmp_path: Path
) -> None:
    one = engine(tiny_sd3(), file, FLOW)
    one.save(tmp_path / "at")
    same = write_choices(tmp_path / "same")
    engine(tiny_sd3(), str(same), FLOW).load(tmp_path / "at")
    other = write_choices(tmp_path / "other", pairs=2)
    with pytest.raises(ValueError, match=r"was trained with dpo_pairs.sha256 '.*', this training has '"):
        engine(tiny_sd3(), str(other), FLOW).load(tmp_path / "at")
    online = make_engine(DDPOConfig(**FLOW | {"samples_per_prompt": 4}), tiny_sd3(), brightness, ["red fox"])
    with pytest.raises(ValueError, match="was trained with"):
        online.load(tmp_path / "at")


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    file = write_choices(tmp_path, side=24)
    with pytest.raises(ValueError, match="row 1: pictures are 24x24 pixels, and the pipeline draws 16x16"):
        engine(tiny_sd3(), str(file), FLOW)


def test_what_was_preferred_becomes_likelier(file: str) -> None:
    """On pairs of noise the model knows after some steps which was preferred: the loss falls below log 2."""
    one = engine(tiny_sd3(), file, FLOW, train_learning_rate=1e-2, lora_rank=8)
    losses = [log.loss for log in one.run(12)]
    assert sum(losses[-4:]) / 4 < 0.9 * math.log(2)


def test_every_pair_is_learnt_from_before_any_is_again() -> None:
    row = in_turn(5, 3, 0, 15).reshape(3, 5)
    assert all(sorted(one) == list(range(5)) for one in row.tolist())
    assert len({tuple(one) for one in row.tolist()}) > 1
    assert in_turn(5, 3, 7, 4).tolist() == row.flatten()[7:11].tolist()
    assert in_turn(5, 4, 0, 15).tolist() != row.flatten().tolist()


def test_latents_are_what_the_decoder_would_be_given(file: str) -> None:
    pipeline = tiny_sd3()
    found = engine(pipeline, file, FLOW)._algorithm
    with Image.open(found.pairs.pictures[3]) as image:
        seen = pipeline.image_processor.preprocess(image)
    mean = pipeline.vae.encode(seen).latent_dist.mean
    wanted = (mean - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(found.latents[3:4], wanted, atol=1e-5, rtol=0)


def test_ddim_noises_as_its_scheduler_does() -> None:
    """What the plain reference takes for granted: one table of ᾱ."""
    scheduler = tiny_pipeline().scheduler
    assert isinstance(scheduler, DDIMScheduler)
    clean, noise = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    noised = scheduler.add_noise(clean, noise, torch.tensor([300]))
    assert float(noised) == pytest.approx(float(scheduler.alphas_cumprod[300].sqrt()))
