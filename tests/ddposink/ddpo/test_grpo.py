"""The options of GRPO as practised, each against a plain, slow reference; and what a training tells."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.ema import MovingAverage
from ddposink.ddpo.learner import updates
from ddposink.ddpo.loss import loss_terms, normalised
from ddposink.ddpo.reference import base_means
from ddposink.ddpo.several import gdpo, variance_shares
from ddposink.ddpo.stats import Groups, make_comparison
from ddposink.rewards import load_reward, parse_reward
from helpers.ranks import two_ranks
from helpers.tiny import PROMPTS, brightness, tiny_pipeline
from helpers.tiny_flow import tiny_sd3

VALUES: dict[str, Any] = {
    "sample_num_steps": 3,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 4,
    "train_learning_rate": 3e-3,
    "mixed_precision": "no",
    "threads": 1,
}
FLOW: dict[str, Any] = {"sample_kernel": "flow-sde", "sample_eta": 0.7, "sample_guidance_scale": 1.0}
ALIKE: dict[str, Any] = {"samples_per_prompt": 4, "share_initial_noise": True}


def engine(pipeline: Any = None, reward: Any = brightness, **values: Any) -> Any:
    return make_engine(DDPOConfig(**VALUES | values), pipeline or tiny_pipeline(0), reward, PROMPTS)


def weights(of: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in of._learner.weights.items()}


def plain(engine: Any, found: Any, advantages: Tensor, pairs: Any) -> list[dict[str, float]]:
    """Every pair of an update for itself: a forward each, nothing shared, formulas as they are written."""
    config, policy = engine.config, engine._policy
    rows = []
    for n, t in zip(pairs.sample.tolist(), pairs.step.tolist(), strict=True):
        text = found.text.take(torch.tensor([n])).rows(policy.learns_guided)
        x, following, s = found.latents[t, [n]], found.latents[t + 1, [n]], float(policy.schedule.sigma[t])
        mean = policy.mean(t, x, text)
        with torch.no_grad(), engine.base():
            base = policy.mean(t, x, text)
        normal = torch.distributions.Normal(mean.double(), s)
        log_prob = normal.log_prob(following.double()).mean()
        change = log_prob - found.log_probs[t, n].double()
        if found.means is not None:
            epsilon = (following - found.means[t, [n]]).double() / s
            change = ((mean - found.means[t, [n]]).double() * epsilon).mean()
        ratio = float(change.detach().exp())
        other = torch.distributions.Normal(base.double(), s)
        kl = torch.distributions.kl_divergence(normal, other).sum()
        low, high = config.train_clip_range, config.train_clip_range_high or config.train_clip_range
        a = float(advantages[n].clamp(-5, 5))
        loss = max(-a * ratio, -a * min(max(ratio, 1 - low), 1 + high)) + config.kl_beta * float(kl.detach())
        rows.append({"step": t, "ratio": ratio, "kl": float(kl.detach()), "loss": loss})
    return rows


OPTIONS = {
    "plain": {},
    "kl": {"kl_beta": 0.02},
    "high": {"train_clip_range": 1e-4, "train_clip_range_high": 3e-4},
    "norm": {"ratio_norm": True, "kl_beta": 0.01},
    "sum": {"ratio_norm": True, "log_prob_reduction": "sum"},
}


CASES = [({}, name) for name in OPTIONS] + [(FLOW | ALIKE, "plain"), (FLOW | ALIKE, "norm"), (ALIKE, "kl")]


@pytest.mark.parametrize(("values", "name"), CASES)
def test_what_a_step_tells_is_what_every_pair_says(values: dict[str, Any], name: str) -> None:
    """Two updates, shared forwards or not: the engine's means are those of the pairs taken one by one."""
    options = OPTIONS[name]
    one = engine(tiny_sd3() if "sample_kernel" in values else None, **values | options)
    list(one.run(1))  # so that the policy is no longer the base
    seen: list[dict[str, float]] = []
    update = one._learner.update

    def spied(found: Any, advantages: Tensor, pairs: Any, rows: int) -> Tensor:
        with torch.enable_grad():
            seen.extend(plain(one, found, advantages, pairs))
        return update(found, advantages, pairs, rows)

    one._learner.update = spied
    (log,) = one.run(2)
    if options.get("log_prob_reduction") == "sum":  # the plain change is a mean over dimensions
        for row in seen:
            row["ratio"] = math.exp(4 * 8 * 8 * math.log(row["ratio"]))
    off = np.array([row["ratio"] - 1 for row in seen])
    low, high = one.config.train_clip_range, one.config.train_clip_range_high or one.config.train_clip_range
    near = {"rel": 2e-2, "abs": 2e-6}
    assert log.ratio_mean - 1 == pytest.approx(off.mean(), **near)
    assert log.ratio_std == pytest.approx(off.std(), **near)
    assert off.std() > 1e-6  # two updates have moved the policy
    assert log.clipped_above == pytest.approx((off > high).mean(), abs=0.05)
    assert log.clipped_below == pytest.approx((off < -low).mean(), abs=0.05)
    assert log.clipped_above + log.clipped_below == pytest.approx(log.clip_fraction, abs=1e-6)
    for t in range(3):
        mine = np.array([row["ratio"] - 1 for row in seen if row["step"] == t])
        assert log.by_step["ratio_mean"][t] - 1 == pytest.approx(mine.mean(), **near)
        assert log.by_step["ratio_std"][t] == pytest.approx(mine.std(), **near)
    if one.config.kl_beta:
        assert log.kl_base == pytest.approx(np.mean([row["kl"] for row in seen]), rel=1e-3)
        assert log.kl_base > 1e-6
    else:
        assert log.kl_base is None
        assert "kl_base" not in log.by_step
    if options.get("log_prob_reduction") != "sum":
        assert log.loss == pytest.approx(np.mean([row["loss"] for row in seen]), rel=1e-3, abs=1e-6)
    assert log.gradient_norm > 0
    assert 0 < log.reward_s < log.sampling_s


