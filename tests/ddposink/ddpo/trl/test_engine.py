"""The reference engine is TRL itself, bit for bit, and keeps the promises of the `Engine` protocol."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")
import trl
from accelerate.state import PartialState
from diffusers import UNet2DConditionModel

from ddposink.ddpo import DDPOConfig, DivergedError, StepLog, make_engine
from ddposink.ddpo.trl.engine import TrlEngine
from helpers.tiny import PROMPTS, brightness, tiny_pipeline

CONFIG = DDPOConfig(
    engine="trl",
    sample_num_steps=3,
    sample_batch_size=2,
    sample_num_batches_per_epoch=2,
    train_batch_size=2,
    train_learning_rate=3e-3,
    per_prompt_stat_tracking=True,
    per_prompt_stat_tracking_min_count=2,
    seed=3,
)


def engine(config: DDPOConfig = CONFIG, **settings: Any) -> TrlEngine:
    made = make_engine(replace(config, **settings), tiny_pipeline(), brightness, PROMPTS)
    assert isinstance(made, TrlEngine)
    return made


def weights(made: Any) -> dict[str, torch.Tensor]:
    named = made.pipeline.unet.named_parameters()
    return {name: value.detach().clone() for name, value in named if value.requires_grad}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def unet_output(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 12, 16, generator=generator)
    return pipeline.unet.eval()(sample, 500, text).sample


def draw() -> str:
    return random.choice(PROMPTS)


def test_equals_trl_bit_for_bit(saved_pipeline: Path) -> None:
    """TRL's own classes, untouched but for the process state they need, give the same weights and losses."""
    PartialState(cpu=True)
    pipeline = trl.DefaultDDPOStableDiffusionPipeline(str(saved_pipeline))
    ours = CONFIG.to_dict()
    names = [name for name in trl.DDPOConfig.__dataclass_fields__ if name not in ("resume_from", "save_freq")]
    config = trl.DDPOConfig(
        **{name: ours[name] for name in names} | {"mixed_precision": "no", "save_freq": 99}
    )
    losses: list[float] = []

    class Listening(trl.DDPOTrainer):
        def calculate_loss(self, *args: Any) -> Any:
            answer = super().calculate_loss(*args)
            losses.append(answer[0].item())
            return answer

    trainer = Listening(
        config,
        lambda images, prompts, _: (brightness(images, prompts), {}),
        lambda: (draw(), {}),
        pipeline,
    )
    for epoch in range(2):
        trainer.step(epoch, epoch * 2)
    named = trainer.sd_pipeline.unet.named_parameters()
    expected = {name: value.detach() for name, value in named if value.requires_grad}

    # The same draws of prompts, and the repair of advantages left out, which computes them in float64.
    made = TrlEngine(CONFIG, tiny_pipeline(), brightness, draw, disabled=["advantages"])
    logs = list(made.run(2))
    assert same(weights(made), expected)
    per_step = len(losses) // 2
    for log, start in zip(logs, (0, per_step), strict=True):
        assert math.isclose(log.loss, np.mean(losses[start : start + per_step]), rel_tol=1e-4, abs_tol=1e-6)


def test_what_a_step_logs() -> None:
    first, second = engine(train_num_inner_epochs=2, train_timestep_fraction=0.7).run(2)
    assert isinstance(first, StepLog)
    assert (first.step, second.step) == (1, 2)
    assert (first.samples, second.samples) == (4, 8)
    # guided: 3 denoising steps to draw; 2 of them, forward and backward, in each of 2 inner epochs
    assert first.unet_forwards == 4 * (2 * 3 + 2 * 2 * 3 * 2)
    assert second.unet_forwards == 2 * first.unet_forwards
    assert 0 < first.reward_mean < 1
    assert first.reward_std > 0
    assert first.approx_kl > 0
    assert 0 < first.clip_fraction <= 1
    assert first.sampling_s > 0
    assert first.training_s > 0


def test_random_numbers_are_its_own() -> None:
    random.seed(11), np.random.seed(11), torch.manual_seed(11)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(11), np.random.seed(11), torch.manual_seed(11)
    made = engine()
    list(made.run(1))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    list(made.run(2))
    undisturbed = engine()
    list(undisturbed.run(2))
    assert same(weights(made), weights(undisturbed))


@pytest.mark.parametrize("use_lora", [True, False])
def test_resumed_equals_uninterrupted(use_lora: bool, tmp_path: Path) -> None:
    whole = engine(use_lora=use_lora)
    list(whole.run(1))
    whole.save(tmp_path / "checkpoint")
    logs = list(whole.run(3))
    resumed = engine(use_lora=use_lora, num_epochs=7)  # not decisive
    resumed.load(tmp_path / "checkpoint")
    assert resumed.step == 1
    again = list(resumed.run(3))
    assert same(weights(whole), weights(resumed))
    untimed = {"sampling_s": 0.0, "training_s": 0.0}
    assert [replace(log, **untimed) for log in logs] == [replace(log, **untimed) for log in again]


def test_save_replaces_a_checkpoint_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = engine(), tmp_path / "checkpoint"
    list(made.run(1))
    made.save(folder)
    list(made.run(2))
    with monkeypatch.context() as patched:
        patched.setattr("ddposink.ddpo.trl.state._checksums", _full_disk)
        with pytest.raises(OSError, match="No space"):
            made.save(folder)
    made.load(folder)
    assert made.step == 1
    list(made.run(2))
    made.save(folder)
    folder.rename(tmp_path / ".checkpoint.old")  # killed between the two renames of a replacement
    made.load(folder)
    assert made.step == 2


