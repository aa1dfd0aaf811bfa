"""Each method of TRL's trainer that scripts call: signature, shapes, dtypes and values are TRL's own."""

from __future__ import annotations

import inspect
import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")
import trl
from accelerate.state import AcceleratorState, PartialState
from diffusers import DDIMScheduler

from ddposink.ddpo import trl_names
from ddposink.ddpo.trackers import NoTracker
from helpers.tiny import PROMPTS, brightness

METHODS = """train step compute_rewards calculate_loss loss _generate_samples _train_batched_samples
    _setup_optimizer _save_model_hook _load_model_hook _config_check _save_pretrained
    create_model_card""".split()


def scorer(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Any:
    return brightness(images, list(prompts)), {"asked": len(metadata)}


def prompt_fn() -> tuple[str, dict[str, int]]:
    prompt = random.choice(PROMPTS)
    return prompt, {"length": len(prompt)}


def of(names: Any, folder: Path, use_lora: bool = True, hook: Any = None, **values: Any) -> Any:
    """A trainer by ``names``, TRL's module or ours."""
    PartialState(cpu=True)
    settings = {
        "sample_num_steps": 3,
        "sample_batch_size": 2,
        "sample_num_batches_per_epoch": 2,
        "train_batch_size": 2,
        "train_learning_rate": 3e-3,
        "mixed_precision": None,
        "per_prompt_stat_tracking_buffer_size": 32,
        "save_freq": 1000000,
        "seed": 3,
    }
    pipeline = names.DefaultDDPOStableDiffusionPipeline(str(folder), use_lora=use_lora)
    pipeline.set_progress_bar_config(disable=True)
    config = names.DDPOConfig(**settings | values)
    return names.DDPOTrainer(config, scorer, prompt_fn, pipeline, image_samples_hook=hook)


def both(folder: Path, **values: Any) -> tuple[Any, Any]:
    """Our trainer and TRL's, each made as if it were alone: both seed the global generators."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return tuple(of(names, folder, **values) for names in (trl_names, trl))  # type: ignore[return-value]


def alike(ours: Any, theirs: Any) -> None:
    """The same structure, shapes and dtypes, and values to rounding."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), (ours - theirs).abs().max()
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for name in ours:
            alike(ours[name], theirs[name])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            alike(mine, other)
    else:
        assert ours == theirs


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    unet = trainer.sd_pipeline.unet
    return {name: p.detach().clone() for name, p in unet.named_parameters() if p.requires_grad}


def test_signatures() -> None:
    for name in METHODS:
        names = [
            list(inspect.signature(getattr(kind, name)).parameters)
            for kind in (trl_names.DDPOTrainer, trl.DDPOTrainer)
        ]
        assert names[0] == names[1], name


@pytest.mark.parametrize("use_lora", [True, False])
def test_samples_and_losses(saved_pipeline: Path, use_lora: bool) -> None:
    drawn, trainers = [], []
    for names in (trl_names, trl):
        AcceleratorState._reset_state(reset_partial_state=True)
        trainers.append(of(names, saved_pipeline, use_lora))
        drawn.append(trainers[-1]._generate_samples(2, 2))
    alike(*drawn)
    (samples, pairs), _ = drawn
    assert len(samples) == len(pairs) == 2
    assert samples[0]["latents"].shape == (2, 3, 4, 8, 8)
    assert pairs[0][0].shape == (2, 3, 16, 16)

    one = samples[0]
    step = [one[name][:1, 0] for name in ("latents", "timesteps", "next_latents")]
    step += [one["log_probs"][:1, 0] + 0.3, torch.tensor([-9.0])]
    found = [trainer.calculate_loss(*step, one["prompt_embeds"]) for trainer in trainers]
    alike(*found)
    assert [value.shape for value in found[0]] == [(), (), ()]
    assert torch.isfinite(found[0][0])
    gradients = []
    for trainer, values in zip(trainers, found, strict=True):
        values[0].backward()
        unet = trainer.sd_pipeline.unet
        gradients.append({n: p.grad for n, p in unet.named_parameters() if p.grad is not None})
    assert gradients[0]
    alike(*gradients)


def test_samples_in_half_precision(saved_pipeline: Path) -> None:
    """Rounding of bfloat16 is in the values; shapes and dtypes are TRL's."""
    drawn = [
        trainer._generate_samples(1, 2)[0][0] for trainer in both(saved_pipeline, mixed_precision="bf16")
    ]
    kinds = [{name: (value.shape, value.dtype) for name, value in one.items()} for one in drawn]
    assert kinds[0] == kinds[1]
    assert kinds[0]["latents"][1] == torch.bfloat16


@pytest.mark.parametrize("by_steps", [True, False])
def test_trls_own_pipeline_and_configuration(saved_pipeline: Path, tmp_path: Path, by_steps: bool) -> None:
    """A script may import one of the three names and not the others."""
    PartialState(cpu=True)
    pipeline = trl.DefaultDDPOStableDiffusionPipeline(str(saved_pipeline))
    config = trl.DDPOConfig(
        sample_num_steps=2, sample_batch_size=2, mixed_precision=None, logdir=str(tmp_path), num_epochs=1
    )
    trainer = trl_names.DDPOTrainer(config, scorer, prompt_fn, pipeline)
    if by_steps:
        trainer.loss = trainer.loss  # type: ignore[method-assign]
    trainer.train()
    trainer.save_pretrained(tmp_path / "saved")
    again = trl_names.DefaultDDPOStableDiffusionPipeline(str(tmp_path / "saved"))
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 12, 16)
    outputs = [which.unet.eval()(sample, 500, text).sample for which in (pipeline, again)]
    assert torch.allclose(*outputs, atol=1e-5)