def test_steps_outside_the_window_tell_nothing() -> None:
    one = engine(tiny_sd3(), **FLOW, sample_sde_window=1, sample_sde_window_moves="progressive", kl_beta=0.1)
    first, second = one.run(2)
    assert [v is None for v in first.by_step["kl_base"]] == [False, True, True]
    assert [v is None for v in second.by_step["ratio_mean"]] == [True, False, True]


@pytest.mark.parametrize(
    "values", [{}, {"use_lora": False}, {"merge_lora": False}], ids=["lora", "full", "peft"]
)
def test_the_divergence_is_zero_before_the_first_update(values: dict[str, Any]) -> None:
    one = engine(kl_beta=0.1, sample_num_batches_per_epoch=1, **values)
    (first,) = one.run(1)  # one update, of the base model itself
    assert first.kl_base < 1e-7
    (second,) = one.run(2)
    assert second.kl_base > 100 * first.kl_base
    assert first.unet_forwards == 4 * 2 * (3 + 3 + 9)  # guided: sampling, base, learning


@pytest.mark.parametrize("values", [{}, FLOW | ALIKE | {"sample_batch_size": 8}], ids=["ddim", "alike"])
def test_a_divergence_that_is_only_measured_changes_nothing(values: dict[str, Any]) -> None:
    """On all samples it is that of the KL term; on some, of these; weights are the same to the bit."""
    options = {"whole": {"measure_kl": 1.0}, "some": {"measure_kl": 0.25}, "none": {}}
    ends, logs, pairs = {}, {}, {}
    for name, option in options.items():
        one = engine(tiny_sd3() if values else None, **values | option)
        list(one.run(1))
        told: list[tuple[Tensor, Tensor]] = pairs.setdefault(name, [])
        terms = one._learner._terms

        def spied(
            found: Any, a: Tensor, pair: Any, inputs: Any, which: Tensor, terms: Any = terms, told: Any = told
        ) -> Any:
            made = terms(found, a, pair, inputs, which)
            told.append((pair.sample, made.divergence))
            return made

        one._learner._terms = spied
        (logs[name],) = one.run(2)
        ends[name] = weights(one)
    for name in ("some", "none"):
        assert all(torch.equal(weight, ends["whole"][n]) for n, weight in ends[name].items())
    count = one.config.samples_per_epoch
    few = set(range(0, count, 4))  # a quarter, spread evenly: of every group of four its first
    expected = {"whole": range(count), "some": few}
    for name, asked in expected.items():
        known = [
            float(kl)
            for sample, each in pairs["whole"]
            for n, kl in zip(sample.tolist(), each, strict=True)
            if n in asked
        ]
        assert logs[name].kl_base == pytest.approx(np.mean(known), rel=1e-5)
        assert logs[name].kl_base > 0
    assert logs["none"].kl_base is None
    assert "kl_base" not in logs["none"].by_step
    assert None not in logs["some"].by_step["kl_base"]


