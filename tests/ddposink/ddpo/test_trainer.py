"""What the native engine promises beyond sameness: schedules, losses, divergence, ranks, refusals."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ddposink.ddpo import DDPOConfig, DivergedError, make_engine, trainer
from ddposink.ddpo.learner import Pairs, forwards
from ddposink.ddpo.loss import loss_terms
from ddposink.ddpo.policy import Conditions
from ddposink.ddpo.randomness import PromptSource
from ddposink.ddpo.ranks import Ranks
from ddposink.ddpo.sampler import Trajectories, sources
from ddposink.ddpo.schedule import make_schedule
from ddposink.ddpo.stats import Batch, Prompts
from ddposink.errors import Unavailable
from helpers.ranks import two_ranks
from helpers.tiny import PROMPTS, brightness, tiny_pipeline

VALUES: dict[str, Any] = {
    "sample_num_steps": 3,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 4,
    "train_learning_rate": 3e-3,
}


def engine(
    reward: Any = brightness, prompts: list[str] = PROMPTS, pipeline: Any = None, **values: Any
) -> Any:
    return make_engine(DDPOConfig(**VALUES | values), pipeline or tiny_pipeline(0), reward, prompts)


def test_prompts_come_in_groups() -> None:
    drawn, asked = iter("abc"), PromptSource(["cat", "dog"], 4)
    source = PromptSource(lambda: next(drawn), 3)
    assert "".join(source.draw() for _ in range(9)) == "aaabbbccc"
    groups = [[asked.draw() for _ in range(4)] for _ in range(64)]
    assert all(len(set(group)) == 1 for group in groups)
    assert {group[0] for group in groups} == {"cat", "dog"}


def test_a_batch_is_made_of_whole_groups() -> None:
    """Asking for the ratio draws a batch of its own; what training sees is not shifted by it."""
    seen: list[list[str]] = []

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append(list(prompts))
        return brightness(images, prompts)

    one = engine(reward, samples_per_prompt=2)
    one.ratio_deviation()
    list(one.run(1))
    assert [p[:2] for p in seen] == [[p[0]] * 2 for p in seen]
    assert len(seen) == 2
    assert all(p[2] == p[3] for p in seen)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_every_pair_is_learnt_from_once(
    times: int, groups: int, negatives: int, rows: int, seed: int
) -> None:
    """The cut forwards hold all pairs, and each pair the UNet input it would have had alone."""
    count = times * groups
    torch.manual_seed(seed)
    text = Conditions(
        torch.zeros(9, 1, 1),
        torch.randint(5, (groups,)).repeat_interleave(times) + negatives,
        torch.arange(count) % negatives,
    )
    source = sources(text, times)
    noise = torch.arange(count) // times
    for one in (noise, text.prompt, text.negative):
        assert torch.equal(one[source], one)
    assert (source <= torch.arange(count)).all()
    pairs = Pairs(torch.arange(count).repeat(2), torch.arange(2).repeat_interleave(count))
    pairs = pairs.take(torch.randperm(2 * count)[: 2 * count - 1])
    seen, asked = [], 0
    for some, inputs, which in forwards(pairs, source, rows):
        assert 0 < len(inputs) <= rows
        asked += len(inputs)
        needed = inputs.take(which)
        assert torch.equal(needed.step, some.step)
        assert torch.equal(needed.sample, torch.where(some.step == 0, source[some.sample], some.sample))
        seen += list(zip(some.sample.tolist(), some.step.tolist(), strict=True))
    assert sorted(seen) == sorted(zip(pairs.sample.tolist(), pairs.step.tolist(), strict=True))
    first = {int(source[n]) for n, t in seen if not t}
    assert asked == len(first) + sum(t for _, t in seen)


def test_shared_noise_saves_forwards() -> None:
    one = engine(samples_per_prompt=4, share_initial_noise=True, train_gradient_accumulation_steps=2)
    rows, unet = [], one.pipeline.unet
    unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    list(one.run(1))
    sampled, learnt = (2 + 8 + 8), (2 + 8 + 8)  # 2 groups of 4 samples, 3 denoising steps
    assert sum(rows) == 2 * (sampled + learnt)  # guided


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_a_step_is_ddims(prediction: str, spacing: str, eta: float) -> None:
    """Against the scheduler of the library, except the last step, where TRL clamps the previous timestep."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction,
        timestep_spacing=spacing,
    )
    table = make_schedule(scheduler, 7, eta, torch.device("cpu"))
    scheduler.set_timesteps(7)
    assert torch.equal(table.timesteps, scheduler.timesteps)
    x, u, noise = torch.randn(3, 2, 4, 8, 8).unbind()
    for step, time in enumerate(scheduler.timesteps[:-1]):
        expected = scheduler.step(u, time, x, eta=eta, variance_noise=noise).prev_sample
        mean = table.mean(step, x, u)
        assert torch.allclose(mean + table.sigma[step] * noise, expected.float(), rtol=1e-4, atol=1e-4)
        normal = torch.distributions.Normal(mean, table.sigma[step]).log_prob(expected.float())
        for reduction in ("mean", "sum"):
            reduced = getattr(normal.flatten(1), reduction)(1)
            found = table.log_prob(torch.tensor([step, step]), mean, expected.float(), reduction)
            assert torch.allclose(found, reduced, rtol=1e-4)