def test_the_loss_is_clipped(saved_pipeline: Path) -> None:
    trainers = both(saved_pipeline)
    assert trainers[0].loss(torch.tensor([-1.0]), 1e-4, torch.tensor([1.0])).item() == 1.0
    ratio, advantage = torch.tensor([0.5, 1.0, 2.0, 2.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    alike(*[trainer.loss(advantage, 0.1, ratio) for trainer in trainers])


def test_rewards_and_checks(saved_pipeline: Path) -> None:
    ours, theirs = both(saved_pipeline)
    pairs = [[torch.rand(2, 3, 16, 16), ("cat", "dog"), ({}, {})] for _ in range(2)]
    found = [tuple(trainer.compute_rewards(pairs)) for trainer in (ours, theirs)]
    alike(*found)
    alike(tuple(ours.compute_rewards(pairs, is_async=True)), found[0])  # TRL's own raises AttributeError
    for values in (
        {},
        {"train_batch_size": 4},
        {"sample_batch_size": 3},
        {"sample_num_batches_per_epoch": 3},
    ):
        for trainer in (ours, theirs):
            for name, value in values.items():
                setattr(trainer.config, name, value)
        assert ours._config_check()[0] == theirs._config_check()[0]


def test_the_optimizer(saved_pipeline: Path) -> None:
    given = [torch.nn.Parameter(torch.zeros(2))]
    ours, theirs = (trainer._setup_optimizer(given) for trainer in both(saved_pipeline, train_adam_beta1=0.8))
    assert type(ours) is type(theirs)
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert ours.defaults[name] == theirs.defaults[name]


@pytest.mark.parametrize("by_steps", [True, False])
@pytest.mark.parametrize("values", [{}, {"use_lora": False}, {"per_prompt_stat_tracking": True}])
def test_two_epochs(saved_pipeline: Path, values: dict[str, Any], by_steps: bool) -> None:
    """Weights, hook and counting after two epochs, of the engine and of TRL's methods, against TRL."""
    seen: list[list[Any]] = [[], []]
    trainers = []
    for which, names in enumerate((trl_names, trl)):
        AcceleratorState._reset_state(reset_partial_state=True)

        def hook(batches: Any, step: int, _: Any, kept: list[Any] = seen[which]) -> None:
            kept.append([step, [list(batch) for batch in batches]])

        trainer = of(names, saved_pipeline, hook=hook, train_gradient_accumulation_steps=2, **values)
        trainer.accelerator.trackers = [NoTracker()]  # TRL fails without any
        if names is trl_names and by_steps:
            trainer.loss = trainer.loss  # a script's own
        start = weights(trainer)
        assert trainer.step(1, trainer.step(0, 0)) == 2
        trainers.append(trainer)
    first, second = map(weights, trainers)
    assert list(first) == list(second)
    # Adam turns a gradient of nothing but rounding into a whole step, so single weights may differ.
    apart = sum(float((first[name] - second[name]).square().sum()) for name in first)
    moved = sum(float((second[name] - start[name]).square().sum()) for name in first)
    assert apart < 1e-4 * moved
    assert [step for step, _ in seen[0]] == [0, 1]
    alike(seen[0][0][1], seen[1][0][1])


@pytest.mark.parametrize("by_steps", [True, False])
def test_a_column_of_rewards_is_taken_as_trl_takes_it(saved_pipeline: Path, by_steps: bool) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for names in (trl_names, trl):
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = of(names, saved_pipeline, train_adam_epsilon=1e-4)
        trainer.accelerator.trackers = [NoTracker()]
        trainer.reward_fn = lambda *asked: (scorer(*asked)[0][:, None], {})
        if names is trl_names and by_steps:
            trainer.loss = trainer.loss
        trainer.step(0, 0)
        found.append(weights(trainer))
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=0, atol=1e-5)


def test_what_is_wrong_with_rewards_names_the_scripts_function(saved_pipeline: Path) -> None:
    trainer = of(trl_names, saved_pipeline)
    trainer.reward_fn = lambda images, *_: (images, {})
    with pytest.raises(ValueError, match=r"the reward 'scorer' answered \(2, 3, 16, 16\) for 2 pictures"):
        trainer.step(0, 0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [False, True])
def test_the_schedulers_step(prediction: str, clip: bool) -> None:
    from trl.models.modeling_sd_base import scheduler_step

    from ddposink.ddpo.names.ddim import ddim_step

    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=clip, steps_offset=1)
    with pytest.raises(ValueError, match="no timesteps yet"):
        ddim_step(scheduler, torch.zeros(1), 1, torch.zeros(1))
    scheduler.set_timesteps(5)
    output, sample, following = torch.randn(3, 2, 4, 8, 8)
    times = scheduler.timesteps[[0, 4]]
    for settings in ({"prev_sample": following}, {"use_clipped_model_output": True}, {}):
        found = []
        for step in (ddim_step, scheduler_step):
            torch.manual_seed(0)
            found.append(step(scheduler, output, times, sample, 0.9, **settings))  # type: ignore[operator]
        alike([found[0].latents, found[0].log_probs], [found[1].latents, found[1].log_probs])
    with pytest.raises(ValueError, match="not both"):
        ddim_step(scheduler, output, times, sample, 1.0, generator=torch.Generator(), prev_sample=following)


def test_the_pipelines_answer(saved_pipeline: Path) -> None:
    found = []
    for names in (trl_names, trl):
        PartialState(cpu=True)
        pipeline = names.DefaultDDPOStableDiffusionPipeline(str(saved_pipeline), use_lora=False)
        torch.manual_seed(0)
        drawn = pipeline("cat", None, None, 3, 4.0, eta=1.0, negative_prompt="dog", output_type="pt")
        found.append([drawn.images, drawn.latents, drawn.log_probs, pipeline.autocast])
    alike(*found)