def test_the_gradient_of_the_divergence_is_that_of_finite_differences() -> None:
    """With advantages of zero the KL term is all there is."""
    one = engine(tiny_sd3(), **FLOW, kl_beta=0.5, sample_num_batches_per_epoch=1, train_max_grad_norm=1e9)
    list(one.run(2))
    with one._working():
        found = one._sample(1, False)
        with one.base():
            found.base = base_means(one._policy, found, 4, 3)
        (pairs,) = updates(one.config, torch.device("cpu"))
        nothing = torch.zeros(4)
        name, weight = next((n, p) for n, p in one._learner.weights.items() if ".lora_B." in n)
        terms = one._learner._terms(found, nothing, pairs, pairs, torch.arange(len(pairs)))
        (gradient,) = torch.autograd.grad(terms.loss.mean(), weight)
        at, h = tuple(int(i) for i in (gradient.abs() == gradient.abs().max()).nonzero()[0]), 1e-2
        values = []
        for change in (h, -2 * h):
            with torch.no_grad():
                weight[at] += change
                values.append(
                    one._learner._terms(found, nothing, pairs, pairs, torch.arange(len(pairs))).loss.mean()
                )
    assert float(values[0] - values[1]) / (2 * h) == pytest.approx(float(gradient[at]), rel=2e-2), name


def test_a_divergence_holds_the_policy_near_its_base() -> None:
    ends = []
    for beta in (0.0, 10.0):
        one = engine(kl_beta=beta, train_max_grad_norm=1e9)
        list(one.run(6))
        with one._working():
            found = one._sample(1, False)
            with one.base():
                base = base_means(one._policy, found, 4, 3).means
            tuned = base_means(one._policy, found, 4, 3).means
        ends.append(float((tuned - base).square().mean()))
    assert ends[1] < ends[0] / 2


def test_clip_higher_lets_good_samples_go_further() -> None:
    log_prob = torch.tensor([0.15, 0.15, -0.15, -0.15, 0.3]).log1p()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    terms = loss_terms(
        log_prob, torch.zeros(5), advantage, kind="is", clip_range=0.1, clip_high=0.2, advantage_max=5.0
    )
    assert torch.allclose(terms.loss, torch.tensor([-1.15, 1.15, -0.85, 0.9, -1.2]))
    assert terms.above.tolist() == [0, 0, 0, 0, 1]
    assert terms.below.tolist() == [0, 0, 1, 1, 0]


def test_normalised_ratios_have_one_centre_and_width() -> None:
    """Where plain ones lie below 1 and spread as σ falls; the same Δμ at every σ."""
    generator = torch.Generator().manual_seed(0)
    epsilon = torch.randn(20_000, 16, generator=generator, dtype=torch.float64)
    shift = torch.full((16,), 0.05, dtype=torch.float64)
    plain_means, means, widths = [], [], []
    for sigma in (0.05, 0.2, 0.8):
        log_ratio = 0.5 * (epsilon.square() - (epsilon - shift / sigma).square()).sum(1)
        bias = (shift / sigma).square().sum() / 2
        found = normalised(log_ratio, bias, torch.tensor(sigma, dtype=torch.float64))
        assert torch.allclose(found, (shift * epsilon).sum(1))
        plain_means.append(float(log_ratio.mean()))
        means.append(float(found.mean()))
        widths.append(float(found.std()))
    assert plain_means[0] < plain_means[1] < plain_means[2] < 0
    assert max(map(abs, means)) < 0.01
    assert max(widths) == pytest.approx(min(widths))


