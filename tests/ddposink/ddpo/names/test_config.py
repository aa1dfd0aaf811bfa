"""Every value of TRL's configuration: taken, and put in the engines' words or refused in one line."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddposink.ddpo import config as configuration
from ddposink.ddpo.names.config import LEAST, MOST, checked
from ddposink.ddpo.trl_names import DDPOConfig, DDPOTrainer
from helpers.tiny import brightness, tiny_pipeline


def scorer(images: torch.Tensor, prompts: tuple[str, ...], _: Any) -> torch.Tensor:
    return brightness(images, list(prompts))


TAKEN: list[tuple[str, Any, Any]] = [
    ("run_name", None, ""),
    ("seed", np.int64(5), 5),
    ("log_with", ["tensorboard"], ["tensorboard"]),
    ("tracker_kwargs", None, {}),
    ("project_kwargs", {"total_limit": 3}, {"total_limit": 3}),
    ("accelerator_kwargs", {"cpu": True, "rng_types": None}, {"cpu": True, "rng_types": None}),
    ("logdir", Path("there"), "there"),
    ("num_epochs", -1, 0),
    ("save_freq", 0, sys.maxsize),
    ("save_freq", -5, 5),
    ("save_freq", 1e6, 1000000),
    ("save_freq", 2.5, 5),  # the whole epochs that it divides
    ("save_freq", math.inf, sys.maxsize),
    ("num_checkpoint_limit", None, sys.maxsize),
    ("num_checkpoint_limit", 0, sys.maxsize),
    ("mixed_precision", None, "no"),
    ("mixed_precision", "BF16", "bf16"),
    ("allow_tf32", None, False),
    ("resume_from", None, ""),
    ("sample_eta", np.float32(0.5), 0.5),
    ("sample_batch_size", True, 1),
    ("train_cfg", 1, True),
    ("train_learning_rate", 0.0, LEAST),
    ("train_learning_rate", torch.tensor(0.5), 0.5),
    ("train_adam_epsilon", 0, LEAST),
    ("train_max_grad_norm", math.inf, MOST),
    ("train_adv_clip_max", math.inf, MOST),
    ("train_clip_range", 0.0, LEAST),
    ("train_timestep_fraction", 1.01, 1.0),
    ("per_prompt_stat_tracking_buffer_size", 8, 8),
    ("per_prompt_stat_tracking_buffer_size", None, sys.maxsize),
    ("per_prompt_stat_tracking_min_count", 0, 1),
    ("max_workers", None, 1),
    ("max_workers", 0, 1),  # nobody asks it without async_reward_computation
    ("negative_prompts", None, ""),
    ("negative_prompts", ["blurry", "ugly"], "blurry, ugly"),
    ("push_to_hub", True, True),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("seed", None, "seed must be a whole number"),
    ("seed", 2**32, r"seed must be below 2\*\*32"),
    ("mixed_precision", "fp8", "mixed_precision 'fp8' is unknown"),
    ("num_epochs", None, "num_epochs must be a whole number"),
    ("save_freq", "x", "save_freq must be a whole number"),
    ("train_cfg", False, "learns from another policy than the one that drew"),
    ("sample_num_steps", 2.0, "sample_num_steps must be a whole number"),
    ("sample_eta", 0.0, "sample_eta 0 makes sampling deterministic"),
    ("train_learning_rate", "3e-4", "train_learning_rate must be a positive number, not '3e-4'"),
    ("train_learning_rate", math.inf, "train_learning_rate must be a positive number"),
    ("train_max_grad_norm", math.nan, "train_max_grad_norm must be a positive number"),
    ("train_timestep_fraction", 1.5, "train_timestep_fraction must lie in"),
    ("accelerator_kwargs", {"cpus": True}, "accelerate has no 'cpus'.*'cpu'"),
    ("accelerator_kwargs", {"mixed_precision": "no"}, "'mixed_precision' has a setting of its own"),
    ("accelerator_kwargs", {"fsdp_plugin": object()}, "'fsdp_plugin' would wrap the model"),
    ("project_kwargs", {"dir": "x"}, "project_kwargs: accelerate has no 'dir'"),
    ("negative_prompts", ["a, b", "c"], "none may hold one: 'a, b'"),
]


@pytest.mark.parametrize(("name", "value", "becomes"), TAKEN)
def test_what_trl_takes(name: str, value: Any, becomes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    given = DDPOConfig(**{name: value})
    assert getattr(given, name) is value
    found = getattr(checked(given, use_lora=True), name)
    assert found == becomes
    assert type(found) is type(becomes)


@pytest.mark.parametrize(("name", "value", "says"), REFUSED)
def test_what_cannot_work_is_said_when_the_trainer_is_made(name: str, value: Any, says: str) -> None:
    given = DDPOConfig(**{name: value})
    with pytest.raises(ValueError, match=says) as refused:
        DDPOTrainer(given, brightness, lambda: ("cat", {}), tiny_pipeline())
    assert "\n" not in str(refused.value)


def test_fields_and_defaults_are_trls() -> None:
    trl = pytest.importorskip("trl")
    ours, theirs = DDPOConfig(), trl.DDPOConfig()
    names = [f.name for f in fields(theirs)]
    assert [f.name for f in fields(ours)][: len(names)] == names
    for name in names:
        if name != "exp_name":  # TRL cuts three letters off whatever runs
            assert getattr(ours, name) == getattr(theirs, name), name
    assert list(inspect.signature(DDPOConfig).parameters)[: len(names)] == names
    flat = trl.DDPOConfig(project_kwargs={"total_limit": 1}).to_dict()
    mine = DDPOConfig(project_kwargs={"total_limit": 1}).to_dict()
    assert {name: mine[name] for name in flat if name != "exp_name"} == {
        name: value for name, value in flat.items() if name != "exp_name"
    }
    assert checked(theirs, use_lora=True).seed == 0  # TRL's own is as good


def test_command_lines() -> None:
    from transformers import HfArgumentParser

    lines = {
        "--train_cfg False --allow_tf32=no --push_to_hub --sample_guidance_scale=1": {
            "train_cfg": False,
            "push_to_hub": True,
        },
        "--no_train_cfg --seed 3 --sample_guidance_scale 1": {"train_cfg": False, "seed": 3},
        "--train_max_grad_norm inf --save_freq=0": {"train_max_grad_norm": math.inf, "save_freq": 0},
        "--log_with tensorboard --mixed_precision bf16": {
            "log_with": "tensorboard",
            "mixed_precision": "bf16",
        },
        "--negative_prompts=a,b --sample_eta 1": {"negative_prompts": "a,b", "sample_eta": 1.0},
    }
    for line, values in lines.items():
        (found,) = HfArgumentParser(DDPOConfig).parse_args_into_dataclasses(line.split())
        assert {name: getattr(found, name) for name in values} == values
        assert isinstance(checked(found, use_lora=True), configuration.DDPOConfig)


@pytest.mark.parametrize(
    "values", [{"train_learning_rate": 0.0}, {"train_adv_clip_max": 0}, {"train_max_grad_norm": 0}]
)
def test_nothing_is_learnt_of_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    short = {"sample_num_steps": 2, "sample_batch_size": 2, "train_batch_size": 2, "logdir": str(tmp_path)}
    short |= {"train_adam_weight_decay": 0.0}
    trainer = DDPOTrainer(DDPOConfig(**short | values), scorer, lambda: ("cat", {}), tiny_pipeline())
    before = [p.detach().clone() for p in trainer.trainable_layers]
    trainer.train(1)
    for parameter, was in zip(trainer.trainable_layers, before, strict=True):
        assert float((parameter - was).abs().max()) < 1e-20


def test_a_buffer_that_never_fills_is_trls(tmp_path: Path) -> None:
    """Advantages are over all samples where a prompt's buffer is shorter than its least count."""
    short = {"sample_num_steps": 2, "sample_batch_size": 2, "train_batch_size": 2, "logdir": str(tmp_path)}
    short |= {"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_buffer_size": 8}
    trainer = DDPOTrainer(DDPOConfig(**short), scorer, lambda: ("cat", {}), tiny_pipeline())
    rewards = np.array([1.0, 2.0, 4.0, 5.0], dtype=np.float32)
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    for _ in range(5):
        assert np.allclose(trainer.stat_tracker.update(["cat"] * 4, rewards), expected)
    assert trainer.stat_tracker.get_stats()["cat"]["count"] == 8
    trainer.train(1)
