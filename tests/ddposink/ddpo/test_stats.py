"""What a sample is compared with: nothing is learnt from equal rewards, and groups are what was drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.randomness import PromptSource, Randomness, shuffled
from ddposink.ddpo.stats import Batch, Groups, Prompts, make_comparison
from helpers.tiny import PROMPTS, brightness, tiny_pipeline

GROUPS = {"samples_per_prompt": 4, "share_initial_noise": True}
BY_PROMPT = {"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_min_count": 2}
VALUES: dict[str, Any] = {
    "sample_num_steps": 3,
    "sample_batch_size": 12,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 12,
    "mixed_precision": "no",
}


def constant(images: Tensor, prompts: list[str]) -> Tensor:
    """A number whose float32 mean over 24 is off by a rounding."""
    return torch.full((len(prompts),), -12.345678)


def an_ulp_apart(images: Tensor, prompts: list[str]) -> Tensor:
    values = constant(images, prompts)
    values[::2] = torch.nextafter(values[0], torch.tensor(0.0))
    return values


@pytest.mark.parametrize("reward", [constant, an_ulp_apart])
@pytest.mark.parametrize("values", [{}, GROUPS, BY_PROMPT], ids=["batch", "groups", "prompts"])
@pytest.mark.parametrize("kind", ["native", "trl"])
def test_a_reward_without_preference_teaches_nothing(kind: Any, values: dict[str, Any], reward: Any) -> None:
    engine = make_engine(DDPOConfig(**VALUES | values, engine=kind), tiny_pipeline(), reward, PROMPTS)
    (log,) = engine.run(1)
    assert (log.loss, log.flat_share) == (0.0, 1.0)
    moved = [p for name, p in engine.pipeline.unet.named_parameters() if ".lora_B." in name]
    assert moved
    assert not any(p.any() for p in moved)


def test_in_float32_a_constant_would_have_an_advantage() -> None:
    """What makes the cases above hard: numpy's float32 statistics give 24 equal rewards an advantage of 1."""
    rewards = np.full(24, -12.345678, dtype=np.float32)
    assert abs((rewards - rewards.mean()) / (rewards.std() + 1e-8)).min() > 0.9


@pytest.mark.parametrize("seed", range(20))
def test_advantages_are_those_of_float64(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, size = rng.integers(1, 9), rng.integers(2, 20)
    rewards = (rng.normal(size=groups * size) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
    flat = rng.random(groups) < 0.3
    rewards.reshape(groups, size)[flat] = rewards[0]
    comparison = Groups(int(size), epsilon=1e-12)
    found = comparison.update([""] * len(rewards), rewards).reshape(groups, size)
    assert comparison.flat_share == flat.mean()
    assert not found[flat].any()
    exact = rewards.reshape(groups, size).astype(np.float64)[~flat]
    expected = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
    assert np.allclose(found[~flat], expected, rtol=1e-5, atol=1e-5)


def test_trls_statistics_are_kept_under_their_name() -> None:
    from trl.trainer.utils import PerPromptStatTracker

    rng, theirs, ours = np.random.default_rng(0), PerPromptStatTracker(6, 3), Prompts(6, 3)
    for _ in range(5):
        prompts = rng.choice(["a", "b", "c"], 12).tolist()
        rewards = rng.normal(size=12).astype(np.float32)
        assert np.allclose(ours.update(prompts, rewards), theirs.update(prompts, rewards), atol=1e-5)
    for config, kind in (
        (DDPOConfig(), Batch),
        (DDPOConfig(per_prompt_stat_tracking=True), Prompts),
        (DDPOConfig(sample_batch_size=4, samples_per_prompt=4), Groups),
        (DDPOConfig(sample_batch_size=4, samples_per_prompt=4, per_prompt_stat_tracking=True), Groups),
        (DDPOConfig(sample_batch_size=4, samples_per_prompt=4, advantages="prompt"), Prompts),
        (DDPOConfig(sample_batch_size=4, samples_per_prompt=4, advantages="batch"), Batch),
    ):
        assert type(make_comparison(config)) is kind


@pytest.mark.parametrize("kind", ["native", "trl"])
def test_two_groups_of_one_prompt_stay_two(kind: Any) -> None:
    """Each group's advantages have mean zero, though all have one prompt and every group another start."""
    seen: list[Tensor] = []
    config = DDPOConfig(**VALUES | GROUPS, negative_prompts="dull, dark", engine=kind)
    engine: Any = make_engine(config, tiny_pipeline(), brightness, ["cat"])
    comparison = engine._comparison if kind == "native" else engine._trainer.comparison
    update = comparison.update
    comparison.update = lambda *given: seen.append(torch.as_tensor(update(*given))) or seen[-1].numpy()
    list(engine.run(1))
    groups = seen[0].reshape(6, 4)
    assert torch.allclose(groups.mean(1), torch.zeros(6), atol=1e-5)
    assert torch.allclose(groups.std(1, correction=0), torch.ones(6), atol=2e-2)


@pytest.mark.parametrize("kind", ["native", "trl"])
def test_prompts_that_are_cut_off_alike_are_warned_of_and_not_merged(kind: Any) -> None:
    long = ["abcdefghijklmnop one", "abcdefghijklmnop two", "cat"]
    with pytest.warns(UserWarning, match="2 of the prompts differ only beyond the 12 tokens .*op one' and"):
        engine: Any = make_engine(
            DDPOConfig(**VALUES | GROUPS, engine=kind), tiny_pipeline(), brightness, long
        )
    (log,) = engine.run(1)
    assert log.flat_share == 0


def test_prompts_are_drawn_without_replacement_in_a_step() -> None:
    texts = [str(n) for n in range(10)]
    source = PromptSource(texts, times=3)
    with Randomness(0, torch.device("cpu")).active():
        steps = []
        for _ in range(3):
            source.begin()
            steps.append([source.draw() for _ in range(24)])
        source.begin()
        many = [source.draw() for _ in range(60)]
    for drawn in steps:
        assert len(set(drawn)) == 8
        assert all(len(set(drawn[i : i + 3])) == 1 for i in range(0, 24, 3))
    assert len({tuple(drawn) for drawn in steps}) == 3
    assert sorted(many) == sorted(texts * 6)  # twice through, no prompt a third time


def test_shuffled_is_every_order_as_often() -> None:
    with Randomness(0, torch.device("cpu")).active():
        orders = [tuple(shuffled(3)) for _ in range(6000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert min(counts) > 850