@pytest.mark.parametrize("by", ["own", "batch", "none"])
def test_deviations(by: str) -> None:
    """Group mean and own, batch or no deviation, in words; a flat group teaches nothing."""
    config = DDPOConfig(
        sample_batch_size=8, samples_per_prompt=4, advantage_deviation=by, advantage_epsilon=1e-12
    )
    rewards = np.array([1, 2, 3, 6, 10, 10, 10, 10, 0, 0.1, 0.2, 0.1], dtype=np.float32)
    comparison = make_comparison(config)
    found = comparison.update([""] * 12, rewards).reshape(3, 4)
    for row, mine in zip(found, rewards.reshape(3, 4).astype(np.float64), strict=True):
        divided = {"own": mine.std() or 1.0, "batch": rewards.astype(np.float64).std(), "none": 1.0}[by]
        assert np.allclose(row, (mine - mine.mean()) / divided, atol=1e-6)
    assert not found[1].any()
    assert comparison.flat_share == pytest.approx(1 / 3)


def test_groups_are_what_was_drawn_and_not_a_text() -> None:
    """Two groups of one prompt have a mean each; told apart by text they would share one."""
    rewards = np.array([0, 2, 100, 102], dtype=np.float32)
    for by in ("own", "batch", "none"):
        found = Groups(2, by=by).update(["cat"] * 4, rewards)
        assert found[0] == -found[1] == found[2] == -found[3]


def test_gdpo_lets_a_small_reward_speak() -> None:
    rng = np.random.default_rng(0)
    big, small = (rng.normal(size=12).astype(np.float32) * scale for scale in (100, 0.01))
    parts, factors = {"big": big, "small": -2 * small}, {"big": 1.0, "small": -2.0}
    config = DDPOConfig(sample_batch_size=12, samples_per_prompt=4, advantage_epsilon=1e-12)
    found, flat = gdpo(lambda: make_comparison(config), factors, [""] * 12, parts)

    def by_group(values: np.ndarray) -> np.ndarray:
        rows = values.astype(np.float64).reshape(3, 4)
        return ((rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)).ravel()

    total = by_group(big) - 2 * by_group(small)  # a negative factor rewards the contrary
    assert np.allclose(found, (total - total.mean()) / total.std(), atol=1e-4)
    assert flat == 0
    shares = variance_shares(parts, 4)
    assert shares["small"] < 1e-6
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("combine", ["sum", "gdpo"])
def test_each_part_of_a_weighted_reward_is_told(combine: str) -> None:
    reward = load_reward(parse_reward("weighted:100*jpeg_compressibility+0.5*noise"))
    one = engine(reward=reward, combine_rewards=combine, samples_per_prompt=4)
    (log,) = one.run(1)
    assert log.parts.keys() == log.shares.keys() == {"jpeg_compressibility", "noise"}
    assert sum(log.parts.values()) == pytest.approx(log.reward_mean, rel=1e-5)
    assert sum(log.shares.values()) == pytest.approx(1)
    assert log.loss != 0 or combine == "sum"


