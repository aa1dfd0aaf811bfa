"""The native engine is TRL's algorithm: every number of a training step, and whole reward curves, agree.

The other side is TRL 0.23.1's own trainer, reached through the reference engine. Both start from the same
weights and seed, in fp32 on a CPU; the tolerances are those of float arithmetic in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.schedule import make_schedule
from helpers.tiny import PROMPTS, brightness, tiny_pipeline

BASE: dict[str, Any] = {
    "sample_num_steps": 4,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 2,
    "train_learning_rate": 3e-3,
    "mixed_precision": "no",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "one update": {"train_gradient_accumulation_steps": 4},
    "per prompt": {"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_min_count": 3},
    "groups": {
        "samples_per_prompt": 2,
        "share_initial_noise": True,
        "negative_prompts": "dull, dark",
    },
    "full": {"use_lora": False, "train_learning_rate": 1e-4},
    "inner epochs": {"train_num_inner_epochs": 2, "train_timestep_fraction": 0.5},
    "negatives": {"negative_prompts": "dull, dark, blurred"},
    "one negative": {"negative_prompts": "dull, dark", "split_negative_prompts": False},
    "low eta": {"sample_eta": 0.5, "train_clip_range": 0.1, "train_max_grad_norm": 1e-3, "lora_rank": 2},
}
# What TRL's trainer is handed is shorter than what was drawn, so only what it learns can be compared.
SKIPPING = {"skipped steps": {"train_skip_last_steps": 1, "use_lora": False, "train_learning_rate": 1e-4}}


class Recorder:
    """What one training step of an engine computes, in one form for both."""

    def __init__(self, engine: str, values: dict[str, Any], pipeline: dict[str, Any], patch: Any) -> None:
        self.pipeline = tiny_pipeline(0, **pipeline)
        self.engine: Any = make_engine(
            DDPOConfig(**BASE | values, engine=engine), self.pipeline, brightness, PROMPTS
        )
        self.latents = self.log_probs = torch.empty(0)
        self.prompts: list[str] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.advantages: list[Tensor] = []
        self._watch_gradients(patch)
        {"native": self._watch_native, "trl": self._watch_trl}[engine]()

    def weights(self) -> dict[str, Tensor]:
        named = self.pipeline.unet.named_parameters()
        return {name: p.detach().clone() for name, p in named if p.requires_grad}

    def _watch_gradients(self, patch: Any) -> None:
        clip = torch.nn.utils.clip_grad_norm_

        def watched(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            named = self.pipeline.unet.named_parameters()
            self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
            return clip(parameters, *args, **kwargs)

        patch.setattr(torch.nn.utils, "clip_grad_norm_", watched)

    def _watch_native(self) -> None:
        judge = self.engine._judge

        def watched(found: Any) -> Any:
            everybodys, mine = judge(found)
            self.latents, self.log_probs = found.latents.transpose(0, 1).clone(), found.log_probs.T.clone()
            self.prompts = list(found.prompts)
            self.advantages.append(torch.as_tensor(mine))
            return everybodys, mine

        self.engine._judge = watched

    def _watch_trl(self) -> None:
        trainer = self.engine._trainer
        generate, loss = trainer._generate_samples, trainer.calculate_loss

        def generated(*args: Any, **kwargs: Any) -> Any:
            samples, pairs = generate(*args, **kwargs)
            first = torch.cat([s["latents"] for s in samples])
            last = torch.cat([s["next_latents"][:, -1:] for s in samples])
            self.latents = torch.cat([first, last], dim=1).clone()
            self.log_probs = torch.cat([s["log_probs"] for s in samples]).clone()
            self.prompts = [prompt for pair in pairs for prompt in pair[1]]
            return samples, pairs

        def losing(*args: Any) -> Any:
            self.advantages.append(args[4].clone())
            return loss(*args)

        trainer._generate_samples, trainer.calculate_loss = generated, losing


def both(values: dict[str, Any], pipeline: dict[str, Any], patch: Any) -> tuple[Recorder, Recorder]:
    recorders = []
    for engine in ("native", "trl"):
        with patch.context() as inner:
            recorders.append(Recorder(engine, values, pipeline, inner))
            recorders[-1].logs = list(recorders[-1].engine.run(1))  # type: ignore[attr-defined]
    return recorders[0], recorders[1]


def near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    scale = theirs.abs().max().clamp(min=1e-12)
    assert ((ours - theirs).abs().max() / scale).item() < tolerance


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_the_same(variant: str, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if prediction != "epsilon" and variant not in ("lora", "full"):
        pytest.skip("the other predictions are tried with LoRA and full fine-tuning only")
    ours, theirs = both(VARIANTS[variant], {"prediction": prediction}, monkeypatch)
    assert ours.prompts == theirs.prompts
    near(ours.latents, theirs.latents, 1e-5)
    first = theirs.latents[:, 0]  # of each sample
    assert torch.equal(first[0], first[1]) == (variant == "groups")
    near(ours.log_probs, theirs.log_probs, 1e-5)
    distinct = {tuple(a.tolist()) for a in theirs.advantages}
    known = ours.advantages[0].tolist()
    assert all(min(abs(a - k) for k in known) < 1e-3 for batch in distinct for a in batch)
    assert len(ours.gradients) == len(theirs.gradients) == ours.engine.config.updates_per_epoch
    assert ours.gradients[0].keys() == theirs.gradients[0].keys()
    # One scale for all tensors: B starts at zero, so the gradients of A are nothing but rounding.
    scale = max(g.abs().max() for g in theirs.gradients[0].values())
    for name, gradient in theirs.gradients[0].items():
        assert (ours.gradients[0][name] - gradient).abs().max() / scale < 2e-4, name
    mine, other = ours.logs[0], theirs.logs[0]  # type: ignore[attr-defined]
    assert mine.reward_mean == pytest.approx(other.reward_mean, abs=1e-6)
    assert mine.reward_std == pytest.approx(other.reward_std, abs=1e-6)
    assert mine.loss == pytest.approx(other.loss, abs=1e-4)
    assert mine.approx_kl == pytest.approx(other.approx_kl, rel=5e-3, abs=1e-11)
    assert (mine.samples, mine.unet_forwards) == (other.samples, other.unet_forwards)


@pytest.mark.parametrize("variant", ["one update", "full", "skipped steps"])
def test_the_first_update_is_the_same(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = (VARIANTS | SKIPPING)[variant] | {"train_gradient_accumulation_steps": 4}
    ours, theirs = both(values, {}, monkeypatch)
    before = Recorder("native", values, {}, monkeypatch).weights()
    moved, expected = ours.weights(), theirs.weights()
    gradients = theirs.gradients[0]
    largest = max(g.abs().max() for g in gradients.values())
    for name, weight in expected.items():
        # Adam's first step is the gradient's sign: where the gradient is rounding, so is the sign.
        sure = gradients[name].abs() > 1e-3 * largest
        step = (weight - before[name])[sure]
        assert torch.allclose((moved[name] - before[name])[sure], step, rtol=2e-3, atol=1e-8), name
    assert any((weight != before[name]).any() for name, weight in expected.items())


@pytest.mark.parametrize("variant", ["lora", "per prompt", "groups", "full", "inner epochs", "skipped steps"])
def test_reward_curves_agree(variant: str) -> None:
    curves = [
        [
            log.reward_mean
            for log in make_engine(
                DDPOConfig(**BASE | (VARIANTS | SKIPPING)[variant], engine=engine),  # type: ignore[arg-type]
                tiny_pipeline(1),
                brightness,
                PROMPTS,
            ).run(6)
        ]
        for engine in ("native", "trl")
    ]
    assert np.ptp(curves[1]) > 1e-3  # something happens
    assert np.allclose(*curves, atol=2e-5)


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "free"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_denoising_step_is_the_same(prediction: str, clip: bool) -> None:
    """Every step, the clamped last one too; pipelines never clip latents, but a scheduler may say so."""
    from trl.models.modeling_sd_base import scheduler_step

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=clip,
        clip_sample_range=0.5,
        steps_offset=1,
        prediction_type=prediction,
    )
    table = make_schedule(scheduler, 7, 0.8, torch.device("cpu"))
    scheduler.set_timesteps(7)
    x, u, following = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    for step, time in enumerate(scheduler.timesteps):
        theirs = scheduler_step(scheduler, u, time, x, eta=0.8, prev_sample=following).log_probs
        which = torch.tensor([step, step])
        # TRL's variance is a float32 difference of nearly equal numbers: 1e-4 off at the last step.
        ours = table.log_prob(which, table.mean(which, x, u), following)
        assert torch.allclose(ours, theirs, rtol=3e-4 if time == 1 else 2e-5)


@pytest.mark.parametrize("rows", [1, 3, 5, 64])
def test_layout_changes_nothing_but_rounding(rows: int) -> None:
    curves = []
    for layout in ({"rows_per_forward": rows}, {"steps_per_forward": 1}):
        config = DDPOConfig(**BASE | VARIANTS["inner epochs"] | layout)  # type: ignore[arg-type]
        engine = make_engine(config, tiny_pipeline(0), brightness, PROMPTS)
        curves.append([(log.reward_mean, log.loss) for log in engine.run(3)])
    assert np.allclose(*curves, atol=2e-5)


@pytest.mark.parametrize("loss", ["is", "sf"])
def test_learning_from_the_sampling_graph_is_the_same(loss: str) -> None:
    curves = []
    for keep in (False, True):
        values = BASE | VARIANTS["one update"] | {"keep_sampling_graph": keep, "loss": loss}
        engine = make_engine(DDPOConfig(**values), tiny_pipeline(0), brightness, PROMPTS)
        curves.append([(log.reward_mean, log.loss) for log in engine.run(3)])
    assert np.allclose(*curves, atol=2e-5)


def test_on_policy_both_losses_have_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the ratio at 1 is that of the log-probability: the first update is DDPO-SF's."""
    importance, _ = both(VARIANTS["one update"], {}, monkeypatch)
    with monkeypatch.context() as patch:
        plain = Recorder("native", VARIANTS["one update"] | {"loss": "sf"}, {}, patch)
        list(plain.engine.run(1))
    for name, gradient in importance.gradients[0].items():
        assert torch.allclose(plain.gradients[0][name], gradient, rtol=1e-3, atol=1e-6), name
