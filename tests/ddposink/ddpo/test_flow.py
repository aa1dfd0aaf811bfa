"""The native engine on flow models: one training step against the same step written plainly, and windows."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.randomness import Randomness
from ddposink.ddpo.table import flow_table, grid
from helpers.tiny import PROMPTS, brightness
from helpers.tiny_flow import tiny_sd3

VALUES: dict[str, Any] = {
    "sample_kernel": "flow-sde",
    "sample_eta": 0.7,
    "sample_num_steps": 3,
    "sample_guidance_scale": 1.0,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 1,
    "train_batch_size": 4,
    "train_learning_rate": 3e-3,
    "train_adam_weight_decay": 0.0,
    "lora_targets": ("to_k", "to_q", "to_v", "to_out.0"),
}


def engine(pipeline: Any = None, **values: Any) -> Any:
    return make_engine(DDPOConfig(**VALUES | values), pipeline or tiny_sd3(), brightness, ["cat"])


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in pipeline.transformer.named_parameters() if "lora_" in n}


def plain_step(pipeline: Any, config: DDPOConfig, noise: torch.Tensor) -> None:
    """Sample, reward, one update: a forward a step and sample, text as the library has it, nothing shared."""
    guided = config.sample_guidance_scale > 1
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(
        "cat", None, None, do_classifier_free_guidance=True, negative_prompt="", max_sequence_length=0
    )
    table = flow_table(config.sample_kernel, grid(config.sample_num_steps, 3.0), config.sample_eta)

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        def ask(tokens: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
            time = torch.tensor([1000 * t], dtype=torch.float32)
            return pipeline.transformer(x, tokens, pool, time, return_dict=False)[0]

        v = ask(text, pooled)
        if not guided:
            return v
        base = ask(negative, negative_pooled)
        return base + config.sample_guidance_scale * (v - base)

    def log_prob(i: int, x: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        a, b, s = float(table.a[i]), float(table.b[i]), float(table.s[i])
        mean = a * x + b * velocity(x, float(table.times[i]))
        density = -((following - mean) ** 2) / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)
        return density.mean()

    paths, rewards = [], []
    for n in range(noise.shape[1]):
        path = [noise[:1, n]]
        with torch.no_grad():
            for i in range(len(table)):
                v = velocity(path[-1], float(table.times[i]))
                path.append(
                    table.a[i].float() * path[-1]
                    + table.b[i].float() * v
                    + table.s[i].float() * noise[i + 1 : i + 2, n]
                )
            scaled = path[-1] / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
            picture = (pipeline.vae.decode(scaled).sample * 0.5 + 0.5).clamp(0, 1)
        paths.append(path)
        rewards.append(float(picture.mean()))
    values = torch.tensor(rewards)
    advantages = (values - values.mean()) / (values.std(unbiased=False) + 1e-8)
    learnt = [p for n, p in pipeline.transformer.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW(learnt, lr=config.train_learning_rate, weight_decay=0.0)
    learning = [i for i in range(len(table)) if table.s[i] > 0]
    for path, advantage in zip(paths, advantages, strict=True):
        for i in learning:
            new = log_prob(i, path[i], path[i + 1])
            ratio = (new - new.detach()).exp()
            (-advantage * ratio / (len(paths) * len(learning))).backward()
    torch.nn.utils.clip_grad_norm_(learnt, config.train_max_grad_norm)
    optimizer.step()


@pytest.mark.parametrize("kernel", ["flow-sde", "dance-sde", "cps"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_training_step_is_the_plain_one(kernel: str, guidance: float) -> None:
    pipeline = tiny_sd3(shift=3.0)
    one = engine(pipeline, sample_kernel=kernel, sample_guidance_scale=guidance)
    plain = copy.deepcopy(pipeline)
    before = weights(pipeline)
    randomness = Randomness(one.config.seed, torch.device("cpu"))
    list(one.run(1))
    noise = _noise(one, randomness)
    plain_step(plain, one.config, noise)
    after, wanted = weights(pipeline), weights(plain)
    assert max(float((after[n] - before[n]).abs().max()) for n in after) > 1e-3
    for name, value in after.items():
        torch.testing.assert_close(value, wanted[name], atol=2e-4, rtol=0)


def _noise(one: Any, randomness: Randomness) -> torch.Tensor:
    """The random numbers of a fresh engine's first step (T+1, N, C, H, W), as it has drawn them."""
    fresh = engine(tiny_sd3(shift=3.0), sample_kernel=one.config.sample_kernel)
    state = fresh._randomness
    with state.active():
        fresh._prompts.begin()
        for _ in range(4):
            fresh._prompts.draw()
        return torch.stack([torch.randn(4, 4, 8, 8) for _ in range(4)])


@pytest.mark.parametrize("moves", ["fixed", "progressive", "random"])
def test_steps_outside_the_window_are_not_learnt_from(moves: str) -> None:
    one = engine(
        sample_num_steps=5, sample_sde_window=2, sample_sde_window_moves=moves, samples_per_prompt=4,
        share_initial_noise=True,
    )  # fmt: skip
    for step in range(3):
        asked: list[int] = []

        def hear(_: Any, inputs: Any, named: dict[str, Any], asked: list[int] = asked) -> None:
            asked.append(len(named["hidden_states"]))

        handle = one.pipeline.transformer.register_forward_pre_hook(hear, with_kwargs=True)
        assert one.ratio_deviation().shape == (2,)
        asked.clear()
        begin = one.config.window.at(step)[0]
        (log,) = one.run(step + 1)
        handle.remove()
        # A group is one until its first noisy step, in sampling and in learning.
        assert sum(asked) == (begin + 1) + 4 * (4 - begin) + 1 + 4
        assert log.unet_forwards == (step + 1) * 4 * (5 + 3 * 2)