class Sum:
    """Twice the brightness less the redness of pictures, and what it has been asked for."""

    def __init__(self) -> None:
        self.weights = {"bright": 2.0, "red": -1.0}
        self.said: list[dict[str, Tensor]] = []

    def each(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        self.said.append({"bright": 2 * images.mean((1, 2, 3)), "red": -images[:, 0].mean((1, 2))})
        return self.said[-1]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise AssertionError("it is asked for its parts")


@pytest.mark.parametrize("how", ["native", "trl", "nft", "dpo", "draft"])
def test_whoever_asks_a_sum_tells_its_parts(how: str) -> None:
    """And their shares of the variance, of every sample once, within what is compared."""
    group = 1 if how == "trl" else 4
    values = {"engine": how} if how in ("native", "trl") else {"algorithm": how}
    reward = Sum()
    (log,) = engine(reward=reward, samples_per_prompt=group, sample_guidance_scale=2.0, **values).run(1)
    parts = {name: torch.cat([s[name].detach() for s in reward.said]).numpy() for name in reward.weights}
    assert len(parts["red"]) == log.samples == 8
    assert log.parts == pytest.approx({name: float(said.mean()) for name, said in parts.items()}, rel=1e-5)
    assert sum(log.parts.values()) == pytest.approx(log.reward_mean, rel=1e-5)
    within = 1 if how == "draft" else group  # it compares the step, and asks in another order
    assert log.shares == pytest.approx(variance_shares(parts, within), rel=1e-4)


def test_gdpo_needs_several_rewards() -> None:
    with pytest.raises(ValueError, match=r"'gdpo' needs several rewards, and the reward 'brightness' is one"):
        engine(combine_rewards="gdpo")


def test_the_average_is_that_of_the_formula() -> None:
    weight = torch.zeros(3)
    average, expected = MovingAverage({"w": weight}, 0.5), torch.zeros(3)
    for n in range(1, 12):
        weight.copy_(torch.full((3,), float(n)))
        average.update()
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * weight
    with average.active(), average.active():
        assert torch.allclose(weight, expected)
    assert weight.tolist() == [11.0] * 3


@pytest.mark.parametrize("gradient", [1.0, float("inf")])
def test_an_update_that_overflowed_is_none_to_the_average(gradient: float) -> None:
    learner = engine(ema_decay=0.5)._learner
    before = {name: value.clone() for name, value in learner.average.tensors().items()}
    learner.scaler = torch.amp.GradScaler("cpu")
    learner.scaler.scale(torch.zeros(()))
    for weight in learner.weights.values():
        weight.grad = torch.full_like(weight, gradient)
    learner.apply()
    after = learner.average.tensors()
    assert all(torch.equal(after[n], value) for n, value in before.items()) == (gradient == float("inf"))


@pytest.mark.parametrize("use_lora", [True, False])
def test_the_average_is_evaluated_exported_and_resumed(use_lora: bool, tmp_path: Path) -> None:
    values = {"ema_decay": 0.9, "use_lora": use_lora, "train_learning_rate": 1e-3}
    plain_one, one = engine(**values | {"ema_decay": 0.0}), engine(**values)
    list(plain_one.run(3))
    list(one.run(1))
    one.save(tmp_path / "checkpoint")
    list(one.run(3))
    live = weights(one)
    assert all(torch.equal(live[n], w) for n, w in weights(plain_one).items())  # training does not see it
    with one.evaluated():
        average = weights(one)
    assert all(torch.equal(live[n], w) for n, w in weights(one).items())
    assert any(not torch.equal(live[n], w) for n, w in average.items())
    again = engine(**values)
    again.load(tmp_path / "checkpoint")
    list(again.run(3))
    with again.evaluated():
        assert all(torch.equal(average[n], w) for n, w in weights(again).items())
    one.export(tmp_path / "exported")
    stock = tiny_pipeline(0)
    if use_lora:
        stock.load_lora_weights(tmp_path / "exported")
        theirs = {n: p for n, p in stock.unet.named_parameters() if "lora_" in n}
    else:
        theirs = dict(type(stock.unet).from_pretrained(tmp_path / "exported" / "unet").named_parameters())
    found = {n.replace(".default_0.", ".default."): p for n, p in theirs.items()}
    assert found.keys() == average.keys()
    assert all(torch.equal(found[n], w) for n, w in average.items())


def test_processes_tell_the_same(tmp_path: Path) -> None:
    """Sums of both, not one's own; and the average of weights that are equal is equal."""
    script = """
    import os, sys
    sys.path.insert(0, "{tests}")
    import torch
    from safetensors.torch import save_file
    from helpers.tiny import PROMPTS, brightness, tiny_pipeline
    from ddposink.ddpo import DDPOConfig, make_engine
    config = DDPOConfig(
        sample_num_steps=3, sample_batch_size=4, train_batch_size=2, train_learning_rate=3e-3, kl_beta=0.1,
        ema_decay=0.5, ratio_norm=True, threads=1,
    )
    engine = make_engine(config, tiny_pipeline(0), brightness, PROMPTS)
    seen, update = [], engine._learner.tally.take
    def take():
        seen.append(update())
        return seen[-1].clone()
    engine._learner.tally.take = take
    *_, log = engine.run(2)
    with engine.evaluated():
        found = {{n: p.detach().clone() for n, p in engine._learner.weights.items()}}
    for name in ("ratio_mean", "ratio_std", "clipped_above", "clipped_below", "kl_base", "gradient_norm"):
        found[name] = torch.tensor([getattr(log, name)], dtype=torch.float64)
    found["own"] = seen[-1]
    save_file(found, "{folder}/" + os.environ["RANK"] + ".safetensors")
    """
    first, second = two_ranks(script, tmp_path)
    own, other = first.pop("own"), second.pop("own")
    assert all(torch.equal(first[name], second[name]) for name in first)
    count, off, _, _, _, kl, _ = (own + other).sum(1).tolist()
    assert float(first["ratio_mean"]) == pytest.approx(1 + off / count, abs=1e-12)
    assert float(first["kl_base"]) == pytest.approx(kl / count)
    assert not torch.equal(own, other)


def test_at_their_defaults_the_options_are_no_part_of_a_checkpoint() -> None:
    """One from before they existed is resumed; one that used them is not by who does not."""
    before = DDPOConfig(**VALUES).decisive()
    assert not {"kl_beta", "ema_decay", "ratio_norm", "combine_rewards"} & before.keys()
    assert DDPOConfig(**VALUES, kl_beta=0.1).decisive() == before | {"kl_beta": 0.1}


def test_nothing_more_is_asked_at_the_defaults() -> None:
    rows: list[list[int]] = []
    for values in ({}, {"kl_beta": 0.1}):
        one = engine(**values)
        rows.append([])
        one.pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows[-1].append(len(inputs[0])))
        list(one.run(1))
    asked, more = map(sum, rows)
    assert more - asked == 2 * 3 * 8  # the base model, guided, at three steps of eight samples
    assert asked == 2 * 2 * 3 * 8


