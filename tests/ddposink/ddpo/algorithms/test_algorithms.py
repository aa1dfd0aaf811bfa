"""`nft`, `dpo` and `draft` by the native engine: plain references, invariants, resuming, costs, learning."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddposink.ddpo import DDPOConfig, DivergedError, make_engine, rules
from ddposink.ddpo.algorithms.dpo import best_and_worst
from ddposink.ddpo.algorithms.nft import optimality
from ddposink.ddpo.algorithms.protocol import Invariant
from ddposink.ddpo.randomness import Randomness
from ddposink.ddpo.sampler import pictures
from helpers.plain_algorithms import plain_step
from helpers.tiny import brightness, tiny_pipeline
from helpers.tiny_flow import tiny_sd3

ALGORITHMS = ["nft", "dpo", "draft"]
FLOW: dict[str, Any] = {
    "sample_kernel": "ode",
    "sample_num_steps": 3,
    "sample_guidance_scale": 1.0,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 1,
    "train_batch_size": 4,
    "samples_per_prompt": 4,
    "train_learning_rate": 3e-3,
    "train_adam_weight_decay": 0.0,
}
DDIM = FLOW | {"sample_kernel": "ddim", "sample_guidance_scale": 2.0, "sample_num_batches_per_epoch": 2}


def engine(pipeline: Any = None, reward: Any = brightness, base: dict[str, Any] = FLOW, **values: Any) -> Any:
    if pipeline is None:
        pipeline = tiny_sd3() if base is FLOW else tiny_pipeline(0)
    return make_engine(DDPOConfig(**base | values), pipeline, reward, ["cat"])


def weights(one: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in one._learner.weights.items()}


def bright(one: Any) -> float:
    """Mean brightness of pictures from fixed noise."""
    with Randomness(9, torch.device("cpu")).active(), one._merged():
        found = one._sample(4, False)
        return float(brightness(pictures(one.pipeline, found.latents[-1]), []).mean())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_layout_changes_nothing_but_rounding(algorithm: str) -> None:
    """Also where the noise of a latent is no whole number of the pieces in which a CPU draws it."""
    curves = []
    for rows in (1, 3, 64):
        pipeline = tiny_pipeline(0)
        pipeline.unet.register_to_config(sample_size=5)
        one = engine(pipeline, base=DDIM, algorithm=algorithm, rows_per_forward=rows, sample_eta=1.0)
        curves.append([(log.reward_mean, log.loss) for log in one.run(2)])
    assert np.allclose(curves[0], curves[1], atol=2e-5)
    assert np.allclose(curves[0], curves[2], atol=2e-5)


OTHER: dict[str, Any] = {
    "nft_beta": 0.3, "nft_decay": 0.0, "nft_decay_rate": 0.4, "dpo_beta": 50.0, "draft_steps": 2,
    "train_clip_range": 0.5, "train_cfg": False, "log_prob_reduction": "sum", "train_adv_clip_max": 0.3,
    "advantages": "batch", "advantage_epsilon": 1.0, "train_timestep_fraction": 0.5,
    "train_skip_last_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize("algorithm", ["ddpo", *ALGORITHMS])
def test_what_is_said_to_have_no_part_has_none_and_all_else_has(algorithm: str) -> None:
    """Or a grid over it is one training under several names, or the plan says so wrongly."""
    ddim = DDIM | {"sample_kernel": "ddim", "sample_eta": 1.0}

    def trained(**values: Any) -> torch.Tensor:
        one = engine(base=ddim, algorithm=algorithm, train_num_inner_epochs=inner, **values)
        assert rules.idle(one.config) == [n for n in values if n in idle]
        list(one.run(2))
        return torch.cat([weight.flatten() for weight in weights(one).values()])

    inner = 1 if algorithm == "draft" else 2  # the clip range has a part where weights have moved
    other = {n: value for n, value in OTHER.items() if n != "train_cfg" or algorithm != "ddpo"}  # refused
    idle = rules.idle(DDPOConfig(**ddim | other | {"algorithm": algorithm}))
    as_is = trained()
    same = {name for name, value in other.items() if torch.equal(trained(**{name: value}), as_is)}
    assert same == set(idle)


@pytest.mark.parametrize("values", [
    {"algorithm": "nft"},
    {"algorithm": "nft", "nft_beta": 0.4, "train_timestep_fraction": 0.7, "train_adv_clip_max": 1.0},
    {"algorithm": "dpo", "dpo_beta": 12_800.0},
    {"algorithm": "dpo", "samples_per_prompt": 2, "dpo_beta": 3_200.0},
], ids=str)  # fmt: skip
def test_a_training_step_is_the_plain_one(values: dict[str, Any]) -> None:
    pipeline = tiny_sd3()
    one = engine(pipeline, **values)
    _away_from_the_base(one)
    plain, base = copy.deepcopy(pipeline), tiny_sd3()
    if values["algorithm"] == "nft":  # the old policy begins as what is trained
        one._algorithm.old = weights(one)
        base = copy.deepcopy(pipeline)
    before = weights(one)
    randomness = Randomness(one.config.seed, torch.device("cpu"))
    randomness.restore(one._randomness.tensors())
    (log,) = one.run(1)
    with randomness.active():
        loss = plain_step(plain, base, one.config)
    assert log.loss == pytest.approx(loss, rel=1e-4)
    wanted = {n: p.detach() for n, p in plain.transformer.named_parameters() if "lora_" in n}
    after = weights(one)
    assert max(float((after[n] - before[n]).abs().max()) for n in after) > 1e-3
    off = torch.cat([(after[n] - wanted[n]).abs().flatten() for n in after])
    assert float(off.quantile(0.99)) < 2e-4  # Adam's first step is a sign: where a gradient is nothing, any
    assert float(off.max()) < 7e-3


def _away_from_the_base(one: Any) -> None:
    """So that no term of a loss is zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in one._learner.weights.values():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("base", [FLOW, DDIM], ids=["flow", "ddim"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_must_hold_before_training_does(algorithm: str, base: dict[str, Any]) -> None:
    one = engine(base=base, algorithm=algorithm, draft_steps=2)
    before, state = weights(one), one._randomness.tensors()["torch"]
    found = one.invariant()
    assert found.holds, found
    assert found.off <= {"nft": 1e-6, "dpo": 1e-6, "draft": 0.02}[algorithm]
    assert all(torch.equal(weight, before[name]) for name, weight in weights(one).items())
    assert torch.equal(one._randomness.tensors()["torch"], state)
    assert len(one.ratio_deviation()) == 0


def test_the_first_loss_of_dpo_is_log_two() -> None:
    (log,) = engine(algorithm="dpo").run(1)
    assert log.loss == pytest.approx(math.log(2), abs=1e-6)


def test_an_invariant_that_is_no_number_does_not_hold() -> None:
    assert not Invariant("x", math.nan, 1.0).holds
    one = engine(algorithm="dpo")
    _away_from_the_base(one)
    assert not one.invariant().holds


@pytest.mark.parametrize("base", [FLOW, DDIM], ids=["flow", "ddim"])
@pytest.mark.parametrize("steps", [1, 3])
def test_drafts_gradient_is_that_of_finite_differences(base: dict[str, Any], steps: int) -> None:
    """In float64, along a direction that has nothing to do with the gradient."""
    one = engine(base=base, algorithm="draft", draft_steps=steps, merge_lora=False)
    draft = one._algorithm
    with one._working():  # its own random numbers: the process' seed is another every time
        found = one._sample(1, False, one.config.sample_num_steps - steps)
    one.pipeline.vae.double(), one._policy.unet.double()
    one._policy.dtype = torch.float64
    learnt = list(one._learner.weights.values())
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in learnt]
    for weight, direction in zip(learnt, directions, strict=True):
        weight.data = weight.data.double() + 0.02 * direction.flip(0)
    rows = torch.arange(4)
    mean = draft._pictures(found, rows).mean()
    gradients = torch.autograd.grad(mean, learnt)
    slope = sum(float((g.double() * d).sum()) for g, d in zip(gradients, directions, strict=True))
    sides, step = [], 1e-2
    for sign in (1, -1):
        for weight, direction in zip(learnt, directions, strict=True):
            weight.data = weight.data + sign * step * direction
        with torch.no_grad():
            sides.append(float(draft._pictures(found, rows).double().mean()))
        for weight, direction in zip(learnt, directions, strict=True):
            weight.data = weight.data - sign * step * direction
    assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=0.05)
    assert abs(slope) > 1e-6