@pytest.mark.parametrize("kernel", ["flow-sde", "cps"])
def test_ratios_are_one_before_an_update(kernel: str) -> None:
    one = engine(sample_kernel=kernel, sample_guidance_scale=2.0, sample_num_steps=6)
    deviation = one.ratio_deviation()
    assert len(deviation) == (5 if kernel == "cps" else 6)
    assert deviation.max() < 1e-5


def test_a_resumed_training_meets_the_same_windows(tmp_path: Path) -> None:
    values = {"sample_num_steps": 5, "sample_sde_window": 2, "sample_sde_window_moves": "random"}
    one, other = engine(**values), engine(**values)
    list(one.run(2))
    one.save(tmp_path / "at")
    list(one.run(4))
    other.load(tmp_path / "at")
    list(other.run(4))
    for name, value in weights(one.pipeline).items():
        assert torch.equal(value, weights(other.pipeline)[name])


def test_lora_goes_into_a_stock_pipeline_and_back(tmp_path: Path) -> None:
    one = engine(lora_alpha=6.0)
    list(one.run(2))
    one.export(tmp_path)
    stock = tiny_sd3()
    stock.load_lora_weights(tmp_path)
    one.pipeline.transformer.eval()
    options = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt", "max_sequence_length": 0}

    def drawn(pipeline: Any) -> torch.Tensor:
        return pipeline("cat", generator=torch.Generator().manual_seed(0), **options).images

    torch.testing.assert_close(drawn(stock), drawn(one.pipeline), atol=1e-5, rtol=0)
    with one.base():
        assert float((drawn(stock) - drawn(one.pipeline)).abs().max()) > 1e-3
    on = engine(stock, lora_alpha=6.0)  # an adapter that is there is learnt on
    list(on.run(1))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sample_kernel": "ode"}, "'ode' makes sampling deterministic.*use 'flow-sde'"),
        ({"sample_eta": 0.0}, "sample_eta 0 makes sampling deterministic"),
        ({"sample_kernel": "cps", "sample_eta": 1.2}, r"must lie in \(0, 1\]"),
        ({"sample_sde_window": 4}, "window 4 is beyond the 3 denoising steps; use at most 3"),
        ({"sample_kernel": "cps", "sample_sde_window": 3}, "the last 1 has no part in it; use at most 2"),
        ({"sample_sde_window_moves": "random"}, "is of a window: name its size"),
        (
            {"sample_kernel": "ode", "algorithm": "nft", "sample_sde_window": 1},
            "sample_kernel 'ode' draws none",
        ),
        (
            {"train_skip_last_steps": 1, "train_timestep_fraction": 0.3},
            "0.3 of 2 denoising steps to be learnt from leaves none; use at least 0.5",
        ),
        ({"sample_sde_window": 0}, "sample_sde_window must be a whole number of at least 1"),
        ({"sample_shift": -1.0}, "sample_shift must be a positive number"),
        ({"engine": "trl"}, "TRL's engine knows no sample_kernel 'flow-sde'"),
        ({"sample_kernel": "ddim", "sample_eta": 1.0, "sample_sde_window": 2}, "is of flow models"),
        ({"sample_kernel": "ddim", "sample_sde_window_moves": "random"}, "moves is of flow models"),
        ({"sample_kernel": "ddim", "max_sequence_length": 8}, "length is of flow models"),
        ({"sample_sde_window_stride": 2}, "stride is of a window that moves: say how"),
        ({"sample_sde_window": 2, "sample_sde_window_every": 2}, "every is of a window that moves"),
        (
            {"sample_sde_window": 1, "sample_sde_window_moves": "random", "sample_sde_window_stride": 3},
            "stride 3 leaves a random window of 1 in 3 denoising steps one place; use at most 2",
        ),
        ({"sample_kernel": "flow_sde"}, "did you mean 'flow-sde'"),
        ({"max_sequence_length": -1}, "max_sequence_length must be a whole number"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        DDPOConfig(**VALUES | values)
    assert "\n" not in str(caught.value)


def test_a_kernel_of_the_other_kind_is_refused() -> None:
    from helpers.tiny import tiny_pipeline

    with pytest.raises(ValueError, match="is a flow model, which DDIM does not denoise; set sample_kernel"):
        engine(sample_kernel="ddim", sample_eta=1.0)
    with pytest.raises(ValueError, match="is no flow model; set sample_kernel to ddim, not flow-sde"):
        make_engine(DDPOConfig(**VALUES), tiny_pipeline(0), brightness, PROMPTS)


@pytest.mark.parametrize(
    "values",
    [
        {"keep_sampling_graph": True},
        {"mixed_precision": "bf16"},
        {"gradient_checkpointing": True},
        {"use_lora": False, "train_learning_rate": 1e-4},
        {"loss": "sf", "log_prob_reduction": "sum"},
        {"sample_kernel": "cps", "train_timestep_fraction": 0.5, "sample_num_steps": 5},
    ],
    ids=lambda values: next(iter(values)),
)
def test_the_engines_other_settings_hold_for_flow_models(values: dict[str, Any]) -> None:
    one = engine(**values)
    logs = list(one.run(2))
    assert all(math.isfinite(log.loss) for log in logs)
    assert logs[0].clip_fraction == 0 or values == {"mixed_precision": "bf16"}


def test_the_kept_graph_learns_what_learning_anew_does() -> None:
    one, other = engine(keep_sampling_graph=True), engine()
    for each in (one, other):
        list(each.run(1))
    for name, value in weights(one.pipeline).items():
        torch.testing.assert_close(value, weights(other.pipeline)[name], atol=2e-4, rtol=0)
