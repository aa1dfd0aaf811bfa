"""DDPO on CUDA: our engine draws, learns and stays finite in every precision, and agrees with TRL's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs diffusers")
pytest.importorskip("trl", reason="needs trl")
from ddposink.ddpo import DDPOConfig, make_engine
from helpers.tiny import PROMPTS, brightness, tiny_pipeline

SMALL = {
    "sample_num_steps": 4,
    "sample_guidance_scale": 4.0,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 4,
    "train_learning_rate": 1e-3,
    "allow_tf32": False,
}


def rewards(engine: str, precision: str, steps: int = 3, **more: object) -> list[float]:
    config = DDPOConfig(**SMALL | more, engine=engine, mixed_precision=precision)
    training = make_engine(config, tiny_pipeline().to("cuda"), brightness, PROMPTS)
    weights = [p for p in training.pipeline.unet.parameters() if p.requires_grad]
    logs = list(training.run(steps))
    assert weights
    assert all(p.device.type == "cuda" and p.isfinite().all() for p in weights)
    assert [log.step for log in logs] == list(range(1, steps + 1))
    assert np.isfinite([[log.reward_mean, log.loss, log.approx_kl] for log in logs]).all()
    return [log.reward_mean for log in logs]


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_native_trains_in_every_precision(precision: str) -> None:
    rewards("native", precision)


def test_both_engines_agree_in_float32() -> None:
    np.testing.assert_allclose(rewards("native", "no"), rewards("trl", "no"), atol=1e-4)


def test_larger_forwards_change_nothing_but_rounding() -> None:
    np.testing.assert_allclose(
        rewards("native", "no", rows_per_forward=16), rewards("native", "no"), atol=1e-4
    )


def test_before_any_update_ratios_are_one() -> None:
    config = DDPOConfig(**SMALL, mixed_precision="no")
    training = make_engine(config, tiny_pipeline().to("cuda"), brightness, PROMPTS)
    assert float(torch.as_tensor(training.ratio_deviation()).max()) <= 1e-5