def test_draft_draws_what_sampling_would_have_drawn() -> None:
    """Its own last steps, from the noise that was kept, end at the same pictures."""
    one = engine(base=DDIM, algorithm="draft", draft_steps=2)
    state = one._randomness.tensors()
    with one._randomness.active():
        whole = one._sample(1, False)
    one._randomness.restore(state)
    with one._randomness.active(), torch.no_grad():
        found = one._sample(1, False, 1)
        drawn = one._algorithm._pictures(found, torch.arange(4))
    torch.testing.assert_close(drawn, pictures(one.pipeline, whole.latents[-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_training_is_the_uninterrupted_one(algorithm: str, lora: bool, tmp_path: Path) -> None:
    values = {"algorithm": algorithm, "use_lora": lora, "samples_per_prompt": 2}
    one, other = engine(base=DDIM, **values), engine(base=DDIM, **values)
    list(one.run(2))
    one.save(tmp_path / "at")
    logs = [log.reward_mean for log in one.run(4)]
    other.load(tmp_path / "at")
    assert [log.reward_mean for log in other.run(4)] == logs
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name])


def unseeing(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward that knows nothing of the picture; its gradient points anywhere."""
    generator = torch.Generator().manual_seed(int(images.detach().double().sum() * 1e6) % 2**31)
    anywhere = torch.randn(images.shape, generator=generator)
    return (anywhere * images).mean((1, 2, 3)) + torch.randn(len(images), generator=generator)


@pytest.mark.parametrize(("values", "least"), [
    ({"algorithm": "nft", "use_lora": False, "train_adv_clip_max": 1.0}, 4e-4),
    ({"algorithm": "dpo", "samples_per_prompt": 8, "dpo_beta": 12_800.0, "train_learning_rate": 1e-2}, 2e-4),
    ({"algorithm": "draft", "train_num_inner_epochs": 1, "train_learning_rate": 1e-2}, 1e-3),
], ids=ALGORITHMS)  # fmt: skip
def test_a_few_steps_raise_the_reward_beyond_a_control(values: dict[str, Any], least: float) -> None:
    """Brightness varies by 0.002 between pictures. A control learns from numbers that mean nothing."""
    shape = {"sample_batch_size": 32, "samples_per_prompt": 32, "train_batch_size": 8}
    gains = []
    for reward in (brightness, unseeing):
        one = engine(reward=reward, **shape | {"train_num_inner_epochs": 2} | values)
        before = bright(one)
        list(one.run(8))
        gains.append(bright(one) - before)
    assert gains[0] > gains[1] + least


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    one = engine(algorithm="nft")
    one.save(tmp_path / "at")
    with pytest.raises(ValueError, match="was trained with algorithm 'nft', this training has 'dpo'"):
        engine(algorithm="dpo").load(tmp_path / "at")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_forwards_and_queries_are_counted(algorithm: str, guidance: float) -> None:
    """By what the network and the reward are really asked; a row with a gradient has a backward, two more."""
    asked, judged = [], []

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        judged.append(len(prompts))
        return brightness(images, prompts)

    one = engine(
        reward=reward, base=DDIM, algorithm=algorithm, sample_guidance_scale=guidance, draft_steps=2,
        samples_per_prompt=2, train_timestep_fraction=0.7,
    )  # fmt: skip
    one.pipeline.unet.register_forward_pre_hook(
        lambda _, inputs: asked.append(len(inputs[0]) * (3 if torch.is_grad_enabled() else 1))
    )
    (log,) = one.run(1)
    assert (log.unet_forwards, log.samples) == (sum(asked), sum(judged))
    assert (log.approx_kl, log.clip_fraction) == (None, None)
    assert (log.flat_share is None) == (algorithm == "draft")


def test_what_makes_a_sample_good() -> None:
    found = optimality(torch.tensor([-9.0, -2.5, 0.0, 1.0, 5.0, 7.0]), 5.0)
    assert torch.allclose(found, torch.tensor([0.0, 0.25, 0.5, 0.6, 1.0, 1.0]))


def test_pairs_are_a_groups_best_and_worst() -> None:
    rewards = np.array([1, 3, 2, 5, 5, 5, -1, -2, -3], dtype=np.float32)
    pairs, differ = best_and_worst(rewards, 3)
    assert pairs[0].tolist() == [1, 0]
    assert pairs[2].tolist() == [6, 8]
    assert differ.tolist() == [True, False, True]


def test_groups_without_preference_teach_dpo_nothing() -> None:
    one = engine(reward=lambda images, prompts: torch.full((len(prompts),), 0.1), algorithm="dpo")
    before = weights(one)
    (log,) = one.run(1)
    assert (log.loss, log.flat_share) == (0, 1)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(one).items())


def test_the_old_policy_follows() -> None:
    one = engine(algorithm="nft", nft_decay=0.5, nft_decay_rate=0.4)
    first = weights(one)
    list(one.run(1))
    second = weights(one)
    for name, old in one._algorithm.old.items():
        torch.testing.assert_close(old, 0.4 * first[name] + 0.6 * second[name])
    before = {name: old.clone() for name, old in one._algorithm.old.items()}
    list(one.run(2))
    for name, new in weights(one).items():
        torch.testing.assert_close(one._algorithm.old[name], 0.5 * before[name] + 0.5 * new)


def test_a_reward_without_gradient_is_refused_by_draft() -> None:
    for reward in (lambda images, prompts: brightness(images.detach(), prompts), lambda *_: torch.zeros(4)):
        with pytest.raises(ValueError, match=r"has no gradient .* use ddpo, nft or dpo"):
            list(engine(reward=reward, algorithm="draft").run(1))


def test_a_blank_picture_has_no_gradient_and_does_no_harm() -> None:
    def contrast(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        blank = images.new_ones(len(images)).index_fill(0, torch.tensor([1]), 0).view(-1, 1, 1, 1)
        return (images * blank).std((1, 2, 3))

    one = engine(reward=contrast, algorithm="draft")
    (log,) = one.run(1)
    assert math.isfinite(log.loss)
    assert all(torch.isfinite(weight).all() for weight in weights(one).values())


def test_divergence_has_a_name() -> None:
    wild = engine(algorithm="nft", train_learning_rate=1e30, train_max_grad_norm=1e30)
    with pytest.raises(DivergedError, match=r"not finite; a lower learning rate"):
        list(wild.run(4))