def _full_disk(_: Path) -> dict[str, str]:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "optimizer.bin", "random_states_0.pkl"])
def test_damaged_checkpoints_are_refused(name: str, tmp_path: Path) -> None:
    made = engine()
    made.save(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / name
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=f"damaged: {name}"):
        made.load(tmp_path / "checkpoint")
    file.unlink()
    with pytest.raises(ValueError, match=f"damaged: {name} is missing"):
        made.load(tmp_path / "checkpoint")


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    made, folder = engine(), tmp_path / "checkpoint"
    with pytest.raises(ValueError, match=r"no checkpoint of TRL's engine: ddposink\.json is missing"):
        made.load(folder)
    made.save(folder)
    with pytest.raises(ValueError, match=r"train_learning_rate 0\.003, this is 0\.5"):
        engine(train_learning_rate=0.5).load(folder)
    with pytest.raises(ValueError, match="with other prompts"):
        make_engine(CONFIG, tiny_pipeline(), brightness, ["emu"]).load(folder)
    with pytest.raises(ValueError, match="with base '"):
        make_engine(CONFIG, tiny_pipeline(seed=1), brightness, PROMPTS).load(folder)
    meta = json.loads((folder / "ddposink.json").read_text())
    (folder / "ddposink.json").write_text(json.dumps(meta | {"statistics": []}))
    with pytest.raises(ValueError, match="cannot be read"):
        made.load(folder)
    (folder / "ddposink.json").write_text(json.dumps(meta | {"engine": "native"}))
    with pytest.raises(ValueError, match="engine 'native', this is 'trl'"):
        made.load(folder)
    (folder / "ddposink.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        made.load(folder)


class Pickled:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_a_pickle_posing_as_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    made, folder = engine(), tmp_path / "checkpoint"
    made.save(folder)
    torch.save(Pickled(tmp_path / "executed"), folder / "optimizer.bin")
    meta = json.loads((folder / "ddposink.json").read_text())
    del meta["files"]["optimizer.bin"]
    (folder / "ddposink.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="damaged"):
        made.load(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("use_lora", [True, False])
def test_base_and_export(use_lora: bool, tmp_path: Path) -> None:
    made = engine(use_lora=use_lora, lora_rank=2, lora_alpha=6.0)
    list(made.run(1))
    trained, untrained = unet_output(made.pipeline), unet_output(tiny_pipeline())
    assert (trained - untrained).abs().max() > 1e-5
    with made.base():
        torch.testing.assert_close(unet_output(made.pipeline), untrained, rtol=0, atol=1e-6)
    assert torch.equal(unet_output(made.pipeline), trained)
    made.export(tmp_path)
    stock = tiny_pipeline()
    if use_lora:
        stock.load_lora_weights(tmp_path)
    else:
        stock.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    torch.testing.assert_close(unet_output(stock), trained, rtol=0, atol=1e-6)


def test_the_given_pipeline_keeps_its_scheduler_and_serves_at_once() -> None:
    pipeline = tiny_pipeline()
    scheduler = pipeline.scheduler
    made = make_engine(CONFIG, pipeline, brightness, PROMPTS)
    assert made.pipeline is pipeline
    assert pipeline.scheduler is scheduler
    before = pipeline(
        "cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
    )
    list(made.run(1))
    after = pipeline(
        "cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
    )
    assert np.abs(before.images - after.images).max() > 1e-6


def test_negative_prompts_can_be_trls_way() -> None:
    split = engine(negative_prompts="a, b")
    whole = engine(negative_prompts="a, b", split_negative_prompts=False)
    list(split.run(1)), list(whole.run(1))
    assert not same(weights(split), weights(whole))


def test_ratio_deviation_is_read_without_a_trace() -> None:
    made, untouched = engine(), engine()
    deviation = made.ratio_deviation()
    assert deviation.shape == (3,)
    assert deviation.max() <= 1e-5
    list(made.run(1)), list(untouched.run(1))
    assert same(weights(made), weights(untouched))
    assert made.ratio_deviation().max() <= 1e-5  # sampled by the same, now trained, policy


def test_precisions_may_follow_each_other_in_one_process() -> None:
    list(engine(mixed_precision="bf16").run(1))
    list(engine(mixed_precision="no").run(1))


def test_divergence_is_reported() -> None:
    made = engine(train_learning_rate=1e30)
    with pytest.raises(DivergedError, match="training diverged in step") as error:
        list(made.run(4))
    assert error.value.step <= 4


def test_what_trl_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        make_engine(CONFIG, tiny_pipeline(), brightness, [])
    with pytest.raises(ValueError, match="log_prob_reduction must be 'mean'"):
        engine(log_prob_reduction="sum")
    with pytest.raises(ValueError, match="cannot sample without guidance"):
        engine(sample_guidance_scale=1.0)
    pipeline = tiny_pipeline()
    pipeline.text_encoder = None
    with pytest.raises(ValueError, match="no text_encoder"):
        make_engine(CONFIG, pipeline, brightness, PROMPTS)
    other = SimpleNamespace(unet=SimpleNamespace(device=torch.device("cpu")))
    with pytest.raises(ValueError, match="the pipeline has no vae"):
        make_engine(CONFIG, other, brightness, PROMPTS)


def test_a_reward_of_the_wrong_shape_is_an_error() -> None:
    made = make_engine(CONFIG, tiny_pipeline(), lambda images, prompts: images.mean(), PROMPTS)
    with pytest.raises(ValueError, match=r"answered \(\) for 2 pictures"):
        list(made.run(1))