def test_schedules_without_variance_are_refused() -> None:
    with pytest.raises(ValueError, match=r"timestep 0 has no variance.*steps_offset 1"):
        engine(pipeline=tiny_pipeline(0, steps_offset=0))
    with pytest.raises(ValueError, match="start beyond the schedule's 1000 timesteps"):
        engine(sample_num_steps=1000)
    with pytest.raises(ValueError, match="thresholding"):
        engine(pipeline=tiny_pipeline(0, thresholding=True))


def test_loss_by_hand() -> None:
    log_prob = torch.tensor([0.3, 0.3, -0.3, -0.3, 0.0], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 9.0])
    terms = loss_terms(log_prob, torch.zeros(5), advantage, kind="is", clip_range=0.1, advantage_max=5.0)
    ratio = np.exp([0.3, 0.3, -0.3, -0.3, 0.0])
    assert np.allclose(terms.loss.detach(), [-1.1, ratio[1], -ratio[2], 0.9, -5.0])
    assert terms.clipped.tolist() == [1, 1, 1, 1, 0]
    assert np.allclose(terms.approx_kl, [0.045] * 4 + [0])
    terms.loss.sum().backward()
    assert np.allclose(log_prob.grad, [0, ratio[1], -ratio[2], 0, -5.0])  # nothing pulls beyond the clip


def test_advantages_by_hand() -> None:
    rewards = np.array([1, 2, 3, 6], dtype=np.float32)
    assert np.allclose(Batch().update([], rewards), (rewards - 3) / np.std([1, 2, 3, 6]))
    statistics = Prompts(buffer=3, least=2)
    first = statistics.update(["a", "a", "b", "a"], rewards)
    assert np.allclose(first[[0, 1, 3]], (np.array([1, 2, 6]) - 3) / np.std([1, 2, 6]), atol=1e-4)
    assert first[2] == pytest.approx((3 - 3) / 1.87)  # one reward is too few: all samples' statistics
    statistics.update(["a", "b"], np.array([10, 5], dtype=np.float32))
    assert statistics.state() == {"a": [2.0, 6.0, 10.0], "b": [3.0, 5.0]}
    again = Prompts(buffer=3, least=2)
    again.restore(statistics.state())
    news = np.array([4, 4], dtype=np.float32)
    assert np.array_equal(again.update(["a", "b"], news), statistics.update(["a", "b"], news))


def test_training_raises_the_reward() -> None:
    values = {"sample_batch_size": 64, "train_batch_size": 64, "train_learning_rate": 1e-2}
    curve = [log.reward_mean for log in engine(seed=1, train_clip_range=0.1, **values).run(20)]
    assert np.mean(curve[-4:]) > np.mean(curve[:4]) + 0.005