REFUSED = [
    ({"kl_beta": -0.1}, r"kl_beta must not be negative, not -0.1.*0 is no KL term"),
    ({"kl_beta": math.nan}, r"kl_beta must not be negative, not nan"),
    ({"train_clip_range_high": 0}, r"train_clip_range_high must be a positive number, not 0"),
    ({"measure_kl": 1.5}, r"measure_kl must lie in \[0, 1\], not 1.5: .*0.25 is usual"),
    ({"measure_kl": 0.5, "algorithm": "nft"}, r"measure_kl is an option of policy gradients"),
    ({"measure_kl": 0.5, "engine": "trl"}, r"TRL's engine knows no measure_kl"),
    (
        {"measure_kl": 0.5, "keep_sampling_graph": True, "sample_num_batches_per_epoch": 1},
        r"measure_kl needs the means of denoising steps",
    ),
    ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\), not 1.0"),
    ({"ratio_norm": "yes"}, r"ratio_norm must be true or false, not 'yes'"),
    ({"advantage_deviation": "bach"}, r"advantage_deviation 'bach' is unknown.*batch"),
    ({"combine_rewards": "gdop"}, r"combine_rewards 'gdop' is unknown.*gdpo"),
    ({"loss": "sf", "ratio_norm": True}, r"ratio_norm is of ratios, and loss 'sf' has none"),
    ({"loss": "sf", "train_clip_range_high": 0.1}, r"train_clip_range_high is of ratios"),
    (
        {"kl_beta": 0.1, "keep_sampling_graph": True, "sample_num_batches_per_epoch": 1},
        r"kl_beta needs the means of denoising steps, which keep_sampling_graph does not keep",
    ),
    (
        {"combine_rewards": "gdpo", "per_prompt_stat_tracking": True},
        r"'gdpo' compares within groups or a step, not with earlier rewards",
    ),
    (
        {"combine_rewards": "gdpo", "advantage_deviation": "none"},
        r"'gdpo' brings every reward to one width, which advantage_deviation 'none' does not",
    ),
    *(
        ({"engine": "trl", name: value}, rf"TRL's engine knows no {name}")
        for name, value in [
            ("kl_beta", 0.1), ("ema_decay", 0.9), ("ratio_norm", True), ("train_clip_range_high", 0.2),
            ("advantage_deviation", "none"), ("combine_rewards", "gdpo"),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "why"), REFUSED)
def test_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as refusal:
        DDPOConfig(**VALUES | values)
    assert "\n" not in str(refusal.value)