@pytest.mark.parametrize(
    "values", [{}, {"use_lora": False, "train_learning_rate": 1e-4}], ids=["lora", "full"]
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_update_makes_the_better_samples_likelier(values: dict[str, Any], seed: int) -> None:
    """The sign of learning, on the samples learnt from: a few steps of rewards could not tell it."""
    made = engine(seed=seed, sample_num_batches_per_epoch=4, train_gradient_accumulation_steps=4, **values)
    with made._working():
        found = made._sample(made.config.sample_num_batches_per_epoch, keep_graph=False)
        _, advantages = made._judge(found)
        made._learn(found, torch.as_tensor(advantages))
        with torch.no_grad():
            now = torch.stack([_log_prob(made, found, step) for step in range(len(found.log_probs))])
    change = (now - found.log_probs).sum(0)
    assert float((torch.as_tensor(advantages) * change).mean()) > 0


def _log_prob(made: Any, found: Any, step: int) -> torch.Tensor:
    which = torch.full((len(found.prompts),), step)
    mean = made._policy.mean(which, found.latents[step], found.text.rows(made.config.train_cfg))
    return made._policy.log_prob(which, mean, found.latents[step + 1])


def test_before_an_update_every_ratio_is_one() -> None:
    fresh = engine(train_learning_rate=1e-9, train_batch_size=2, rows_per_forward=3)
    deviation = fresh.ratio_deviation()
    assert deviation.shape == (3,)
    assert deviation.max() < 2e-6
    (log,) = fresh.run(1)
    assert log.approx_kl < 1e-11
    assert log.clip_fraction == 0


def test_counters() -> None:
    logs = list(engine(train_timestep_fraction=0.7, train_num_inner_epochs=2).run(2))
    assert [log.samples for log in logs] == [8, 16]
    assert [log.unet_forwards for log in logs] == [8 * (2 * 3 + 3 * 2 * 2 * 2), 16 * (2 * 3 + 3 * 2 * 2 * 2)]
    assert all(log.sampling_s > 0 and log.training_s > 0 for log in logs)


def test_divergence_has_a_name() -> None:
    wild = engine(train_learning_rate=1e30, train_max_grad_norm=1e30)
    with pytest.raises(
        DivergedError, match=r"diverged in step \d: .* finite; a lower learning rate"
    ) as caught:
        list(wild.run(5))
    assert caught.value.step == wild.step + 1


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (lambda images, prompts: images.mean((1, 2, 3)) / 0, "not a finite number"),
        (lambda images, prompts: images.mean(), r"answered \(\) for 4 pictures"),
        (lambda images, prompts: images, "answered"),
    ],
)
def test_bad_rewards(reward: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(engine(reward=reward).run(1))


@pytest.mark.parametrize("kind", ["native", "trl"])
@pytest.mark.parametrize(
    ("name", "seed"), [("torch", torch.manual_seed), ("Python", random.seed), ("numpy", np.random.seed)]
)
def test_a_reward_that_seeds_what_a_training_draws_from_is_refused(kind: str, name: str, seed: Any) -> None:
    """Every step would have the same prompts, or the same noise."""

    def reward(images: Any, prompts: list[str]) -> Any:
        seed(0)
        return brightness(images, prompts)

    one = engine(reward, engine=kind)
    if name == "numpy":  # nothing is drawn from it
        assert len(list(one.run(3))) == 3
        return
    with pytest.raises(ValueError, match=rf"'.*reward' sets the seed of {name}'s global generator, so that"):
        list(one.run(3))
    assert one.step <= 2


def test_a_reward_may_draw_random_numbers() -> None:
    def reward(images: Any, prompts: list[str]) -> Any:
        return brightness(images, prompts) + torch.randn(len(prompts))

    one = engine(reward)
    assert len({log.reward_mean for log in one.run(3)}) == 3


def test_the_reward_sees_pictures_and_their_prompts() -> None:
    seen = []

    def watching(images: Any, prompts: list[str]) -> Any:
        seen.append((images.shape, images.dtype, float(images.min()), float(images.max()), prompts))
        return brightness(images, prompts)

    list(engine(reward=watching).run(1))
    assert [s[0] for s in seen] == [(4, 3, 16, 16)] * 2
    assert all(s[1] == torch.float32 and 0 <= s[2] < s[3] <= 1 and set(s[4]) <= set(PROMPTS) for s in seen)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        engine(prompts=[])
    blind = tiny_pipeline(0)
    blind.text_encoder = None
    with pytest.raises(ValueError, match="the pipeline has no text_encoder"):
        engine(pipeline=blind)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(Unavailable, match="pip install bitsandbytes"):
            engine(train_use_8bit_adam=True)


@pytest.mark.parametrize(
    "values",
    [
        {"gradient_checkpointing": True},
        {"merge_lora": False},
        {"threads": 1},
        {"sample_guidance_scale": 1.0, "train_cfg": False},
    ],
    ids=str,
)
def test_options_that_change_only_the_layout(values: dict[str, Any]) -> None:
    plain = {name: value for name, value in values.items() if name.startswith(("sample", "train"))}
    curves = [[(log.reward_mean, log.loss) for log in engine(**v).run(2)] for v in (values, plain)]
    assert np.allclose(*curves, atol=2e-5)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_bfloat16_learns_in_float32(lora: bool) -> None:
    half = engine(mixed_precision="bf16", use_lora=lora, train_learning_rate=1e-3)
    logs = list(half.run(2))
    assert all(w.dtype == torch.float32 for w in half._learner.weights.values())
    assert half.pipeline.vae.dtype == torch.bfloat16
    exact = list(engine(use_lora=lora, train_learning_rate=1e-3).run(2))
    assert logs[0].reward_mean == pytest.approx(exact[0].reward_mean, abs=2e-2)
    assert half.ratio_deviation().max() < 5e-2


RANK = """
    import os, sys
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from safetensors.torch import save_file
    from helpers.tiny import PROMPTS, brightness, tiny_pipeline
    from ddposink.ddpo import DDPOConfig, make_engine
    config = DDPOConfig(sample_num_steps=3, sample_batch_size=2, train_batch_size=2, train_learning_rate=3e-3,
                        per_prompt_stat_tracking=True, per_prompt_stat_tracking_min_count=2)
    rank, folder = os.environ["RANK"], {folder!r}
    def train(*, load):
        engine = make_engine(config, tiny_pipeline(0), brightness, PROMPTS)
        if load:
            engine.load(__import__("pathlib").Path(folder, "checkpoint"))
        for log in engine.run(2):
            if engine.step == 1:
                engine.save(__import__("pathlib").Path(folder, "checkpoint"))
        return engine, log
    engine, log = train(load=False)
    resumed, again = train(load=True)
    assert again.reward_mean == log.reward_mean
    weights = {{n: w.detach().clone().contiguous() for n, w in engine._learner.weights.items()}}
    assert all(torch.equal(w, resumed._learner.weights[n]) for n, w in weights.items())
    weights["seen"] = torch.tensor([log.reward_mean, log.loss, log.samples], dtype=torch.float64)
    save_file(weights, f"{{folder}}/{{rank}}.safetensors")
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return two_ranks(RANK, tmp_path_factory.mktemp("ranks"))


def test_two_processes_stay_one_model_and_resume(in_two_processes: Any) -> None:
    first, second = in_two_processes
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["seen"][2] == 2 * 2 * 2 * 2  # two steps of two batches of two, in two processes
    alone = make_engine(DDPOConfig(**VALUES), tiny_pipeline(0), brightness, PROMPTS)
    assert any(not torch.equal(w, first[n]) for n, w in alone._learner.weights.items())


def drawing_as_two(one: Any, seed: int, half: DDPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``one`` process draw what two with the configuration ``half`` each would draw, side by side."""
    other = make_engine(DDPOConfig(**half_values(seed + 1)), tiny_pipeline(0), brightness, PROMPTS)
    streams = [copy.deepcopy(engine._randomness) for engine in (one, other)]
    whole, draw, order = one.config, one._sample, trainer.updates

    def sample(batches: int, keep_graph: bool) -> Any:
        parts = []
        one.config = half
        for stream in streams:
            with stream.active():
                parts.append(draw(batches, keep_graph))
        one.config = whole
        prompts = [prompt for part in parts for prompt in part.prompts]
        text = one._texts.conditions(prompts, len(prompts), 1)
        latents, probs = (torch.cat([getattr(p, n) for p in parts], 1) for n in ("latents", "log_probs"))
        return Trajectories(prompts, text, latents, probs, [], torch.arange(len(prompts)))

    def updates(*_: Any) -> Any:
        drawn = []
        for stream in streams:
            with stream.active():
                drawn.append(list(order(half, torch.device("cpu"))))
        for first, second in zip(*drawn, strict=True):
            samples = torch.cat([first.sample, second.sample + half.samples_per_epoch])
            yield Pairs(samples, torch.cat([first.step, second.step]))

    monkeypatch.setattr(one, "_sample", sample)
    monkeypatch.setattr(trainer, "updates", updates)


def half_values(seed: int) -> dict[str, Any]:
    """What each of the two processes of ``RANK`` is told."""
    per_prompt = {"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_min_count": 2}
    sizes = {"sample_num_steps": 3, "sample_batch_size": 2, "train_batch_size": 2}
    return {**sizes, **per_prompt, "train_learning_rate": 3e-3, "seed": seed}


def test_two_processes_learn_what_one_with_twice_the_batch_learns(
    in_two_processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = DDPOConfig().seed
    half = DDPOConfig(**half_values(seed))
    double = {"sample_batch_size": 4, "train_batch_size": 4}
    one = make_engine(DDPOConfig(**half_values(seed) | double), tiny_pipeline(0), brightness, PROMPTS)
    start = {name: weight.detach().clone() for name, weight in one._learner.weights.items()}
    drawing_as_two(one, seed, half, monkeypatch)
    log = list(one.run(2))[-1]
    first, _ = in_two_processes
    reward, loss, _ = first["seen"].tolist()
    assert log.reward_mean == pytest.approx(reward, abs=1e-6)
    assert log.loss == pytest.approx(loss, abs=1e-5)
    for name, weight in one._learner.weights.items():
        moved = (weight - start[name]).abs().max()
        assert moved > 1e-3
        assert (weight - first[name]).abs().max() < 0.02 * moved, name


def test_one_process_needs_no_group() -> None:
    alone = Ranks(torch.device("cpu"))
    assert (alone.rank, alone.count, alone.first) == (0, 1, True)
    assert alone.gather("x") == ["x"]
    values = torch.ones(3)
    assert alone.mean(values) is values


@pytest.mark.parametrize("kind", ["native", "trl"])
def test_zero_terminal_snr_needs_a_prediction_that_knows_the_picture(kind: Any) -> None:
    """At the last timestep nothing of the picture is left: velocities still say something, noise does not."""
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    trained = engine(pipeline=tiny_pipeline(0, prediction="v_prediction", **zero), engine=kind)
    assert trained.ratio_deviation().max() < 1e-5
    assert all(np.isfinite(log.loss) for log in trained.run(2))
    with pytest.raises(ValueError, match=r"timestep 999 .* zero terminal SNR is for v_prediction"):
        engine(pipeline=tiny_pipeline(0, **zero), engine=kind)


def test_what_is_no_stable_diffusion_is_named() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    flow = tiny_pipeline(0)
    flow.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="a FlowMatchEulerDiscreteScheduler, of flow models"):
        engine(pipeline=flow)
    inpainting = tiny_pipeline(0)
    inpainting.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="takes 9 channels where the latents have 4: an inpainting model"):
        engine(pipeline=inpainting)


def returns(answer: Any) -> Any:
    def my_reward(images: torch.Tensor, prompts: list[str]) -> Any:
        return answer

    return my_reward


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "answered NoneType, not one number a picture"),
        ("high", "answered str, not one number a picture"),
        (torch.zeros(4, requires_grad=True), "answered a tensor with gradients; return it detached"),
        (torch.zeros(4, 1), r"answered \(4, 1\) for 4 pictures, not one each"),
        (torch.full((4,), torch.nan), "is not a finite number for some picture"),
    ],
)
def test_what_a_reward_answers_is_looked_at(answer: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"the reward 'returns.<locals>.my_reward' {said}"):
        list(engine(returns(answer)).run(1))
